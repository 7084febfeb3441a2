"""DeepSC: checkpoints of every generation, the names of its authors, and what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from scgpt_tools.models import (
    CellModel,
    DataCollator,
    DeepSCClassifier,
    DeepSCModel,
    build_gene_ids_for_dataset,
    build_vocab_from_csv,
)
from scgpt_tools.models.config import ClassifierConfig, GenesConfig
from scgpt_tools.models.deepsc.losses import PretrainingLoss
from scgpt_tools.models.deepsc.vocabulary import expressed_cells
from scgpt_tools.models.families import FAMILIES
from scgpt_tools.models.families.deepsc import cell_tokenizer
from scgpt_tools.nn.mixture import routers
from scgpt_tools.tokens.gene_tables import read_gene_table
from scgpt_tools.vocabulary import Vocabulary

GENES = [f"GENE{number}" for number in range(20)]
SIZES = {"embedding_dim": 8, "num_genes": 20, "num_layers": 3, "num_heads": 2, "num_bins": 5}
SIZES |= {"gene_embedding_participate_til_layer": 2}
MOE = {"n_moe_layers": 1, "use_moe_ffn": True, "moe_inter_dim": 4, "n_routed_experts": 3, "score_func": "sigmoid"}
MOE |= {"n_activated_experts": 2, "route_scale": 1.0}
OTHER_FILE = {"num_layers": 3, "gene_embedding_participate_til_layer": 2, "alpha": 0.1, "mask_layer_start": None}
KINDS = {
    "dual": ({"attention_stream": 2}, "base"),
    "single": ({"attention_stream": 1, "cross_attention_architecture": "B", "use_moe_regressor": False}, "base"),
    "experts": ({"attention_stream": 2, "cross_attention_architecture": "C", "moe": MOE}, "base"),
    "deep": ({"attention_stream": 2, "num_layers_ffn": 3}, "base"),
    "v1": ({"attention_stream": 2}, "v1"),
    "v2": ({"attention_stream": 1}, "v2"),
    "l0": ({"alpha": 0.3, "mask_layer_start": 1}, "l0"),
    "l0 without gates": ({"use_M_matrix": False, "alpha": 0.2}, "l0"),
    "l0, few layers of both streams": (
        OTHER_FILE | {"gene_embedding_participate_til_layer": 1, "dual_layers": 1},
        "l0",
    ),
    "l0, the other file": (OTHER_FILE | {"dual_layers": 2, "use_M_matrix": False}, "l0"),
    "l1": ({}, "l1"),
    "l1 without unused maps": ({"fused": False}, "l1"),
    "l1 of expression alone": ({"gene_embedding_participate_til_layer": 0}, "l1"),
}


def model_of(kind: str) -> DeepSCModel:
    changes, generation = KINDS[kind]
    torch.manual_seed(0)
    return DeepSCModel(**SIZES | changes, generation=generation).eval()


def inputs(padding: int = 0) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    genes = np.stack([random.permutation(20)[:6] + 1 for _ in range(3)])
    bins, values = random.integers(1, 6, size=genes.shape), random.uniform(0.1, 5, size=genes.shape)
    genes[:, 0], bins[:, 0], values[:, 0] = 21, 6, 6
    more = ((0, 0), (0, padding))
    found = {"gene_ids": genes, "expression_bin": bins, "normalized_expr": values.astype(np.float32)}
    return {name: torch.from_numpy(np.pad(array, more)) for name, array in found.items()}


def call(model: DeepSCModel) -> tuple[torch.Tensor | None, ...]:
    given = inputs()
    if model.generation == "v2":
        del given["expression_bin"]
    if model.generation in ("v1", "v2"):
        given["input_pert_flags"] = (given["gene_ids"] == 3).long()
    if getattr(model.cell_model.encoder, "gates", None) is not None:
        model.cell_model.encoder.gates.noise = torch.zeros(3, 6, 6, 3)
    with torch.no_grad():
        return model(**given)


@pytest.fixture
def gene_map(tmp_path):
    path = tmp_path / "genes" / "gene_map.csv"
    path.parent.mkdir()
    names = [*GENES, "ALIAS3"]
    pd.DataFrame({"feature_name": names, "id": [*range(20), 3]}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_read_and_written_back(kind, tmp_path, gene_map):
    theirs = model_of(kind)
    file = tmp_path / "x.ckpt"
    torch.save({"model": {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, "epoch": 3}, file)
    said = {"num_heads": 2, "cross_attention_architecture": "A", **KINDS[kind][0]}
    ours = CellModel.from_pretrained(file, vocabulary=gene_map, settings=said, device="cpu")
    assert ours.config == theirs.cell_model.config
    assert ours.vocabulary["ALIAS3"] == ours.vocabulary["GENE3"] == 4 or "GENE3" in ours.vocabulary.aliases
    ours.export(tmp_path / "out")
    again = CellModel.from_pretrained(tmp_path / "out", device="cpu")
    assert again.config == ours.config
    assert again.vocabulary == ours.vocabulary
    written = torch.load(tmp_path / "out" / "best_model.pt", weights_only=True)
    assert {name: tensor.tolist() for name, tensor in written.items()} == {
        name: tensor.tolist() for name, tensor in theirs.state_dict().items()
    }
    ours.save(tmp_path / "native")
    saved = CellModel.from_pretrained(tmp_path / "native", device="cpu")
    assert saved.checksum == ours.checksum
    assert saved.vocabulary.ids(["ALIAS3", "GENE19"]).tolist() == [4, 20]
    second = model_of(kind)
    second.load_state_dict(written)
    for found, expected in zip(call(second), call(theirs), strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_layers_of_the_first_generation_are_counted_in_tensors(tmp_path, gene_map):
    """Either file's arguments describe a checkpoint, and without any it is read all the same."""
    theirs = model_of("l0, few layers of both streams")
    torch.save(theirs.state_dict(), tmp_path / "x.ckpt")
    said = {"num_heads": 2, "alpha": 0.1, "mask_layer_start": None}
    told = {"num_layers": 3, "gene_embedding_participate_til_layer": 1}
    for settings in (said, said | told):
        ours = CellModel.from_pretrained(tmp_path / "x.ckpt", vocabulary=gene_map, settings=settings, device="cpu")
        assert ours.config == theirs.cell_model.config
    with pytest.warns(UserWarning, match="mask_layer_start"):
        CellModel.from_pretrained(
            tmp_path / "x.ckpt", vocabulary=gene_map, settings={"num_heads": 2, "alpha": 0.1}, device="cpu"
        )


