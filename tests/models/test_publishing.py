"""Uploading models, with the real client of the Hugging Face hub and a hub on this machine."""

from __future__ import annotations

from functools import partial

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import scgpt_tools as sct
from hub_server import HubServer
from scgpt_tools import cli
from scgpt_tools.models import cell_model, zoo
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.models.publishing import push_folder
from scgpt_tools.vocabulary import Vocabulary

close_session = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions
# The client's own, of the library that it sends with.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME, TOKEN = "lab/blood", "hf_writer"


@pytest.fixture(autouse=True)
def quiet_client(monkeypatch):
    """No request leaves this machine, and none waits."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    close_session()
    yield
    close_session()


@pytest.fixture
def hub():
    with HubServer() as server:
        server.writers[TOKEN] = "lab"
        yield server


@pytest.fixture(scope="module")
def model():
    vocabulary = Vocabulary.from_genes(["CD3D", "NKG7", "MS4A1"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).eval()


@pytest.fixture
def folder(model, tmp_path):
    place = model.save(tmp_path / "model")
    (place / "notes.txt").write_text("of nobody else's business")
    return place


def push(folder, hub, name=NAME, **options):
    return push_folder(folder, name, **{"token": TOKEN, "endpoint": hub.endpoint, **options})


def load(hub, tmp_path):
    place = zoo.fetch(NAME, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=TOKEN)
    return sct.CellModel.from_pretrained(place, device="cpu")


@pytest.mark.parametrize("large_from", [1, 1 << 30], ids=["large", "small"])
def test_what_is_uploaded_can_be_loaded_by_name(model, folder, hub, tmp_path, large_from):
    hub.large_from = large_from
    address = push(folder, hub, message="First model", private=True)
    repo = hub.repos[NAME]
    assert address == f"{hub.endpoint}/{NAME}/commit/{repo.branches['main']}"
    assert repo.private
    assert repo.messages == ["First model"]
    assert set(repo.commits[repo.branches["main"]]) == {"config.json", "vocab.json", "model.safetensors", "README.md"}
    loaded = load(hub, tmp_path)
    assert loaded.checksum == model.checksum
    assert loaded.vocabulary.tokens == model.vocabulary.tokens


def test_the_page_says_what_the_model_is_and_how_to_load_it(folder, hub):
    push(folder, hub)
    repo = hub.repos[NAME]
    page = repo.commits[repo.branches["main"]]["README.md"].decode()
    assert page.startswith("---\nlibrary_name: scgpt-tools")
    assert "`scgpt`: 1 layers, 8 dimensions" in page
    assert "3 genes" in page
    assert f'sct.tl.embed(adata, "{NAME}")' in page


def test_a_page_of_ones_own_is_uploaded_and_not_replaced(folder, hub):
    (folder / "README.md").write_text("# Mine")
    push(folder, hub)
    (folder / "README.md").unlink()
    push(folder, hub)
    repo = hub.repos[NAME]
    assert repo.commits[repo.branches["main"]]["README.md"] == b"# Mine"


def test_the_original_format_is_uploaded_as_well(model, hub, tmp_path):
    push(model.export(tmp_path / "original"), hub)
    loaded = load(hub, tmp_path)
    assert loaded.checksum == model.checksum


def test_no_file_of_an_earlier_checkpoint_is_read_in_the_place_of_a_new_one(model, folder, hub, tmp_path, caplog):
    """The vocabulary is the same, so nothing else would tell that the weights are old."""
    push(folder, hub)
    changed = sct.CellModel(model.config, model.vocabulary).eval()
    push(changed.export(tmp_path / "original"), hub)
    repo = hub.repos[NAME]
    files = set(repo.commits[repo.branches["main"]])
    assert files == {"args.json", "vocab.json", "best_model.pt", "README.md"}
    assert "Deleting config.json, model.safetensors of another checkpoint from lab/blood" in caplog.text
    assert load(hub, tmp_path).checksum == changed.checksum != model.checksum


def test_pushed_by_command_line_and_loaded_by_name(model, folder, hub, tmp_path, capsys):
    words = ["push", "--model-dir", str(folder), "--repo-id", NAME, "--commit-message", "By hand", "--token", TOKEN]
    assert cli.main([*words, "--endpoint", hub.endpoint], program="scmodelforge") == 0
    repo = hub.repos[NAME]
    assert capsys.readouterr().out == f"{hub.endpoint}/{NAME}/commit/{repo.branches['main']}\n"
    assert (repo.messages, repo.private) == (["By hand"], False)
    assert load(hub, tmp_path).checksum == model.checksum
    (folder / "model.safetensors").unlink()
    n_requests = len(hub.requests)
    assert cli.main([*words, "--endpoint", hub.endpoint], program="scmodelforge") == 2
    assert "Expected the folder" in capsys.readouterr().err
    assert len(hub.requests) == n_requests


def test_a_loaded_model_is_pushed(model, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(cell_model, "push_folder", partial(push_folder, endpoint=hub.endpoint))
    address = model.push_to_hub(NAME, token=TOKEN)
    assert address.startswith(hub.endpoint)
    assert load(hub, tmp_path).checksum == model.checksum


@pytest.mark.parametrize("options", [{"token": "hf_stranger"}, {"name": "others/blood"}])
def test_a_refusal_says_what_the_token_needs(folder, hub, options):
    with pytest.raises(PermissionError, match="the right to write"):
        push(folder, hub, **options)
    assert hub.repos == {}


def test_a_branch_that_is_not_there_is_named(folder, hub):
    with pytest.raises(ValueError, match="a branch of 'lab/blood', found none named 'draft'"):
        push(folder, hub, revision="draft")
    assert hub.repos[NAME].messages == []


def test_a_hub_out_of_order_is_named(folder, hub):
    hub.failing = 500
    with pytest.raises(ConnectionError, match="answered with an error, 500"):
        push(folder, hub)


def test_nothing_is_sent_offline(folder, hub):
    with sct.settings.override(offline=True), pytest.raises(ConnectionError, match="set offline"):
        push(folder, hub)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["blood", "a/b/c", "lab/"])
def test_names_that_are_no_repositories_are_refused(folder, hub, name):
    with pytest.raises(ValueError, match="organisation/name"):
        push(folder, hub, name=name)
    assert hub.requests == []


def test_a_folder_without_a_model_is_refused_before_anything_is_sent(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected the folder"):
        push(tmp_path, hub)
    assert hub.requests == []
