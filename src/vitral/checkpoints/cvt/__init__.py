"""The layouts in which convolutional vision transformers (CvT) are published, one page each."""

__all__: list[str] = []
