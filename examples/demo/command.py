"""`pairloom demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", default="out/demo", show_default=True, help="Folder for everything that the demo makes.")
def demo(out: str) -> None:
    """Run the whole workflow on drawings that come with the installation; about ten minutes on two cores."""
    from pairloom.cluster.render import demo_table
    from pairloom.demo.report import run_demo

    click.echo(demo_table(run_demo(Path(out))))
    click.echo(f"report: {Path(out) / 'report.html'}")
