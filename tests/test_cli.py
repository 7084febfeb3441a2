"""The command line: the functions' results in files, and one line for a user's error."""

from __future__ import annotations

import inspect
import json
import logging
import re
import select
import signal
import subprocess
import sys
import time
import warnings

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import torch
import zarr

import scgpt_tools as sct
from mudatas import make_base, make_mudata, without_pulling
from scgpt_tools import _console, cli, settings
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.tokens.perturbations import FLAGS
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

HEAVY = ("anndata", "lightning", "matplotlib", "numba", "numpy", "pandas", "scanpy", "torch")
# Tables come from files, and other parameters are objects.
NOT_FROM_A_SHELL = {"adata", "query", "sources", "options", "copy", "callbacks", "loggers"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Folder of a small model that knows two thirds of the genes of ``adata``."""
    vocabulary = Vocabulary.from_genes([f"GENE{i}" for i in range(30) if i % 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
    return str(small.save(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def h5ad(adata, tmp_path):
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


@pytest.fixture
def expected(adata, model):
    """What the function writes to a table in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sct.tl.embed(adata, model, copy=True, show_progress=False)


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def process(*words: object, code: str | None = None, **options) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "scgpt_tools.cli"]
    return subprocess.run(
        [sys.executable, *command, *map(str, words)], capture_output=True, text=True, check=False, **options
    )


