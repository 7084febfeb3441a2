from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from scgpt_tools.models import AtlasIndex, ReferenceIndex, atlas
from scgpt_tools.models.calibration import Calibration, draw_cells, draw_held_out, hold_out

faiss = pytest.importorskip("faiss", reason="the extra `index` is not installed")
DIM = 4
# What trains fast: codes of 16 centres.
SMALL = "PCA4,IVF64_HNSW8,PQ4x4"


@pytest.fixture(scope="module")
def cells():
    """10,000 cells in three clouds, in three batches."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 10_000)
    centres = np.zeros((3, DIM))
    centres[1:] = 8 * np.eye(DIM)[:2]
    return (centres[codes] + rng.normal(size=(10_000, DIM))).astype(np.float32), codes, rng.integers(0, 3, 10_000)


def build(cells, description=SMALL, *, batches=False, **options):
    vectors, codes, batch = cells
    return AtlasIndex.build(
        lambda: np.array_split(vectors, 3),
        codes,
        ("B", "NK", "T"),
        dim=vectors.shape[1],
        description=description,
        batches=batch if batches else None,
        **options,
    )


@pytest.fixture(scope="module")
def compressed(cells):
    return build(cells, n_held_out=300, source={"label_key": "kind"})


def recall(found, exact) -> float:
    return float(
        np.mean([len(set(one) & set(two)) / len(two) for one, two in zip(found.rows, exact.rows, strict=True)])
    )


def test_flat_index_finds_what_exact_search_finds(cells):
    atlas = build(cells, "Flat")
    exact = ReferenceIndex(cells[0], cells[1], ("B", "NK", "T"))
    queries = cells[0][:50] + 0.1
    found, expected = atlas.search(queries, 10), exact.search(queries, 10)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-3, atol=1e-4)


def test_compressed_index_finds_nearly_all_neighbours_and_scgpts_most(cells):
    flat = (cells[0][:, :2].copy(), *cells[1:])
    index = build(flat, "scgpt")
    assert index.description == "PCA2,IVF256_HNSW32,PQ2"
    exact = ReferenceIndex(flat[0], cells[1], ("B", "NK", "T"))
    queries = flat[0][:200] + 0.1
    # More lists find no fewer; a single one loses many.
    by_probes = [recall(index.search(queries, 10, probes=n), exact.search(queries, 10)) for n in (1, 16, 256)]
    assert by_probes == sorted(by_probes)
    assert by_probes[0] < by_probes[2]
    assert by_probes[1] > 0.7
    index = build(cells, "compressed")
    assert index.description == "IVF256,SQ8"
    exact = ReferenceIndex(*cells[:2], ("B", "NK", "T"))
    queries = cells[0][:200] + 0.1
    assert recall(index.search(queries, 10), exact.search(queries, 10)) > 0.9


def test_few_cells_can_be_compressed(cells):
    few = tuple(part[:100] for part in cells)
    index = build(few, "compressed")
    assert index.description == "IVF2,SQ8"
    assert index.search(few[0], 1).rows.ravel().tolist() == list(range(100))
    more = tuple(part[:700] for part in cells)
    assert build(more, "PQ2x4").search(more[0], 1).rows.shape == (700, 1)
    assert build(few, "IVF2,Flat").search(few[0], 1).rows.ravel().tolist() == list(range(100))


def test_queries_in_sparse_lists_get_all_their_neighbours(cells):
    atlas = build(cells, "IVF256,Flat")
    found = atlas.search(cells[0][:3], 5_000, probes=1)
    assert found.rows.min() >= 0
    assert all(len(set(rows)) == 5_000 for rows in found.rows)


@pytest.mark.parametrize("description", ["Flat", "PCA2,IVF64,Flat", SMALL, "IVF64,PQ4x4,RFlat"])
def test_neighbours_can_be_looked_for_among_some_cells(cells, description):
    atlas = build(cells, description)
    among = cells[2] == 1
    found = atlas.search(cells[0][:20], 7, among=among)
    assert among[found.rows].all()


def test_save_and_load_keep_everything(cells, compressed, tmp_path):
    loaded = AtlasIndex.load(compressed.save(tmp_path / "atlas"))
    for ours, theirs in zip(compressed.search(cells[0][:9], 7), loaded.search(cells[0][:9], 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(loaded.codes, compressed.codes)
    assert loaded.classes == ("B", "NK", "T")
    assert loaded.source == {"label_key": "kind"}
    for name in ("codes", "weights", "neighbours", "distances"):
        np.testing.assert_array_equal(getattr(loaded.calibration, name), getattr(compressed.calibration, name))
    assert repr(loaded) == repr(compressed)
    assert repr(loaded) == "AtlasIndex(10000 cells, 4 dimensions, 3 classes, 'PCA4,IVF64_HNSW8,PQ4x4')"
    loaded.save(tmp_path / "atlas")
    assert sorted(path.name for path in (tmp_path / "atlas").iterdir()) == [
        "index.faiss",
        "index_config.json",
        "meta.h5ad",
    ]


def write_like_scgpt(folder, vectors, labels, *, description=SMALL, nprobe=16):
    """The three files that scGPT's script for atlases leaves."""
    index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_L2)
    index.train(vectors)
    index.add(vectors)
    folder.mkdir()
    faiss.write_index(index, str(folder / "index.faiss"))
    with h5py.File(folder / "meta.h5ad", "w") as file:
        file.create_dataset("meta_labels", data=labels.astype(object), compression="gzip", chunks=True)
    about = {"embedding_dir": "embed", "meta_key": "cell_type", "gpu": True, "num_workers": 1, "nprobe": nprobe}
    about |= {"index_desc": description, "num_embeddings": len(vectors), "num_features": vectors.shape[1]}
    (folder / "index_config.json").write_text(json.dumps(about))
    return index


