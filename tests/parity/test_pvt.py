"""PVTv2 of timm, of transformers and of its authors: the same numbers, and what we write is read by both libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.models import save_for_hf
from torch import nn

from tests.parity.peers import assert_same, bits, pictures, randomised
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, UsageError
from vitral.models.backbones.pvt import PVTConfig, PVTv2
from vitral.models.catalogue import create_model

SMALL: dict[str, Any] = {"depths": (1, 2, 1, 1), "embed_dims": (8, 16, 20, 16), "num_heads": (1, 2, 5, 2), "num_classes": 7}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "b2": ("pvt_v2_b2", {}),
    "linear": ("pvt_v2_b2_li", {}),
    "b5, without biases": ("pvt_v2_b5", {"qkv_bias": False, "sr_ratios": (3, 2, 2, 2), "num_classes": 0}),
}
SIZES = [(64, 64), (96, 75), (47, 130)]


def theirs_of(case: str) -> tuple[nn.Module, dict[str, Any]]:
    name, options = CASES[case]
    arguments = {**SMALL, **options}
    return randomised(timm.create_model(name, **arguments)), arguments


def loaded(source: str | Path, **options: Any) -> PVTv2:
    model = load_model(source, **options)
    assert isinstance(model, PVTv2)
    return model


def assert_same_output(ours: PVTv2, theirs: nn.Module, sizes: list[tuple[int, int]] = SIZES) -> None:
    for size in sizes:
        pixels = pictures(*size)
        out = ours(pixels)
        assert_same(out.feature_map, theirs.forward_features(pixels))
        assert_same(out.pooled if out.logits is None else out.logits, theirs(pixels))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_timm_there_and_back(case: str, tmp_path: Path) -> None:
    theirs, arguments = theirs_of(case)
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments, safe_serialization=True)
    ours = loaded(tmp_path / "theirs")
    assert ours.record.notes == ()
    assert ours.config.image_size == (224, 224)
    assert_same_output(ours, theirs)
    maps = ours.pyramid(pictures(64, 64)).maps
    for one, other in zip(maps, theirs.forward_intermediates(pictures(64, 64), intermediates_only=True), strict=True):
        assert_same(one, other)
    written = save_model(ours, tmp_path / "ours", layout="timm")
    back = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert_same(back(pictures(64, 64)), theirs(pictures(64, 64)), 1e-6)
    again = loaded(written)
    assert again.config == ours.config
    assert all(torch.equal(tensor, bits(again)[name]) for name, tensor in bits(ours).items())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_authors_names(case: str, tmp_path: Path) -> None:
    theirs, _ = theirs_of(case)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        parts = name.replace("mlp.dwconv", "mlp.dwconv.dwconv").split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages":
            number = int(parts[1]) + 1
            kind = {"downsample": f"patch_embed{number}", "blocks": f"block{number}", "norm": f"norm{number}"}
            parts = [kind[parts[2]], *parts[3:]]
        state[".".join(parts)] = tensor
    torch.save({"model": state, "epoch": 3}, tmp_path / "pvt.pth")
    # timm reads the authors' files too, by a table of its own.
    remapped = timm.models.pvt_v2.checkpoint_filter_fn(state, theirs)
    assert remapped.keys() == theirs.state_dict().keys()
    named = PVTConfig(heads=(1, 2, 5, 2), widths=(8, 16, 20, 16))
    ours = loaded(tmp_path / "pvt.pth", architecture=named)
    assert ours.record.layout == "whai362"
    assert_same_output(ours, theirs, SIZES[:1])
    guessed = loaded(tmp_path / "pvt.pth")
    assert guessed.config.heads == (1, 2, 5, 8)
    assert any("(1, 2, 5, 8) heads in the stages were assumed" in note for note in guessed.record.notes)


def hf_model(linear: bool, classes: int) -> nn.Module:
    config = hf.PvtV2Config(
        hidden_sizes=[8, 16, 20, 16],
        depths=[1, 2, 1, 1],
        num_attention_heads=[1, 2, 5, 2],
        mlp_ratios=[3, 2, 2, 2],
        linear_attention=linear,
        num_labels=classes or 2,
        hidden_act="gelu" if linear else "silu",
        image_size=64,
    )
    kind = hf.PvtV2ForImageClassification if classes else hf.PvtV2Model
    return randomised(kind(config))


@torch.no_grad()
@pytest.mark.parametrize(("linear", "classes"), [(False, 7), (True, 7), (False, 0)])
def test_transformers_there_and_back(linear: bool, classes: int, tmp_path: Path) -> None:
    theirs = hf_model(linear, classes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = loaded(tmp_path / "theirs")
    assert ours.config.image_size == (64, 64)
    assert ours.config.num_classes == classes

    def answer(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        out = network(pixels)
        result: torch.Tensor = out.logits if classes else out.last_hidden_state
        return result

    for size in SIZES:
        pixels = pictures(*size)
        out = ours(pixels)
        assert_same(out.logits if classes else out.feature_map, answer(theirs, pixels))
    save_model(ours, tmp_path / "ours", layout="transformers")
    kind = getattr(hf, json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0])
    back, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(answer(back.eval(), pictures(64, 64)), answer(theirs, pictures(64, 64)), 1e-6)
    assert loaded(tmp_path / "ours").config == ours.config


@torch.no_grad()
def test_the_authors_epsilons_are_written_as_transformers_has_them(tmp_path: Path) -> None:
    theirs, arguments = theirs_of("b2")
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments, safe_serialization=True)
    ours = loaded(tmp_path / "theirs")
    assert (ours.config.norm_eps, ours.config.conv_norm_eps) == (1e-6, 1e-5)
    written = save_model(ours, tmp_path / "ours", layout="transformers")
    back = hf.PvtV2ForImageClassification.from_pretrained(written).eval()
    assert_same(back(pictures(64, 64)).logits, theirs(pictures(64, 64)))
    assert loaded(written).config.conv_norm_eps == 1e-6
    odd = create_model("pvt_v2_b0", num_classes=3, conv_norm_eps=1e-3)
    for layout, sentence in {"transformers": "one epsilon for all norms", "timm": "epsilons of 1e-6 and 1e-5"}.items():
        with pytest.raises(UsageError, match=sentence):
            save_model(odd, tmp_path / "odd", layout=layout)
    assert not (tmp_path / "odd").exists()


def test_pictures_are_prepared_as_transformers_does_it(tmp_path: Path) -> None:
    hf_model(False, 7).save_pretrained(tmp_path)
    for processor in ({}, {"image_processor_type": "PvtImageProcessor", "size": {"height": 32, "width": 48}, "resample": 2}):
        if processor:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        prepared = loaded(tmp_path).record.preprocessing
        assert prepared is not None
        assert prepared.size == ((32, 48) if processor else (64, 64))
        assert prepared.interpolation == ("bilinear" if processor else "bicubic")
        assert prepared.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strides": [4, 2, 2, 1]}, "only .* was ever published"),
        ({"hidden_act": "tanhh"}, "activation"),
        ({"mlp_ratios": [2.5, 2, 2, 2]}, "2.5 where a whole number belongs"),
        ({"hidden_sizes": [8, 16]}, "only .* was ever published"),
        ({"num_attention_heads": [3, 2, 5, 2]}, "not a multiple of its heads"),
        ({"depths": "many"}, "whole numbers|unexpected kind"),
        ({"depths": [1, 2, 1, 2]}, "missing"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused_in_a_sentence(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    hf_model(False, 7).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_heads_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    theirs = timm.create_model("pvt_v2_b2", **{**SMALL, "embed_dims": (8, 16, 18, 16), "num_heads": (1, 2, 3, 2)})
    torch.save(theirs.state_dict(), tmp_path / "pvt.pth")
    with pytest.raises(CheckpointError, match=r"heads cannot be seen from stages of \(8, 16, 18, 16\) channels"):
        load_model(tmp_path / "pvt.pth")
    named = PVTConfig(heads=(1, 2, 3, 2), widths=(8, 16, 18, 16))
    assert loaded(tmp_path / "pvt.pth", architecture=named).config.heads == (1, 2, 3, 2)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    theirs, _ = theirs_of("b2")
    state = theirs.state_dict()
    named = PVTConfig(heads=(1, 2, 5, 2), widths=(8, 16, 20, 16))
    for name in ("stages.1.downsample.proj.weight", "stages.0.blocks.0.attn.sr.weight", "head.weight", "stages.3.norm.bias"):
        for spoilt in (None, state[name].flatten()[:-1], torch.tensor(1.0)):
            changed = {**state, name: spoilt} if spoilt is not None else {k: v for k, v in state.items() if k != name}
            torch.save(changed, tmp_path / "pvt.pth")
            with pytest.raises(CheckpointError):
                load_model(tmp_path / "pvt.pth", architecture=named)
