"""What a training changes: the weights, their moving average and the optimiser's memory, to be saved as one thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitral.models.network import Network
from vitral.training.ema import Ema
from vitral.training.optim import build_optimizer, freeze, parameter_groups, training_mode
from vitral.training.recipe import Recipe

__all__ = ["Learner"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """A model in training.

    Attributes:
        model: the network.
        optimizer: over its parameters that are not frozen.
        average: the moving average of its weights, or None.
        clip: the largest norm of the gradient.
    """

    model: Network
    optimizer: torch.optim.Optimizer
    average: Ema | None
    clip: float

    @classmethod
    def of(cls, model: Network, recipe: Recipe) -> Learner:
        """A model, on its device, as a recipe trains it."""
        freeze(model, model.depth + 1 if recipe.frozen_depth == "body" else recipe.frozen_depth)
        groups = parameter_groups(
            model, recipe.weight_decay, layer_decay=recipe.layer_decay, backbone_rate=recipe.backbone_rate
        )
        optimizer = build_optimizer(
            recipe.optimizer,
            groups,
            learning_rate=recipe.learning_rate,
            momentum=recipe.momentum,
            betas=(recipe.momentum, recipe.beta2),
        )
        average = Ema(model, recipe.ema) if recipe.ema is not None else None
        return cls(model=model, optimizer=optimizer, average=average, clip=recipe.clip or float("inf"))

    def gradient_norm(self) -> float:
        """The norm of the whole gradient, which is then clipped."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return float(nn.utils.clip_grad_norm_(trained, self.clip))

    def step(self, learning_rate: float) -> None:
        """Go down the gradient; each group by its own share of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """While this lasts the model holds the weights it is judged and kept by, in evaluation mode."""
        self.model.eval()
        with self.average.averaged(self.model) if self.average is not None else nullcontext():
            yield
        training_mode(self.model)

    def settle(self) -> None:
        """The end: the model keeps the weights it is judged by, in evaluation mode."""
        self.model.eval()
        if self.average is not None:
            self.average.copy_into(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All tensors and numbers that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
