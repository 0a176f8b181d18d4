"""`pairloom` and `python -m pairloom`: the command line, with the demo as one of its commands."""

from __future__ import annotations

from pairloom.cluster import cli
from pairloom.demo.command import demo

cli.cli.add_command(demo)


def main() -> None:
    """Run the command line."""
    cli.main()


if __name__ == "__main__":
    main()
