"""Segmenters: what to do with segmented pictures when no recipe was named, and trainings with a story of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitral.data.object_augment import ObjectAugmentation
from vitral.data.segment_augment import SegmentAugmentation
from vitral.data.synthetic import MATERIALS, SHAPES
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vitral.recipes.miniature import SMALL_RESNET, TINY_RESNET, miniature
from vitral.tasks.segmentation.loss import MASK2FORMER_LOSS, MapLoss, MaskLoss
from vitral.tasks.segmentation.matching import MaskCosts
from vitral.training.recipe import Recipe

__all__ = [
    "ade20k_segformer",
    "ade20k_setr",
    "camvid",
    "cityscapes_segformer",
    "finetune_segmenter",
    "penn_fudan",
    "scratch_segmenter",
    "synthetic_panoptic",
    "synthetic_semantic",
]

# A Mask2Former of about a million parameters, which learns from nothing.
_SMALL = SMALL_RESNET | {
    "width": 64,
    "mask_width": 64,
    "heads": 4,
    "mlp_width": 128,
    "encoder_depth": 1,
    "encoder_mlp_width": 128,
    "decoder_depth": 6,
    "queries": 20,
    "canvas": None,
}
# The backbone of the drawn scenes: its first convolutions see more of an outline than one of 7 × 7.
_SHAPES = SMALL_RESNET | {"backbone.stem": "deep"}
# As narrow as networks can be: the whole way in seconds.
_TINY_MASKS = TINY_RESNET | {
    "width": 16,
    "mask_width": 16,
    "heads": 2,
    "mlp_width": 16,
    "encoder_depth": 1,
    "encoder_mlp_width": 16,
    "decoder_depth": 3,
    "queries": 12,
    "canvas": None,
}
_TINY_MIT: dict[str, Any] = {
    "backbone.widths": (8, 8, 16, 16),
    "backbone.depths": (1, 1, 1, 1),
    "backbone.heads": (1, 1, 2, 2),
    "decoder_width": 16,
}
_TINY_VIT: dict[str, Any] = {
    "backbone.width": 16,
    "backbone.depth": 4,
    "backbone.heads": 2,
    "backbone.mlp_width": 16,
}


def finetune_segmenter(*, quick: bool = False) -> Recipe:
    """A published segmenter learns other classes: what suits some hundred to some ten thousand pictures.

    The story. SegFormer's choices (Xie et al. 2021, section 4.1): the backbone knows pictures and learns ten times more
    slowly than what reads it; pictures are scaled, cut and mirrored. `--model nvidia/segformer-b0-finetuned-ade-512-512`
    is small enough for a processor.

    Command: `vitral train pictures/ --model nvidia/segformer-b0-finetuned-ade-512-512 --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="finetune_segmenter",
        task="segmentation",
        model="nvidia/segformer-b0-finetuned-ade-512-512",
        epochs=1 if quick else 40,
        batch_size=8,
        learning_rate=6e-4,
        backbone_rate=0.1,
        weight_decay=0.01,
        schedule="linear",
        warmup_epochs=0.1 if quick else 1,
        objective=MapLoss(),
        augment=SegmentAugmentation(),
        workers=0 if quick else None,
    )


def scratch_segmenter(*, quick: bool = False) -> Recipe:
    """A segmenter of the catalogue learns from nothing but your segmented pictures.

    The story. A U-Net needs no backbone that knows pictures, and was made for few of them (Ronneberger et al. 2015). Give
    another network with --model, and with --backbone the weights its backbone begins with, where there are some.

    Command: `vitral train pictures/ --model unet --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="scratch_segmenter",
        task="segmentation",
        model="unet",
        image_size=(256, 256),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=1 if quick else 100,
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_epochs=0.1 if quick else 2,
        clip=1.0,
        objective=MapLoss(),
        augment=SegmentAugmentation(),
        ema=0.999,
        workers=0 if quick else None,
    )


