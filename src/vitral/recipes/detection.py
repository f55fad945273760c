"""Detectors: what to do with annotated pictures when no recipe was named, and trainings with a story of their own."""

from __future__ import annotations

from dataclasses import replace

from vitral.data.object_augment import ObjectAugmentation
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vitral.recipes.miniature import SMALL_RESNET, TINY_RESNET, miniature
from vitral.tasks.detection.loss import DETR_LOSS, RTDETR_LOSS
from vitral.training.recipe import Recipe

__all__ = ["bccd", "detr_coco", "finetune_detector", "rtdetr_coco", "scratch_detector", "synthetic_scenes"]

_RTDETR_PICTURES = ObjectAugmentation(
    resize="exact", zoom_out=0.5, iou_crop=0.8, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, colour=0.5
)

# An RT-DETR of 0.8 million parameters: narrow stages, a narrow encoder, two blocks of decoder; it learns from nothing.
_SMALL = SMALL_RESNET | {
    "encoder.width": 64,
    "encoder.heads": 4,
    "encoder.hidden": 128,
    "encoder.expansion": 0.5,
    "encoder.fusion_depth": 1,
    "width": 64,
    "heads": 4,
    "hidden": 128,
    "decoder_depth": 2,
    "queries": 60,
    "noise.queries": 20,
}

# The whole way in seconds: as narrow as a network can be.
_TINY = TINY_RESNET | {"width": 16, "heads": 2}
_TINY_RTDETR = _TINY | {
    "encoder.width": 16,
    "encoder.heads": 2,
    "encoder.hidden": 16,
    "encoder.fusion_depth": 1,
    "hidden": 16,
    "decoder_depth": 2,
    "queries": 12,
    "noise.queries": 8,
}
_TINY_DETR = _TINY | {"queries": 12, "encoder_depth": 1, "decoder_depth": 2, "mlp_width": 32}


