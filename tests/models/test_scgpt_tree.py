"""What scripts made for scGPT touch beside arguments and results: the tree of parts, by the originals' names."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from scgpt_tools.models import MultiOmicTransformerModel, TransformerGenerator, TransformerModel
from scgpt_tools.models.formats.scgpt import from_scgpt

VOCAB = {"<pad>": 20, "<cls>": 21, "<eoc>": 22}
SIZES = {"ntoken": 23, "d_model": 16, "nhead": 2, "d_hid": 24, "nlayers": 2, "vocab": VOCAB, "dropout": 0.0}
EVERYTHING = {
    "n_cls": 3, "do_mvc": True, "do_dab": True, "use_batch_labels": True, "num_batch_labels": 2,
    "domain_spec_batchnorm": True, "explicit_zero_prob": True,
}  # fmt: skip
LABELS = torch.zeros(4, dtype=torch.long)


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


# Names ----------------------------------------------------------------------------------------------------------------

LAYER = [
    "self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias",
    "linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias",
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
]  # fmt: skip


def affine(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


def order(*, plain: bool) -> list[str]:
    """Names in the order of the description, for the bare model and for one with everything."""
    classifier = affine(*(f"_decoder.{place}" for place in (0, 2, 3, 5)), "out_layer")
    names = ["encoder.embedding.weight", *affine("encoder.enc_norm")]
    names += affine("value_encoder.linear1", "value_encoder.linear2", "value_encoder.norm")
    names += [] if plain else ["batch_encoder.embedding.weight", *affine("batch_encoder.enc_norm")]
    names += [f"transformer_encoder.layers.{i}.{name}" for i in range(2) for name in LAYER]
    names += affine("decoder.fc.0", "decoder.fc.2", "decoder.fc.4")
    if not plain:
        names += affine("decoder.zero_logit.0", "decoder.zero_logit.2", "decoder.zero_logit.4")
    names += [f"cls_decoder.{name}" for name in classifier]
    if not plain:
        names += [*affine("mvc_decoder.gene2query"), "mvc_decoder.W.weight", *affine("mvc_decoder.W_zero_logit")]
        names += [f"grad_reverse_discriminator.{name}" for name in classifier]
    return names


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"use_fast_transformer": True}], ids=["bare", "all", "fast"])
def test_parameters_have_the_originals_names_and_order(options):
    net = model(**options)
    names = [name for name, _ in net.named_parameters()]
    assert names == order(plain=options is not EVERYTHING)
    assert [id(p) for p in net.parameters()] == [id(net.get_parameter(name)) for name in names]
    assert [key for key in net.state_dict() if key in names] == names
    assert not net.use_fast_transformer


def test_the_cell_model_adds_no_parameter(inputs):
    net = model(**EVERYTHING)
    names = [name for name, _ in net.named_parameters()]
    assert net.cell_model is net.cell_model
    assert [name for name, _ in net.named_parameters()] == names
    assert {id(p) for p in net.cell_model.parameters()} == {id(p) for p in net.parameters()}


def test_the_filter_of_the_annotation_tutorial_freezes_the_embedders():
    net = model()
    for name, parameter in net.named_parameters():
        if "encoder" in name and "transformer_encoder" not in name:
            parameter.requires_grad = False
    trained = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {"transformer_encoder", "decoder", "cls_decoder"}


# Parts by themselves --------------------------------------------------------------------------------------------------


def test_parts_are_called_as_the_originals(inputs):
    net = model(**EVERYTHING)
    src, values, padding = inputs.values()
    genes = net.encoder(src)
    torch.testing.assert_close(genes, net.encoder.enc_norm(net.encoder.embedding(src)))
    total = genes + net.value_encoder(values)
    total = net.dsbn(total.permute(0, 2, 1), 0).permute(0, 2, 1)
    tokens = net.transformer_encoder(total, src_key_padding_mask=padding)
    torch.testing.assert_close(tokens, net._encode(src, values, padding, LABELS))
    assert not tokens[padding].any()
    by_layer = total
    for layer in net.transformer_encoder.layers:
        by_layer = layer(by_layer, src_key_padding_mask=padding)
    torch.testing.assert_close(by_layer[~padding], tokens[~padding])
    cell, labels = net._get_cell_emb_from_layer(tokens), net.batch_encoder(LABELS)
    found = net(**inputs, batch_labels=LABELS, CLS=True, MVC=True)
    torch.testing.assert_close(found["cell_emb"], cell)
    torch.testing.assert_close(found["cls_output"], net.cls_decoder(cell))
    torch.testing.assert_close(found["dab_output"], net.grad_reverse_discriminator(cell))
    beside = labels.unsqueeze(1).expand(-1, 6, -1)
    decoded = net.decoder(torch.cat([tokens, beside], dim=2))
    torch.testing.assert_close(found["mlm_output"], decoded["pred"])
    torch.testing.assert_close(found["mlm_zero_probs"], decoded["zero_probs"])
    torch.testing.assert_close(found["mvc_output"], net.mvc_decoder(torch.cat([cell, labels], dim=1), genes)["pred"])


@pytest.mark.parametrize("training", [False, True])
def test_the_shared_batch_norm_is_torchs(inputs, training):
    net = model(domain_spec_batchnorm="batchnorm").train(training)
    plain = nn.BatchNorm1d(16, eps=6.1e-5).train(training)
    plain.load_state_dict(net.bn.state_dict())
    x = torch.randn(4, 16, 6)
    torch.testing.assert_close(net.bn(x), plain(x))
    torch.testing.assert_close(net.bn(x[..., 0]), plain(x[..., 0]))
    torch.testing.assert_close(net.bn.running_var, plain.running_var)


def test_the_stack_agrees_with_torchs(inputs):
    """With the weights of one of torch's: the same tokens, also where padding is said in numbers."""
    net, padding = model(use_fast_transformer=True), inputs["src_key_padding_mask"]
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    theirs.load_state_dict({k: v for k, v in net.transformer_encoder.state_dict().items() if "Wqkv" not in k})
    x = torch.randn(4, 6, 16)
    expected = theirs(x, src_key_padding_mask=padding)
    numbers = torch.zeros(4, 6).masked_fill(padding, float("-inf"))
    for mask in (padding, numbers):
        found = net.transformer_encoder(x, src_key_padding_mask=mask)
        torch.testing.assert_close(found[~padding], expected[~padding])
    torch.testing.assert_close(net.transformer_encoder(x), theirs(x))


