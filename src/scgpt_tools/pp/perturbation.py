"""Perturbation screens: labels, control pairs, and the genes that every condition changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools._arguments import check_arguments, renamed
from scgpt_tools._docs import shared_docs
from scgpt_tools._validate import as_seed
from scgpt_tools.screens.annotations import annotate_conditions, annotate_pairs, annotate_ranking
from scgpt_tools.tokens.perturbations import ConditionStyle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np  # noqa: F401 - a part of RngLike
    from anndata import AnnData

    from scgpt_tools._types import PairMethod, RngLike
    from scgpt_tools.screens.splits import Draw
    from scgpt_tools.tokens.perturbations import Direction, Missing


@renamed(key="condition_key")
@shared_docs
def parse_conditions(
    adata: AnnData,
    condition_key: str = "condition",
    *,
    control: str | Sequence[str] = "ctrl",
    delimiter: str = "+",
    guide_pattern: str | None = None,
    count_key: str | None = None,
    genes: str | None = None,
    missing: Missing = "warn",
    direction: Direction | None = None,
    key_added: str = "condition",
    copy: bool = False,
) -> AnnData | None:
    r"""Read perturbation labels, and write them as ``ctrl``, ``G+ctrl`` and ``A+B``.

    Nothing is guessed: a label that is neither a control nor names a measured gene is reported.  A column in this
    spelling stays as it is, but for ``ctrl+G``, and for gene sets that occur in several orders, which are sorted.

    Parameters
    ----------
    adata
        Cells of a screen; may be backed.
    condition_key
        Column of ``obs`` with one label a cell.
    control
        Label, or part of a label, of no perturbation; several are possible.
    delimiter
        Text between the genes of a label, such as ``"_"`` or ``";"``.  A measured gene may hold it in its name.
    guide_pattern
        Regular expression of what to cut off each gene, such as ``r"g\d+$"`` where the labels are those of guides.
    count_key
        Column of ``obs`` with the number of perturbed genes of a cell, to check the labels with.
    genes
        Column of ``var`` with the gene names that the labels use; ``None`` takes ``var_names``.
    missing
        What to do with a perturbed gene that is not measured, and for which a model therefore has no token to flag: refuse
        it, name it in a warning, or ignore it.
    direction
        What the perturbations do: ``"up"`` for activation (CRISPRa, over-expression), ``"down"`` for repression and
        knock-out (CRISPRi, CRISPR-Cas9).  Models that are trained on or predict these cells then flag perturbed genes
        by 1 or 2; ``None`` flags all by 1, as the originals do.
    key_added
        Key to write.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obs[key_added]`` : :class:`pandas.Categorical`
        Condition of each cell.
    ``uns[f"{key_added}_perturbed"]`` : :class:`dict`
        Arguments (``params``), perturbed genes (``genes``), those without a column (``missing_genes``), what a
        model's perturbation flags mean (``flags``), and ``direction``, if given.

    Raises
    ------
    KeyError
        If a column is absent; the message lists what is there.
    ValueError
        If a cell has no label, no cell is a control, every cell is, a label has an empty part, separates measured
        genes by another mark or writes the control in another case, or ``count_key`` says otherwise than a label.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, scgpt_tools as sct
    >>> obs = pd.DataFrame({"perturbation": ["control", "KLF1_SET", "KLF1"]}, index=["a", "b", "c"])
    >>> adata = ad.AnnData(obs=obs, var=pd.DataFrame(index=["KLF1", "SET"]))
    >>> sct.pp.parse_conditions(adata, "perturbation", control="control", delimiter="_")
    >>> list(adata.obs["condition"])
    ['ctrl', 'KLF1+SET', 'KLF1+ctrl']
    """
    check_arguments(parse_conditions, locals())
    labels = (control,) if isinstance(control, str) else tuple(control)
    style = ConditionStyle(control=labels, delimiter=delimiter, guide_pattern=guide_pattern)
    adata = adata.copy() if copy else adata
    annotate_conditions(
        adata,
        condition_key,
        style,
        genes=genes,
        count_key=count_key,
        missing=missing,
        direction=direction,
        key_added=key_added,
    )
    return adata if copy else None


@renamed(key="condition_key", seed="rng")
@shared_docs
def pair_controls(
    adata: AnnData,
    condition_key: str = "condition",
    *,
    method: PairMethod = "random",
    within: str | Sequence[str] | None = None,
    n: int = 1,
    use_rep: str | None = None,
    layer: str | None = None,
    rng: RngLike = 0,
    draw: Draw = "stable",
    key_added: str = "ctrl_indices",
    show_progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Pair every perturbed cell with control cells of the same context.

    Random pairs differ by all that cells differ by anyhow, and a network that learns from them predicts much the same cell from
    every control.  Optimal transport pairs each cell with a control that it may have been, as far as that can be told from
    cells at one time :cite:p:`Schiebinger2019,Bunne2023`.

    Parameters
    ----------
    adata
        Cells with conditions from :func:`parse_conditions`; may be backed.
    condition_key
        Column of ``obs`` with the conditions.
    method
        ``"random"``: controls are drawn.  ``"transport"``: of each condition (in each context), the controls are assigned to the
        cells so that the sum of squared distances is least.  Every control is taken once, or, where there are fewer than
        are needed, all of them equally often, and of more, as many as are needed are drawn: what the controls of a condition
        are on average does not depend on the cells that they are assigned to.  A cell may have one control twice where there
        are fewer than needed.  Conditions of more than 1,024 pairs are assigned in parts of that size.
    within
        Columns of ``obs``, such as cell type and batch, that a cell and its controls share.
    n
        Controls a cell; with ``"transport"`` 1,024 at most.
    use_rep
        With ``"transport"``: key of ``obsm`` to take distances in, such as ``"X_pca"``; ``None`` takes 50 principal components
        of the log-normalised values, which are held in memory then.
    layer
        With ``"transport"`` and without ``use_rep``: key of ``layers`` with these values; ``None`` takes ``X``.
    rng
        For the draws: a whole number, a generator, or ``None`` for fresh entropy.  The number that was used is in
        ``params``.
    draw
        ``"stable"``: the controls of a cell depend on that number, its name and the controls there are, not on the order
        of the cells.  ``"gears"``: the controls that GEARS draws after ``numpy.random.seed`` with it, over all cells.
    key_added
        Key to write.
    {show_progress}
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``obsm[key_added]`` : int64, (cells, ``n``)
        Rows of the controls; controls are paired with themselves.
    ``uns[key_added]`` : :class:`dict`
        Arguments (``params``), and a checksum of the names of the cells (``cells``): rows mean other cells once the
        object is subset, and readers refuse them then.

    Raises
    ------
    KeyError
        If a column, layer or representation is absent; the message lists what is there.
    ValueError
        If there is no control, or none in a context with perturbed cells; all such contexts are named.  Or if labels
        are not parsed yet, values look like counts, a representation is not finite, or arguments do not go together.

    Notes
    -----
    Pairs by transport know the perturbed cells.  A prediction of one cell from its own pair is therefore not held out, but what
    is predicted of a condition is, be it a mean or a distribution.  After :func:`cell_split`, ``within="split"`` pairs cells within
    their part.

    Examples
    --------
    >>> import scgpt_tools as sct
    >>> sct.pp.pair_controls(adata, method="transport", within="batch", n=4)  # doctest: +SKIP
    >>> model = sct.train.finetune(adata, "scgpt-demo", task="perturb")  # doctest: +SKIP
    """
    check_arguments(pair_controls, locals())
    adata = adata.copy() if copy else adata
    annotate_pairs(
        adata,
        condition_key,
        method=method,
        within=within,
        n=n,
        use_rep=use_rep,
        layer=layer,
        seed=as_seed(rng, bits=32),
        draw=draw,
        key_added=key_added,
        show_progress=show_progress,
    )
    return adata if copy else None


