"""ImageNet-1k (Russakovsky et al. 2015), as published: for who has the 1.28 million pictures and GPUs."""

from __future__ import annotations

from dataclasses import replace

from vitral.data.augment.chain import Augmentation
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from vitral.tasks.classification.loss import Objective
from vitral.training.recipe import Recipe

__all__ = ["deit_s", "vit_s"]


def deit_s(*, quick: bool = False) -> Recipe:
    """DeiT-S: 79.8 % top-1 on the validation pictures after 300 epochs (Touvron et al. 2021, table 5).

    The story. A vision transformer learns from ImageNet alone if its pictures are changed enough: RandAugment, mixup,
    CutMix, random erasing and every picture three times in a batch (table 9, the column of DeiT-B; section 6). The learning
    rate is 5e-4 · batch / 512. Less than three days on four GPUs of
    2020, by the authors' account.

    Command: `accelerate launch -m vitral train imagenet/ --recipe deit_s --out run`.

    Args:
        quick: the same choices for a small network and few pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="deit_s",
        model="deit_s16",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        filter="bicubic",
        crop_share=0.875,
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_epochs=5,
        final_rate=1e-2,
        objective=Objective(label_smoothing=0.1),
        drop_path=0.1,
        augment=Augmentation(rand_augment=2, magnitude=9, magnitude_std=0.5, erase=0.25, mixup=0.8, cutmix=1.0, repeats=3),
        precision="bf16",
    )
    return _quick(recipe) if quick else recipe


def vit_s(*, quick: bool = False) -> Recipe:
    """ViT-S/16 by the plain recipe: 76.7 % top-1 after 90 epochs, 79.8 % after 300 (Beyer et al. 2022, table 1).

    The story. "Better plain ViT baselines for ImageNet-1k" (https://arxiv.org/abs/2205.01580) asks how little is needed:
    the mean of the tokens instead of a class token, fixed sinusoids for positions, a batch of 1,024, light RandAugment (two
    operations, strength 10) and mixup of 0.2; no dropout, no stochastic depth, no smoothing, no averaging. The figures
    are those of the linear head; here each pair of pictures has its own mixing weight, there a batch has one. Its weight
    decay of 1e-4 does not scale with the learning rate; AdamW's does, so that it is 1e-4 / 1e-3 here.

    Command: `accelerate launch -m vitral train imagenet/ --recipe vit_s --out run`.

    Args:
        quick: the same choices for a small network and few pictures: seconds on a processor.
    """
    recipe = Recipe(
        name="vit_s",
        model="vit_s16",
        network={"class_token": False, "prefix_positions": 0, "pool": "mean", "position": "sinusoidal_2d"},
        crop_share=0.875,
        epochs=90,
        batch_size=1024,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.1,
        warmup_epochs=8,  # 10,000 steps
        clip=1.0,
        augment=Augmentation(
            crop_scale=(0.05, 1.0),
            interpolation="bilinear",
            rand_augment=2,
            magnitude=10,
            magnitude_std=0.0,
            operation_probability=1.0,
            mixup=0.2,
        ),
        precision="bf16",
    )
    return _quick(recipe) if quick else recipe


def _quick(recipe: Recipe) -> Recipe:
    """The whole way in seconds: two narrow blocks, pictures of 32 pixels, one short pass."""
    narrow = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 128, "patch_size": (8, 8)}
    return replace(
        recipe,
        network={**recipe.network, **narrow},
        image_size=(32, 32),
        epochs=1,
        batch_size=32,
        warmup_epochs=0.2,
        precision="fp32",
        workers=0,
    )
