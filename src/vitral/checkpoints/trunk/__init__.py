"""Layouts of the backbones within segmenters."""

__all__: list[str] = []
