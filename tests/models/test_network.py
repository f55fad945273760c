"""What every family offers: how deep a parameter lies, and the same network at another size."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor

from tests.models import test_cct, test_vit
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.checkpoints.vit.timm import LAYOUT
from vitral.data.transforms import Preprocessing
from vitral.errors import UnknownNameError, UsageError
from vitral.models.catalogue import create_model
from vitral.models.network import Network, NetworkConfig, check_ranges

KINDS = [*test_vit.KINDS, *test_cct.KINDS]
kinds = pytest.mark.parametrize("kind", KINDS)


def small(kind: str, **overrides: Any) -> Any:
    return (test_vit if kind in test_vit.KINDS else test_cct).small(kind, **overrides)


@kinds
def test_every_family_offers_the_same(kind: str) -> None:
    model = small(kind)
    assert isinstance(model, Network)
    assert isinstance(model.config, NetworkConfig)
    assert model.depth == model.config.depth == 2
    assert model(torch.randn(1, model.config.channels, 33, 46)).grid == model.config.grid_of((33, 46))


@kinds
def test_a_parameter_lies_where_it_first_changes_something(kind: str) -> None:
    """Stage 0 is what enters the first block, stage i + 1 what leaves block i, the last one the answer."""
    model = small(kind)
    stages: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: stages.append(inputs[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: stages.append(output))
    masked = getattr(model, "mask_token", None) is not None
    cells = model.config.grid[0] * model.config.grid[1]
    mask = (torch.ones(1, cells, dtype=torch.bool),) if masked else ()
    stages.append(model(torch.randn(1, model.config.channels, *model.config.image_size), *mask).logits)
    names, parameters = zip(*model.named_parameters(), strict=True)
    changed = [torch.autograd.grad(stage.sum(), parameters, allow_unused=True, retain_graph=True) for stage in stages]
    for place, name in enumerate(names):
        first = next(number for number, found in enumerate(changed) if found[place] is not None)
        # What all blocks share acts in the first one, and stands before it.
        assert model.depth_of(name) == (0 if name == "relative_bias.table" else first), name


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "shared"),
    [
        ("vit_b16", "vit_base_patch16_224", {}, {}),
        ("deit_b16_distilled", "deit_base_distilled_patch16_224", {}, {}),
        ("beit_b16", "beit_base_patch16_224", {}, {}),
        ("beit_b16", "beit_base_patch16_224", {"relative_bias": "shared"}, {"use_shared_rel_pos_bias": True}),
    ],
)
def test_depths_are_timms(ours: str, theirs: str, options: dict[str, Any], shared: dict[str, Any]) -> None:
    """But for the last norm, which timm counts to the last block and BEiT's own code to the head."""
    model = test_vit.small(ours, **options)
    unshared = {"use_rel_pos_bias": False} if shared else {}
    peer = timm.create_model(
        theirs, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, **shared, **unshared
    )
    depths = group_parameters(peer, peer.group_matcher(), reverse=True)
    compared = 0
    for row in LAYOUT.compose(model).rows:
        for name in row.theirs:
            if not name.startswith(("norm.", "fc_norm.")):
                assert depths[name] == model.depth_of(row.ours), name
                compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    "name", ["blocks.2.norm1.weight", "blocks", "blocks.0", "heads.weight", "", "mask_token", "block_biases"]
)
def test_names_that_are_no_parameters_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="Unknown parameter"):
        test_vit.small("vit_b16").depth_of(name)
    with pytest.raises(UnknownNameError, match=r"Unknown parameter 'head\.weigth'\. Did you mean 'head\.weight'"):
        test_cct.small("cct_7_3x2_32").depth_of("head.weigth")


