"""Segmentation: what every pixel shows (`result`), how it is read from a network (`decode`), how it is learned (`loss`), and
how good it is (`metrics`).
"""

__all__: list[str] = []
