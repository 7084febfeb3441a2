"""Where each task writes in AnnData; every key is named here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from scgpt_tools._validate import check_key_name


@dataclass(frozen=True)
class _Named:
    """Keys that follow from one name, which is also that of settings and provenance in ``uns``."""

    key: str

    def __post_init__(self) -> None:
        check_key_name("key_added", self.key)

    @property
    def uns(self) -> str:
        """Settings and provenance."""
        return self.key


@dataclass(frozen=True)
class TokenizeKeys(_Named):
    """What :func:`scgpt_tools.pp.tokenize` writes."""

    key: str = "X_binned"

    @property
    def layer(self) -> str:
        """Binned values, sparse."""
        return self.key

    @property
    def var(self) -> str:
        """Token id of each gene, -1 for genes outside the vocabulary."""
        return f"{self.key}_token_id"

    @property
    def obs(self) -> str:
        """Number of expressed genes with a token in each cell."""
        return f"{self.key}_n_tokens"


@dataclass(frozen=True)
class PreprocessKeys:
    """What :func:`scgpt_tools.pp.preprocess` writes; the names are scGPT's."""

    normed: str = "X_normed"
    """Layer of normalised values."""
    log1p: str = "X_log1p"
    """Layer of their logarithms."""
    binned: str = "X_binned"
    """Layer of bins."""


@dataclass(frozen=True)
class EmbedKeys(_Named):
    """What :func:`scgpt_tools.tl.embed` writes."""

    key: str = "X_scGPT"

    @property
    def obsm(self) -> str:
        """One row per cell."""
        return self.key


@dataclass(frozen=True)
class EmbedGenesKeys(_Named):
    """What :func:`scgpt_tools.tl.embed_genes` writes."""

    key: str = "X_scGPT_genes"

    @property
    def varm(self) -> str:
        """One row per gene."""
        return self.key

    def varm_of(self, group: str) -> str:
        """One row per gene, by its tokens in a group of cells."""
        return f"{self.key}_{group}"

    @property
    def varm_cells(self) -> str:
        """Cells of each group with a token of each gene; of contextual embeddings only."""
        return f"{self.key}_n_cells"


@dataclass(frozen=True)
class GeneNetworkKeys(_Named):
    """What :func:`scgpt_tools.tl.gene_network` writes."""

    key: str = "gene_network"

    @property
    def varp(self) -> str:
        """Weight of each edge."""
        return self.key


@dataclass(frozen=True)
class GeneProgramKeys(_Named):
    """What :func:`scgpt_tools.tl.gene_programs` writes; to ``uns`` also the genes of every program."""

    key: str = "gene_program"

    @property
    def var(self) -> str:
        """Program of each gene."""
        return self.key


@dataclass(frozen=True)
class ProgramScoreKeys(_Named):
    """What :func:`scgpt_tools.tl.score_programs` writes."""

    key: str = "program_scores"

    @property
    def obsm(self) -> str:
        """One row per cell, one column per program."""
        return self.key


@dataclass(frozen=True)
class KnockoutKeys:
    """What the table of :func:`scgpt_tools.tl.knockout` holds."""

    gene: str = "gene"
    """Column of ``obs`` with the gene that is changed."""
    group: str = "group"
    """Column of ``obs`` with the group of cells."""
    role: str = "role"
    """Column of ``obs``: ``"asked"`` or ``"random"``."""
    n_cells: str = "n_cells"
    """Column of ``obs`` with the cells of the group."""
    n_changed: str = "n_changed"
    """Column of ``obs`` with the cells that the change makes a difference to."""
    value: str = "mean_value"
    """Column of ``obs`` with how much of the gene the cells with it have."""
    shift: str = "shift"
    """Column of ``obs`` with the mean distance of changed cells from where they were."""
    displacement: str = "displacement"
    """Column of ``obs`` and key of ``obsm``: mean move of all cells of the group, its length and itself."""
    expected: str = "expected_shift"
    """Column of ``obs`` with the shift of matched random genes."""
    z_score: str = "z_score"
    """Column of ``obs`` with the shift against them."""
    p_value: str = "p_value"
    """Column of ``obs``."""
    q_value: str = "q_value"
    """Column of ``obs``."""
    uns: str = "knockout"
    """Settings and provenance."""

    @property
    def compared(self) -> tuple[str, ...]:
        """Columns of ``obs`` that compare a gene with random ones."""
        return (self.expected, self.z_score, self.p_value, self.q_value)


@dataclass(frozen=True)
class ConditionKeys:
    """What :func:`scgpt_tools.pp.parse_conditions` writes."""

    key: str = "condition"

    @property
    def obs(self) -> str:
        """Condition of each cell in GEARS' spelling."""
        return self.key

    @property
    def uns(self) -> str:
        """How the labels were read, and which genes are perturbed."""
        return f"{self.key}_perturbed"


