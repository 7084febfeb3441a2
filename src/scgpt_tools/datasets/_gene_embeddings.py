"""scGenePT's embeddings of texts about genes, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgpt_tools.data.gene_embeddings import SOURCES, GeneEmbeddings, file_names
from scgpt_tools.models.bucket import SCGENEPT_BUCKET, Bucket
from scgpt_tools.models.families.scgenept import WIDTH
from scgpt_tools.models.zoo import TEXTS

if TYPE_CHECKING:
    from os import PathLike

_FOLDER = "models/gene_embeddings/"


def available_gene_embeddings() -> pd.DataFrame:
    """Embeddings of texts about genes that :func:`gene_embeddings` reads by name.

    Returns
    -------
    One row per name: the texts, how several texts of a gene become one vector, numbers of a vector, what embedded them,
    licence, file of the release and where it is.
    """
    rows = [
        {
            "name": source,
            "texts": TEXTS[f"scgenept_{source.removesuffix('_concat').removesuffix('_avg')}"],
            "pooling": source.rpartition("_")[2] if source.startswith("go_") else "",
            "width": WIDTH,
            "encoder": "text-embedding-ada-002",
            "licence": "not stated apart from the code's (MIT)",
            "file": next(name for name in file_names(source) if not name.endswith(".safetensors")),
            "source": f"s3://czi-scgenept-public/{_FOLDER} (see https://github.com/czi-ai/scGenePT)",
        }
        for source in SOURCES
    ]
    return pd.DataFrame(rows).set_index("name")


def gene_embeddings(
    source: str,
    *,
    folder: str | PathLike[str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> GeneEmbeddings:
    """Read the embeddings of texts about genes that scGenePT was trained with :cite:p:`Istrate2024`.

    They are of OpenAI's text-embedding-ada-002, and published without a licence of their own.

    Parameters
    ----------
    source
        ``"ncbi"``, ``"ncbi+uniprot"``, or ``"go_c_concat"`` and the like, with ``c``, ``f``, ``p`` or ``all`` and
        ``concat`` or ``avg``.
    folder
        A copy of the release, which is read in place of the download.
    cache_dir
        Where downloads are kept; ``None`` takes ``settings.cache_dir``.

    Returns
    -------
    The embeddings, read without running anything in their pickle.

    Raises
    ------
    ConnectionError
        If the bucket cannot be reached.
    FileNotFoundError
        If there is no file of these embeddings; the message lists the names that were looked for.
    ValueError
        If there is no such source.
    """
    names = file_names(source)
    if folder is not None:
        return GeneEmbeddings.read(folder, source=source)
    bucket = Bucket(SCGENEPT_BUCKET, cache_dir=cache_dir)
    entries = {entry.name: entry for entry in bucket.entries(_FOLDER)}
    found = next((entries[name] for name in names if name in entries), None)
    if found is None:
        raise FileNotFoundError(
            f"Expected one of {', '.join(names)} in {_FOLDER} of {bucket.place}; found "
            f"{', '.join(sorted(entries)[:12]) or 'nothing'}."
        )
    return GeneEmbeddings.read(bucket.get(found), source=source)
