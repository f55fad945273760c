"""AlexNet, VGG, GoogLeNet and ResNet against torchvision, timm and transformers: the same numbers, there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.models.harness import stirred
from tests.parity.peers import assert_same, pictures
from vitral.checkpoints.load import load_model
from vitral.checkpoints.save import save_model
from vitral.errors import CheckpointError, MismatchError, UsageError
from vitral.models.backbones.googlenet import GoogLeNet
from vitral.models.backbones.resnet import VARIANTS, ResNet, ResNetConfig
from vitral.models.backbones.vgg import VGG
from vitral.models.catalogue import CATALOGUE, create_model
from vitral.models.network import Network

SIZES = ((64, 64), (75, 98))
PLANES = (16, 32, 32, 48)  # channels of the stages of torchvision_resnet


def random(network: nn.Module) -> Any:
    """A peer with weights and statistics that all matter, in evaluation mode."""
    return stirred(network)  # type: ignore[arg-type]


def small_fully_connected(network: Any, cells: int, width: int, order: str) -> Any:
    """torchvision's VGG or AlexNet with layers of 8 channels where it has 4096: the same names, a thousandth of the work."""
    parts = {"l": [nn.Linear(cells, 8), nn.Linear(8, 8), nn.Linear(8, width)]}
    made = [nn.Dropout() if sign == "d" else nn.ReLU() if sign == "r" else parts["l"].pop(0) for sign in order]
    network.classifier = nn.Sequential(*made)
    return network


def torchvision_alexnet() -> Any:
    with torch.device("meta"):
        network = torchvision.models.AlexNet(num_classes=1)
    network.features.to_empty(device="cpu")
    return small_fully_connected(network, 256 * 36, 7, "dlrdlrl")


def torchvision_vgg(normed: bool) -> Any:
    features = torchvision.models.vgg.make_layers([8, "M", 12, 12, "M", 16, "M", 16, "M", 20, 20, "M"], batch_norm=normed)
    return small_fully_connected(_VGG(features), 20 * 49, 7, "lrdlrdl")


class _VGG(nn.Module):
    """torchvision's forward around other channels; its own class builds 120 million weights first."""

    forward = torchvision.models.VGG.forward

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features, self.avgpool = features, nn.AdaptiveAvgPool2d((7, 7))


