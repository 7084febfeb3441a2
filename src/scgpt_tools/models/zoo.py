"""Released weights: where each comes from, what it was trained on, under which licence, and how to cite it."""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol, TypeAlias

import pandas as pd

from scgpt_tools._files import as_path, placed, read_steadily
from scgpt_tools._lookup import absent
from scgpt_tools.models import formats
from scgpt_tools.models.bucket import SCGENEPT_BUCKET, Bucket, fetch_checkpoint
from scgpt_tools.models.folders import check_folder, check_weights_file
from scgpt_tools.models.formats.tensors import SUFFIXES
from scgpt_tools.models.hub import Repository
from scgpt_tools.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Travel in the wheel.
DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_PERTURBATION = "scgenept-demo"
"""What tries predictions of perturbations out."""
_FOLDERS = {"scgpt-demo": DEMO_FOLDER, DEMO_PERTURBATION: Path(__file__).parent / "demo_perturbation"}

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", flags=re.ASCII)
# Columns of a table of models that are shown.
_SHOWN = 3


class HasVocabulary(Protocol):
    """A model, as far as its vocabulary goes."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Tokens of the model."""


VocabularySource: TypeAlias = Vocabulary | HasVocabulary | str | PathLike[str]
"""A vocabulary, a model, a ``vocab.json``, or whatever :func:`fetch` takes."""


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One set of published weights."""

    name: str
    """What :meth:`~scgpt_tools.models.CellModel.from_pretrained` takes."""
    repository: str | None
    """Where it is downloaded from, on the Hugging Face Hub; ``None`` for what this package ships or a bucket has."""
    bucket: str | None = None
    """Folder of scGenePT's public bucket that it is downloaded from."""
    family: str
    """Kind of model."""
    training_data: str
    """Cells that it saw."""
    recommended_for: str
    """What its authors suggest it for."""
    code_licence: str
    """Licence of the code that trained it."""
    weights_licence: str
    """Licence of the weights, as far as it is stated."""
    citation: str
    """What to cite."""
    source: str
    """Where its authors published it."""


def _scgpt(name: str, training_data: str, recommended_for: str, drive_folder: str) -> ReleasedModel:
    """The facts that all of scGPT's checkpoints share; see the table "Pretrained scGPT Model Zoo" of its README."""
    return ReleasedModel(
        name=name,
        repository=f"perturblab/{name}",
        family="scgpt",
        training_data=training_data,
        recommended_for=recommended_for,
        code_licence="MIT",
        weights_licence="not stated apart from the code's (MIT)",
        citation="doi:10.1038/s41592-024-02201-0",
        source=f"https://drive.google.com/drive/folders/{drive_folder} (see https://github.com/bowang-lab/scGPT)",
    )


_VOCABULARY = "models/pretrained/scgpt/vocab.json"
TEXTS = {
    "scgpt": "no texts",
    "scgenept_ncbi": "NCBI's summaries of genes",
    "scgenept_ncbi+uniprot": "summaries of NCBI and UniProt",
    "scgenept_go_c": "GO cellular components",
    "scgenept_go_f": "GO molecular functions",
    "scgenept_go_p": "GO biological processes",
    "scgenept_go_all": "all axes of GO",
}
"""Which texts each variant of scGenePT reads."""
_SCREENS = {"norman": "CRISPRa in K562 (Norman 2019)", "adamson": "CRISPRi in K562 (Adamson 2016)"}


def _scgenept(variant: str, screen: str) -> ReleasedModel:
    """The facts that all of scGenePT's checkpoints share; see the table "scGenePT Model Zoo" of its README."""
    return ReleasedModel(
        name=f"{variant}-{screen}",
        repository=None,
        bucket=f"models/finetuned/{variant}/{screen}",
        family="scgenept",
        training_data=f"scgpt-human, then {_SCREENS[screen]}, with {TEXTS[variant]}",
        recommended_for="perturbations of the kind and cells that it was trained on",
        code_licence="MIT",
        weights_licence="not stated apart from the code's (MIT)",
        citation="doi:10.1101/2024.10.23.619972",
        source=f"s3://czi-scgenept-public/models/finetuned/{variant}/{screen} (see https://github.com/czi-ai/scGenePT)",
    )


