"""Whatever ends a process that writes a store, nothing in it is mixed and nothing is gone.

``SCT_CAMPAIGN=long`` kills 40 times where a run of all tests kills 8 times.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("h5ad", "zarr", "last.ckpt", "embed_store", "screen", "zarr without exchange")
KILLS, FILLS = (40, 12) if os.environ.get("SCT_CAMPAIGN") == "long" else (8, 4)


@pytest.mark.slow
def test_nothing_mixed_and_nothing_gone(tmp_path):
    script = Path(__file__).with_name("store_loops.py")
    done = subprocess.run(
        [sys.executable, str(script), str(KILLS), str(FILLS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        assert f"{kind}: killed {KILLS} times" in done.stdout
        assert f"{kind}: out of disk {FILLS} times" in done.stdout
