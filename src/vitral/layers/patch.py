"""A picture cut into patches, each patch a token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vitral.errors import UsageError

__all__ = ["PatchEmbedding"]


class PatchEmbedding(nn.Module):
    """Cut a picture into non-overlapping patches and project each linearly (Dosovitskiy et al. 2021, equation 1).

    One rule for sizes that the patch does not divide: whole patches are taken from the top left, and the remainder at
    the bottom and at the right (less than one patch) is left out. This is what a strided convolution does.

    Args:
        channels: channels c of a picture.
        width: channels d of a token.
        patch_size: height and width of a patch in pixels.
        bias: whether the projection has a bias (models that normalise right after it have none).
    """

    def __init__(self, channels: int, width: int, patch_size: tuple[int, int], *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, pixels: Float[Tensor, "b c y x"]) -> tuple[Float[Tensor, "b p d"], tuple[int, int]]:
        """Tokens in reading order (row by row from the top left) and their grid (rows i, columns j).

        Raises:
            UsageError: the channels are not the model's, or the picture is smaller than one patch.
        """
        _, channels, height, width = pixels.shape
        if channels != self.projection.in_channels:
            raise UsageError(f"The model takes pictures of {self.projection.in_channels} channels; {channels} came.")
        if height < self.patch_size[0] or width < self.patch_size[1]:
            raise UsageError(
                f"A picture of {height}×{width} pixels is smaller than one patch of "
                f"{self.patch_size[0]}×{self.patch_size[1]}. Enlarge it first."
            )
        patches = self.projection(pixels)
        return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])
