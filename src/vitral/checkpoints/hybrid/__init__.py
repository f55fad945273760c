"""The layouts in which hybrids of convolutions and a vision transformer are published, one page each."""

__all__: list[str] = []
