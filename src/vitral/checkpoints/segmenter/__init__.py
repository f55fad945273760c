"""The layouts in which Segmenter is published, one page each."""

__all__: list[str] = []
