"""Kill a process, or fill its disk, again and again while it writes a store, and look at what is left each time.

Started as ``python store_loops.py KILLS FILLS FOLDER [KIND ...]``; a line for each kind counts what was seen.  All is imported
once; each victim is a fork of that process, so that a kill costs milliseconds.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import zarr

import scgpt_tools as sct
from generators import generator
from scgpt_tools import _outputs
from scgpt_tools.data.stores import open_table, write_results
from scgpt_tools.models.families.scgpt import scgpt
from scgpt_tools.train.checkpoints import run_folder, whole_files
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

warnings.simplefilter("ignore")
sct.settings.show_progress = False


class Loop:
    """Something that is written over and over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        """Write the first version."""

    def write(self) -> None:
        """Write without end, or to the end."""

    def check(self) -> None:
        """Fail if anything is mixed or gone."""

    def finish(self) -> None:
        """Write once more, undisturbed, and see that nothing is left behind."""


class Table(Loop):
    """Results in place of a table; those of one version belong together."""

    suffix = ".h5ad"

    def prepare(self) -> None:
        self.path = self.folder / f"cells{self.suffix}"
        table = ad.AnnData(sp.random(400, 50, 0.3, format="csr", dtype=np.float32, random_state=0))
        if self.suffix == ".h5ad":
            table.write_h5ad(self.path)
        else:
            ad.io.write_elem(zarr.open_group(self.path, mode="w"), "/", table)
        self.once(0)

    def once(self, version: int) -> None:
        rows = np.full((400, 16), version, dtype=np.float32)
        column = pd.Series(np.full(400, version), index=[str(i) for i in range(400)])
        results = {"obsm": {"X_scGPT": rows}, "obs": {"version": column}, "uns": {"X_scGPT": {"version": version}}}
        write_results(self.path, self.path, results, overwrite=True)

    def write(self) -> None:
        for version in range(1, 10**6):
            self.once(version)

    def read(self) -> ad.AnnData:
        return ad.read_h5ad(self.path) if self.suffix == ".h5ad" else ad.read_zarr(self.path)

    def check(self) -> None:
        table = self.read()
        version = int(table.uns["X_scGPT"]["version"])
        assert table.X.shape == (400, 50)
        assert (table.obsm["X_scGPT"] == version).all()
        assert (table.obs["version"] == version).all()

    def finish(self) -> None:
        self.once(7)
        self.check()
        assert list(self.folder.iterdir()) == [self.path], list(self.folder.iterdir())


class Folder(Table):
    suffix = ".zarr"


class FolderWithoutExchange(Folder):
    """Where the system cannot exchange two folders, our own readers bring the old one back."""

    def prepare(self) -> None:
        _outputs._exchange = lambda *_: False
        super().prepare()

    def read(self) -> ad.AnnData:
        with open_table(self.path):
            return super().read()


class State(Loop):
    """``last.ckpt`` of a run, with temporary files elsewhere."""

    def prepare(self) -> None:
        self.path = self.folder / "last.ckpt"
        self.once(0)

    def once(self, version: int) -> None:
        state = {name: torch.full((200, 200), float(version)) for name in "abcdef"}
        whole_files().save_checkpoint({"state_dict": state, "version": version}, self.path)

    def write(self) -> None:
        for version in range(1, 10**6):
            self.once(version)

    def check(self) -> None:
        found = torch.load(self.path, weights_only=True)
        assert all(bool((tensor == found["version"]).all()) for tensor in found["state_dict"].values())

    def finish(self) -> None:
        with run_folder(self.folder):
            self.once(7)
        self.check()
        assert list(self.folder.iterdir()) == [self.path], list(self.folder.iterdir())


