"""Tasks: what an answer means. From a model's output to a result that knows its picture."""

__all__: list[str] = []