@dataclass(frozen=True)
class PairKeys(_Named):
    """What :func:`scgpt_tools.pp.pair_controls` writes; to ``uns`` also a checksum of the cells that rows belong to."""

    key: str = "ctrl_indices"

    @property
    def obsm(self) -> str:
        """Rows of the paired controls."""
        return self.key


@dataclass(frozen=True)
class SplitKeys(_Named):
    """What :func:`scgpt_tools.pp.perturbation_split` and :func:`scgpt_tools.pp.cell_split` write.

    To ``uns`` also the conditions of every part, and their hashes.
    """

    key: str = "split"

    @property
    def obs(self) -> str:
        """``"train"``, ``"val"`` or ``"test"``; missing where a cell is in no part."""
        return self.key

    @property
    def obs_subgroup(self) -> str:
        """Of held-out conditions: how much of them training saw."""
        return f"{self.key}_subgroup"


@dataclass(frozen=True)
class RankingKeys(_Named):
    """What :func:`scgpt_tools.pp.perturbation_de` writes: to ``uns`` a ranking in scanpy's structure."""

    key: str = "perturbation_de"


@dataclass(frozen=True)
class AnnotateKeys(_Named):
    """What :func:`scgpt_tools.tl.annotate` and :func:`scgpt_tools.tl.map_reference` write.

    To ``uns`` also the names of the classes.
    """

    key: str = "scgpt_cell_type"

    @property
    def obs(self) -> str:
        """Class of each cell."""
        return self.key

    @property
    def obs_confidence(self) -> str:
        """Probability of that class, or its share of the votes."""
        return f"{self.key}_confidence"

    @property
    def obs_distance(self) -> str:
        """Mean squared distance to the nearest cells of the reference."""
        return f"{self.key}_distance"

    @property
    def obs_p_value(self) -> str:
        """P-value for being of that class at all."""
        return f"{self.key}_p_value"

    @property
    def beside(self) -> tuple[str, ...]:
        """Columns beside that of the classes."""
        return self.obs_confidence, self.obs_distance, self.obs_p_value

    @property
    def obsm(self) -> str:
        """Probability of every class."""
        return f"{self.key}_probabilities"

    @property
    def obsm_neighbours(self) -> str:
        """Rows of the reference; of the mapping only."""
        return f"{self.key}_neighbors"

    @property
    def obsm_distances(self) -> str:
        """Squared distances to them; of the mapping only."""
        return f"{self.key}_distances"


@dataclass(frozen=True)
class TargetKeys(_Named):
    """What :func:`scgpt_tools.tl.predict` writes; to ``uns`` also the names of the targets."""

    key: str = "scgpt_predicted"

    def obs(self, target: str) -> str:
        """Predicted number of each cell."""
        return f"{self.key}_{target}"


OWN_CONDITION = "own condition"
"""What :func:`scgpt_tools.tl.predict_perturbation` records instead of a perturbation where each cell has its own."""


@dataclass(frozen=True)
class PredictionKeys(_Named):
    """What :func:`scgpt_tools.tl.predict_perturbation` writes; to ``uns`` also the perturbations."""

    key: str = "predicted"

    @property
    def layer(self) -> str:
        """Predicted expression."""
        return self.key

    def layer_of(self, perturbation: str) -> str:
        """Predicted expression after one of several perturbations."""
        return f"{self.key}_{perturbation}"

    @property
    def spread(self) -> str:
        """Key of ``varm``: how far several models are apart."""
        return f"{self.key}_spread"


@dataclass(frozen=True)
class ScreenKeys:
    """What the table of :func:`scgpt_tools.tl.screen` holds."""

    effect: str = "effect"
    """Layer of changes against the mean of the controls."""
    dispersion: str = "dispersion"
    """Layer of standard deviations over the controls."""
    control: str = "control_mean"
    """Column of ``var`` with the mean of the controls."""
    size: str = "effect_size"
    """Column of ``obs`` with the length of the change."""
    genes: str = "n_genes"
    """Column of ``obs`` with the number of perturbed genes."""
    uns: str = "screen"
    """Settings and provenance."""


@dataclass(frozen=True)
class ImputeKeys(_Named):
    """What :func:`scgpt_tools.tl.impute` writes; to ``uns`` also the unit."""

    key: str = "prot_imputed"

    @property
    def obsm(self) -> str:
        """One row per cell, one column per feature."""
        return self.key


@dataclass(frozen=True)
class ModalityWeightKeys(_Named):
    """What :func:`scgpt_tools.tl.modality_weights` writes; the names of the columns are muon's."""

    key: str = "mod_weight"

    def obs(self, modality: str) -> str:
        """Weight of a modality in each cell."""
        return f"{modality}:{self.key}"
