"""Faster R-CNN, RetinaNet and FCOS against torchvision: the same numbers, the same objects, there and back.

torchvision's wheel has no operators beside a CPU torch: its suppression is written out here from the definition, and its
RoIAlign is the one that it has in Python.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    RPNHead,
    TwoMLPHead,
)
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.models.detection.harness import filled_up
from tests.models.harness import stirred
from tests.parity.test_convolutional import _ResNet
from vitral.base.boxes import Objects, cxcywh_to_xyxy
from vitral.base.image import read_picture
from vitral.checkpoints.load import load_model
from vitral.checkpoints.region.torchvision import COCO_NUMBERS
from vitral.checkpoints.save import save_model
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import MismatchError, UsageError
from vitral.models.catalogue import CATALOGUE
from vitral.models.output import DenseOutput, RegionOutput
from vitral.tasks.detection.assignment import dense_loss
from vitral.tasks.detection.dense import read_dense

PLANES = (8, 16, 24, 40)
WIDTH = 32
PROPOSALS = 60
KINDS = ("fasterrcnn", "fasterrcnn_v2", "retinanet", "retinanet_v2", "fcos")
NAMES = dict(
    zip(
        KINDS,
        ("fasterrcnn_r50_fpn", "fasterrcnn_r50_fpn_v2", "retinanet_r50_fpn", "retinanet_r50_fpn_v2", "fcos_r50_fpn"),
        strict=True,
    )
)
SIZES = ((128, 160), (97, 131), (150, 75))


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppression by its definition, one box after the other."""
    corners, order, kept = boxes.numpy(), scores.argsort(descending=True, stable=True).numpy(), []
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        sides = np.minimum(corners[best, 2:], corners[order, 2:]) - np.maximum(corners[best, :2], corners[order, :2])
        shared = sides.clip(0).prod(1)
        with np.errstate(invalid="ignore"):  # two boxes without area do not overlap
            order = order[~(shared / (areas[best] + areas[order] - shared) > threshold)]
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__

    def pooled(x: Tensor, rois: Tensor, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Tensor:
        return plain(x, rois, spatial_scale, *output_size, sampling_ratio, False)

    monkeypatch.setattr(torchvision.ops.boxes, "nms", greedy)
    monkeypatch.setattr(torchvision.ops.poolers, "roi_align", pooled)


def body(frozen: bool) -> Any:
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    block = torchvision.models.resnet.BasicBlock
    return _ResNet(block, PLANES, (False, False, False), 1, 64, norm)


def backbone(frozen: bool, first: int, extra: Any, norm: Any = None) -> Any:
    layers = {f"layer{place + 1}": str(place - first) for place in range(first, 4)}
    return BackboneWithFPN(body(frozen), layers, list(PLANES[first:]), WIDTH, extra, norm)


def peer(kind: str, **options: Any) -> Any:
    """torchvision's network of a kind, small, of five classes of objects, that takes pictures as they are."""
    options = {"_skip_resize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3, **options}
    if kind.startswith("fasterrcnn"):
        options |= {f"rpn_{when}_nms_top_n_{mode}": PROPOSALS for when in ("pre", "post") for mode in ("train", "test")}
    if kind == "fasterrcnn":
        options |= {"box_head": TwoMLPHead(WIDTH * 49, 24), "box_predictor": FastRCNNPredictor(24, 6)}
        network: Any = FasterRCNN(backbone(True, 0, LastLevelMaxPool()), **options)
    elif kind == "fasterrcnn_v2":
        options |= {
            "rpn_head": RPNHead(WIDTH, 3, conv_depth=2),
            "box_head": FastRCNNConvFCHead((WIDTH, 7, 7), [WIDTH] * 4, [24], norm_layer=nn.BatchNorm2d),
            "box_predictor": FastRCNNPredictor(24, 6),
        }
        network = FasterRCNN(backbone(False, 0, LastLevelMaxPool(), nn.BatchNorm2d), **options)
    elif kind == "retinanet":
        network = RetinaNet(backbone(True, 1, LastLevelP6P7(WIDTH, WIDTH)), 5, **options)
    elif kind == "retinanet_v2":
        head = RetinaNetHead(WIDTH, 9, 5, norm_layer=partial(nn.GroupNorm, 32))
        head.regression_head._loss_type = "giou"
        network = RetinaNet(backbone(False, 1, LastLevelP6P7(PLANES[3], WIDTH)), 5, head=head, **options)
    else:
        network = FCOS(backbone(True, 1, LastLevelP6P7(WIDTH, WIDTH)), 5, **options)
    # Without this, evaluation resizes pictures, and training does not.
    network.transform.resize = lambda image, target=None: (image, target)
    return calmed(network)


def calmed(network: nn.Module) -> Any:
    """Weights that all matter, and answers of a size that a trained network gives: scores not all of 0 or 1."""
    stirred(network)  # type: ignore[arg-type]
    last = ("bbox_pred", "bbox_reg", "cls_logits", "cls_score", "bbox_ctrness")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(one in name for one in last):
                edges = "reg" in name and isinstance(network, FCOS)
                parameter.mul_(1.5 if "head." in name and ("cls" in name or "ctr" in name) else 1.0 if edges else 0.05)
            if name.endswith("box_head.fc6.weight"):
                parameter.mul_(0.3)
    return network.eval()


def ours(network: nn.Module, kind: str, folder: Path, regions: int = 512) -> Any:
    """Our network, read from its weights."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
    config = replace(CATALOGUE[NAMES[kind]].config, pyramid_width=WIDTH)
    if kind.startswith("fasterrcnn"):
        config = replace(config, proposals=PROPOSALS, training_proposals=PROPOSALS, training_regions=regions)
    return load_model(folder, config)


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in SIZES]


def batch() -> tuple[Tensor, Tensor]:
    found = pictures()
    return filled_up(found, (max(one.shape[1] for one in found), max(one.shape[2] for one in found)))


def raw(network: Any, kind: str) -> dict[str, Any]:
    """What torchvision's parts say of the batch, before anything is chosen."""
    images, _ = network.transform(pictures())
    features = network.backbone(images.tensors)
    if kind.startswith("fasterrcnn"):
        proposals, _ = network.rpn(images, features)
        pooled = network.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
        logits, offsets = network.roi_heads.box_predictor(network.roi_heads.box_head(pooled))
        return {"proposals": proposals, "logits": logits, "offsets": offsets}
    return {**network.head(list(features.values())), "anchors": network.anchor_generator(images, list(features.values()))[0]}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_numbers_and_objects_are_torchvisions(kind: str, tmp_path: Path) -> None:
    network = peer(kind)
    model = ours(network, kind, tmp_path / "theirs")
    theirs, out = raw(network, kind), model(*batch())
    if kind.startswith("fasterrcnn"):
        assert isinstance(out, RegionOutput)
        assert out.valid.sum(1).tolist() == [len(one) for one in theirs["proposals"]]
        torch.testing.assert_close(out.regions[out.valid], torch.cat(theirs["proposals"]), atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(out.logits[out.valid].roll(1, 1), theirs["logits"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.offsets[out.valid].roll(1, 1).flatten(1), theirs["offsets"], atol=1e-4, rtol=1e-4)
    else:
        assert isinstance(out, DenseOutput)
        assert torch.equal(out.anchors, theirs["anchors"])
        torch.testing.assert_close(out.logits, theirs["cls_logits"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.offsets, theirs["bbox_regression"], atol=1e-4, rtol=1e-4)
        if out.centerness is not None:
            torch.testing.assert_close(out.centerness, theirs["bbox_ctrness"][..., 0], atol=1e-4, rtol=1e-4)
    shift = int(kind.startswith("fasterrcnn"))
    wanted, found = network(pictures()), read_dense(out)
    assert all(len(one["scores"]) > 5 for one in wanted)
    for one, other, (height, width) in zip(found, wanted, SIZES, strict=True):
        torch.testing.assert_close(one.scores, other["scores"], atol=1e-5, rtol=1e-4)
        boxes = cxcywh_to_xyxy(one.boxes) * torch.tensor([width, height, width, height])
        # The same objects; those whose scores differ in the last digit only may have changed places.
        same = (one.labels[:, None] == other["labels"] - shift) & ((one.scores[:, None] - other["scores"]).abs() < 1e-5)
        same &= (boxes[:, None] - other["boxes"]).abs().amax(-1) < 2e-3
        assert same.any(0).all()
        assert same.any(1).all()
        assert same.diagonal().float().mean() > 0.95


def targets() -> list[Objects]:
    """Objects of all sizes; none in the second picture."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for many in (6, 0, 4):
        middles, sides = torch.rand(2, many, 2, generator=generator)
        middles, sides = 0.3 + 0.4 * middles, 0.05 + 0.5 * sides
        found.append(Objects(torch.randint(0, 5, (many,), generator=generator), torch.cat([middles, sides], dim=1)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_torchvisions(kind: str, tmp_path: Path) -> None:
    everything = 100_000
    drawn = {"rpn_batch_size_per_image": everything, "box_batch_size_per_image": everything}
    network = peer(kind, **(drawn if kind.startswith("fasterrcnn") else {}))
    model = ours(network, kind, tmp_path / "theirs", everything)
    shift = int(kind.startswith("fasterrcnn"))
    shown = [
        {
            "labels": one.labels + shift,
            "boxes": cxcywh_to_xyxy(one.boxes) * torch.tensor([width, height, width, height]),
        }
        for one, (height, width) in zip(targets(), SIZES, strict=True)
    ]
    # In evaluation mode norms do not gather statistics, but torchvision then tells no losses.
    for part in (network, *(getattr(network, name, None) for name in ("rpn", "roi_heads", "transform"))):
        if part is not None:
            part.training = True
    wanted = network(pictures(), shown)
    model.training = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitral.tasks.detection.assignment._DRAWN", everything)
        found = dense_loss(model(*batch(), targets()), targets())
    names = {
        "class": "loss_classifier" if shift else "classification",
        "box": "loss_box_reg" if shift else "bbox_regression",
        "centerness": "bbox_ctrness",
        "objectness": "loss_objectness",
        "proposal": "loss_rpn_box_reg",
    }
    assert {names[name] for name in found if name != "total"} == set(wanted)
    for name, value in found.items():
        if name != "total":
            assert value.item() > 1e-3
            torch.testing.assert_close(value, wanted[names[name]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["total"], sum(wanted.values()), atol=1e-5, rtol=1e-5)
    grown = [part.grad for part in (model.backbone.stem.conv.weight, network.backbone.body.conv1.weight)]
    assert grown == [None, None]
    found["total"].backward()
    sum(wanted.values()).backward()  # type: ignore[union-attr]
    ours_, theirs = model.backbone.stem.conv.weight.grad, network.backbone.body.conv1.weight.grad
    torch.testing.assert_close(ours_, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_back_as_it_came(kind: str, tmp_path: Path) -> None:
    network = peer(kind)
    model = ours(network, kind, tmp_path / "theirs")
    written = save_model(model, tmp_path / "ours", layout="torchvision")
    state, expected = load_file(written / "model.safetensors"), network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    again: Any = load_model(written)
    assert again.config == model.config
    assert again.record.architecture == model.record.architecture


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet"])
def test_files_of_before_2022_are_read(kind: str, tmp_path: Path) -> None:
    network = peer(kind)
    old = {}
    for name, tensor in network.state_dict().items():
        name = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)
        old[name] = tensor
    assert old.keys() != network.state_dict().keys()
    torch.save(old, tmp_path / "model.pth")  # as it was published; names begin with backbone and are kept so
    model: Any = load_model(tmp_path / "model.pth")
    expected = ours(network, kind, tmp_path / "new").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_what_a_bare_file_does_not_say(tmp_path: Path) -> None:
    network = peer("retinanet")
    save_file(network.state_dict(), tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.safetensors")
    model: Any = load_model(tmp_path / "retinanet_resnet50_fpn_coco-eeacb38b.safetensors")
    assert model.config.norm_eps == model.backbone.stem.norm.eps == 0
    assert model.config.backbone.norm == "frozen"
    prepared = model.record.preprocessing
    assert (prepared.size, prepared.longest, prepared.resizer) == ((800, 800), 1333, "torch_plain")
    assert ours(network, "retinanet", tmp_path / "named").config.norm_eps == 1e-5


def test_cocos_numbers_are_torchvisions() -> None:
    assert list(COCO_NUMBERS) == torchvision.models._meta._COCO_CATEGORIES


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = peer("fcos").state_dict()
    del state["head.regression_head.conv.3.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"head\.regression_head\.conv\.3\.weight"):
        load_model(tmp_path / "model.safetensors")
    model = ours(peer("retinanet_v2"), "retinanet_v2", tmp_path / "v2")
    backbone_ = replace(model.config.backbone, stage_channels=(WIDTH,) * 4)
    wide = type(model)(replace(model.config, backbone=backbone_))
    with pytest.raises(UsageError, match="Use layout='vitral'"):
        save_model(wide, tmp_path / "out", layout="torchvision")


COUNTS = {
    "fasterrcnn_r50_fpn": torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "fasterrcnn_r50_fpn_v2": torchvision.models.detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    "retinanet_r50_fpn": torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    "retinanet_r50_fpn_v2": torchvision.models.detection.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    "fcos_r50_fpn": torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_published_number(name: str) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].build(CATALOGUE[name].config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name].meta["num_params"]


@pytest.mark.parametrize("size", [(97, 131), (48, 64), (641, 427), (30, 70), (40, 700), (133, 80)])
def test_pictures_are_prepared_as_torchvision_does(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    peer = GeneralizedRCNNTransform(80, 133, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], size_divisible=1).eval()
    expected, _ = peer([torch.from_numpy(image).permute(2, 0, 1) / 255])
    prepare = Preprocessing(
        resize="shortest_edge",
        size=(80, 80),
        longest=133,
        interpolation="bilinear",
        resizer="torch_plain",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    found, _ = prepare(read_picture(image))
    torch.testing.assert_close(found, expected.tensors[0], atol=1e-5, rtol=1e-5)
    assert prepare.reading_size is None
    with pytest.raises(UsageError, match="torch_plain"):
        replace(prepare, interpolation="lanczos")
