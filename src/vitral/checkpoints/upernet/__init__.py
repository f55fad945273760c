"""Layouts of UPerNet."""

__all__: list[str] = []
