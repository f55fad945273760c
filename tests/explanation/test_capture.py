"""What is captured against the same networks written out, and what capturing must not do: change anything."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.explanation.eager import Eager
from tests.models.test_vit import KINDS, small
from vitral.errors import UnknownNameError, UsageError
from vitral.explanation.capture import Captured, Part, attention_layers, capture, find_layer
from vitral.layers.attention import ScaledDotProduct, SelfAttention
from vitral.models.backbones.vit import ViT

PARTS: tuple[Part, ...] = get_args(Part)
OF_PRODUCT: tuple[Part, ...] = ("attention", "queries", "keys", "values")
kinds = pytest.mark.parametrize("kind", KINDS)
parts = pytest.mark.parametrize("part", PARTS)
# Placement, bias, rotation, registers, norms of queries and keys, and a pool that asks: one network for each.
FEW = ("vit_b16", "beit_b16", "dinov3_b16", "siglip_b16", "norms after", "norms in the branches")
few = pytest.mark.parametrize("kind", FEW)


def pictures(model: ViT, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *model.config.image_size)


def captured(model: nn.Module, pixels: Tensor, *args: Any, **options: Any) -> Captured:
    with torch.no_grad(), capture(model, *args, **options) as found:
        model(pixels)
    return found


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """At most `tolerance` apart, in units of the largest number (but of one, where all are smaller)."""
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


# -- the right numbers ------------------------------------------------------------------------------------------------


@kinds
def test_every_part_is_the_one_of_the_network_written_out(kind: str) -> None:
    model = small(kind)
    pixels, eager = pictures(model), Eager(model)
    expected = eager(pixels)
    found = captured(model, pixels, parts=PARTS)
    assert found.layers == ("blocks.0.attention", "blocks.1.attention")
    for index in range(2):
        for part in PARTS:
            assert_near(found[index, part], eager.found[f"blocks.{index}"][part], 1e-5)
    with torch.no_grad():
        assert_near(model(pixels).logits, expected, 1e-5)  # so what was written out is the network


@kinds
def test_maps_are_those_written_out_and_their_rows_sum_to_one(kind: str) -> None:
    model = small(kind)
    pixels, eager = pictures(model), Eager(model)
    eager(pixels)
    for name, weights in zip((found := captured(model, pixels)).layers, found, strict=True):
        theirs = eager.found[name.removesuffix(".attention")]["attention"]
        assert weights.dtype == torch.float32
        assert weights.shape == theirs.shape
        assert (weights - theirs).abs().max() < 1e-5
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        assert (weights >= 0).all()


@pytest.mark.parametrize("kind", ["siglip_b16", "no class token"])
def test_the_map_of_an_attention_pool(kind: str) -> None:
    model = small(kind)
    pixels, eager = pictures(model), Eager(model)
    eager(pixels)
    found = captured(model, pixels, parts=OF_PRODUCT)
    assert found.layers == ("blocks.0.attention", "blocks.1.attention", "pool")
    for part in OF_PRODUCT:
        assert_near(found["pool", part], eager.found["pool"][part], 1e-5)
    seen = model.config.grid[0] * model.config.grid[1] + (model.config.prefix if model.config.pool_prefix else 0)
    assert found["pool"].shape == (2, 2, 1, seen)
    assert found[-1].shape == found["blocks.1"].shape  # numbers count blocks
    assert found.blocks() == found.layers[:2]
    assert found.blocks(-1) == found.layers[1:2]
    assert found.pool == "pool"


def test_numpys_and_torchs_whole_numbers_are_numbers() -> None:
    model = small("vit_b16")
    pixels = pictures(model)
    expected = captured(model, pixels, layers=[1], heads=[1, 0], queries=3)
    for kind in (np.int64, torch.tensor):
        found = captured(model, pixels, layers=[kind(1)], heads=[kind(1), kind(0)], queries=[kind(3)])
        assert torch.equal(found[kind(1)], expected[1])
        assert find_layer(attention_layers(model), kind(-1)).name == "blocks.1.attention"
    for kind in (np.array, torch.tensor):
        found = captured(model, pixels, layers=kind([1]), heads=kind([1, 0]), queries=kind([3]))
        assert torch.equal(found[1], expected[1])
    assert torch.equal(captured(model, pixels, layers=np.int64(1), heads=[1, 0], queries=np.int64(3))[1], expected[1])


@kinds
def test_bfloat16_maps(kind: str) -> None:
    model = small(kind).bfloat16()
    pixels, eager = pictures(model).bfloat16(), Eager(model)
    eager(pixels)  # fills in what the layers are called
    found = captured(model, pixels, parts=("attention", "queries", "keys", "attention_input"))
    for index, layer in enumerate(attention_layers(model)[:2]):
        weights, queries, keys = (found[index, part] for part in ("attention", "queries", "keys"))
        assert weights.dtype == torch.float32
        assert queries.dtype == keys.dtype == torch.bfloat16
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        # From the tokens that entered: queries and keys were rounded to 8 bits, which tells the more, the larger the logits.
        eager.attention(f"blocks.{index}", found[index, "attention_input"].double(), model.config.grid)
        largest = (queries.double() @ keys.double().mT).abs().max().item() * layer.product.scale
        off = (weights - eager.found[f"blocks.{index}"]["attention"]).abs().max()
        assert off < 2e-3 * max(1.0, largest / 4)
        # From the rounded queries and keys: nothing more was lost.
        if model.config.relative_bias == "none":
            exact = (queries.double() @ keys.double().mT * layer.product.scale).softmax(-1)
            assert (weights - exact).abs().max() < 1e-5


def test_double_precision_is_kept() -> None:
    model = small("beit_b16").double()
    pixels, eager = pictures(model).double(), Eager(model)
    eager(pixels)
    for name, weights in zip((found := captured(model, pixels)).layers, found, strict=True):
        assert weights.dtype == torch.float64
        assert (weights - eager.found[name.removesuffix(".attention")]["attention"]).abs().max() < 1e-12


@few
def test_under_autocast_maps_are_in_single_precision_and_the_output_stays(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model)
    whole = captured(model, pixels, -1)[-1]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        plain = model(pixels)
        with capture(model, -1) as found:
            watched = model(pixels)
        with torch.enable_grad(), capture(model, -1, gradients=True) as mixed:
            model(pixels)
    assert torch.equal(plain.logits, watched.logits)
    for weights in (found[-1], mixed[-1]):
        assert weights.dtype == torch.float32
        assert (weights.sum(-1) - 1).abs().max() < 1e-6
        assert (weights - whole).abs().mean() < 5e-3


def test_inference_mode() -> None:
    model = small("beit_b16")
    pixels = pictures(model)
    with torch.inference_mode(), capture(model) as found:
        model(pixels)
    for ours, theirs in zip(found, captured(model, pixels), strict=True):
        assert torch.equal(ours, theirs)


# -- identities -------------------------------------------------------------------------------------------------------


@kinds
def test_the_stream_adds_up(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model)
    found = captured(model, pixels, parts=PARTS)
    with torch.no_grad():
        assert torch.equal(found[0, "residual_pre"], model.embed(pixels)[0])
        assert torch.equal(found[1, "residual_pre"], found[0, "residual_post"])
        for index, block in enumerate(model.blocks):
            one: dict[str, Tensor] = {part: found[index, part] for part in PARTS}
            middle = one["residual_pre"] + one["attention_output"]
            end = one["residual_mid"] + one["mlp_output"]
            if model.config.norm_placement == "post":
                middle, end = block.norm1(middle), block.norm2(end)
            assert torch.equal(one["residual_mid"], middle)
            assert torch.equal(one["residual_post"], end)
            mixed = (one["attention"] @ one["values"]).transpose(1, 2).flatten(2)
            branch, feed = block.attention.projection(mixed), block.mlp.down(one["mlp_hidden"])
            if model.config.norm_placement == "res_post":
                branch, feed = block.norm1(branch), block.norm2(feed)
            assert_near(block.scale1(branch), one["attention_output"].double(), 1e-5)
            assert_near(block.scale2(feed), one["mlp_output"].double(), 1e-5)


def test_maps_in_training_are_those_before_dropout() -> None:
    model = small("vit_b16", dropout=0.4, drop_path=0.5).train()
    found = captured(model, pictures(model, 8), parts=("attention", "queries", "keys"))
    for index in range(2):
        queries, keys, weights = (found[index, part] for part in ("queries", "keys", "attention"))
        assert_near(weights, (queries.double() @ keys.double().mT / 4).softmax(-1), 1e-6)


def test_mixing_in_the_open_drops_weights_as_the_fused_kernel_would() -> None:
    product = ScaledDotProduct(0.5, dropout=0.25).train()
    queries, keys = torch.randn(2, 1, 8, 20, 4).requires_grad_().unbind(0)
    with capture(product, gradients=True) as found:
        mixed = product(queries, keys, torch.eye(20).expand(1, 8, 20, 20))  # values that show the map
    [weights] = list(found)
    dropped = mixed == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(mixed[~dropped], weights[~dropped] / 0.75)


# -- nothing changes --------------------------------------------------------------------------------------------------


def tensors(output: Any) -> list[Tensor]:
    return [output.tokens, output.pooled, output.logits, *output.heads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recording", [torch.no_grad, torch.enable_grad], ids=["no_grad", "enable_grad"])
@kinds
def test_the_output_is_the_same_to_the_bit(kind: str, recording: Callable[[], Any], dtype: torch.dtype) -> None:
    model = small(kind).to(dtype)
    pixels = pictures(model).to(dtype)
    with recording():
        plain = model(pixels)
        with capture(model, parts=PARTS) as found:
            watched = model(pixels)
        with capture(model, heads=1, queries=0):
            picked = model(pixels)
    assert not any(found[name, part].requires_grad for name in found.layers for part in PARTS)
    for ours, theirs, again in zip(tensors(watched), tensors(plain), tensors(picked), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(again, theirs)
    if recording is torch.enable_grad:
        through, past = (
            torch.autograd.grad(out.logits.float().sum(), list(model.parameters()), allow_unused=True)
            for out in (watched, plain)
        )
        for ours, theirs in zip(through, past, strict=True):
            assert ours is theirs is None or torch.equal(ours, theirs)


@parts
@pytest.mark.parametrize("kind", ["vit_b16", "dinov2_g14", "norms after"])
def test_each_part_alone_changes_nothing_and_is_what_it_is_among_others(kind: str, part: Part) -> None:
    model = small(kind)
    pixels = pictures(model)
    together = captured(model, pixels, parts=PARTS)
    with torch.no_grad():
        plain = model(pixels)
        with capture(model, parts=part) as found:
            watched = model(pixels)
    for ours, theirs in zip(tensors(watched), tensors(plain), strict=True):
        assert torch.equal(ours, theirs)
    for index in range(2):
        assert torch.equal(found[index], together[index, part])


def traces(model: nn.Module) -> list[Any]:
    """Everything that hangs on the modules of a network, by identity."""
    hung = []
    for module in model.modules():
        for name, value in sorted(vars(module).items()):
            hung.append((name, list(value.items()) if isinstance(value, dict) else id(value)))
    return hung


class StoppedError(Exception):
    pass


def entering_wrongly(model: ViT) -> None:
    with capture(model, ["blocks.0", "pool"], parts=["attention", "residual_pre"]):
        pass


def stopping(model: ViT) -> None:
    with capture(model, parts=PARTS):
        model(pictures(model))
        raise StoppedError


def asking_too_far(model: ViT) -> None:
    with capture(model, queries=500):
        model(pictures(model))


@pytest.mark.parametrize(
    ("run", "error"), [(entering_wrongly, UsageError), (stopping, StoppedError), (asking_too_far, UsageError)]
)
def test_nothing_stays_behind(run: Callable[[ViT], None], error: type[Exception]) -> None:
    model = small("siglip_b16")
    before, state = traces(model), {name: value.clone() for name, value in model.state_dict().items()}
    with capture(model, parts=OF_PRODUCT, gradients=True):
        assert traces(model) != before  # so this would be seen
        model(pictures(model))
    assert traces(model) == before
    with pytest.raises(error):
        run(model)
    assert traces(model) == before
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_callers_own_hooks_stay() -> None:
    model = small("vit_b16")
    seen: list[int] = []
    handle = model.blocks[0].attention.product.register_forward_hook(lambda *_: seen.append(1))
    captured(model, pictures(model))
    captured(model, pictures(model))
    assert len(seen) == 2
    handle.remove()


def test_after_the_block_nothing_more_is_captured() -> None:
    model = small("vit_b16")
    first, second = pictures(model), pictures(model)
    with torch.no_grad(), capture(model) as found:
        model(first)
        once = found[0]
        model(second)
        assert not torch.equal(found[0], once)  # each forward replaces what the last one left
        twice = found[0]
    model(first)
    assert found[0] is twice


def test_captures_may_be_nested() -> None:
    model = small("beit_b16")
    pixels = pictures(model)
    expected = captured(model, pixels, parts=PARTS)
    with capture(model, 0) as outer:
        with capture(model, parts=PARTS) as inner, torch.no_grad():
            model(pixels)
        kept = [outer[0], *inner]
        with torch.no_grad():
            model(pixels + 1)
    assert torch.equal(kept[0], expected[0])
    assert not torch.equal(outer[0], expected[0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept[1:], expected, strict=True))


def test_of_nested_captures_with_gradients_the_innermost_mixes() -> None:
    model = small("vit_b16")
    with capture(model, gradients=True) as outer, capture(model, gradients=True) as inner:
        score = model(pictures(model)).logits.sum()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outer, inner, strict=True))
    assert all(gradient.any() for gradient in torch.autograd.grad(score, list(inner), retain_graph=True))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(score, list(outer))


# -- gradients --------------------------------------------------------------------------------------------------------


@kinds
def test_with_gradients_the_output_agrees_up_to_rounding(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model)
    plain = model(pixels)
    with capture(model, parts=PARTS, gradients=True):
        watched = model(pixels)
    for ours, theirs in zip(tensors(watched), tensors(plain), strict=True):
        assert_near(ours.detach(), theirs.detach().double(), 1e-5)


@few
def test_gradients_are_those_of_the_network_written_out(kind: str) -> None:
    model = small(kind)
    pixels, towards = pictures(model), torch.randn(2, 5)
    with capture(model, parts=PARTS, gradients=True) as found:
        score = (model(pixels).logits * towards).sum()
    eager = Eager(model)
    eager.weights = {name: tensor.requires_grad_() for name, tensor in eager.weights.items()}
    theirs_score = (eager(pixels) * towards).sum()
    places = [(index, part) for index in range(2) for part in PARTS]
    # Queries and keys are asked through the map, which was mixed in the open.
    ours = torch.autograd.grad(score, [found[place] for place in places])
    theirs = torch.autograd.grad(theirs_score, [eager.found[f"blocks.{index}"][part] for index, part in places])
    for place, one, other in zip(places, ours, theirs, strict=True):
        assert other.abs().max() > 1e-4, place
        assert (one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item()), place


def test_the_gradient_by_the_map_of_an_attention_pool() -> None:
    model = small("siglip_b16")
    pixels = pictures(model)
    with capture(model, "pool", gradients=True) as found:
        score = model(pixels).logits[:, 3].sum()
    [ours] = torch.autograd.grad(score, [found["pool"]])
    eager = Eager(model, nudges={"pool": torch.zeros(2, 2, 1, 16, dtype=torch.float64, requires_grad=True)})
    [theirs] = torch.autograd.grad(eager(pixels)[:, 3].sum(), list(eager.nudges.values()))
    assert_near(ours, theirs, 1e-5)


@few
def test_gradients_by_maps_are_finite_differences(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model, 1)
    with capture(model, [0, 1], gradients=True) as found:
        score = model(pixels).logits[0, 2]
    for index, gradient in enumerate(torch.autograd.grad(score, list(found))):
        name = f"blocks.{index}"
        for place in gradient.abs().flatten().topk(3).indices.tolist():
            ends = []
            for step in (1e-4, -1e-4):
                nudge = torch.zeros(gradient.numel(), dtype=torch.float64)
                nudge[place] = step
                ends.append(Eager(model, nudges={name: nudge.view(gradient.shape)})(pixels)[0, 2].item())
            slope = (ends[0] - ends[1]) / 2e-4
            assert abs(slope) > 1e-3
            assert gradient.flatten()[place].item() == pytest.approx(slope, rel=1e-3)


def test_gradients_in_bfloat16_are_close() -> None:
    model = small("vit_b16")
    pixels = pictures(model)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        with capture(model.to(dtype), 1, gradients=True) as maps:
            score = model(pixels.to(dtype)).logits[:, 0].sum()
        found += torch.autograd.grad(score, list(maps))
    assert found[1].dtype == torch.float32
    assert F.cosine_similarity(found[0].flatten(), found[1].flatten(), dim=0) > 0.99


def test_gradients_of_a_frozen_network_need_pixels_that_require_them() -> None:
    model = small("vit_b16").requires_grad_(False)
    pixels = pictures(model)
    message = r"attention of blocks\.0\.attention leads back to nothing that requires a gradient\. Call requires_grad_\(\)"
    with pytest.raises(UsageError, match=message), capture(model, gradients=True):
        model(pixels)
    with capture(model, gradients=True) as found:
        score = model(pixels.requires_grad_()).logits.sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(score, list(found)))


# -- what was asked for -----------------------------------------------------------------------------------------------


def test_layers_are_named_in_many_ways() -> None:
    model = small("siglip_b16", depth=4)
    names = tuple(f"blocks.{index}.attention" for index in range(4))
    assert tuple(layer.name for layer in attention_layers(model)) == (*names, "pool")
    for asked, expected in (
        (None, (*names, "pool")),
        (2, names[2:3]),
        (-1, names[3:]),
        ("blocks.1", names[1:2]),
        ("blocks.1.attention", names[1:2]),
        ("pool", ("pool",)),
        ([3, "blocks.0"], (names[0], names[3])),  # in the network's order
        (range(1, 3), names[1:3]),
        ((-1, 3, "blocks.3"), names[3:]),  # once
        (iter(["pool", 0]), (names[0], "pool")),
    ):
        with capture(model, asked) as found:
            assert found.layers == expected
            assert len(found) == len(expected)
    assert captured(model, pictures(model), parts="residual_post").layers == names  # a pool has no stream
    assert captured(model, pictures(model), parts=["values", "attention"]).layers == (*names, "pool")


def test_the_first_part_is_the_one_that_comes_without_naming_it() -> None:
    model = small("vit_b16")
    found = captured(model, pictures(model), parts=["values", "attention"])
    assert torch.equal(found[0], found[0, "values"])
    assert torch.equal(found["blocks.1", "attention"], found[-1, "attention"])
    assert [value.shape for value in found] == [(2, 2, 17, 16)] * 2
    assert repr(found) == "Captured(values, attention of 2 layers: blocks.0.attention, blocks.1.attention)"


def test_parts_of_networks_can_be_watched_alone() -> None:
    model, tokens = small("siglip_b16"), torch.randn(2, 7, 32)
    block: Any = model.blocks[0]
    whole = captured(block, tokens, parts=PARTS)
    assert whole.layers == ("attention",)
    assert torch.equal(whole[0, "residual_pre"], tokens)
    for module, name in ((block.attention, "product"), (model.pool, "product"), (nn.Sequential(block), "0.attention")):
        found = captured(module, tokens)
        assert found.layers == (name,)
        assert found[0].shape == (2, 2, 1 if module is model.pool else 7, 7)
    assert torch.equal(captured(block.attention, block.norm1(tokens))[0], whole[0])


@pytest.mark.parametrize("kind", ["vit_b16", "beit_b16", "dinov3_b16"])
@pytest.mark.parametrize(
    ("heads", "queries"), [(1, None), ([1, 0], None), (None, 0), (None, [5, -1, 5]), (-1, 3), ([0], [0, 4])], ids=str
)
def test_heads_and_queries_select(kind: str, heads: Any, queries: Any) -> None:
    model = small(kind)
    pixels = pictures(model)
    whole = captured(model, pixels, parts=OF_PRODUCT)
    found = captured(model, pixels, parts=OF_PRODUCT, heads=heads, queries=queries)
    chosen = slice(None) if heads is None else [heads] if isinstance(heads, int) else heads
    rows = slice(None) if queries is None else [queries] if isinstance(queries, int) else queries
    for index in range(2):
        for part in OF_PRODUCT:
            expected = whole[index, part][:, chosen]
            expected = expected[:, :, rows] if part in ("attention", "queries") else expected
            assert found[index, part].shape == expected.shape
            assert (found[index, part] - expected).abs().max() < 1e-6


class Sizes(TorchDispatchMode):
    """Notes the storage of every tensor that is made (views make none), and whether it holds n × m numbers."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.made = large, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        came = func(*args, **(kwargs or {}))
        old = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in came if isinstance(came, tuple | list) else [came]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in old:
                self.made += one.untyped_storage().nbytes() // one.element_size() >= self.large
        return came