# ----------------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands():
    done = process("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"  {name}" in done.stdout for name in cli.COMMANDS)


def test_help_imports_nothing_heavy():
    code = f"import sys; from scgpt_tools import cli; cli.main(['-h']); print([m for m in {HEAVY} if m in sys.modules])"
    assert process(code=code).stdout.splitlines()[-1] == "[]"


def test_without_a_command_help_goes_to_standard_error(capsys):
    assert run() == 2
    assert "commands:" in capsys.readouterr().err


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"scgpt-tools {sct.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_describes_every_option(name, capsys):
    command = cli.COMMANDS[name]
    with pytest.raises(SystemExit) as done:
        run(name, "--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r":\w+:`|``|\{\w+\}\n", text), "marks of reStructuredText are left"
    parser = command.parser(name)
    assert all(action.help for action in parser._actions)
    taken = set(inspect.signature(command.resolve()).parameters) - NOT_FROM_A_SHELL
    assert taken <= {action.dest for action in parser._actions}


# ----------------------------------------------------------------------------------------------------------- tables


def test_the_demo_needs_no_options():
    options = cli.COMMANDS["demo"].parser("demo").parse_args([])
    assert options.output == "demo_output"
    assert options.model == "scgpt-demo"


def test_embed_h5ad(h5ad, model, expected, tmp_path):
    before = h5ad.read_bytes()
    done = process("embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Wrote" in done.stderr
    written = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(written.obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    assert written.uns["X_scGPT"] == expected.uns["X_scGPT"]
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(written.obs, expected.obs)
    assert h5ad.read_bytes() == before


@pytest.mark.parametrize("version", [2, 3])
def test_embed_zarr(adata, model, expected, tmp_path, version):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        ad.io.write_elem(zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=version), "/", adata)
    done = process("embed", tmp_path / "in.zarr", "--model", model, "-o", tmp_path / "out.zarr")
    assert done.returncode == 0, done.stderr
    written = ad.io.read_elem(zarr.open_group(tmp_path / "out.zarr", mode="r"))
    np.testing.assert_allclose(written.obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    np.testing.assert_array_equal(written.X.toarray(), adata.X.toarray())


def test_embed_h5mu(adata, model, expected, tmp_path):
    protein = ad.AnnData(np.eye(adata.n_obs, 2, dtype=np.float32), obs=pd.DataFrame(index=adata.obs_names))
    with without_pulling():
        md.MuData({"rna": adata, "protein": protein}).write(tmp_path / "in.h5mu")
    words = ("embed", tmp_path / "in.h5mu", "--model", model, "-o", tmp_path / "out.h5mu")
    refused = process(*words)
    assert refused.returncode == 2
    assert "modality" in refused.stderr
    assert not (tmp_path / "out.h5mu").exists()
    done = process(*words, "--modality", "rna")
    assert done.returncode == 0, done.stderr
    with without_pulling():
        written = md.read_h5mu(tmp_path / "out.h5mu")
    np.testing.assert_allclose(written["rna"].obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    np.testing.assert_array_equal(written["protein"].X, protein.X)


def test_embed_by_chunks(h5ad, model, expected, tmp_path):
    """An output in zarr of another input holds the embedding alone; repeated, the command has nothing left to do."""
    out = tmp_path / "out.zarr"
    for _ in range(2):
        assert run("embed", h5ad, "--model", model, "-o", out, "--chunk", 5) == 0
    written = ad.read_zarr(out)
    np.testing.assert_allclose(written.obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    assert written.uns["X_scGPT"] == expected.uns["X_scGPT"]
    assert written.n_vars == 0
    assert zarr.open_group(out, mode="r")["obsm/X_scGPT"].chunks == (5, 8)


@pytest.mark.parametrize("how", ["options", "torchrun", "srun"])
def test_embed_by_several_processes(adata, model, expected, tmp_path, monkeypatch, capsys, how):
    """From zarr, too, where one process would write a copy of the input."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        ad.io.write_elem(zarr.open_group(tmp_path / "in.zarr", mode="w"), "/", adata)
    out, names = tmp_path / "out.zarr", {"torchrun": ("RANK", "WORLD_SIZE")}
    for rank in range(2):
        words = ["embed", tmp_path / "in.zarr", "--model", model, "-o", out, "--chunk", 5]
        if how == "options":
            words += ["--rank", rank, "--processes", 2]
        else:
            for name, value in zip(names.get(how, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")), (rank, 2), strict=True):
                monkeypatch.setenv(name, str(value))
        assert run(*words) == 0
        assert out.exists() == (rank == 1)
        assert ("All 12 cells are in" if rank else "Process 0 of 2 has finished") in capsys.readouterr().err
    np.testing.assert_allclose(ad.read_zarr(out).obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)


def test_by_chunks_of_a_zarr_on_demand(adata, model, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        ad.io.write_elem(zarr.open_group(tmp_path / "in.zarr", mode="w"), "/", adata)
    words = ("embed", tmp_path / "in.zarr", "--model", model, "-o", tmp_path / "out.zarr")
    assert run(*words, "--by-chunks") == 0
    assert ad.read_zarr(tmp_path / "out.zarr").n_vars == 0
    assert run(*words) == 2, "the copy would take its place"


def test_options_reach_the_function(h5ad, adata, model, tmp_path):
    out = tmp_path / "out.h5ad"
    assert run("embed", h5ad, "--model", model, "-o", out, "--layer=counts", "--batch-size", 5, "--pooling", "mean",
               "--normalize", "false", "--key-added", "X_mean", "--rng=3") == 0  # fmt: skip
    written = ad.read_h5ad(out)
    params = written.uns["X_mean"]["params"]
    assert (params["layer"], params["pooling"], params["normalize"], params["rng"]) == ("counts", "mean", False, 3)
    expected = sct.tl.embed(adata, model, pooling="mean", normalize=False, rng=3, show_progress=False, copy=True)
    np.testing.assert_allclose(written.obsm["X_mean"], expected.obsm["X_scGPT"], atol=1e-6)


def test_tokenize_and_embed_what_it_wrote(h5ad, model, expected, tmp_path):
    tokenized, out = tmp_path / "tokenized.h5ad", tmp_path / "out.h5ad"
    assert run("tokenize", h5ad, "--model", model, "-o", tokenized) == 0
    bins = ad.read_h5ad(tokenized)
    assert bins.layers["X_binned"].dtype == np.uint8
    assert {"X_binned_token_id"} <= set(bins.var)
    assert {"X_binned_n_tokens"} <= set(bins.obs)
    assert run("embed", tokenized, "--model", model, "-o", out, "--tokens", "X_binned") == 0
    np.testing.assert_allclose(ad.read_h5ad(out).obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)


def test_embed_genes(h5ad, model, tmp_path):
    assert run("embed-genes", h5ad, "--model", model, "-o", tmp_path / "out.h5ad") == 0
    vectors = ad.read_h5ad(tmp_path / "out.h5ad").varm["X_scGPT_genes"]
    np.testing.assert_array_equal(np.isnan(vectors).all(axis=1), [i % 3 == 0 for i in range(30)])


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_aliases_from_a_file(h5ad, adata, model, tmp_path, suffix, separator):
    """One gene is called NA, which is a name here."""
    adata.var_names = ["GENE0", "NA", "old2", *adata.var_names[3:]]
    adata.write_h5ad(h5ad)
    table = tmp_path / f"aliases{suffix}"
    table.write_text("\n".join(separator.join(pair) for pair in [("old", "new"), ("NA", "GENE1"), ("old2", "GENE2")]))
    assert run("embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad", "--aliases", table) == 0
    genes = ad.read_h5ad(tmp_path / "out.h5ad").uns["X_scGPT"]["genes"]
    assert genes["n_alias"] == 2


@pytest.mark.parametrize("how", ["column", "file"])
def test_symbols_from_a_column_or_a_file(h5ad, adata, model, tmp_path, how):
    ids = [f"ENSG{i:011}" for i in range(30)]
    symbols = pd.Series(list(adata.var_names), index=ids, name="symbol")
    adata.var_names = ids
    adata.var["upper"] = symbols
    adata.write_h5ad(h5ad)
    symbols.to_csv(tmp_path / "symbols.csv", index_label="id")
    given = "upper" if how == "column" else tmp_path / "symbols.csv"
    assert run("embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad", "--symbols", given) == 0
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["X_scGPT"]["genes"]["n_ensembl"] == 20


# ----------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_layer_is_one_line(h5ad, model, tmp_path):
    done = process("embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad", "--layer", "count")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if "error" in line)
    assert line.startswith("scgpt-tools embed: error: Found no key in `layers`: 'count'. Did you mean 'counts'?")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [h5ad]


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_traceback_is_shown_on_demand(h5ad, model, tmp_path, how, monkeypatch, capsys):
    words = ["embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad", "--layer", "count"]
    if how == "flag":
        words.append("--traceback")
    else:
        monkeypatch.setenv("SCGPT_TOOLS_TRACEBACK", "1")
    assert run(*words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_input_is_overwritten_only_when_allowed(h5ad, model, expected):
    before = h5ad.read_bytes()
    refused = process("embed", h5ad, "--model", model, "-o", h5ad)
    assert refused.returncode == 2
    assert "is the input itself" in refused.stderr
    assert "overwrit" in refused.stderr
    assert h5ad.read_bytes() == before
    done = process("embed", h5ad, "--model", model, "-o", h5ad, "--overwrite")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(ad.read_h5ad(h5ad).obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    assert list(h5ad.parent.iterdir()) == [h5ad]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("embde",), "Did you mean 'embed'"),
        (("embed",), "Expected input, -o/--output, found none"),
        (("embed", "{in}"), "Expected -o/--output, found none"),
        (("embed", "absent.h5ad", "-o", "{out}"), "found nothing"),
        (("embed", "{in}", "-o", "out.h5mu"), "format of the input"),
        (("tokenize", "{in}", "-o", "out.zarr"), "format of the input"),
        (("embed", "{in}", "-o", "{out}", "--by-chunks"), "ends in .zarr"),
        (("embed", "{in}", "-o", "{out}", "--chunk", "4"), "ends in .zarr"),
        (("embed", "{in}", "-o", "{out}", "--rank", "0", "--processes", "2"), "ends in .zarr"),
        (("embed", "{in}", "-o", "out.zarr", "--rank", "2", "--processes", "2"), "below `processes`"),
        (("embed", "{in}", "-o", "out.zarr", "--rank", "0"), "`rank` and `processes` together"),
        (("embed", "{in}", "-o", "out.zarr", "--overwrite"), "no --overwrite for work by chunks"),
        (("embed", "{in}", "-o", "out.zarr", "--tokens", "X_binned"), "no --tokens for work by chunks"),
        (("embed", "{in}", "-o", "out.zarr", "--chunk", "0"), "`chunk` to be at least 1"),
        (("embed", "{in}", "-o", "absent/out.h5ad"), "folder of the output"),
        (("embed", "{in}", "-o", "{out}", "--batch-size", "many"), "batch_size"),
        (("embed", "{in}", "-o", "{out}", "--pooling", "max"), "pooling"),
        (("embed", "{in}", "-o", "{out}", "--colour", "red"), "--colour"),
        (("embed", "{in}", "-o", "{out}", "--model", "./absent"), "found none at './absent'"),
        (("embed", "{in}", "-o", "{out}", "--key-added", "a/b"), "without '/'"),
        (("embed", "{in}", "-o", "{out}", "--aliases", "a.json"), "format of a table of names"),
        (("embed", "{in}", "-o", "{out}", "--aliases", "a.csv"), "a.csv"),
        (("embed", "{in}", "-o", "{out}", "--modality", "rna"), "with MuData only"),
        (("models", "--format", "xml"), "xml"),
    ],
)
def test_errors_of_the_user_are_one_line(words, message, h5ad, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fill = {"{in}": str(h5ad), "{out}": str(tmp_path / "out.h5ad")}
    words = [fill.get(word, word) for word in words]
    if words[0] in ("embed", "tokenize") and "--model" not in words:
        words += ["--model", model]
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"scgpt-tools {words[0]}: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == [h5ad]


def test_bugs_are_not_hidden(h5ad, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sct.tl, "embed", lambda *_, **__: 1 // 0)
    options = {"input": h5ad, "output": tmp_path / "out.h5ad", "overwrite": False, "key_added": "x"}
    options |= dict.fromkeys(("by_chunks", "chunk", "rank", "processes")) | {"quiet": False, "traceback": False}
    monkeypatch.setattr(cli.Command, "read", lambda *_, **__: dict(options))
    with pytest.raises(ZeroDivisionError):
        run("embed")


# ----------------------------------------------------------------------------------------------------- interruption

# Waits in the middle of writing, after telling so.
_SLOW = """
import signal, sys, time
from pathlib import Path
from scgpt_tools import cli
from scgpt_tools.data import stores
# A shell's background job is born deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
write = stores.write_elem
def slow(group, name, value, **options):
    write(group, name, value, **options)
    Path(sys.argv[1]).touch()
    time.sleep(60)
stores.write_elem = slow
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_an_interrupted_write_leaves_nothing(h5ad, model, tmp_path, number, code):
    before, marker, folder = h5ad.read_bytes(), tmp_path / "writing", tmp_path / "out"
    folder.mkdir()
    words = [str(word) for word in (marker, "embed", h5ad, "--model", model, "-o", folder / "out.h5ad")]
    with subprocess.Popen([sys.executable, "-c", _SLOW, *words], stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not marker.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marker.exists()
        assert len(list(folder.iterdir())) == 1, "the copy that is being written"
        running.send_signal(number)
        errors = running.communicate(timeout=60)[1]
    assert running.returncode == code
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []
    assert h5ad.read_bytes() == before


# ----------------------------------------------------------------------------------------------------------- messages


def test_quiet_says_nothing(h5ad, model, tmp_path, capsys):
    assert run("embed", h5ad, "--model", model, "-o", tmp_path / "out.h5ad", "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_is_drawn_when_asked_for(h5ad, model, tmp_path, capsys):
    assert run("embed", h5ad, "--model", model, "-o", tmp_path / "a.h5ad") == 0
    assert "12/12" not in capsys.readouterr().err
    assert run("embed", h5ad, "--model", model, "-o", tmp_path / "b.h5ad", "--show-progress", "true") == 0
    assert "12/12" in capsys.readouterr().err


def test_messages_are_lines_on_standard_error(capsys, recwarn):
    package = logging.getLogger("scgpt_tools")
    before = (list(package.handlers), package.level, settings.show_progress)
    with _console.messages(quiet=False):
        package.info("read")
        warnings.simplefilter("always")
        warnings.warn("of two\n  lines", UserWarning, stacklevel=1)
        assert not settings.show_progress
    assert capsys.readouterr().err == "read\nwarning: of two lines\n"
    assert (list(package.handlers), package.level, settings.show_progress) == before


def test_tables_have_aligned_columns(capsys):
    _console.print_rows([("a", "bb"), ("ccc", 1)])
    assert capsys.readouterr().out == "a    bb\nccc  1\n"


# ----------------------------------------------------------------------------------------------------- other commands


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this system does not tell closed pipes")
def test_nobody_reading_on_is_no_error():
    """`scgpt-tools models | head`, where head is done before the first line."""
    command = [sys.executable, "-m", "scgpt_tools.cli", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_broken_pipe_is_told(monkeypatch, capfd):
    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("scgpt_tools.cli.about.models", broken)
    assert cli.main(["models"]) == 2
    assert "Broken pipe" in capfd.readouterr().err


def test_models_lists_what_can_be_loaded(capsys):
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(sct.models.available().index)
    assert run("models", "--format", "json") == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == set(sct.models.available().index)


def test_pretrain_runs_a_configuration(h5ad, tmp_path):
    (tmp_path / "run.yaml").write_text(
        """
        data: {paths: [in.h5ad], validation: 0.2}
        family: {dim: 8, layers: 1, heads: 2, hidden: 8}
        train: {epochs: 1, batch_size: 4, accelerator: cpu}
        """
    )
    words = ("pretrain", "--config", tmp_path / "run.yaml", "--data", tmp_path, "--output", tmp_path / "model")
    done = process(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sct.CellModel.from_pretrained(tmp_path / "model").dim == 8


def test_keys_that_a_configuration_does_not_have_are_refused(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("data: {paths: [in.h5ad], validatoin: 0.2}")
    assert run("pretrain", "--config", tmp_path / "run.yaml") == 2
    assert "Did you mean 'validation'" in capsys.readouterr().err.splitlines()[-1]


def test_info_has_what_a_report_needs(capsys):
    assert run("info") == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["torch"].startswith(torch.__version__.partition("+")[0])
    assert rows["scgpt-tools"] == sct.__version__
    assert "cpu" in rows["devices"]
    assert {"sdpa", "eager"} <= set(rows["attention"].split(", "))
    assert {"Python", "OS", "anndata", "scanpy", "settings.device"} <= set(rows)


@pytest.mark.filterwarnings("ignore:var_names are not unique")
def test_embed_h5mu_by_all_its_modalities(tmp_path):
    mdata = make_mudata(30)
    joint = sct.train.finetune(
        mdata, make_base(), task="multiomic", epochs=1, batch_size=16, accelerator="cpu"
    ).save(tmp_path / "joint")  # fmt: skip
    with without_pulling():
        mdata.write(tmp_path / "in.h5mu")
    done = process("embed", tmp_path / "in.h5mu", "--model", joint, "-o", tmp_path / "out.h5mu")
    assert done.returncode == 0, done.stderr
    sct.tl.embed(mdata, joint)
    with without_pulling():
        written = md.read_h5mu(tmp_path / "out.h5mu")
    np.testing.assert_allclose(written.obsm["X_scGPT"], mdata.obsm["X_scGPT"], atol=1e-6)
    assert written.uns["X_scGPT"]["model"]["family"] == "scgpt_multiomic"
    np.testing.assert_array_equal(written["prot"].X, mdata["prot"].X)


def test_a_file_that_is_no_mudata_is_named(tmp_path):
    with h5py.File(tmp_path / "in.h5mu", "w") as file:
        file["X"] = [1.0]
    done = process("embed", tmp_path / "in.h5mu", "-o", tmp_path / "out.h5mu")
    assert done.returncode == 2
    assert "Expected a MuData at" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch_size=many", "Expected --batch_size to be a whole number, found 'many'."),
        ("--normalize=maybe", "Expected --normalize to be true or false, found 'maybe'."),
        ("--pooling=max", "Expected --pooling to be one of 'cls', 'mean', 'weighted', found 'max'."),
        ("--length=long", "Expected --length to be a whole number, found 'long'."),
    ],
)
def test_values_of_another_kind_are_refused_in_our_words(option, message, capsys):
    assert run("embed", "in.h5ad", "-o", "out.h5ad", option) == 2
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.filterwarnings("ignore:The predictions of")
@pytest.mark.filterwarnings("ignore:Expected perturbed cells of the part")
def test_finetune_a_model_of_scgenept(tmp_path, capsys):
    genes = [f"G{i}" for i in range(40)]
    vocabulary = Vocabulary.from_genes(genes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary)
    base.save(tmp_path / "base")
    np.savez(tmp_path / "texts.npz", genes=np.array(genes), vectors=np.random.default_rng(0).normal(size=(40, 3)))
    screen(5).write_h5ad(tmp_path / "screen.h5ad")
    words = ["finetune", "--dataset", tmp_path / "screen.h5ad", "--model", tmp_path / "base", "--epochs", 1]
    words += ["--model-type", "scgenept_go_c_gpt_concat", "--gene-embeddings", tmp_path / "texts.npz"]
    words += ["--output", tmp_path / "tuned", "--accelerator", "cpu", "--dropout", 0.0]
    assert run(*words) == 0
    assert "no_change" in capsys.readouterr().out
    tuned = sct.CellModel.from_pretrained(tmp_path / "tuned", device="cpu")
    assert list(tuned.config.embedder.parts) == ["genes", "values", "go", "perturbation"]
    assert {"train_loss"} <= set(pd.read_csv(tmp_path / "tuned" / "history.csv"))
    assert "model" in set(pd.read_csv(tmp_path / "tuned" / "scores.csv")["method"])
    assert run(*words) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The predictions of")
@pytest.mark.filterwarnings("ignore:Expected perturbed cells of the part")
def test_finetune_reads_a_screen_as_it_is_told_to(tmp_path, capsys):
    """Layer, names of genes, column of conditions and the direction that the file records, in training and in scores."""
    table = screen(5)
    table.obs["guide"], table.obs["condition"] = table.obs["condition"], "healthy"
    sct.pp.parse_conditions(table, "guide", direction="down", key_added="guide")
    table.layers["log"], table.var["symbol"] = table.X.copy(), table.var_names.to_numpy()
    table.X = table.X * 0
    vocabulary = Vocabulary.from_genes(list(table.var_names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).save(tmp_path / "base")
    table.var_names = [f"id{number}" for number in range(table.n_vars)]
    table.write_h5ad(tmp_path / "screen.h5ad")
    words = ["finetune", tmp_path / "screen.h5ad", "--task", "perturb", "--model", tmp_path / "base", "--epochs", 1]
    words += [
        "--layer",
        "log",
        "--genes",
        "symbol",
        "--condition-key",
        "guide",
        "--output",
        tmp_path / "tuned",
        "--accelerator",
        "cpu",
    ]
    assert run(*words) == 0, capsys.readouterr().err
    scores = pd.read_csv(tmp_path / "tuned" / "scores.csv")
    assert (scores.loc[scores["method"] == "no_change", "value"].abs() > 0).any()
    tuned = sct.CellModel.from_pretrained(tmp_path / "tuned", device="cpu")
    assert tuned.config.perturbation_flags == (FLAGS["down"],)


@pytest.mark.filterwarnings("ignore:The predictions of")
@pytest.mark.filterwarnings("ignore:Expected perturbed cells of the part")
def test_finetune_scores_with_the_matching_and_the_contexts_of_training(tmp_path, capsys):
    table = screen(5)
    vocabulary = Vocabulary.from_genes(list(table.var_names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).save(tmp_path / "base")
    table.var_names = table.var_names.str.lower()
    table.obs["condition"] = table.obs["condition"].astype(str).str.lower()
    table.write_h5ad(tmp_path / "screen.h5ad")
    words = ["finetune", tmp_path / "screen.h5ad", "--task", "perturb", "--model", tmp_path / "base", "--epochs", 1]
    words += ["--ignore-case", "true", "--within", "batch", "--output", tmp_path / "tuned", "--accelerator", "cpu"]
    assert run(*words) == 0, capsys.readouterr().err
    conditions = pd.read_csv(tmp_path / "tuned" / "scores.csv")["condition"]
    assert {name[:2] for name in conditions} == {"a_", "b_"}


@pytest.mark.filterwarnings("ignore:The predictions of")
@pytest.mark.filterwarnings("ignore:Expected perturbed cells of the part")
@pytest.mark.filterwarnings("ignore:Expected a column for each of the")
@pytest.mark.filterwarnings("always:.* are left out of the scores")
@pytest.mark.parametrize("some", [True, False])
def test_held_out_genes_that_a_model_cannot_be_asked_for_are_named_and_not_scored(tmp_path, capsys, some):
    table = screen(6)
    vocabulary = Vocabulary.from_genes(list(table.var_names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).save(tmp_path / "base")
    labels = table.obs["condition"].astype(str)
    first, other = sorted(set(labels) - {"ctrl"})[:2]
    table.obs["condition"] = labels.replace({first: "NOTAGENE+ctrl"})
    tested = ["NOTAGENE+ctrl", other] if some else ["NOTAGENE+ctrl"]
    table.obs["split"] = np.where(table.obs["condition"].isin(tested), "test", "train")
    table.write_h5ad(tmp_path / "screen.h5ad")
    words = ["finetune", tmp_path / "screen.h5ad", "--task", "perturb", "--model", tmp_path / "base", "--epochs", 1]
    assert run(*words, "--output", tmp_path / "tuned", "--accelerator", "cpu") == 0
    assert re.search(r"1 conditions of the test are left out .*NOTAGENE\+ctrl", capsys.readouterr().err)
    assert (tmp_path / "tuned" / "scores.csv").exists() == some
    if some:
        assert set(pd.read_csv(tmp_path / "tuned" / "scores.csv")["condition"]) == {other}


def test_gene_embeddings_without_a_model_type_are_refused(tmp_path, capsys):
    words = ["finetune", tmp_path / "cells.h5ad", "--task", "perturb", "--output", tmp_path / "model"]
    assert run(*words, "--gene-embeddings", "texts.parquet") == 2
    assert "--gene_embeddings with --model_type" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--missing", "draw"], ["--frozen"], ["--rank", 2], ["--compat", "upstream"]])
def test_how_to_start_scgenept_is_refused_without_a_model_type(tmp_path, capsys, words):
    given = ["finetune", tmp_path / "cells.h5ad", "--task", "perturb", "--output", tmp_path / "model", *words]
    assert run(*given) == 2
    assert f"{words[0]} with --model_type" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("words", "of_text"),
    [
        ([], {"masked": True, "frozen": False, "rank": 0}),
        (["--missing", "draw"], {"masked": False, "frozen": False, "rank": 0}),
        (["--frozen", "--rank", 2], {"masked": True, "frozen": True, "rank": 2}),
        (["--compat", "upstream"], {"masked": False, "frozen": False, "rank": 0}),
    ],
)
def test_finetune_starts_scgenept_as_it_was_told(tmp_path, words, of_text):
    table = screen(6)
    vocabulary = Vocabulary.from_genes([*table.var_names, "NOT MEASURED"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).save(tmp_path / "base")
    table.write_h5ad(tmp_path / "screen.h5ad")
    vectors = {gene: np.full(12, 5.0) for gene in [*table.var_names[:20], "NOT MEASURED"]}
    np.savez(tmp_path / "texts.npz", **vectors)
    given = ["finetune", tmp_path / "screen.h5ad", "--model-type", "scgenept_ncbi_gpt", "--max-steps", 1, "--lr", 1e-9]
    given += ["--gene-embeddings", tmp_path / "texts.npz", "--model", tmp_path / "base", "--accelerator", "cpu", *words]
    assert run(*given, "--output", tmp_path / "tuned") == 0
    tuned = sct.CellModel.from_pretrained(tmp_path / "tuned", device="cpu")
    part = tuned.config.embedder.parts["text"]
    assert {name: getattr(part, name) for name in of_text} == of_text
    rows = tuned.embedder.part("text").table.weight[tuned.vocabulary.ids(["NOT MEASURED", *table.var_names[[0, 25]]])]
    # Upstream knows texts of the genes of the cells only.
    assert bool((rows[0] > 4).all()) == ("upstream" not in words)
    assert (rows[1] > 4).all()
    assert bool(rows[2].any()) == bool({"draw", "upstream"} & {*words})


def test_finetune_names_the_nearest_model_type(tmp_path, capsys):
    assert run("finetune", "--dataset", "none", "--output", tmp_path, "--model-type", "scgenept_go_d") == 2
    assert "Did you mean 'scgenept_go_" in capsys.readouterr().err
