"""Finding and downloading checkpoints, with the real client of the Hugging Face hub and a hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import socket

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from hub_server import HubServer, git_hash
from scgpt_tools import settings
from scgpt_tools.models import CellModel, zoo
from scgpt_tools.vocabulary import Vocabulary

REPO = "lab/model"


# Before version 1 the client had one session per thread.
close_session = getattr(huggingface_hub, "close_session", None) or huggingface_hub.utils.reset_sessions


def torch_file(seed: int = 0, size: int = 50_000) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.rand(size, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


WEIGHTS = torch_file()
VOCABULARY = json.dumps({"B": 1, "A": 0, "<pad>": 2}).encode()
ORIGINAL = {"args.json": b'{"embsize": 8}', "vocab.json": VOCABULARY, "best_model.pt": WEIGHTS}
SAFE = save({"weight": torch.ones(64, 64)}, metadata={"format": "pt"})
NATIVE = {"config.json": b'{"family": "scgpt"}', "vocab.json": VOCABULARY, "model.safetensors": SAFE}
OTHERS = {"README.md": b"# Card", "training_state.bin": b"\0" * 1000}
LARGE = ("best_model.pt", "model.pt", "model.safetensors", "training_state.bin")


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
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    def call(model=REPO, **options):
        return zoo.fetch(model, **{"endpoint": hub.endpoint, "cache_dir": tmp_path / "cache", **options})

    return call


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept(tmp_path) -> list[str]:
    """Names of the files that the cache holds under their checksum."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("blobs/*"))


# The table -----------------------------------------------------------------------------------------------------------


def test_the_eight_names_and_the_demo_are_there():
    organs = ("human", "blood", "brain", "heart", "kidney", "lung", "pan-cancer", "continual-pretrained")
    own = {name for name, model in zoo.RELEASED.items() if model.family == "scgpt"}
    assert own == {"scgpt-demo", *(f"scgpt-{organ}" for organ in organs)}
    for organ in organs:
        assert zoo.RELEASED[f"scgpt-{organ}"].repository == f"perturblab/scgpt-{organ}"


def test_every_model_says_where_it_is_from_and_how_to_cite_it():
    table = zoo.available()
    assert table.index.name == "name"
    assert list(table.index) == list(zoo.RELEASED)
    told = table.drop(columns=["repository", "bucket"])
    assert told.map(lambda text: isinstance(text, str) and text != "").all(axis=None)
    assert (table.query("family == 'scgpt'").drop("scgpt-demo")["citation"] == "doi:10.1038/s41592-024-02201-0").all()
    assert table["source"].is_unique


def test_the_table_shows_what_models_are_for():
    shown = repr(zoo.available())
    assert "33 million normal human cells" in shown
    assert "..." not in shown
    assert "Further columns: weights_licence" in shown
    assert zoo.available()._repr_html_().count("<td>") == 3 * len(zoo.RELEASED)


# Downloading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [ORIGINAL, NATIVE], ids=["original", "native"])
def test_only_the_files_of_the_checkpoint_are_downloaded(hub, fetch, files):
    hub.add(REPO, {**files, **OTHERS}, large=LARGE)
    assert contents(fetch()) == files
    assert hub.transfers(OTHERS["training_state.bin"]) == []


def test_safetensors_are_preferred(hub, fetch):
    hub.add(REPO, {**ORIGINAL, **NATIVE}, large=LARGE)
    assert "model.safetensors" in contents(fetch())
    assert hub.transfers(WEIGHTS) == []


def test_a_stray_configuration_does_not_hide_the_original(hub, fetch):
    """Repositories on the hub often hold a config.json for the download counter."""
    hub.add(REPO, {**ORIGINAL, "config.json": b"{}"}, large=LARGE)
    assert contents(fetch())["best_model.pt"] == WEIGHTS


def test_the_older_name_of_the_weights_will_do(hub, fetch):
    older = {"args.json": b"{}", "vocab.json": VOCABULARY, "model.pt": WEIGHTS}
    hub.add(REPO, older, large=LARGE)
    assert contents(fetch()) == older


def test_small_weights_that_git_keeps_are_downloaded_too(hub, fetch):
    hub.add(REPO, ORIGINAL)
    assert contents(fetch()) == ORIGINAL


def test_released_names_stand_for_their_repositories(hub, fetch):
    hub.add("perturblab/scgpt-blood", ORIGINAL, large=LARGE)
    assert contents(fetch("scgpt-blood")) == ORIGINAL


def test_a_second_call_transfers_nothing(hub, fetch):
    hub.add(REPO, ORIGINAL, large=LARGE)
    first = fetch()
    hub.requests.clear()
    assert fetch() == first
    assert [request.method for request in hub.requests] == ["HEAD"]


def test_a_commit_in_the_cache_needs_no_request(hub, fetch):
    commit = hub.add(REPO, ORIGINAL, large=LARGE)
    first = fetch()
    hub.requests.clear()
    assert fetch(revision=commit) == first
    assert hub.requests == []


def test_the_cache_serves_when_the_hub_is_gone(tmp_path):
    options = {"cache_dir": tmp_path}
    with HubServer() as hub:
        hub.add(REPO, ORIGINAL, large=LARGE)
        folder = zoo.fetch(REPO, endpoint=hub.endpoint, **options)
    assert zoo.fetch(REPO, endpoint=hub.endpoint, **options) == folder
    assert zoo.fetch(REPO, endpoint=hub.endpoint, local_files_only=True, **options) == folder
    assert contents(folder) == ORIGINAL


def test_home_is_expanded_in_the_cache(hub, fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    hub.add(REPO, ORIGINAL, large=LARGE)
    assert fetch(cache_dir="~/models").is_relative_to(tmp_path / "models")


def test_settings_give_the_cache(hub, fetch, tmp_path):
    hub.add(REPO, ORIGINAL, large=LARGE)
    with settings.override(cache_dir=tmp_path / "elsewhere"):
        assert fetch(cache_dir=None).is_relative_to(tmp_path / "elsewhere")


# Revisions -----------------------------------------------------------------------------------------------------------


def test_branches_and_commits_are_told_apart(hub, fetch):
    newer = {**ORIGINAL, "best_model.pt": torch_file(seed=1)}
    old = hub.add(REPO, ORIGINAL, branch="v1", large=LARGE)
    new = hub.add(REPO, newer, branch="main", large=LARGE)
    assert contents(fetch()) == contents(fetch(revision=new)) == contents(fetch(revision="main")) == newer
    assert contents(fetch(revision="v1")) == contents(fetch(revision=old)) == ORIGINAL


def test_a_branch_that_moved_is_followed_and_shared_files_stay(hub, fetch):
    hub.add(REPO, ORIGINAL, large=LARGE)
    fetch()
    hub.requests.clear()
    moved = {**ORIGINAL, "args.json": b'{"embsize": 16}'}
    hub.add(REPO, moved, large=LARGE)
    assert contents(fetch()) == moved
    assert hub.transfers(WEIGHTS) == []


def test_offline_follows_the_last_known_branch(hub, fetch):
    hub.add(REPO, ORIGINAL, branch="v1", large=LARGE)
    folder = fetch(revision="v1")
    assert fetch(revision="v1", local_files_only=True) == folder
    with pytest.raises(FileNotFoundError, match="at 'main'"):
        fetch(local_files_only=True)


def test_an_unknown_revision_lists_the_known_ones(hub, fetch):
    hub.add(REPO, ORIGINAL, branch="main", large=LARGE)
    hub.add(REPO, ORIGINAL, branch="v1", large=LARGE)
    with pytest.raises(ValueError, match="no revision 'v2' of 'lab/model'. Available: 'main', 'v1', or the hash"):
        fetch(revision="v2")


# Broken transfers ----------------------------------------------------------------------------------------------------


def test_an_interrupted_transfer_goes_on_where_it_stopped(hub, fetch, monkeypatch):
    """The client keeps whole chunks; with its own 10 MB each, a small file would begin again."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    hub.add(REPO, ORIGINAL, large=LARGE)
    hub.cut["best_model.pt"] = 70_000
    try:
        folder = fetch()
    except OSError:  # before version 2 the client went on in the next call
        folder = fetch()
    assert contents(folder)["best_model.pt"] == WEIGHTS
    first, second = hub.transfers(WEIGHTS)
    assert first.range is None
    assert second.range == "bytes=60000-"


def test_a_transfer_that_never_ends_well_leaves_nothing_wrong(hub, fetch, tmp_path):
    hub.add(REPO, ORIGINAL, large=LARGE)
    hub.instead["best_model.pt"] = WEIGHTS[:1000]
    with pytest.raises(OSError, match="Could not fetch best_model.pt of the repository 'lab/model'.*call again"):
        fetch()
    assert hashlib.sha256(WEIGHTS).hexdigest() not in kept(tmp_path)
    assert not list((tmp_path / "cache").rglob("best_model.pt"))
    hub.instead.clear()
    assert contents(fetch()) == ORIGINAL


@pytest.mark.parametrize("large", [LARGE, ()], ids=["large", "small"])
def test_other_content_of_the_right_length_is_refused_and_removed(hub, fetch, tmp_path, large):
    hub.add(REPO, ORIGINAL, large=large)
    hub.instead["best_model.pt"] = b"<html>".ljust(len(WEIGHTS))
    expected = hashlib.sha256(WEIGHTS).hexdigest() if large else git_hash(WEIGHTS)
    with pytest.raises(ValueError, match=f"with checksum {expected}, found .* removed from the cache"):
        fetch()
    assert expected not in kept(tmp_path)
    assert not list((tmp_path / "cache").rglob("best_model.pt"))
    hub.instead.clear()
    assert contents(fetch()) == ORIGINAL


def test_content_is_checked_where_the_cache_has_no_links(hub, fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *args, **options: False)
    hub.add(REPO, ORIGINAL, large=LARGE)
    hub.instead["best_model.pt"] = b"\0" * len(WEIGHTS)
    with pytest.raises(ValueError, match="with checksum"):
        fetch()
    assert not list((tmp_path / "cache").rglob("best_model.pt"))
    hub.instead.clear()
    assert contents(fetch()) == ORIGINAL
    hub.failing = 500
    assert contents(fetch()) == ORIGINAL


def test_a_damaged_repository_is_refused(hub, fetch, tmp_path):
    """The checksum is right, the file is not."""
    hub.add(REPO, {**ORIGINAL, "best_model.pt": b"<!DOCTYPE html><title>Sign in</title>"})
    with pytest.raises(ValueError, match="found an HTML or XML page.* the repository is damaged"):
        fetch()
    assert not list((tmp_path / "cache").rglob("best_model.pt"))


def test_a_full_disk_is_called_so(hub, fetch, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.add(REPO, ORIGINAL, large=LARGE)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(OSError, match="No space left in .* pass `cache_dir=`") as caught:
        fetch()
    assert caught.value.errno == errno.ENOSPC


# Hubs that are none --------------------------------------------------------------------------------------------------


def everything_below(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("large", [LARGE, ()], ids=["large", "small"])
@pytest.mark.parametrize(
    "saying",
    [
        {"ETag": '"../../../../victim"', "X-Linked-Etag": '"../../../../victim"'},
        {"ETag": 'W/"/tmp/victim"', "X-Linked-Etag": "../../../victim"},
        {"ETag": '".."', "X-Linked-Etag": '".."'},
        {"ETag": '"..\\..\\victim"', "X-Linked-Etag": '"..\\..\\victim"'},
        {"ETag": '"' + "a" * 300 + '"', "X-Linked-Etag": '"' + "a" * 300 + '"'},
        {"X-Repo-Commit": "../../../victim"},
        {"X-Repo-Commit": "/tmp/victim"},
        {"X-Repo-Commit": ".."},
    ],
    ids=str,
)
def test_names_that_lead_out_of_the_cache_are_refused(hub, fetch, tmp_path, saying, large):
    (tmp_path / "victim").write_text("mine")
    hub.add(REPO, ORIGINAL, large=large)
    hub.saying = saying
    with pytest.raises(ValueError, match="to answer like a hub about .*, which would be a path out of the cache"):
        fetch()
    assert set(everything_below(tmp_path)) == {"victim"}


def test_absent_files_do_not_lead_out_of_the_cache_either(hub, fetch, tmp_path):
    """The client remembers what a repository lacks by making a file."""
    hub.add(REPO, {"README.md": b""})
    hub.saying = {"X-Repo-Commit": "../../../victim"}
    with pytest.raises(ValueError, match="a path out of the cache"):
        fetch()
    assert everything_below(tmp_path) == {}


@pytest.mark.parametrize("revision", ["../../victim", "/victim", "a//b", " "])
def test_revisions_that_are_paths_are_refused(fetch, revision):
    with pytest.raises(ValueError, match="Expected `revision` to be"):
        fetch(revision=revision)


def test_settings_of_gigabytes_are_not_transferred(hub, fetch, monkeypatch):
    monkeypatch.setattr("scgpt_tools.models.hub._MOST_TEXT", 10)
    hub.add(REPO, ORIGINAL, large=LARGE)
    with pytest.raises(ValueError, match="bytes, more than the 10 that such a file may have"):
        fetch()
    assert hub.asked("GET", "vocab.json") == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("scgpt_tools.models.hub_guard.PATIENCE", 0.5)


@pytest.mark.parametrize("mute", [{"HEAD"}, {"GET"}], ids=str)
def test_a_hub_that_never_answers_is_given_up(hub, fetch, impatient, mute):
    hub.add(REPO, ORIGINAL, large=LARGE)
    hub.mute = mute
    with pytest.raises(ConnectionError, match=r"from http://.*, which sent 0 bytes in 0\.5 seconds"):
        fetch()


def test_a_hub_that_drips_is_given_up_and_leaves_nothing_whole(hub, fetch, impatient, tmp_path):
    """Older clients keep the beginning of a file, to go on with it."""
    hub.add(REPO, ORIGINAL, large=LARGE)
    hub.slow = 0.2
    with pytest.raises(ConnectionError, match=r"which sent \d bytes in 0\.5 seconds"):
        fetch()
    assert all(name.endswith(".incomplete") for name in kept(tmp_path))


def test_the_cache_serves_when_the_hub_is_silent(hub, fetch, impatient, caplog):
    hub.add(REPO, ORIGINAL, large=LARGE)
    folder = fetch()
    hub.mute = {"HEAD"}
    assert fetch() == folder
    assert "does not answer; vocab.json is taken from the cache" in caplog.text


# What the hub refuses ------------------------------------------------------------------------------------------------


def test_an_absent_repository_is_named(fetch):
    with pytest.raises(ValueError, match=r"no repository 'lab/model' at http://.*`token=`"):
        fetch()


def test_an_absent_release_says_where_the_authors_copy_is(fetch):
    with pytest.raises(ValueError, match=r"'perturblab/scgpt-lung'.*drive.google.com.*bowang-lab/scGPT"):
        fetch("scgpt-lung")


@pytest.mark.parametrize("gone", ["vocab.json", "best_model.pt"])
def test_a_missing_file_is_named_with_those_that_are_there(hub, fetch, gone):
    files = {name: body for name, body in {**ORIGINAL, **OTHERS}.items() if name != gone}
    hub.add(REPO, files, large=LARGE)
    listing = ", ".join(sorted(files))
    expected = (
        "Expected the repository 'lab/model' at 'main' to hold config.json, vocab.json and model.safetensors "
        "(this package's format); or args.json, vocab.json and best_model.pt or model.pt (scGPT's format); or "
    )
    with pytest.raises(FileNotFoundError, match=re.escape(expected) + ".*; found " + re.escape(listing)):
        fetch()


def test_the_token_is_sent_to_the_hub_and_not_to_its_storage(hub, fetch):
    hub.add(REPO, ORIGINAL, large=LARGE, token="secret")
    with pytest.raises(ValueError, match="if it is private"):
        fetch(token=False)
    assert contents(fetch(token="secret")) == ORIGINAL
    seen = {(request.server, request.token) for request in hub.requests if request.token}
    assert seen == {("hub", "Bearer secret")}
    assert hub.transfers(WEIGHTS)


def test_a_gated_repository_says_where_to_ask(hub, fetch):
    hub.add(REPO, ORIGINAL, large=LARGE, gated=True)
    with pytest.raises(PermissionError, match=r"is gated. Ask for access at http://.*/lab/model"):
        fetch()