@pytest.mark.parametrize("kind", ["vit_b16", "beit_b16"])
def test_nothing_as_large_as_a_map_is_made_for_one_row(kind: str) -> None:
    # 26 × 26 patches of four pixels: a row of all heads is small, the least map is larger than any other tensor.
    model = small(kind, image_size=(104, 104), patch_size=(4, 4), width=8, mlp_width=8)
    pixels = pictures(model, 1)
    with torch.no_grad():
        model(pixels)  # what is kept for a grid is made when it is first seen
        made = {}
        for name, watching in {
            "nothing": nullcontext(),
            "a row": capture(model, queries=0),
            "a row of a head": capture(model, queries=[0], heads=1),
            "a map": capture(model, heads=1),
        }.items():
            with watching, Sizes(677 * 677) as sizes:
                model(pixels)
            made[name] = sizes.made
    assert made["a row"] == made["a row of a head"] == made["nothing"]
    assert made["a map"] > made["nothing"]


@pytest.mark.parametrize("part", ["queries", "keys", "values"])
def test_what_is_kept_does_not_keep_its_neighbours_in_memory(part: Part) -> None:
    model = small("vit_b16")
    [value] = list(captured(model, pictures(model), 0, parts=part))
    assert value.untyped_storage().nbytes() == value.nbytes