def test_attention_is_called_as_torchs(inputs):
    attention, padding = model().transformer_encoder.layers[0].self_attn, inputs["src_key_padding_mask"]
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    theirs.load_state_dict(attention.state_dict())
    x = torch.randn(4, 6, 16)
    for options in ({}, {"average_attn_weights": False}, {"need_weights": False}):
        found, weights = attention(x, x, x, key_padding_mask=padding, **options)
        expected, theirs_weights = theirs(x, x, x, key_padding_mask=padding, **options)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(weights, theirs_weights)


@pytest.mark.parametrize("fast", [False, True])
def test_wqkv_gives_queries_keys_and_values(fast):
    net = model(use_fast_transformer=fast)
    attention, x = net.transformer_encoder.layers[1].self_attn, torch.randn(2, 3, 16)
    expected = x @ attention.in_proj_weight.T + attention.in_proj_bias
    torch.testing.assert_close(attention.Wqkv(x), expected)
    assert attention.Wqkv.weight is attention.in_proj_weight
    assert not [key for key in net.state_dict() if "Wqkv" in key]


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net.transformer_encoder(x, mask=torch.zeros(6, 6)),
        lambda net, x: net.transformer_encoder.layers[0](x, is_causal=True),
        lambda net, x: net.transformer_encoder.layers[0].self_attn(x, x + 1, x),
        lambda net, x: net.transformer_encoder(x, src_key_padding_mask=torch.full((4, 6), 0.5)),
    ],
    ids=["mask", "causal", "cross-attention", "mask of other numbers"],
)
def test_what_attention_cannot_do_is_refused(call):
    with pytest.raises(ValueError, match="Expected"):
        call(model(), torch.randn(4, 6, 16))


