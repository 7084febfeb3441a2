"""Where cells of a pre-training run come from, and what is computed of them."""

from __future__ import annotations

import anndata as ad
import fsspec
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.shards import write_shards
from scgpt_tools.data.stores import find_urls, open_url
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.tokens.edges import quantile_edges
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.train.collection import open_collection
from scgpt_tools.train.pretrain import pretrain, read_config
from scgpt_tools.vocabulary import Vocabulary

FAMILY = {"name": "scmodelforge", "dim": 8, "layers": 1, "heads": 2, "hidden": 8, "dropout": 0.0}
TRAIN = {"epochs": 1, "batch_size": 16, "accelerator": "cpu"}


def config(**sections) -> dict:
    return {"data": {"paths": ["cells.h5ad"], "validation": 0.2}, "family": FAMILY, "train": TRAIN} | sections


def trained(folder, **sections) -> CellModel:
    return pretrain(config(**sections), data=folder, output=folder / "model", overwrite=True)


@pytest.fixture
def folder(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path


def training_values(folder) -> tuple[np.ndarray, pd.Index]:
    """Log-normalised values of the training cells, worked out by hand."""
    cells = ad.read_h5ad(folder / "cells.h5ad")
    with open_collection(read_config(config()).data, folder) as collection:
        X = cells.X.toarray()[collection.cells("train")].astype(np.float64)
    return X * (1e4 / X.sum(1, keepdims=True)), cells.var_names


def test_quantile_edges_are_of_training_cells(folder):
    model = trained(folder, statistics={"quantile_bins": 8})
    values, _ = training_values(folder)
    expected = quantile_edges(np.log1p(values), 8)
    np.testing.assert_allclose(model.config.tokenizer.edges, expected, rtol=1e-5)
    again = CellModel.from_pretrained(folder / "model", device="cpu")
    assert again.config.tokenizer == model.config.tokenizer


def test_medians_travel_with_the_model(folder):
    model = trained(folder, statistics={"medians": True})
    values, names = training_values(folder)
    medians = model.config.tokenizer.medians
    for number, gene in enumerate(names):
        positive = values[:, number][values[:, number] > 0]
        assert medians[model.vocabulary[gene]] == pytest.approx(np.median(positive), rel=1e-5), gene
    assert CellModel.from_pretrained(folder / "model", device="cpu").config.tokenizer.medians == medians


def test_medians_need_ranks(folder):
    with pytest.raises(ValueError, match="order='rank'"):
        trained(folder, statistics={"medians": True}, family=FAMILY | {"name": "scmodelforge_autoencoder"})


def test_highly_variable_genes_are_scanpys_of_training_cells(folder):
    model = trained(folder, vocabulary={"highly_variable": 9})
    values, names = training_values(folder)
    sample = ad.AnnData(sp.csr_matrix(np.log1p(values).astype(np.float32)), var=pd.DataFrame(index=names))
    sc.pp.highly_variable_genes(sample, n_top_genes=9)
    genes = {token for token in model.vocabulary if not model.vocabulary.is_special(token)}
    assert genes == set(names[sample.var["highly_variable"]])
    with pytest.raises(ValueError, match="`highly_variable` of at most 24"):
        trained(folder, vocabulary={"highly_variable": 40})


def test_highly_variable_genes_of_several_files(folder, make_cells):
    make_cells(40, seed=3, prefix="other")[:, 3:].copy().write_h5ad(folder / "other.h5ad")
    model = trained(folder, data={"paths": ["*.h5ad"]}, vocabulary={"highly_variable": 9}, statistics={"cells": 50})
    assert len(model.vocabulary) == 4 + 9


def named(folder, names) -> None:
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells.var_names = [*names, *cells.var_names[len(names) :]]
    cells.write_h5ad(folder / "cells.h5ad")


def test_a_named_vocabulary_does_not_depend_on_the_data(folder):
    named(folder, ["CD3D", "ENSG00000075624"])
    sections = {"vocabulary": {"name": "human_protein_coding"}}
    with pytest.warns(UserWarning, match="2 of 24"):
        model = trained(folder, vocabulary=sections["vocabulary"] | {"min_coverage": 0.5})
    assert len(model.vocabulary) > 20_000
    assert "ACTB" in model.vocabulary
    assert "GENE5" not in model.vocabulary
    with open_collection(read_config(config()).data, folder, genes="human_protein_coding") as collection:
        (table,) = collection.tables(model.vocabulary, min_coverage=0.0)
    assert set(table.features.names) == {"CD3D", "ACTB"}


def test_genes_of_mouse_are_read_as_those_of_human(folder):
    named(folder, ["Trp53", "ENSMUSG00000026395", "Cd8b1"])
    data = {"paths": ["cells.h5ad"], "validation": 0.2}
    model = trained(folder, data=data | {"orthologs": {}})
    assert {"TP53", "PTPRC", "Cd8b1"} <= set(model.vocabulary)
    several = trained(folder, data=data | {"orthologs": {"one_to_many": True}})
    assert {"TP53", "CD8B"} <= set(several.vocabulary)
    table = pd.DataFrame({"mouse": ["Trp53"], "human": ["MINE"], "kind": ["one2one"]})
    table.to_csv(folder / "own.tsv", sep="\t", index=False)
    assert "MINE" in trained(folder, data=data | {"orthologs": {"table": "own.tsv"}}).vocabulary


def test_addresses_are_read_where_they_are(folder, cells):
    """The same model from a file and from another file system, as h5ad and as zarr."""
    system = fsspec.filesystem("memory")
    system.pipe("/store/cells.h5ad", (folder / "cells.h5ad").read_bytes())
    ad.io.write_elem(zarr.open_group(folder / "cells.zarr", mode="w", zarr_format=2), "/", cells)
    system.put(str(folder / "cells.zarr"), "/store/cells.zarr", recursive=True)
    try:
        here = trained(folder)
        for paths in (
            ["memory://store/*.h5ad"],
            ["memory://store/cells.zarr"],
            ["simplecache::memory://store/cells.h5ad"],
        ):
            there = trained(folder, data={"paths": paths, "validation": 0.2})
            assert there.checksum == here.checksum, paths
        # Arguments go to the file system that they are named for.
        storage = {"simplecache": {"cache_storage": str(folder / "cache")}}
        trained(
            folder, data={"paths": ["simplecache::memory://store/cells.h5ad"], "validation": 0.2, "storage": storage}
        )
        assert list((folder / "cache").iterdir())
        with pytest.raises(FileNotFoundError, match="memory://store/x"):
            trained(folder, data={"paths": ["memory://store/x*.h5ad"]})
        with pytest.raises(FileNotFoundError):
            trained(folder, data={"paths": ["memory://store/absent.h5ad"]})
    finally:
        system.rm("/store", recursive=True)


class Locked(MemoryFileSystem):
    """A file system that wants an argument."""

    protocol = "locked"

    def __init__(self, key="", **options):
        super().__init__(**options)
        if key != "open":
            raise PermissionError("locked")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("locked://", "memory://"))


