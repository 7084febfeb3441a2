"""scModelForge's files become settings of this package, every key of them."""

from __future__ import annotations

import warnings
from copy import deepcopy

import pytest
import yaml

from scgpt_tools import CellModel, cli
from scgpt_tools.cli import configs, scmodelforge, scmodelforge_kinds
from scgpt_tools.cli.scmodelforge_keys import KEYS
from scgpt_tools.models.families.scmodelforge import SPECIALS, scmodelforge_tokens
from scgpt_tools.models.families.scmodelforge import scmodelforge as encoder
from scgpt_tools.vocabulary import Vocabulary

TRAIN = """
data:
  source: local
  paths: [./data/pbmc_10k.h5ad]
  gene_vocab: human_protein_coding
  preprocessing: {normalize: library_size, target_sum: 10000, log1p: true}
tokenizer:
  strategy: rank_value
  max_genes: 2048
  prepend_cls: true
  masking: {mask_ratio: 0.15}
model:
  architecture: transformer_encoder
  hidden_dim: 512
  num_layers: 12
  num_heads: 8
  dropout: 0.1
  pretraining_task: masked_gene_prediction
training:
  batch_size: 64
  max_epochs: 10
  seed: 42
  num_gpus: 4
  precision: bf16-mixed
  optimizer: {name: adamw, lr: 1.0e-4, weight_decay: 0.01}
  scheduler: {name: cosine_warmup, warmup_steps: 2000}
  logger: csv
  wandb_project: scmodelforge
  checkpoint_dir: ./checkpoints
"""
EVALUATE = """
tokenizer: {strategy: rank_value, max_genes: 2048, prepend_cls: true}
model: {architecture: transformer_encoder, hidden_dim: 8, num_layers: 1, num_heads: 2}
eval:
  batch_size: 256
  benchmarks:
    - {name: linear_probe, dataset: test, params: {cell_type_key: cell_type, test_size: 0.2}}
    - {name: embedding_quality, dataset: test, params: {cell_type_key: cell_type, batch_key: batch}}
"""
TUNE = """
data: {source: local, paths: [./data/labeled_pbmc.h5ad]}
tokenizer: {strategy: rank_value, max_genes: 2048, prepend_cls: true}
model: {architecture: transformer_encoder, hidden_dim: 8, num_layers: 1, num_heads: 2}
training:
  batch_size: 32
  max_epochs: 5
  optimizer: {name: adamw, lr: 1.0e-5}
  checkpoint_dir: ./checkpoints_finetuned
finetune:
  label_key: cell_type
  freeze_backbone: false
  freeze_backbone_epochs: 2
  head: {task: classification, n_classes: null}
  backbone_lr: 1.0e-5
  head_lr: 1.0e-4
  lora: {enabled: false, rank: 8, alpha: 16}
"""
FILES = {"pretrain": TRAIN, "finetune": TUNE, "benchmark": EVALUATE}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    vocabulary = Vocabulary.from_genes(["CD3D", "NKG7"], SPECIALS)
    model = CellModel(encoder(vocabulary, dim=8, layers=1, heads=2), vocabulary)
    return str(model.save(tmp_path_factory.mktemp("models") / "model"))


def read(command, text, tmp_path, *words):
    (tmp_path / "config.yaml").write_text(text)
    return cli.COMMANDS[command].read(command, ["--config", str(tmp_path / "config.yaml"), *words])


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


# ------------------------------------------------------------------------------------------------- files as printed


