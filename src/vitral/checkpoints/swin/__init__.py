"""The layouts in which Swin Transformers are published, one page each."""

__all__: list[str] = []
