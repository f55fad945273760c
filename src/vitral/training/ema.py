"""An average of the weights on their way, which is often better than where they end.

Polyak and Juditsky 1992 average all of them; here those longer ago count less and less, as DeiT and nearly every
training of vision transformers has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitral.base.numbers import real_number, whole_number
from vitral.errors import CheckpointError, UsageError

__all__ = ["Ema"]


class Ema:
    """The exponential moving average of a model's weights: after each step, average ← d · average + (1 − d) · weights.

    With the warm-up, d is min(decay, (1 + s) / (10 + s)) at update s, counted from 0: the random weights of the beginning
    are soon forgotten. Buffers (statistics, tables) are copied as they are. Weights of half precision are averaged in
    single precision, in which small differences count.

    Args:
        model: the model as it starts; later calls take this one, or one with the same parameters.
        decay: how slowly the average moves, in [0, 1).
        warmup: whether it begins faster.

    Raises:
        UsageError: decay is out of its range.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        if not 0 <= real_number("decay", decay) < 1:
            raise UsageError(f"The decay of an average must be in [0, 1); {decay!r} came.")
        self.decay, self.warmup, self.updates = float(decay), warmup, 0
        self._weights = {name: _kept(one) for name, one in model.named_parameters()}
        self._buffers = {name: one.detach().clone() for name, one in model.named_buffers()}

    def decay_at(self, update: int) -> float:
        """The decay d of an update, the first being 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; call it after each step of the optimiser.

        Raises:
            UsageError: the model has other parameters.
        """
        weights, buffers = self._matched(model)
        averages = list(self._weights.values())
        if averages:
            now = [one.to(average.dtype) for one, average in zip(weights, averages, strict=True)]
            torch._foreach_lerp_(averages, now, 1 - self.decay_at(self.updates))
        for kept, buffer in zip(self._buffers.values(), buffers, strict=True):
            kept.copy_(buffer)
        self.updates += 1

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the average for its weights, to be evaluated or saved; afterwards it has its own again.

        Whatever happens inside, an exception too, the model's own weights and buffers come back to the last bit.

        Raises:
            UsageError: the model has other parameters.
        """
        weights, buffers = self._matched(model)
        own = [one.clone() for one in (*weights, *buffers)]
        try:
            self.copy_into(model)
            yield model
        finally:
            with torch.no_grad():
                weights, buffers = self._matched(model)  # anew: a module that was moved meanwhile holds other tensors
                for target, before in zip((*weights, *buffers), own, strict=True):
                    target.copy_(before)

    @torch.no_grad()
    def copy_into(self, model: nn.Module) -> None:
        """Give the model the average for its weights, for good: the end of a training.

        Raises:
            UsageError: the model has other parameters.
        """
        weights, buffers = self._matched(model)
        for targets, averages in ((weights, self._weights), (buffers, self._buffers)):
            for target, average in zip(targets, averages.values(), strict=True):
                target.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """The average and how many updates it has seen: with it, an interrupted training goes on to the same bits."""
        return {"updates": self.updates, "weights": dict(self._weights), "buffers": dict(self._buffers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; nothing changes if it does not fit.

        Raises:
            CheckpointError: it is the state of another model.
        """
        kinds = {"weights": self._weights, "buffers": self._buffers}
        for kind, own in kinds.items():
            _check_same(kind, own, state.get(kind))
        if "updates" not in state:
            raise CheckpointError("The average's state does not say how many updates it has seen.")
        self.updates = whole_number("updates of an average", state["updates"], least=0)
        for kind, own in kinds.items():
            for name, tensor in own.items():
                tensor.copy_(state[kind][name])

    def _matched(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """A model's weights and buffers in the order of the averages."""
        weights = {name: one.detach() for name, one in model.named_parameters()}
        buffers = {name: one.detach() for name, one in model.named_buffers()}
        for came, own in ((weights, self._weights), (buffers, self._buffers)):
            shapes, needed = ({name: one.shape for name, one in each.items()} for each in (came, own))
            differing = sorted(name for name in shapes.keys() | needed.keys() if shapes.get(name) != needed.get(name))
            if differing:
                raise UsageError(
                    f"The average was made of a model with other parameters; {differing[0]} and {len(differing) - 1} more "
                    "differ. Make a new Ema after changing a model."
                )
        return [weights[name] for name in self._weights], [buffers[name] for name in self._buffers]


def _kept(parameter: nn.Parameter) -> Tensor:
    """A copy in at least single precision."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def _check_same(kind: str, own: Mapping[str, Tensor], came: Any) -> None:
    """Refuse tensors of other names or shapes."""
    if not isinstance(came, Mapping) or came.keys() != own.keys():
        names = sorted(own.keys() ^ came.keys()) if isinstance(came, Mapping) else []
        raise CheckpointError(
            f"The {kind} of the average's state are those of another model"
            + (f"; {names[0]!r} is in only one of them." if names else ".")
        )
    for name, tensor in own.items():
        if came[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} of the average's state is {tuple(came[name].shape)}; expected {tuple(tensor.shape)}."
            )