# Replacing, hooking, adapting -----------------------------------------------------------------------------------------


def test_a_replaced_classifier_classifies(inputs):
    net = model(n_cls=3)
    net.cls_decoder = nn.Linear(16, 7)
    found = net(**inputs, CLS=True)
    torch.testing.assert_close(found["cls_output"], net.cls_decoder(found["cell_emb"]))
    net = model(n_cls=3)
    net.cls_decoder.out_layer = nn.Linear(16, 5)
    assert net(**inputs, CLS=True)["cls_output"].shape == (4, 5)


class Constant(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor, *_: torch.Tensor, **__: object) -> torch.Tensor:
        return x.new_full(self.shape, 3.0)


@pytest.mark.parametrize(
    ("part", "shape", "result"),
    [
        ("decoder", (4, 6), "mlm_output"),
        ("mvc_decoder", (4, 6), "mvc_output"),
        ("grad_reverse_discriminator", (4, 2), "dab_output"),
        ("transformer_encoder", (4, 6, 16), "cell_emb"),
    ],
)
def test_a_replaced_part_is_used(part, shape, result, inputs):
    net = model(**EVERYTHING | {"explicit_zero_prob": False})
    setattr(net, part, Constant(shape))
    assert (net(**inputs, batch_labels=LABELS, MVC=True)[result] == 3.0).all()


@pytest.mark.parametrize(
    "part",
    ["encoder", "encoder.embedding", "encoder.enc_norm", "value_encoder", "value_encoder.linear1", "value_encoder.norm",
     "batch_encoder", "transformer_encoder.layers.0", "transformer_encoder.layers.1.self_attn.out_proj",
     "transformer_encoder.layers.0.linear2", "transformer_encoder.layers.0.norm1", "decoder.fc.2",
     "mvc_decoder.gene2query", "mvc_decoder.W", "cls_decoder._decoder.0"],
)  # fmt: skip
def test_every_part_is_called_and_hooked(part, inputs):
    net, seen = model(**EVERYTHING), []
    net.get_submodule(part).register_forward_hook(lambda module, args, output: seen.append(output))
    net(**inputs, batch_labels=LABELS, CLS=True, MVC=True)
    assert len(seen) == 1


def long_inputs() -> dict[str, torch.Tensor]:
    src = torch.randint(0, 20, (2, 140))
    padding = torch.zeros(2, 140, dtype=torch.bool)
    padding[1, 130:] = True
    return {"src": src, "values": torch.rand(2, 140), "src_key_padding_mask": padding}


@pytest.mark.parametrize("part", ["", ".linear1", ".self_attn", ".self_attn.Wqkv", ".norm2"])
def test_a_hook_sees_whole_cells_and_changes_nothing(part):
    """Long cells go through the layers without padding as long as nobody looks."""
    net, inputs, seen = model(), long_inputs(), []
    with torch.no_grad():
        expected = net(**inputs)
        layer = net.get_submodule(f"transformer_encoder.layers.1{part}")
        hook = layer.register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output)))
        found = net(**inputs)
        hook.remove()
        assert torch.equal(net(**inputs)["cell_emb"], expected["cell_emb"])
    torch.testing.assert_close(found["cell_emb"], expected["cell_emb"])
    ((shape, _),) = seen
    assert shape == (2, 140, 16)


def test_the_weights_of_attention_by_a_patched_call(inputs):
    """A known way to have them: ask for weights where the layer does not."""
    net, kept = model(), []
    attention = net.transformer_encoder.layers[0].self_attn
    original = attention.forward

    def patched(*args, **options):
        output = original(*args, **options | {"need_weights": True, "average_attn_weights": False})
        kept.append(output[1])
        return output

    attention.forward = patched
    net(**inputs)
    assert kept[0].shape == (4, 2, 6, 6)
    torch.testing.assert_close(kept[0].sum(-1), torch.ones(4, 2, 6))


