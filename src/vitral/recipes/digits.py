"""A small vision transformer for handwritten digits: a whole training in less than a minute on a CPU.

The story. The pictures are 8x8 and grey, so a patch is 2x2 and a picture 16 tokens; everything else is the transformer
of the ViT paper (Dosovitskiy et al. 2021) at width 64, its classifier reading the mean of the tokens. With 1,438
pictures to learn from it would soon know them by heart, so each is moved and turned a little every time it is seen, and
the targets are smoothed (DeiT, Touvron et al. 2021, table 9, does both on a larger scale).
"""

from __future__ import annotations

from vitral.data.augment.chain import Augmentation
from vitral.tasks.classification.loss import Objective
from vitral.training.recipe import Recipe

__all__ = ["digits"]


def digits(*, quick: bool = False) -> Recipe:
    """The digits that come with scikit-learn, by a transformer of 136 thousand parameters.

    Command: `vitral train digits --recipe digits`, or `vitral demo`.

    Args:
        quick: a few seconds instead: fewer passes over pictures left as they are.
    """
    still = Augmentation(crop="none", flip=0.0)
    return Recipe(
        name="digits",
        model="vit_ti16",
        network={
            "patch_size": (2, 2),
            "channels": 1,
            "width": 64,
            "depth": 4,
            "heads": 4,
            "mlp_width": 128,
            "class_token": False,
            "prefix_positions": 0,
            "pool": "mean",
        },
        image_size=(8, 8),
        initialisation="xavier",
        mean=(0.305,),
        std=(0.376,),
        filter="box",
        drop_path=0.15,
        epochs=8 if quick else 50,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.2,
        warmup_epochs=0.8 if quick else 5,
        objective=Objective(label_smoothing=0.1),
        augment=still if quick else Augmentation(crop="none", flip=0.0, shift=0.5 / 8, turn=5.0, fill="black"),
        workers=0,
        evaluate_every=2 if quick else 5,
        save_every=10,
    )
