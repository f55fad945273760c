"""Layouts of convolutional networks: torchvision's, timm's and transformers'."""

__all__: list[str] = []
