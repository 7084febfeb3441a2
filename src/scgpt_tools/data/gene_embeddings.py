"""Embeddings of texts about genes, from files in every format that they are published in.

The original of scGenePT has pickles of a mapping from symbol to vector; they are read without running what is in them,
and written as safetensors with a JSON of the genes and of where the vectors come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from scgpt_tools._files import as_path, read_json, replace_file
from scgpt_tools._lookup import absent, lookup
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_choice, check_texts
from scgpt_tools._warnings import warn_user
from scgpt_tools.data.pickles import read_pickle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

    from scgpt_tools.vocabulary import Vocabulary

Missing = Literal["mask", "draw"]
RowRng = int | np.random.Generator | np.random.RandomState | None

_BOUND = 0.1
"""Rows without a text are drawn from U(-0.1, 0.1), as scGenePT's."""
_VECTORS, _GENES = "vectors", "genes"


@dataclass(frozen=True, eq=False, repr=False)
class GeneEmbeddings:
    """A vector for each of some genes, and where the vectors come from."""

    genes: tuple[str, ...]
    vectors: NDArray[np.floating[Any]]
    """(genes, E)."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the texts and of what embedded them."""

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.ndim != 2 or not vectors.shape[1] or len(vectors) != len(self.genes):
            raise ValueError(f"Expected a vector for each of {len(self.genes)} genes, found the shape {vectors.shape}.")
        if vectors.dtype.kind not in "fiu":
            raise ValueError(f"Expected vectors of numbers, found {vectors.dtype}.")
        check_texts("genes", self.genes)
        self.__dict__.update(genes=tuple(self.genes), vectors=vectors)
        # Models and files keep them in float32.
        with np.errstate(over="ignore"):
            usable = np.isfinite(vectors.astype(np.float32, copy=False)).all(axis=1)
        if not usable.all():
            bad = [self.genes[row] for row in np.flatnonzero(~usable)[:5]]
            raise ValueError(
                f"Expected finite vectors, found NaN, infinite numbers or such beyond float32 for {', '.join(bad)}."
            )
        if len(set(self.genes)) < len(self.genes):
            twice = pd.Index(self.genes)[pd.Index(self.genes).duplicated()][:5]
            raise ValueError(f"Expected each gene once, found {', '.join(twice)} more than once.")

    def __len__(self) -> int:
        return len(self.genes)

    def __repr__(self) -> str:
        known = ", ".join(f"{name} {value!r}" for name, value in self.provenance.items())
        return f"GeneEmbeddings of {len(self):,} genes, {self.width:,} numbers each{known and f'; {known}'}"

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.vectors.shape[1])

    # ------------------------------------------------------------------ reading

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], provenance: Mapping[str, Any] | None = None) -> GeneEmbeddings:
        """Take vectors by gene, lists or one-dimensional arrays.

        Raises
        ------
        ValueError
            If vectors differ in length, or hold anything but finite numbers.
        """
        if not mapping:
            raise ValueError("Expected vectors by gene, found none.")
        widths: dict[int, str] = {}
        rows = []
        for gene, vector in mapping.items():
            if not isinstance(gene, str):
                raise TypeError(f"Expected genes to be named by texts, found {type(gene).__name__}.")
            try:
                row = np.asarray(vector)
            except ValueError:  # lists of several lengths in a list
                row = np.empty(0, dtype=object)
            if row.ndim != 1 or row.dtype.kind not in "fiu":
                raise ValueError(
                    f"Expected a vector of numbers for {gene!r}, found {type(vector).__name__} of {row.dtype}, shape {row.shape}."
                    + (" Embed texts with sct.pp.embed_gene_texts first." if isinstance(vector, str) else "")
                )
            widths.setdefault(len(row), gene)
            rows.append(row)
        if len(widths) > 1:
            said = ", ".join(f"{width} for {gene!r}" for width, gene in list(widths.items())[:4])
            raise ValueError(f"Expected vectors of one width, found {said}.")
        return cls(tuple(mapping), np.stack(rows), dict(provenance or {}))

    @classmethod
    def read(cls, path: str | PathLike[str], *, source: str | None = None) -> GeneEmbeddings:
        """Read a file of embeddings, or find one in a folder.

        Parameters
        ----------
        path
            A pickle (``.pickle``, ``.pkl``) of a mapping from gene to vector, which is read without running anything in
            it; ``.npz`` or ``.safetensors`` with an array for each gene, or with ``vectors`` and, in the file or in a JSON
            of the same name, ``genes``; or ``.parquet`` with a row for each gene.  Or a folder, such as ``gene_embeddings``
            of scGenePT's release or the ``models`` above it.
        source
            What to find in a folder: ``"ncbi"``, ``"ncbi+uniprot"``, or ``"go_c_concat"`` and the like.

        Returns
        -------
        The embeddings; their provenance names the file.

        Raises
        ------
        FileNotFoundError
            If there is no such file; the message lists the names that were looked for.
        ValueError
            If the file holds anything else than a vector for each gene, objects or code among it.
        """
        place = as_path("path", path)
        if place.is_dir():
            if source is None:
                raise ValueError(f"Expected `source`, what to find in the folder {str(place)!r}, found None.")
            place = find_gene_embeddings(place, source)
        if not place.is_file():
            raise FileNotFoundError(f"Expected a file of gene embeddings at {str(place)!r}, found none.")
        found = lookup(_READERS, place.suffix.lower(), "format of gene embeddings")(place)
        source = source or next((known for known in SOURCES if place.name in file_names(known)), None)
        about = {"file": place.name, **({} if source is None else {"source": source})}
        return replace(found, provenance={**about, **found.provenance})

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the vectors as safetensors, in float32, and genes and provenance to a JSON beside it.

        Parameters
        ----------
        path
            File to write, ``.safetensors``.

        Returns
        -------
        The file.
        """
        place = as_path("path", path)
        if place.suffix != ".safetensors":
            raise ValueError(f"Expected `path` to end in .safetensors, found {str(place)!r}.")
        vectors = np.ascontiguousarray(self.vectors, dtype=np.float32)
        content = {"genes": list(self.genes), "provenance": dict(self.provenance)}
        text = json.dumps(content, indent=1) + "\n"
        replace_file(place.with_suffix(".json"), lambda aside: aside.write_text(text, encoding="utf-8"))
        replace_file(place, lambda aside: save_file({_VECTORS: vectors}, aside))
        return place

    # ------------------------------------------------------------------ using

    def coverage(self, genes: Iterable[str]) -> pd.DataFrame:
        """Which of some genes have a vector.

        Parameters
        ----------
        genes
            Such as the tokens of a vocabulary, or the genes of a table.

        Returns
        -------
        One row per gene, with the column ``embedded``.
        """
        names = _listed(genes)
        return pd.DataFrame({"embedded": np.isin(names, self.genes)}, index=pd.Index(names, name="gene"))

    def report(self, vocabulary: Vocabulary, genes: Iterable[str] = ()) -> dict[str, int]:
        """Count the genes of a vocabulary, and those of a table, that have a vector.

        Parameters
        ----------
        vocabulary
            Of a model.
        genes
            Of a table, if there is one.

        Returns
        -------
        ``embedded``, ``vocabulary``, ``vocabulary_embedded`` and, with a table, ``data`` and ``data_embedded``.
        """
        known = [token for token in vocabulary if not vocabulary.is_special(token)]
        texts = {token for token, _ in self._places(vocabulary, self.genes)}
        counts = {"embedded": len(self), "vocabulary": len(known), "vocabulary_embedded": len(texts)}
        if names := _listed(genes):
            own = set(self.genes)
            there = [token in texts or name in own for token, name in zip(vocabulary.ids(names), names, strict=True)]
            counts |= {"data": len(names), "data_embedded": sum(there)}
        return counts

    def rows(
        self,
        vocabulary: Vocabulary,
        *,
        missing: Missing = "mask",
        rng: RowRng = 0,
        genes: Sequence[str] | None = None,
        compat: Literal["upstream"] | None = None,
    ) -> NDArray[np.floating[Any]]:
        """A row for each token of a vocabulary.

        Parameters
        ----------
        vocabulary
            Of the model.
        missing
            Tokens without a text: ``"mask"`` gives them zeros, ``"draw"`` numbers from U(-0.1, 0.1).
        rng
            For what is drawn.
        genes
            Genes that get their vectors; ``None`` for all.  A model knows no text of the others.
        compat
            ``"upstream"`` makes scGenePT's table: only ``genes`` get their vectors, everything else is drawn in float64 by
            NumPy's former generator, and vectors of genes that are not in the vocabulary go to the row of padding.

        Returns
        -------
        (tokens, E) float32, or float64 for ``compat="upstream"``.

        Raises
        ------
        ValueError
            If no gene is in the vocabulary.
        """
        check_choice("missing", missing, ("mask", "draw"))
        if compat is not None:
            check_choice("compat", compat, ("upstream",))
            if genes is None:
                raise ValueError("Expected `genes`, those of the data set, with compat='upstream', found None.")
        row = {gene: number for number, gene in enumerate(self.genes)}
        wanted = list(self.genes if genes is None else (gene for gene in dict.fromkeys(_listed(genes)) if gene in row))
        known = self._places(vocabulary, wanted)
        if not known:
            among = "" if genes is None else f"the {len(wanted)} that `genes` names of "
            raise ValueError(
                f"Expected embeddings of genes of the vocabulary, such as {_first(vocabulary)}, found none among "
                f"{among}{len(self)}, such as {', '.join(self.genes[:3])}. Name genes as the vocabulary does."
            )
        if compat is not None and genes is not None:
            return self._upstream(vocabulary, rng, _listed(genes))
        table = np.zeros((len(vocabulary), self.width), dtype=np.float32)
        if missing == "draw":
            if not isinstance(rng, np.random.Generator | np.random.RandomState):
                rng = np.random.default_rng(rng)
            table[:] = rng.uniform(-_BOUND, _BOUND, table.shape)
        tokens, named = (list(part) for part in zip(*known, strict=True))
        table[tokens] = self.vectors[[row[gene] for gene in named]]
        return table

    def _places(self, vocabulary: Vocabulary, wanted: Sequence[str]) -> list[tuple[int, str]]:
        """Tokens that have a text, each with the gene whose text it is."""
        named = set(wanted)
        return [
            (token, gene)
            for token, gene in zip(vocabulary.ids(wanted).tolist(), wanted, strict=True)
            # A token's own text comes before that of another name for it.
            if token >= 0
            and not vocabulary.is_special(gene)
            and (vocabulary.tokens[token] == gene or vocabulary.tokens[token] not in named)
        ]

    def _upstream(self, vocabulary: Vocabulary, rng: RowRng, genes: list[str]) -> NDArray[np.float64]:
        if not isinstance(rng, np.random.Generator | np.random.RandomState):
            rng = np.random.RandomState(rng)
        table = rng.uniform(-_BOUND, _BOUND, (len(vocabulary), self.width))
        row = {gene: number for number, gene in enumerate(self.genes)}
        for gene, token in zip(genes, vocabulary.ids(genes).tolist(), strict=True):
            if gene in row:
                table[token if token >= 0 else vocabulary.pad_id] = self.vectors[row[gene]]
        return table


def find_gene_embeddings(folder: str | PathLike[str], source: str) -> Path:
    """Find a file of scGenePT's release, whose names were spelt in several ways, or one that was converted.

    Parameters
    ----------
    folder
        ``gene_embeddings``, or the folder above.
    source
        ``"ncbi"``, ``"ncbi+uniprot"``, or ``"go_c_concat"`` and the like; without a pooling ``"concat"``.

    Returns
    -------
    The file.

    Raises
    ------
    FileNotFoundError
        If there is none; the message lists the names that were looked for.
    """
    place = as_path("folder", folder)
    names = file_names(source)
    for parent in (place, place / "gene_embeddings", place / "models" / "gene_embeddings"):
        for name in names:
            if (parent / name).is_file():
                return parent / name
    there = sorted(path.name for path in place.iterdir())[:12] if place.is_dir() else []
    raise FileNotFoundError(
        f"Expected a file of the gene embeddings {source!r} in {str(place)!r}, one of {', '.join(names)}; found "
        f"{', '.join(there) or 'nothing'}."
    )


def file_names(source: str) -> list[str]:
    """Names that the files of a source have had, those of today first."""
    if source not in SOURCES:
        pooled = f"{source}_concat"
        if pooled not in SOURCES:
            raise ValueError(absent(source, SOURCES, "source of gene embeddings"))
        source = pooled
    if not source.startswith("go_"):
        start = {"ncbi": "NCBI_gene", "ncbi+uniprot": "NCBI+UniProt"}[source]
        stems = [f"{start}_{word}{end}" for end in ("-gpt3.5-ada", "_ada") for word in ("embeddings", "embedding")]
    else:
        _, axis, pooling = source.split("_")
        start = f"GO_{axis if axis == 'all' else axis.upper()}_gene"
        ends = (f"-gpt3.5-ada-{pooling}", f"-gpt3.5-ada_{pooling}", f"_{pooling}")
        words = ("embeddings", "embedding")
        # One file is spelt unlike the others.
        words = words[::-1] if source == "go_p_avg" else words
        stems = [f"{start}_{word}{end}" for end in ends for word in words]
    pickles = (".pkl", ".pickle") if source == "ncbi+uniprot" else (".pickle", ".pkl")
    names = [stem + suffix for stem in stems for suffix in pickles]
    return [f"{source}.safetensors", *(f"{stem}.safetensors" for stem in stems), *names]


SOURCES = (
    "ncbi",
    "ncbi+uniprot",
    *(f"go_{axis}_{pooling}" for axis in ("c", "f", "p", "all") for pooling in ("concat", "avg")),
)
"""What the files of scGenePT's release hold."""


