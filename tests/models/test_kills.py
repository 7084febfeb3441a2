"""Saving is killed at random moments and runs out of disk; a folder holds one content or the other, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The long version: SCT_KILLS=100.
KILLS = os.environ.get("SCT_KILLS", "4")


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")
@pytest.mark.parametrize("kind", ["save", "export", "wrapper", "index"])
def test_nothing_is_mixed_and_nothing_is_gone(kind, tmp_path):
    program = Path(__file__).parents[1] / "kill_loop.py"
    done = subprocess.run(
        [sys.executable, str(program), kind, KILLS, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mixed" not in done.stdout