class _ResNet(torchvision.models.ResNet):
    """torchvision's ResNet with 8 channels where it starts with 64."""

    def __init__(
        self, block: Any, planes: tuple[int, ...], dilate: tuple[bool, ...], groups: int, base_width: int, norm: Any
    ) -> None:
        nn.Module.__init__(self)
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = norm, 8, 1, groups, base_width
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), norm(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._make_layer(block, planes[0], 1)
        self.layer2 = self._make_layer(block, planes[1], 2, stride=2, dilate=dilate[0])
        self.layer3 = self._make_layer(block, planes[2], 1, stride=2, dilate=dilate[1])
        self.layer4 = self._make_layer(block, planes[3], 2, stride=2, dilate=dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.inplanes, 7)


def torchvision_resnet(
    bottleneck: bool = True,
    dilate: tuple[bool, ...] = (False, False, False),
    groups: int = 1,
    base_width: int = 64,
    norm: Any = nn.BatchNorm2d,
) -> Any:
    block = torchvision.models.resnet.Bottleneck if bottleneck else torchvision.models.resnet.BasicBlock
    return _ResNet(block, (4, 8, 8, 12), dilate, groups, base_width, norm)


TORCHVISION: dict[str, Any] = {
    "alexnet": torchvision_alexnet,
    "vgg": lambda: torchvision_vgg(normed=False),
    "vgg_bn": lambda: torchvision_vgg(normed=True),
    "googlenet": lambda: torchvision.models.GoogLeNet(num_classes=7, aux_logits=False, init_weights=False),
    "resnet, basic": lambda: torchvision_resnet(bottleneck=False),
    "resnet, bottleneck": torchvision_resnet,
    "resnext": lambda: torchvision_resnet(groups=2, base_width=32),
}


def last_map(network: Any, pixels: Tensor) -> Tensor:
    """torchvision's last map: what enters its pooling."""
    seen: list[Tensor] = []
    handle = network.avgpool.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    network(pixels)
    handle.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_there_and_back(name: str, tmp_path: Path) -> None:
    theirs = random(TORCHVISION[name]())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = load_model(tmp_path / "theirs.pth")
    for size in SIZES:
        pixels = pictures(*size, count=2)
        out = ours(pixels)
        assert_same(out.logits, theirs(pixels))
        assert_same(out.feature_map, last_map(theirs, pixels))
    assert ours.record.layout == "torchvision"
    assert ours.record.licence == "bsd-3-clause"
    prepared = ours.record.preprocessing
    assert (prepared.size, prepared.crop, prepared.interpolation) == ((256, 256), (224, 224), "bilinear")
    save_model(ours, tmp_path / "back", layout="torchvision")
    written = load_file(tmp_path / "back" / "model.safetensors")
    fresh = TORCHVISION[name]().eval()
    fresh.load_state_dict(written, strict=True)
    assert all(torch.equal(tensor, written[key]) for key, tensor in theirs.state_dict().items())
    again = load_model(tmp_path / "back")
    assert again.config == ours.config
    assert torch.equal(again(pixels).logits, ours(pixels).logits)


@torch.no_grad()
@pytest.mark.parametrize("replaced", [(False, False, True), (False, True, True)])
def test_torchvisions_dilated_resnet(replaced: tuple[bool, ...], tmp_path: Path) -> None:
    theirs = random(torchvision_resnet(dilate=replaced))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = load_model(tmp_path / "theirs.pth", architecture=ResNetConfig(stage_channels=PLANES, dilated=sum(replaced)))
    pixels = pictures(75, 98)
    assert_same(ours(pixels).feature_map, last_map(theirs, pixels))
    save_model(ours, tmp_path / "back", layout="torchvision")
    assert load_model(tmp_path / "back").config.dilated == sum(replaced)


@torch.no_grad()
def test_a_detectors_frozen_norms_are_torchvisions(tmp_path: Path) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    theirs = random(torchvision_resnet(norm=FrozenBatchNorm2d))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = load_model(tmp_path / "theirs.pth", architecture=ResNetConfig(stage_channels=PLANES, norm="frozen"))
    pixels = pictures(75, 98)
    assert_same(ours(pixels).logits, theirs(pixels))
    assert_same(ours.train()(pixels).logits, theirs.train()(pixels))
    # A classifier's file, whose norms count, becomes a detector's network too.
    counting = random(torchvision_resnet())
    torch.save(counting.state_dict(), tmp_path / "counting.pth")
    frozen = load_model(tmp_path / "counting.pth", architecture=ResNetConfig(stage_channels=PLANES, norm="frozen"))
    assert_same(frozen(pixels).logits, counting(pixels))


@torch.no_grad()
def test_torchvisions_googlenet_as_published(tmp_path: Path) -> None:
    """Its weights expect that the network rescales, and hold auxiliary classifiers."""
    theirs = random(torchvision.models.GoogLeNet(num_classes=1000, transform_input=True, init_weights=False))
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = load_model(tmp_path / "googlenet.pth")
    assert isinstance(ours, GoogLeNet)
    assert (ours.config.rescale, ours.config.auxiliary, ours.config.wide_window) == (True, True, "3")
    assert (ours.record.architecture, len(ours.record.labels)) == ("googlenet", 1000)
    pixels = pictures(75, 98)
    assert_same(ours(pixels).logits, theirs(pixels))
    without = load_model(tmp_path / "googlenet.pth", architecture=CATALOGUE["googlenet"].config)
    assert (without.config.auxiliary, without.config.rescale) == (False, False)
    assert "aux1.conv.conv.weight" in without.record.notes[-1]


def test_torchvisions_googlenet_in_training(tmp_path: Path) -> None:
    theirs = random(torchvision.models.GoogLeNet(num_classes=7, init_weights=False, dropout=0.0, dropout_aux=0.0)).train()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    named = CATALOGUE["googlenet"].config.__class__(auxiliary=True, dropout=0.0, auxiliary_dropout=0.0)
    ours = load_model(tmp_path / "googlenet.pth", architecture=named).train()
    pixels = pictures(75, 98, count=4)
    expected, out = theirs(pixels), ours(pixels)
    for head, logits in zip(
        (*out.heads, *out.auxiliary), (expected.logits, expected.aux_logits1, expected.aux_logits2), strict=True
    ):
        assert_same(head, logits)
    assert out.logits is out.heads[0]


def test_published_files_of_torchvision_are_recognised(tmp_path: Path) -> None:
    """By shapes alone; only names of files tell which recipe, and so which margin."""
    for name in ("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "resnext101_64x4d"):
        with torch.device("meta"):
            shapes = torchvision.models.get_model(name, weights=None).state_dict()
        small = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}
        files = _Opened(small, f"{name}-11ad3fa6.pth")
        layout = next(one for one in _layouts() if one.recognises(files))
        plan = layout.plan(files, None)
        assert plan.config == VARIANTS[name]
        assert plan.record.architecture == name
        assert {theirs for row in plan.rows for theirs in row.theirs} == set(shapes)
        assert plan.record.preprocessing.size == (232, 232)
    for name in ("vgg11", "vgg16_bn", "vgg19", "alexnet"):
        with torch.device("meta"):
            shapes = torchvision.models.get_model(name, weights=None).state_dict()
        files = _Opened({key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}, f"{name}.pth")
        plan = next(one for one in _layouts() if one.recognises(files)).plan(files, None)
        assert plan.config == CATALOGUE[name].config
        assert {theirs for row in plan.rows for theirs in row.theirs} == set(shapes)
        assert plan.record.preprocessing.size == (256, 256)


def _layouts() -> Any:
    from vitral.checkpoints.load import LAYOUTS

    return LAYOUTS


def _Opened(tensors: Any, source: str) -> Any:  # noqa: N802 - it stands for the class
    from vitral.checkpoints.files import Files

    return Files(source=source, tensors=tensors, kind="pickle")


def test_files_of_before_2018_count_no_batches(tmp_path: Path) -> None:
    theirs = random(torchvision_resnet(bottleneck=False))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    ours = load_model(tmp_path / "old.pth")
    pixels = pictures(64, 64)
    assert_same(ours(pixels).logits, theirs(pixels))
    del state["layer2.0.bn1.running_var"]
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(MismatchError, match=r"layer2\.0\.bn1\.running_var"):
        load_model(tmp_path / "old.pth")


TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "basic": ("resnet18", {"layers": [1, 2, 1, 1], "channels": [8, 12, 16, 24]}),
    "bottleneck": ("resnet50", {"layers": [1, 2, 1, 1], "channels": [4, 6, 8, 12]}),
    "wide": ("wide_resnet50_2", {"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 12]}),
    "groups": ("resnext50_32x4d", {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32], "cardinality": 2}),
    "dilated": ("resnet50", {"layers": [1, 2, 1, 2], "channels": [4, 6, 8, 12], "output_stride": 8}),
    "D, basic": ("resnet18d", {"layers": [1, 2, 1, 1], "channels": [8, 12, 16, 24]}),
    "D, bottleneck": ("resnet50d", {"layers": [1, 2, 1, 1], "channels": [4, 6, 8, 12]}),
    "basic, dilated": ("resnet34", {"layers": [1, 2, 1, 2], "channels": [4, 6, 8, 12], "output_stride": 16}),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", TIMM)
def test_timms_resnets_there_and_back(kind: str, tmp_path: Path) -> None:
    name, args = TIMM[kind]
    theirs = random(timm.create_model(name, num_classes=7, **args))
    folder = timm_folder(theirs, name, args, tmp_path / "theirs")
    ours = load_model(folder)
    assert isinstance(ours, ResNet)
    for size in SIZES:
        pixels = pictures(*size, count=2)
        out = ours(pixels)
        assert_same(out.logits, theirs(pixels))
        assert_same(out.feature_map, theirs.forward_features(pixels))
        for one, other in zip(ours.pyramid(pixels).maps, theirs.forward_intermediates(pixels)[1][1:], strict=True):
            assert_same(one, other)
    assert ours.record.preprocessing.mean == timm.data.IMAGENET_DEFAULT_MEAN
    save_model(ours, tmp_path / "back", layout="timm")
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    assert_same(back(pixels), theirs(pixels), 1e-6)
    assert load_model(tmp_path / "back").config == ours.config


def timm_folder(theirs: Any, name: str, args: dict[str, Any], folder: Path) -> Path:
    """As timm writes it to the Hub."""
    folder.mkdir()
    timm.models.save_for_hf(theirs, folder, model_args=args, safe_serialization=True)
    return folder


class _TinyVGG(timm.models.vgg.VGG):
    """timm's VGG with 8 hidden channels; its own class fixes 4096 of them."""

    def __init__(self, normed: bool) -> None:
        plan = [8, "M", 12, "M", 16, "M", 16, "M", 20, 20, "M"]
        norm = nn.BatchNorm2d if normed else None
        nn.Module.__init__(self)
        with torch.device("meta"):
            whole = timm.models.vgg.VGG(plan, num_classes=7, norm_layer=norm)
        self.__dict__.update(whole.__dict__)
        self.pre_logits = timm.models.vgg.ConvMlp(20, 8, 7)
        self.head = timm.layers.ClassifierHead(8, 7)
        self.features = self.features.to_empty(device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_timms_vgg(normed: bool, tmp_path: Path) -> None:
    theirs = random(_TinyVGG(normed))
    torch.save(theirs.state_dict(), tmp_path / "vgg.pth")
    ours = load_model(tmp_path / "vgg.pth")
    assert isinstance(ours, VGG)
    assert ours.config.reading == "windows"
    for size in ((64, 64), (224, 224), (270, 260), (300, 64)):
        pixels = pictures(*size)
        assert_same(ours(pixels).logits, theirs(pixels))
    assert_same(ours(pixels).feature_map, theirs.features(pixels))
    found = theirs.forward_intermediates(pixels)[1]
    for one, other in zip(ours.pyramid(pixels, range(6)).maps, found, strict=True):
        assert_same(one, other)
    with pytest.raises(UsageError, match="other sizes than the published"):
        save_model(ours, tmp_path / "back", layout="timm")


def test_relatives_of_timm_that_share_the_names_are_refused(tmp_path: Path) -> None:
    """Anti-aliased networks have the tensors of a ResNet and another answer."""
    args = {"layers": [1, 1, 1, 1], "channels": [4, 6, 8, 12]}
    theirs = timm.create_model("resnetaa50", num_classes=7, **args)
    folder = timm_folder(theirs, "resnetaa50", args, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="resnetaa50"):
        load_model(folder)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "v1"])
def test_transformers_resnet_there_and_back(kind: str, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 2, 1, 1],
        layer_type="basic" if kind == "basic" else "bottleneck",
        downsample_in_bottleneck=kind == "v1",
        num_labels=5,
    )
    theirs = random(transformers.ResNetForImageClassification(config))
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert isinstance(ours, ResNet)
    assert ours.config.strides_first == (kind == "v1")
    for size in SIZES:
        pixels = pictures(*size, count=2)
        expected = theirs(pixels, output_hidden_states=True)
        assert_same(ours(pixels).logits, expected.logits)
        for one, other in zip(ours.pyramid(pixels).maps, expected.hidden_states[1:], strict=True):
            assert_same(one, other)
    prepared = ours.record.preprocessing
    assert (prepared.resize, prepared.size, prepared.crop) == ("shortest_edge", (256, 256), (224, 224))
    save_model(ours, tmp_path / "back", layout="transformers")
    back = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "back").eval()
    assert_same(back(pixels).logits, theirs(pixels).logits, 1e-6)
    again = load_model(tmp_path / "back")
    assert again.config == ours.config
    assert again.record.preprocessing == prepared


