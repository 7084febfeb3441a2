"""Commands that make files of files: preprocessed tables, shards, indices, exported and uploaded models."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING, Literal, cast, get_args

from anndata.io import write_elem

from scgpt_tools import pp
from scgpt_tools._files import as_path, placed
from scgpt_tools._optional import optional
from scgpt_tools._outputs import check_place, claimed, put_in_place
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.shards import MANIFEST, write_shards
from scgpt_tools.data.stores import check_target, open_table, read_table
from scgpt_tools.models import FAMILIES, CellModel, formats
from scgpt_tools.models.families import original_format
from scgpt_tools.models.publishing import push_folder
from scgpt_tools.models.zoo import vocabulary_of
from scgpt_tools.tokens.features import FeatureTable
from scgpt_tools.tokens.gene_lists import GeneList, listed_genes, symbols_of_ids
from scgpt_tools.tokens.names import column_names
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from scgpt_tools._types import Ties
    from scgpt_tools.pp.preprocess import Flavor

logger = logging.getLogger("scgpt_tools.cli")


def free_folder(output: str, *, overwrite: bool, format: str = "native") -> Path:
    """A folder to save a model to; one with a model of that format is refused unless it may be replaced."""
    place = formats.check_target(output, format)
    if place.exists() and not place.is_dir():
        raise FileExistsError(f"Expected a folder for the output, found the file {output!r}.")
    check_place(place)
    layout = formats.known()[format].layout
    if layout.weights_in(partial(placed, place)) is not None and not overwrite:
        raise FileExistsError(
            f"Expected a folder without a model, found one in {output!r}. Pass --overwrite to replace it."
        )
    return place


def preprocess(
    input: str,
    *,
    output: str,
    overwrite: bool = False,
    layer: str | None = None,
    modality: str | None = None,
    min_gene_counts: int | None = None,
    min_cell_counts: int | None = None,
    min_cell_genes: int | None = None,
    target_sum: float | None = 1e4,
    log1p: bool = True,
    n_top_genes: int | None = None,
    hvg_flavor: Flavor = "seurat",
    batch_key: str | None = None,
    bins: int | None = 51,
    ties: Ties = "left",
    rng: int = 0,
) -> None:
    """Filter, normalise, take logarithms, choose genes and bin: a new table, which keeps its counts in X.

    Parameters
    ----------
    input
        Table with raw counts: .h5ad, .h5mu or .zarr.  It is read into memory, and what else it has is kept.
    output
        Where the new table goes, .h5ad or .zarr, with the values in its layers ``X_normed``, ``X_log1p`` and ``X_binned``.
    overwrite
        Replace the output if it exists.
    layer
        Key of ``layers`` with the counts; none takes ``X``.
    modality
        Which modality of a MuData to read.
    min_gene_counts
        Drop genes with fewer counts.
    min_cell_counts
        Then drop cells with fewer counts.
    min_cell_genes
        Then drop cells with fewer genes above zero.
    target_sum
        Counts of each cell after normalisation; ``null`` leaves the counts as they are.
    log1p
        Take ``log(1 + x)``.
    n_top_genes
        Keep this many highly variable genes.
    hvg_flavor
        How to choose them; ``seurat_v3`` and ``seurat_v3_paper`` from counts, with scikit-misc (extra ``hvg``).
    batch_key
        Column of ``obs``: choose genes within each batch.
    bins
        Number of bins, zero included; ``null`` does not bin.
    ties
        Bin of a value that sits on several equal edges: the last between them, or one drawn by seed.
    rng
        Seed of what is drawn.
    """
    final = place_for_table(input, output, overwrite=overwrite)
    result = pp.preprocess(
        read_table(input, modality=modality),
        layer=layer,
        min_gene_counts=min_gene_counts,
        min_cell_counts=min_cell_counts,
        min_cell_genes=min_cell_genes,
        target_sum=target_sum,
        log1p=log1p,
        n_top_genes=n_top_genes,
        hvg_flavor=hvg_flavor,
        batch_key=batch_key,
        bins=bins,
        ties=ties,
        rng=rng,
    )
    write_table(result, final)
    logger.info("Wrote %d cells and %d genes to %s.", *result.shape, final)


def shard(
    input: str,
    *,
    output: str,
    model: str | None = None,
    layer: str | None = None,
    genes: str | None = None,
    modality: str | None = None,
    shard_size: int = 500_000,
    obs_keys: Sequence[str] = (),
) -> None:
    """Write the cells of a table as shards, in scModelForge's format.

    Parameters
    ----------
    input
        Table to read: .h5ad, .h5mu or .zarr.  Its matrices are read in blocks.
    output
        Folder for the shards; it must hold none yet.
    model
        Whose vocabulary the genes get their numbers from: a model, a file with a vocabulary, or ``human_protein_coding``, a
        bundled list whose genes are matched by symbol or Ensembl id.  None takes the genes of the table.
    layer
        Key of ``layers`` to read; none takes ``X``.
    genes
        Column of ``var`` with the gene names that the vocabulary holds; none takes ``var_names``.
    modality
        Which modality of a MuData to read.
    shard_size
        Cells of a shard.
    obs_keys
        Columns of ``obs`` to keep, as ``[cell_type, batch]`` (extra ``text``).
    """
    with open_table(input, modality=modality) as table:
        source = RowSource(table, layer=layer)
        listed = model in get_args(GeneList)
        if model is None or listed:
            own = [name for name in column_names(source.var, genes) if name is not None]
            names = listed_genes(cast("GeneList", model)) if listed else own
            vocabulary = Vocabulary.from_genes(list(dict.fromkeys(names)), FAMILIES["scmodelforge"].specials)
        else:
            vocabulary = vocabulary_of(model)
        symbols = symbols_of_ids(cast("GeneList", model)) if listed else None
        features = FeatureTable.from_var(source.var, vocabulary, column=genes, symbols=symbols, totals=source.totals)
        place = write_shards(source, features, vocabulary, output, shard_size=shard_size, obs_keys=obs_keys)
        logger.info("Wrote %d cells and %d genes to %s.", len(source), len(features.ids), place / MANIFEST)


def export(
    *,
    model: str,
    output: str,
    format: Literal["auto", "original", "native"] = "auto",
    vocabulary: str | None = None,
    settings: str | None = None,
    attention_names: Literal["torch", "fused", "wrapped"] = "torch",
    overwrite: bool = False,
) -> None:
    """Write a model, or a checkpoint of its training, as a folder: for the original of its family where that can load it.

    Parameters
    ----------
    model
        A released name, a repository of the Hugging Face Hub, a folder, or a file of weights such as ``run/best.ckpt``.
    output
        Folder to write to.
    format
        The original's format of the model's family, or this package's own; ``auto`` takes the second where the first has no
        words for the model.
    vocabulary
        Genes and their ids, in place of the file beside the weights.
    settings
        File of settings, in place of the one beside the weights.
    attention_names
        Spelling of the attention tensors in scGPT's format; see ``CellModel.export``.
    overwrite
        Replace a model in the output folder.
    """
    loaded = CellModel.from_pretrained(model, device="cpu", vocabulary=vocabulary, settings=settings)
    written = False
    if format != "native":
        try:
            place = free_folder(output, overwrite=overwrite, format=original_format(loaded.config))
            loaded.export(place, attention_names=attention_names)
            written = True
        except ValueError as error:
            if format == "original":
                raise
            logger.info("%s This package's own format is taken.", error)
    if not written:
        place = free_folder(output, overwrite=overwrite)
        loaded.save(place)
    names = ", ".join(sorted(path.name for path in place.iterdir() if path.is_file()))
    logger.info("Wrote the model to %s: %s.", place, names)


def push(
    *,
    model: str,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Upload the folder of a model to a repository of the Hugging Face Hub, and print the address of the commit.

    Files of another model there that would be read in its place are deleted in the same commit.

    Parameters
    ----------
    model
        Folder that a command of this program, or the original of a family, saved a model to.
    repository
        ``organisation/name``; it is made if there is none.
    private
        Of a new repository, whether it is hidden from others.
    revision
        Branch to write to, which has to exist; none takes ``main``.
    message
        Of the commit.
    token
        Access token with the right to write; none takes the one of ``hf auth login``.
    endpoint
        Address of the hub; none takes that of ``HF_ENDPOINT``, or https://huggingface.co.
    """
    print(
        push_folder(
            model, repository, private=private, revision=revision, message=message, token=token, endpoint=endpoint
        )
    )


def write_table(table: AnnData, final: Path) -> None:
    """Write a new table, which takes its place when it is complete."""
    with claimed(final) as folder:
        copy = folder / f"copy{final.suffix}"
        _write(table, copy)
        put_in_place(copy, final)


def _write(table: AnnData, path: Path) -> None:
    """Write a table in the format of its ending; zarr in its third format, whatever the version of AnnData."""
    if path.suffix == ".h5ad":
        table.write_h5ad(path)
        return
    group = optional("zarr", extra="scale").open_group(path, mode="w", zarr_format=3)
    with warnings.catch_warnings():
        # AnnData announces another default, which nobody can act on here.
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        write_elem(group, "/", table)


def place_for_table(source: str, output: str, *, overwrite: bool) -> Path:
    """Refuse a place for a table that could not be written there, before any work begins."""
    final = as_path("output", output)
    if final.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"Expected an output that ends in .h5ad or .zarr, found {output!r}.")
    check_target(source, final, overwrite=overwrite, converts=True)
    return final.resolve()
