"""Seconds until something can be done: importing the package, and loading a full-size checkpoint.

    python benchmarks/startup.py [--checkpoint FOLDER] [--peer FOLDER] [--rounds 5]

Each line is a fresh process, in turn, several times; the median and the least are reported, for the machine may have
other work.  `checkpoint.py` writes the checkpoint; our own format is made from it, in a temporary folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

IMPORTS = {
    "import scanpy, torch": "import scanpy, torch",
    "import scgpt_tools": "import scgpt_tools",
    "import scgpt_tools, and its tl and models": "import scgpt_tools.tl, scgpt_tools.models",
    "import scgpt_tools, and all of it": "import scgpt_tools as sct; [getattr(sct, name) for name in sct.__all__]",
}
LOAD = "model = CellModel.from_pretrained({folder!r}, device='cpu')"
TIMED = """
import time
{before}
start = time.perf_counter()
{code}
print(time.perf_counter() - start)
"""


def seconds(code: str, before: str) -> float:
    """Time of some code in a fresh process, started where the module `peers` is."""
    words = [sys.executable, "-W", "ignore", "-c", TIMED.format(code=code, before=before)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return float(done.stdout.split()[-1])


def measure(tasks: dict[str, tuple[str, str]], rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, (code, before) in tasks.items():
            found[name].append(seconds(code, before))
    print(f"{'':45} {'median/s':>9} {'least/s':>9}")
    for name, times in found.items():
        print(f"{name:45} {median(times):9.2f} {min(times):9.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder in the original's format")
    parser.add_argument("--peer", type=Path, help="folder that holds the package scgpt")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    measure({name: (code, "") for name, code in IMPORTS.items()}, arguments.rounds)
    if arguments.checkpoint is None:
        return
    with TemporaryDirectory() as scratch:
        from scgpt_tools.models import CellModel

        original = arguments.checkpoint.resolve()
        CellModel.from_pretrained(original, device="cpu").save(scratch)
        imported = "from scgpt_tools.models import CellModel"
        tasks = {
            "load the original's format": (LOAD.format(folder=str(original)), imported),
            "load our own format": (LOAD.format(folder=scratch), imported),
        }
        measure(tasks, arguments.rounds)
        if arguments.peer is not None:
            before = "from pathlib import Path; from peers import ScGPT"
            code = f"ScGPT(Path({str(arguments.peer.resolve())!r}), Path({str(original)!r}))"
            measure({"scGPT's own loading, imports included": (code, before)}, 1)


if __name__ == "__main__":
    main()
