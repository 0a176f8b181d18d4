"""Spanning forests of links between hashes: the fewest links that keep the same nodes together."""

from __future__ import annotations

import numpy as np

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.engine.shuffle import Rows, pack


def forest(left: Hashes, right: Hashes) -> Rows:
    """As few links as keep the same nodes together: each node that is not a root, with its root."""
    nodes, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    roots = connect(len(nodes), places[: len(left)], places[len(left) :])
    inner = np.flatnonzero(roots != np.arange(len(nodes)))
    return pack({"node": nodes[inner], "root": nodes[roots[inner]]})


def roots_of(nodes: Hashes, links: Rows) -> Hashes:
    """The root of each node under the final links: itself where it has none."""
    links = links[np.argsort(links["node"])]
    places = np.minimum(np.searchsorted(links["node"], nodes), max(0, len(links) - 1))
    if not len(links):
        return nodes
    return np.where(links["node"][places] == nodes, links["root"][places], nodes)
