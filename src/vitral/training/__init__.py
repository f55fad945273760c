"""Training a model: `loop` is the whole of it in one visible function, on pure `schedule`s and explicit `optim` groups."""

__all__: list[str] = []
