"""Convolutional networks: what every network must do, and what is their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from tests.models.harness import Harness, assert_close, stirred
from vitral.errors import UsageError
from vitral.models.backbones.alexnet import AlexNetConfig
from vitral.models.backbones.googlenet import GoogLeNetConfig
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.backbones.vgg import VGGConfig
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.network import Network

RESNET = {"stem_width": 8, "stage_channels": (8, 12, 16, 24), "depths": (1, 2, 1, 1)}
BOTTLENECK = {"stem_width": 8, "stage_channels": (16, 24, 32, 48), "depths": (1, 2, 1, 1)}
MODULES = tuple((2 + i, 3, 4, 2, 3, 3) for i in range(9))
GOOGLENET = {"stem_channels": (8, 8, 12), "modules": MODULES, "auxiliary_width": 16}


class TestResNet(Harness):
    kinds: ClassVar[dict[str, Any]] = {
        "resnet18": RESNET,
        "resnet50": BOTTLENECK,
        "resnet50_v1": BOTTLENECK,
        "resnext50_32x4d": {**BOTTLENECK, "groups": 2, "base_width": 32},
        "resnet50: dilated": {**BOTTLENECK, "dilated": 1},
        "resnet18: frozen": {**RESNET, "norm": "frozen", "dilated": 2},
    }


class TestVGG(Harness):
    kinds: ClassVar[dict[str, Any]] = {
        "vgg11": {"stage_channels": (6, 8, 8, 10, 12), "classifier_width": 16},
        "vgg13_bn": {"stage_channels": (6, 8, 8, 10, 12), "classifier_width": 16},
        "vgg11: windows": {
            "stage_channels": (6, 8, 8),
            "depths": (1, 2, 1),
            "classifier_width": 16,
            "reading": "windows",
        },
    }


class TestAlexNet(Harness):
    # At least 63 pixels; and without padding its windows lose up to a cell at each scale, which at these sizes is no more.
    sizes = ((64, 64), (63, 95), (96, 128))
    kinds: ClassVar[dict[str, Any]] = {"alexnet": {"stage_channels": (6, 8, 10, 10, 12), "classifier_width": 16}}


class TestGoogLeNet(Harness):
    kinds: ClassVar[dict[str, Any]] = {
        "googlenet": GOOGLENET,
        "googlenet: of the paper": {**GOOGLENET, "wide_window": "5", "rescale": True, "auxiliary": True},
    }

    @classmethod
    def small(cls, kind: str, **overrides: Any) -> Network:
        """Behind twenty ReLUs and gains of a half nothing of a picture is left, were weights not larger."""
        model = super().small(kind, **overrides)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    parameter.mul_(3)
        return model

    def test_gradients_reach_every_parameter_and_the_picture(self, kind: str) -> None:
        """In training, where the auxiliary classifiers have their part."""
        model = self.small(kind, dropout=0.0, auxiliary_dropout=0.0).train()
        pixels = self.pictures(model, 4, (75, 130)).requires_grad_()
        out = model(pixels)
        assert len(out.auxiliary) == (2 if model.config.auxiliary else 0)
        sum(head.square().sum() for head in (*out.heads, *out.auxiliary)).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
        assert pixels.grad.abs().max() > 0


COUNTS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "googlenet": 6_624_904,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet50_v1": 25_557_032,
    "resnet101_v1": 44_549_160,
    "resnet152_v1": 60_192_808,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_numbers_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


def test_googlenet_with_its_auxiliary_classifiers_has_thirteen_millions() -> None:
    with torch.device("meta"):
        model = CATALOGUE["googlenet"].build(replace(CATALOGUE["googlenet"].config, auxiliary=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_004_888


def test_every_catalogue_row_is_counted() -> None:
    families = ("alexnet", "vgg", "googlenet", "resnet", "wide_resnet", "resnext")
    assert {name for name in CATALOGUE if name.startswith(families)} == set(COUNTS)


@pytest.mark.parametrize(("dilated", "strides"), [(0, (4, 8, 16, 32)), (1, (4, 8, 16, 16)), (2, (4, 8, 8, 8))])
@torch.no_grad()
def test_dilated_stages_keep_their_size_and_weights(dilated: int, strides: tuple[int, ...]) -> None:
    plain = stirred(create_model("resnet50", **BOTTLENECK))
    model = create_model("resnet50", dilated=dilated, **BOTTLENECK).eval()
    model.load_state_dict(plain.state_dict())
    pixels = torch.randn(1, 3, 96, 64)
    found = model.pyramid(pixels)
    assert found.strides == strides
    assert [one.shape[2:] for one in found.maps] == [(96 // stride, 64 // stride) for stride in strides]
    # Every second cell of the dilated map is what the plain network sees: the same windows at the same places.
    usual = plain.pyramid(pixels).maps
    for one, other, stride, whole in zip(found.maps, usual, strides, (4, 8, 16, 32), strict=True):
        step = whole // stride
        assert_close(one[..., ::step, ::step], other, 1e-5)


def test_a_frozen_norm_learns_nothing_and_gathers_nothing() -> None:
    model = create_model("resnet18", num_classes=5, norm="frozen", **RESNET).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert not any("norm" in name for name, _ in model.named_parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    names = {name.rpartition(".")[2] for name in before}
    assert names == {"weight", "bias", "running_mean", "running_var"}  # as torchvision's FrozenBatchNorm2d


def test_a_fresh_block_passes_on_what_it_was_given() -> None:
    model = create_model("resnet18", **RESNET).eval()
    x = torch.rand(1, 12, 9, 7)
    torch.testing.assert_close(model.blocks[2](x), x)


@torch.no_grad()
def test_cells_of_the_last_map_read_alone_mean_what_the_picture_means() -> None:
    for name, options in (("resnet18", RESNET), ("googlenet", GOOGLENET)):
        model = stirred(create_model(name, num_classes=5, **options))
        out = model(torch.randn(2, 3, 96, 64))
        assert_close(model.read_tokens(out.tokens).mean(1), out.logits, 1e-5)
        model.reset_head(0)
        with pytest.raises(UsageError, match="no classifier"):
            model.read_tokens(out.tokens)


@torch.no_grad()
def test_windows_and_averages_agree_where_there_is_one_window() -> None:
    options = {"stage_channels": (4, 6), "depths": (1, 1), "classifier_width": 8, "num_classes": 3}
    averaged, windows = (stirred(create_model("vgg11", reading=reading, **options)) for reading in ("averaged", "windows"))
    for size in ((28, 28), (12, 20)):
        pixels = torch.randn(2, 3, *size)
        assert_close(averaged(pixels).logits, windows(pixels).logits, 1e-5)
    # Behind 40 × 32 pixels there are 4 × 2 windows of 7 × 7 cells; the answer is the mean over them, each read alone.
    pixels = torch.randn(1, 3, 40, 32)
    cells = windows(pixels).feature_map
    alone = []
    for row in range(4):
        for column in range(2):
            tokens = cells[:, :, row : row + 7, column : column + 7].flatten(2).transpose(1, 2)
            alone.append(averaged.read_out(tokens, (7, 7)).logits)
    assert_close(windows(pixels).logits, torch.stack(alone).mean(0), 1e-5)
    assert (averaged(pixels).logits - windows(pixels).logits).abs().max() > 1e-3


def test_auxiliary_classifiers_speak_in_training_alone() -> None:
    model = stirred(create_model("googlenet", num_classes=5, auxiliary=True, **GOOGLENET))
    pixels = torch.randn(2, 3, 64, 64)
    assert model(pixels).auxiliary == ()
    out = model.train()(pixels)
    assert [head.shape for head in (*out.heads, *out.auxiliary)] == [(2, 5)] * 3
    assert out.logits is out.heads[0]
    model.reset_head(7)
    assert [head.shape for head in model(pixels).auxiliary] == [(2, 7)] * 2
    model.reset_head(0)
    assert (model(pixels).heads, model(pixels).auxiliary) == ((), ())
    assert not any("auxiliary" in name for name in model.state_dict())
    model.reset_head(4)
    assert [head.shape for head in model(pixels).auxiliary] == [(2, 4)] * 2


def test_rescaling_takes_imagenets_statistics_to_plus_and_minus_one() -> None:
    plain = stirred(create_model("googlenet", num_classes=5, **GOOGLENET))
    within = stirred(create_model("googlenet", num_classes=5, rescale=True, **GOOGLENET))
    picture = torch.rand(1, 3, 64, 64)  # in [0, 1]
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_close(within((picture - mean) / std).logits, plain(picture * 2 - 1).logits, 1e-5)


@pytest.mark.parametrize(
    ("name", "options", "size", "said"),
    [
        ("resnet18", RESNET, (3, 3), None),
        ("alexnet", {}, (63, 62), "63×63"),
        ("vgg11", {}, (31, 40), "32×32"),
        ("googlenet", GOOGLENET, (14, 40), "15×15"),
        ("googlenet", GOOGLENET, (15, 15), None),
    ],
)
def test_the_smallest_pictures(name: str, options: dict[str, object], size: tuple[int, int], said: str | None) -> None:
    small = {"stage_channels": (4, 4, 4, 4, 4), "classifier_width": 4} if name in ("alexnet", "vgg11") else options
    model = create_model(name, **small).eval()
    if said is None:
        assert torch.isfinite(model(torch.randn(1, 3, *size)).logits).all()
        return
    with pytest.raises(UsageError, match=said):
        model(torch.randn(1, 3, *size))
    with pytest.raises(UsageError, match="3 channels; 1 came"):
        model(torch.randn(1, 1, 64, 64))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ResNetConfig, {"depths": (1, 2)}),
        (ResNetConfig, {"depths": (1, 0, 1, 1)}),
        (ResNetConfig, {"dilated": 4}),
        (ResNetConfig, {"block": "basic", "groups": 2}),
        (ResNetConfig, {"stage_channels": (2, 256, 512, 1024)}),
        (VGGConfig, {"depths": ()}),
        (VGGConfig, {"dropout": 1.0}),
        (AlexNetConfig, {"stage_channels": (1, 2)}),
        (GoogLeNetConfig, {"modules": ()}),
        (GoogLeNetConfig, {"rescale": True, "channels": 1}),
    ],
)
def test_what_cannot_be_built_is_refused(config: type, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**options)


@torch.no_grad()
def test_levels_of_a_pyramid_behind_the_last_are_not_computed() -> None:
    model = stirred(create_model("resnet18", **RESNET))
    reached: list[int] = []
    for place, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, place=place: reached.append(place))
    model.pyramid(torch.randn(1, 3, 64, 64), [0, 1])
    assert reached == [0, 1]


@torch.no_grad()
def test_the_network_is_the_same_watched_and_unwatched() -> None:
    """A hook sees norm and convolution; without one they are a single operation. Both answer alike."""
    model = stirred(create_model("resnet50", **BOTTLENECK))
    assert isinstance(model, ResNet)
    pixels = torch.randn(2, 3, 75, 61)
    folded = model(pixels)
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out))
    watched = model(pixels)
    assert_close(folded.tokens, watched.tokens, 1e-5)
    assert_close(folded.logits, watched.logits, 1e-5)
    # Nothing overwrote what was seen: the first norm's output still has its negative numbers.
    assert seen[0].min() < 0
    torch.testing.assert_close(F.max_pool2d(F.relu(seen[0]), 3, 2, 1).shape[2:], torch.Size((19, 16)))
