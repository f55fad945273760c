"""Looking inside a network: what it attends to, what its answer rests on, and whether that is true."""

__all__: list[str] = []
