"""What to do with a folder of pictures when no recipe was named: it depends on where the model comes from."""

from __future__ import annotations

from vitral.data.augment.chain import Augmentation
from vitral.tasks.classification.loss import Objective
from vitral.training.recipe import Recipe

__all__ = ["finetune", "scratch"]


def finetune(*, quick: bool = False) -> Recipe:
    """A checkpoint learns other classes: what suits a vision transformer and some hundred to some ten thousand pictures.

    The story. The lower layers know about pictures already and move less, by a factor of 0.75 a layer (BEiT, Bao et al.
    2022, appendix H); crops are milder than in pre-training, since a few pictures must not be lost.

    Command: `vitral train photos/ --model facebook/deit-small-patch16-224 --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="finetune",
        model="facebook/deit-small-patch16-224",
        epochs=1 if quick else 20,
        batch_size=64,
        learning_rate=5e-4,
        weight_decay=0.05,
        layer_decay=0.75,
        warmup_epochs=0.1 if quick else 2,
        clip=1.0,
        objective=Objective(label_smoothing=0.1),
        drop_path=0.1,
        augment=Augmentation(crop_scale=(0.4, 1.0), brightness=0.2, contrast=0.2, saturation=0.2),
        workers=0 if quick else None,
    )


def scratch(*, quick: bool = False) -> Recipe:
    """A network of the catalogue learns from nothing but your pictures.

    The story. DeiT's choices (Touvron et al. 2021, table 9) in a milder form, for sets smaller than ImageNet. A few hundred
    pictures are not enough for a transformer that starts from nothing; fine-tune a checkpoint if there is one.

    Command: `vitral train photos/ --model cct_7_7x2_224 --out run`.

    Args:
        quick: one epoch, to see the whole way.
    """
    return Recipe(
        name="scratch",
        model="cct_7_7x2_224",
        epochs=1 if quick else 100,
        batch_size=64,
        learning_rate=5e-4,
        weight_decay=0.05,
        warmup_epochs=0.1 if quick else 5,
        clip=1.0,
        objective=Objective(label_smoothing=0.1),
        drop_path=0.1,
        augment=Augmentation(crop_scale=(0.25, 1.0), rand_augment=2, magnitude=7, mixup=0.2, cutmix=0.5),
        ema=0.999,
        workers=0 if quick else None,
    )
