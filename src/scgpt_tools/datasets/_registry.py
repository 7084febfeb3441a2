"""Public data by name, from a folder of one's own or from where it is published.

Downloads go into ``scanpy.settings.datasetdir``.  Those of scanpy come without a checksum; archives have their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import mudata as md
import pandas as pd
import scanpy as sc

from scgpt_tools._lookup import absent
from scgpt_tools.datasets._gears import file_of, gears_screen
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

FOLDER_VARIABLE = "SCGPT_TOOLS_DATA"
"""Environment variable with the folder that is looked into first."""

_READERS: dict[str, Callable[[Path], ad.AnnData | md.MuData]] = {".h5ad": ad.read_h5ad, ".h5mu": md.read_h5mu}


@dataclass(frozen=True, kw_only=True)
class PublicData:
    """A data set that anyone can download."""

    description: str
    """What it holds."""
    source: str
    """Where it is published."""
    licence: str
    """As its publisher states it."""
    file: str
    """Name of the download in scanpy's folder."""
    download: Callable[[], ad.AnnData]
    """Reads the download, after fetching it if it is not there."""


REGISTRY: dict[str, PublicData] = {
    "pbmc3k": PublicData(
        description="2,700 blood cells, 32,738 genes; counts",
        source="https://support.10xgenomics.com/single-cell-gene-expression/datasets/1.1.0/pbmc3k",
        licence="CC BY 4.0",
        file="pbmc3k_raw.h5ad",
        download=sc.datasets.pbmc3k,
    ),
    "pbmc3k_processed": PublicData(
        description="2,638 of them with cell types in obs['louvain']; X is scaled, `.raw.to_adata()` holds log1p values",
        source="https://github.com/chanzuckerberg/cellxgene/tree/main/example-dataset",
        licence="CC BY 4.0 (cells), MIT (repository)",
        file="pbmc3k_processed.h5ad",
        download=sc.datasets.pbmc3k_processed,
    ),
    "norman": PublicData(
        description="91,205 K562 cells with single and double CRISPR activations (Norman et al., 2019), 5,045 genes; log1p, as GEARS has them",
        source="https://doi.org/10.7910/DVN/Q2ZV3E",
        licence="CC0 1.0",
        file=file_of("norman"),
        download=partial(gears_screen, "norman", 6154020),
    ),
    "adamson": PublicData(
        description="K562 cells with single CRISPR interferences (Adamson et al., 2016); log1p, as GEARS has them",
        source="https://dataverse.harvard.edu/api/access/datafile/6154417",
        licence="CC0 1.0",
        file=file_of("adamson"),
        download=partial(gears_screen, "adamson", 6154417),
    ),
}


def available(*, folder: str | PathLike[str] | None = None) -> pd.DataFrame:
    """Data that :func:`load` finds by name.

    Parameters
    ----------
    folder
        Folder to look into as well; ``None`` takes the one that the environment variable ``SCGPT_TOOLS_DATA`` names.

    Returns
    -------
    One row per name: description, source, licence, and the file if it is in the folder.
    """
    local = {path.stem: str(path) for path in _files(folder)}
    rows = [
        {
            "name": name,
            "description": REGISTRY[name].description if name in REGISTRY else "",
            "source": REGISTRY[name].source if name in REGISTRY else "",
            "licence": REGISTRY[name].licence if name in REGISTRY else "",
            "file": local.get(name, ""),
        }
        for name in dict.fromkeys((*REGISTRY, *local))
    ]
    return pd.DataFrame(rows).set_index("name")


def load(name: str, *, folder: str | PathLike[str] | None = None) -> ad.AnnData | md.MuData:
    """Load a data set by name.

    Parameters
    ----------
    name
        A file ``name.h5ad`` or ``name.h5mu`` of the folder, or a public set in :func:`available`, which is downloaded
        once.
    folder
        Folder to look into first; ``None`` takes the one that the environment variable ``SCGPT_TOOLS_DATA`` names.

    Returns
    -------
    The table as its file holds it.

    Raises
    ------
    ValueError
        If there is no such data set; the message lists what is there.
    ConnectionError
        If a download fails.
    FileNotFoundError
        If it would have to be downloaded and ``settings.offline`` is set, or the folder does not exist.
    """
    for path in _files(folder):
        if path.stem == name:
            return _READERS[path.suffix](path)
    if name not in REGISTRY:
        raise ValueError(absent(name, available(folder=folder).index, "data set"))
    public = REGISTRY[name]
    if settings.offline and not (Path(sc.settings.datasetdir) / public.file).exists():
        raise FileNotFoundError(
            f"Expected {name!r} to be on this machine because `settings.offline` is set, found no {name}.h5ad in the "
            f"folder of {FOLDER_VARIABLE} and no download in '{sc.settings.datasetdir}'. Get it from {public.source}."
        )
    return public.download()


def _files(folder: str | PathLike[str] | None) -> list[Path]:
    """Tables in the folder of one's own."""
    named = folder or os.environ.get(FOLDER_VARIABLE)
    if not named:
        return []
    path = Path(named).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"Expected a folder with data at '{path}' (from {FOLDER_VARIABLE}), found none.")
    return sorted(file for file in path.iterdir() if file.suffix in _READERS)