def synthetic_semantic(*, quick: bool = False) -> Recipe:
    """Drawn shapes and the grounds they lie on, the class of every pixel, by a small semantic FPN within minutes on a CPU.

    The story. Nothing is downloaded. A shape is known by its outline alone, whatever its colour, and that is hard to see at
    first: shapes cover little of a scene, so that their pixels count eight times as much as those of grounds, and the
    network learns three times as fast as others of this page. Its backbone then knows what `synthetic_panoptic` must know.

    Command: `vitral train scenes --recipe synthetic_semantic --processes 2 --out shapes`; eight minutes on two cores.

    Args:
        quick: one pass by a narrower network, to see the whole way.
    """
    recipe = Recipe(
        name="synthetic_semantic",
        task="segmentation",
        segments="semantic",
        model="semantic_fpn_r50",
        network=_SHAPES | {"pyramid_width": 48, "width": 48, "groups": 8},
        image_size=(128, 128),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        epochs=12,
        batch_size=16,
        learning_rate=3e-3,
        weight_decay=0.01,
        warmup_epochs=1,
        clip=1.0,
        ema=0.998,
        objective=MapLoss(class_weights=(8.0,) * len(SHAPES) + (1.0,) * len(MATERIALS)),
        augment=ObjectAugmentation(resize="exact", flip=0.5, flip_vertical=0.5),
        evaluate_every=6,
        save_every=3,
    )
    return miniature(recipe, TINY_RESNET | {"pyramid_width": 8, "width": 8, "groups": 4}) if quick else recipe


def synthetic_panoptic(*, quick: bool = False) -> Recipe:
    """Drawn shapes and the grounds they lie on, segment by segment, by a small Mask2Former within minutes on a CPU.

    The story. Nothing is downloaded: 2,000 scenes of 128 by 128 pixels are drawn as they are asked for, with the segment of
    every pixel. Masks are compared at 512 points instead of 12,544 (Cheng et al. 2022, section 3.3): a picture of this size
    has only 1,024 cells. Where things are is learned long before what they are, so that the class counts four times as much
    as published, and the backbone begins with what `synthetic_semantic` has learned. Without `--backbone` it learns from
    nothing, and calls three things of four by a wrong name after a quarter of an hour.

    Command: `vitral train scenes --recipe synthetic_panoptic --processes 2 --backbone shapes/best --out run`; 11 minutes.

    Args:
        quick: one pass by a narrower network, to see the whole way.
    """
    recipe = Recipe(
        name="synthetic_panoptic",
        task="segmentation",
        segments="panoptic",
        model="mask2former_r50",
        network=_SMALL | _SHAPES,
        image_size=(128, 128),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        epochs=9,
        batch_size=16,
        learning_rate=4e-3,
        backbone_rate=0.5,
        weight_decay=0.01,
        warmup_epochs=1,
        clip=0.5,
        ema=0.998,
        objective=_at_points(512, class_weight=8.0),
        augment=ObjectAugmentation(resize="exact", flip=0.5, flip_vertical=0.5),
        evaluate_every=4.5,
        save_every=3,
    )
    return miniature(recipe, _TINY_MASKS) if quick else recipe


def camvid(*, quick: bool = False) -> Recipe:
    """Road scenes (CamVid), the class of every pixel, by a Segmenter that begins with a DeiT-Tiny.

    The story. 367 pictures of 480 by 360 pixels with eleven classes (Brostow et al. 2009) are few, so that a backbone that
    knows ImageNet is worth more than all else. Pictures are scaled and cut as in Segmenter's training on ADE20K (Strudel et
    al. 2021, section 4.1); poles and bicyclists are rare, and the window is never filled by one class alone.

    Command: `vitral train camvid-train.tar --recipe camvid --held-out 0.2 --out run`.

    Args:
        quick: one pass by a narrower network that begins with nothing, to see the whole way.
    """
    recipe = Recipe(
        name="camvid",
        task="segmentation",
        segments="semantic",
        model="segmenter_vit_ti16_mask",
        backbone="timm/deit_tiny_patch16_224.fb_in1k",
        image_size=(192, 256),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=17,
        batch_size=8,
        learning_rate=1e-3,
        backbone_rate=0.25,
        weight_decay=0.05,
        warmup_epochs=1,
        clip=1.0,
        ema=0.998,
        objective=MapLoss(dice=1.0),
        augment=SegmentAugmentation(scale=(0.75, 1.75)),
        evaluate_every=5,
        save_every=5,
    )
    return miniature(recipe, _TINY_VIT) if quick else recipe


def penn_fudan(*, quick: bool = False) -> Recipe:
    """Pedestrians one by one (Penn-Fudan), by a small Mask2Former that begins with nothing.

    The story. 170 street pictures with 345 pedestrians (Wang et al. 2007) teach a network from nothing little: published
    figures come from networks that knew COCO. They are scaled as large-scale jitter does (Ghiasi et al. 2021).

    Command: `vitral train penn-fudan.tar --recipe penn_fudan --held-out 0.2 --out run`.

    Args:
        quick: one pass by a narrower network over small pictures, to see the whole way.
    """
    recipe = Recipe(
        name="penn_fudan",
        task="segmentation",
        segments="instance",
        model="mask2former_r50",
        network=_SMALL | {"canvas": (192, 192)},
        image_size=(192, 192),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=48,
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.01,
        warmup_epochs=3,
        clip=0.5,
        ema=0.998,
        objective=_at_points(3136, class_weight=2.0),
        augment=ObjectAugmentation(
            resize="exact", iou_crop=0.5, brightness=0.15, contrast=0.3, saturation=0.3, hue=0.02, zoom_out=0.2
        ),
        evaluate_every=8,
        save_every=8,
    )
    return miniature(recipe, _TINY_MASKS) if quick else recipe


