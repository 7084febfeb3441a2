"""DeepSC's fine-tuning for perturbations as one object and one command, over the functions of this package."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import torch

from scgpt_tools import pl, pp, tl
from scgpt_tools._arguments import check_arguments
from scgpt_tools._files import as_path, replace_file
from scgpt_tools._optional import optional
from scgpt_tools._validate import as_generator
from scgpt_tools.config import from_dict
from scgpt_tools.models.cell_model import CellModel
from scgpt_tools.models.deepsc.model import DeepSCModel
from scgpt_tools.models.deepsc.vocabulary import matching_report
from scgpt_tools.models.formats.deepsc import from_deepsc, to_deepsc
from scgpt_tools.models.formats.deepsc_training import load_optimizer, optimizer_to_deepsc
from scgpt_tools.models.formats.tensors import read_contents
from scgpt_tools.screens.conditions import control_mask, read_conditions
from scgpt_tools.tokens.gene_tables import read_gene_table
from scgpt_tools.tokens.names import column_names
from scgpt_tools.tokens.perturbations import condition_genes
from scgpt_tools.train.finetune import finetune
from scgpt_tools.train.starting import perturbation_config, perturbation_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# GEARS' correlations that scGPT's have the names of.
_TWICE = ("gears_pearson", "gears_pearson_de", "gears_pearson_delta")
_LAYERS = ("layers.", "gene_self_attention_layers.", "cross_attention_layers.", "expression_layers.")
# Arguments of the original's command that the model has been made of, or that nothing depends on.
_NOT_OURS = ("embedding_dim", "num_layers", "num_heads", "hidden_dim", "log_interval")
_MONITOR = "validation_profile_correlation"
_CELLS = ("perturb_processed.h5ad", "cells.h5ad")


@dataclass(frozen=True, kw_only=True)
class PredictorArguments:
    """What :class:`PerturbationPredictor` is told, with the defaults of its authors."""

    data_name: str = "norman"
    data_path: Path = Path("data")
    split: str = "simulation"
    csv_path: Path | None = None
    batch_size: int = 64
    eval_batch_size: int = 64
    learning_rate: float = 1e-4
    epoch: int = 10
    grad_acc: int = 1
    early_stop: int | None = 10
    schedule_interval: int = 1
    scheduler_gamma: float = 0.9
    dropout: float = 0.1
    amp: bool = True
    """Half precision on a GPU; on a CPU all is computed in float32, as in the original."""
    include_zero_gene: Literal["all", "batch-wise"] = "all"
    data_length: int | None = 1536
    pretrained_model: bool = False
    pretrained_model_path: Path | None = None
    output_dir: Path | None = None
    perts_to_plot: tuple[str, ...] = ()
    seed: int = 42
    devices: int = 1
    accelerator: str = "auto"

    @classmethod
    def of(cls, given: Any) -> PredictorArguments:
        """Take those that a mapping or any object with attributes has.

        Raises
        ------
        ValueError
            For a key of a mapping that is none of them, nor one of the original's about the model or its messages.
        TypeError
            For a value of the wrong kind.
        """
        names = [field.name for field in fields(cls)]
        if isinstance(given, Mapping):
            found = {name: value for name, value in given.items() if name not in _NOT_OURS}
        else:
            found = {name: getattr(given, name) for name in names if hasattr(given, name)}
        return from_dict(cls, found)


class PerturbationPredictor:
    """Fine-tune DeepSC on a screen, score it and draw its predictions.

    Genes without a token take part under that of padding, as in the original, and are not scored.  Long cells lose genes
    drawn by seed, never perturbed ones.

    Parameters
    ----------
    args
        Anything with attributes of :class:`PredictorArguments`, or a mapping with such keys and no others.  Cells are read from
        ``data_path/data_name/perturb_processed.h5ad``, as GEARS leaves them, or ``data_path/data_name.h5ad``.
    fabric
        A Lightning Fabric, whose device and number of processes are taken; ``None`` for those of ``args``.
    model
        Any :class:`~scgpt_tools.models.DeepSCModel` or model of that family.
    adata
        Log-normalised cells with ``obs["condition"]``, in place of those on disk; never changed.

    Raises
    ------
    FileNotFoundError
        If there are no cells, or no table of genes.
    ValueError
        If no gene of the cells is in the table, or one to draw is not.
    """

    def __init__(self, args: Any, fabric: Any, model: DeepSCModel | CellModel, adata: AnnData | None = None) -> None:
        self.args = PredictorArguments.of(args)
        self.fabric = fabric
        self.adata = self._read_cells() if adata is None else adata.copy()
        self._genes = "gene_name" if "gene_name" in self.adata.var else None
        self.model = self._with_weights(model)
        names = [name for name in column_names(self.adata.var, self._genes) if name is not None]
        vocabulary = self.model.vocabulary
        self.matched = matching_report(names, dict.fromkeys((*vocabulary, *vocabulary.aliases), 1))
        if not self.matched["matched"]:
            raise ValueError(f"Expected genes of the table, found none of {len(names)}, such as {names[:3]}.")
        logger.info("Genes matched: %(matched)d of %(total)d.", self.matched)
        known = {name for name in names if name in vocabulary or name in vocabulary.aliases}
        unknown = [gene for pert in self.args.perts_to_plot for gene in condition_genes(pert) if gene not in known]
        if unknown:
            raise ValueError(f"Expected genes of the cells and of the table in `perts_to_plot`, found {unknown[:5]}.")
        if "split" not in self.adata.obs:
            pp.perturbation_split(self.adata, self.args.split, rng=1)
        self.output = as_path("output_dir", self.args.output_dir or f"save/perturb_{self.args.data_name}")
        self.tuned: CellModel | None = None
        """The model after :meth:`train` or :meth:`load`."""
        self._optimizer: dict[str, Any] | None = None

    def train(self) -> dict[str, float]:
        """Fine-tune, and write checkpoints and scores.

        After :meth:`load` the training starts from what was loaded, with its optimiser's moments; rate and epochs are
        those of the arguments.

        Returns
        -------
        Scores of the test conditions, as ``test_metrics.json`` of the output folder has them:
        ``checkpoints/epoch_n.pt`` and ``checkpoints/best_model.pt`` are beside it, with ``model``, ``optimizer`` and
        ``epoch`` in the original's names and order of parameters.
        """
        args, checkpoints = self.args, self.output / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        self.tuned = finetune(
            self.adata,
            self.model if self.tuned is None else self.tuned,
            task="perturb",
            genes=self._genes,
            include=args.include_zero_gene,
            unknown="pad",
            unmeasured="drop",
            length=args.data_length,
            dropout=args.dropout,
            epochs=args.epoch,
            batch_size=args.batch_size,
            accumulate=args.grad_acc,
            lr=args.learning_rate,
            schedule="step",
            step_factor=args.scheduler_gamma,
            step_epochs=args.schedule_interval,
            clip=1.0,
            patience=args.early_stop,
            monitor=_MONITOR,
            mode="max",
            rng=args.seed,
            precision="auto" if args.amp else "fp32",
            callbacks=[_saving(checkpoints, self._optimizer)],
            **self._devices(),
        )
        self._optimizer = None
        best = torch.load(checkpoints / f"epoch_{_best_epoch(self.tuned)}.pt", weights_only=True)
        replace_file(checkpoints / "best_model.pt", lambda aside: torch.save(best, aside))
        return self.evaluate()

    def load(self, path: str | PathLike[str]) -> None:
        """Take the weights of a checkpoint that :meth:`train` wrote, to use them or to train on.

        Parameters
        ----------
        path
            Such as ``checkpoints/best_model.pt``; a bare state dict has no state of an optimiser to go on with.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds other tensors than a trained model of this predictor has.
        """
        place, args = as_path("path", path), self.args
        if not place.is_file():
            raise FileNotFoundError(f"Expected a checkpoint at {str(place)!r}, found none.")
        given = read_contents(place).weights
        plain = perturbation_config(self.model)
        tokenizer = replace(
            plain.tokenizer,
            genes=args.include_zero_gene,
            length=args.data_length,
            overflow="sample",
            unknown="pad",
            unmeasured="drop",
        )
        tuned = perturbation_model(self.model, dropout=args.dropout, tokenizer=tokenizer)
        own = to_deepsc(tuned.state_dict(), tuned.config)
        wrong = sorted(own.keys() ^ given.keys())
        wrong = wrong or [name for name in own if own[name].shape != given[name].shape]
        if wrong:
            raise ValueError(
                f"Expected the tensors that `train()` of this model writes in {str(place)!r}, found {len(wrong)} missing, too "
                f"many or of another shape, such as {wrong[:3]}. Pass weights to start from as `pretrained_model_path`."
            )
        tuned.load_state_dict(from_deepsc(given, tuned.config)[0])
        held = torch.load(place, map_location="cpu", weights_only=True) if place.suffix != ".safetensors" else {}
        self._optimizer = held.get("optimizer")
        self.tuned = tuned.eval()

    def evaluate(self) -> dict[str, float]:
        """Score the test conditions and write ``test_metrics.json``, with means of each subgroup."""
        scores = tl.evaluate_perturbation(
            self.adata,
            {"model": self._trained},
            genes=self._genes,
            analyses=True,
            batch_size=self.args.eval_batch_size,
            rng=0,
        )
        own = scores.originals[scores.originals["method"] == "model"]
        # The original's names: scGPT's four correlations, and whatever GEARS has beside its own two.
        own = own[~own["metric"].isin(_TWICE)]
        own = own.assign(metric=own["metric"].astype(str).str.removeprefix("scgpt_").str.removeprefix("gears_"))
        found = {str(name): float(rows["value"].mean()) for name, rows in own.groupby("metric", observed=True)}
        for group in own["group"].dropna().unique():
            for name, rows in own[own["group"] == group].groupby("metric", observed=True):
                found[f"test_{group}_{name}"] = float(rows["value"].mean())
        text = json.dumps({name: value if np.isfinite(value) else None for name, value in found.items()}, indent=1)
        replace_file(self.output / "test_metrics.json", lambda aside: aside.write_text(text + "\n", encoding="utf-8"))
        return found

    def predict(
        self, pert_list: Sequence[Sequence[str]], pool_size: int | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Predict mean profiles.

        Parameters
        ----------
        pert_list
            Names of the genes of each perturbation.
        pool_size
            Controls to start from, drawn with replacement; ``None`` for each once.

        Returns
        -------
        (genes,) by the names of the genes joined by ``_``.
        """
        controls = np.flatnonzero(control_mask(read_conditions(self.adata, "condition")))
        if pool_size is not None:
            controls = as_generator(self.args.seed).choice(controls, pool_size)
        cells = self.adata[controls].copy()
        cells.obs_names_make_unique()
        found = {}
        for genes in pert_list:
            tl.predict_perturbation(
                cells, "+".join(genes), self._trained, genes=self._genes, batch_size=self.args.eval_batch_size
            )
            found["_".join(genes)] = np.asarray(cells.layers["predicted"]).mean(axis=0)
        return found

    def plot_predictions(self, perts: Sequence[str] | None = None) -> list[Path]:
        """Draw the genes that change most, to ``visualizations`` of the output folder.

        Parameters
        ----------
        perts
            Perturbations such as ``"SAMD1+ZBTB1"`` or ``"KCTD16+ctrl"``; ``None`` for those of the arguments.

        Returns
        -------
        The files.
        """
        folder = self.output / "visualizations"
        folder.mkdir(parents=True, exist_ok=True)
        cells, files = self.adata.copy(), []
        for pert in self.args.perts_to_plot if perts is None else perts:
            tl.predict_perturbation(cells, pert, self._trained, genes=self._genes)
            files.append(folder / f"{pert}.png")
            figure = pl.perturbation_de(cells, pert, figsize=(16.5, 4.5), return_fig=True, save=files[-1])
            plt.close(cast("Figure", figure))
        return files

    @property
    def _trained(self) -> CellModel:
        if self.tuned is None:
            raise ValueError("Expected a predictor after `train()` or `load()`, found one before it.")
        return self.tuned

    def _read_cells(self) -> AnnData:
        folder = as_path("data_path", self.args.data_path)
        places = [folder / self.args.data_name / name for name in _CELLS] + [folder / f"{self.args.data_name}.h5ad"]
        for place in places:
            if place.is_file():
                return ad.read_h5ad(place)
        raise FileNotFoundError(f"Expected cells at one of {', '.join(map(str, places))}, found none.")

    def _with_weights(self, model: DeepSCModel | CellModel) -> CellModel:
        """The network with its vocabulary and, if asked for, with the weights of a file."""
        if self.args.pretrained_model or self.args.pretrained_model_path is not None:
            if self.args.pretrained_model_path is None:
                raise ValueError("Expected `pretrained_model_path` with `pretrained_model`, found None.")
            if isinstance(model, CellModel):
                raise ValueError("Expected a DeepSCModel to load `pretrained_model_path` into, found a CellModel.")
            path = as_path("pretrained_model_path", self.args.pretrained_model_path)
            if not path.is_file():
                raise FileNotFoundError(f"Expected weights of DeepSC at {str(path)!r}, found none.")
            report = model.load_state_dict(read_contents(path).weights, strict=False)
            taken = set(model.state_dict()) - set(report.missing_keys)
            if not any(name.startswith(_LAYERS) for name in taken):
                raise ValueError(
                    f"Expected tensors of DeepSC's layers in {str(path)!r}, found none among such as "
                    f"{report.unexpected_keys[:3]}. Pass weights of a DeepSCModel."
                )
            logger.info("Not in %s: %s; not used of it: %s.", path, report.missing_keys, report.unexpected_keys)
        network = model.cell_model if isinstance(model, DeepSCModel) else model
        if network._vocabulary is not None:
            return network
        if self.args.csv_path is None:
            raise FileNotFoundError("Expected `csv_path`, the table of genes of the model, found None.")
        vocabulary = read_gene_table(self.args.csv_path, genes=network.config.n_tokens - 2)
        named = CellModel(network.config, vocabulary, name="DeepSC")
        named.load_state_dict(network.state_dict())
        return named

    def _devices(self) -> dict[str, Any]:
        if self.fabric is None:
            return {"accelerator": self.args.accelerator, "devices": self.args.devices}
        kind = torch.device(self.fabric.device).type
        return {"accelerator": "gpu" if kind == "cuda" else kind, "devices": self.fabric.world_size}


