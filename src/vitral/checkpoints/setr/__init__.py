"""The layout in which SETR is published."""

__all__: list[str] = []