def test_reduce_is_called_with_every_tensor_and_its_answer_kept() -> None:
    model = small("siglip_b16")
    pixels = pictures(model)
    whole = captured(model, pixels, parts=("attention", "keys"))
    came: list[Tensor] = []

    def entropy(x: Tensor) -> str:
        came.append(x)
        return f"{-(x.clamp(min=1e-30).log() * x).sum():.4f}"

    found = captured(model, pixels, parts=("attention", "keys"), reduce=entropy)
    assert len(came) == 6
    assert {found[name, part] for name in found.layers for part in ("attention", "keys")} == {
        f"{-(x.clamp(min=1e-30).log() * x).sum():.4f}" for x in came
    }
    assert torch.equal(came[0], whole[0, "attention"])
    with capture(model, 0, gradients=True, reduce=lambda x: x.mean()) as means:
        model(pixels)
    assert means[0].requires_grad


# -- sentences --------------------------------------------------------------------------------------------------------


# As users have it: while tests run, annotations are checked before it sees what came.
unchecked: Any = contextmanager(inspect.unwrap(capture))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 99}, r"There is no layer 99: the model has 2, numbered 0 to 1 \(or -1 for the last\)\."),
        ({"layers": [0, -3]}, r"There is no layer -3: the model has 2"),
        ({"layers": "block.1"}, r"Unknown layer 'block\.1'\. Did you mean 'blocks\.1\.attention'"),
        ({"layers": []}, r"No layer to capture was named\. Leave layers out for all of them\."),
        ({"heads": 7}, r"There is no head 7: blocks\.0\.attention has 2, numbered 0 to 1 \(or -1 for the last\)\."),
        ({"queries": 500}, r"There is no asking token 500: blocks\.0\.attention has 16, numbered 0 to 15"),
        ({"layers": "pool", "queries": -2}, r"There is no asking token -2: pool has 1, numbered 0 to 0"),
        ({"parts": "atention"}, r"Unknown part of a layer 'atention'\. Did you mean 'attention'"),
        ({"parts": ["keys", "mlp"]}, r"Unknown part of a layer 'mlp'\. Known: attention, .*, values\."),
        ({"parts": []}, r"No part to capture was named\. Known: attention, queries, .*residual_post\."),
        ({"heads": []}, r"heads must be a whole number or some of them; \[\] came\."),
        ({"queries": []}, r"queries must be a whole number or some of them; \[\] came\."),
        ({"layers": "pool", "parts": "residual_mid"}, r"pool is not inside a block, so it has no residual_mid; it has atte"),
        ({"gradients": True}, r"gradients=True needs gradients to be recorded, but they are switched off here"),
        ({"gradients": True, "queries": 0}, r"With gradients=True whole maps are mixed; leave heads and queries out"),
    ],
    ids=str,
)
def test_what_cannot_be_captured_is_refused_in_a_sentence(options: dict[str, Any], message: str) -> None:
    model = small("siglip_b16")
    with pytest.raises(UsageError, match=message), torch.no_grad(), unchecked(model, **options):
        model(pictures(model))


