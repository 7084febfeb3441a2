"""Files of settings, and words that change one of them."""

from __future__ import annotations

import pytest

from scgpt_tools import cli
from scgpt_tools.cli import COMMANDS, configs, dialects


def test_settings_are_taken_out_of_a_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {paths: [a.h5ad]}\ntrain: {lr: 1e-3}")
    words = [
        "in.h5ad",
        "--batch-size=4",
        "--config",
        str(tmp_path / "run.yaml"),
        "--train.weight-decay",
        "0.1",
        "-o",
        "x",
    ]
    given = configs.divide([*words, "--objectives=[{name: masked_expression}]"], {"objectives"})
    assert given.words == ["in.h5ad", "--batch_size=4", "-o", "x"]
    assert given.settings == {"data": {"paths": ["a.h5ad"]}, "train": {"lr": 1e-3}}
    assert given.changes == [
        (("train", "weight_decay"), 0.1),
        (("objectives",), [{"name": "masked_expression"}]),
    ]


def test_later_files_count_more():
    first, second = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}
    assert configs.merged(first, second) == {"a": {"b": 1, "c": [2]}, "d": {"e": 1}}
    assert first == {"a": {"b": 1, "c": [1]}, "d": 1}


def test_one_value_is_changed():
    assert configs.changed({"a": {"b": 1}}, ("a", "c", "d"), 2) == {"a": {"b": 1, "c": {"d": 2}}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.lr"], "Expected a value behind --train.lr"),
        (["--train.lr", "[1"], "in the words of YAML"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_words_without_a_value_are_refused(words, message):
    with pytest.raises((ValueError, OSError), match=message):
        configs.divide(words)


def test_a_file_of_a_list_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("- a")
    with pytest.raises(TypeError, match="settings by name, found list"):
        configs.read_file(str(tmp_path / "run.yaml"))


def test_options_of_others_become_ours():
    words = ["--dataset", "norman", "--num_epochs=3", "--rnd_seed", "1"]
    known = {"input", "epochs", "rng"}
    assert dialects.in_our_words("finetune", words, known) == ["norman", "--epochs=3", "--rng", "1"]
    assert dialects.in_our_words("embed", ["--dataset", "x"], {"dataset"}) == ["--dataset", "x"]
    assert dialects.in_our_words("finetune", ["--device=cuda:0"], known) == ["--accelerator=cuda", "--devices=[0]"]
    assert dialects.in_our_words("finetune", ["--device", "cpu", "x"], known) == ["--accelerator=cpu", "x"]
    assert dialects.in_our_words("embed", ["--device", "cpu"], {"device"}) == ["--device", "cpu"]
    with pytest.warns(UserWarning, match="--eval-batch-size 64 is left out: validation takes"):
        assert dialects.in_our_words("finetune", ["--eval_batch_size", "64", "--rng", "1"], known) == ["--rng", "1"]


def test_a_file_gives_options_and_the_command_line_counts_more(tmp_path):
    (tmp_path / "embed.yaml").write_text(
        "input: in.h5ad\noutput: out.h5ad\nmodel: scgpt-demo\nbatch_size: 8\npooling: mean"
    )
    words = ["--config", str(tmp_path / "embed.yaml"), "--batch_size", "4"]
    options = cli.COMMANDS["embed"].read("embed", words)
    assert (options["input"], options["batch_size"], options["pooling"]) == ("in.h5ad", 4, "mean")


def test_options_of_a_file_that_do_not_exist_are_refused(tmp_path, capsys):
    (tmp_path / "embed.yaml").write_text("batch_sise: 8")
    assert cli.main(["embed", "in.h5ad", "-o", "out.h5ad", "--config", str(tmp_path / "embed.yaml")]) == 2
    assert "Did you mean 'batch_size'" in capsys.readouterr().err


def test_options_that_do_not_exist_are_refused_with_the_nearest(capsys):
    assert cli.main(["embed", "in.h5ad", "-o", "out.h5ad", "--batch-sise", "8"]) == 2
    assert "Did you mean '--batch_size'" in capsys.readouterr().err


def test_print_config_shows_what_would_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["embed", "in.h5ad", "-o", "out.h5ad", "--print-config"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    (tmp_path / "embed.yaml").write_text(shown)
    assert "batch_size: 64" in shown
    again = cli.COMMANDS["embed"].read("embed", ["--config", str(tmp_path / "embed.yaml")])
    assert again == cli.COMMANDS["embed"].read("embed", ["in.h5ad", "-o", "out.h5ad"])


def test_what_is_shown_of_a_benchmark_is_the_same_benchmark(tmp_path, capsys, recwarn):
    words = ["--model", "scgpt-demo", "--data", "in.h5ad"]
    with pytest.raises(SystemExit):
        cli.main(["benchmark", *words, "--print_config"])
    (tmp_path / "benchmark.yaml").write_text(capsys.readouterr().out)
    options = cli.COMMANDS["benchmark"].read("benchmark", ["--config", str(tmp_path / "benchmark.yaml")])
    assert (options["model"], options["data"], options["benchmarks"]) == ("scgpt-demo", "in.h5ad", "linear_probe")
    assert not recwarn.list


@pytest.fixture
def run_file(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {paths: [in.h5ad]}\nfamily: {dim: 8, heads: 2}")
    return str(tmp_path / "run.yaml")


def read(*words):
    return cli.COMMANDS["pretrain"].read("pretrain", words)["config"]


def test_settings_of_pretraining_are_changed_one_by_one(run_file):
    config = read(
        "--config",
        run_file,
        "--model.layers",
        "3",
        "--train.lr=1e-3",
        "--corruption",
        "{ratio: 0.3, name: mask_values}",
    )
    assert (config.family.dim, config.family.layers, config.train.lr) == (8, 3, 1e-3)
    assert config.corruption.ratio == 0.3


def test_pretraining_needs_no_file():
    assert read("--data.paths", "[a.h5ad]", "--family.layers", "2").family.layers == 2


def test_what_print_config_shows_is_the_same_configuration(run_file, tmp_path, capsys):
    words = ["--config", run_file, "--train.epochs", "3"]
    with pytest.raises(SystemExit):
        read(*words, "--print_config")
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert read("--config", str(tmp_path / "shown.yaml")) == read(*words)


def test_resume_names_the_checkpoint(run_file, tmp_path):
    (tmp_path / "last.ckpt").touch()
    config = read("--config", run_file, "--resume", str(tmp_path / "last.ckpt"))
    assert config.train.resume
    assert config.train.folder == tmp_path
    assert read("--config", run_file, "--resume").train.resume
    assert not read("--config", run_file).train.resume


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train.epoch", "3"), "Did you mean 'epochs'"),
        (("--famly.layers", "3"), "Did you mean 'family'"),
        (("--resume", "absent/last.ckpt"), "found none"),
        (("--overwritte",), "Did you mean '--overwrite'"),
    ],
)
def test_settings_that_cannot_be_are_refused(run_file, words, message):
    with pytest.raises((ValueError, OSError), match=message):
        read("--config", run_file, *words)


def test_only_the_last_checkpoint_is_gone_on_from(run_file, tmp_path):
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(ValueError, match=r"Expected last\.ckpt"):
        read("--config", run_file, "--resume", str(tmp_path / "best.ckpt"))


@pytest.mark.parametrize("words", [("--model", "a", "--model=b"), ("--model", "[a]", "--model", "b")])
def test_models_that_are_named_one_by_one_are_a_list(words):
    read = COMMANDS["annotate"].read("annotate", ["cells.h5ad", *words, "-o", "out.h5ad"])
    assert read["model"] == ["a", "b"]
    read = COMMANDS["benchmark"].read("benchmark", [*words, "--data", "x.h5ad", "--data", "y.h5ad"])
    assert (read["model"], read["data"]) == (["a", "b"], ["x.h5ad", "y.h5ad"])


def test_two_models_are_refused_where_one_is_asked():
    with pytest.raises(ValueError, match="Expected --model once, found it 2 times: 'a', 'b'"):
        COMMANDS["embed"].read("embed", ["cells.h5ad", "--model", "a", "--model", "b", "-o", "out.h5ad"])
