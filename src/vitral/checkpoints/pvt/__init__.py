"""The layouts in which pyramid vision transformers (PVTv2) are published, one page each."""

__all__: list[str] = []
