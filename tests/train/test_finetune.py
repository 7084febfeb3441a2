"""Fine-tuning: what the new model knows, what was trained, and what stays as it was."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import scgpt_tools as sct
from scgpt_tools.models import CellModel
from scgpt_tools.nn.norms import DomainNorm
from scgpt_tools.objectives import BatchAdversary, CellType, ElasticSimilarity, MaskedExpression
from scgpt_tools.tokens.corruptions import MaskValues
from scgpt_tools.train import FitConfig
from scgpt_tools.train.callbacks import History
from scgpt_tools.train.freezing import release, stages
from scgpt_tools.train.tasks import TASKS

QUICK = {"epochs": 1, "batch_size": 16, "lr": 1e-3, "accelerator": "cpu"}


def snapshot(model: CellModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], model: CellModel) -> set[str]:
    """Beginnings of the names of parameters that differ, of those that both have."""
    after = {name: parameter for name, parameter in model.named_parameters() if name in before}
    changed = [name for name, parameter in after.items() if not torch.equal(before[name], parameter)]
    return {".".join(name.split(".")[:3]) if name.startswith("encoder") else name.split(".")[0] for name in changed}


@pytest.fixture
def base(make_model) -> CellModel:
    return make_model(dropout=0.0).eval()


# --- annotation ---------------------------------------------------------------------------------------------------


def test_annotation_is_learnt(base, cells, make_cells, tmp_path):
    query = make_cells(40, seed=5, prefix="query")
    model = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK | {"epochs": 15, "lr": 1e-2})
    folder = model.save(tmp_path / "annotator")
    sct.tl.annotate(query, folder)
    assert (query.obs["scgpt_cell_type"].astype(str) == query.obs["kind"].astype(str)).mean() > 0.9
    assert model.config.heads.cell_type.names == ("even", "odd")
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]
    assert model.history["validation_accuracy"].max() > 0.8
    assert model.name == "untrained (annotate)"


def test_base_model_and_cells_stay_as_they_are(base, cells):
    before, table = snapshot(base), cells.copy()
    state = torch.get_rng_state()
    sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK)
    assert moved(before, base) == set()
    assert list(base.heads) == ["expression", "expression_from_cell"]
    assert base.history is None
    assert cells.obs.equals(table.obs)
    assert (cells.X != table.X).nnz == 0
    assert not cells.uns
    assert torch.equal(torch.get_rng_state(), state), "the global random numbers were used"


def test_the_same_seed_gives_the_same_model(base, cells):
    torch.manual_seed(1)
    first = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK)
    torch.manual_seed(2)
    second = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK)
    third = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK, rng=1)
    assert first.checksum == second.checksum != third.checksum


def test_cells_without_a_type_are_left_out(base, cells, caplog):
    cells.obs.loc[cells.obs_names[:20], "kind"] = np.nan
    with caplog.at_level("INFO", logger="scgpt_tools"):
        model = sct.train.finetune(cells, base, task="annotate", label_key="kind", validation=0.25, **QUICK)
    assert "on 30 cells, validating on 10" in caplog.text
    assert model.config.heads.cell_type.names == ("even", "odd")


def test_validation_cells_are_a_share_of_each_class(base, cells, caplog):
    cells.obs["kind"] = ["rare"] * 10 + ["common"] * 50
    seen = []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, module, batch, *_):
            seen.extend(batch.label.tolist())

    sct.train.finetune(cells, base, task="annotate", label_key="kind", validation=0.2, callbacks=[Watch()], **QUICK)
    assert np.bincount(seen).tolist() == [10, 2]


def test_a_column_can_say_who_validates(base, cells, caplog):
    cells.obs["split"] = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    with caplog.at_level("INFO", logger="scgpt_tools"):
        sct.train.finetune(cells, base, task="annotate", label_key="kind", validation="split", **QUICK)
    assert "on 30 cells, validating on 10" in caplog.text


def test_without_validation_the_last_weights_are_taken(base, cells):
    model = sct.train.finetune(cells, base, task="annotate", label_key="kind", validation=0, **QUICK)
    assert not [name for name in model.history if name.startswith("validation")]


def test_balanced_sampling_shows_rare_classes_as_often(base, cells):
    cells.obs["kind"] = ["rare"] * 6 + ["common"] * 54
    shown = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, *_):
            shown.extend(batch.label.tolist())

    options = QUICK | {"epochs": 8}
    sct.train.finetune(
        cells,
        base,
        task="annotate",
        label_key="kind",
        sampling="balanced",
        callbacks=[Watch()],
        validation=0,
        **options,
    )
    assert np.mean(shown) == pytest.approx(0.5, abs=0.1)


def test_other_objectives_bring_their_heads(base, cells):
    terms = [CellType(), BatchAdversary(weight=0.5), MaskedExpression(weight=0.1), ElasticSimilarity(weight=0.1)]
    model = sct.train.finetune(
        cells, base, task="annotate", label_key="kind", batch_key="batch", objectives=terms, **QUICK
    )
    assert {"cell_type", "batch", "expression"} <= set(model.heads)
    assert model.config.batch_names == ("a", "b")
    assert {f"train_{term.name}" for term in terms} <= set(model.history)


def test_a_second_round_keeps_the_classifier(base, cells):
    first = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK)
    second = sct.train.finetune(cells, first, task="annotate", label_key="kind", validation=0, **QUICK | {"lr": 1e-12})
    before = {name: tensor for name, tensor in snapshot(first).items() if "reference_cells" not in name}
    torch.testing.assert_close(snapshot(second), before, atol=1e-6, rtol=0)


# --- integration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["one_batch", "random"])
def test_integration_knows_its_batches(base, cells, sampling, tmp_path):
    model = sct.train.finetune(
        cells, base, task="integrate", batch_key="batch", sampling=sampling, **QUICK | {"epochs": 2}
    )
    assert model.config.batch_names == ("a", "b")
    assert isinstance(model.embedder.norm, DomainNorm)
    assert model.config.tokenizer.genes == "all"
    means = [norm.running_mean for norm in model.embedder.norm.domains]
    assert not torch.equal(*means)
    assert all(mean.abs().max() > 0 for mean in means)
    names = ["masked_expression", "masked_expression_from_cell", "zero_likelihood", "zero_likelihood_from_cell"]
    assert {f"train_{name}" for name in [*names, "elastic_similarity", "batch_adversary"]} <= set(model.history)
    loaded = CellModel.from_pretrained(model.save(tmp_path / "integrator"), device="cpu")
    for own in (model, loaded):
        sct.tl.embed(cells, own, batch_key="batch", key_added="X_" + own.name[:4])
    first, second = (cells.obsm[key] for key in list(cells.obsm))
    np.testing.assert_array_equal(first, second)


def test_minibatches_of_one_batch_or_of_all(base, cells):
    seen: dict[str, list[int]] = {"one_batch": [], "random": []}

    class Watch(Callback):
        def __init__(self, sampling):
            self.sampling = sampling

        def on_train_batch_start(self, trainer, module, batch, *_):
            seen[self.sampling].append(len(batch.batch_id.unique()))

    for sampling in seen:
        watch = Watch(sampling)
        sct.train.finetune(
            cells, base, task="integrate", batch_key="batch", sampling=sampling, callbacks=[watch], **QUICK
        )
    assert set(seen["one_batch"]) == {1}
    assert max(seen["random"]) == 2


def test_integration_takes_over_what_fits(base, cells):
    """The expression heads are conditioned on the batch, so their first maps are new; all behind them is not."""
    model = sct.train.finetune(
        cells, base, task="integrate", batch_key="batch", validation=0, **QUICK | {"lr": 1e-12, "epochs": 1}
    )
    assert moved(snapshot(base), _only(model, base, atol=1e-6)) <= {"heads"}
    first, rest = model.heads["expression"].value[0].weight, model.heads["expression"].value[2].weight
    assert first.shape[1] == 2 * base.dim
    torch.testing.assert_close(rest, base.heads["expression"].value[2].weight, atol=1e-6, rtol=0)


def test_types_are_not_needed_to_integrate(base, cells, caplog):
    """They only make validation cells a fair share of each."""
    cells.obs.loc[cells.obs_names[:20], "kind"] = np.nan
    with caplog.at_level("INFO", logger="scgpt_tools"):
        sct.train.finetune(cells, base, task="integrate", batch_key="batch", label_key="kind", **QUICK)
    assert "on 54 cells, validating on 6" in caplog.text


def test_a_table_too_small_to_validate_on(base, cells):
    model = sct.train.finetune(cells[:8], base, task="integrate", batch_key="batch", validation=0.05, **QUICK)
    assert "validation_loss" not in model.history


def test_more_genes_than_a_cell_shows_is_a_warning(base, cells):
    with pytest.warns(UserWarning, match="24 genes are known to the model and every cell shows 9 of them"):
        sct.train.finetune(cells, base, task="integrate", batch_key="batch", tokenizer={"length": 10}, **QUICK)


def test_the_corruption_can_be_chosen(base, cells):
    hidden = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, *_):
            hidden.append(batch.hidden[:, 1:].float().mean().item())

    for ratio, corruption in ((0.4, None), (0.25, MaskValues(ratio=0.25))):
        hidden.clear()
        sct.train.finetune(
            cells, base, task="integrate", batch_key="batch", corruption=corruption, callbacks=[Watch()], **QUICK
        )
        assert hidden == pytest.approx([ratio] * len(hidden), abs=0.05)


# --- what is trained ----------------------------------------------------------------------------------------------

PARTS = {"embedder", "encoder.blocks.0", "heads"}


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, PARTS - {"heads"}),
        ({"freeze": "embedder"}, {"encoder.blocks.0"}),
        ({"freeze": "backbone"}, set()),
        ({"lora": 2}, {"encoder.blocks.0"}),
    ],
    ids=["nothing", "embedder", "backbone", "lora"],
)
def test_frozen_parts_do_not_move(base, cells, options, trained):
    before = snapshot(base)
    model = sct.train.finetune(cells, base, task="annotate", label_key="kind", **options, **QUICK)
    assert moved(before, model) == trained
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.history["train_loss"].notna().all()


def test_unfreezing_goes_from_the_last_layer_to_the_embedder(base, cells):
    deep = CellModel(_deeper(base.config, layers=3), base.vocabulary).eval()
    states = [snapshot(deep)]

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, module):
            states.append(snapshot(module.model))

    options = QUICK | {"epochs": 5, "step_factor": 1.0}
    sct.train.finetune(
        cells,
        deep,
        task="annotate",
        label_key="kind",
        freeze="backbone",
        unfreeze_every=1,
        callbacks=[Watch()],
        **options,
    )
    blocks = ["encoder.blocks.2", "encoder.blocks.1", "encoder.blocks.0", "embedder"]
    for epoch in range(5):
        old, new = states[epoch], states[epoch + 1]
        changed = {name for name in old if name in new and not torch.equal(old[name], new[name])}
        assert {part for part in blocks if any(name.startswith(part) for name in changed)} == set(blocks[:epoch])


def test_every_parameter_has_a_stage(base):
    listed = [parameter for stage in stages(base) for parameter in stage]
    assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in base.parameters()}
    assert len(listed) == len(list(base.parameters()))
    release(base, 0)
    assert {name.split(".")[0] for name, p in base.named_parameters() if p.requires_grad} == {"heads"}


def test_heads_can_learn_faster(base, cells):
    steps = {}
    for name, rates in (("same", {}), ("fast", {"head_lr": 1e-2})):
        model = sct.train.finetune(cells, base, task="annotate", label_key="kind", max_steps=1, **rates, **QUICK)
        start = sct.train.finetune(cells, base, task="annotate", label_key="kind", max_steps=1, **QUICK | {"lr": 1e-12})
        steps[name] = {
            part: (model.get_parameter(part) - start.get_parameter(part)).abs().max().item()
            for part in ("heads.cell_type.out.weight", "encoder.blocks.0.attention.query.weight")
        }
    head, backbone = steps["same"]
    assert steps["fast"][head] == pytest.approx(10 * steps["same"][head], rel=0.05)
    assert steps["fast"][backbone] == pytest.approx(steps["same"][backbone], rel=0.05)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_one_class_is_nothing_to_learn(base, cells):
    cells.obs["split"] = np.where(cells.obs["kind"] == "even", "train", "val")
    for column, options in (("only", {}), ("kind", {"validation": "split"})):
        cells.obs["only"] = "even"
        with pytest.raises(ValueError, match=rf"two classes of '{column}' or more to train on, found only \['even'\]"):
            sct.train.finetune(cells, base, task="annotate", label_key=column, **options, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "anotate"}, ValueError, "Did you mean 'annotate'"),
        ({"task": "annotate"}, ValueError, "Expected `label_key`, a column of `obs`, for task='annotate'"),
        ({"task": "integrate"}, ValueError, "Expected `batch_key`, a column of `obs`, for task='integrate'"),
        ({"task": "annotate", "label_key": "kinds"}, KeyError, "Did you mean 'kind'"),
        ({"task": "annotate", "label_key": "kind", "epoch": 3}, TypeError, "Did you mean 'epochs'"),
        (
            {"task": "annotate", "label_key": "kind", "validation": "splits"},
            KeyError,
            "Found no key in `obs`: 'splits'",
        ),
        ({"task": "annotate", "label_key": "kind", "tokenizer": {"lenght": 3}}, ValueError, "Did you mean 'length'"),
        ({"task": "annotate", "label_key": "kind", "validation": 1.0}, ValueError, "`validation` to lie in"),
        (
            {"task": "annotate", "label_key": "kind", "unfreeze_every": 1},
            ValueError,
            "goes with freeze='backbone' only",
        ),
        (
            {"task": "annotate", "label_key": "kind", "lora": 2, "freeze": "backbone"},
            ValueError,
            "freezes the backbone",
        ),
        ({"task": "annotate", "label_key": "kind", "freeze": "heads"}, ValueError, "`freeze` to be one of"),
        ({"task": "annotate", "label_key": "kind", "sampling": "one_batch"}, ValueError, "Expected `batch_key`"),
        (
            {"task": "annotate", "label_key": "kind", "batch_parts": True},
            ValueError,
            "Expected `batch_key`, the column",
        ),
        (
            {"task": "annotate", "label_key": "kind", "objectives": [CellType(), BatchAdversary()]},
            ValueError,
            "the batches to hide",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(base, cells, arguments, error, message):
    with pytest.raises(error, match=message):
        sct.train.finetune(cells, base, **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_key", ["kind"]), ("label_key", ""), ("batch_key", 3), ("layer", ["X"]), ("genes", 0), ("ignore_case", "False"),
        ("modality", 1), ("validation", "  "), ("validation", True), ("validation", -0.1), ("validation", np.nan),
        ("objectives", CellType()), ("objectives", ["cell_type"]), ("objectives", "cell_type"), ("sampling", "blocked"),
        ("tokenizer", "all"), ("dropout", 1.0), ("dropout", -0.1), ("dropout", np.nan), ("dropout", "0"),
        ("batch_parts", "no"), ("freeze", True), ("unfreeze_every", 0), ("lora", 0), ("lora", "8"), ("lora", True),
        ("config", {"epochs": 3}), ("callbacks", History()), ("loggers", "csv"), ("epochs", 0), ("lr", np.nan),
        ("schedule", "triangle"), ("folder", 3), ("resume", "False"), ("rng", 1.5),
    ],
)  # fmt: skip
def test_every_argument_is_checked(base, cells, name, value):
    arguments = {"label_key": "kind"} | QUICK | {name: value}
    with pytest.raises((TypeError, ValueError), match="^Expected ") as caught:
        sct.train.finetune(cells, base, task="annotate", **arguments)
    assert name in str(caught.value) or name == "lora"


@pytest.mark.parametrize("task", ["annotate", "integrate", "perturb"])
def test_what_is_no_table_and_no_model_is_refused(base, cells, task):
    needed = {"annotate": {"label_key": "kind"}, "integrate": {"batch_key": "batch"}}.get(task, {})
    with pytest.raises(TypeError, match="^Expected `adata` to be an AnnData or a MuData, found str"):
        sct.train.finetune("cells.h5ad", base, task=task, **needed)
    with pytest.raises(TypeError, match="^Expected `model` to be a model, its name or its folder, found int"):
        sct.train.finetune(cells, 3, task=task, **needed)


def test_the_model_first_is_taken_with_the_keywords_of_then(base, cells):
    model = sct.train.finetune(cells, base, label_key="kind", rng=3, **QUICK)
    with pytest.warns(FutureWarning) as seen:
        former = sct.train.finetune(base, cells, task="annotate", label="kind", seed=3, **QUICK)
    assert former.checksum == model.checksum
    future = [warning for warning in seen if warning.category is FutureWarning]
    assert {str(warning.message).split(",")[0] for warning in future} == {
        "Expected the cells first", "Expected `label_key`", "Expected `rng`",
    }  # fmt: skip
    assert {warning.filename for warning in seen} == {__file__}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "kind"}, "^Expected `label_key`, a column of the AnnData's obs, found its former name `label`"),
        ({"seed": 1}, "^Expected `rng`, found its former name `seed`"),
        ({"label_key": "kind", "within": "batch"}, "^Expected no `within` for task='annotate', .* of task='perturb'"),
        (
            {"task": "perturb", "batch_key": "batch"},
            "task='perturb'.* of task='annotate', 'regress', 'integrate', 'multiomic'",
        ),
        ({"task": "perturb", "tokenizer": {"length": 9}}, "^Expected no `tokenizer` for task='perturb'"),
    ],
)
def test_arguments_of_then_and_of_other_tasks_are_refused(base, cells, arguments, message):
    with pytest.raises(TypeError, match=message):
        sct.train.finetune(cells, base, **arguments)


def test_the_signature_names_every_argument():
    parameters = inspect.signature(sct.train.finetune).parameters
    assert not [name for name, entry in parameters.items() if entry.kind is entry.VAR_KEYWORD]
    assert {field.name for field in fields(sct.train.FitConfig)} <= set(parameters)
    for task in TASKS.values():
        assert {field.name for field in fields(task)} <= set(parameters)


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_a_generator_gives_another_seed_at_every_call(base, cells, rng):
    first, second = (sct.train.finetune(cells, base, label_key="kind", rng=rng, **QUICK) for _ in range(2))
    assert first.checksum != second.checksum


def test_folders_can_be_texts(base, cells, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "~/other"):
        sct.train.finetune(cells, base, task="annotate", label_key="kind", folder=folder, **QUICK)
    assert (tmp_path / "run" / "last.ckpt").is_file()
    assert (tmp_path / "other" / "history.csv").is_file()


@pytest.mark.parametrize("blank", ["", " "])
def test_blank_labels_are_no_class(base, cells, blank, caplog):
    cells.obs["kind"] = cells.obs["kind"].astype(str)
    cells.obs.loc[cells.obs_names[:20], "kind"] = blank
    with caplog.at_level("INFO", logger="scgpt_tools"):
        model = sct.train.finetune(cells, base, task="annotate", label_key="kind", validation=0.25, **QUICK)
    assert "on 30 cells, validating on 10" in caplog.text
    assert model.config.heads.cell_type.names == ("even", "odd")
    with pytest.raises(ValueError, match=r"Expected a value in obs\['kind'\] of every cell, found none for 20 cells"):
        sct.train.finetune(cells, base, task="integrate", batch_key="kind", **QUICK)


@pytest.mark.parametrize("word", ["valid", "validation", "Val", "VAL "])
def test_another_word_for_validation_is_refused(base, cells, word):
    cells.obs["split"] = ["train"] * 40 + [word] * 20
    with pytest.raises(ValueError, match=f"Expected 'train', 'val' or 'test' in .*found '{word}' .20 cells"):
        sct.train.finetune(cells, base, task="annotate", label_key="kind", validation="split", **QUICK)


def test_a_model_with_batch_parts_wants_their_batches(base, cells, make_cells):
    integrator = sct.train.finetune(cells, base, task="integrate", batch_key="batch", **QUICK)
    with pytest.raises(ValueError, match="Expected `batch_key`, the column"):
        sct.train.finetune(cells, integrator, task="annotate", label_key="kind", **QUICK)
    model = sct.train.finetune(cells, integrator, task="annotate", label_key="kind", batch_key="batch", **QUICK)
    query = make_cells(20, seed=3)
    sct.tl.annotate(query, model, batch_key="batch")
    assert query.obs["scgpt_cell_type"].isin(["even", "odd"]).all()


def _deeper(config, layers):
    return replace(config, encoder=replace(config.encoder, layers=layers))


def _only(model, base, atol):
    """The model with parameters that moved by less than ``atol`` put back."""
    own = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        if name in own and own[name].shape == parameter.shape and (own[name] - parameter).abs().max() < atol:
            parameter.data.copy_(own[name].data)
    return model


def test_integration_says_which_genes_it_knows_and_warns_of_others(base, cells, tmp_path):
    genes = [name for name in cells.var_names if name in base.vocabulary][:8]
    few = cells[:, genes].copy()
    model = sct.train.finetune(few, base, task="integrate", batch_key="batch", **QUICK)
    assert model.config.trained_genes == tuple(genes)
    assert "trained on 8 genes" in repr(model)
    kept = CellModel.from_pretrained(model.save(tmp_path / "integrated"), device="cpu")
    sct.tl.embed(few, kept, batch_key="batch")
    with pytest.warns(
        UserWarning, match=r"the 8 genes that .* was trained on .*, found \d+ others and 0 of them missing"
    ):
        sct.tl.embed(cells, kept, batch_key="batch")
    sct.tl.embed(
        cells, kept, batch_key="batch", mask_var=cells.var_names.isin(kept.config.trained_genes), key_added="X_8"
    )
    np.testing.assert_allclose(cells.obsm["X_8"], few.obsm["X_scGPT"], atol=1e-5)
    annotator = sct.train.finetune(few, base, task="annotate", label_key="kind", **QUICK)
    assert annotator.config.trained_genes is None


def test_genes_that_the_vocabulary_lacks_can_get_tokens(base, cells):
    lacking = [name for name in cells.var_names if name not in base.vocabulary]
    cells = cells.copy()
    cells.var_names = [*cells.var_names[:-1], "NEWGENE"]
    model = sct.train.finetune(cells, base, task="annotate", label_key="kind", extend="all", **QUICK)
    assert set(model.vocabulary.tokens) - set(base.vocabulary.tokens) == {"NEWGENE", *lacking}
    plain = sct.train.finetune(cells, base, task="annotate", label_key="kind", **QUICK)
    assert plain.vocabulary.tokens == base.vocabulary.tokens


def test_the_table_of_the_user_guide_is_what_tasks_take():
    page = (Path(__file__).parents[2] / "docs" / "user_guide" / "training.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.partition("| setting |")[2].partition("\n\n")[0].splitlines()[2:]:
        field, *values = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        rows[field] = dict(zip(TASKS, values, strict=True))
    settings = {name: FitConfig(**kind.fit) for name, kind in TASKS.items()}
    told = {field for kind in TASKS.values() for field in kind.fit}
    assert told <= set(rows)
    for field, row in rows.items():
        assert row == {task: str(getattr(config, field)) for task, config in settings.items()}


def test_help_describes_every_setting():
    text = inspect.getdoc(FitConfig)
    assert [field.name for field in fields(FitConfig) if f"\n{field.name}\n    " not in text] == []
