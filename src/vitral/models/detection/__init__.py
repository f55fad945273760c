"""Detectors: networks that find objects in a picture."""

__all__: list[str] = []