@torch.no_grad()
def test_transformers_resnet_without_a_classifier(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    theirs = random(transformers.ResNetModel(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    pixels = pictures(75, 98)
    expected, out = theirs(pixels), ours(pixels)
    assert out.logits is None
    assert_same(out.feature_map, expected.last_hidden_state)
    assert_same(out.pooled, expected.pooler_output[:, :, 0, 0])
    save_model(ours, tmp_path / "back", layout="transformers")
    back = transformers.ResNetModel.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(back(pixels).last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dilated": 1}, "dilated"), ({"norm": "frozen"}, "norms that stay"), ({"base_width": 128}, "groups, or")],
)
def test_what_transformers_cannot_state_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    sizes = {"stem_width": 8, "stage_channels": (16, 24), "depths": (1, 1)}
    with pytest.raises(UsageError, match=said):
        save_model(create_model("resnet50", **sizes, **options), tmp_path, layout="transformers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [({"strides_first": True}, "a stride in the first"), ({"norm": "frozen"}, "norms that stay"), ({}, "64 it must have")],
)
def test_what_timm_cannot_state_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    sizes = {"stem_width": 64 if options else 8, "stage_channels": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}
    with pytest.raises(UsageError, match=said):
        save_model(create_model("resnet50", **sizes, **options), tmp_path, layout="timm")


def test_a_hostile_description_ends_in_a_sentence(tmp_path: Path) -> None:
    network: Network = create_model("resnet18", stem_width=8, stage_channels=(8,), depths=(1,))
    save_model(network, tmp_path, layout="transformers")
    text = (tmp_path / "config.json").read_text()
    for old, new in (('"relu"', '"gelu"'), ('"depths": [', '"depths": [0, '), ('"basic"', '"round"')):
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(CheckpointError):
            load_model(tmp_path)


@pytest.mark.parametrize("layout", ["torchvision", "transformers"])
def test_a_deep_stem_is_not_written_as_a_plain_one(layout: str, tmp_path: Path) -> None:
    model = create_model("resnet18d", num_classes=3, stem_width=8, stage_channels=(8, 16, 16, 16), depths=(1, 1, 1, 1))
    with pytest.raises(UsageError, match="ResNet-D"):
        save_model(model, tmp_path / "out", layout=layout)
