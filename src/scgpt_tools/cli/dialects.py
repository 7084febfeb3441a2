"""Options by the names that programs of others have for them, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tools._warnings import warn_user

if TYPE_CHECKING:
    from collections.abc import Collection

# scModelForge's, and those of scGenePT's training script.
_SPELLINGS: dict[str, dict[str, str]] = {
    "finetune": {
        "dataset": "input",
        "checkpoint": "model",
        "split": "validation",
        "num_epochs": "epochs",
        "rnd_seed": "rng",
        "max_seq_len": "length",
        "schedule_interval_lr": "step_epochs",
        "early_stop": "patience",
        "pretrained_model_dir": "model",
        "outputs_dir": "output",
    },
    "export": {"checkpoint": "model", "gene_vocab": "vocabulary"},
    "push": {"model_dir": "model", "repo_id": "repository", "commit_message": "message"},
    "shard": {"output_dir": "output", "gene_vocab": "model"},
    "preprocess": {"hvg": "n_top_genes"},
}


# Options of theirs that nothing here depends on, and why.
_SETTLED: dict[str, dict[str, str]] = {
    "finetune": {
        "eval_batch_size": "validation takes minibatches of --batch_size",
        "log_interval": "the loss of every step is shown while training goes on",
    },
}


def in_our_words(command: str, words: list[str], known: Collection[str]) -> list[str]:
    """Options of a command line in this package's words; what is an option of its own stays."""
    spellings = {name: ours for name, ours in _SPELLINGS.get(command, {}).items() if name not in known}
    settled = {name: why for name, why in _SETTLED.get(command, {}).items() if name not in known}
    devices = command == "finetune" and "device" not in known
    found = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            found.append(word)
        elif name in settled:
            value = value if equals else next(rest, "")
            warn_user(f"--{name.replace('_', '-')} {value} is left out: {settled[name]}.")
        elif name == "device" and devices:
            found += _device(value if equals else next(rest, ""))
        else:
            found.append(f"--{spellings.get(name, name)}{equals}{value}")
    return _positional(found) if "input" in known else found


def _device(name: str) -> list[str]:
    """Torch's name of a device, ``cuda:0``, as options of training."""
    kind, _, number = name.partition(":")
    return [f"--accelerator={kind}", *([f"--devices=[{number}]"] if number else [])]


def _positional(words: list[str]) -> list[str]:
    """``--input cells.h5ad`` as the word alone, which comes first."""
    found, first = [], []
    rest = iter(words)
    for word in rest:
        if word == "--input":
            first += [value for value in (next(rest, None),) if value is not None]
        elif word.startswith("--input="):
            first.append(word.removeprefix("--input="))
        else:
            found.append(word)
    return [*first, *found]
