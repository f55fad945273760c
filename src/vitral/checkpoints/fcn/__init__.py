"""Layouts of fully convolutional networks."""

__all__: list[str] = []
