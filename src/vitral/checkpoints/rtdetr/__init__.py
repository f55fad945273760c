"""The layouts in which RT-DETRs were published."""

__all__: list[str] = []