@renamed(key="condition_key")
@shared_docs
def perturbation_de(
    adata: AnnData,
    condition_key: str = "condition",
    *,
    within: str | None = None,
    layer: str | None = None,
    method: str = "t-test",
    gears: bool = False,
    key_added: str = "perturbation_de",
    copy: bool = False,
) -> AnnData | None:
    """Rank the genes of every condition against the controls, by :func:`scanpy.tl.rank_genes_groups`.

    Parameters
    ----------
    adata
        Log-normalised cells with conditions from :func:`parse_conditions`; may be backed.
    condition_key
        Column of ``obs`` with the conditions.
    within
        Column of ``obs``, such as the cell type: compare with the controls of the same value only.
    {layer}
    method
        Test; GEARS' is ``"t-test"``.
    gears
        Also write what GEARS and scGPT's scripts read, with ``within`` as the cell type.
    key_added
        Key to write.
    {copy}

    Returns
    -------
    ``None``, or the changed copy.  Writes

    ``uns[key_added]`` : :class:`dict`
        All genes by falling absolute score, for :func:`scanpy.get.rank_genes_groups_df`.  Groups are conditions, or
        ``<within>_<condition>``.

    and with ``gears``

    ``obs["condition"]``, ``obs["cell_type"]``, ``obs["condition_name"]``, ``obs["control"]``, ``obs["dose_val"]``
        Labels; a condition of three genes is not a control here, unlike in GEARS.  The first two and ``"control"``
        are refused where the table has others under these names.
    ``var["gene_name"]``
        Names of the genes, unless there.
    ``uns["rank_genes_groups_cov_all"]``, ``uns["top_non_dropout_de_20"]``, ``uns["top_non_zero_de_20"]``
        Condition name to gene names.
    ``uns["non_dropout_gene_idx"]``, ``uns["non_zeros_gene_idx"]``
        Condition name to gene positions.

    Raises
    ------
    KeyError
        If a column or layer is absent; the message lists what is there.
    ValueError
        If values look like counts, a condition has a single cell, a context has no controls, or with ``gears`` a cell
        type has a ``/`` in its name, which files cannot keep as a key.
    """
    check_arguments(perturbation_de, locals())
    adata = adata.copy() if copy else adata
    annotate_ranking(adata, condition_key, within=within, layer=layer, method=method, gears=gears, key_added=key_added)
    return adata if copy else None
