"""Layouts of U-Nets."""

__all__: list[str] = []
