"""Embeddings of one's own texts about genes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from scgpt_tools._arguments import check_arguments
from scgpt_tools._files import as_path, read_json
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice, check_text
from scgpt_tools.data.gene_embeddings import GeneEmbeddings
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Pooling = Literal["concat", "avg"]
Encode: TypeAlias = Callable[[list[str]], Any]

_GENE, _TERM, _TEXT = "gene", "direct_class_label", "text"


def embed_gene_texts(
    texts: Mapping[str, str | Sequence[str]] | pd.DataFrame | str | PathLike[str],
    encoder: str | Encode,
    *,
    pooling: Pooling = "concat",
    source: str | None = None,
    batch_size: int = 64,
    show_progress: bool | None = None,
) -> GeneEmbeddings:
    """Embed texts about genes by a language model, for scGenePT :cite:p:`Istrate2024`.

    Nothing is downloaded but what ``encoder`` names.

    Parameters
    ----------
    texts
        Text of each gene, or several, such as the terms that annotate it: a mapping; a table with the columns ``gene``
        and ``text`` (or ``direct_class_label``, as scGenePT's tables of the Gene Ontology have it), a row for each text;
        or the file of one, ``.json`` (as its summaries of NCBI and UniProt) or ``.csv``.
    encoder
        Name or folder of a model of sentence-transformers (extra ``text``); or what embeds a list of texts: a function
        that returns a row of numbers for each, or an object with such a method ``encode``.
    pooling
        Of several texts of a gene: ``"concat"`` joins them and embeds the whole, ``"avg"`` averages their embeddings.
    source
        What the texts are, for the provenance; ``None`` takes the name of the file.
    batch_size
        Texts embedded at once.
    show_progress
        Draw a progress bar; ``None`` does what :attr:`~scgpt_tools.settings.Settings.verbosity` says.

    Returns
    -------
    :class:`~scgpt_tools.data.gene_embeddings.GeneEmbeddings`, for :func:`scgpt_tools.models.to_scgenept`; its ``provenance``
    names texts, encoder and pooling, and ``save`` keeps both.

    Raises
    ------
    ImportError
        If ``encoder`` is a name and sentence-transformers is not installed.
    ValueError
        If there are no texts, a gene has a blank one, or the encoder returns anything but a finite row for each.

    Examples
    --------
    >>> import numpy as np
    >>> import scgpt_tools as sct
    >>> def letters(texts):
    ...     return np.array([[text.count(letter) for letter in "aeiou"] for text in texts], dtype=float)
    >>> found = sct.pp.embed_gene_texts({"KLF1": "erythroid factor", "SPI1": "myeloid factor"}, letters)
    >>> found.genes, found.width
    (('KLF1', 'SPI1'), 5)
    """
    check_arguments(embed_gene_texts, locals())
    check_choice("pooling", pooling, ("concat", "avg"))
    said = check_text("source", source) if source is not None else _name_of(texts)
    by_gene = _texts_by_gene(texts)
    encode, name = _encoder(encoder)
    if pooling == "concat":
        by_gene = {gene: [". ".join(own)] for gene, own in by_gene.items()}
    different = list(dict.fromkeys(text for own in by_gene.values() for text in own))
    place = {text: number for number, text in enumerate(different)}
    rows = []
    starts = range(0, len(different), batch_size)
    with settings.progress(starts, total=len(starts), unit="batch", show=show_progress) as bar:
        rows = [_encoded(encode, different[start : start + batch_size], name) for start in bar]
    if len(widths := {part.shape[1] for part in rows}) > 1:
        raise ValueError(f"Expected the encoder {name!r} to return rows of one width, found {sorted(widths)}.")
    vectors = np.concatenate(rows)
    pooled = np.stack([vectors[[place[text] for text in own]].mean(axis=0) for own in by_gene.values()])
    return GeneEmbeddings(
        tuple(by_gene),
        pooled.astype(np.float32),
        {
            "source": said,
            "encoder": name,
            "pooling": pooling,
            "texts": len(different),
            "checksum": hashlib.sha256(json.dumps(by_gene, sort_keys=True).encode()).hexdigest(),
        },
    )


def _name_of(texts: Any) -> str:
    return as_path("texts", texts).stem if isinstance(texts, str | PathLike) else "own texts"


def _texts_by_gene(texts: Any) -> dict[str, list[str]]:
    """Texts of each gene in the order in which genes and texts come."""
    if isinstance(texts, str | PathLike):
        texts = _read(as_path("texts", texts))
    if isinstance(texts, pd.DataFrame):
        texts = _of_frame(texts)
    if not isinstance(texts, Mapping):
        raise TypeError(f"Expected `texts` to be a mapping, a table or a file, found {type(texts).__name__}.")
    if not texts:
        raise ValueError("Expected texts of genes, found none.")
    found = {}
    for gene, own in texts.items():
        name = check_text("a gene of texts", gene)
        several = [own] if isinstance(own, str) else own
        if not isinstance(several, list | tuple | pd.Series | np.ndarray):
            raise TypeError(
                f"Expected a text or several for {name!r}, found {type(own).__name__}. Leave out genes without."
            )
        if not len(several):
            raise ValueError(f"Expected a text or several for {name!r}, found none. Leave out genes without.")
        found[name] = [check_text(f"the text of {name}", text) for text in several]
    return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file with texts at {str(path)!r}, found none.")
    if path.suffix == ".json":
        return read_json(path, megabytes=512)
    if path.suffix == ".csv":
        try:
            # Otherwise a gene called NA is a missing value.
            return pd.read_csv(path, dtype=str, na_filter=False)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"Expected a table of texts in {str(path)!r}, found none: {error}.") from error
    raise ValueError(f"Expected texts in a .json or a .csv, found {path.name!r}.")


def _of_frame(frame: pd.DataFrame) -> dict[str, list[str]]:
    column = next((name for name in (_TEXT, _TERM) if name in frame.columns), None)
    if _GENE not in frame.columns or column is None:
        raise ValueError(
            f"Expected columns {_GENE!r} and {_TEXT!r} or {_TERM!r} in the table of texts, found {list(frame.columns)[:12]}."
        )
    if frame[[_GENE, column]].isna().any().any():
        raise ValueError("Expected a gene and a text in each row of the table of texts, found missing values.")
    return {str(gene): own.tolist() for gene, own in frame.groupby(_GENE, sort=False, observed=True)[column]}


def _encoder(encoder: Any) -> tuple[Encode, str]:
    if isinstance(encoder, str | PathLike):
        name = check_text("encoder", str(encoder))
        module = optional("sentence_transformers", extra="text")
        loaded = module.SentenceTransformer(name)
        return (lambda texts: loaded.encode(texts, show_progress_bar=False)), name
    method = getattr(encoder, "encode", None)
    if callable(method):
        return method, type(encoder).__name__
    if callable(encoder) and not isinstance(encoder, type):
        return encoder, getattr(encoder, "__name__", type(encoder).__name__)
    raise TypeError(f"Expected `encoder` to be the name of a model or to embed texts, found {type(encoder).__name__}.")


def _encoded(encode: Encode, texts: list[str], name: str) -> NDArray[np.float64]:
    found = encode(texts)
    expected = f"Expected the encoder {name!r} to return a finite row of numbers for each of {len(texts)} texts, found"
    try:
        # NumPy has no bfloat16.
        rows = np.asarray(found.detach().cpu().float().numpy() if hasattr(found, "detach") else found)
    except ValueError:
        raise ValueError(f"{expected} rows of several lengths.") from None
    if rows.ndim != 2 or len(rows) != len(texts) or rows.dtype.kind not in "fiu":
        raise ValueError(f"{expected} {rows.dtype} of shape {rows.shape} ({type(found).__name__}).")
    if not (finite := np.isfinite(rows).all(axis=1)).all():
        raise ValueError(f"{expected} NaN or infinite numbers for the text {texts[int(finite.argmin())][:60]!r}.")
    return rows.astype(np.float64)