def test_other_scores_of_experts_are_sigmoids_that_nothing_divides():
    """As the original, which divides by the sum under the name "sigmoid" alone."""
    given = SIZES | {"attention_stream": 2, "moe": MOE}
    torch.manual_seed(0)
    plain = DeepSCModel(**given | {"moe": MOE | {"score_func": "tanh"}}).eval()
    (router,) = routers(plain.cell_model).values()
    weights, chosen = router(x := torch.randn(5, 8))
    torch.testing.assert_close(weights, router.score(x).sigmoid().gather(1, chosen))
    scaled = DeepSCModel(**given).eval()
    scaled.load_state_dict(plain.state_dict())
    assert (scaled(**inputs())[1] - plain(**inputs())[1]).abs().max() > 1e-4


def test_classifiers_are_read_with_the_names_of_their_classes(tmp_path, gene_map):
    torch.manual_seed(0)
    theirs = DeepSCClassifier(model_of("dual"), n_cls=3, num_layers_cls=2, cell_emb_style="cls").eval()
    weights = {"model": theirs.state_dict(), "id2type": {0: "B", 1: "NK", 2: "T"}, "epoch": 1}
    torch.save(weights, tmp_path / "x.ckpt")
    said = {"num_heads": 2, "cross_attention_architecture": "A", "classifier": {"cell_emb_style": "cls"}}
    ours = CellModel.from_pretrained(tmp_path / "x.ckpt", vocabulary=gene_map, settings=said, device="cpu")
    assert ours.config.heads.cell_type.names == ("B", "NK", "T")
    given = inputs()
    batch = model_of("dual").batch(**given)
    with torch.no_grad():
        expected = theirs(given["gene_ids"], given["normalized_expr"], given["expression_bin"])
        torch.testing.assert_close(ours(batch)["cell_type"], expected)
    ours.export(tmp_path / "out")
    assert CellModel.from_pretrained(tmp_path / "out", device="cpu").config == ours.config


