"""Feature pyramid: fine maps that know what the coarse ones saw.

Lin et al. 2017, "Feature Pyramid Networks for Object Detection", https://arxiv.org/abs/1612.03144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitral.layers.conv import BatchNormKind, ConvNorm

__all__ = ["FeaturePyramid", "MoreLevels"]

MoreLevels = Literal["none", "every_second", "from_pyramid", "from_backbone"]
"""Coarser maps behind the last: none; one of its every second cell (Lin et al. 2017, FPN, section 4.1); or two made by
convolutions, the first from the pyramid's last map or from the backbone's (Lin et al. 2017, RetinaNet, section 4)."""


class FeaturePyramid(nn.Module):
    """Maps of a backbone brought to one number of channels, each added to what lies above it.

    From the coarsest map to the finest: a 1 × 1 convolution of the backbone's map, plus the sum above, enlarged to its size
    by its nearest cells; of every sum a 3 × 3 convolution is given out (Lin et al. 2017, FPN, section 3, figure 3).

    Args:
        inputs: channels of the backbone's maps, from fine to coarse.
        width: channels d of the pyramid's.
        norm: what follows every convolution of the pyramid, but not those of `more`.
        more: the coarser maps.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, *, norm: BatchNormKind = "none", more: MoreLevels = "none"
    ) -> None:
        super().__init__()
        self.more = more
        self.lateral = nn.ModuleList(ConvNorm(channels, width, 1, norm=norm) for channels in inputs)
        self.smooth = nn.ModuleList(ConvNorm(width, width, 3, norm=norm) for _ in inputs)
        self.coarser: nn.ModuleList | None = None
        if more in ("from_pyramid", "from_backbone"):
            channels = width if more == "from_pyramid" else inputs[-1]
            self.coarser = nn.ModuleList(ConvNorm(one, width, 3, 2, norm="none") for one in (channels, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> tuple[Float[Tensor, "b d _ _"], ...]:
        """The pyramid's maps, from fine to coarse, with those of `more`."""
        summed = self.lateral[-1](maps[-1])
        found = [self.smooth[-1](summed)]
        for lateral, smooth, below in reversed(list(zip(self.lateral, self.smooth, maps, strict=True))[:-1]):
            above = F.interpolate(summed, size=(below.shape[2], below.shape[3]), mode="nearest")
            summed = lateral(below, above)
            found.insert(0, smooth(summed))
        if self.more == "every_second":
            found.append(F.max_pool2d(found[-1], 1, 2))
        elif self.coarser is not None:
            found.append(self.coarser[0](found[-1] if self.more == "from_pyramid" else maps[-1]))
            found.append(self.coarser[1](F.relu(found[-1])))
        return tuple(found)