def _listed(genes: Iterable[str]) -> list[str]:
    """Names of genes, not the letters of one."""
    if isinstance(genes, str):
        raise TypeError(f"Expected `genes` to be a list of texts, found {genes!r}.")
    return list(genes)


def _first(vocabulary: Vocabulary) -> str:
    return ", ".join([token for token in vocabulary if not vocabulary.is_special(token)][:3])


# Formats --------------------------------------------------------------------------------------------------------------


def _read_pickle(path: Path) -> GeneEmbeddings:
    found = read_pickle(path)
    if not isinstance(found, dict):
        raise ValueError(f"Expected {str(path)!r} to map genes to vectors, found {type(found).__name__}.")
    return GeneEmbeddings.from_mapping(found)


def _read_npz(path: Path) -> GeneEmbeddings:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception:  # noqa: BLE001  # a damaged file meets errors of every kind
        raise ValueError(
            f"Expected {str(path)!r} to be an .npz of numbers and texts, found objects, which are not read, or a damaged file."
        ) from None
    return _of_arrays(arrays, path)


def _read_safetensors(path: Path) -> GeneEmbeddings:
    try:
        arrays: dict[str, NDArray[Any]] = dict(load_file(path))
    except TypeError:
        # NumPy has no bfloat16; torch, which takes a moment to import, has.
        from safetensors.torch import load_file as load_tensors

        arrays = {name: tensor.float().numpy() for name, tensor in load_tensors(path).items()}
    except (SafetensorError, ValueError, RuntimeError):
        raise ValueError(f"Expected {str(path)!r} to be a whole safetensors file, found a damaged one.") from None
    return _of_arrays(arrays, path)