@pytest.mark.parametrize(
    ("targets", "fast"),
    [(["linear1", "out_proj"], False), (["Wqkv", "out_proj", "linear1", "linear2"], True), (["W"], False)],
)
def test_adapters_of_peft_reach_the_maps(targets, fast, inputs):
    peft = pytest.importorskip("peft")
    net = model(use_fast_transformer=fast, do_mvc=True)
    before = net(**inputs, MVC=True)
    tuned = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    after = tuned(**inputs, MVC=True)
    assert not torch.allclose(after["mvc_output"], before["mvc_output"])
    after["mvc_output"].sum().backward()
    adapters = {name: p.grad for name, p in tuned.named_parameters() if "lora_" in name}
    places = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapters}
    assert places == set(targets)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in adapters.values())
    with pytest.raises(ValueError, match="merge adapters first"):
        _ = net.cell_model
    merged = tuned.merge_and_unload()
    assert same(merged)
    torch.testing.assert_close(merged(**inputs, MVC=True)["mvc_output"], after["mvc_output"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("joined", [False, True])
def test_a_network_with_other_parts_is_no_cell_model(joined):
    net = model(n_cls=3)
    assert not joined or net.cell_model is not None
    net.cls_decoder.out_layer = nn.Linear(16, 5)
    with pytest.raises(ValueError, match="others at cls_decoder.out_layer"):
        _ = net.cell_model


# One network with ours ------------------------------------------------------------------------------------------------

VARIANTS = {
    "everything": (TransformerModel, EVERYTHING),
    "bins": (TransformerModel, {"input_emb_style": "category", "n_input_bins": 53, "pad_value": 52}),
    "batch norm": (TransformerModel, {"domain_spec_batchnorm": "batchnorm", "input_emb_style": "scaling"}),
    "released form": (TransformerModel, {"use_generative_training": True, "do_mvc": True}),
    "generator": (TransformerGenerator, {"explicit_zero_prob": True, "do_mvc": True}),
    "multiomic": (
        MultiOmicTransformerModel,
        {"use_mod": True, "ntokens_mod": 3, "vocab_mod": {"<pad>": 0}, "do_mvc": True, "use_fast_transformer": True},
    ),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    cls, options = VARIANTS[request.param]
    return model(cls, **options)


def same(net: nn.Module) -> bool:
    """Whether our network has the tensors of scGPT's, by our names."""
    theirs, _ = from_scgpt(net.state_dict())
    ours = net.cell_model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_changes_one_changes_the_other(variant):
    assert same(variant)
    for parameter in variant.parameters():
        nn.init.normal_(parameter)
    assert same(variant)
    fresh = type(variant.cell_model)(variant.cell_model.config)
    variant.cell_model.load_state_dict(fresh.state_dict())
    assert same(variant)
    assert torch.equal(variant.encoder.embedding.weight, fresh.embedder.genes.table.weight)
    assert same(variant.half())
    assert same(variant.float())
    assert same(copy.deepcopy(variant))
    assert same(pickle.loads(pickle.dumps(variant)))


def test_a_step_in_one_is_a_step_in_the_other(variant):
    optimizer = torch.optim.SGD(variant.cell_model.parameters(), lr=1.0)
    sum(parameter.sum() for parameter in variant.cell_model.parameters()).backward()
    before = variant.get_parameter("transformer_encoder.layers.0.self_attn.in_proj_weight").clone()
    optimizer.step()
    after = variant.get_parameter("transformer_encoder.layers.0.self_attn.in_proj_weight")
    torch.testing.assert_close(after, before - 1.0)


def test_modes_go_together(variant):
    assert not variant.cell_model.training
    variant.train()
    assert all(part.training for part in variant.cell_model.modules())
    variant.eval()
    assert not any(part.training for part in variant.cell_model.modules())


def test_another_network_is_taken_over(variant, inputs):
    other = type(variant.cell_model)(variant.cell_model.config)
    variant.cell_model = other
    assert variant.cell_model is other
    assert same(variant)
    assert "cell_model" not in dict(variant.named_children())


# Copies and files -----------------------------------------------------------------------------------------------------


def test_copies_after_a_call_in_training(inputs):
    net = model(dropout=0.1).train()
    net(**inputs)["cell_emb"].sum().backward()
    again = copy.deepcopy(net).eval()
    torch.testing.assert_close(again(**inputs)["cell_emb"], net.eval()(**inputs)["cell_emb"])


def test_a_saved_state_is_an_ordinary_one():
    net, file = model(), io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert type(found).__module__ == "collections"
    assert list(found) == list(net.state_dict())
    assert found._metadata == net.state_dict()._metadata
    assert type(copy.deepcopy(net.state_dict())) is type(found)


FUSED = "transformer_encoder.layers.0.self_attn.Wqkv.weight"
TORCHS = "transformer_encoder.layers.0.self_attn.in_proj_weight"


@pytest.mark.parametrize("spelling", [FUSED, FUSED.replace("Wqkv", "_impl.Wqkv"), TORCHS, f"module.{FUSED}"])
def test_the_filters_of_the_tutorials_load_attention(spelling):
    """Only what ``key in model_dict`` finds is loaded; what it does not know would stay random without a word."""
    net, wanted = model(), torch.randn(48, 16)
    file = {spelling: wanted, "pathway.weight": wanted}
    model_dict = net.state_dict()
    assert spelling in model_dict.keys()
    chosen = {k: v for k, v in file.items() if k in model_dict and v.shape == model_dict[k].shape}
    assert list(chosen) == [spelling]
    model_dict.update(chosen)
    assert list(model_dict) == list(net.state_dict())
    net.load_state_dict(model_dict)
    assert torch.equal(net.get_parameter(TORCHS), wanted)


def test_one_tensor_under_two_names_is_refused():
    net = model()
    with pytest.raises(ValueError, match="one spelling of each tensor"):
        net.load_state_dict({**dict(net.state_dict()), FUSED: torch.zeros(48, 16)})


def test_loading_by_assignment_keeps_wqkv():
    net = model(use_fast_transformer=True)
    net.load_state_dict({key: tensor.clone() for key, tensor in net.state_dict().items()}, assign=True)
    attention = net.transformer_encoder.layers[0].self_attn
    assert attention.Wqkv.weight is attention.in_proj_weight


def test_the_gene_table_is_drawn_anew():
    net = model()
    with torch.no_grad():
        net.encoder.embedding.weight.fill_(9.0)
    net.init_weights()
    table = net.encoder.embedding.weight
    assert 0 < table.abs().max() <= 0.1


# Several modalities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [{}, {"use_batch_labels": True, "num_batch_labels": 2}], ids=["", "labels"])
def test_batches_and_generation_with_modalities(labels, inputs):
    net = model(MultiOmicTransformerModel, use_mod=True, ntokens_mod=3, vocab_mod={"<pad>": 0}, **labels)
    kinds = torch.tensor([[2, 1, 1, 1, 2, 2]]).expand(4, 6)
    given = {"batch_labels": LABELS} if labels else {}
    expected = net._encode(*inputs.values(), **given)
    for options in ({}, {"mod_types": kinds}):
        found = net.encode_batch(*inputs.values(), 3, **given, **options)
        torch.testing.assert_close(found, expected)
    cell = net(**inputs, **given, mod_types=kinds)["cell_emb"]
    generated = net.generate(cell, inputs["src"], **given, mod_types=kinds)
    assert generated.shape == (4, 6)
    others = net.generate(cell, inputs["src"], **given, mod_types=kinds.flip(1))
    assert not torch.allclose(generated, others)
    with pytest.raises(ValueError, match="Expected `mod_types`"):
        net.generate(cell, inputs["src"], **given)


def test_the_generator_encodes_in_slices(inputs):
    net, flags = model(TransformerGenerator), torch.ones(4, 6, dtype=torch.long)
    src, values, padding = inputs.values()
    expected = net._encode(src, values, flags, padding)
    torch.testing.assert_close(net.encode_batch(src, values, flags, padding, 3), expected)
