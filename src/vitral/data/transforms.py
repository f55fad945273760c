"""From a picture to a model's input, exactly as the published preprocessings do it, and the way back.

Two resizers are in use in the field, both antialiased and on 8-bit values. Pillow's is what timm and torchvision apply to
a Pillow image; PyTorch's is what transformers applies, since its processors work on tensors. They differ by a level of
255 here and there, which a classifier's scores show in the third digit. A checkpoint's layout says which was meant.

The rules for sizes are copied with their roundings, because a crop moved by one pixel is a different input:

- "shortest_edge" with a square size: torchvision.transforms.functional._compute_resized_output_size, which truncates;
  with another size: timm.data.transforms.ResizeKeepRatio, which rounds. With a longest side, as detectors have it:
  transformers.image_transforms.get_size_with_aspect_ratio, and YOLOS's variant of it, or what
  torchvision.models.detection.transform.GeneralizedRCNNTransform does.
- crops: transformers takes the floor of half the margin, torchvision and timm round it, halves to even.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor

from vitral.base.config import check_choices
from vitral.base.frame import Frame
from vitral.base.image import MAX_PIXELS, Picture
from vitral.errors import PictureError, UsageError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INCEPTION_MEAN",
    "INCEPTION_STD",
    "CropRounding",
    "Interpolation",
    "Preprocessing",
    "Resize",
    "Resizer",
    "Rounding",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = (0.5, 0.5, 0.5)
INCEPTION_STD = (0.5, 0.5, 0.5)

Resize = Literal["exact", "shortest_edge", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
CropRounding = Literal["floor", "round"]
Rounding = Literal["down", "up"]
Resizer = Literal["pillow", "torch", "torch_float", "torch_plain"]

# What PyTorch resizes as Pillow would, antialiased; the other filters are always Pillow's.
_SHARED_FILTERS = ("bilinear", "bicubic", "lanczos")

# A JPEG read at a fraction of its size is still this many times the size it is resized to. Measured on 63 photographs
# (COCO, 4:2:0), fraction 1/2 and 1/4, bilinear and bicubic, against decoding them whole: 0.2 levels of 255 apart on
# average, and not more than one level in 99.4 % of the values; at edges of saturated colour, up to 12 levels.
_ENOUGH = 5


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a model's input: resized, cropped in the middle, scaled, normalised.

        input = (pixel * scale - mean) / std

    Args:
        resize: "exact" to `size` whatever the shape; "shortest_edge" keeps the shape and just covers `size`; "none".
        size: (height, width) to resize to, in pixels. Both are the edge's length where the published rule has one.
        longest: where the longer side would become longer than this, in pixels, it becomes this, and the shorter one
            follows; None for no limit. For "shortest_edge" with a square size.
        multiple: pixels of which both sides are made a multiple; with `longest` only.
        rounding: "down" takes what is left over at the end of a side off it, as YOLOS does; "up" makes it a whole one, as
            MaskFormer does. Either way the picture is resized to that size, its shape changing a little.
        crop: (height, width) cut out of the middle, in pixels; black is added where the picture is smaller. None: no
            crop.
        crop_rounding: where an odd margin goes. "floor": the smaller half to the top and left, as transformers does;
            "round": halves go to the even neighbour, as torchvision and timm do. Margins to be added follow one rule in
            all of them: the smaller half to the top and left.
        interpolation: the filter, by Pillow's name for it.
        resizer: whose implementation of it; "torch_float" does not round what it resized to whole levels, and "torch_plain",
            of torchvision's detectors, does not antialias either, and rounds down the sides that `longest` allows.
        mean: per channel, in the units of the scaled pixels; three for RGB, one for a model that sees grey.
        std: per channel, likewise.
        scale: what 0..255 is multiplied with before normalising.

    Raises:
        UsageError: a field out of its range.
    """

    resize: Resize = "exact"
    size: tuple[int, int] = (224, 224)
    longest: int | None = None
    multiple: int = 1
    rounding: Rounding = "down"
    crop: tuple[int, int] | None = None
    crop_rounding: CropRounding = "floor"
    interpolation: Interpolation = "bilinear"
    resizer: Resizer = "pillow"
    mean: tuple[float, ...] = INCEPTION_MEAN
    std: tuple[float, ...] = INCEPTION_STD
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        check_choices(self)
        for field, pair in (("size", self.size), ("crop", self.crop or (1, 1))):
            if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
                raise UsageError(f"{field} of a Preprocessing must be (height, width) in whole pixels, but is {pair!r}.")
        if self.longest is not None and (self.resize != "shortest_edge" or self.size[0] != self.size[1]):
            raise UsageError(
                f"longest={self.longest} of a Preprocessing goes with resize='shortest_edge' and one length for both sides; "
                f"resize={self.resize!r} and size={self.size} came."
            )
        if self.resizer == "torch_plain" and self.interpolation not in ("bilinear", "bicubic"):
            raise UsageError(
                f"resizer='torch_plain' goes with bilinear or bicubic interpolation; {self.interpolation} came."
            )
        if self.longest is not None and self.longest < self.size[0]:
            raise UsageError(f"The longest side, {self.longest} pixels, is shorter than the shortest, {self.size[0]}.")
        if self.multiple < 1 or (self.multiple > 1 and self.longest is None):
            raise UsageError(
                f"multiple of a Preprocessing is a number of pixels from 1, and goes with longest; {self.multiple} came."
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(
                "mean and std of a Preprocessing must both have three values (RGB) or one (grey), but have "
                f"{len(self.mean)} and {len(self.std)}."
            )
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))) or min(*self.std, self.scale) <= 0:
            raise UsageError(
                "mean, std and scale of a Preprocessing must be finite, std and scale positive, but are "
                f"{self.mean}, {self.std} and {self.scale}."
            )

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(height, width) of every input; None if it depends on the picture."""
        return self.crop or (self.size if self.resize == "exact" else None)

    @property
    def reading_size(self) -> tuple[int, int] | None:
        """What to pass as `at_least` to `read_picture` for speed; None where the whole picture is needed.

        Inputs then differ from those of the picture decoded whole, by 0.2 levels of 255 on average. Read it whole
        where the input must equal the peers' to the last bit.
        """
        if self.resize == "none" or self.interpolation == "nearest" or self.resizer == "torch_plain":
            return None
        return self.size[0] * _ENOUGH, self.size[1] * _ENOUGH

    @property
    def black(self) -> Float[Tensor, "c 1 1"]:
        """The input of a black pixel."""
        mean, std = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1)
        return -mean / std

    def __call__(self, picture: Picture) -> tuple[Float[Tensor, "c y x"], Frame]:
        """The model's input, and the way from its coordinates back to the picture's.

        Raises:
            PictureError: a picture so long and thin that resizing its shorter side would fill the memory.
            UsageError: a picture read at reduced size, where `resize` is "none".
        """
        height, width = self._resized_size(picture)
        pixels = self._resized(picture, height, width)
        top = left = 0
        if self.crop is not None:
            top, left = self._corner(height, self.crop[0]), self._corner(width, self.crop[1])
            pixels = _cut(pixels, top, left, *self.crop)
        frame = Frame(
            picture=picture.size,
            input=(pixels.shape[1], pixels.shape[2]),
            scale=(height / picture.size[0], width / picture.size[1]),
            offset=(float(top), float(left)),
        )
        mean, std = torch.tensor([self.mean, self.std]).view(2, -1, 1, 1)
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(self.scale).sub_(mean).div_(std), frame

    def batch(self, pictures: Iterable[Picture]) -> tuple[Float[Tensor, "b c y x"], list[Frame]]:
        """The inputs of several pictures, stacked, and the way back for each.

        Raises:
            PictureError: as for one picture.
            UsageError: no pictures, or inputs of different sizes.
        """
        inputs, frames = [], []
        for picture in pictures:
            pixels, frame = self(picture)
            inputs.append(pixels)
            frames.append(frame)
        sizes = {frame.input for frame in frames}
        if len(sizes) != 1:
            came = "none" if not sizes else f"inputs of sizes {', '.join(map(str, sorted(sizes)))}"
            raise UsageError(f"A batch needs pictures whose inputs are of one size, but got {came}. Set `crop`.")
        return torch.stack(inputs), frames

    def _resized_size(self, picture: Picture) -> tuple[int, int]:
        """(height, width) after resizing."""
        height, width = picture.size
        if self.resize == "none":
            if picture.reduced:
                raise UsageError(f"{picture.name} was read at reduced size. Read it without `at_least`.")
            return height, width
        if self.resize == "exact":
            return self.size
        if self.longest is not None:
            resized = self._limited_size(height, width, self.longest)
        elif self.size[0] == self.size[1]:
            long = int(self.size[0] * max(height, width) / min(height, width))
            resized = (self.size[0], long) if height <= width else (long, self.size[0])
        else:
            ratio = min(height / self.size[0], width / self.size[1])
            resized = round(height / ratio), round(width / ratio)
        if not all(resized):
            raise PictureError(
                picture.name,
                f"It is so long and thin ({height} x {width} pixels) that with a longer side of {self.longest} pixels "
                "nothing would be left of the shorter one. Crop it first.",
            )
        if resized[0] * resized[1] > MAX_PIXELS:
            raise PictureError(
                picture.name,
                f"It is so long and thin ({height} x {width} pixels) that covering {self.size} would take "
                f"{resized[0]} x {resized[1]}. Crop it first.",
            )
        return resized

    def _limited_size(self, height: int, width: int, longest: int) -> tuple[int, int]:
        """(height, width) after resizing, as detectors have it: the shorter side first, unless the longer gets too long."""
        short, long = min(height, width), max(height, width)
        if self.resizer == "torch_plain":
            scale = min(self.size[0] / short, longest / long)
            return self._whole(int(height * scale)), self._whole(int(width * scale))
        edge: float = self.size[0]
        if long / short * edge > longest:
            edge = longest * short / long  # not whole; the longer side follows from it as it is
        whole = round(edge)
        # YOLOS's rule does not ask a portrait whether it is of the right size already.
        if short == whole and (height <= width or self.multiple == 1 or self.rounding == "up"):
            resized = height, width
        elif width < height:
            resized = int(edge * height / width), whole
        else:
            resized = whole, int(edge * width / height)
        return self._whole(resized[0]), self._whole(resized[1])

    def _whole(self, side: int) -> int:
        """A side made a multiple of what it is to be one of."""
        return (-(-side // self.multiple) if self.rounding == "up" else side // self.multiple) * self.multiple

    def _corner(self, length: int, crop: int) -> int:
        """Where along one side a crop begins; negative where black is added."""
        if length < crop:
            return -((crop - length) // 2)
        margin = length - crop
        return margin // 2 if self.crop_rounding == "floor" else round(margin / 2)

    def _resized(self, picture: Picture, height: int, width: int) -> Num[Tensor, "c y x"]:
        """The picture's pixels at another size, from 0 to 255."""
        image = picture.image if len(self.mean) == 3 else picture.image.convert("L")
        whole = picture.box is None or picture.box == (0, 0, *image.size)
        by_torch = self.resizer != "pillow" and self.interpolation in _SHARED_FILTERS and whole
        if self.resize != "none" and not by_torch:
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()], picture.box)
        pixels = torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)
        if pixels.shape[1:] == (height, width):
            return pixels
        if self.resizer in ("torch_float", "torch_plain"):
            pixels = pixels.float()
        soft = self.resizer != "torch_plain"
        sized = F.interpolate(pixels[None], (height, width), mode=self.interpolation, align_corners=False, antialias=soft)
        return sized[0]


def _cut(pixels: Num[Tensor, "c y x"], top: int, left: int, height: int, width: int) -> Num[Tensor, "c v u"]:
    """A window of the pixels, black where it reaches beyond them."""
    beyond = (-min(left, 0), max(left + width - pixels.shape[2], 0), -min(top, 0), max(top + height - pixels.shape[1], 0))
    if any(beyond):
        pixels = F.pad(pixels, beyond)
    top, left = max(top, 0), max(left, 0)
    return pixels[:, top : top + height, left : left + width]
