"""Spanning forests of links between hashes: the fewest links with the same connected components."""

from __future__ import annotations

import numpy as np

from pairloom.pipelines.algorithms.hamming64 import Hashes
from pairloom.pipelines.algorithms.union_find import connect
from pairloom.pipelines.engine.shuffle import Rows, pack


def forest(left: Hashes, right: Hashes) -> Rows:
    """Link each node that is not a root to the root of its component. Returns records (`node`, `root`)."""
    nodes, indices = np.unique(np.concatenate([left, right]), return_inverse=True)
    roots = connect(len(nodes), indices[: len(left)], indices[len(left) :])
    inner = np.flatnonzero(roots != np.arange(len(nodes)))
    return pack({"node": nodes[inner], "root": nodes[roots[inner]]})


def roots_of(nodes: Hashes, links: Rows) -> Hashes:
    """The root of each node under the links of `forest`; a node without a link is its own root."""
    links = links[np.argsort(links["node"])]
    indices = np.minimum(np.searchsorted(links["node"], nodes), max(0, len(links) - 1))
    if not len(links):
        return nodes
    return np.where(links["node"][indices] == nodes, links["root"][indices], nodes)