def test_scgpts_own_folder_loads(cells, tmp_path):
    names = np.array(["T", "B", "NK"])  # not in the order of their names
    theirs = write_like_scgpt(tmp_path / "atlas", cells[0], names[cells[1]], nprobe=5)
    atlas = AtlasIndex.load(tmp_path / "atlas")
    assert atlas.classes == ("B", "NK", "T")
    assert [atlas.classes[code] for code in atlas.codes[:50]] == names[cells[1][:50]].tolist()
    assert (atlas.probes, atlas.calibration, dict(atlas.source)) == (5, None, {})
    faiss.try_extract_index_ivf(theirs).nprobe = 5
    distances, rows = theirs.search(cells[0][:20], 10)
    found = atlas.search(cells[0][:20], 10)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, distances)


def test_scgpt_reads_our_folder(compressed, cells, tmp_path):
    """As its ``load_index`` does: labels as text, settings by name."""
    folder = compressed.save(tmp_path / "atlas")
    about = json.loads((folder / "index_config.json").read_text())
    assert about["gpu"] is False
    assert about["nprobe"] == 16
    index = faiss.read_index(str(folder / "index.faiss"))
    faiss.try_extract_index_ivf(index).nprobe = about["nprobe"]
    with h5py.File(folder / "meta.h5ad") as file:
        labels = file["meta_labels"].asstr()[:]
    assert labels.tolist() == np.array(["B", "NK", "T"])[cells[1]].tolist()
    np.testing.assert_array_equal(index.search(cells[0][:9], 7)[1], compressed.search(cells[0][:9], 7).rows)


@pytest.mark.parametrize(("n", "lists"), [(10_000, 256), (200_000, 1024), (1_000_000, 2048), (33_000_000, 16384)])
def test_more_cells_get_more_lists(n, lists):
    from scgpt_tools.models.atlas import _description

    assert _description("compressed", n, 512) == f"IVF{lists},SQ8"
    assert _description("scgpt", n, 512) == f"PCA64,IVF{lists}_HNSW32,PQ16"


def test_what_an_index_takes_is_said_before_it_is_built(cells, monkeypatch, caplog):
    some = tuple(part[:400] for part in cells)
    caplog.set_level("INFO", logger="scgpt_tools")
    build(some, "IVF4,SQ8")
    assert "GB of memory" not in caplog.text
    monkeypatch.setattr(atlas, "_MUCH", 400 * (DIM + 8))
    monkeypatch.setattr(atlas, "_memory", lambda: 400 * (DIM + 8) + 4 * 4 * DIM)
    build(some, "IVF4,SQ8")
    assert "The index 'IVF4,SQ8' of 400 cells takes about 0.0 GB of memory" in caplog.text
    monkeypatch.setattr(atlas, "_memory", lambda: 400 * (DIM + 8) + 4 * 4 * DIM - 1)
    with pytest.warns(UserWarning, match=r"fits into the 0.0 GB of memory .* of 400 cells"):
        build(some, "IVF4,SQ8")
    monkeypatch.setattr(atlas, "_memory", lambda: None)
    build(some, "IVF4,SQ8")


