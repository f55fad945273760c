"""Segmenters: networks that say of every pixel what it shows, or draw the mask of every object."""

__all__: list[str] = []
