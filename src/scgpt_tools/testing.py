"""What every model keeps to, as functions that a family can call in its own tests.

Each contract takes a small model and a batch for it, changes neither, and raises :class:`AssertionError` where the model
breaks its word.  :func:`tiny_vocabulary` and :func:`tiny_batch` make the inputs.

Examples
--------
>>> import scgpt_tools as sct
>>> from scgpt_tools import testing
>>> vocabulary = testing.tiny_vocabulary()
>>> config = sct.models.FAMILIES["scgpt"](vocabulary, dim=16, layers=2, heads=2, hidden=16)
>>> model = sct.CellModel(config, vocabulary).eval()
>>> batch = testing.tiny_batch(model)
>>> for contract in testing.CONTRACTS.values():
...     contract(model, batch)
"""

from __future__ import annotations

from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.nn.attention import PACKED
from scgpt_tools.nn.bin_values import BinAndNumberConfig
from scgpt_tools.nn.embedders import TableConfig
from scgpt_tools.nn.pooling import pool
from scgpt_tools.tokens.batch import DECLARED, TokenBatch
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from scgpt_tools.nn.output import CellOutput


def tiny_vocabulary(genes: int = 24) -> Vocabulary:
    """Make a vocabulary of a few genes with the special tokens between them.

    Parameters
    ----------
    genes
        Number of genes.

    Returns
    -------
    The vocabulary.
    """
    names = [f"GENE{number}" for number in range(genes)]
    return Vocabulary([*names[: genes // 2], "<pad>", "<cls>", *names[genes // 2 :], "<eoc>"])


def tiny_batch(model: CellModel, lengths: Sequence[int] = (6, 9, 3, 7), rng: int = 0) -> TokenBatch:
    """Make random cells that a model can read, with all that its parts ask for.

    Parameters
    ----------
    model
        Any model with a vocabulary.
    lengths
        Tokens of each cell, the cell token included if the model has one.
    rng
        Seed.

    Returns
    -------
    The batch.
    """
    random, config = np.random.default_rng(rng), model.config
    vocabulary, width = model.vocabulary, max(lengths)
    known = vocabulary.ids(token for token in vocabulary if not vocabulary.is_special(token))
    genes = np.stack([random.permutation(known)[:width] for _ in lengths])
    values = _random_values(model, genes.shape, random)
    if config.tokenizer.cls:
        genes[:, 0], values[:, 0] = vocabulary.cls_id, _readable(model, config.tokenizer.cls_value)
    mask = np.arange(width) < np.asarray(lengths)[:, None]
    batch = TokenBatch(
        genes=torch.from_numpy(np.where(mask, genes, vocabulary.pad_id)),
        values=torch.from_numpy(np.where(mask, values, _readable(model, config.tokenizer.pad_value))).float(),
        mask=torch.from_numpy(mask),
    )
    labels = max(config.context.batches, config.domains)
    if labels:
        batch = batch.replace(batch_id=torch.arange(len(lengths)) % labels)
    if config.context.modalities:
        batch = batch.replace(modality=torch.from_numpy(random.integers(config.context.modalities, size=mask.shape)))
    if config.perturbation is not None:
        batch = batch.replace(perturbed=torch.from_numpy(random.integers(2, size=mask.shape)))
    for part in config.embedder.parts.values():
        for name in () if part.optional else part.reads:
            if getattr(batch, name) is None:
                shape = mask.shape if DECLARED[name].per == "token" else mask.shape[:1]
                entries = torch.from_numpy(random.integers(_rows(model, name) or 2, size=shape))
                batch = batch.replace(**{name: entries.to(DECLARED[name].dtype)})
    return batch.check().to(model.device)


def check_padding(model: CellModel, batch: TokenBatch) -> None:
    """A cell must not feel how long its neighbours are, nor what stands at padding."""
    with torch.no_grad():
        expected, found = model(batch), model(_padded(batch, 4))
        length = batch.genes.shape[1]
        _same(found.tokens[:, length:], torch.zeros_like(found.tokens[:, length:]), "tokens at padding")
        _same(found.tokens[:, :length], expected.tokens, "tokens")
        _same(found.cell, expected.cell, "cell embeddings")
        _same_predictions(found, expected, batch.mask)
        rubbish = model(_with_rubbish(batch))
        _same(rubbish.tokens, expected.tokens, "tokens")
        _same(rubbish.cell, expected.cell, "cell embeddings")
        _same_predictions(rubbish, expected, batch.mask)


def check_gene_order(model: CellModel, batch: TokenBatch) -> None:
    """Genes have no order: moved tokens keep their embeddings, and the cell keeps its own.

    Of an encoder to which the order matters, no token may look at those after it.
    """
    if model.encoder.ordered:
        _check_causal(model, batch)
        return
    order = [0, *range(int(batch.mask.sum(dim=1).min()) - 1, 0, -1)]
    rest = range(len(order), batch.genes.shape[1])
    moved = batch.map(lambda tensor: tensor[:, [*order, *rest]], "token")
    with torch.no_grad():
        expected, found = model(batch), model(moved)
    _same(found.tokens, expected.tokens[:, [*order, *rest]], "tokens")
    _same(found.cell, expected.cell, "cell embeddings")


def check_depends_on_cell(model: CellModel, batch: TokenBatch) -> None:
    """Another value, in all of its channels, changes the embedding of its cell, and of no other."""
    changed = {name: tensor.clone() for name, tensor in batch.present("token").items() if DECLARED[name].marker}
    for name, tensor in changed.items():
        tensor[0, 1] = _readable(model, float(tensor[0, 1]) + 1, name)
    with torch.no_grad():
        before, after = model(batch).cell, model(batch.replace(**changed)).cell
    if torch.allclose(before[0], after[0], atol=1e-6):
        raise AssertionError("The embedding of a cell does not depend on the values of its genes.")
    _same(after[1:], before[1:], "embeddings of the other cells")


def check_batching(model: CellModel, batch: TokenBatch) -> None:
    """Cells computed together are cells computed one by one."""
    with torch.no_grad():
        together = model(batch)
        for row in range(len(batch)):
            length = int(batch.mask[row].sum())
            single = model(batch.select(slice(row, row + 1)).shortened(length))
            _same(single.cell, together.cell[row : row + 1], f"embedding of cell {row}")
            _same(single.tokens, together.tokens[row : row + 1, :length], f"tokens of cell {row}")


def check_saving(model: CellModel, batch: TokenBatch) -> None:
    """A saved model is the same model: configuration, vocabulary, weights and outputs."""
    with TemporaryDirectory() as folder, torch.no_grad():
        again = CellModel.from_pretrained(model.save(folder), device=model.device)
        for name in ("config", "vocabulary", "checksum"):
            if getattr(again, name) != getattr(model, name):
                raise AssertionError(f"The {name} of a saved model differs: {getattr(again, name)!r}.")
        found, expected = again.train(model.training)(batch), model(batch)
        assert_close(found.cell, expected.cell, rtol=0, atol=0)
        _same_predictions(found, expected, batch.mask)


def check_backends(model: CellModel, batch: TokenBatch, backends: Sequence[str] = ("sdpa", "varlen")) -> None:
    """All ways to compute attention agree with the formula written out, in tokens and in predictions."""
    with torch.no_grad():
        expected = model(batch, attention="eager")
        for backend in _packing(model, backends):
            found = model(batch, attention=backend)
            _same(found.tokens, expected.tokens, f"tokens with {backend!r}")
            _same_predictions(found, expected, batch.mask)


def check_embed_cells(
    model: CellModel, batch: TokenBatch, backends: Sequence[str | None] = (None, "sdpa", "varlen", "eager")
) -> None:
    """The short way to cell embeddings leads where the long one does, for every pooling and backend."""
    with torch.no_grad():
        output = model(batch)
        _same(model.embed_cells(batch), output.cell, "cell embeddings")
        for pooling in ("cls", "mean", "weighted"):
            expected = pool(pooling, output.tokens, batch.mask, batch.values)
            for backend in _packing(model, backends):
                found = model.embed_cells(batch, attention=backend, pooling=pooling)
                _same(found, expected, f"cell embeddings with {pooling!r} and {backend!r}")


def check_gradients(model: CellModel, batch: TokenBatch) -> None:
    """Every parameter that the heads stand on gets a finite gradient, in train mode."""
    trained = deepcopy(model).train().requires_grad_(True)  # noqa: FBT003
    output = trained(batch)
    loss = output.cell.square().mean()
    for prediction in output.predictions.values():
        per_token = prediction.shape[:2] == batch.mask.shape
        loss = loss + (prediction[batch.mask] if per_token else prediction).square().mean()
    loss.backward()
    unread = set() if batch.generated is not None else {"embedder.generation.weight"}
    for name, parameter in trained.named_parameters():
        if parameter.grad is None and name not in unread:
            raise AssertionError(f"No head trains {name}.")
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise AssertionError(f"The gradient of {name} is not finite.")
    for name, part in trained.config.embedder.parts.items():
        tables = [table for table in trained.embedder.part(name).modules() if isinstance(table, nn.Embedding)]
        grads = [table.weight.grad for table in tables if part.reads == ("genes",)]
        if any(grad is not None and bool(grad[model.config.pad_id].any()) for grad in grads):
            raise AssertionError(f"The row of padding is trained in the part {name!r} of the embedder.")


def check_modes(model: CellModel, batch: TokenBatch) -> None:
    """Eval mode draws nothing and remembers nothing; train mode drops out and updates running statistics."""
    changed = deepcopy(model).eval()
    before = {name: buffer.clone() for name, buffer in changed.named_buffers()}
    with torch.no_grad():
        assert_close(changed(batch).cell, changed(batch).cell, rtol=0, atol=0)
        for name, buffer in changed.named_buffers():
            assert_close(buffer, before[name], rtol=0, atol=0)
        changed.train()
        if model.config.encoder.dropout and torch.equal(changed(batch).tokens, changed(batch).tokens):
            raise AssertionError("Dropout drops nothing in train mode.")
        changed(batch)
    # Other buffers, such as a table that is held, stay as they are.
    running = {name: buffer for name, buffer in changed.named_buffers() if "running" in name}
    if running and all(torch.equal(buffer, before[name]) for name, buffer in running.items()):
        raise AssertionError("Running statistics do not change in train mode.")


CONTRACTS: dict[str, Callable[[CellModel, TokenBatch], None]] = {
    "padding": check_padding,
    "gene order": check_gene_order,
    "depends on cell": check_depends_on_cell,
    "batching": check_batching,
    "saving": check_saving,
    "backends": check_backends,
    "embed_cells": check_embed_cells,
    "gradients": check_gradients,
    "modes": check_modes,
}
"""All contracts by name."""


def _random_values(model: CellModel, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if (rows := _rows(model, "values")) is not None:
        return random.integers(rows, size=shape).astype(np.float64)
    bins = model.config.tokenizer.bins
    return random.uniform(0.1, 5.0, size=shape) if bins is None else random.integers(1, bins, size=shape) * 1.0


def _rows(model: CellModel, field: str) -> int | None:
    """Rows of the table that a field is looked up in, if it is."""
    for part in model.config.embedder.parts.values():
        if isinstance(part, TableConfig) and part.field == field:
            return part.rows
        if isinstance(part, BinAndNumberConfig) and field == "bins":
            return part.rows
    return None


def _check_causal(model: CellModel, batch: TokenBatch) -> None:
    last = batch.mask.sum(dim=1) - 1
    rows, changed = torch.arange(len(batch)), batch.genes.clone()
    changed[rows, last] = batch.genes[rows, last - 1]
    with torch.no_grad():
        expected, found = model(batch).tokens, model(batch.replace(genes=changed)).tokens
    before = torch.arange(batch.genes.shape[1]) < last[:, None]
    _same(found[before], expected[before], "tokens before one that was exchanged")


def _packing(model: CellModel, backends: Sequence[str | None]) -> list[str | None]:
    """Those backends that the encoder can be computed by."""
    return [backend for backend in backends if model.encoder.packs or backend not in PACKED]


def _readable(model: CellModel, value: float, field: str = "values") -> float:
    """A value that has a row, where the field is looked up in a table."""
    rows = _rows(model, field)
    return value if rows is None else value % rows


def _padded(batch: TokenBatch, more: int) -> TokenBatch:
    """Append columns of padding that hold what the first ones hold, but are no real tokens."""
    longer = batch.map(lambda tensor: torch.cat((tensor, tensor[:, :1].expand(-1, more)), dim=1), "token")
    return longer.replace(mask=F.pad(batch.mask, (0, more)))


def _with_rubbish(batch: TokenBatch) -> TokenBatch:
    """Put the tokens of the next cell where a cell has padding."""
    mixed = batch.map(lambda tensor: torch.where(batch.mask, tensor, tensor.roll(1, dims=0)), "token")
    return mixed.replace(mask=batch.mask)


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"Other {what} than expected: {text}")


def _same_predictions(found: CellOutput, expected: CellOutput, mask: Tensor) -> None:
    if found.predictions.keys() != expected.predictions.keys():
        raise AssertionError(f"Expected predictions {list(expected.predictions)}, found {list(found.predictions)}.")
    for name, wanted in expected.predictions.items():
        prediction = found[name]
        if wanted.shape[:2] == mask.shape and prediction.shape[:2] == found.tokens.shape[:2]:
            prediction, wanted = prediction[:, : mask.shape[1]][mask], wanted[mask]
        _same(prediction, wanted, name)