@pytest.mark.parametrize(
    "description",
    ["Flat", "IVF16,SQ8", "PCA8,IVF16,PQ4x4", "HNSW16,Flat", "HNSW8,SQ8", "IVF16_HNSW8,SQ8", "IVF16,SQ8,RFlat"],
)
def test_the_size_that_is_said_is_that_of_the_index(rng, description):
    n, dim = 3_000, 16
    index = faiss.index_factory(dim, description, faiss.METRIC_L2)
    said = atlas._size_of(index, n)
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    # In a file it is what it is in memory, with tables of a fixed size.
    assert said == pytest.approx(len(faiss.serialize_index(index)), rel=0.05, abs=3_000)


def test_a_size_that_faiss_does_not_know_is_not_said():
    assert atlas._size_of(faiss.index_factory(DIM, "LSH", faiss.METRIC_L2), 10) is not None
    assert atlas._sum(None, 1) is None


def test_held_out_cells_do_not_find_themselves(cells):
    flat, small = build(cells, "Flat", n_held_out=200), build(cells, n_held_out=200)
    for index in (flat, small):
        assert index.calibration.neighbours.shape == index.calibration.distances.shape
        assert len(index.calibration) == pytest.approx(200, abs=3)
        assert index.calibration.neighbours.shape[1] == 50
    # Of exact search nobody else is at no distance.
    assert (flat.calibration.distances > 0).all()


def test_held_out_cells_are_looked_up_in_other_batches(cells):
    vectors, codes, batches = cells
    index = ReferenceIndex(vectors, codes, ("B", "NK", "T"))
    # Batch 2 lies far from the others, and so do the neighbours of its cells.
    moved = vectors + 100 * (batches == 2)[:, None].astype(np.float32)
    rows = np.arange(100)
    apart = hold_out(ReferenceIndex(moved, codes, index.classes), rows, moved[rows], batches, "donor")
    assert apart.across == "donor"
    assert (apart.distances[batches[rows] == 2] > 1_000).all()
    together = hold_out(ReferenceIndex(moved, codes, index.classes), rows, moved[rows], None, "")
    assert (together.distances < 100).all()


def test_classes_of_one_batch_cannot_be_held_out_across_batches(cells):
    vectors, codes, _ = cells
    batches = (codes == 2).astype(np.int64)
    batches[codes == 1] = np.arange((codes == 1).sum()) % 2
    index = ReferenceIndex(vectors, codes, ("B", "NK", "T"))
    found = hold_out(index, np.arange(100), vectors[:100], batches, "donor")
    assert set(found.codes.tolist()) == {1}
    with pytest.raises(ValueError, match="a class that is in more than one batch"):
        hold_out(index, np.arange(100), vectors[:100], codes, "donor")
    with pytest.raises(ValueError, match="at least two batches"):
        hold_out(index, np.arange(100), vectors[:100], np.zeros(10_000, dtype=np.int64), "donor")


def test_rare_classes_are_held_out_too():
    codes = np.repeat([0, 1, 2], [9_000, 980, 20])
    rows = draw_held_out(codes, 500, np.random.default_rng(0))
    assert np.bincount(codes[rows]).tolist() == [430, 50, 20]
    assert len(set(rows)) == len(rows)
    np.testing.assert_array_equal(draw_held_out(codes, 20_000, np.random.default_rng(0)), np.arange(10_000))


@pytest.mark.parametrize(("n", "expected"), [(500, [430, 50, 20]), (90, [35, 35, 20]), (5, [2, 2, 1])])
def test_no_more_cells_are_drawn_than_wanted(n, expected):
    codes = np.repeat([0, 1, 2], [9_000, 980, 20])
    drawn = draw_cells(codes, n, np.random.default_rng(0))
    assert np.bincount(codes[drawn]).tolist() == expected
    assert len(set(drawn)) == n


def test_of_many_classes_each_has_held_out_cells_enough():
    codes = np.repeat(np.arange(100), 60)
    drawn = draw_held_out(codes, 2_000, np.random.default_rng(0))
    assert np.bincount(codes[drawn]).tolist() == [50] * 100


