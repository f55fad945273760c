"""The layouts of DETR."""

__all__: list[str] = []
