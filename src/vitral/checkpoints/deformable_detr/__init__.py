"""The layouts in which Deformable DETRs were published."""

__all__: list[str] = []
