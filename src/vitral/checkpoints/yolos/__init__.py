"""The layouts of YOLOS."""

__all__: list[str] = []
