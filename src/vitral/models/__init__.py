"""Models: one architecture, one page; each knows layers, and knows no task and no file format."""

__all__: list[str] = []
