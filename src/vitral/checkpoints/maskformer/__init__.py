"""The layout of MaskFormer."""

__all__: list[str] = []
