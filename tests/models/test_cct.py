"""Compact transformers through the harness that every backbone goes through; for parity see tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.models.backbones.cct import CCT, VARIANTS, CCTConfig
from vitral.models.catalogue import create_model

SMALL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "image_size": 32, "num_classes": 5}
KINDS: dict[str, dict[str, Any]] = {
    "cct_7_3x2_32": {},
    "cct_7_3x1_32": {},
    "cct_14_7x2_224": {},
    "cct_4_3x3_32": {"conv_channels": (8, 16)},
    "cvt_7_4_32": {},
    "compact with sinusoids": {"position": "sinusoidal_1d"},
    "compact without positions": {"position": "none", "channels": 1},
    "compact and oblong": {"image_size": (24, 40), "stride": 2, "pool_kernel": 1, "pool_stride": 1, "kernel": 5},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def small(kind: str, **overrides: Any) -> CCT:
    """A network of a kind with weights large enough for every part to matter."""
    options = {**SMALL, **KINDS[kind], **overrides}
    model = create_model(kind if "_" in kind else "cct_7_3x2_32", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.ndim > 1 else parameter.normal_(0.5, 0.3)
    return model.eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance * scale, rtol=0)


def pictures(model: CCT, count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, model.config.channels, height, width)


@torch.no_grad()
@kinds
@pytest.mark.parametrize("size", [(32, 32), (61, 43), (5, 4)])
def test_pictures_of_any_size(kind: str, size: tuple[int, int]) -> None:
    model = small(kind)
    out = model(pictures(model, 2, *size))
    rows, columns = out.grid
    assert out.grid == model.config.grid_of(size)
    assert out.prefix == 0
    assert out.tokens.shape == (2, rows * columns, 32)
    assert out.pooled.shape == (2, 32)
    assert out.logits.shape == (2, 5)
    assert out.heads == (out.logits,)
    assert out.feature_map.shape == (2, 32, rows, columns)
    for values in (out.tokens, out.pooled, out.logits):
        assert values.isfinite().all()


@torch.no_grad()
@kinds
def test_a_batch_is_its_pictures(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model, 3, 40, 56)
    together = model(pixels)
    for index in range(3):
        alone = model(pixels[index : index + 1])
        close(together.tokens[index], alone.tokens[0], 1e-5)
        close(together.logits[index], alone.logits[0], 1e-5)


@kinds
def test_the_gradient_of_the_logits_reaches_every_parameter(kind: str) -> None:
    model = small(kind).train()
    (model(pictures(model, 2, *model.config.image_size)).logits * torch.randn(2, 5)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name == "pool.score.bias":  # the same number added to all scores, which softmax forgets
            assert parameter.grad.abs() < 1e-4
        else:
            assert parameter.grad.any(), name


@torch.no_grad()
@kinds
def test_bfloat16_is_close(kind: str) -> None:
    model = small(kind)
    pixels = pictures(model, 2, 32, 48)
    whole = model(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        auto = model(pixels)
    half = model.bfloat16()(pixels.bfloat16())
    assert half.tokens.dtype == half.logits.dtype == torch.bfloat16
    for answer in (half, auto):
        close(answer.tokens, whole.tokens, 0.02)
        close(answer.logits, whole.logits, 0.02)


@pytest.mark.parametrize("kind", ["cct_7_3x2_32"])
def test_an_exported_network_computes_the_same(kind: str) -> None:
    model = small(kind)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (pictures(model, 2, 32, 32),), dynamic_shapes={"pixels": {0: batch}}).module()
    with torch.no_grad():
        for count in (2, 5):
            pixels = pictures(model, count, 32, 32)
            close(exported(pixels).logits, model(pixels).logits, 1e-5)


# Million parameters that the authors' README tells; three of its rows leave the position table out.
README = {
    "cct_2_3x2_32": (0.284, False),
    "cct_4_3x2_32": (0.482, False),
    "cct_6_3x1_32": (3.168, True),
    "cct_6_3x2_32": (3.327, False),
    "cct_7_3x1_32": (3.760, False),
    "cct_7_3x2_32": (3.853, False),
    "cct_14_7x2_224": (22.29, True),
    "cvt_6_4_32": (3.190, False),
    "cvt_7_4_32": (3.717, False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    # The name says how many blocks, what window, how many convolutions and what size.
    parts = name.split("_")
    blocks, side = int(parts[1]), int(parts[3])
    d, hidden = {2: (128, 128), 4: (128, 128), 6: (256, 512), 7: (256, 512), 14: (384, 1152)}[blocks]
    classes = {32: 10, 224: 102 if blocks == 7 else 1000, 384: 1000}[side]
    if name == "cct_4_3x3_32":
        d, hidden, tokenizer, tokens = 192, 384, 9 * (3 * 48 + 48 * 96 + 96 * 192), 16
    elif parts[0] == "cvt":
        tokenizer, tokens = 3 * 4 * 4 * d + d, 64
    else:
        window, layers = map(int, parts[2].split("x"))
        tokenizer = window**2 * (3 * d if layers == 1 else 3 * 64 + 64 * d)
        tokens = (side // ((2 if window == 3 else 4) ** layers)) ** 2
    block = 3 * d * d + (d * d + d) + 4 * d + (d * hidden + hidden) + (hidden * d + d)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == tokenizer + tokens * d + blocks * block + 2 * d + (d + 1) + (d + 1) * classes
    if name in README:
        told, without_positions = README[name]
        assert round((count - tokens * d * without_positions) / 1e6, 2 if told > 10 else 3) == told


@torch.no_grad()
def test_the_classifier_reads_the_tokens_by_what_each_is_worth() -> None:
    model = small("cct_7_3x2_32")
    out = model(pictures(model, 2, 24, 32))
    worth = (out.tokens @ model.pool.score.weight[0]).softmax(1)
    close(out.pooled, torch.einsum("bn,bnd->bd", worth, out.tokens), 1e-6)
    close(out.logits, model.head(out.pooled), 1e-6)
    assert worth.amax(1).min() > 1.1 / worth.shape[1], "the tokens' worth differs"


@torch.no_grad()
@kinds
def test_every_token_is_read_as_if_all_tokens_were_it(kind: str) -> None:
    model = small(kind)
    stream = torch.randn(2, 6, 32)
    read = model.read_tokens(stream)
    for place in range(6):
        everywhere = stream[:, place : place + 1].expand_as(stream)
        close(read[:, place], model.read_out(everywhere, (2, 3)).logits, 1e-5)
    model.reset_head(0)
    with pytest.raises(UsageError, match=r"The model has no classifier to read tokens with\."):
        model.read_tokens(stream)


@torch.no_grad()
def test_reset_head_changes_the_classifier_and_nothing_else() -> None:
    model = small("cct_7_3x2_32").bfloat16()
    pixels = pictures(model, 1, 32, 32).bfloat16()
    before = model(pixels)
    model.reset_head(3)
    after = model(pixels)
    assert torch.equal(before.tokens, after.tokens)
    assert after.logits.shape == (1, 3)
    assert after.logits.dtype == torch.bfloat16
    assert model.config.num_classes == 3
    assert model.head.weight.float().std().item() == pytest.approx(0.02, rel=0.4)
    assert not model.head.bias.any()
    model.reset_head(0)
    assert model(pixels).logits is None
    assert model(pixels).heads == ()


def test_a_fresh_network_starts_as_published() -> None:
    model = create_model("cct_7_3x2_32")
    assert model.position_table.std().item() == pytest.approx(0.2, rel=0.05)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
        if isinstance(module, nn.Conv2d):
            seen = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / seen) ** 0.5, rel=0.1)
            assert module.bias is None
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5


def test_dropping_acts_in_training_only_and_branches_are_dropped_more_with_depth() -> None:
    model = small("cct_7_3x2_32", depth=5, drop_path=0.4, attention_dropout=0.3, dropout=0.1)
    assert [getattr(block.drop_path, "probability", 0.0) for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [block.attention.product.dropout for block in model.blocks] == [0.3] * 5
    assert [block.attention.dropout.p for block in model.blocks] == [0.1] * 5
    published = create_model("cct_7_3x2_32")
    assert [block.attention.product.dropout for block in published.blocks] == [0.1] * 7
    assert not any(isinstance(module, nn.Dropout) for module in published.modules())
    pixels = pictures(model, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model(pixels).logits)
        model.train()
        assert not torch.equal(model(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be from 1 to [0-9]+; 0 came."),
        ({"width": 100, "heads": 3}, "width 100 is not a multiple of heads 3."),
        ({"width": 33, "heads": 3, "position": "sinusoidal_1d"}, "a multiple of 2, not 33."),
        ({"kernel": 4}, "kernel and pool_kernel must be odd; 4 and 3 came."),
        ({"pool_kernel": 2}, "kernel and pool_kernel must be odd; 3 and 2 came."),
        ({"conv_channels": (64, 0)}, r"conv_channels must be from 1 to 100000; \(64, 0\) came."),
        ({"conv_channels": (1,) * 16}, "may name 15 convolutions before the last; 16 came."),
        ({"tokens": "patches", "kernel": 40}, r"image_size \(32, 32\) is smaller than one patch of \(40, 40\)."),
        ({"attention_dropout": 1.0}, "attention_dropout must be from 0.0 to 0.999; 1.0 came."),
        ({"drop_path": -0.1}, "drop_path must be from"),
        ({"image_size": (0, 32)}, r"image_size must be from 1 to 100000; \(0, 32\) came."),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CCTConfig(**fields)


def test_pictures_of_other_channels_are_refused() -> None:
    for kind in ("cct_7_3x2_32", "cvt_7_4_32"):
        with pytest.raises(UsageError, match="The model takes pictures of 3 channels; 1 came"):
            small(kind)(torch.zeros(1, 1, 32, 32))
