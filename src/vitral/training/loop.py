"""Training in one visible function, for sets of pictures that fit in memory.

```
for each epoch:                        the order of the samples is a function of (seed, epoch)
    for each batch:                    the learning rate is a function of the step
        augment → model → loss → gradients → AdamW
```
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitral.errors import TrainingError, UsageError
from vitral.training.optim import parameter_groups
from vitral.training.schedule import warmup_cosine

__all__ = ["Augment", "Epoch", "History", "evaluate", "fit", "order_of"]

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From a batch (b, c, y, x) and the generator to draw from to a new batch of the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One pass over the pictures.

    Attributes:
        number: which one, from 1.
        epochs: how many there will be.
        loss: the training loss, averaged over the samples as they were seen.
        learning_rate: the learning rate of its last step.
        seconds: how long it took.
        held_out: the accuracy on pictures not trained on, in [0, 1], where there are any.
    """

    number: int
    epochs: int
    loss: float
    learning_rate: float
    seconds: float
    held_out: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """What happened in a training, epoch by epoch."""

    epochs: tuple[Epoch, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean training loss of each epoch."""
        return tuple(epoch.loss for epoch in self.epochs)

    @property
    def seconds(self) -> float:
        """How long the training took."""
        return sum(epoch.seconds for epoch in self.epochs)


def fit(
    model: nn.Module,
    pixels: Float[Tensor, "n c y x"],
    targets: Int[Tensor, " n"],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    held_out: tuple[Tensor, Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train a classifier in place, with AdamW, warm-up and a cosine.

    The same model, data and seed give the same weights to the bit on one machine: every random choice, the model's own
    dropout included, is drawn from (seed, epoch). The caller's random state is left as it was.

    Args:
        model: called as `model(pixels)`; the result's `.logits` are (b, classes). Left on `device`, in eval mode.
        pixels: the pictures, as the model takes them (normalised).
        targets: the class of each picture, from 0.
        epochs: how often every picture is seen.
        batch_size: pictures to a step; the last step of an epoch takes what is left.
        learning_rate: the peak, reached at the end of the warm-up.
        weight_decay: AdamW's decay, on matrices only (see `parameter_groups`).
        warmup: the share of all steps over which the learning rate rises, in [0, 1).
        label_smoothing: how much of each target is spread evenly over the classes, in [0, 1).
        augment: changes each batch before the model sees it.
        seed: fixes the order of the pictures, the augmentation and the model's own randomness.
        device: where to train.
        held_out: pictures and classes to be measured on after each epoch; nothing is chosen by them.
        on_epoch: called after each epoch.

    Raises:
        UsageError: an option or the data make no sense.
        TrainingError: the loss is not a finite number; the weights are those before the step that failed.
    """
    _check(pixels, targets, epochs=epochs, batch_size=batch_size, warmup=warmup)
    device = torch.device(device)
    model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, fused=True)
    steps = epochs * math.ceil(len(pixels) / batch_size)
    warmup_steps = round(warmup * steps)
    step, history = 0, []

    for number in range(1, epochs + 1):
        started, total = time.perf_counter(), 0.0
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_mixed(seed, number, 1))
            generator = torch.Generator().manual_seed(_mixed(seed, number, 2))
            model.train()
            for batch in order_of(len(pixels), seed=seed, epoch=number).split(batch_size):
                rate = learning_rate * warmup_cosine(step, steps=steps, warmup_steps=warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                seen = pixels[batch] if augment is None else augment(pixels[batch], generator)
                logits = model(seen.to(device)).logits
                loss = F.cross_entropy(logits, targets[batch].to(device), label_smoothing=label_smoothing)
                if not math.isfinite(loss.item()):
                    model.eval()
                    raise TrainingError(
                        f"The loss became {loss.item()} at step {step + 1} of {steps} (epoch {number}, learning rate "
                        f"{rate:.2g}). Lower the learning rate, lengthen the warm-up, or look for pixels that are not "
                        "finite numbers."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step, total = step + 1, total + loss.item() * len(batch)

        model.eval()
        seconds = time.perf_counter() - started
        accuracy = None if held_out is None else evaluate(model, *held_out, device=device)
        mean_loss = total / len(pixels)
        history.append(
            Epoch(number=number, epochs=epochs, loss=mean_loss, learning_rate=rate, seconds=seconds, held_out=accuracy)
        )
        if on_epoch is not None:
            on_epoch(history[-1])
    return History(tuple(history))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    pixels: Float[Tensor, "n c y x"],
    targets: Int[Tensor, " n"],
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> float:
    """The share of pictures whose likeliest class is the right one, in [0, 1]. The model is left in eval mode."""
    _check(pixels, targets, batch_size=batch_size)
    model.to(device).eval()
    right = 0
    for seen, wanted in zip(pixels.split(batch_size), targets.split(batch_size), strict=True):
        right += int((model(seen.to(device)).logits.argmax(-1).cpu() == wanted.cpu()).sum())
    return right / len(pixels)


def order_of(count: int, *, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """The order in which an epoch visits `count` samples: a permutation of their indices, a pure function."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(seed, epoch, 0)))


def _mixed(*parts: int) -> int:
    """One seed from several numbers, each choice of numbers a stream of its own (numpy's SeedSequence hashes them)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def _check(pixels: Tensor, targets: Tensor, *, epochs: int = 1, batch_size: int = 1, warmup: float = 0.0) -> None:
    """Refuse what could only fail later, or silently do nothing."""
    if len(pixels) == 0 or len(pixels) != len(targets):
        raise UsageError(
            f"There are {len(pixels)} pictures and {len(targets)} targets; give one target to each of the pictures."
        )
    if epochs < 1 or batch_size < 1:
        raise UsageError(f"Got {epochs=} and {batch_size=}; both count something and must be 1 or more.")
    if not 0 <= warmup < 1:
        raise UsageError(f"Got {warmup=}, which is the share of the steps that rise; give a number in [0, 1).")
