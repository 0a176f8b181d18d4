"""The last table of the ingest benchmark: the best run of each program on every kind of image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def print_table(figures: Sequence[dict[str, Any]], cores: int) -> None:
    """The best runs of all cases, as Markdown."""
    print("\n| case | kernel CPU ms | pairloom img/s/core | CPU ms | img2dataset img/s/core | CPU ms | ratio wall | "
          "ratio CPU | target | of kernel, wall | of kernel, CPU |")  # fmt: skip
    print("| --- " * 11 + "|")
    for one in figures:
        kernel, ours = one["kernel_images_per_cpu_s"], one["pairloom"]
        rate, cpu_ms = ours["images"] / ours["wall_s"] / cores, 1000 * ours["cpu_s"] / ours["images"]
        cells = [one["case"], f"{1000 / kernel:.2f}", f"{rate:.0f}", f"{cpu_ms:.2f}"]
        if one["peer"]:
            peer = one["peer"]
            peer_rate, peer_ms = peer["images"] / peer["wall_s"] / cores, 1000 * peer["cpu_s"] / peer["images"]
            cells += [f"{peer_rate:.0f}", f"{peer_ms:.2f}", f"{rate / peer_rate:.2f}", f"{peer_ms / cpu_ms:.2f}"]
        else:
            cells += ["", "", "", ""]
        target = one["target"] or "none"
        print("| " + " | ".join([*cells, f"{target}", f"{rate / kernel:.0%}", f"{1000 / kernel / cpu_ms:.0%}"]) + " |")
