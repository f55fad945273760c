"""From a picture to a tensor, and from a folder or a published set to samples. Nothing here knows a network."""

__all__: list[str] = []
