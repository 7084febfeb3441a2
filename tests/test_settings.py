from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import scgpt_tools
from scgpt_tools.settings import Settings


@pytest.fixture
def settings():
    return Settings()


def test_the_package_exposes_the_object_and_not_its_module():
    assert isinstance(scgpt_tools.settings, Settings)


def test_override_lasts_for_the_block(settings):
    with settings.override(offline=True, cache_dir="weights") as changed:
        assert changed is settings
        assert settings.offline
        assert settings.cache_dir == Path("weights")
    assert settings == Settings()


def test_override_is_undone_after_an_error(settings):
    with pytest.raises(RuntimeError, match="inside"), settings.override(device="cpu"):
        raise RuntimeError("inside")
    assert settings.device == "auto"


def test_a_bad_override_changes_nothing(settings):
    with pytest.raises(ValueError, match="attention"), settings.override(offline=True, attention="fast"):
        pytest.fail("the block must not run")
    assert settings == Settings()


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("cachedir", "x", AttributeError, "Did you mean 'cache_dir'"),
        ("attention", "flesh", ValueError, "'flash'"),
        ("offline", "yes", TypeError, "True or False"),
        ("show_progress", 1, TypeError, "True or False"),
        ("device", 0, TypeError, "cuda:0"),
        ("verbosity", 5, ValueError, "0 to 4"),
        ("verbosity", "loud", ValueError, "'info'"),
        ("verbosity", True, ValueError, "found True"),
    ],
)
def test_bad_settings_are_refused(settings, name, value, error, message):
    with pytest.raises(error, match=message):
        setattr(settings, name, value)
    assert settings == Settings()


def test_progress_follows_the_setting_and_the_argument(settings, capsys):
    assert list(settings.progress(range(3), unit="cell")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    with settings.override(show_progress=False):
        assert settings.progress(range(3)).disable
        assert not settings.progress((), total=3, show=True).disable


def test_messages_are_shown_unless_a_program_handles_them(tmp_path):
    code = """
        import logging, scgpt_tools as sct
        log = logging.getLogger("scgpt_tools.tl.embed")
        log.info("seen"); log.debug("too detailed")
        sct.settings.verbosity = 0; log.warning("silenced")
        with sct.settings.override(verbosity=4): log.debug("seen as well")
        sct.settings.verbosity = "info"; logging.basicConfig(format="program: %(message)s"); log.info("once")
    """
    result = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines() == ["seen", "seen as well", "program: once"]


@pytest.mark.parametrize(("given", "kept"), [("hint", "hint"), (0, "error"), (4, "debug")])
def test_verbosity_is_a_word_or_its_number(settings, given, kept):
    with scgpt_tools.settings.override(verbosity=given):
        assert scgpt_tools.settings.verbosity == kept
