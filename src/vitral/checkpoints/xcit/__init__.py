"""The layouts in which cross-covariance transformers (XCiT) are published, one page each."""

__all__: list[str] = []
