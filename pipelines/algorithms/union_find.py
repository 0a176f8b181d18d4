"""Connected components by union-find. The smallest member is the root, so the order of the edges does not matter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.algorithms.jit import compiled

Indices = npt.NDArray[np.int64]


@compiled
def find(roots: Indices, member: int) -> int:
    """The root of a member, with path halving."""
    while roots[member] != member:
        roots[member] = roots[roots[member]]
        member = roots[member]
    return member


@compiled
def unite(roots: Indices, left: int, right: int) -> None:
    """Join two components under the smaller of their roots."""
    left, right = find(roots, left), find(roots, right)
    if left < right:
        roots[right] = left
    else:
        roots[left] = right


@compiled
def connect(num_members: int, left: Indices, right: Indices) -> Indices:
    """The root of each of `num_members` members under the edges left[i] - right[i]: the smallest in its component."""
    roots = np.arange(num_members)
    for edge in range(len(left)):
        unite(roots, left[edge], right[edge])
    for member in range(num_members):
        roots[member] = find(roots, member)
    return roots