@pytest.mark.parametrize("storage", [{"key": "open"}, {"locked": {"key": "open"}}])
@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_arguments_reach_the_file_system_that_has_the_files(folder, storage, chain):
    fsspec.register_implementation("locked", Locked, clobber=True)
    fsspec.filesystem("memory").pipe("/vault/cells.h5ad", (folder / "cells.h5ad").read_bytes())
    try:
        (url,) = find_urls(f"{chain}locked://vault/*.h5ad", storage=storage)
        with open_url(url, storage=storage) as table:
            assert table.shape == ad.read_h5ad(folder / "cells.h5ad").shape
    finally:
        fsspec.filesystem("memory").rm("/vault", recursive=True)


def test_shards_are_trained_on(folder, cells):
    """A folder of shards is a table like any other, in blocks as in random order."""
    vocabulary = Vocabulary.from_genes(cells.var_names, ("<pad>", "<unk>", "<mask>", "<cls>"))
    source = RowSource(cells)
    write_shards(source, FeatureTable.from_var(cells.var, vocabulary), vocabulary, folder / "shards", shard_size=25)
    vocabulary.save(folder / "vocab.json")
    for sampling in ("random", "blocks"):
        data = {"paths": ["shards"], "validation": 0.2, "sampling": sampling, "block": 4, "blocks": 2}
        model = trained(folder, data=data, vocabulary={"path": "vocab.json"})
        assert model.vocabulary == vocabulary
    with open_collection(read_config(config(data={"paths": ["shards"]})).data, folder) as collection:
        rows, (source,) = np.array([0, 24, 25, 59, 3]), collection.sources
        np.testing.assert_array_equal(source.take(rows).toarray(), cells[rows, source.var.index].X.toarray())
    with pytest.raises(ValueError, match="no `layer`"):
        trained(folder, data={"paths": ["shards"], "layer": "counts"})
    (folder / "shards" / "gene_vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"gene_vocab\.json"):
        trained(folder, data={"paths": ["shards"]})


@pytest.mark.parametrize("sampling", ["random", "blocks"])
def test_shards_give_the_losses_of_their_table(folder, cells, sampling):
    """The same cells are held out, and the same is drawn in each, whatever order the vocabulary has."""
    vocabulary = Vocabulary.from_genes(cells.var_names[::-1], ("<pad>", "<unk>", "<mask>", "<cls>"))
    table = ad.read_h5ad(folder / "cells.h5ad")
    features = FeatureTable.from_var(table.var, vocabulary)
    write_shards(RowSource(table), features, vocabulary, folder / "shards", shard_size=25)
    vocabulary.save(folder / "vocab.json")
    losses = []
    for path in ("cells.h5ad", "shards"):
        data = {"paths": [path], "validation": 0.2, "sampling": sampling, "block": 4, "blocks": 2}
        history = trained(folder, data=data, vocabulary={"path": "vocab.json"}).history
        losses.append(history[["train_loss", "validation_loss"]].to_numpy())
    np.testing.assert_array_equal(*losses)


def test_values_in_another_unit_are_noticed(folder):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells.X = cells.X.log1p()
    cells.write_h5ad(folder / "cells.h5ad")
    with pytest.warns(UserWarning, match="Expected raw counts, found fractions"):
        trained(folder)


@pytest.mark.parametrize(
    ("section", "content", "message"),
    [
        ("data", {"paths": []}, "or a `census`"),
        ("data", {"sampling": "balanced"}, "`label_key`"),
        ("data", {"sampling": "one_batch"}, "`batch_key`"),
        ("data", {"curriculum": 2}, "sampling='balanced' only"),
        ("data", {"minibatch_genes": {"n_genes": 3, "how": "all"}}, "most_expressed"),
        ("data", {"orthologs": {"of": "rat"}}, "mouse"),
        ("vocabulary", {"name": "human_protein_codin"}, "human_protein_coding"),
        ("vocabulary", {"path": "vocab.json", "highly_variable": 3}, "alone"),
        ("family", FAMILY | {"pretraining_task": "masked_gene"}, "masked_gene_prediction"),
        ("tokenizer", {"unmeasured": "token"}, "one modality"),
        ("evaluate", {"label_key": "kind", "every": 0}, "every"),
        ("loggers", [{"kind": "csv", "offline": True}], "'wandb' only"),
        ("loggers", [{"kind": "mlflow"}], "tensorboard"),
        ("statistics", {"cells": 0}, "cells"),
    ],
)
def test_wrong_settings_are_refused(section, content, message):
    content = {"paths": ["cells.h5ad"]} | content if section == "data" else content
    with pytest.raises(ValueError, match=message):
        read_config(config(**{section: content}))


def test_a_probe_needs_cells_held_out():
    with pytest.raises(ValueError, match="above 0 for `evaluate`"):
        read_config(config(data={"paths": ["a"], "validation": 0.0}, evaluate={"label_key": "kind"}))
