"""Screens in the form in which GEARS publishes them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

import anndata as ad
import scanpy as sc

from scgpt_tools._files import written_aside
from scgpt_tools.settings import settings

if TYPE_CHECKING:
    from typing import Any

logger = logging.getLogger(__name__)

DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
"""Where GEARS keeps its files."""

# Of silence, after which the server is given up.
_SECONDS = 60


def gears_screen(name: str, number: int) -> ad.AnnData:
    """Read ``perturb_processed.h5ad`` of a screen, which is downloaded into scanpy's folder unless it is there.

    Raises
    ------
    ConnectionError
        If it cannot be downloaded, or what comes is no archive of the screen.
    """
    place = Path(sc.settings.datasetdir) / file_of(name)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(place) as aside:
            archive = aside.with_name(f"{aside.name}.zip")
            try:
                _download(f"{DATAVERSE}/{number}", archive)
                _extract(archive, f"{name}/perturb_processed.h5ad", aside)
            finally:
                archive.unlink(missing_ok=True)
    return ad.read_h5ad(place)


def file_of(name: str) -> str:
    """Name of the file in scanpy's folder."""
    return f"gears_{name}.h5ad"


def _download(url: str, place: Path) -> None:
    # They take a moment to import, and few need them.
    from aiohttp import ClientError, ClientTimeout
    from fsspec import filesystem  # this too
    from fsspec.callbacks import Callback  # this too

    logger.info("Downloading %s.", url)
    timeout = ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
    files = filesystem("http", client_kwargs={"trust_env": True, "timeout": timeout})
    with settings.progress((), unit="B") as bar:

        def look(size: int | None, value: int, **_: Any) -> None:
            bar.total = size
            bar.update(value - bar.n)

        try:
            files.get_file(url, str(place), callback=Callback(hooks={"bar": look}))
        except (ClientError, OSError) as error:
            raise ConnectionError(
                f"{url} did not send its file: {type(error).__name__}: {error}. Try again, or put a copy of the cells into the "
                "folder that SCGPT_TOOLS_DATA names."
            ) from error


def _extract(archive: Path, member: str, place: Path) -> None:
    """Take a file out of an archive; its checksum is compared on the way."""
    try:
        with ZipFile(archive) as files, files.open(member) as source, place.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (BadZipFile, KeyError) as error:
        raise ConnectionError(
            f"Expected an archive with {member}, received something else: {error}. Try again."
        ) from error
