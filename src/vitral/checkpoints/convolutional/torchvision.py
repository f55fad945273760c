"""torchvision's layout: state dictionaries of its AlexNet, VGG, GoogLeNet and ResNet, Wide ResNet and ResNeXt included.

A state dictionary shows every size. What it does not show (where a bottleneck strides, what is dilated, whether norms are
frozen, the size of pictures) comes from the architecture that the user names, else it is what torchvision builds. What we
write has a config.json beside it that says all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

from torch import nn

from vitral.base.config import restored
from vitral.checkpoints.convolutional.names import (
    FOREIGN_COUNTERS,
    conv_norm,
    counted,
    resnet_rows,
    resnet_seen,
    vgg_rows,
    vgg_seen,
)
from vitral.checkpoints.files import Files
from vitral.checkpoints.layout import Layout, Plan, Written, usual_labels
from vitral.checkpoints.preprocessing import evaluation
from vitral.checkpoints.table import Row, renamed
from vitral.data.transforms import Preprocessing
from vitral.errors import UsageError
from vitral.models.backbones import alexnet, googlenet, resnet, vgg
from vitral.models.backbones.alexnet import AlexNet, AlexNetConfig
from vitral.models.backbones.googlenet import GoogLeNet, GoogLeNetConfig
from vitral.models.backbones.resnet import ResNet, ResNetConfig
from vitral.models.backbones.vgg import VGG, VGGConfig
from vitral.models.network import Network
from vitral.models.record import Record

__all__ = ["LAYOUTS"]

_TYPE = "torchvision"
_VARIANTS = {AlexNet: alexnet.VARIANTS, VGG: vgg.VARIANTS, GoogLeNet: googlenet.VARIANTS, ResNet: resnet.VARIANTS}
# Files of torchvision's second training recipe, which is evaluated at 232 → 224; all others are at 256 → 224.
_SECOND = ("11ad3fa6", "cd907fc2", "f82ba261", "9ba9bcbe", "d733dc28", "1a0047aa", "110c445d", "173b62eb")
_BRANCHES = ("one", "three.0", "three.1", "five.0", "five.1", "pooled")
_THEIR_BRANCHES = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
_MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


def _is_bare(files: Files) -> bool:
    """Whether no config.json says that somebody else published the file."""
    return not files.config or files.config.get("model_type") == _TYPE


def _alexnet_recognised(files: Files) -> bool:
    first = files.tensors.get("features.0.weight")
    return (
        _is_bare(files)
        and first is not None
        and tuple(first.shape[2:]) == (11, 11)
        and "classifier.1.weight" in files.tensors
    )


def _vgg_recognised(files: Files) -> bool:
    first, tensors = files.tensors.get("features.0.weight"), files.tensors
    three = first is not None and first.ndim == 4 and tuple(first.shape[2:]) == (3, 3)
    return _is_bare(files) and three and "classifier.0.weight" in tensors and "classifier.3.weight" in tensors


def _googlenet_recognised(files: Files) -> bool:
    return _is_bare(files) and {"conv1.conv.weight", "inception3a.branch1.conv.weight"} <= files.tensors.keys()


def _resnet_recognised(files: Files) -> bool:
    needed = {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"}
    return _is_bare(files) and needed <= files.tensors.keys() and "conv2.weight" not in files.tensors


def _alexnet_config(files: Files, named: AlexNetConfig | None) -> AlexNetConfig:
    tensors, places = files.tensors, (0, 3, 6, 8, 10)
    return replace(
        named or AlexNetConfig(),
        channels=int(tensors["features.0.weight"].shape[1]),
        stage_channels=tuple(int(tensors[f"features.{place}.weight"].shape[0]) for place in places),
        classifier_width=int(tensors["classifier.4.weight"].shape[0]),
        num_classes=int(tensors["classifier.6.weight"].shape[0]) if "classifier.6.weight" in tensors else 0,
    )


def _alexnet_rows(config: AlexNetConfig) -> list[Row]:
    rows = [row for i, place in enumerate((0, 3, 6, 8, 10)) for row in renamed(f"blocks.{i}.conv", f"features.{place}")]
    rows += renamed("hidden.0", "classifier.1") + renamed("hidden.1", "classifier.4")
    return rows + (renamed("head", "classifier.6") if config.num_classes else [])


def _vgg_config(files: Files, named: VGGConfig | None) -> VGGConfig:
    tensors, seen = files.tensors, vgg_seen(files.tensors)
    if named is not None and named.norm == "frozen" and seen["norm"] == "batch":
        seen["norm"] = "frozen"
    return replace(
        named or VGGConfig(),
        **seen,
        classifier_width=int(tensors["classifier.0.weight"].shape[0]),
        num_classes=int(tensors["classifier.6.weight"].shape[0]) if "classifier.6.weight" in tensors else 0,
    )


def _vgg_table(config: VGGConfig) -> list[Row]:
    rows = vgg_rows(config) + renamed("hidden.0", "classifier.0") + renamed("hidden.1", "classifier.3")
    return rows + (renamed("head", "classifier.6") if config.num_classes else [])


def _googlenet_config(files: Files, named: GoogLeNetConfig | None) -> GoogLeNetConfig:
    tensors = files.tensors
    width: Callable[[str], int] = lambda name: int(tensors[f"{name}.conv.weight"].shape[0])  # noqa: E731
    modules = [tuple(width(f"inception{module}.{branch}") for branch in _THEIR_BRANCHES) for module in _MODULES]
    window, auxiliary = int(tensors["inception3a.branch3.1.conv.weight"].shape[2]), "aux1.fc1.weight" in tensors
    seen: dict[str, Any] = {
        "channels": int(tensors["conv1.conv.weight"].shape[1]),
        "stem_channels": tuple(width(f"conv{number}") for number in (1, 2, 3)),
        "modules": tuple(modules),
        "wide_window": str(window),
        "num_classes": int(tensors["fc.weight"].shape[0]) if "fc.weight" in tensors else 0,
    }
    if auxiliary:
        seen["auxiliary_width"] = int(tensors["aux1.fc1.weight"].shape[0])
    # Published weights come from a network that was trained on pictures in [−1, 1].
    base = named or GoogLeNetConfig(rescale=seen["num_classes"] == 1000 and seen["channels"] == 3, auxiliary=auxiliary)
    return replace(base, **seen)


def _googlenet_rows(config: GoogLeNetConfig) -> list[Row]:
    pairs = [(f"stem.{number - 1}", f"conv{number}") for number in (1, 2, 3)]
    for place, module in enumerate(_MODULES):
        names = zip(_BRANCHES, _THEIR_BRANCHES, strict=True)
        pairs += [(f"blocks.{place}.{branch}", f"inception{module}.{theirs}") for branch, theirs in names]
    helped = config.auxiliary and config.num_classes > 0
    pairs += [(f"auxiliary.{number - 1}.conv", f"aux{number}.conv") for number in (1, 2) if helped]
    rows = [row for ours, theirs in pairs for row in conv_norm(ours, f"{theirs}.conv", f"{theirs}.bn", "batch")]
    for number in (1, 2) if helped else ():
        rows += renamed(f"auxiliary.{number - 1}.hidden", f"aux{number}.fc1")
        rows += renamed(f"auxiliary.{number - 1}.head", f"aux{number}.fc2")
    return rows + (renamed("head", "fc") if config.num_classes else [])


def _resnet_config(files: Files, named: ResNetConfig | None) -> ResNetConfig:
    return replace(named or ResNetConfig(), **resnet_seen(files.tensors, files.source))


def _layout(
    build: type[Network],
    config: type,
    recognises: Callable[[Files], bool],
    read: Callable[[Files, Any], Any],
    rows: Callable[[Any], list[Row]],
) -> Layout:
    """The layout of one family, from what is its own."""

    def plan(files: Files, named: Any) -> Plan:
        told = files.config
        if "network" in told:
            named = named or restored(config, told["network"], "network", "config.json")
        found = read(files, named)
        table = rows(found)
        notes: list[str] = []
        record = Record(
            architecture=_name(build, found),
            layout="torchvision",
            source=files.source,
            preprocessing=_preprocessing(files, found, notes),
            labels=tuple(map(str, told.get("label_names", ()))),
            licence=told.get("license", "bsd-3-clause"),
            notes=tuple(notes),
        )
        ignored: tuple[str, ...] = (FOREIGN_COUNTERS,) if getattr(found, "norm", "batch") == "frozen" else ()
        if build is GoogLeNet and not (found.auxiliary and found.num_classes):
            ignored += (r"aux[12]\..*",)
        return Plan(
            build=build,
            config=found,
            rows=table,
            tensors=counted(files.tensors, table),
            record=usual_labels(record, found.num_classes),
            ignored=ignored,
        )

    def compose(model: nn.Module) -> Written:
        network = cast(Network, model)
        record = network.record
        described: dict[str, Any] = {
            "model_type": _TYPE,
            "architecture": _name(build, network.config),
            "network": asdict(cast(Any, network.config)),
        }
        if record.preprocessing is not None:
            described["preprocessing"] = asdict(record.preprocessing)
        if record.labels:
            described["label_names"] = list(record.labels)
        if record.licence:
            described["license"] = record.licence
        if getattr(network.config, "pooled", False) or getattr(network.config, "stem", "plain") != "plain":
            raise UsageError("torchvision has no ResNet-D. Use layout='timm'.")
        return Written(model=model, rows=rows(network.config), documents={"config.json": described})

    return Layout(name="torchvision", network=build, recognises=recognises, plan=plan, compose=compose)


def _name(build: type[Network], config: Any) -> str:
    """The catalogue's name for a network, whatever its number of classes and what is not seen; else its sizes."""
    for name, variant in cast(Any, _VARIANTS[cast(Any, build)]).items():
        free = {"num_classes": config.num_classes, "image_size": config.image_size}
        free |= {field: getattr(config, field) for field in ("rescale", "auxiliary", "dilated") if hasattr(config, field)}
        if replace(variant, **free) == config or (
            hasattr(config, "norm") and replace(variant, **free, norm="frozen") == config
        ):
            return str(name)
    return f"{config.width} wide, {config.depth} deep"