@pytest.mark.parametrize("program", ["scgpt-tools", "scmodelforge"])
def test_the_file_for_training_is_understood(tmp_path, program):
    (tmp_path / "train.yaml").write_text(TRAIN)
    words = ["--config", str(tmp_path / "train.yaml"), "--model.num_layers", "2"]
    with pytest.warns(
        UserWarning, match=r"warmup_steps: 2000 .*2\.0% of the run.*num_gpus: 4 \(there are 0: one process on the CPU"
    ):
        config = cli.COMMANDS["pretrain"].read("train", words, program=program)["config"]
    assert config.data.paths == ("./data/pbmc_10k.h5ad",)
    assert (config.data.validation, config.data.rng) == (0.05, 42)
    assert config.vocabulary.name == "human_protein_coding"
    family = config.family
    assert (family.name, family.dim, family.layers, family.heads, family.dropout) == ("scmodelforge", 512, 2, 8, 0.1)
    assert family.pretraining_task == "masked_gene_prediction"
    assert config.tokenizer == scmodelforge_tokens("rank_value", length=2048)
    assert (config.corruption.name, config.corruption.ratio) == ("mask_genes", 0.15)
    fit = config.train
    assert (fit.batch_size, fit.epochs, fit.rng, fit.lr, fit.weight_decay) == (64, 10, 42, 1e-4, 0.01)
    assert (fit.precision, fit.schedule, fit.warmup) == ("bf16", "cosine", 0.02)
    assert [logger.kind for logger in config.loggers] == ["csv"]
    assert str(config.output) == str(fit.folder) == "checkpoints"


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_gpus_that_are_not_there_become_one_process_or_those_of_torchrun(tmp_path, checkpoint, command, monkeypatch):
    def devices(text, *words):
        given = read(command, text, tmp_path, *words, *(("--checkpoint", checkpoint) if command == "finetune" else ()))
        return given["config"].train.devices if command == "pretrain" else given["devices"]

    text = FILES[command]
    option = "--train.devices" if command == "pretrain" else "--devices"
    with pytest.warns(
        UserWarning, match=f"num_gpus: 2 .there are 0: one process on the CPU, or as many as {option} says"
    ):
        assert devices(text, "--training.num_gpus", "2") == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert devices(text, "--training.num_gpus", "2") == 2
    assert not any("num_gpus" in str(warning.message) for warning in caught)
    with pytest.warns(UserWarning, match="num_gpus: 4 .torchrun has started 2 processes here"):
        assert devices(text, "--training.num_gpus", "4") == 2


def test_the_file_for_benchmarks_is_understood(tmp_path, checkpoint):
    options = read("benchmark", EVALUATE, tmp_path, "--model", checkpoint, "--data", "cells.h5ad", "--output", "m.json")
    assert options["data"] == {"test": "cells.h5ad"}
    assert options["batch_size"] == 256
    assert options["benchmarks"] == [
        {"name": "linear_probe", "label_key": "cell_type", "dataset": "test", "test_size": 0.2},
        {"name": "embedding_quality", "batch_key": "batch", "dataset": "test", "label_key": "cell_type"},
    ]


def test_the_file_for_fine_tuning_is_understood(tmp_path, checkpoint):
    options = read("finetune", TUNE, tmp_path, "--checkpoint", checkpoint)
    assert options["input"] == "./data/labeled_pbmc.h5ad"
    assert (options["task"], options["label_key"], options["model"]) == ("annotate", "cell_type", checkpoint)
    assert (options["output"], options["folder"]) == ("./checkpoints_finetuned", "./checkpoints_finetuned")
    assert (options["lr"], options["head_lr"], options["epochs"], options["batch_size"]) == (1e-5, 1e-4, 5, 32)
    assert (options["freeze"], options["unfreeze_after"]) == ("backbone", 2)
    assert "lora" not in options


def test_a_file_that_describes_a_model_asks_for_it(tmp_path):
    with pytest.raises(ValueError, match="Expected --checkpoint or .* describes with '.*', found neither"):
        read("finetune", TUNE, tmp_path, "--model.num_layers=7")


@pytest.mark.parametrize("command", ["pretrain", "finetune", "benchmark"])
def test_an_option_that_does_not_exist_is_told_before_what_a_file_lacks(tmp_path, command):
    word, near = {"pretrain": ("--resum", "--resume"), "benchmark": ("--modle", "--model")}.get(
        command, ("--checkpont", None)
    )
    with pytest.raises(ValueError, match=f"Found no option of `{command}` named '{word}'.") as caught:
        read(command, FILES[command], tmp_path, word, "x")
    assert near is None or f"Did you mean '{near}'" in str(caught.value)


@pytest.mark.parametrize("section", ["training", "training.optimizer"])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_section_is_no_value(tmp_path, command, section):
    with pytest.raises(TypeError, match=f"Expected `{section}` to be a section, with settings such as `{section}"):
        read(command, FILES[command], tmp_path, f"--{section}", "adamw")


def test_a_model_that_is_another_than_the_file_says_is_named(tmp_path, checkpoint):
    with pytest.warns(UserWarning, match=r"model\.num_layers: 7 \(the checkpoint says, 1\)"):
        read("finetune", TUNE, tmp_path, "--checkpoint", checkpoint, "--model.num_layers=7")


