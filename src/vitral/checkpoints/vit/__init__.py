"""The family of the vision transformer: one page per published layout."""

__all__: list[str] = []
