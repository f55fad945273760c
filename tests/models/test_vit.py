"""The harness that every backbone goes through, over one small network of each kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitral.errors import UsageError
from vitral.models.backbones.vit import ViT, ViTConfig
from vitral.models.catalogue import create_model

SMALL = {
    "width": 32,
    "depth": 2,
    "heads": 2,
    "mlp_width": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 5,
}
# One network for every part that some published relative of ViT has, and for parts nobody has published together.
KINDS: dict[str, dict[str, Any]] = {
    "vit_b16": {},
    "deit_b16_distilled": {},
    "beit_b16": {},
    "mae_b16": {},
    "dinov2_g14": {},
    "dinov2_b14_registers": {"pool": "class_and_mean"},
    "dinov3_b16": {},
    "clip_b16": {},
    "siglip_b16": {},
    "shared biases": {"name": "beit_b16", "relative_bias": "shared", "mask_token": True},
    "sinusoids 1d": {"position": "sinusoidal_1d", "registers": 2, "norm": "rms"},
    "sinusoids 2d": {"position": "sinusoidal_2d", "pool": "mean"},
    "norms after": {"norm_placement": "post", "final_norm": False, "representation": 24},
    "norms in the branches": {"norm_placement": "res_post", "qk_norm": True, "layer_scale": 0.5},
    "no class token": {
        "class_token": False,
        "prefix_positions": 0,
        "pool": "attention",
        "registers": 1,
        "pool_prefix": True,
    },
    "oblong": {"image_size": (24, 40), "patch_size": (8, 4), "qkv_bias": False, "activation": "relu"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def small(kind: str, **overrides: Any) -> ViT:
    """A network of a kind with weights large enough for every part to matter."""
    options = {**SMALL, **KINDS[kind], **overrides}
    model = create_model(options.pop("name", kind if "_" in kind else "vit_b16"), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.ndim > 1 else parameter.normal_(0.5, 0.3)
    return model.eval()


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance * scale, rtol=0)


@kinds
@pytest.mark.parametrize("size", [(32, 32), (97, 131), (16, 64)])
def test_pictures_of_any_size(kind: str, size: tuple[int, int]) -> None:
    model = small(kind)
    rows, columns = size[0] // model.config.patch_size[0], size[1] // model.config.patch_size[1]
    with torch.no_grad():
        out = model(torch.randn(2, 3, *size))
    assert out.grid == (rows, columns)
    assert out.prefix == model.config.prefix
    assert out.tokens.shape == (2, out.prefix + rows * columns, 32)
    assert out.pooled.shape == (2, model.config.pooled_width)
    assert out.logits.shape == (2, 5)
    assert out.feature_map.shape == (2, 32, rows, columns)
    assert torch.equal(out.feature_map[:, :, -1, 0], out.tokens[:, out.prefix + (rows - 1) * columns])
    for values in (out.tokens, out.pooled, out.logits):
        assert values.isfinite().all()


@kinds
def test_a_batch_is_its_pictures(kind: str) -> None:
    model, pixels = small(kind), torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together = model(pixels)
        for index in range(3):
            alone = model(pixels[index : index + 1])
            close(together.tokens[index], alone.tokens[0], 1e-5)
            close(together.logits[index], alone.logits[0], 1e-5)


@kinds
def test_the_gradient_of_the_logits_reaches_every_parameter(kind: str) -> None:
    model = small(kind).train()
    mask = None
    if model.mask_token is not None:  # no masked patch, no gradient for what stands in for it
        mask = torch.zeros(2, model.config.grid[0] * model.config.grid[1], dtype=torch.bool)
        mask[:, ::3] = True
    pixels = torch.randn(2, 3, *model.config.image_size)
    (model(pixels, mask).logits * torch.randn(2, 5)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("qkv.bias") and model.config.qkv_bias:
            # A bias on the keys moves a whole row of attention logits, which softmax forgets: only rounding is left.
            queries, keys, values = parameter.grad.chunk(3)
            assert queries.any()
            assert values.any()
            if not model.config.qk_norm:  # the norm lies between the bias and the product
                assert keys.abs().max() < 1e-4 * values.abs().max()
        else:
            assert parameter.grad.any(), name


@kinds
def test_bfloat16_is_close(kind: str) -> None:
    model, pixels = small(kind), torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        whole = model(pixels)
        half = model.bfloat16()(pixels.bfloat16())
    assert half.tokens.dtype == half.logits.dtype == torch.bfloat16
    # bfloat16 has 8 bits: 0.4 % per rounding, over some forty roundings.
    close(half.tokens, whole.tokens, 0.06)
    close(half.logits, whole.logits, 0.06)


def test_autocast_keeps_what_the_weights_are_and_is_close() -> None:
    model, pixels = small("dinov3_b16"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = model(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(pixels)
    close(half.logits, whole.logits, 0.06)


@pytest.mark.parametrize("kind", ["vit_b16", "beit_b16", "dinov3_b16"])
def test_an_exported_network_computes_the_same(kind: str) -> None:
    model, pixels = small(kind), torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (pixels,), dynamic_shapes={"pixels": {0: batch}}).module()
    with torch.no_grad():
        for count in (2, 5):
            pixels = torch.randn(count, 3, 32, 32)
            came, expected = exported(pixels), model(pixels)
            close(came.tokens, expected.tokens, 1e-5)
            close(came.logits, expected.logits, 1e-5)


def test_masked_patches_are_the_mask_token_whatever_they_show() -> None:
    model = small("dinov2_g14")
    pixels = torch.randn(1, 3, 32, 32)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    repainted = pixels.clone()
    repainted[:, :, 8:16, 8:16] = 7
    with torch.no_grad():
        embedded, _ = model.embed(pixels, mask)
        _, positions = model.positions((4, 4))
        assert torch.equal(embedded[0, 1 + 5], model.mask_token[0, 0] + positions[0, 5])
        assert torch.equal(model(pixels, mask).tokens, model(repainted, mask).tokens)
        assert not torch.equal(model(pixels).tokens, model(repainted).tokens)
        assert torch.equal(model(pixels, torch.zeros_like(mask)).tokens, model(pixels).tokens)


def test_a_mask_needs_a_mask_token() -> None:
    with pytest.raises(UsageError, match=r"no mask token\. Build it with mask_token=True"):
        small("vit_b16")(torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))


def test_dropout_and_drop_path_act_in_training_only_and_drop_path_grows_with_depth() -> None:
    model = small("vit_b16", depth=5, drop_path=0.4, dropout=0.1)
    grown = [getattr(block.drop_path, "probability", 0.0) for block in model.blocks]
    assert grown == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model(pixels).logits)
        model.train()
        assert not torch.equal(model(pixels).logits, model(pixels).logits)


def test_what_the_classifier_reads() -> None:
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for pool, expected in {
            "class": lambda out: out.tokens[:, 0],
            "mean": lambda out: out.feature_map.mean((2, 3)),
            "class_and_mean": lambda out: torch.cat([out.tokens[:, 0], out.feature_map.mean((2, 3))], dim=1),
        }.items():
            model = small("vit_b16", pool=pool)
            out = model(pixels)
            torch.testing.assert_close(out.pooled, expected(out))
            torch.testing.assert_close(out.logits, model.head(out.pooled))


def test_a_distilled_network_gives_the_mean_of_its_two_classifiers() -> None:
    model = small("deit_b16_distilled")
    with torch.no_grad():
        out = model(torch.randn(2, 3, 32, 32))
    assert len(out.heads) == 2
    torch.testing.assert_close(out.logits, (out.heads[0] + out.heads[1]) / 2)
    torch.testing.assert_close(out.heads[1], model.distillation_head(out.tokens[:, 1]))


def test_without_classes_there_are_no_logits() -> None:
    model = small("vit_b16", num_classes=0)
    out = model(torch.randn(1, 3, 32, 32))
    assert out.logits is None
    assert out.heads == ()
    assert not any(name.startswith("head") for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", ["vit_b16", "deit_b16_distilled"])
def test_reset_head_changes_the_classifiers_and_nothing_else(kind: str) -> None:
    model, pixels = small(kind), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(pixels)
        model.reset_head(3)
        after = model(pixels)
        assert torch.equal(before.tokens, after.tokens)
        assert [head.shape for head in after.heads] == [(1, 3)] * len(before.heads)
        assert model.config.num_classes == 3
        assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.4)
        assert not model.head.bias.any()
        model.reset_head(0)
        assert model(pixels).logits is None


def test_reset_head_keeps_the_dtype() -> None:
    model = small("vit_b16").bfloat16()
    model.reset_head(3)
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).logits.dtype == torch.bfloat16


def test_a_fresh_network_starts_with_small_weights_and_unit_norms() -> None:
    model = create_model("siglip_b16", **SMALL)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.25)
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    assert model.pool.query.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be from 1 to [0-9]+; 0 came."),
        ({"depth": -3}, "depth must be from 1 to [0-9]+; -3 came."),
        ({"heads": 0}, "heads must be from 1 to [0-9]+; 0 came."),
        ({"channels": 0}, "channels must be from 1 to [0-9]+; 0 came."),
        ({"mlp_width": 0}, "mlp_width must be from 1 to [0-9]+; 0 came."),
        ({"width": 100, "heads": 12}, "width 100 is not a multiple of heads 12."),
        ({"image_size": (8, 64)}, r"image_size \(8, 64\) is smaller than one patch of \(16, 16\)."),
        ({"width": 36, "heads": 6, "rotary": True}, "heads of a multiple of 4 channels, not 6."),
        ({"width": 30, "heads": 3, "position": "sinusoidal_2d"}, "multiple of 4, not 30."),
        ({"class_token": False, "prefix_positions": 0}, "pool='class' reads the class token, .* Use 'mean' or"),
        ({"distillation_head": True}, "distillation_head=True needs distillation_token=True."),
        ({"registers": 2, "relative_bias": "shared"}, "defined for one class token; there are 3 tokens."),
        ({"prefix_positions": 2}, "prefix_positions=2, but only 1 tokens precede the patches."),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ViTConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": -1},
        {"registers": -1},
        {"patch_size": (0, 16)},
        {"patch_size": (-16, -16)},
        {"layer_scale": float("nan")},
        {"norm_eps": -1.0},
        {"dropout": 1.5},
        {"drop_path": -0.1},
        {"representation": -4},
        {"rotary_base": 0.0, "rotary": True},
    ],
    ids=str,
)
def test_numbers_out_of_their_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ViTConfig(**fields)


@kinds
def test_every_token_is_read_as_if_all_tokens_were_it(kind: str) -> None:
    model, pixels = small(kind), torch.randn(2, 3, 32, 40)
    streams: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _, inputs, output: streams.append(output))
    with torch.no_grad():
        out = model(pixels)
        [stream] = streams
        read = model.read_tokens(stream)
        assert read.shape == (2, stream.shape[1], 5)
        for place in (0, 1, stream.shape[1] - 1):
            everywhere = stream[:, place : place + 1].expand_as(stream)
            close(read[:, place], model.read_out(everywhere, out.grid).heads[0], 1e-5)
        if model.config.pool == "class":
            close(read[:, 0], out.heads[0], 1e-5)
        assert (read[:, 0] - read[:, 1]).abs().max() > 1e-2


def test_tokens_cannot_be_read_without_a_classifier() -> None:
    model = small("dinov2_b14_registers", num_classes=0)
    with pytest.raises(UsageError, match=r"The model has no classifier to read tokens with\."):
        model.read_tokens(torch.randn(1, 3, 32))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vit_b16", ("class",)),
        ("deit_b16_distilled", ("class", "distillation")),
        ("dinov3_b16", ("class", "register 1", "register 2", "register 3", "register 4")),
        ("siglip_b16", ()),
        ("no class token", ("register 1",)),
    ],
)
def test_the_tokens_before_the_patches_have_names(kind: str, names: tuple[str, ...]) -> None:
    model, pixels = small(kind), torch.randn(1, 3, 32, 32)
    assert model.config.prefix_names == names
    assert model.config.prefix == len(names)
    # Each name stands where its own parameter does.
    tokens, _ = model.embed(pixels)
    for place, name in enumerate(names):
        changed = small(kind)
        changed.load_state_dict(model.state_dict())
        parameter, number = (name, 0) if name[:8] != "register" else ("register", int(name[9:]) - 1)
        with torch.no_grad():
            getattr(changed, f"{parameter}_token{'s' * (parameter == 'register')}")[:, number] += 1
        moved = (changed.embed(pixels)[0] - tokens).abs().amax((0, 2)) > 0.5
        assert moved.nonzero().flatten().tolist() == [place]
