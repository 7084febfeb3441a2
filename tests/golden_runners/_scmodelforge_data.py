"""Data of scModelForge: shards and orthologues."""

from __future__ import annotations

import json
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from golden_runners._scmodelforge import same, tensors
from scgpt_tools.data.rows import RowSource
from scgpt_tools.data.shards import open_shards, write_shards
from scgpt_tools.models.families.scmodelforge import SPECIALS
from scgpt_tools.tokens import FeatureTable
from scgpt_tools.tokens.orthologs import ortholog_names
from scgpt_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path


def run_shard_folder(folder: Path, case: dict) -> None:
    made, called, recorded = case["constructor_args"], case["call_args"], case["expected"]
    _, inputs, expected = tensors(folder)
    vocabulary = Vocabulary([*SPECIALS, *called["vocab_genes"]])
    obs = {key: called[key] for key in made["obs_keys"] if key in called}
    names = [f"cell{number}" for number in range(len(inputs["counts"]))]
    cells = ad.AnnData(
        inputs["counts"].numpy(), pd.DataFrame(obs, index=names), pd.DataFrame(index=called["data_genes"])
    )
    features = FeatureTable.from_var(cells.var, vocabulary, min_coverage=0)
    # Texts are kept in parquet, for which not every installation has a reader.
    keys = made["obs_keys"] if find_spec("pyarrow") else []
    files = [name for name in recorded["files"] if keys or name != "obs.parquet"]
    with TemporaryDirectory() as name:
        place = write_shards(
            *(RowSource(cells), features, vocabulary, name),
            shard_size=made["shard_size"],
            obs_keys=keys,
            absent="unknown",
        )
        assert json.loads((place / "manifest.json").read_text()) == recorded["manifest"]
        for number, (obs, meta) in enumerate(zip(recorded["obs"], recorded["shard_meta"], strict=True)):
            shard = place / f"shard_{number:03d}"
            assert sorted(path.name for path in shard.iterdir()) == files
            for array in ("X", "gene_indices", "n_genes"):
                same(np.load(shard / f"{array}.npy"), expected[f"{shard.name}/{array}"], case, f"{shard.name}/{array}")
            if keys:
                assert pd.read_parquet(shard / "obs.parquet").to_dict("list") == obs
            assert json.loads((shard / "metadata.json").read_text()) == meta
        found = np.concatenate([shard.matrix(len(vocabulary)).toarray() for shard in open_shards(place, vocabulary)])
        np.testing.assert_array_equal(found[:, features.ids], cells.X[:, features.columns])


def run_orthologs(folder: Path, case: dict) -> None:
    called = case["call_args"]
    _, _, expected = tensors(folder)
    table = pd.DataFrame(called["table"], columns=["human", "mouse", "kind"])
    for many in (False, True):
        recorded = case["expected"][f"one2many={many}"]
        names = ortholog_names(table, one_to_many=many)
        translated = [names.get(symbol, symbol) for symbol in called["mouse_symbols"]]
        assert translated == recorded["translated"]
        assert len(names) == recorded["n_mapped"]
        assert set(names.values()) <= set(recorded["canonical_genes"])
        vocabulary = Vocabulary([*SPECIALS, *recorded["canonical_genes"]])
        ids = vocabulary.ids(translated, unknown=SPECIALS.index("<unk>"))
        same(ids, expected[f"ids_one2many_{int(many)}"], case, f"ids, one2many={many}")
