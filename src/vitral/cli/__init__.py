"""The command line. Only here is anything printed, and only here does a program end."""

__all__: list[str] = []
