"""The layout of Mask2Former."""

__all__: list[str] = []
