"""The command line. Only here is anything printed, and only here does a program end.

`main` holds the commands with their options and imports nothing heavy, so that help appears at once; each command opens
its own page: `predict`, `models`, `demo`. `show` is what a terminal sees, `folder` what is left on disk.
"""

__all__: list[str] = []
