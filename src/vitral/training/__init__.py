"""Training a model: `loop` is the whole of it in one visible function, over pure schedules."""

__all__: list[str] = []
