"""Backbones: networks that turn a picture into tokens or feature maps."""

__all__: list[str] = []