class Chunks(Loop):
    """Embedding by chunks, begun anew whenever it has come to its end."""

    def prepare(self) -> None:
        self.source, self.output = self.folder / "cells.h5ad", self.folder / "out.zarr"
        names = [f"GENE{i}" for i in range(30)]
        X = sp.random(64, 30, 0.5, format="csr", dtype=np.float32, random_state=0)
        ad.AnnData(X, var=pd.DataFrame(index=names)).write_h5ad(self.source)
        vocabulary = Vocabulary.from_genes(names)
        torch.manual_seed(0)
        self.model = sct.CellModel(scgpt(vocabulary, dim=8, layers=1, heads=2, hidden=8), vocabulary).eval()
        self.once()
        self.expected = ad.read_zarr(self.output)
        self.restart()

    def restart(self) -> None:
        _outputs.remove(self.output)

    def once(self) -> None:
        assert sct.tl.embed_store(self.source, self.output, self.model, chunk=4, device="cpu")

    def write(self) -> None:
        self.once()

    def check(self) -> None:
        if self.output.exists():
            found = ad.read_zarr(self.output)
            np.testing.assert_array_equal(found.obsm["X_scGPT"], self.expected.obsm["X_scGPT"])
            assert list(found.obs_names) == list(self.expected.obs_names)
            assert not list(self.output.rglob("*.partial"))
            self.restart()

    def finish(self) -> None:
        self.once()
        self.check()
        assert list(self.folder.iterdir()) == [self.source], list(self.folder.iterdir())


class Screen(Loop):
    """Finished perturbations of a screen."""

    def prepare(self) -> None:
        self.cells, self.store = screen(4), self.folder / "store"
        self.model, self.perts = generator(self.cells.var_names), [f"G{i}" for i in range(40)]
        self.expected = sct.tl.screen(self.cells, self.perts, self.model, n_controls=8)

    def once(self) -> ad.AnnData:
        return sct.tl.screen(self.cells, self.perts, self.model, n_controls=8, store=self.store)

    def write(self) -> None:
        self.once()

    def check(self) -> None:
        files = sorted(self.store.glob("*.f4")) if self.store.exists() else []
        assert all(path.stat().st_size == 32 + 8 * self.cells.n_vars for path in files)
        if len(files) == len(self.perts):
            self.finish()
            _outputs.remove(self.store)

    def finish(self) -> None:
        np.testing.assert_array_equal(self.once().X, self.expected.X)
        names = {path.name for path in self.store.iterdir()}
        assert len(names) == len(self.perts) + 1, names


KINDS = {
    "h5ad": Table,
    "zarr": Folder,
    "last.ckpt": State,
    "embed_store": Chunks,
    "screen": Screen,
    "zarr without exchange": FolderWithoutExchange,
}


def forked(work, *, until: float | None = None, limit: int | None = None) -> bool:
    """Do something in a process of its own, killed after some seconds, or without room for longer files; is it done?"""
    child = os.fork()
    if child == 0:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except (OSError, ValueError):
            os._exit(3)
        except BaseException:  # noqa: BLE001 - told by the exit status
            import traceback

            traceback.print_exc()
            os._exit(4)
        os._exit(0)
    deadline = None if until is None else time.monotonic() + until
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 3, -signal.SIGKILL), code
            return code == 0
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.0005)


def run(kind: str, how: str, times: int, folder: Path) -> None:
    folder.mkdir()
    loop = KINDS[kind](folder)
    once = partial(loop.once, 3) if hasattr(loop, "path") else loop.once
    started = time.monotonic()
    forked(once)
    duration = time.monotonic() - started
    loop.check()
    ended, rng = 0, np.random.default_rng(0)
    for number in range(times):
        if how == "killed":
            # From the first moments to some way into the second time.
            ended += forked(loop.write, until=float(rng.uniform(0.0, 1.2)) * duration)
        else:
            ended += forked(once, limit=int(2 ** (6 + 16 * number / times)))
        loop.check()
    loop.finish()
    print(f"{kind}: {how} {times} times, {ended} of them came to the end; nothing mixed, nothing gone.", flush=True)


def main(kills: str, fills: str, folder: str, *kinds: str) -> None:
    torch.set_num_threads(1)
    # The kind without exchange comes last, for it switches that off.
    for number, kind in enumerate(kinds or KINDS):
        run(kind, "killed", int(kills), Path(folder, f"killed{number}"))
        run(kind, "out of disk", int(fills), Path(folder, f"full{number}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