_RELEASED = (
    _scgpt("scgpt-human", "33 million normal human cells", "most uses", "1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y"),
    _scgpt(
        "scgpt-continual-pretrained",
        "scgpt-human, then cell type labels of Tabula Sapiens",
        "zero-shot cell embedding, above all across technical batches",
        "1_GROJTzXiAV8HB4imruOTk6PEGuNOcgB",
    ),
    _scgpt("scgpt-brain", "13.2 million brain cells", "brain", "1vf1ijfQSk7rGdDGpBntR5bi5g6gNt-Gx"),
    _scgpt(
        "scgpt-blood",
        "10.3 million blood and bone marrow cells",
        "blood and bone marrow",
        "1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU",
    ),
    _scgpt("scgpt-heart", "1.8 million heart cells", "heart", "1GcgXrd7apn6y4Ze_iSCncskX3UsWPY2r"),
    _scgpt("scgpt-lung", "2.1 million lung cells", "lung", "16A1DJ30PT6bodt4bWLa4hpS7gbWZQFBG"),
    _scgpt("scgpt-kidney", "814 thousand kidney cells", "kidney", "1S-1AR65DF120kNFpEbWCvRHPhpkGK3kK"),
    _scgpt(
        "scgpt-pan-cancer",
        "5.7 million cells of various cancer types",
        "tumours",
        "13QzLHilYUd0v3HTwa_9n4G4yEF-hdkqa",
    ),
    ReleasedModel(
        name="scgpt-demo",
        repository=None,
        family="scgpt",
        training_data="a few thousand blood cells of 10x Genomics",
        recommended_for="tests and tutorials only",
        code_licence="MIT",
        weights_licence="MIT",
        citation="scgpt-tools",
        source="this package",
    ),
    ReleasedModel(
        name=DEMO_PERTURBATION,
        repository=None,
        family="scgenept",
        training_data="a simulated knock-out screen on blood cells of 10x Genomics",
        recommended_for="tests and tutorials only",
        code_licence="MIT",
        weights_licence="MIT",
        citation="scgpt-tools",
        source="this package (scripts/make_demo_perturbation.py)",
    ),
    *(_scgenept(variant, screen) for variant in TEXTS for screen in _SCREENS),
)

RELEASED: dict[str, ReleasedModel] = {model.name: model for model in _RELEASED}

DEFAULT_PERTURBATION = "scgenept_go_c-norman"
"""What predicts perturbations where no model is named."""


class _Models(pd.DataFrame):
    """A table that shows its first columns whole, for the others are addresses and would hide them."""

    def __repr__(self) -> str:
        others = ", ".join(self.columns[_SHOWN:])
        shown = pd.DataFrame(self).iloc[:, :_SHOWN].astype(str)
        padded = shown.apply(lambda column: column.str.ljust(max([0, *column.str.len()])))
        return f"{padded.to_string(justify='left')}\n\nFurther columns: {others}."

    def _repr_html_(self) -> str:
        others = ", ".join(self.columns[_SHOWN:])
        return f"{pd.DataFrame(self).iloc[:, :_SHOWN].to_html()}<p>Further columns: {others}.</p>"


def available() -> pd.DataFrame:
    """Models that can be loaded by name.

    Returns
    -------
    One row per model, indexed by name: family, training data and recommendation, which are shown when it is printed, then
    licences of weights and code, citation, source, and the repository or the folder of a bucket that it is downloaded
    from.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.models.available().loc["scgpt-demo", "training_data"]
    'a few thousand blood cells of 10x Genomics'
    """
    table = pd.DataFrame([asdict(model) for model in RELEASED.values()]).set_index("name")
    first = ["family", "training_data", "recommended_for", "weights_licence", "code_licence", "citation", "source"]
    return _Models(table[[*first, *(name for name in table if name not in first)]])


def fetch(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
    force_download: bool = False,
    vocabulary: bool = True,
    settings: bool = True,
) -> Path:
    """Find or download the files of a model.

    Only the files that a checkpoint needs are downloaded: settings, vocabulary and one file of weights, safetensors
    where there is a choice.

    ``model``: a name in :func:`available`, a repository ``"organisation/name"``, or a folder or a file of weights,
    which is taken as it is; ``cache_dir``: where downloads are kept; ``None`` takes ``settings.cache_dir``, then the
    Hub client's own default; ``token``: access token; ``None`` takes the one of ``hf auth login`` if there is one,
    ``False`` sends none; ``force_download``: download files that are in the cache too; without effect where nothing may
    be downloaded; ``vocabulary``, ``settings``: whether a folder or a repository has to hold a vocabulary, and
    settings.
    """
    place = _place(model, revision)
    if place is not None and place.is_file():
        return check_weights_file(place)
    if place is not None and (alone := _alone(place)) is not None:
        return check_weights_file(alone)
    if place is not None:
        return check_folder(place, formats.layouts(), vocabulary=vocabulary, settings=settings)
    if (released := RELEASED.get(fspath(model))) is not None and released.bucket is not None:
        if revision is not None:
            raise ValueError(f"Expected `revision` with a repository only, found {revision!r} with {released.name!r}.")
        bucket = Bucket(endpoint or SCGENEPT_BUCKET, cache_dir=cache_dir, local_files_only=local_files_only)
        return check_weights_file(fetch_checkpoint(bucket, released.bucket, _VOCABULARY))
    repository, origin = _repository(fspath(model))
    return Repository(
        repository,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        endpoint=endpoint,
        origin=origin,
        force_download=force_download,
        layouts=formats.layouts(),
    ).checkpoint(vocabulary=vocabulary, settings=settings)