def _best_epoch(model: CellModel) -> int:
    """Number of the epoch whose weights a model has, counted from 1."""
    history = model.history
    monitored = None if history is None else history.get(_MONITOR)
    if monitored is None or monitored.isna().all():
        return 1 if history is None else len(history)
    return int(np.nanargmax(monitored.to_numpy(dtype=float))) + 1


def _saving(folder: Path, optimizer: dict[str, Any] | None) -> Any:
    """A callback that keeps the state of each epoch, and starts from that of an optimiser."""
    lightning = optional("lightning", extra="train")

    class Saving(lightning.Callback):  # type: ignore[name-defined]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            if optimizer is not None:
                load_optimizer(trainer.optimizers[0], module.model, optimizer)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero:
                number, model = trainer.current_epoch + 1, module.model
                weights = {name: tensor.cpu() for name, tensor in to_deepsc(model.state_dict(), model.config).items()}
                state = optimizer_to_deepsc(trainer.optimizers[0], model)
                content = {"model": weights, "optimizer": state, "epoch": number}
                replace_file(folder / f"epoch_{number}.pt", lambda aside: torch.save(content, aside))

    return Saving()


def deepsc_perturb(
    *,
    data_name: str,
    csv_path: str,
    data_path: str = "./data",
    split: str = "simulation",
    embedding_dim: int = 512,
    num_layers: int = 12,
    num_heads: int = 8,
    num_genes: int | None = None,
    num_bins: int = 5,
    attention_stream: int = 2,
    cross_attention_architecture: str = "A",
    dropout: float = 0.1,
    batch_size: int = 64,
    eval_batch_size: int = 64,
    learning_rate: float = 1e-4,
    epoch: int = 10,
    grad_acc: int = 1,
    early_stop: int = 10,
    schedule_interval: int = 1,
    scheduler_gamma: float = 0.9,
    include_zero_gene: Literal["all", "batch-wise"] = "all",
    data_length: int = 1536,
    pretrained_model: bool = False,
    pretrained_model_path: str | None = None,
    output_dir: str | None = None,
    perts_to_plot: str | None = None,
    seed: int = 42,
    devices: int = 1,
    accelerator: str = "auto",
    amp: bool = True,
) -> None:
    """Fine-tune DeepSC on a screen, score it on held-out perturbations and draw predictions.

    Parameters
    ----------
    data_name, data_path
        Cells at ``data_path/data_name/perturb_processed.h5ad`` or ``data_path/data_name.h5ad``.
    csv_path
        Table of genes with the columns ``feature_name`` and ``id``.
    split
        How to hold out perturbations where the cells have no ``split``, as in :func:`scgpt_tools.pp.perturbation_split`.
    embedding_dim, num_layers, num_heads, num_genes, num_bins, attention_stream, cross_attention_architecture, dropout
        Of the model; ``num_genes`` is that of the table unless given.
    batch_size, eval_batch_size, learning_rate, epoch, grad_acc, early_stop
        Of the training: cells at once, rate, epochs, minibatches a step and epochs without a better correlation.
    schedule_interval, scheduler_gamma
        Epochs between two steps of the rate, and their factor.
    include_zero_gene, data_length
        ``"all"`` genes or ``"batch-wise"`` those that some control expresses, and how many at most.
    pretrained_model, pretrained_model_path
        Start from the weights of a file.
    output_dir
        Where results go; by default ``save/perturb_`` and the name of the data.
    perts_to_plot
        Perturbations to draw, with commas between them, such as ``SAMD1+ZBTB1,KCTD16+ctrl``.
    seed
        Of the training.
    devices, accelerator
        What to train on.
    amp
        Half precision on a GPU.
    """
    given = dict(locals())
    check_arguments(deepsc_perturb, given)
    genes = len(read_gene_table(csv_path)) - 2 if num_genes is None else num_genes
    model = DeepSCModel(
        embedding_dim,
        genes,
        num_layers=num_layers,
        num_heads=num_heads,
        attn_dropout=dropout,
        ffn_dropout=dropout,
        num_bins=num_bins,
        enable_ce=False,
        gene_embedding_participate_til_layer=min(3, num_layers),
        attention_stream=attention_stream,
        cross_attention_architecture=cross_attention_architecture,
        generation="v1",
    )
    perts = [name.strip() for name in (perts_to_plot or "").split(",") if name.strip()]
    own = {field.name: given[field.name] for field in fields(PredictorArguments)}
    predictor = PerturbationPredictor(own | {"perts_to_plot": perts}, None, model)
    predictor.train()
    predictor.plot_predictions()
    logger.info("Wrote %s.", predictor.output)