def test_each_of_several_models_is_compared_with_the_file(tmp_path, checkpoint):
    words = ["--model", checkpoint, "--model", checkpoint, "--data", "cells.h5ad", "--model.num_layers=7"]
    with pytest.warns(UserWarning, match=r"model\.num_layers: 7 \(the checkpoint says, 1\)\."):
        assert read("benchmark", EVALUATE, tmp_path, *words)["model"] == [checkpoint, checkpoint]


def test_values_and_genes_of_the_checkpoint_count(tmp_path, checkpoint):
    said = (
        r"normalize: None \(the checkpoint says, 'library_size'\); data\.source: .*; "
        r"data\.preprocessing\.hvg_selection: 9 \(genes are those of the checkpoint\)"
    )
    words = ["--data.preprocessing.normalize", "null", "--data.preprocessing.log1p", "true"]
    words += ["--data.source", "cellxgene_census", "--data.preprocessing.hvg_selection", "9"]
    with pytest.warns(UserWarning, match=said):
        read("finetune", TUNE, tmp_path, "--checkpoint", checkpoint, *words)


def test_adapters_and_regression(tmp_path, checkpoint):
    words = ["--checkpoint", checkpoint, "--finetune.lora.enabled", "true", "--finetune.head.task", "regression"]
    with pytest.warns(
        UserWarning, match="freeze_backbone_epochs: 2 .beside adapters the backbone is frozen to the end"
    ):
        options = read("finetune", TUNE, tmp_path, *words, "--finetune.lora.target_modules", "[linear1]")
    assert not {"freeze", "unfreeze_after"} & set(options)
    assert options["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.05, "targets": ["expand"]}
    assert (options["task"], options["target_keys"]) == ("regress", ["cell_type"])


def test_own_settings_change_a_file_of_theirs(tmp_path):
    with pytest.warns(UserWarning, match="num_gpus"):
        config = read("pretrain", TRAIN, tmp_path, "--model.layers", "3", "--train.max_steps", "5")["config"]
    assert (config.family.layers, config.train.max_steps) == (3, 5)


def test_own_files_are_own_under_either_name(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {paths: [a.h5ad]}\nfamily: {layers: 2}")
    words = ["--config", str(tmp_path / "run.yaml")]
    assert cli.COMMANDS["pretrain"].read("train", words, program="scmodelforge")["config"].family.layers == 2


def test_what_stands_back_for_other_settings_is_named(tmp_path):
    words = ["--data.source", "cellxgene_census", "--training.num_gpus", "0", "--data.streaming", "true"]
    words += ["--training.sampling.strategy", "weighted"]
    said = r"data\.paths: .*\(cells are those of data\.census\); data\.streaming: True \(training\.sampling draws"
    with pytest.warns(UserWarning, match=said):
        data = read("pretrain", TRAIN, tmp_path, *words)["config"].data
    assert (data.paths, data.sampling, data.block) == ((), "balanced", 256)


def test_own_cells_of_a_census_are_no_file_of_theirs(tmp_path):
    text = "data: {census: {organism: homo_sapiens, filters: {tissue: blood}, version: '2025-01-30'}}\noutput: model"
    census = read("pretrain", text, tmp_path)["config"].data.census
    assert (census.filters, census.version) == ({"tissue": "blood"}, "2025-01-30")


def test_a_task_of_a_family_is_named_in_either_section(tmp_path):
    text = "data: {paths: [a.h5ad]}\nfamily: {name: scmodelforge}"
    for section in ("family", "model"):
        config = read("pretrain", text, tmp_path, f"--{section}.pretraining_task", "dual")["config"]
        assert config.family.pretraining_task == "dual"


# ---------------------------------------------------------------------------------------------------------- every key

OTHER = {
    "data.source": "cellxgene_census",
    "data.paths": ["other.h5ad"],
    "data.gene_vocab": "genes.json",
    "data.preprocessing.normalize": None,
    "data.census.filters": {"assay": "10x 3' v3"},
    "data.census.obs_columns": ["assay"],
    "data.multi_species.organisms": ["human", "rat"],
    "data.multi_species.canonical_organism": "mouse",
    "data.gene_selection.strategy": "most_expressed",
    "data.cloud.storage_options": {"anon": True},
    "tokenizer.strategy": "binned_expression",
    "tokenizer.binning_method": "quantile",
    "model.architecture": "masked_autoencoder",
    "model.pooling": "mean",
    "model.activation": "relu",
    "model.pretraining_task": "dual",
    "training.strategy": "fsdp",
    "training.precision": "32-true",
    "training.optimizer.name": "adam",
    "training.scheduler.name": "linear",
    "training.logger": "tensorboard",
    "training.sampling.strategy": "weighted",
    "training.fsdp.sharding_strategy": "NO_SHARD",
    "eval.benchmarks": ["linear_probe"],
    "finetune.head.task": "regression",
    "finetune.lora.target_modules": ["linear1"],
    "finetune.lora.bias": "all",
}
# A key that counts where another is set.
WITH = {
    "data.census": {"data.source": "cellxgene_census"},
    "data.multi_species": {"data.multi_species.enabled": True},
    "data.shards": {"data.shards.enabled": True, "data.shards.shard_dir": "shards"},
    "data.gene_selection.n_genes": {"data.gene_selection.strategy": "most_expressed"},
    "data.streaming_": {"data.streaming": True},
    "tokenizer.n_bins": {"tokenizer.strategy": "binned_expression"},
    "tokenizer.binning_method": {"tokenizer.strategy": "binned_expression"},
    "model.decoder": {"model.architecture": "masked_autoencoder"},
    "model.gene_loss_weight": {
        "model.architecture": "autoregressive_transformer",
        "tokenizer.strategy": "binned_expression",
    },
    "model.expression_loss_weight": {
        "model.architecture": "autoregressive_transformer",
        "tokenizer.strategy": "binned_expression",
    },
    "training.sampling": {"training.sampling.strategy": "weighted"},
    "training.fsdp": {"training.strategy": "fsdp"},
    "eval.every_n_epochs": {"eval.benchmarks": ["linear_probe"]},
    "training.wandb_project": {"training.logger": "csv"},
    "training.run_name": {"training.logger": "csv"},
    "finetune.lora": {"finetune.lora.enabled": True},
    "finetune.head.output_dim": {"finetune.head.task": "regression"},
}
# `zoo` has no counterpart: its commands are refused.
FLIPPED = [key for key in KEYS if not key.startswith("zoo.")]


def other_value(key):
    value = KEYS[key]
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 3
    return (
        3
        if value is None
        and key.endswith(("_dim", "_heads", "n_genes", "_lr", "_gpus", "hvg_selection", "_classes", "_size"))
        else "another"
    )


def outcome(command, values):
    """What a file comes to: settings, what is said of it, or why it is refused."""
    base = {"pretrain": {"data.paths": ["a.h5ad"]}, "finetune": {"data.paths": ["a.h5ad"]}, "benchmark": {}}[command]
    settings: dict = {}
    for key, value in {**base, **values}.items():
        settings = configs.changed(settings, tuple(key.split(".")), value)
    given = configs.Given(words=["--data", "cells.h5ad"], settings=deepcopy(settings))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = scmodelforge.translated(command, settings, given)
        except ValueError as error:
            return str(error)
    return found, given.words, [str(warning.message) for warning in said]


@pytest.mark.parametrize("key", FLIPPED)
def test_every_key_has_an_effect_or_is_named(key):
    command = {"finetune": "finetune"}.get(key.partition(".")[0], "pretrain")
    if key == "eval.batch_size":
        command = "benchmark"
    beside = next((values for start, values in WITH.items() if key.startswith(start)), {})
    beside = {name: value for name, value in beside.items() if name != key or value != other_value(key)}
    before, after = outcome(command, beside), outcome(command, {**beside, key: other_value(key)})
    assert not isinstance(before, str), before
    assert after != before
    if isinstance(after, tuple) and after[0] == before[0] and after[1] == before[1]:
        assert key in " ".join(after[2]), "without effect, and not named"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.hiden_dim", "3"), "Did you mean 'model.hidden_dim'"),
        (("--training.optimiser.lr", "3"), "Did you mean 'training.optimizer.lr'"),
        (("--tokenizer.strategy", "gene_embedding"), "scGenePT"),
        (("--data.perturbation.enabled", "true"), "finetune --task perturb"),
        (("--training.scheduler.name", "cosine_warmpu"), "Did you mean 'cosine_warmup'"),
        (("--model.n_bins", "7"), "tokenizer.n_bins"),
        (("--training.scheduler.total_steps", "1000"), "warmup_steps` below .*, found 2000 of 1000"),
        (("--training.scheduler.total_steps", "0"), "warmup_steps` below"),
    ],
)
def test_keys_and_values_that_cannot_be_are_refused(tmp_path, words, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("ignore")
        read("pretrain", TRAIN, tmp_path, *words)


def wrong_values(key):
    """Values of other kinds than a key's, those of no kind at all included."""
    value = KEYS[key]
    kind = scmodelforge_kinds._NULL[key] if value is None else type(value)
    if value is not None and key not in scmodelforge_kinds._OR_NULL:
        yield None
    if kind is not list:
        yield [3]
    if kind is not bool:
        yield True
    if kind in (int, float, list, dict, bool):
        yield "some"
    if kind in (int, list, dict, bool):
        yield 1.5


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_kind_is_refused_by_the_name_of_its_key(key):
    for command in ("pretrain", "finetune"):
        for value in wrong_values(key):
            settings = configs.changed({"data": {"paths": ["a.h5ad"]}}, tuple(key.split(".")), value)
            with pytest.raises(TypeError, match=rf"Expected `{key}` to be .*, found .*\."):
                scmodelforge.translated(command, settings, configs.Given())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--training.optimizer", "adamw"),
            "`training.optimizer` to be a section, with settings such as `training.opt",
        ),
        (("--training.scheduler", "3"), "`training.scheduler` to be a section or null, .*, found 3"),
        (("--data.preprocessing", "3"), "`data.preprocessing` to be a section"),
        (("--training.optimizer", "null"), "`training.optimizer` to be a section"),
        (("--eval.benchmarks", "linear_probe"), "`eval.benchmarks` to be a list"),
        (("--eval.benchmarks", "[3]"), "every entry of `eval.benchmarks` to be a name, or a mapping"),
        (("--eval.benchmarks", "[{name: linear_probe, params: 3}]"), "`params` of the benchmark 'linear_probe'"),
        (("--data.streaming_chunk_size", "0"), "`data.streaming_chunk_size` to be at least 1"),
        (("--training.strategy", "dpp"), "`training.strategy` to be one of 'ddp'"),
        (("--model.architecture", "masked_autoencoder", "--model.pretraining_task", "foo"), "`model.pretraining_task`"),
        (("--data.shards.enabled", "true"), "`data.shards.shard_dir`, the folder of shards"),
        (("--training.num_gpus", "-2"), "-1 for all, found -2"),
        (("--data.layr", "counts"), "Did you mean 'data.layer'"),
    ],
)
def test_sections_and_lists_that_cannot_be_are_refused(tmp_path, words, message):
    with warnings.catch_warnings(), pytest.raises((ValueError, TypeError), match=message):
        warnings.simplefilter("ignore")
        read("pretrain", TRAIN, tmp_path, *words)


