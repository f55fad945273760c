"""Trainings that were run, each a Python function with its story: source, command, duration and what to expect."""

__all__: list[str] = []
