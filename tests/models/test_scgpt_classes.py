"""The names that scGPT users know: arguments in the originals' order, their results, refusals and tensor names."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scgpt_tools.models import MultiOmicTransformerModel, TransformerGenerator, TransformerModel, load_pretrained

VOCAB = {"<pad>": 20, "<cls>": 21, "<eoc>": 22}
SIZES = {"ntoken": 23, "d_model": 16, "nhead": 2, "d_hid": 24, "nlayers": 2, "vocab": VOCAB, "dropout": 0.0}

# Written down from the description of the originals: name and default, in the order of the positions.
MODEL = [
    "ntoken", "d_model", "nhead", "d_hid", "nlayers", ("nlayers_cls", 3), ("n_cls", 1), ("vocab", None),
    ("dropout", 0.5), ("pad_token", "<pad>"), ("pad_value", 0), ("do_mvc", False), ("do_dab", False),
    ("use_batch_labels", False), ("num_batch_labels", None), ("domain_spec_batchnorm", False),
    ("input_emb_style", "continuous"), ("n_input_bins", None), ("cell_emb_style", "cls"),
    ("mvc_decoder_style", "inner product"), ("ecs_threshold", 0.3), ("explicit_zero_prob", False),
    ("use_fast_transformer", False), ("fast_transformer_backend", "flash"), ("pre_norm", False),
]  # fmt: skip
MULTIOMIC = [*MODEL, ("use_mod", False), ("ntokens_mod", None), ("vocab_mod", None)]
GENERATOR = [
    "ntoken", "d_model", "nhead", "d_hid", "nlayers", "nlayers_cls", "n_cls", "vocab", ("dropout", 0.5),
    ("pad_token", "<pad>"), ("pad_value", 0), ("pert_pad_id", 2), ("do_mvc", False), ("domain_spec_batchnorm", False),
    ("n_input_bins", 0), ("cell_emb_style", "cls"), ("mvc_decoder_style", "inner product"),
    ("decoder_activation", None), ("decoder_adaptive_bias", False), ("ecs_threshold", 0.3),
    ("explicit_zero_prob", False), ("use_fast_transformer", False), ("fast_transformer_backend", "flash"),
    ("pre_norm", False),
]  # fmt: skip
FLAGS = [("CLS", False), ("CCE", False), ("MVC", False), ("ECS", False), ("do_sample", False)]
CALLS = {
    TransformerModel.__init__: MODEL,
    MultiOmicTransformerModel.__init__: MULTIOMIC,
    TransformerGenerator.__init__: GENERATOR,
    TransformerModel.forward: ["src", "values", "src_key_padding_mask", ("batch_labels", None), *FLAGS],
    MultiOmicTransformerModel.forward: [
        "src", "values", "src_key_padding_mask", ("batch_labels", None), *FLAGS, ("mod_types", None),
    ],
    TransformerGenerator.forward: ["src", "values", "input_pert_flags", "src_key_padding_mask", *FLAGS],
    TransformerModel.generate: [
        "cell_emb", "src", ("values", None), ("src_key_padding_mask", None), ("gen_iters", 1), ("batch_labels", None),
    ],
    TransformerModel.encode_batch: [
        "src", "values", "src_key_padding_mask", "batch_size", ("batch_labels", None), ("output_to_cpu", True),
        ("time_step", None), ("return_np", False),
    ],
    TransformerGenerator.pred_perturb: [
        "batch_data", ("include_zero_gene", "batch-wise"), ("gene_ids", None), ("amp", True),
    ],
    load_pretrained: ["model", "pretrained_params", ("strict", False), ("prefix", None), ("verbose", True)],
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_arguments_stand_where_the_originals_have_them(call):
    parameters = [parameter for name, parameter in inspect.signature(call).parameters.items() if name != "self"]
    positional = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    found = [p.name if p.default is p.empty else (p.name, p.default) for p in positional]
    assert found == CALLS[call]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[len(positional) :])


def model(cls=TransformerModel, **options):
    torch.manual_seed(0)
    if cls is TransformerGenerator:
        options = {"nlayers_cls": 3, "n_cls": 2} | options
    return cls(**SIZES | options).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    src = torch.randint(0, 20, (4, 6), generator=random)
    values = torch.rand(4, 6, generator=random) * 5
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[1, 4:] = True
    src[:, 0], src[padding] = 21, 20
    return {"src": src, "values": values, "src_key_padding_mask": padding}


def test_positional_and_keyword_arguments_agree(inputs):
    named = model(n_cls=4, do_mvc=True, use_batch_labels=True, num_batch_labels=3)
    torch.manual_seed(0)
    by_place = TransformerModel(23, 16, 2, 24, 2, 3, 4, VOCAB, 0.0, "<pad>", 0, True, False, True, 3).eval()
    assert by_place.cell_model.config == named.cell_model.config
    labels = torch.tensor([0, 1, 2, 0])
    first = by_place(*inputs.values(), labels, True, False, True)
    second = named(**inputs, batch_labels=labels, CLS=True, MVC=True)
    assert first.keys() == second.keys() == {"mlm_output", "cell_emb", "cls_output", "mvc_output"}
    torch.testing.assert_close(first, second)


def test_padding_of_modalities_goes_by_a_positional_name():
    vocab, modalities = {"[PAD]": 20}, {"[PAD]": 1}
    options = dict(MULTIOMIC[5:]) | {"vocab": vocab, "pad_token": "[PAD]"}
    options |= {"use_mod": True, "ntokens_mod": 3, "vocab_mod": modalities}
    built = MultiOmicTransformerModel(23, 16, 2, 24, 2, *options.values())
    assert built.cell_model.config.context.modality_pad == 1
    assert built.cell_model.config.pad_id == 20


# Results --------------------------------------------------------------------------------------------------------------


def test_results_as_asked_for(inputs):
    net = model(do_mvc=True, do_dab=True, num_batch_labels=2, explicit_zero_prob=True, n_cls=5)
    always = {"mlm_output", "mlm_zero_probs", "cell_emb", "dab_output"}
    assert net(**inputs).keys() == always
    every = net(**inputs, CLS=True, CCE=True, MVC=True, ECS=True)
    assert every.keys() == always | {"cls_output", "loss_cce", "mvc_output", "mvc_zero_probs", "loss_ecs"}
    shapes = {name: tuple(result.shape) for name, result in every.items()}
    assert shapes == {
        "mlm_output": (4, 6), "mlm_zero_probs": (4, 6), "cell_emb": (4, 16), "dab_output": (4, 2), "cls_output": (4, 5),
        "loss_cce": (), "mvc_output": (4, 6), "mvc_zero_probs": (4, 6), "loss_ecs": (),
    }  # fmt: skip


def test_sampling_sets_predictions_to_zero_and_nothing_else(inputs):
    net = model(explicit_zero_prob=True)
    plain, sampled = net(**inputs)["mlm_output"], net(**inputs, do_sample=True)["mlm_output"]
    kept = sampled != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(sampled[kept], plain[kept])
    assert torch.equal(net(**inputs)["mlm_output"], plain)


def test_gene_embeddings_of_the_last_call(inputs):
    net = model()
    assert net.cur_gene_token_embs is None
    net(**inputs)
    torch.testing.assert_close(net.cur_gene_token_embs, net.encoder(inputs["src"]))


def test_attributes_that_scripts_read(inputs):
    net = model(use_fast_transformer=False)
    assert (net.d_model, net.use_fast_transformer) == (16, False)
    assert net.value_encoder(inputs["values"]).shape == (4, 6, 16)
    assert len(net.transformer_encoder.layers) == 2


def test_the_generator_returns_no_cell_embedding(inputs):
    net = model(TransformerGenerator, do_mvc=True)
    found = net(**inputs, input_pert_flags=torch.zeros(4, 6, dtype=torch.long), CLS=True, CCE=True, MVC=True, ECS=True)
    assert found.keys() == {"mlm_output", "cls_output", "mvc_output", "loss_ecs"}


def test_the_generator_samples_in_eval_mode_and_says_so(inputs):
    net = model(TransformerGenerator, explicit_zero_prob=True)
    flags = torch.zeros(4, 6, dtype=torch.long)
    with pytest.warns(UserWarning, match="predictions are sampled"):
        sampled = net(**inputs, input_pert_flags=flags)["mlm_output"]
    assert (sampled == 0).any()
    assert not (net.train()(**inputs, input_pert_flags=flags)["mlm_output"] == 0).any()


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (TransformerModel, {"vocab": None}, "Expected `vocab`"),
        (TransformerModel, {"input_emb_style": "sum"}, "continuous"),
        (TransformerModel, {"input_emb_style": "category"}, "`n_input_bins` to be at least 1"),
        (TransformerModel, {"cell_emb_style": "max-pool"}, "avg-pool"),
        (TransformerModel, {"do_mvc": True, "mvc_decoder_style": "outer"}, "inner product"),
        (TransformerModel, {"use_batch_labels": True}, "`num_batch_labels` to be at least 1"),
        (TransformerModel, {"do_dab": True}, "`num_batch_labels`"),
        (TransformerModel, {"domain_spec_batchnorm": True}, "`num_batch_labels`"),
        (TransformerModel, {"fast_transformer_backend": "linear"}, "'flash', found 'linear'"),
        (TransformerModel, {"nhead": 3}, "multiple of the number of heads"),
        (TransformerGenerator, {"n_input_bins": 51}, "`n_input_bins` to be 0"),
        (TransformerGenerator, {"decoder_activation": "Relu"}, r"torch\.nn"),
        (MultiOmicTransformerModel, {"use_mod": True}, "`ntokens_mod` and `vocab_mod`"),
    ],
)
def test_constructors_refuse(cls, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        model(cls, **options)


@pytest.mark.parametrize("cls", [TransformerModel, MultiOmicTransformerModel])
@pytest.mark.parametrize(
    "options",
    [
        {"use_batch_labels": True, "num_batch_labels": 2},
        {"domain_spec_batchnorm": True, "num_batch_labels": 2},
        {"domain_spec_batchnorm": "batchnorm"},
        {"domain_spec_batchnorm": "do_affine"},
    ],
    ids=str,
)
def test_labels_are_needed_or_forbidden(cls, options, inputs):
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="Expected `batch_labels`"):
        model(cls, **options)(**inputs)
    assert model(cls, **options)(**inputs, batch_labels=labels)["cell_emb"].isfinite().all()
    with pytest.raises(ValueError, match="Expected no `batch_labels`"):
        model(cls)(**inputs, batch_labels=labels)


def test_a_label_beyond_the_domains_is_refused(inputs):
    net = model(domain_spec_batchnorm=True, num_batch_labels=2)
    with pytest.raises(ValueError, match=r"within 0 \.\. 1"):
        net(**inputs, batch_labels=torch.full((4,), 2))


def test_modalities_are_needed(inputs):
    net = model(MultiOmicTransformerModel, use_mod=True, ntokens_mod=3, vocab_mod={"<pad>": 0})
    with pytest.raises(ValueError, match="Expected `mod_types`"):
        net(**inputs)
    assert net(**inputs, mod_types=torch.ones(4, 6, dtype=torch.long))["cell_emb"].shape == (4, 16)


def test_a_decoder_that_was_not_built_is_missed(inputs):
    with pytest.raises(ValueError, match="`mvc_decoder`, which `do_mvc=True` builds"):
        model()(**inputs, MVC=True)


# encode_batch and generate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_encode_batch(inputs, batch_size):
    net = model()
    found = net.encode_batch(*inputs.values(), batch_size)
    expected = net._encode(*inputs.values())
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    first = net.encode_batch(*inputs.values(), batch_size, time_step=0, return_np=True)
    assert isinstance(first, np.ndarray)
    assert first.dtype == np.float32
    np.testing.assert_allclose(first, expected[:, 0].detach(), atol=1e-6)


def test_generate(inputs):
    net = model()
    cell = torch.randn(4, 16)
    found = net.generate(cell, inputs["src"], inputs["values"], inputs["src_key_padding_mask"])
    assert found.shape == (4, 6)
    torch.testing.assert_close(
        net.generate(cell, inputs["src"], inputs["values"], inputs["src_key_padding_mask"], gen_iters=5), found
    )
    assert not torch.allclose(net.generate(cell, inputs["src"]), found)


def test_generate_takes_label_zero_with_a_warning(inputs):
    net = model(use_batch_labels=True, num_batch_labels=2)
    cell, labels = torch.randn(4, 16), torch.zeros(4, dtype=torch.long)
    with pytest.warns(UserWarning, match="label 0 is used"):
        found = net.generate(cell, inputs["src"])
    torch.testing.assert_close(found, net.generate(cell, inputs["src"], batch_labels=labels))


# pred_perturb ---------------------------------------------------------------------------------------------------------

GENE_IDS = np.array([3, 20, 7, 1, 9])  # the second gene is not in the vocabulary: it has the id of padding


def perturbed(expression: list[list[float]], flags: list[list[int]]) -> SimpleNamespace:
    x = torch.stack([torch.tensor(expression).flatten(), torch.tensor(flags).flatten().float()], dim=1)
    return SimpleNamespace(pert=["A+ctrl"] * len(expression), x=x)


CONTROL = perturbed([[1.0, 0, 2, 0, 0], [0.5, 1, 0, 0, 0]], [[0, 0, 1, 0, 0]] * 2)


def by_hand(net, data, taken: list[int]) -> torch.Tensor:
    expression, flags = data.x.view(2, 5, 2)[:, taken].unbind(-1)
    src = torch.from_numpy(GENE_IDS[taken]).expand(2, -1)
    predicted = torch.zeros(2, 5)
    predicted[:, taken] = net(src, expression, flags.long(), torch.zeros_like(src).bool())["mlm_output"]
    return predicted


@pytest.mark.parametrize(("which", "taken"), [("all", [0, 1, 2, 3, 4]), ("batch-wise", [0, 1, 2])])
def test_pred_perturb(which, taken):
    net = model(TransformerGenerator)
    found = net.pred_perturb(CONTROL, which, GENE_IDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand(net, CONTROL, taken))
    torch.testing.assert_close(net.pred_perturb(CONTROL, which, torch.from_numpy(GENE_IDS)), found)


def test_a_gene_without_a_token_takes_part(inputs):
    """As in the original: it has the embedding of padding, is not masked, and what it holds changes all others."""
    net = model(TransformerGenerator)
    changed = SimpleNamespace(pert=CONTROL.pert, x=CONTROL.x.clone())
    changed.x[1, 0] = 4.0
    first, second = (net.pred_perturb(data, "all", GENE_IDS) for data in (CONTROL, changed))
    assert not torch.allclose(first[0, 0], second[0, 0])
    torch.testing.assert_close(first[1], second[1])


def test_nothing_expressed_predicts_nothing():
    silent = perturbed([[0.0] * 5] * 2, [[0] * 5] * 2)
    net = model(TransformerGenerator)
    assert not net.pred_perturb(silent, gene_ids=GENE_IDS).any()
    assert net.pred_perturb(silent, "all", GENE_IDS).any()


def test_pred_perturb_switches_to_eval():
    net = model(TransformerGenerator, dropout=0.5).train()
    torch.testing.assert_close(
        net.pred_perturb(CONTROL, gene_ids=GENE_IDS), net.pred_perturb(CONTROL, gene_ids=GENE_IDS)
    )
    assert not net.training


@pytest.mark.parametrize(
    ("options", "message"), [({"include_zero_gene": "some"}, "'all' or 'batch-wise', found 'some'"), ({}, "`gene_ids`")]
)
def test_pred_perturb_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        model(TransformerGenerator).pred_perturb(CONTROL, **options)


# The pre-training form ------------------------------------------------------------------------------------------------


def test_generative_forward(inputs):
    net = model(use_generative_training=True, do_mvc=True)
    perceived = {f"pcpt_{name}": inputs[key] for name, key in (("genes", "src"), ("values", "values"),
                                                                ("key_padding_mask", "src_key_padding_mask"))}  # fmt: skip
    alone = net.generative_forward(**perceived)
    assert alone.keys() == {"pcpt_preds", "cell_emb"}
    torch.testing.assert_close(alone["cell_emb"], net(**inputs)["cell_emb"])
    genes = torch.tensor([[1, 2, 3]]).expand(4, 3)
    both = net.generative_forward(**perceived, gen_genes=genes, MVC=True, ECS=True)
    assert both["pcpt_preds"].shape == (4, 6)
    assert both["gen_preds"].shape == (4, 3)
    assert both["mvc_output"].shape == (4, 9)
    torch.testing.assert_close(both["cell_emb"], alone["cell_emb"])
    swapped = net.generative_forward(**perceived, gen_genes=genes[:, [0, 2, 1]])
    torch.testing.assert_close(swapped["gen_preds"], both["gen_preds"][:, [0, 2, 1]])


def test_only_the_released_form_has_no_classifier():
    assert "cell_type" not in model(use_generative_training=True).cell_model.heads
    assert "cell_type" in model(use_generative_training=True, n_cls=3).cell_model.heads
    assert "cell_type" in model().cell_model.heads