def test_numbers_and_dates_are_texts_where_texts_are_meant(tmp_path):
    words = ["--training.run_name", "7", "--training.precision", "32", "--data.source", "cellxgene_census"]
    words += ["--data.census.census_version", "2024-07-01", "--data.census.filters.assay", "10x 3' v3"]
    with pytest.warns(UserWarning, match="num_gpus"):
        config = read("pretrain", TRAIN, tmp_path, *words)["config"]
    assert (config.loggers[0].name, config.train.precision) == ("7", "fp32")
    assert (config.data.census.version, config.data.census.filters) == ("2024-07-01", {"assay": "10x 3' v3"})


def test_a_wrong_key_of_a_file_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"'training\.max_epoch'\. Did you mean 'training\.max_epochs'"):
        read("pretrain", TRAIN.replace("max_epochs", "max_epoch"), tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("zoo", "list"),
        ("benchmark", "--external-model", "geneformer", "--data", "a.h5ad"),
        ("export", "--checkpoint", "a.ckpt", "--output", "b", "--no-safetensors"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(words, capsys):
    assert cli.main(words, program="scmodelforge") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"scmodelforge {words[0]}: error: Expected ")


def test_switched_off_sections(tmp_path):
    text = yaml.safe_load(TRAIN)
    text["training"] |= {"scheduler": None, "fsdp": None}
    with pytest.warns(UserWarning, match="num_gpus"):
        assert read("pretrain", yaml.safe_dump(text), tmp_path)["config"].train.schedule == "constant"
    with pytest.warns(UserWarning, match="num_gpus"):
        config = read("pretrain", TRAIN, tmp_path, "--training.scheduler", "null")["config"]
    assert config.train.schedule == "constant"
