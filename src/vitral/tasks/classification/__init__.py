"""Image classification: what the answer is (`result`), how it is learned (`loss`), and how good it is (`metrics`)."""

__all__: list[str] = []