def _preprocessing(files: Files, config: Any, notes: list[str]) -> Preprocessing | None:
    """As torchvision's weights are evaluated, or as the config.json says."""
    if "preprocessing" in files.config:
        return restored(Preprocessing, files.config["preprocessing"], "preprocessing", "config.json")
    if config.channels != 3:
        return None
    side, resize = min(config.image_size), 232 if any(sign in files.source for sign in _SECOND) else 256
    if resize == 256 and isinstance(config, ResNetConfig) and config.block == "bottleneck":
        notes.append(
            "Pictures are resized to 256/224 of the network's size, as for torchvision's first recipe; weights of its "
            "second, which only their file's name tells apart, are evaluated at 232/224."
        )
    return evaluation(config.image_size, resize=round(side * resize / 224), interpolation="bilinear")


LAYOUTS: tuple[Layout, ...] = (
    _layout(AlexNet, AlexNetConfig, _alexnet_recognised, _alexnet_config, _alexnet_rows),
    _layout(VGG, VGGConfig, _vgg_recognised, _vgg_config, _vgg_table),
    _layout(GoogLeNet, GoogLeNetConfig, _googlenet_recognised, _googlenet_config, _googlenet_rows),
    _layout(ResNet, ResNetConfig, _resnet_recognised, _resnet_config, resnet_rows),
)
"""One layout for each family."""
