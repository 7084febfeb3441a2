"""The table of commands."""

from __future__ import annotations

from scgpt_tools.cli.command import (
    Command,
    EmbedCommand,
    IndexCommand,
    MapCommand,
    NewTableCommand,
    TableCommand,
    TaskCommand,
)
from scgpt_tools.cli.training import FinetuneCommand, PretrainCommand

COMMANDS: dict[str, Command] = {
    "embed": EmbedCommand("scgpt_tools.tl:embed", "embed cells with a model", takes_mudata=True),
    "embed-genes": TableCommand("scgpt_tools.tl:embed_genes", "look up a model's embedding of each gene"),
    "annotate": TableCommand("scgpt_tools.tl:annotate", "name cell types with a model that was fine-tuned to"),
    "gene-classifier": Command(
        "scgpt_tools.cli.finetuning:gene_classifier",
        "fit logistic regression on genes, to name cell types beside a model",
    ),
    "index": IndexCommand("scgpt_tools.tl:index_store", "index annotated cells to map others to"),
    "map": MapCommand(
        "scgpt_tools.tl:map_reference", "name cell types by the nearest cells of a reference", embeddings=True
    ),
    "knockout": NewTableCommand(
        "scgpt_tools.tl:knockout",
        "change one gene at a time in cells, without a screen",
        shown="scgpt_tools.get:knockout",
    ),
    "predict": TaskCommand(
        "scgpt_tools.cli.predicting:choose_prediction",
        "predict what a model was fine-tuned for",
        functions={
            "annotate": "scgpt_tools.tl:annotate",
            "regress": "scgpt_tools.tl:predict",
            "perturb": "scgpt_tools.tl:predict_perturbation",
            "impute": "scgpt_tools.tl:impute",
        },
        tables=True,
    ),
    "evaluate": TaskCommand(
        "scgpt_tools.cli.predicting:choose_evaluation",
        "score predictions or an embedding",
        functions={
            "annotate": "scgpt_tools.cli.predicting:evaluate_annotation",
            "perturb": "scgpt_tools.cli.predicting:evaluate_perturbation",
            "embedding": "scgpt_tools.cli.predicting:evaluate_embedding",
        },
    ),
    "benchmark": Command("scgpt_tools.cli.predicting:benchmark", "ask several models the same questions"),
    "pretrain": PretrainCommand("scgpt_tools.train.pretrain:pretrain", "train a model from scratch"),
    "finetune": FinetuneCommand("scgpt_tools.train.finetune:finetune", "train a model further, for a task"),
    "deepsc-perturb": Command("scgpt_tools.deepsc:deepsc_perturb", "fine-tune DeepSC on a screen, score and draw it"),
    "preprocess": Command("scgpt_tools.cli.files:preprocess", "filter, normalise, choose genes and bin"),
    "tokenize": TableCommand("scgpt_tools.pp:tokenize", "bin each cell's expressed genes as a model does"),
    "shard": Command("scgpt_tools.cli.files:shard", "write cells as shards"),
    "export": Command("scgpt_tools.cli.files:export", "write a model for the original of its family"),
    "push": Command("scgpt_tools.cli.files:push", "upload a model to the Hugging Face Hub"),
    "models": Command("scgpt_tools.cli.about:models", "list the models that can be loaded by name"),
    "demo": Command("scgpt_tools.cli.about:demo", "embed bundled cells with the bundled model, offline"),
    "info": Command("scgpt_tools.cli.about:info", "show versions, devices and settings"),
}
OTHER_NAMES = {"train": "pretrain"}
"""Commands by a second name."""