def ade20k_segformer(*, quick: bool = False) -> Recipe:
    """SegFormer-B0 on ADE20K as it was published: 37.4 % mIoU (Xie et al. 2021, table 1).

    The story. An encoder that knows ImageNet; 160,000 steps of 16 windows of 512 by 512 pixels, the rate falling in a line
    from 6e-5 (section 4.1), that of the decoder ten times as high, after 1,500 steps of rising. 20,210 pictures make 127
    epochs of that. The other sizes: `--model segformer_b5 --backbone …` (51.0 %, at 640 pixels).

    Command: `accelerate launch -m vitral train ADEChallengeData2016/ --recipe ade20k_segformer --out run`.

    Args:
        quick: the same choices for a tiny network that begins with nothing, and small pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="ade20k_segformer",
        task="segmentation",
        segments="semantic",
        model="segformer_b0",
        backbone="nvidia/mit-b0",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=127,
        batch_size=16,
        learning_rate=6e-4,
        backbone_rate=0.1,
        weight_decay=0.01,
        schedule="linear",
        warmup_epochs=1.2,
        objective=MapLoss(),
        augment=SegmentAugmentation(),
        evaluate_every=12.7,
    )
    return miniature(recipe, _TINY_MIT) if quick else recipe


def cityscapes_segformer(*, quick: bool = False) -> Recipe:
    """SegFormer-B0 on Cityscapes as it was published: 76.2 % mIoU (Xie et al. 2021, table 1).

    The story. As on ADE20K, with 8 windows of 1024 by 1024 pixels to a step, whose scale is that of the picture: 160,000
    steps over 2,975 pictures are 430 epochs. The published figure is of windows that slide over the whole picture, in steps
    of three quarters.

    Command: `accelerate launch -m vitral train cityscapes/ --recipe cityscapes_segformer --out run`.

    Args:
        quick: the same choices for a tiny network that begins with nothing, and small pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="cityscapes_segformer",
        task="segmentation",
        segments="semantic",
        model="segformer_b0",
        backbone="nvidia/mit-b0",
        image_size=(1024, 1024),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=430,
        batch_size=8,
        learning_rate=6e-4,
        backbone_rate=0.1,
        weight_decay=0.01,
        schedule="linear",
        warmup_epochs=4,
        objective=MapLoss(),
        augment=SegmentAugmentation(relative="picture"),
        evaluate_every=43,
    )
    return miniature(recipe, _TINY_MIT) if quick else recipe


def ade20k_setr(*, quick: bool = False) -> Recipe:
    """SETR-PUP on ADE20K as it was published: 48.6 % mIoU, 50.1 % at several scales (Zheng et al. 2021, table 3).

    The story. A ViT-L/16 that knows ImageNet-21k; 160,000 steps of SGD, 16 windows of 512 by 512 pixels each, rate 0.001 and
    ten times that in the decoder, falling polynomially to nothing (section 4.1); here in a line. Auxiliary heads read three
    layers on the way, and count 0.4 each.

    Command: `accelerate launch -m vitral train ADEChallengeData2016/ --recipe ade20k_setr --out run`.

    Args:
        quick: the same choices for a tiny network that begins with nothing, and small pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="ade20k_setr",
        task="segmentation",
        segments="semantic",
        model="setr_pup_l16",
        backbone="timm/vit_large_patch16_384.augreg_in21k_ft_in1k",
        image_size=(512, 512),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=127,
        batch_size=16,
        optimizer="sgd",
        learning_rate=1e-2,
        backbone_rate=0.1,
        weight_decay=0.0,
        schedule="linear",
        warmup_epochs=0,
        objective=MapLoss(auxiliary=0.4),
        augment=SegmentAugmentation(),
        evaluate_every=12.7,
        precision="bf16",
    )
    return miniature(recipe, _TINY_VIT | {"levels": (0, 1, 2, 3), "decoder_width": 16}) if quick else recipe


def _at_points(points: int, *, class_weight: float) -> MaskLoss:
    """Mask2Former's loss, masks being compared at so many points and classes weighing so much."""
    costs = MaskCosts(classes=2.0, mask=5.0, dice=5.0, error="cross_entropy", points=points)
    return replace(MASK2FORMER_LOSS, points=points, costs=costs, class_weight=class_weight)
