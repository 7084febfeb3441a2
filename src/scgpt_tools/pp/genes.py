"""Compare the genes of a data set with those that a model knows, before anything is computed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scgpt_tools._arguments import check_arguments
from scgpt_tools._docs import shared_docs
from scgpt_tools.data.rows import table_of, totals_of
from scgpt_tools.models.zoo import vocabulary_of
from scgpt_tools.tokens.features import FeatureTable

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scgpt_tools.models.zoo import VocabularySource
    from scgpt_tools.tokens.coverage import Coverage
    from scgpt_tools.tokens.features import Duplicates
    from scgpt_tools.tokens.names import NameTable

logger = logging.getLogger(__name__)


@shared_docs
def match_genes(
    adata: AnnData | MuData,
    model: VocabularySource = "scgpt-human",
    *,
    modality: str | None = None,
    genes: str | None = None,
    symbols: NameTable | str | None = None,
    aliases: NameTable | None = None,
    ignore_case: bool = False,
    min_coverage: float = 0.5,
    duplicates: Duplicates = "most_counts",
) -> Coverage:
    """Report which genes a model knows.

    The tasks match genes in the same way; this shows the outcome beforehand and changes nothing.

    Parameters
    ----------
    adata
        Cells; ``var`` is looked at, and of ``X`` no more than the sums of columns that match one gene.  Never changed.
    model
        A model, a :class:`~scgpt_tools.Vocabulary`, the path of a ``vocab.json``, or the name, repository or folder of
        a model; of a model that has to be downloaded only the vocabulary is.
    {modality}
    {genes}
    symbols
        Symbol of each Ensembl id, as a table or as the name of a column of ``var``.  The version of an id does not
        count.
    aliases
        Current symbol of each outdated one.
    ignore_case
        Let names that match nothing else match in another case.
    min_coverage
        Warn if a smaller part of the genes matches.
    duplicates
        What to do with several columns of the same gene: read the one with the most counts, ``"most_counts"``, or the
        one that is matched best, ``"first"``; refuse, ``"error"``; or read each of them, ``"all"``.  Which columns are
        read is said in a warning and in the report.

    Returns
    -------
    :class:`~scgpt_tools.tokens.Coverage`
        Numbers by rule, and what became of each gene (``to_frame``).

    Raises
    ------
    KeyError
        If the modality or the column is absent; the message lists what is there.
    ValueError
        If no gene matches; the message says what the names look like and what would match.

    Examples
    --------
    >>> import anndata as ad, pandas as pd, scgpt_tools as sct
    >>> adata = ad.AnnData(var=pd.DataFrame(index=["CD3D", "MARCH8", "ENSG00000075624.17", "XYZ"]))
    >>> vocabulary = sct.Vocabulary(["ACTB", "CD3D", "MARCHF8"])
    >>> tables = {"symbols": {"ENSG00000075624": "ACTB"}, "aliases": {"MARCH8": "MARCHF8"}}
    >>> sct.pp.match_genes(adata, vocabulary, **tables)
    Coverage: 3 of 4 features (75.0 %) match one of 3 genes of the vocabulary
      exact       1
      ensembl     1
      alias       1
      missing     1: XYZ
    """
    check_arguments(match_genes, locals())
    table = table_of(adata, modality)
    features = FeatureTable.from_var(
        table.var,
        vocabulary_of(model),
        column=genes,
        symbols=symbols,
        aliases=aliases,
        ignore_case=ignore_case,
        min_coverage=min_coverage,
        duplicates=duplicates,
        totals=totals_of(table),
    )
    logger.info("Genes: %s.", features.coverage.headline())
    return features.coverage