def display_name(model: str | PathLike[str]) -> str:
    """What to call a model in reports: its released name, its repository, or the name of its folder or file."""
    path = as_path("model", model)
    return path.resolve().name if path.is_dir() else path.stem if path.is_file() else fspath(model)


def vocabulary_file(source: VocabularySource) -> Vocabulary | Path:
    """A vocabulary, or the file of one, which a format has its own way to read."""
    if isinstance(source, str | PathLike):
        file = as_path("vocabulary", source)
        if file.is_file() and file.suffix not in SUFFIXES:
            return file
    return vocabulary_of(source)


def vocabulary_of(
    source: VocabularySource,
    *,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> Vocabulary:
    """Vocabulary of a model, without its weights.

    ``source``: a vocabulary (returned as it is), a model, a ``vocab.json``, or whatever :func:`fetch` takes.
    """
    if isinstance(source, Vocabulary):
        return source
    if not isinstance(source, str | PathLike):
        found = getattr(source, "vocabulary", None)
        if not isinstance(found, Vocabulary):
            raise TypeError(f"Expected a vocabulary, a model, a name or a path, found {type(source).__name__}.")
        return found
    if (file := as_path("source", source)).is_file() and file.suffix not in SUFFIXES:
        return formats.read_vocabulary(file)
    place = _place(source, None)
    if place is not None:
        folder = place.parent if place.is_file() else place
        names = tuple(dict.fromkeys(layout.vocabulary for layout in formats.layouts()))
        return read_steadily(folder, names, lambda: formats.read_vocabulary(_vocabulary_in(folder, names)))
    if (released := RELEASED.get(fspath(source))) is not None and released.bucket is not None:
        bucket = Bucket(endpoint or SCGENEPT_BUCKET, cache_dir=cache_dir, local_files_only=local_files_only)
        found = bucket.entries(_VOCABULARY)
        if not found and bucket.offline:
            # Beside weights that were downloaded.
            found = bucket.entries(f"{released.bucket}/{Path(_VOCABULARY).name}")
        if not found:
            raise FileNotFoundError(f"Expected {_VOCABULARY} of {bucket.place}; found none.")
        return formats.read_vocabulary(bucket.get(found[0]))
    repository, origin = _repository(fspath(source))
    remote = Repository(
        repository,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        endpoint=endpoint,
        origin=origin,
        layouts=formats.layouts(),
    )
    return formats.read_vocabulary(remote.vocabulary())


def _vocabulary_in(folder: Path, names: tuple[str, ...]) -> Path:
    path = next((path for name in names if (path := placed(folder, name)) is not None), None)
    if path is None:
        raise FileNotFoundError(f"Expected {' or '.join(names)} in the folder {str(folder)!r}, found none.")
    return path


def _place(model: str | PathLike[str], revision: str | None) -> Path | None:
    """The folder or the file of weights that is meant, if one is."""
    if model == "":
        return None
    path = as_path("model", model)
    name = fspath(model)
    if path.is_dir():
        # A released model may have the same name.
        logger.info("Taking %s, a folder%s.", name, "" if path.is_absolute() else " here")
        found: Path | None = path
    elif path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"Expected a file of weights ({', '.join(SUFFIXES)}) or the folder of a checkpoint, found the file {name!r}. "
                f"Pass {str(path.parent)!r}."
            )
        found = path
    elif name in _FOLDERS:
        found = _FOLDERS[name]
    elif (
        not isinstance(model, str)
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or path.suffix in SUFFIXES
    ):
        raise FileNotFoundError(f"Expected a folder with a checkpoint or a file of weights, found none at {name!r}.")
    else:
        found = None
    if found is not None and revision is not None:
        raise ValueError(
            f"Expected `revision` with a repository only, found {revision!r} with a local folder or file, {name!r}."
        )
    return found


def _alone(folder: Path) -> Path | None:
    """The one file of weights of a folder, if no format knows its name: those of scGenePT differ from folder to folder."""
    weights = [path for path in folder.iterdir() if path.suffix == ".pt" and path.is_file()]
    known = {name for layout in formats.layouts() for name in layout.weights}
    there = any(placed(folder, name) is not None for name in known)
    return weights[0] if len(weights) == 1 and not there else None


def _repository(name: str) -> tuple[str, str | None]:
    """Repository of a model, and where else it is published if that is known."""
    released = RELEASED.get(name)
    if released is not None and released.repository is not None:
        return released.repository, released.source
    if not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"{absent(name, RELEASED, 'released model')} A model may also be given as a folder, or as a repository "
            "'organisation/name' of the Hugging Face Hub."
        )
    return name, None
