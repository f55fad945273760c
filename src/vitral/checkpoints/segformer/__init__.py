"""The layouts in which SegFormer and its encoder, the Mix Transformer, are published, one page each."""

__all__: list[str] = []
