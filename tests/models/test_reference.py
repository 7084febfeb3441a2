from __future__ import annotations

import json

import numpy as np
import pytest

from scgpt_tools.models.reference import ReferenceIndex


@pytest.fixture
def index(rng) -> ReferenceIndex:
    vectors = rng.normal(size=(200, 5)).astype(np.float32)
    codes = rng.integers(0, 3, 200)
    source = {"model": {"name": "tiny", "checksum": "abc", "dim": np.int64(5)}, "params": {"normalize": np.True_}}
    return ReferenceIndex(vectors, codes, ("B", "NK", "T"), source)


def by_hand(reference, queries, k):
    distances = ((queries[:, None].astype(np.float64) - reference) ** 2).sum(axis=2)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, axis=1)


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_neighbours_are_those_of_the_whole_distance_matrix(index, rng, backend, k):
    queries = rng.normal(size=(30, 5)).astype(np.float32)
    found = index.search(queries, k, backend=backend)
    rows, distances = by_hand(index.vectors, queries, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_backends_agree_where_distances_hardly_differ(rng):
    """Vectors far from zero and close together: products of float32 lose what tells them apart."""
    vectors = (1000 + 0.01 * rng.normal(size=(60, 8))).astype(np.float32)
    index = ReferenceIndex(vectors, np.zeros(60, dtype=np.int64), ("B",))
    found = [index.search(vectors, 60, backend=backend) for backend in ("faiss", "sklearn")]
    np.testing.assert_array_equal(found[0].rows, found[1].rows)
    np.testing.assert_array_equal(found[0].rows[:, 0], np.arange(60))


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
def test_equal_cells_come_in_the_order_of_the_reference(backend):
    vectors = np.array([[1, 1], [0, 0], [1, 1], [0, 0]], dtype=np.float32)
    index = ReferenceIndex(vectors, np.array([0, 1, 0, 1]), ("B", "T"))
    assert index.search([[1, 1]], 4, backend=backend).rows.tolist() == [[0, 2, 1, 3]]


def test_more_neighbours_than_cells_are_all_cells(index):
    assert index.search(index.vectors[:2], 1000).rows.shape == (2, 200)


def test_save_and_load_keep_everything(index, tmp_path, rng):
    loaded = ReferenceIndex.load(index.save(tmp_path / "blood"))
    queries = rng.normal(size=(9, 5))
    for ours, theirs in zip(index.search(queries, 7), loaded.search(queries, 7), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.classes == index.classes
    assert loaded.proportions.tolist() == index.proportions.tolist()
    assert loaded.source == {"model": {"name": "tiny", "checksum": "abc", "dim": 5}, "params": {"normalize": True}}
    assert repr(loaded) == repr(index) == "ReferenceIndex(200 cells, 5 dimensions, 3 classes)"


def without_checksums(folder):
    """As folders were written by the version before."""
    about = json.loads((folder / "reference.json").read_text())
    del about["checksums"]
    (folder / "reference.json").write_text(json.dumps(about))
    return folder


def test_an_index_is_saved_where_it_came_from(index, tmp_path):
    loaded = ReferenceIndex.load(index.save(tmp_path))
    again = ReferenceIndex.load(loaded.save(tmp_path))
    for one in (loaded, again):
        np.testing.assert_array_equal(one.vectors, index.vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.npy", "reference.json", "vectors.npy"]
    np.testing.assert_array_equal(ReferenceIndex.load(without_checksums(tmp_path)).codes, index.codes)


def test_a_loaded_index_does_not_care_what_becomes_of_its_files(index, tmp_path):
    loaded = ReferenceIndex.load(index.save(tmp_path))
    with (tmp_path / "vectors.npy").open("r+b") as file:
        file.truncate(0)
    np.testing.assert_array_equal(loaded.vectors, index.vectors)


def test_home_is_expanded(index, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index.save("~/blood") == tmp_path / "blood"
    assert len(ReferenceIndex.load("~/blood")) == 200


def test_an_interrupted_save_leaves_the_old_index(index, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in index.save(tmp_path).iterdir()}

    def full(path, array):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scgpt_tools.models.reference._write_array", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_others_are_not_replaced(index, tmp_path):
    np.save(tmp_path / "vectors.npy", np.zeros(3))
    with pytest.raises(FileExistsError, match=r"found vectors\.npy of something else"):
        index.save(tmp_path)
    assert np.load(tmp_path / "vectors.npy").shape == (3,)


@pytest.mark.parametrize("name", ["vectors.npy", "labels.npy"])
def test_files_of_different_references_are_refused(index, tmp_path, name):
    folder = index.save(tmp_path / "one")
    other = ReferenceIndex(index.vectors[::-1].copy(), index.codes[::-1].copy(), index.classes).save(tmp_path / "two")
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=f"{name}' to be the file that was saved together with reference.json"):
        ReferenceIndex.load(folder)


def test_a_folder_that_is_not_a_reference_is_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no vectors\.npy, labels\.npy, reference\.json"):
        ReferenceIndex.load(tmp_path)
    folder = index.save(tmp_path / "blood")
    about = json.loads((folder / "reference.json").read_text())
    (folder / "reference.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(ValueError, match="found format 99"):
        ReferenceIndex.load(folder)


def test_queries_that_do_not_fit_are_refused(index):
    with pytest.raises(ValueError, match="vectors of 5 dimensions"):
        index.search(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"infinite numbers in 1 rows: \[1\]"):
        index.search(np.array([[0.0] * 5, [np.nan] * 5]))
    with pytest.raises(ValueError, match="`backend` to be one of"):
        index.search(np.zeros((2, 5)), backend="annoy")


@pytest.mark.parametrize(
    ("vectors", "codes", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "at least one cell"),
        (np.zeros((3, 2)), np.zeros(2, dtype=int), "one class for each of 3"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "numbered below 2, found 2"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(vectors, codes, message):
    with pytest.raises(ValueError, match=message):
        ReferenceIndex(vectors, codes, ("B", "T"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_refused(index, tmp_path, value):
    vectors = np.concatenate([index.vectors] * 11)
    vectors[[1500, 2000], [3, 0]] = value
    with pytest.raises(ValueError, match="missing or infinite numbers in row 1500"):
        ReferenceIndex(vectors, np.concatenate([index.codes] * 11), index.classes)
    damaged = index.vectors.copy()
    damaged[7, 0] = value
    np.save(without_checksums(index.save(tmp_path)) / "vectors.npy", damaged)
    with pytest.raises(ValueError, match="in row 7"):
        ReferenceIndex.load(tmp_path)


def test_without_faiss_scikit_learn_searches(index, monkeypatch):
    monkeypatch.setattr("scgpt_tools.models.reference.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    assert index.search(index.vectors[:3], 1).rows.tolist() == [[0], [1], [2]]
    with pytest.raises(ImportError, match="extra 'index' of scgpt-tools"):
        index.search(index.vectors[:3], 1, backend="faiss")
