"""What every segmenter offers: of pixels, or of masks by query."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, cast

from jaxtyping import Bool, Float
from torch import Tensor

from vitral.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitral.errors import UsageError
from vitral.models.network import Network
from vitral.models.output import MapOutput, MaskOutput

__all__ = ["MapNetwork", "MaskNetwork"]


class _Segmenter(Network):
    """What both kinds share."""

    tasks: ClassVar[tuple[str, ...]] = ("image-segmentation",)

    def usual_preprocessing(self) -> Preprocessing | None:
        """The whole picture at the network's size, normalised as ImageNet's are."""
        if self.config.channels != 3:
            return super().usual_preprocessing()
        return Preprocessing(
            resize="exact",
            size=self.config.image_size,
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def reset_head(self, num_classes: int) -> None:
        """Put fresh, small random layers for `num_classes` classes in place of those whose size hangs on their number.

        Raises:
            UsageError: no classes; a segmenter has one at least.
        """
        if num_classes < 1:
            raise UsageError(f"A segmenter has one class or more; {num_classes} came.")
        self.config = replace(cast(Any, self.config), num_classes=num_classes)
        self.record = replace(self.record, labels=())
        self._fresh_head()

    def _fresh_head(self) -> None:
        """Make the layers whose size hangs on the configuration's number of classes anew, where the present ones lie."""
        raise NotImplementedError


class MapNetwork(_Segmenter):
    """A network that says of every cell of a map which class it shows; the classes exclude each other."""

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "b c y x"]) -> MapOutput:
        """Classes of places.

        Args:
            pixels: prepared pictures of any one size.
        """


class MaskNetwork(_Segmenter):
    """A network whose queries draw a mask each and say what it shows (Cheng et al. 2021, MaskFormer).

    The classes of its configuration are those of things and stuff; "nothing", the last logit, is not counted.
    """

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "b c y x"], mask: Bool[Tensor, "b y x"] | None = None) -> MaskOutput:
        """Classes and masks of queries.

        Args:
            pixels: prepared pictures of any sizes, filled up with zeros on the right and below to one size.
            mask: True on what was filled up; None where nothing was.
        """
