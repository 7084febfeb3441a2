"""Gene sets that programs share genes with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from scgpt_tools._arguments import check_arguments
from scgpt_tools._files import as_path
from scgpt_tools._keys import GeneProgramKeys
from scgpt_tools._lookup import lookup
from scgpt_tools._optional import optional
from scgpt_tools._validate import check_integer, check_texts
from scgpt_tools.tl.gene_programs import read_programs

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData

Engine: TypeAlias = Literal["scipy", "gseapy", "decoupler"]
Sets: TypeAlias = dict[str, set[str]]

_COLUMNS = [
    "program", "gene_set", "overlap", "n_program", "n_set", "odds_ratio", "p_value", "p_bonferroni", "q_value", "genes",
]  # fmt: skip


def enrich_programs(
    adata: AnnData,
    gene_sets: str | PathLike[str] | Mapping[str, Sequence[str]],
    *,
    programs: str | Mapping[str, Sequence[str]] = GeneProgramKeys().key,
    background: Sequence[str] | None = None,
    min_genes: int = 5,
    max_genes: int = 2000,
    engine: Engine = "scipy",
) -> pd.DataFrame:
    """Test which gene sets, such as pathways, share more genes with a program than chance would have it.

    Over-representation by the hypergeometric distribution, one-sided, on gene sets of a file: nothing is asked for over a
    network.

    Parameters
    ----------
    adata
        Table that the programs were found in.
    gene_sets
        A GMT file (name, description, genes, with tabs between), or genes by the name of a set.
    programs
        Key of ``uns`` that :func:`scgpt_tools.tl.gene_programs` wrote, or genes by the name of a program.
    background
        Genes that could have been in a program; ``None`` takes all of ``var_names``.  Genome-wide backgrounds make
        every program of a panel look enriched.
    min_genes, max_genes
        Sizes of the sets to test, counted within the background.
    engine
        What computes p-values: ``"scipy"``, or ``"gseapy"`` :cite:p:`Fang2023` or ``"decoupler"``
        :cite:p:`BadiaMompel2022` (extra ``enrich``), with the same result.

    Returns
    -------
    One row per program and set that share a gene: ``program``, ``gene_set``, ``overlap``, ``n_program``, ``n_set``,
    ``odds_ratio``, ``p_value``, ``p_bonferroni`` and ``q_value`` (Benjamini and Hochberg), ``genes``.  Both corrections
    are over all tests, those without a shared gene included.  Most significant first.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the package of ``engine`` is not installed.
    ValueError
        If the file is not in GMT format, or no set has a fitting size.
    """
    check_arguments(enrich_programs, locals())
    check_integer("max_genes", max_genes, least=min_genes)
    compute = lookup(ENGINES, engine, "engine")
    wanted = read_programs(adata, programs)
    universe = set(adata.var_names if background is None else check_texts("background", background))
    named = _read_gmt(gene_sets) if not isinstance(gene_sets, Mapping) else gene_sets
    sets = {name: universe.intersection(genes) for name, genes in named.items()}
    sets = {name: genes for name, genes in sets.items() if min_genes <= len(genes) <= max_genes}
    if not sets:
        raise ValueError(
            f"Expected a gene set with {min_genes} to {max_genes} genes of the background, found none among {len(named)}. "
            "Are the names of the same kind, such as human gene symbols?"
        )
    rows: list[dict[str, Any]] = []
    for program, listed in wanted.items():
        genes = universe.intersection(listed)
        p_values = compute(genes, sets, universe)
        rows += [
            _overlap(program, genes, name, own, len(universe)) | {"p_value": p_values[name]}
            for name, own in sets.items()
        ]
    table = pd.DataFrame(rows)
    table["p_bonferroni"] = np.minimum(table["p_value"] * len(table), 1.0)
    table["q_value"] = stats.false_discovery_control(table["p_value"])
    shared = table[table["overlap"] > 0].sort_values(["p_value", "program", "gene_set"], kind="stable")
    return shared[_COLUMNS].reset_index(drop=True)


def _read_gmt(path: str | PathLike[str]) -> dict[str, list[str]]:
    file = as_path("gene_sets", path)
    if not file.is_file():
        raise FileNotFoundError(f"Expected a GMT file at {str(file)!r}, found none.")
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if len(rest) < 2:
            raise ValueError(f"Expected a name, a description and genes with tabs between in line {number} of {file}.")
        if name in sets:
            raise ValueError(f"Expected every gene set of {file} once, found {name!r} again in line {number}.")
        sets[name] = [gene for gene in rest[1:] if gene.strip()]
    return sets


def _overlap(program: str, genes: set[str], name: str, own: set[str], n_background: int) -> dict[str, Any]:
    shared = sorted(genes & own)
    k, n, m = len(shared), len(genes), len(own)
    inside, outside = k * (n_background - n - m + k), (n - k) * (m - k)
    return {
        "program": program,
        "gene_set": name,
        "overlap": k,
        "n_program": n,
        "n_set": m,
        "odds_ratio": inside / outside if outside else np.inf if inside else np.nan,
        "genes": ", ".join(shared),
    }


def _by_scipy(genes: set[str], sets: Sets, universe: set[str]) -> dict[str, float]:
    """P-value of each set."""
    return {
        name: float(stats.hypergeom.sf(len(genes & own) - 1, len(universe), len(own), len(genes)))
        for name, own in sets.items()
    }


def _by_gseapy(genes: set[str], sets: Sets, universe: set[str]) -> dict[str, float]:
    """The same by ``gseapy.enrich``, which leaves out sets that share no gene."""
    gseapy = optional("gseapy", extra="enrich")
    found = dict.fromkeys(sets, 1.0)
    if not any(genes & own for own in sets.values()):
        return found
    result = gseapy.enrich(
        sorted(genes),
        gene_sets={name: sorted(own) for name, own in sets.items()},
        background=sorted(universe),
        outdir=None,
        no_plot=True,
        cutoff=1.0,
    ).results
    return found | dict(zip(result["Term"], result["P-value"].astype(float), strict=True))


def _by_decoupler(genes: set[str], sets: Sets, universe: set[str]) -> dict[str, float]:
    """The same by ``decoupler.mt.query_set``."""
    with warnings.catch_warnings():
        # Of packages that it imports.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        decoupler = optional("decoupler", extra="enrich")
    net = pd.DataFrame(
        [(name, gene) for name, own in sets.items() for gene in sorted(own)], columns=["source", "target"]
    )
    result = decoupler.mt.query_set(sorted(genes), net, n_bg=len(universe), tmin=1)
    return dict(zip(result["source"], result["pval"].astype(float), strict=True))


ENGINES: dict[str, Callable[[set[str], Sets, set[str]], dict[str, float]]] = {
    "scipy": _by_scipy,
    "gseapy": _by_gseapy,
    "decoupler": _by_decoupler,
}
"""What computes the p-values of the genes of a program."""