def _of_arrays(arrays: dict[str, NDArray[Any]], path: Path) -> GeneEmbeddings:
    if _VECTORS not in arrays:
        return GeneEmbeddings.from_mapping(arrays)
    beside = path.with_suffix(".json")
    about = read_json(beside, megabytes=64) if beside.is_file() else {}
    genes = arrays[_GENES].tolist() if _GENES in arrays else about.get(_GENES)
    if not isinstance(genes, list):
        raise ValueError(f"Expected the names of the genes in {path.name} or {beside.name}, found none.")
    provenance = about.get("provenance")
    return GeneEmbeddings(tuple(genes), arrays[_VECTORS], provenance if isinstance(provenance, dict) else {})


def _read_parquet(path: Path) -> GeneEmbeddings:
    optional("pyarrow", extra="text")
    try:
        frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"Expected {str(path)!r} to be a whole parquet file, found a damaged one: {error}") from None
    column = next((name for name in _GENE_COLUMNS if name in frame.columns), None)
    frame = frame if column is None else frame.set_index(column)
    if frame.shape[1] == 1 and frame.dtypes.iloc[0].kind == "O":
        if frame.index.has_duplicates:
            twice = frame.index[frame.index.duplicated()][:5]
            raise ValueError(f"Expected each gene once, found {', '.join(map(str, twice))} more than once.")
        return GeneEmbeddings.from_mapping(dict(zip(frame.index, frame.iloc[:, 0], strict=True)))
    if not all(dtype.kind in "fiu" for dtype in frame.dtypes):
        raise ValueError(
            f"Expected {str(path)!r} to hold a row of numbers, or one list of them, for each gene, with the genes as index or "
            f"in a column {' or '.join(map(repr, _GENE_COLUMNS))}, found the columns {', '.join(map(repr, frame.columns[:6]))}."
        )
    # Nullable columns are of types of pandas' own.
    kind = np.result_type(np.float32, *(getattr(dtype, "numpy_dtype", dtype) for dtype in frame.dtypes))
    return GeneEmbeddings(tuple(frame.index), frame.to_numpy(dtype=kind, na_value=np.nan))


_GENE_COLUMNS = ("gene", "genes", "symbol")


_READERS: dict[str, Callable[[Path], GeneEmbeddings]] = {
    ".pickle": _read_pickle,
    ".pkl": _read_pickle,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def warn_of_coverage(
    embeddings: GeneEmbeddings, vocabulary: Vocabulary, genes: Iterable[str] = (), *, least: float = 0.1
) -> None:
    """Warn where few genes have a text."""
    report = embeddings.report(vocabulary, genes)
    what = "data" if "data" in report else "vocabulary"
    if report[f"{what}_embedded"] < least * report[what]:
        warn_user(
            f"Expected texts for most genes of the {what}, found them for {report[f'{what}_embedded']} of {report[what]}. The "
            "model learns nothing from texts that it does not have."
        )
