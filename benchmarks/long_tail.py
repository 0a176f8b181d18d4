"""The end of a run: rows per second, and the seconds after the last answered row, when some hosts hang.

`python -m benchmarks.long_tail [--rows 2000] [--hanging 0.02] [--no-hedge]`; a server of this machine answers or hangs.
"""

from __future__ import annotations

import argparse
import time

from pairloom.pipelines.fetch import fetch_session
from pairloom.pipelines.fetch.fetcher import Fetcher
from pairloom.schemas.errors import SampleError
from pairloom.schemas.recipes.curate import FetchRecipe
from tests.support.http_server import serve

BODY = bytes(20_000)


def run(num_rows: int, hanging: float) -> str:
    """Fetch once. Returns the figures as text."""
    step = max(1, round(1 / hanging)) if hanging else num_rows + 1
    with serve(pages={"a.jpg": BODY}) as server:
        paths = ["slow/600" if row % step == step - 1 else "files" for row in range(num_rows)]
        urls = [(row, f"{server.url}/{path}/a.jpg?{row}") for row, path in enumerate(paths)]
        fetcher = Fetcher(FetchRecipe(allow_private_addresses=True, per_host=256))
        started_at = answered_at = time.monotonic()
        num_answered = 0
        for _, outcome in fetcher.fetch(urls):
            if not isinstance(outcome, SampleError):
                outcome.close()
                num_answered += 1
                answered_at = time.monotonic()
        ended_at = time.monotonic()
    rate = num_rows / (ended_at - started_at)
    return f"{rate:.1f} rows per second, {ended_at - answered_at:.1f} s after the last of {num_answered} answered rows"


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--hanging", type=float, default=0.02, help="share of rows whose host hangs")
    parser.add_argument("--no-hedge", action="store_true", help="attempts one after another, for comparison")
    options = parser.parse_args()
    if options.no_hedge:
        fetch_session.HEDGE_AFTER = float("inf")
    print(run(options.rows, options.hanging))


if __name__ == "__main__":
    main()