@torch.no_grad()
@kinds
@pytest.mark.parametrize("size", [(48, 40), (16, 24)])
def test_a_network_made_for_another_size_answers_as_the_first_does_at_that_size(kind: str, size: tuple[int, int]) -> None:
    model = small(kind)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    other = model.resized(size)
    pixels = torch.randn(2, model.config.channels, *size)
    torch.testing.assert_close(other(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
    assert other.config.image_size == size
    assert other.config.grid == other(pixels).grid
    assert not other.training
    # It is whole, and its own: what it learns leaves the first one alone.
    assert {name: p.shape for name, p in other.named_parameters()} == {
        name: p.shape for name, p in type(model)(other.config).named_parameters()
    }
    for parameter in other.parameters():
        parameter.zero_()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("kind", ["beit_b16", "cct_7_3x2_32"])
def test_a_network_made_for_another_size_can_be_trained_and_saved(kind: str, tmp_path: Any) -> None:
    model = small(kind).train()
    model.head.requires_grad_(False)
    other = model.resized(48)
    assert other.training
    assert other.config.image_size == (48, 48)
    frozen = {name for name, parameter in other.named_parameters() if not parameter.requires_grad}
    assert frozen == {"head.weight", "head.bias"}
    other(torch.randn(2, 3, 48, 48)).logits.sum().backward()
    tables = [p for name, p in other.named_parameters() if name == "position_table" or name.startswith("block_biases")]
    assert tables
    assert all(table.is_leaf and table.grad is not None for table in tables)
    again = load_model(save_model(other, tmp_path / "other"))
    assert again.config == other.config
    with torch.no_grad():
        pixels = torch.randn(1, 3, 48, 48)
        assert torch.equal(again(pixels).logits, other.eval()(pixels).logits)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Preprocessing(size=(32, 32)), Preprocessing(size=(64, 48))),
        (
            Preprocessing(resize="shortest_edge", size=(40, 40), crop=(32, 32)),
            Preprocessing(resize="shortest_edge", size=(80, 60), crop=(64, 48)),
        ),
        (Preprocessing(resize="shortest_edge", size=(32, 32)), Preprocessing(resize="shortest_edge", size=(64, 48))),
        (None, None),
    ],
    ids=str,
)
def test_the_preprocessing_follows(before: Preprocessing | None, after: Preprocessing | None) -> None:
    model = test_vit.small("vit_b16")
    model.record = replace(model.record, preprocessing=before, labels=tuple("abcde"))
    other = model.resized((64, 48))
    assert other.record == replace(model.record, preprocessing=after)
    assert model.record.preprocessing == before


@pytest.mark.parametrize("size", [(4, 32), 0, (32,), (32.0, 32.0), True, (32, 32, 32)], ids=str)
def test_sizes_that_cannot_be_are_refused(size: Any) -> None:
    with pytest.raises((UsageError, TypeError)) as caught:
        test_vit.small("vit_b16").resized(size)
    if isinstance(size, int) or size == (4, 32):
        assert isinstance(caught.value, UsageError)


def test_one_number_means_a_square_where_a_size_is_meant() -> None:
    assert create_model("cct_7_3x2_32", image_size=48).config.image_size == (48, 48)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 48, "image_size must be two whole numbers; 48 came"),
        ("image_size", (48,), r"image_size must be two whole numbers; \(48,\) came"),
        ("image_size", (48, 48.0), r"image_size must be two whole numbers; \(48, 48.0\) came"),
        ("conv_channels", 48, "conv_channels must be whole numbers; 48 came"),
        ("conv_channels", (48, True), r"conv_channels must be whole numbers; \(48, True\) came"),
        ("conv_channels", (48, 0), r"conv_channels must be from 1 to 90; \(48, 0\) came"),
        ("width", (4, 4), r"width must be a whole number; \(4, 4\) came"),
        ("width", 91, "width must be from 1 to 90; 91 came"),
        ("dropout", "0.1", "dropout must be a number; '0.1' came"),
        ("dropout", float("nan"), "dropout must be from 0.0 to 0.5; nan came"),
    ],
)
def test_numbers_are_held_against_their_ranges(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_ranges(SimpleNamespace(**{field: value}), {field: (0.0, 0.5) if field == "dropout" else (1, 90)})
    check_ranges(
        SimpleNamespace(width=9, image_size=(1, 9), conv_channels=(), layer_scale=None),
        dict.fromkeys(("width", "image_size", "conv_channels", "layer_scale"), (1, 9)),
    )