def test_padding_changes_cells_unless_it_is_hidden():
    plain, masked = model_of("dual"), DeepSCModel(**SIZES, attention_stream=2, padding_mask=True).eval()
    masked.load_state_dict(plain.state_dict())
    with torch.no_grad():
        change = [
            (model(**inputs(padding=4))[1][:, :6] - model(**inputs())[1]).abs().max() for model in (plain, masked)
        ]
        torch.testing.assert_close(masked(**inputs())[1], plain(**inputs())[1])
    assert change[0] > 1e-4
    assert change[1] < 1e-6


def test_base_models_become_models_of_perturbations():
    base = model_of("dual")
    first, second = base.to_perturbation("v1").eval(), base.to_perturbation("v2").eval()
    given = inputs()
    flags = torch.zeros_like(given["gene_ids"])
    with torch.no_grad():
        torch.testing.assert_close(first(**given, input_pert_flags=flags)[1], base(**given)[1])
        assert second(given["gene_ids"], given["normalized_expr"], flags)[1].isfinite().all()
    assert "embedder.values.first.weight" in second.cell_model.transfer.missing


def test_usage_of_experts_is_counted_in_training_only(capsys):
    model = model_of("experts")
    call(model)
    assert all(stats["total_tokens"] == 0 for stats in model.get_all_moe_stats().values())
    call(model.train())
    (stats,) = model.get_all_moe_stats().values()
    assert stats["total_tokens"] == 2 * 18
    assert sum(stats["expert_usage_ratio"]) == pytest.approx(1)
    (router,) = routers(model.cell_model).values()
    router.picks[:] = torch.tensor([35.0, 1, 0])
    ((name, result),) = model.check_moe_collapse().items()
    assert name == "expression_layer_0_expr_ffn"
    assert result["is_collapsed"]
    assert result["collapse_ratio"] == pytest.approx(35 / 36)
    assert model.print_moe_collapse_report()
    assert f"{name}: collapsed" in capsys.readouterr().out
    assert not model.print_moe_collapse_report(threshold=1.0)
    model.reset_all_moe_stats()
    assert router.usage().total == 0
    assert model_of("single").get_all_moe_stats() == {}


