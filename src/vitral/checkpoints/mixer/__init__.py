"""The layouts in which MLP-Mixers are published, one page each."""

__all__: list[str] = []
