"""CIFAR-10 (Krizhevsky 2009): 50,000 pictures of 32x32 pixels to learn ten things from, 10,000 to be judged by."""

from __future__ import annotations

from vitral.data.augment.chain import Augmentation
from vitral.tasks.classification.loss import Objective
from vitral.training.recipe import Recipe

__all__ = ["cifar10_cct", "cifar10_cct_long", "cifar10_transfer", "cifar10_vit"]

# Of the 50,000 training pictures, over all pixels.
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)

_MOVED = Augmentation(crop="padded", padding=4, flip=0.5)
"""What nearly every training on CIFAR does: mirrored at random, moved by up to four pixels."""


def cifar10_cct(*, quick: bool = False) -> Recipe:
    """From scratch within an hour on two processor cores: a compact transformer over a convolutional tokenizer.

    The story. Patches cut from so few and so small pictures tell a transformer too little; convolutions in their place
    know already that neighbouring pixels belong together (Hassani et al. 2021, "Escaping the Big Data Paradigm with
    Compact Transformers"). Three of them leave 16 tokens, so that attention costs next to nothing and an hour is enough
    for many passes. In so short a training the network never knows the pictures by heart, and stronger augmentation than
    moving and mirroring only slows it down.

    Command: `vitral train cifar10/ --recipe cifar10_cct --out run`.

    Args:
        quick: one pass by a smaller network, to see the whole way.
    """
    return Recipe(
        name="cifar10_cct",
        model="cct_2_3x2_32" if quick else "cct_4_3x3_32",
        mean=_MEAN,
        std=_STD,
        crop_share=1.0,
        drop_path=0.0,
        epochs=1 if quick else 18,
        batch_size=128,
        learning_rate=1e-3,
        weight_decay=0.06,
        warmup_epochs=0.1 if quick else 2,
        clip=1.0,
        objective=Objective(label_smoothing=0.1),
        augment=_MOVED,
        ema=0.995,
        workers=0 if quick else None,
    )


def cifar10_cct_long(*, quick: bool = False) -> Recipe:
    """From scratch on a GPU: CCT-7/3x1, as its paper trains it.

    The story. With enough passes the compact transformer comes close to the convolutional networks: 96.5 % after 300
    epochs, 97.5 % after 1,500 and 98 % after 5,000 (Hassani et al. 2021, and the authors' repository, whose file for 300
    epochs of CCT-7/3x1 this follows). They stop mixing at epoch 175, which this does not, and draw one mixing weight for a
    batch, where here each pair has its own.

    Command: `accelerate launch -m vitral train cifar10/ --recipe cifar10_cct_long --out run`, or without `accelerate
    launch` on one GPU.

    Args:
        quick: a minute of it by a smaller network.
    """
    return Recipe(
        name="cifar10_cct_long",
        model="cct_2_3x2_32" if quick else "cct_7_3x1_32",
        mean=_MEAN,
        std=_STD,
        crop_share=1.0,
        drop_path=0.1,
        epochs=0.5 if quick else 300,
        batch_size=128,
        learning_rate=5.5e-4,
        weight_decay=6e-2,
        warmup_epochs=0.1 if quick else 10,
        final_rate=1e-5 / 5.5e-4,
        objective=Objective(label_smoothing=0.1),
        augment=Augmentation(
            crop_scale=(0.8, 1.0),
            interpolation="random",
            rand_augment=2,
            magnitude=9,
            magnitude_std=0.5,
            mixup=0.8,
            cutmix=1.0,
        ),
        precision="fp32" if quick else "bf16",
        workers=0 if quick else None,
        evaluate_every=0.5 if quick else 5,
        save_every=0.5 if quick else 10,
    )


def cifar10_vit(*, quick: bool = False) -> Recipe:
    """From scratch within an hour on two processor cores: a plain vision transformer on patches of 4x4.

    The story. The same hour for the architecture that assumes nothing: 64 tokens of 4x4 pixels, six blocks, 0.8 million
    parameters. It has to learn from the pictures what a convolution is born with, and it is slower besides, so it is well
    behind the compact transformer when the hour is over.

    Command: `vitral train cifar10/ --recipe cifar10_vit --out run`.

    Args:
        quick: a tenth of a pass by a smaller network.
    """
    return Recipe(
        name="cifar10_vit",
        model="vit_ti16",
        network={
            "patch_size": (4, 4),
            "width": 128,
            "depth": 2 if quick else 6,
            "heads": 4,
            "mlp_width": 256,
            "class_token": False,
            "prefix_positions": 0,
            "pool": "mean",
        },
        image_size=(32, 32),
        initialisation="xavier",
        mean=_MEAN,
        std=_STD,
        crop_share=1.0,
        epochs=0.1 if quick else 15,
        batch_size=128,
        learning_rate=1e-3,
        weight_decay=0.06,
        warmup_epochs=0.01 if quick else 1.5,
        clip=1.0,
        objective=Objective(label_smoothing=0.1),
        augment=_MOVED,
        ema=0.995,
        workers=0 if quick else None,
        evaluate_every=0.1 if quick else 1,
    )


def cifar10_transfer(*, quick: bool = False) -> Recipe:
    """By transfer: DeiT-Tiny, trained on ImageNet, fine-tuned on CIFAR-10 at its own resolution.

    The story. What was learnt from 1.3 million photographs carries over: the body hardly has to move (its learning rate
    falls by a quarter with each layer below the head), and a few passes are enough. DeiT's authors fine-tune at 224 pixels
    and report 99.1 % for the base size (Touvron et al. 2021, table 7). For the same from a processor, without training the
    body at all, see `vitral probe`.

    Command: `vitral train cifar10/ --recipe cifar10_transfer --model facebook/deit-tiny-patch16-224 --out run`.

    Args:
        quick: a few steps at 64 pixels, the body frozen.
    """
    return Recipe(
        name="cifar10_transfer",
        model="facebook/deit-tiny-patch16-224",
        image_size=(64, 64) if quick else None,
        epochs=0.02 if quick else 10,
        batch_size=32 if quick else 256,
        learning_rate=1e-3 if quick else 5e-4,
        weight_decay=0.05,
        layer_decay=1.0 if quick else 0.75,
        warmup_epochs=0.0 if quick else 0.5,
        frozen_depth="body" if quick else 0,
        clip=1.0,
        objective=Objective(label_smoothing=0.1),
        augment=Augmentation(crop="resized", crop_scale=(0.6, 1.0), flip=0.5),
        drop_path=0.0 if quick else 0.1,
        evaluate_every=0.02 if quick else 1,
        precision="fp32" if quick else "bf16",
        workers=0 if quick else None,
    )
