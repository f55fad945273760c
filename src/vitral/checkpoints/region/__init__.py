"""Layouts of detectors of regions, anchors and points: torchvision's."""

__all__: list[str] = []
