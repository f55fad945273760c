"""The layout in which TransUNet is published."""

__all__: list[str] = []
