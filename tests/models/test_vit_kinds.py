"""Vision transformers with other kinds of attention, through the harness that every backbone goes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.models.harness import Harness, assert_close
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model

TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "image_size": 64, "patch_size": 8}
PATCHES_ONLY = {"class_token": False, "prefix_positions": 0, "pool": "mean"}


class TestKinds(Harness):
    kinds: ClassVar[dict[str, dict[str, Any]]] = {
        "vit_ti16: windows": {**TINY, **PATCHES_ONLY, "attention": "window", "window": 3},
        "vit_ti16: axial": {**TINY, **PATCHES_ONLY, "attention": "axial"},
        "vit_ti16: spatial reduction": {**TINY, **PATCHES_ONLY, "attention": "spatial_reduction"},
        "vit_ti16: performer": {**TINY, "attention": "performer", "features": 24},
        "vit_ti16: cross-covariance": {**TINY, "attention": "cross_covariance", "registers": 2},
    }


@pytest.mark.parametrize("kind", ["window", "axial", "spatial_reduction"])
def test_kinds_on_the_grid_refuse_tokens_that_have_no_place(kind: str) -> None:
    with pytest.raises(
        UsageError, match=rf"attention='{kind}' looks at places on the grid, and the class before the patches"
    ):
        create_model("vit_ti16", attention=kind)
    with pytest.raises(UsageError, match="the register 1, register 2 before"):
        create_model("vit_ti16", **{**PATCHES_ONLY, "registers": 2}, attention=kind)


@pytest.mark.parametrize(
    "options", [{"rotary": True}, {"relative_bias": "shared"}, {"qk_norm": True}, {"key_bias": False}], ids=str
)
def test_what_global_attention_alone_has_is_refused(options: dict[str, Any]) -> None:
    [(field, value)] = options.items()
    with pytest.raises(
        UsageError, match=rf"{field}={value!r} goes with attention='global' only; attention='performer' came"
    ):
        create_model("vit_ti16", attention="performer", **options)


def test_a_misspelt_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'performer'"):
        create_model("vit_ti16", attention="perfomer")


@torch.no_grad()
def test_windows_alternate_and_features_differ_by_block() -> None:
    model = create_model("vit_ti16", **{**TINY, "depth": 4}, **PATCHES_ONLY, attention="window", window=5)
    assert [block.attention.shift for block in model.blocks] == [(0, 0), (2, 2), (0, 0), (2, 2)]
    model = create_model("vit_ti16", **TINY, attention="performer")
    first, second = (block.attention.features for block in model.blocks)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_a_performer_of_many_features_answers_as_the_transformer_of_its_weights() -> None:
    plain = create_model("vit_ti16", 5, **TINY).eval()
    linear = create_model("vit_ti16", 5, **TINY, attention="performer", features=8192).eval()
    linear.load_state_dict({**linear.state_dict(), **plain.state_dict()})
    pixels = torch.randn(2, 3, 64, 64)
    assert_close(linear(pixels).tokens, plain(pixels).tokens, 1e-3)


def test_files_written_before_there_were_kinds_are_read(tmp_path: Path) -> None:
    model = create_model("vit_ti16", 5, **TINY)
    save_model(model, tmp_path)
    told = json.loads((tmp_path / "vitral.json").read_text())
    for field in ("attention", "window", "reduction", "features"):
        del told["config"][field]
    (tmp_path / "vitral.json").write_text(json.dumps(told))
    assert load_model(tmp_path).config == model.config


@torch.no_grad()
def test_random_features_travel_with_the_weights(tmp_path: Path) -> None:
    model = create_model("vit_ti16", 5, **TINY, attention="performer").eval()
    model.blocks[0].attention.redraw(77)
    pixels = torch.randn(1, 3, 64, 64)
    again = load_model(save_model(model, tmp_path))
    assert torch.equal(again(pixels).logits, model(pixels).logits)
    larger = model.resized(96)
    assert torch.equal(larger.blocks[0].attention.features, model.blocks[0].attention.features)


@pytest.mark.parametrize("layout", ["timm", "transformers"])
@pytest.mark.parametrize("kind", ["axial", "performer", "window", "cross_covariance"])
def test_other_layouts_refuse_a_kind_they_cannot_state(kind: str, layout: str, tmp_path: Path) -> None:
    model = create_model("vit_ti16", width=32, depth=2, heads=2, mlp_width=32, image_size=32, patch_size=8, attention=kind,
                         class_token=False, prefix_positions=0, pool="mean", window=2)  # fmt: skip
    with pytest.raises(UsageError, match=kind):
        save_model(model, tmp_path / "kind", layout=layout)
    assert not (tmp_path / "kind").exists()
