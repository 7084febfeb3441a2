"""What texts added to predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scgpt_tools import pp, tl
from scgpt_tools.models import FAMILIES, CellModel, to_scgenept
from scgpt_tools.models.scgenept.ablation import ablate
from scgpt_tools.train import finetune
from scgpt_tools.vocabulary import Vocabulary
from screen_tables import screen

GENES = [f"G{i}" for i in range(40)]
TEXTS = {gene: np.random.default_rng(i).normal(size=6) for i, gene in enumerate(GENES[:30])}


def scgpt() -> CellModel:
    vocabulary = Vocabulary.from_genes(GENES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CellModel(FAMILIES["scgpt"](vocabulary, dim=16, layers=1, heads=2, hidden=16), vocabulary).eval()


def rows(model: CellModel, name: str = "text") -> torch.Tensor:
    return model.state_dict()[f"embedder.{name}.table.weight"]


@pytest.fixture(scope="module")
def model() -> CellModel:
    return to_scgenept(scgpt(), "scgenept_ncbi_gpt", TEXTS)


def test_tables_with_other_texts(model):
    kept = rows(model).clone()
    known = torch.from_numpy(model.vocabulary.ids(GENES[:30]))
    others = torch.from_numpy(np.setdiff1d(np.arange(len(model.vocabulary)), known.numpy()))
    zeroed, shuffled, drawn = (rows(ablate(model, how)) for how in ("zeroed", "shuffled", "random"))
    assert not zeroed[known].any()
    assert not torch.equal(shuffled, kept)
    assert torch.equal(shuffled[known].sort(dim=0).values, kept[known].sort(dim=0).values)
    torch.testing.assert_close(drawn[known].norm(dim=1), kept[known].norm(dim=1))
    assert not torch.allclose(drawn[known], kept[known])
    for changed in (zeroed, shuffled, drawn):
        assert torch.equal(changed[others], kept[others])
    assert torch.equal(rows(model), kept)


def test_one_stream_of_two_and_low_rank():
    both = to_scgenept(scgpt(), "scgenept_ncbi_gpt_go_c", {"text": TEXTS, "go": TEXTS}, frozen=True, rank=2)
    with torch.no_grad():
        both.state_dict()["embedder.go.table.change"].fill_(1.0)
    changed = ablate(both, "zeroed", streams="go")
    assert torch.equal(rows(changed), rows(both))
    known = torch.from_numpy(both.vocabulary.ids(GENES[:30]))
    with torch.no_grad():
        assert not changed.embedder.get_submodule("go.table")(known).any()


@pytest.mark.filterwarnings("ignore:The predictions of")
def test_a_table_of_scores_beside_the_baselines(model):
    adata = screen(6)
    pp.perturbation_split(adata, draw="stable")
    tuned = finetune(adata, model, task="perturb", epochs=1, accelerator="cpu", dropout=0.0)
    kept = adata.copy()
    scores = tl.ablate_texts(adata, tuned, n_controls=4, retrained=tuned, metrics=["mse"], show_progress=False)
    methods = set(scores.table["method"])
    assert {"with texts", "texts zeroed", "texts shuffled", "texts random", "retrained"} <= methods
    assert {"no_change", "perturbed_mean", "ceiling"} <= methods
    assert scores.models[0] == "with texts"
    found = scores.compare(others=scores.models[1:])
    assert {"low", "high", "verdict"} <= set(found)
    assert set(found["other"]) == set(scores.models[1:])
    assert (found.loc[found["other"] == "retrained", "difference"] == 0).all()
    wide = scores.table.pivot(index="condition", columns="method", values="value")
    np.testing.assert_array_equal(wide["with texts"], wide["retrained"])
    assert not np.array_equal(wide["with texts"], wide["texts random"])
    assert (adata.X != kept.X).nnz == 0
    assert list(adata.layers) == list(kept.layers)


def test_refusals(model):
    adata = screen(6)
    with pytest.raises(ValueError, match="without"):
        tl.ablate_texts(adata, scgpt())
    with pytest.raises(ValueError, match="no such|Found no|Expected"):
        tl.ablate_texts(adata, model, "no such")
    with pytest.raises(ValueError, match="stream of texts"):
        ablate(model, "zeroed", streams="go")


@pytest.mark.filterwarnings("ignore:The predictions of")
def test_training_again_with_other_texts_in_one_call(model):
    adata = screen(6)
    pp.perturbation_split(adata, draw="stable")
    starts = []

    def train(start: CellModel) -> CellModel:
        starts.append(rows(start).clone())
        return finetune(adata, start, task="perturb", epochs=1, accelerator="cpu", dropout=0.0)

    tuned = train(model)
    scores = tl.ablate_texts(
        adata, tuned, ["shuffled", "zeroed"], start=model, retrain=train, n_controls=4, metrics=["mse"]
    )
    names = [f"{how}texts {other}" for how in ("", "retrained, ") for other in ("zeroed", "shuffled")]
    assert scores.models == ("with texts", *names)
    assert torch.equal(starts[1], rows(ablate(model, "zeroed")))
    assert torch.equal(starts[2], rows(ablate(model, "shuffled", rng=0)))
    wide = scores.table.pivot(index="condition", columns="method", values="value")
    assert not np.array_equal(wide["retrained, texts zeroed"], wide["texts zeroed"])
    for options in ({"start": model}, {"retrain": train}):
        with pytest.raises(ValueError, match="`start` and `retrain` together"):
            tl.ablate_texts(adata, tuned, **options)
    with pytest.raises(TypeError, match="what `retrain` returns"):
        tl.ablate_texts(adata, tuned, "zeroed", start=model, retrain=lambda start: None)
