"""Training throughput: Vitral's loop beside timm's reference loop, the same network, pictures, batch and augmentation.

timm's is the loop of its train.py, by its own parts: ImageFolder, create_transform, create_loader, Mixup,
create_optimizer_v2, its schedule stepped per update, and its meters, which read the loss of every step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_loader
from timm.data.dataset import ImageDataset
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter

from vitral.data.augment.chain import Augmentation
from vitral.data.splits import read_pictures
from vitral.models.catalogue import create_model
from vitral.training.classification import ClassificationSubject
from vitral.training.loop import fit
from vitral.training.recipe import Recipe
from vitral.training.start import model_for

__all__ = ["train"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES: dict[str, dict[str, Any]] = {
    "CCT 4/3x3 at 32, batch 128, crop and flip": {
        "model": "cct_4_3x3_32",
        "size": 32,
        "stored": 32,
        "batch": 128,
        "steps": 12,
        "rand_augment": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
    },
    "CCT 4/3x3 at 32, batch 128, DeiT's augmentation": {
        "model": "cct_4_3x3_32",
        "size": 32,
        "stored": 32,
        "batch": 128,
        "steps": 12,
        "rand_augment": 2,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "ViT-Ti/16 at 224, batch 16, DeiT's augmentation": {
        "model": "vit_ti16",
        "size": 224,
        "stored": 375,
        "batch": 16,
        "steps": 6,
        "rand_augment": 2,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}


def train(quick: bool) -> dict[str, object]:
    """Pictures per second of both loops, without and with a worker process that reads."""
    rounds = 2 if quick else 7
    found: dict[str, object] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pictures = _pictures(Path(folder), case["stored"], 4 * case["batch"])
            for workers in (0, 1):
                rates: dict[str, list[float]] = {"vitral": [], "timm": []}
                loops: dict[str, Callable[..., float]] = {"vitral": _vitral, "timm": _timm}
                for turn in range(rounds):
                    for loop in list(loops)[:: 1 if turn % 2 else -1]:
                        rates[loop].append(loops[loop](pictures, case, workers))
                medians = {loop: float(np.median(values)) for loop, values in rates.items()}
                found[f"{name}, {workers} workers"] = {
                    "pictures per second": medians,
                    "vitral / timm": medians["vitral"] / medians["timm"],
                }
    return found


def _pictures(folder: Path, side: int, count: int) -> Path:
    """Smooth noise as JPEG, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        home = folder / f"class{number % 2}"
        home.mkdir(exist_ok=True)
        small.resize((side * 4 // 3 if side > 32 else side, side), Image.Resampling.BICUBIC).save(home / f"{number}.jpg")
    return folder


def _vitral(folder: Path, case: dict[str, Any], workers: int) -> float:
    pictures = read_pictures(folder)
    rich = case["rand_augment"] > 0
    recipe = Recipe(
        model=case["model"],
        mean=MEAN,
        std=STD,
        epochs=case["steps"] * case["batch"] / len(pictures),
        batch_size=case["batch"],
        warmup_epochs=0,
        augment=Augmentation(
            rand_augment=case["rand_augment"],
            magnitude_std=0.0,
            operation_probability=0.5,
            erase=0.25 if rich else 0.0,
            mixup=case["mixup"],
            cutmix=case["cutmix"],
            interpolation="bicubic",
        ),
        workers=workers,
    )
    marks: list[float] = []
    subject = ClassificationSubject(pictures, recipe)
    fit(model_for(recipe, pictures.classes), subject, recipe, watch=lambda _: marks.append(time.perf_counter()))
    return _rate(marks[: case["steps"]], case["batch"])


def _timm(folder: Path, case: dict[str, Any], workers: int) -> float:
    rich, batch = case["rand_augment"] > 0, case["batch"]
    model: Any = create_model(case["model"], num_classes=2).train()
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=2) if rich else None
    loss_of = SoftTargetCrossEntropy() if rich else torch.nn.CrossEntropyLoss()
    loader = create_loader(
        ImageDataset(str(folder)),
        input_size=(3, case["size"], case["size"]),
        batch_size=batch,
        is_training=True,
        use_prefetcher=False,
        re_prob=0.25 if rich else 0.0,
        re_mode="pixel" if rich else "const",
        auto_augment="rand-m9-inc1" if rich else None,  # with a deviation it may keep 0 bits, which Pillow refuses
        color_jitter=None,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=10, updates_per_epoch=len(loader), step_on_epochs=False)
    losses, marks, updates = AverageMeter(), [], 0
    while updates < case["steps"]:
        for pixels, targets in loader:
            if mixup is not None:
                pixels, targets = mixup(pixels, targets)
            loss = loss_of(model(pixels).logits, targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)  # both know the norm of the gradient
            optimizer.step()
            losses.update(loss.item(), len(pixels))
            updates += 1
            scheduler.step_update(num_updates=updates, metric=losses.avg)
            marks.append(time.perf_counter())
            if updates == case["steps"]:
                break
    return _rate(marks, batch)


def _rate(marks: list[float], batch: int) -> float:
    """Pictures per second from the second step on; the first one pays for the start."""
    return batch * (len(marks) - 1) / (marks[-1] - marks[0])
