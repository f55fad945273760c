"""The layouts in which compact transformers (CCT, CVT) are published, one page each."""

__all__: list[str] = []
