"""Pipelines: the corridor from a picture to an answer, and what wraps it: streams, batches, files."""

__all__: list[str] = []
