"""What an embedding holds while it is learnt: a linear classifier on held-out cells, every few epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from scgpt_tools._validate import check_integer, check_text
from scgpt_tools.config import settle_fields
from scgpt_tools.data.classes import UNKNOWN, read_classes
from scgpt_tools.data.module import CellDataModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgpt_tools.data.module import CellTable
    from scgpt_tools.tokens.tokenizer import Tokenizer
    from scgpt_tools.train.collection import Collection

PROBED = ("validation_probe_accuracy", "validation_probe_majority")
"""What is logged."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Fit a linear classifier to embeddings of training cells and score it on validation cells, every few epochs.

    Cells become tokens as in training, with nothing hidden.  Logs ``validation_probe_accuracy`` and, beside it,
    ``validation_probe_majority``, the share of the most frequent class.
    """

    label_key: str
    """Column of ``obs`` with classes."""
    every: int = 1
    """Epochs between two."""
    cells: int = 2000
    """Most cells of each part, drawn by seed."""
    rng: int = 0

    def __post_init__(self) -> None:
        settle_fields(self)
        check_text("label_key", self.label_key)
        check_integer("every", self.every)
        check_integer("cells", self.cells, least=2)
        check_integer("rng", self.rng, least=0)


def probed_cells(
    config: ProbeConfig, collection: Collection, tables: Sequence[CellTable], tokenizer: Tokenizer
) -> tuple[CellDataModule, NDArray[np.int64]]:
    """Cells of a collection to fit to and to score, and the class of each cell."""
    own = [read_classes(source.obs, config.label_key, allow_unknown=True) for source in collection.sources]
    names = tuple(sorted({name for classes in own for name in classes.names}))
    codes = np.concatenate(
        [
            read_classes(source.obs, config.label_key, names=names, allow_unknown=True).codes
            for source in collection.sources
        ]
    )
    rng = np.random.default_rng(config.rng)
    train, held_out = (_drawn(collection.cells(part), codes, config.cells, rng) for part in ("train", "validation"))
    if len(np.unique(codes[train])) < 2 or not held_out.size:
        raise ValueError(
            f"Expected training cells of at least two classes of obs[{config.label_key!r}] and validation cells with one, "
            f"found {len(np.unique(codes[train]))} classes and {held_out.size} cells."
        )
    return CellDataModule(tables, tokenizer, train=train, validation=held_out), codes


def probe_scores(
    train: NDArray[np.float32], train_codes: NDArray[np.int64], test: NDArray[np.float32], codes: NDArray[np.int64]
) -> dict[str, float]:
    """Accuracy on other cells than those that the classifier was fitted to, and that of the most frequent class."""
    scaler = StandardScaler().fit(train)
    found = LogisticRegression(max_iter=1000).fit(scaler.transform(train), train_codes).predict(scaler.transform(test))
    most = np.bincount(train_codes).argmax()
    return dict(zip(PROBED, (float((found == codes).mean()), float((codes == most).mean())), strict=True))


def embedded_cells(model: Any, data: CellDataModule, cells: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings (cells, D) of some cells, ascending, by a model in eval mode, with nothing hidden."""
    batches = [cells[start : start + _BATCH] for start in range(0, cells.size, _BATCH)]
    found = [
        model.embed_cells(data.tokenize(data.read(batch), batch, seed=0)).float().cpu().numpy() for batch in batches
    ]
    return np.concatenate(found)


def _drawn(cells: NDArray[np.int64], codes: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    known = cells[codes[cells] != UNKNOWN]
    return known if known.size <= n else np.sort(rng.choice(known, n, replace=False))