def test_a_refused_token_is_told(hub, fetch):
    hub.failing = 403
    with pytest.raises(PermissionError, match="refused the request .403."):
        fetch(token="wrong")


# Offline -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere() -> str:
    """Address where nothing answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_an_unreachable_hub_says_what_to_do(nowhere, tmp_path):
    with pytest.raises(ConnectionError, match=f"Could not reach {nowhere} .*lacks files too.*pass its path"):
        zoo.fetch(REPO, endpoint=nowhere, cache_dir=tmp_path)


def test_an_unreachable_hub_is_asked_twice_only(nowhere, tmp_path, monkeypatch):
    """The client would go on for more than twenty seconds."""
    waited = []
    monkeypatch.setattr("scgpt_tools.models.hub_guard.time.sleep", waited.append)
    monkeypatch.setattr("scgpt_tools.models.hub.hf_hub_download", lambda *_, **__: pytest.fail("the client was asked"))
    with pytest.raises(ConnectionError, match="Could not reach"):
        zoo.fetch(REPO, endpoint=nowhere, cache_dir=tmp_path)
    assert sum(waited) <= 2


@pytest.mark.parametrize("way", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_it_is_the_proxy_that_has_to_be_reached(hub, tmp_path, monkeypatch, way):
    monkeypatch.setattr("scgpt_tools.models.hub_guard.time.sleep", lambda _: None)
    monkeypatch.setattr("scgpt_tools.models.hub_guard.getproxies", lambda: {"http": way})
    monkeypatch.setattr("scgpt_tools.models.hub_guard.proxy_bypass", lambda _: False)
    with pytest.raises(ConnectionError, match="Could not reach"):
        zoo.fetch(REPO, endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_failing_hub_says_so(hub, fetch):
    hub.failing = 500
    with pytest.raises(ConnectionError, match="http://.* answered with an error, 500. Try again later"):
        fetch()


@pytest.mark.parametrize("how", ["argument", "settings", "environment"])
def test_offline_asks_nobody(hub, fetch, monkeypatch, how):
    hub.add(REPO, ORIGINAL, large=LARGE)
    if how == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the client makes of HF_HUB_OFFLINE=1
    with (
        settings.override(offline=how == "settings"),
        pytest.raises(FileNotFoundError, match="found no files. Nothing is downloaded.*while online"),
    ):
        fetch(local_files_only=how == "argument")
    assert hub.requests == []


def test_offline_lists_what_is_cached(hub, fetch):
    commit = hub.add(REPO, {"vocab.json": VOCABULARY}, large=LARGE)
    with pytest.raises(FileNotFoundError):
        fetch()
    with pytest.raises(FileNotFoundError, match=f"found {commit[:8]}/vocab.json. Nothing is downloaded"):
        fetch(local_files_only=True)


# Folders and names ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name, body in ORIGINAL.items():
        (folder / name).write_bytes(body)
    return folder


def test_a_folder_is_taken_as_it_is(folder, monkeypatch):
    assert zoo.fetch(folder) == zoo.fetch(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert zoo.fetch("my-model").samefile(folder)
    assert zoo.display_name("my-model") == zoo.display_name(folder) == "my-model"


def test_an_incomplete_folder_says_what_is_missing(folder):
    (folder / "best_model.pt").unlink()
    with pytest.raises(
        FileNotFoundError, match="or args.json, vocab.json and best_model.pt or .*; found args.json, vocab.json"
    ):
        zoo.fetch(folder)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("best_model.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull`"),
        ("best_model.pt", b"\n<!doctype html>", "an HTML or XML page"),
        ("best_model.pt", b"", "an empty file"),
        ("best_model.pt", WEIGHTS[:-100], "an archive that ends too early"),
        ("best_model.pt", b"some text", "that torch.save did not write"),
        ("model.safetensors", SAFE[:-1], f"{len(SAFE) - 1:,} bytes instead of {len(SAFE):,}"),
        ("model.safetensors", SAFE[:20], "no safetensors header"),
        ("model.safetensors", b"some other content", "no safetensors header"),
    ],
)
def test_files_that_are_no_weights_are_refused_and_kept(folder, name, body, message):
    (folder / "config.json").write_bytes(b"{}")
    (folder / name).write_bytes(body)
    with pytest.raises(ValueError, match=message):
        zoo.fetch(folder)
    assert (folder / name).read_bytes() == body


def test_older_files_of_torch_are_weights(folder):
    torch.save({"a": torch.zeros(1)}, folder / "best_model.pt", _use_new_zipfile_serialization=False)
    assert zoo.fetch(folder) == folder


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "a/b/c", "~/no such folder"])
def test_a_path_is_no_name(model):
    with pytest.raises(FileNotFoundError, match="none at"):
        zoo.fetch(model)


def test_a_file_of_weights_is_taken_as_it_is(folder):
    assert zoo.fetch(folder / "best_model.pt") == folder / "best_model.pt"
    assert zoo.display_name(folder / "best_model.pt") == "best_model"
    assert zoo.vocabulary_of(folder / "best_model.pt").tokens == ("A", "B", "<pad>")


def test_another_file_of_a_checkpoint_is_not_its_weights(folder):
    with pytest.raises(ValueError, match=r"file of weights \(\.safetensors, .*Pass '.*my-model'"):
        zoo.fetch(folder / "args.json")


def test_a_file_that_is_no_weights_is_refused(folder):
    (folder / "best_model.pt").write_bytes(b"some text")
    with pytest.raises(ValueError, match="to hold the weights of a model, found a file that torch.save did not write"):
        zoo.fetch(folder / "best_model.pt")


def test_a_vocabulary_may_come_from_elsewhere(folder):
    (folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match="to hold config.json, vocab.json"):
        zoo.fetch(folder)
    assert zoo.fetch(folder, vocabulary=False) == folder


def test_a_folder_has_no_revisions(folder):
    with pytest.raises(ValueError, match="`revision` with a repository only, found 'v1'"):
        zoo.fetch(folder, revision="v1")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("scgpt-hunam", "Did you mean 'scgpt-human'"),
        ("", "or as a repository 'organisation/name'"),
        ("lab/my model", "or as a repository 'organisation/name'"),
    ],
)
def test_unknown_names_get_the_nearest(model, message):
    with pytest.raises(ValueError, match=message):
        zoo.fetch(model)


# Vocabulary alone ----------------------------------------------------------------------------------------------------


def test_the_vocabulary_comes_without_the_weights(hub, tmp_path):
    hub.add("perturblab/scgpt-human", ORIGINAL, large=LARGE)
    options = {"endpoint": hub.endpoint, "cache_dir": tmp_path}
    assert zoo.vocabulary_of("scgpt-human", **options).tokens == ("A", "B", "<pad>")
    assert zoo.vocabulary_of("scgpt-human", local_files_only=True, **options).tokens == ("A", "B", "<pad>")
    assert hub.transfers(WEIGHTS) == []


def test_a_repository_without_a_vocabulary_says_what_it_has(hub, tmp_path):
    hub.add(REPO, OTHERS)
    with pytest.raises(FileNotFoundError, match="found README.md, training_state.bin"):
        zoo.vocabulary_of(REPO, endpoint=hub.endpoint, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="found no files. Nothing is downloaded"):
        zoo.vocabulary_of(REPO, endpoint=hub.endpoint, cache_dir=tmp_path, local_files_only=True)


def test_the_vocabulary_of_anything_that_has_one(folder):
    class Model:
        vocabulary = Vocabulary(["A", "B", "<pad>"])

    for source in (Model(), Model.vocabulary, folder, str(folder / "vocab.json")):
        assert zoo.vocabulary_of(source) == Model.vocabulary
    with pytest.raises(TypeError, match="found int"):
        zoo.vocabulary_of(1)


# Progress ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("show", [True, False])
def test_progress_bars_follow_the_settings(hub, fetch, capsys, monkeypatch, show):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # else the client draws them on terminals only
    hub.add(REPO, ORIGINAL, large=LARGE)
    with settings.override(show_progress=show):
        fetch()
    assert ("best_model.pt" in capsys.readouterr().err) == show
    assert not huggingface_hub.utils.are_progress_bars_disabled()


@pytest.mark.parametrize(("name", "megabytes"), [("scgpt-demo", 3), ("scgenept-demo", 1)])
def test_demos_are_in_the_package_and_small(name, megabytes):
    with settings.override(offline=True):
        folder = zoo.fetch(name)
        model = CellModel.from_pretrained(name, device="cpu")
    assert sum(path.stat().st_size for path in folder.iterdir()) < megabytes * 1e6
    assert model.name == name
    assert model.checksum in (folder / "README.md").read_text(encoding="utf-8")