def finetune_detector(*, quick: bool = False) -> Recipe:
    """A published detector learns to find other objects: what suits some hundred to some ten thousand pictures.

    The story. All but the classifiers knows its way already, so that the rate is half of what it was trained with, the
    backbone's a tenth of that, and the averaged weights are kept. Pictures change as in RT-DETR's training, whole ones among
    them.

    Command: `vitral train objects/ --model PekingU/rtdetr_r18vd --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="finetune_detector",
        task="detection",
        model="PekingU/rtdetr_r18vd",
        epochs=1 if quick else 30,
        batch_size=8,
        learning_rate=5e-5,
        backbone_rate=0.1,
        weight_decay=1e-4,
        warmup_epochs=0.1 if quick else 1,
        clip=0.1,
        ema=0.999,
        objective=RTDETR_LOSS,
        augment=_RTDETR_PICTURES,
        workers=0 if quick else None,
    )


def scratch_detector(*, quick: bool = False) -> Recipe:
    """A detector of the catalogue learns from nothing but your annotated pictures.

    The story. RT-DETR's choices (Zhao et al. 2024, table A of the appendix) without a backbone that knows pictures: one rate
    for all, norms that learn (set network.backbone.norm to frozen for a backbone that was trained), and a longer training. A
    few hundred pictures teach a large detector little; fine-tune a published one if there is one.

    Command: `vitral train objects/ --model rtdetr_r18 --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="scratch_detector",
        task="detection",
        model="rtdetr_r18",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=1 if quick else 150,
        batch_size=8,
        learning_rate=2e-4,
        weight_decay=1e-4,
        warmup_epochs=0.1 if quick else 5,
        clip=0.1,
        ema=0.999,
        objective=RTDETR_LOSS,
        augment=_RTDETR_PICTURES,
        workers=0 if quick else None,
    )


def synthetic_scenes(*, quick: bool = False) -> Recipe:
    """Drawn shapes on textured grounds, found by a small RT-DETR within minutes on a CPU.

    The story. Nothing is downloaded: 2,000 scenes of 128 by 128 pixels are drawn as they are asked for, with the boxes of
    eight shapes. A network of 0.8 million parameters learns from nothing where they are; noisy boxes shown beside its
    queries (Zhang et al. 2023, DINO, section 3.3) make the first epochs count. Where things are is learned long before what
    they are (three epochs: of the objects 72 % are found, 25 % rightly named), so that the class counts twice.

    Command: `vitral train scenes --recipe synthetic_scenes --out run`.

    Args:
        quick: one pass by a narrower network, to see the whole way.
    """
    recipe = Recipe(
        name="synthetic_scenes",
        task="detection",
        model="rtdetr_r18",
        network=_SMALL | {"queries": 30, "noise.queries": 12},
        image_size=(128, 128),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        epochs=18,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=1e-4,
        warmup_epochs=1,
        clip=0.5,
        ema=0.998,
        objective=replace(RTDETR_LOSS, class_weight=2.0),
        augment=ObjectAugmentation(resize="exact", flip=0.5, flip_vertical=0.5),
        evaluate_every=3,
        save_every=3,
    )
    return miniature(recipe, _TINY_RTDETR) if quick else recipe


def bccd(*, quick: bool = False) -> Recipe:
    """Blood cells in pictures from a microscope, found by a small RT-DETR that begins with nothing.

    The story. BCCD (https://github.com/Shenggan/BCCD_Dataset, Pascal VOC's format) has 364 pictures of 640 by 480 pixels
    with red and white cells and platelets. There is no up and no down in them, so they are mirrored both ways; cells have
    one size, so that they are cut but never made much smaller, and 256 by 320 pixels are enough to see them. On the split
    test AP50 is 85.8 % (AP 58.0) after 17 minutes on one core.

    Command: `vitral train bccd-voc.tar --recipe bccd --out run`.

    Args:
        quick: one pass by a narrower network over small pictures, to see the whole way.
    """
    recipe = Recipe(
        name="bccd",
        task="detection",
        model="rtdetr_r18",
        network=_SMALL | {"queries": 100, "noise.queries": 40},
        image_size=(256, 320),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=60,
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=1e-4,
        warmup_epochs=2,
        clip=0.5,
        ema=0.998,
        objective=replace(RTDETR_LOSS, class_weight=2.0),
        augment=ObjectAugmentation(
            resize="exact",
            flip=0.5,
            flip_vertical=0.5,
            iou_crop=0.5,
            brightness=0.15,
            contrast=0.2,
            saturation=0.2,
            hue=0.02,
        ),
        evaluate_every=3,
        save_every=3,
    )
    return miniature(recipe, _TINY_RTDETR) if quick else recipe


def detr_coco(*, quick: bool = False) -> Recipe:
    """DETR-R50 as it was published: 42.0 AP on COCO's val2017 after 500 epochs (Carion et al. 2020, table 1).

    The story. A residual network that knows ImageNet, whose stem and first stage stay as they are, learns ten times more
    slowly than the transformer behind it. The rate drops once, after 400 epochs; with 300 epochs, a drop after 200 and 1.5
    AP less it took the authors 3 days on 16 V100 GPUs (section 4): `--epochs 300 --drop-epochs 200`. Dropout of 0.1 is the
    network's own. Here weight decay is for matrices only, where the authors' code has it for every parameter.

    Command: `accelerate launch -m vitral train coco/ --recipe detr_coco --out run`.

    Args:
        quick: the same choices for a tiny network that begins with nothing, and small pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="detr_coco",
        task="detection",
        model="detr_r50",
        backbone="timm/resnet50.tv_in1k",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        epochs=500,
        batch_size=64,
        learning_rate=1e-4,
        backbone_rate=0.1,
        weight_decay=1e-4,
        schedule="step",
        drop_epochs=(400.0,),
        drop_factor=0.1,
        warmup_epochs=0,
        clip=0.1,
        frozen_depth=4,  # the stem, and the three blocks of the first stage
        objective=DETR_LOSS,
        augment=ObjectAugmentation(),
    )
    if not quick:
        return recipe
    tiny = miniature(recipe, _TINY_DETR)
    sides = replace(ObjectAugmentation(), sides=(48, 64), longest=96, crop_sides=(48,), crop_range=(32, 48))
    return replace(tiny, drop_epochs=(0.8,), augment=sides)


def rtdetr_coco(*, quick: bool = False) -> Recipe:
    """RT-DETR-R50 as it was published: 53.1 AP on COCO's val2017 after 72 epochs (Zhao et al. 2024, table 2).

    The story. A residual network (ResNet-50-D) that knows ImageNet, its stem and all its norms frozen; a rate of 1e-4, a
    tenth of that for the backbone, which stays the same to the end; averaged weights. There the pictures of a batch have one
    of several sizes from 480 to 800 pixels, here 640; and the published backbone was distilled from a larger one, which this
    one was not, so that a little less is to be expected. It is a training of days on several GPUs.

    Command: `accelerate launch -m vitral train coco/ --recipe rtdetr_coco --out run`.

    Args:
        quick: the same choices for a tiny network that begins with nothing, and small pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="rtdetr_coco",
        task="detection",
        model="rtdetr_r50",
        backbone="timm/resnet50d.ra2_in1k",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        epochs=72,
        batch_size=16,
        learning_rate=1e-4,
        backbone_rate=0.1,
        weight_decay=1e-4,
        schedule="constant",
        warmup_epochs=0.27,  # 2,000 steps
        clip=0.1,
        ema=0.9999,
        frozen_depth=1,
        objective=RTDETR_LOSS,
        augment=_RTDETR_PICTURES,
        precision="bf16",
    )
    return miniature(recipe, _TINY_RTDETR) if quick else recipe