def test_names_come_with_their_neighbours() -> None:
    layers = attention_layers(small("siglip_b16"))
    with pytest.raises(UnknownNameError) as caught:
        find_layer(layers, "poll")
    assert caught.value.nearest == ("pool",)


def test_a_model_without_attention() -> None:
    with pytest.raises(UsageError, match=r"A Linear has no attention to look at\."), capture(nn.Linear(2, 2)):
        pass


def test_a_pool_alone_has_no_stream() -> None:
    pool = small("siglip_b16").pool
    assert pool is not None
    with pytest.raises(UsageError, match="product is not inside a block, so it has no mlp_output"):
        captured(pool, torch.randn(1, 4, 32), parts="mlp_output")


def test_compiled_models_are_refused() -> None:
    message = r"A compiled model cannot be watched\. Pass the model as it was before torch\.compile\."
    outside, inside, in_place = (small("vit_b16") for _ in range(3))
    inside.blocks[0] = torch.compile(inside.blocks[0])  # nothing is compiled before it is called
    in_place.blocks[1].compile()
    for model in (torch.compile(outside), inside, in_place):
        with pytest.raises(UsageError, match=message), capture(model):
            pass


def test_asking_for_what_was_not_captured() -> None:
    model = small("vit_b16")
    with capture(model, 0, parts=["attention", "keys"]) as found:
        with pytest.raises(UsageError, match=r"Nothing passed blocks\.0\.attention yet: call the model inside the `with`"):
            found[0]
        model(pictures(model))
    for asked, message in (
        ((0, "values"), r"values of blocks\.0\.attention was not captured, only attention, keys of blocks\.0\.attention\."),
        (1, r"attention of blocks\.1\.attention was not captured, only"),
        ("blocks.7", r"Unknown layer 'blocks\.7'\."),
        (9, r"There is no layer 9"),
    ):
        with pytest.raises(UsageError, match=message):
            found[asked]


def test_a_layer_is_a_number_or_a_name() -> None:
    for layers in (True, 1.5):
        with pytest.raises(UsageError, match="A layer is a number or a name such as 'blocks"):
            inspect.unwrap(find_layer)(attention_layers(small("vit_b16")), layers)


def test_attention_without_blocks_has_numbers_too() -> None:
    attention = SelfAttention(8, 2)
    [weights] = list(captured(attention, torch.randn(1, 3, 8), 0))
    assert weights.shape == (1, 2, 3, 3)
    assert math.isclose(weights.sum().item(), 6, rel_tol=1e-6)