def test_tensors_of_another_generation_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"missing: pert_encoder.*generation 'base'.*not 'v1'"):
        model_of("v1").load_state_dict(model_of("dual").state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_stream": 3}, "`attention_stream` to be 1"),
        ({"cross_attention_architecture": "D"}, "cross_attention_architecture"),
        ({"embedding_dim": 9}, "multiple of the number of heads"),
        ({"gene_embedding_participate_til_layer": 4}, "within 0 .. num_layers=3"),
        ({"moe": {"n_moe_layer": 1}}, "n_moe_layer"),
        ({"generation": "v3"}, "generation"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DeepSCModel(**SIZES | changes)


def test_inputs_that_cannot_be_are_refused():
    model, given = model_of("dual"), inputs()
    with pytest.raises(ValueError, match=r"`gene_ids` within 0 .. 21, found .* 40"):
        model(**given | {"gene_ids": torch.full_like(given["gene_ids"], 40)})
    with pytest.raises(ValueError, match="finite numbers in `normalized_expr`"):
        model(**given | {"normalized_expr": torch.full_like(given["normalized_expr"], torch.nan)})
    with pytest.raises(TypeError, match="no expression_bin"):
        model(given["gene_ids"])
    with pytest.raises(TypeError, match="named 'flags'"):
        model(**given, flags=1)
    with pytest.raises(ValueError, match="include_zero_gene"):
        model_of("v1").pred_perturb(None, include_zero_gene="some", gene_ids=np.zeros(2), genes=["A", "B"])


def test_tables_of_genes(tmp_path, gene_map):
    vocabulary = read_gene_table(gene_map)
    assert (vocabulary.pad_id, vocabulary.cls_id, len(vocabulary)) == (0, 21, 22)
    assert vocabulary.ids(["GENE0", "ALIAS3", "GENE3"]).tolist() == [1, 4, 4]
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    holes = tmp_path / "holes.csv"
    pd.DataFrame({"feature_name": ["A", "NA"], "id": [0, 3]}).to_csv(holes, index=False)
    assert read_gene_table(holes).tokens == ("<pad>", "A", "<row 1>", "<row 2>", "NA", "<cls>")
    with pytest.raises(ValueError, match=r"rows within 0 .. 1, those of the model, found 3 for 'NA'"):
        read_gene_table(holes, genes=2)
    for text, message in (
        ("name,id\nA,0\n", "columns 'feature_name' and 'id'"),
        ("feature_name,id\nA,-1\n", "found '-1' for 'A'"),
        ("feature_name,id\nA,x\n", "found 'x' for 'A'"),
        ("feature_name,id\n", "found no rows"),
        ("", "table with commas"),
    ):
        holes.write_text(text)
        with pytest.raises(ValueError, match=message):
            build_vocab_from_csv(holes)
    with pytest.raises(ValueError, match="aliases that are no tokens"):
        Vocabulary(["A", "<pad>"], aliases={"B": "C"})


def test_genes_of_no_table_are_refused(gene_map):
    ids, *_ = build_vocab_from_csv(gene_map)
    with pytest.raises(ValueError, match="found none of 2, such as"):
        build_gene_ids_for_dataset(["ENSG1", "ENSG2"], ids)
    with pytest.raises(ValueError, match="found none of 1"):
        expressed_cells(np.ones((1, 1)), ["ENSG1"], [("A", 0)])


def test_collators_refuse_what_no_model_reads():
    collator = DataCollator(num_bins=5, num_genes=20, max_length=8)
    with pytest.raises(ValueError, match="ids of genes up to 20, found 21"):
        collator([{"genes": [20], "expressions": [1.0]}])
    with pytest.raises(ValueError, match="NaN"):
        collator([{"genes": [2], "expressions": [np.nan]}])
    with pytest.raises(TypeError, match="examples"):
        collator([[1, 2]])
    for changes in ({"max_length": None}, {"mlm_probability": 1.5}, {"dynamic_mask_probabilities": {1: 0.5}}):
        with pytest.raises(ValueError, match="Expected"):
            DataCollator(**{"num_bins": 5, "max_length": 8} | changes)


def test_losses_need_what_they_are_made_of():
    with pytest.raises(ValueError, match="class_counts"):
        PretrainingLoss(use_ldam_loss=True)
    with pytest.raises(ValueError, match="enable_huber_loss"):
        PretrainingLoss(enable_huber_loss=False)
    with pytest.raises(ValueError, match="regression loss"):
        PretrainingLoss(use_normal_regression_loss=False)


def test_of_several_ways_to_weigh_values_the_first_counts():
    """Alike before level before exponential, as in the original; alike if nothing is said."""
    torch.manual_seed(0)
    target, mask = torch.rand(3, 7) * 7, torch.ones(3, 7, dtype=torch.bool)

    def of(**switches):
        return float(
            PretrainingLoss(enable_ce=False, **switches)(None, None, torch.zeros(3, 7), target, mask).regression
        )

    plain, level, exponential = of(), of(use_hard_regression_loss=True), of(use_exp_regression_loss=True)
    assert len({plain, level, exponential}) == 3
    assert of(use_hard_regression_loss=True, use_exp_regression_loss=True) == level
    assert of(use_normal_regression_loss=True, use_exp_regression_loss=True) == plain


def test_values_that_were_not_binned_are_hidden_by_the_bin_that_they_are():
    cell = {"genes": np.array([1, 4, 7, 9]), "expressions": np.array([1.0, 2.5, 30.0, 2.0], dtype=np.float32)}
    given = {"num_bins": 2, "num_genes": 20, "max_length": 9, "do_binning": False, "pad_value": -2}
    collator = DataCollator(**given, dynamic_mask_probabilities={1: 1.0, 2: 1.0}, use_max_cell_length=False)
    found = collator([cell])
    assert found["mask"][0].tolist() == [False, True, False, False, True, *[False] * 4]
    sure = DataCollator(**given, mlm_probability=0.999999, use_max_cell_length=False)([cell])
    assert sure["mask"][0].tolist() == [False, *[True] * 4, *[False] * 4]
    with pytest.raises(ValueError, match="`cell_type_id`"):
        DataCollator(**given, cell_type=True)([cell])


@pytest.mark.parametrize("pooling", ["mean_with_padding", "cls"])
def test_exports_keep_what_the_original_has_no_words_for(pooling, tmp_path, gene_map):
    vocabulary = read_gene_table(gene_map)
    plan = FAMILIES["deepsc"](vocabulary, dim=8, layers=2, heads=2, tokenizer=replace(cell_tokenizer(5), length=7))
    heads = plan.heads.replace(cell_type=ClassifierConfig(classes=2, names=("B", "T")))
    encoder = replace(plan.encoder, pooled="fused")
    model = CellModel(replace(plan, heads=heads, encoder=encoder, pooling=pooling), vocabulary)
    model.export(tmp_path / "classifier")
    again = CellModel.from_pretrained(tmp_path / "classifier", device="cpu").config
    assert again.encoder.pooled == "fused"
    assert (again.pooling, again.tokenizer) == (pooling, model.config.tokenizer)
    flagged = replace(FAMILIES["deepsc_perturbation"](vocabulary, dim=8, layers=2, heads=2), perturbation_flags=(1, 2))
    CellModel(flagged, vocabulary).export(tmp_path / "flags")
    assert CellModel.from_pretrained(tmp_path / "flags", device="cpu").config.perturbation_flags == (1, 2)


@pytest.mark.parametrize("changes", [{"padding_mask": True}, {"hidden": 9}])
def test_exports_refuse_what_the_original_lacks(changes, tmp_path, gene_map):
    vocabulary = read_gene_table(gene_map)
    model = CellModel(FAMILIES["deepsc"](vocabulary, dim=8, layers=2, heads=2, **changes), vocabulary)
    with pytest.raises(ValueError, match="keep this model with `save`"):
        model.export(tmp_path / "out")


@pytest.mark.parametrize(
    ("pooled", "pooling", "message"),
    [("values", "cls", "pooled='fused'"), ("fused", "mean", "pools by 'cls' or 'mean_with_padding'")],
)
def test_exports_refuse_classifiers_of_other_cells(pooled, pooling, message, tmp_path, gene_map):
    vocabulary = read_gene_table(gene_map)
    plan = FAMILIES["deepsc"](vocabulary, dim=8, layers=2, heads=2)
    plan = replace(plan, encoder=replace(plan.encoder, pooled=pooled), pooling=pooling)
    CellModel(plan, vocabulary).export(tmp_path / "base")
    classifier = replace(plan, heads=plan.heads.replace(cell_type=ClassifierConfig(classes=2, names=("B", "T"))))
    with pytest.raises(ValueError, match=message):
        CellModel(classifier, vocabulary).export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_mean_of_the_original_counts_padding(tmp_path, gene_map):
    theirs = DeepSCClassifier(model_of("dual"), n_cls=3)
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    said = {"num_heads": 2, "cross_attention_architecture": "A"}
    ours = CellModel.from_pretrained(tmp_path / "x.pt", vocabulary=gene_map, settings=said, device="cpu")
    assert ours.config.pooling == theirs.cell_model.config.pooling == "mean_with_padding"


@pytest.mark.parametrize("kind", ["l0", "l1"])
def test_first_generations_take_no_flags(kind):
    with pytest.raises(ValueError, match="first generations, whose layers read no flags"):
        model_of(kind).to_perturbation()


def test_surplus_inputs_are_counted():
    given = list(inputs().values())
    with pytest.raises(TypeError, match="at most 5 inputs after `gene_ids`"):
        model_of("dual")(*given, None, None, None, None)


def test_cells_of_zeros_are_predicted_as_zeros():
    batch = SimpleNamespace(x=torch.zeros(6, 1), pert=["A+ctrl", "B+ctrl"])
    predicted = model_of("v1").pred_perturb(batch, gene_ids=np.arange(1, 4), genes=["A", "B", "C"])
    assert predicted.tolist() == [[0.0] * 3] * 2


def test_parts_that_streams_do_not_read_are_refused(gene_map):
    plan = FAMILIES["deepsc"](read_gene_table(gene_map), dim=8, layers=2, heads=2)
    parts = plan.embedder.parts
    more = parts.replace(positions=GenesConfig())
    for embedder in (replace(plan.embedder, norm="layer"), replace(plan.embedder, parts=more)):
        with pytest.raises(ValueError, match="leave them out"):
            replace(plan, embedder=embedder)


def test_streams_have_no_place_for_cells():
    model = model_of("dual")
    with pytest.raises(ValueError, match="reads one stream"):
        model.cell_model(model.batch(**inputs()), cell=torch.zeros(3, 8))


def test_settings_of_experts_are_needed_and_compared(tmp_path, gene_map):
    torch.save(model_of("experts").state_dict(), tmp_path / "x.pt")
    said = {"num_heads": 2, "cross_attention_architecture": "C", "moe": {"score_func": "sigmoid"}}
    with pytest.warns(UserWarning, match=r"say moe.n_activated_experts, moe.route_scale, which"):
        CellModel.from_pretrained(tmp_path / "x.pt", vocabulary=gene_map, settings=said, device="cpu")
    said["moe"] = MOE | {"n_routed_experts": 4}
    with pytest.raises(ValueError, match=r"moe.n_routed_experts=3, as the tensors say, found 4"):
        CellModel.from_pretrained(tmp_path / "x.pt", vocabulary=gene_map, settings=said, device="cpu")


def test_inputs_that_cannot_belong_together_are_refused():
    model = model_of("dual").to_perturbation("v1")
    given = inputs()
    flags = torch.zeros_like(given["gene_ids"])
    with pytest.raises(ValueError, match=r"`input_pert_flags` within 0 \.\. 3, found 0 \.\. 7"):
        model(**given, input_pert_flags=flags.index_fill(1, torch.tensor([0]), 7))
    with pytest.raises(ValueError, match=r"`normalized_expr` of the shape"):
        model(**given | {"normalized_expr": given["normalized_expr"][:, 1:]}, input_pert_flags=flags)
    cells = SimpleNamespace(x=torch.ones(6, 1), pert=["ctrl", "A+ctrl"])
    with pytest.raises(ValueError, match="found 2 ids and 6 rows in place of 6"):
        model.pred_perturb(cells, "all", gene_ids=[1, 2], genes=["A", "B", "C"])
    with pytest.raises(ValueError, match="found 2 ids and 6 rows in place of 4"):
        model.pred_perturb(cells, "all", gene_ids=[1, 2], genes=["A", "B"])
