"""Minibatches for training: the right cells with their labels, the same ones wherever a run goes on."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from scgpt_tools.data.module import CellDataModule, CellTable
from scgpt_tools.data.rows import RowSource
from scgpt_tools.tokens.corruptions import GenerateValues, MaskValues
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture
def tokenizer(vocabulary):
    return Tokenizer(TokenizerConfig(length=10), vocabulary)


@pytest.fixture
def second(adata):
    """Other cells with some of the genes, in another order."""
    other = adata[:, ::-1][:, 4:].copy()
    other.obs_names = [f"other{i}" for i in range(other.n_obs)]
    other.X = other.X * 2
    return other


@pytest.fixture
def tables(adata, second, vocabulary):
    def table(cells: ad.AnnData) -> CellTable:
        return CellTable(
            RowSource(cells),
            FeatureTable.from_var(cells.var, vocabulary, min_coverage=0.0),
            batch_id=cells.obs["batch"].astype("category").cat.codes.to_numpy(np.int64),
            label=cells.obs["cell_type"].cat.codes.to_numpy(np.int64),
        )

    return [table(adata), table(second)]


@pytest.fixture
def data(tables, tokenizer):
    return CellDataModule(tables, tokenizer, corruption=MaskValues(ratio=0.4), validation=[1, 5, 20])


def same(first, second):
    for name, tensor in vars(first).items():
        other = getattr(second, name)
        assert (tensor is None and other is None) or torch.equal(tensor, other), name


def all_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        same(one, other)


def test_training_cells_come_once_an_epoch(data):
    loader = data.loader("train", batch_size=4)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    index = torch.cat([batch.index for batch in batches]).numpy()
    assert np.array_equal(np.sort(index), np.setdiff1d(np.arange(24), [1, 5, 20]))
    assert torch.cat([batch.index for batch in data.loader("validation", batch_size=2)]).tolist() == [1, 5, 20]


def test_tokens_of_two_tables_are_those_of_each(tables, tokenizer):
    """A minibatch across tables holds, cell by cell, what each table gives by itself."""
    data = CellDataModule(tables, tokenizer, sampling="random")
    (batch,) = data.loader("train", batch_size=24)
    for cell in range(24):
        table, row = tables[cell // 12], cell % 12
        X = table.source.take([row])
        seen = {}
        place = batch.index.tolist().index(cell)
        for token, value in zip(batch.genes[place].tolist(), batch.values[place].tolist(), strict=True):
            seen[token] = value
        alone = tokenizer(X, table.features, table.source.keys[[row]], rng=0)
        # Which genes of a long cell stay depends on the seed of the epoch; short cells keep all.
        if int(alone.mask.sum()) < 10:
            expected = dict(zip(alone.genes[0].tolist(), alone.values[0].tolist(), strict=True))
            assert {token: seen[token] for token in expected} == expected
            assert int(batch.mask[place].sum()) == len(expected)
        assert batch.label[place] == table.label[row]
        assert batch.batch_id[place] == table.batch_id[row]


def test_padding_is_padding_where_tables_meet(tables, tokenizer, vocabulary):
    (batch,) = CellDataModule(tables, tokenizer).loader("train", batch_size=24)
    assert (batch.genes[~batch.mask] == vocabulary.pad_id).all()
    assert (batch.values[~batch.mask] == -2).all()
    assert (batch.genes[batch.mask] != vocabulary.pad_id).all()


def test_epochs_differ_and_seeds_decide(data):
    loader = data.loader("train", batch_size=5, rng=3)
    first, second = list(loader), list(loader)
    all_same(first, data.loader("train", batch_size=5, rng=3))
    assert any(not torch.equal(a.index, b.index) for a, b in zip(first, second, strict=True))
    other = list(data.loader("train", batch_size=5, rng=4))
    assert any(not torch.equal(a.index, b.index) for a, b in zip(first, other, strict=True))


def test_validation_is_hidden_alike_in_every_epoch(data):
    loader = data.loader("validation", batch_size=2)
    all_same(list(loader), list(loader))


def test_another_epoch_hides_other_values_and_draws_other_genes(tables, tokenizer):
    data = CellDataModule(tables[:1], tokenizer, corruption=MaskValues(ratio=0.4), validation=[])
    loader = data.loader("train", batch_size=12)
    by_cell = [{int(i): (g, h) for i, g, h in zip(b.index, b.genes, b.hidden, strict=True)} for b in (*loader, *loader)]
    assert any(not torch.equal(by_cell[0][cell][0], by_cell[1][cell][0]) for cell in range(12))
    assert any(not torch.equal(by_cell[0][cell][1], by_cell[1][cell][1]) for cell in range(12))


@pytest.mark.parametrize("sampling", ["random", "blocks", "balanced", "one_batch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_was_left(tables, tokenizer, sampling, workers):
    data = CellDataModule(
        tables, tokenizer, corruption=GenerateValues(), validation=[0], sampling=sampling, block=4, blocks=2
    )
    reference = data.loader("train", batch_size=4)
    everything = [*reference, *reference]
    for stop in (0, 1, 3, len(reference), len(reference) + 2):
        loader = data.loader("train", batch_size=4, workers=workers)
        done = []
        while len(done) < stop:
            for batch in loader:
                done.append(batch)
                if len(done) == stop:
                    break
        resumed = data.loader("train", batch_size=4, workers=workers)
        resumed.load_state_dict(loader.state_dict())
        rest = list(resumed)
        if stop < len(reference):
            rest += list(resumed)
        all_same([*done, *rest], everything)


def test_one_batch_minibatches_are_pure(tables, tokenizer):
    data = CellDataModule(tables, tokenizer, sampling="one_batch")
    assert all(len(batch.batch_id.unique()) == 1 for batch in data.loader("train", batch_size=5))


def test_blocks_read_the_same_from_a_file(tables, tokenizer, vocabulary, as_form, adata):
    """What is read from disk in runs is what is in memory."""
    backed = as_form(adata, "backed")
    table = CellTable(RowSource(backed), tables[0].features)
    for sampling in ("random", "blocks"):
        loaders = [
            CellDataModule([one], tokenizer, sampling=sampling, block=3, blocks=2).loader("train", batch_size=4)
            for one in (CellTable(RowSource(adata), tables[0].features), table)
        ]
        all_same(*loaders)


class Reads:
    """A source that counts what is read from it."""

    def __init__(self, source):
        self.source, self.largest = source, 0

    def __len__(self):
        return len(self.source)

    @property
    def keys(self):
        return self.source.keys

    def take(self, rows):
        self.largest = max(self.largest, len(rows))
        return self.source.take(rows)


def test_another_order_of_blocks_is_another_run(tables, tokenizer):
    def described(**options):
        return CellDataModule(tables, tokenizer, **options).describe()

    usual = described(sampling="blocks")
    assert usual == described(sampling="blocks", block=256, blocks=64)
    assert usual != described(sampling="blocks", block=128)
    assert usual != described(sampling="blocks", blocks=32)
    assert described() == described(block=128)


def test_blocks_bound_what_is_in_memory(tables, tokenizer):
    source = Reads(tables[0].source)
    data = CellDataModule([CellTable(source, tables[0].features)], tokenizer, sampling="blocks", block=2, blocks=2)
    list(data.loader("train", batch_size=2))
    assert source.largest == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": [0], "validation": [0]}, "both parts"),
        ({"validation": range(24)}, "to train on"),
        ({"validation": [24]}, "24 cells"),
        ({"sampling": "sorted"}, "sampling"),
        ({"block": 0}, "block"),
    ],
)
def test_wrong_options_are_refused(tables, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        CellDataModule(tables, tokenizer, **options)


def test_labels_are_for_all_tables_or_none(tables, tokenizer):
    bare = CellTable(tables[1].source, tables[1].features)
    with pytest.raises(ValueError, match=r"tables \[1\]"):
        CellDataModule([tables[0], bare], tokenizer)
    with pytest.raises(ValueError, match="batch"):
        CellDataModule([bare], tokenizer, sampling="one_batch")
    with pytest.raises(ValueError, match="label"):
        CellDataModule([bare], tokenizer, sampling="balanced")
    with pytest.raises(ValueError, match="one number per cell"):
        CellTable(tables[1].source, tables[1].features, batch_id=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="at least one table"):
        CellDataModule([], tokenizer)


def test_cells_drawn_twice_are_alike(tables, tokenizer):
    data = CellDataModule(tables, tokenizer, sampling="balanced", train=[0, 1, 2, 3, 9, 14, 17])
    for batch in data.loader("train", batch_size=7):
        for cell in batch.index.unique():
            rows = torch.nonzero(batch.index == cell).flatten()
            assert (batch.genes[rows] == batch.genes[rows[0]]).all()


def test_parts_of_two_processes_make_one_minibatch(data, monkeypatch):
    """The cells of both processes, side by side, are those of one process with the doubled minibatch."""
    whole = list(data.loader("train", batch_size=8))
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr("scgpt_tools.data.epochs.this_process", lambda rank=rank: (rank, 2))
        halves.append(list(data.loader("train", batch_size=4)))
    for batch, first, second in zip(whole, *halves, strict=True):
        cells = batch.index[: len(batch) // 2 * 2]
        assert torch.equal(torch.cat([first.index, second.index]), cells)
