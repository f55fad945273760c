"""`python -m vitral`: the command line, for when the script `vitral` is not on the PATH."""

from __future__ import annotations

from vitral.cli.main import run

__all__: list[str] = []

if __name__ == "__main__":
    run()
