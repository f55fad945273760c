"""Layers: the parts models are made of, each written once."""

__all__: list[str] = []