def test_calibration_survives_a_folder_of_exact_vectors(cells, tmp_path):
    vectors, codes, _ = cells
    index = ReferenceIndex(vectors[:300], codes[:300], ("B", "NK", "T"))
    calibration = hold_out(index, np.arange(40), vectors[:40], None, "")
    held = ReferenceIndex(vectors[:300], codes[:300], ("B", "NK", "T"), {}, calibration)
    loaded = ReferenceIndex.load(held.save(tmp_path))
    for name in ("codes", "weights", "neighbours", "distances"):
        np.testing.assert_array_equal(getattr(loaded.calibration, name), getattr(calibration, name))
    # An index without them leaves none of them behind.
    assert ReferenceIndex.load(index.save(tmp_path)).calibration is None
    assert len(list(tmp_path.iterdir())) == 3


def test_what_faiss_cannot_do_is_refused(cells):
    with pytest.raises(
        ValueError, match=r"`index` to be 'exact', 'compressed', 'scgpt' or a description .* found 'ANNOY'"
    ):
        build(cells, "ANNOY")
    with pytest.raises(ValueError, match=r"enough cells to train an index 'IVF1024,Flat', found 10,000"):
        build(cells, "IVF1024,Flat")
    few = tuple(part[:500] for part in cells)
    with pytest.raises(ValueError, match=r"found 500 \(39 for each of 256 centres\)\. Take 'Flat'"):
        build(few, "scgpt")
    with pytest.raises(ValueError, match=r"found 20 \(39 for each of 1 centres\)"):
        build(tuple(part[:20] for part in cells), "compressed")
    with pytest.raises(ValueError, match="index that can look among some cells only"):
        build(few, "LSH", batches=True, n_held_out=20)
    with pytest.raises(ValueError, match="Euclidean distances, found one of another metric"):
        AtlasIndex(faiss.IndexFlatIP(DIM), cells[1], ("B", "NK", "T"))


def test_damaged_folders_are_refused(compressed, cells, tmp_path):
    folder = compressed.save(tmp_path / "atlas")
    other = build(cells, "Flat").save(tmp_path / "other")
    (folder / "index.faiss").write_bytes((other / "index.faiss").read_bytes())
    with pytest.raises(ValueError, match=r"index\.faiss' to be the file that was saved together"):
        AtlasIndex.load(folder)
    write_like_scgpt(tmp_path / "theirs", cells[0], np.array(["B", "NK", "T"])[cells[1]])
    (tmp_path / "theirs" / "index.faiss").write_bytes(b"no index at all")
    with pytest.raises(ValueError, match="to be an index of faiss, found something else or a damaged file"):
        AtlasIndex.load(tmp_path / "theirs")
    (tmp_path / "theirs" / "meta.h5ad").write_bytes(b"no labels")
    with pytest.raises(ValueError, match="HDF5 with the class of each cell"):
        AtlasIndex.load(tmp_path / "theirs")
    (tmp_path / "theirs" / "meta.h5ad").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no meta\.h5ad"):
        AtlasIndex.load(tmp_path / "theirs")


def test_labels_of_other_cells_are_refused(cells, tmp_path):
    write_like_scgpt(tmp_path / "atlas", cells[0], np.array(["B", "NK", "T"])[cells[1]])
    with h5py.File(tmp_path / "atlas" / "meta.h5ad", "w") as file:
        file.create_dataset("meta_labels", data=np.array(["B", "T"], dtype=object))
    with pytest.raises(ValueError, match="one class for each of 10,000 cells of the index, found 2"):
        AtlasIndex.load(tmp_path / "atlas")


def test_files_of_others_are_not_replaced(compressed, tmp_path):
    (tmp_path / "meta.h5ad").write_text("a table")
    with pytest.raises(FileExistsError, match=r"found meta\.h5ad in"):
        compressed.save(tmp_path)
    assert (tmp_path / "meta.h5ad").read_text() == "a table"


def test_a_calibration_that_makes_no_sense_is_refused():
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match="each of 2 held-out cells"):
        Calibration(np.zeros(2, dtype=int), np.ones(2), ones.astype(int), ones[:1].astype(np.float32))
    with pytest.raises(ValueError, match="finite distances"):
        Calibration(np.zeros(2, dtype=int), np.ones(2), ones.astype(int), (ones * np.nan).astype(np.float32))
