"""The classes with scGPT's names speak its tensor names, alone and inside other modules."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from scgpt_tools.models import MultiOmicTransformerModel, TransformerGenerator, TransformerModel, load_pretrained

VOCAB = {"<pad>": 20, "<cls>": 21, "<eoc>": 22}
SIZES = {"ntoken": 23, "d_model": 16, "nhead": 2, "d_hid": 24, "nlayers": 2, "vocab": VOCAB, "dropout": 0.0}


def model(cls=TransformerModel, **options):
    torch.manual_seed(0)
    if cls is TransformerGenerator:
        options = {"nlayers_cls": 3, "n_cls": 2} | options
    return cls(**SIZES | options).eval()


# Tensor names ---------------------------------------------------------------------------------------------------------

VARIANTS = {
    "model": (TransformerModel, {"do_mvc": True, "n_cls": 3}),
    "labels": (
        TransformerModel,
        {"use_batch_labels": True, "num_batch_labels": 2, "do_dab": True, "domain_spec_batchnorm": True},
    ),
    "bins": (TransformerModel, {"input_emb_style": "category", "n_input_bins": 53, "pad_value": 52}),
    "batch norm": (TransformerModel, {"domain_spec_batchnorm": "batchnorm", "input_emb_style": "scaling"}),
    "released form": (TransformerModel, {"use_generative_training": True, "do_mvc": True}),
    "generator": (TransformerGenerator, {"explicit_zero_prob": True, "do_mvc": True}),
    "multiomic": (
        MultiOmicTransformerModel,
        {"use_mod": True, "ntokens_mod": 3, "vocab_mod": {"<pad>": 0}, "do_mvc": True},
    ),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_state_dict_speaks_the_originals_names(variant):
    net = model(variant[0], **variant[1])
    names = list(net.state_dict())
    assert not [name for name in names if name.startswith(("cell_model", "embedder", "heads"))]
    starts = {name.split(".")[0] for name in names}
    assert starts <= {
        "encoder", "flag_encoder", "value_encoder", "pert_encoder", "batch_encoder", "mod_encoder", "dsbn", "bn",
        "transformer_encoder", "decoder", "cls_decoder", "mvc_decoder", "grad_reverse_discriminator",
    }  # fmt: skip
    assert {"encoder", "transformer_encoder", "decoder"} <= starts


def equal_states(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def shaken(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


_SPELLINGS = {
    "torch": [],
    "fused": [("self_attn.in_proj_", "self_attn.Wqkv.")],
    "wrapped": [("self_attn.in_proj_", "self_attn._impl.Wqkv."), ("self_attn.out_proj", "self_attn._impl.out_proj")],
}


def spelled(state: dict[str, torch.Tensor], spelling: str) -> dict[str, torch.Tensor]:
    """A plain state dict as a file of that spelling has it."""
    renamed = {}
    for key, tensor in state.items():
        name = key
        for theirs, other in _SPELLINGS[spelling]:
            name = name.replace(theirs, other)
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("spelling", _SPELLINGS)
def test_load_state_dict_takes_every_spelling(variant, spelling):
    source, target = shaken(model(variant[0], **variant[1])), model(variant[0], **variant[1])
    assert not equal_states(source, target)
    state = spelled(source.state_dict(), spelling)
    before = dict(state)
    report = target.load_state_dict(state)
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert equal_states(source, target)
    assert state.keys() == before.keys()


def test_inside_another_module(variant):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.nets = nn.Linear(2, 2), nn.ModuleList([model(variant[0], **variant[1]) for _ in range(2)])

    source, target = shaken(Wrapper()), Wrapper()
    state = source.state_dict()
    inner = source.nets[0].state_dict()
    assert state.keys() == {"first.weight", "first.bias"} | {f"nets.{i}.{key}" for i in range(2) for key in inner}
    target.load_state_dict(state)
    assert equal_states(source, target)
    parallel = nn.DataParallel(source)
    parallel.load_state_dict({f"module.{key}": tensor for key, tensor in state.items()})
    assert parallel.state_dict().keys() == {f"module.{key}" for key in state}


def test_copies_keep_their_names(variant):
    net = shaken(model(variant[0], **variant[1]))
    assert equal_states(copy.deepcopy(net), net)


def test_strict_loading_reports_by_the_originals_names():
    net = model()
    state = dict(net.state_dict())
    del state["decoder.fc.0.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "pathway.weight"'):
        net.load_state_dict(net.state_dict() | {"pathway.weight": torch.zeros(1)})
    report = net.load_state_dict(net.state_dict() | {"pathway.weight": torch.zeros(1)}, strict=False)
    assert report.unexpected_keys == ["pathway.weight"]


def test_a_state_dict_is_connected_to_the_model():
    """As with any module of torch: a change in place of a tensor that is not stacked reaches the model."""
    net = model()
    with torch.no_grad():
        net.state_dict()["decoder.fc.0.bias"].fill_(7.0)
    assert (net.cell_model.heads["expression"].value[0].bias == 7).all()


# load_pretrained ------------------------------------------------------------------------------------------------------


def test_partial_loading_reports_everything(caplog):
    source, target = shaken(model(do_mvc=True, n_cls=4)), model(n_cls=5)
    file = {f"module.{key}": tensor for key, tensor in spelled(source.state_dict(), "fused").items()}
    file["module.pathway.weight"] = torch.zeros(1)
    del file["module.decoder.fc.0.bias"]
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="scgpt_tools"):
        assert load_pretrained(target, file) is target
    report = target.load_report
    other_shape = {"cls_decoder.out_layer.weight", "cls_decoder.out_layer.bias"}
    unexpected = {
        "mvc_decoder.gene2query.weight",
        "mvc_decoder.gene2query.bias",
        "mvc_decoder.W.weight",
        "pathway.weight",
    }
    assert {key for key, reason in report.dropped.items() if reason} == other_shape
    assert {key for key, reason in report.dropped.items() if not reason} == unexpected
    assert set(report.missing) == {"decoder.fc.0.bias"} | other_shape
    assert str(report) in caplog.text
    assert "cls_decoder.out_layer (1 tensors: (4,) where the model has (5,))" in str(report)
    theirs = source.state_dict()
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, theirs[key] if key in report.used else before[key]), key


@pytest.mark.parametrize(
    ("prefix", "starts"),
    [
        ("encoder", {"encoder"}),
        (["encoder.", "decoder"], {"encoder", "decoder"}),
        *(
            (nothing, {"encoder", "value_encoder", "transformer_encoder", "decoder", "cls_decoder"})
            for nothing in ([], "")
        ),
    ],
    ids=["text", "list", "empty list", "empty text"],
)
def test_loading_by_prefix(prefix, starts):
    source = shaken(model())
    report = load_pretrained(model(), source.state_dict(), prefix=prefix, verbose=False).load_report
    assert {key.split(".")[0] for key in report.used} == starts


def test_prefixes_are_those_of_torchs_spelling():
    source = shaken(model())
    file = spelled(source.state_dict(), "wrapped")
    prefix = "transformer_encoder.layers.0.self_attn.in_proj"
    report = load_pretrained(model(), file, prefix=prefix).load_report
    assert list(report.used) == [f"{prefix}_bias", f"{prefix}_weight"]


@pytest.mark.parametrize("change", [{"pathway.weight": torch.zeros(1)}, {"decoder.fc.0.bias": torch.zeros(3)}])
def test_strict_partial_loading_refuses_and_changes_nothing(change):
    source, target = shaken(model()), model()
    before = copy.deepcopy(target)
    with pytest.raises(ValueError, match=next(iter(change))):
        load_pretrained(target, source.state_dict() | change, strict=True)
    assert equal_states(target, before)


def test_a_generator_takes_over_a_pretrained_model():
    """The recipe of the perturbation tutorial: three prefixes of the released form."""
    source = shaken(model(use_generative_training=True, do_mvc=True))
    target = model(TransformerGenerator)
    prefixes = ["encoder", "value_encoder", "transformer_encoder"]
    report = load_pretrained(target, spelled(source.state_dict(), "fused"), prefix=prefixes).load_report
    assert {key.split(".")[0] for key in report.used} == set(prefixes)
    assert {key.split(".")[0] for key in report.missing} == {"pert_encoder", "decoder", "cls_decoder"}
    assert not report.dropped


@pytest.mark.parametrize(
    ("change", "prefix", "message"),
    [
        ({"nlayers": 3}, None, "layers.2"),
        ({"ntoken": 30}, None, "encoder.embedding.weight"),
        ({"d_hid": 8}, "transformer_encoder", "linear1"),
    ],
    ids=["fewer layers", "more genes", "width, by prefix"],
)
def test_an_encoder_that_is_not_loaded_is_said(change, prefix, message):
    source, target = model(), model(**change)
    with pytest.warns(UserWarning, match=message):
        load_pretrained(target, source.state_dict(), prefix=prefix)
