"""The `evergrad` command; says what to install where the command line's packages are absent."""

from __future__ import annotations

import sys

from evergrad.errors import MissingDependency


def main() -> None:
    """Runs the command line."""
    try:
        from evergrad.cli import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"evergrad: {MissingDependency(error.name, 'cli')}")
    app()


if __name__ == "__main__":
    main()
