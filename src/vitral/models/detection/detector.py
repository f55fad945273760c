"""What every detector offers, whatever its family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from vitral.base.boxes import Objects
from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.models.network import Network

__all__ = ["Detector"]


class Detector(Network):
    """A network that finds objects.

    The classes of its configuration are those of objects; "nothing", where logits have a place for it, is not counted.
    """

    tasks: ClassVar[tuple[str, ...]] = ("object-detection",)

    def usual_preprocessing(self) -> Preprocessing | None:
        """As DETR's authors do: the shorter side of the network's size, unless the longer one came to exceed its own."""
        if self.config.channels != 3:
            return super().usual_preprocessing()
        shortest, longest = sorted(self.config.image_size)
        return Preprocessing(
            resize="shortest_edge",
            size=(shortest, shortest),
            longest=longest,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    @abstractmethod
    def forward(
        self,
        pixels: Float[Tensor, "b c y x"],
        mask: Bool[Tensor, "b y x"] | None = None,
        targets: Sequence[Objects] | None = None,
    ) -> Any:
        """Look for objects.

        Args:
            pixels: prepared pictures of any sizes, filled up with zeros on the right and below to one size.
            mask: True on what was filled up; None where nothing was. It changes nothing in what is found.
            targets: what there is to be found, which some networks want to see in training; others ignore it.

        Returns:
            `logits` (b q c) and `boxes` (b q 4), cxcywh in [0, 1] of each picture without what fills it up; see `SetOutput`
            and the other kinds in `models.output`.
        """
