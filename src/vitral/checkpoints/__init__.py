"""Checkpoints: how a foreign file becomes one of our models, and one of our models a foreign file."""

__all__: list[str] = []
