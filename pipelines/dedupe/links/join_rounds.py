"""The root of every linked node, chains included, in rounds of tasks: each task holds the links of one part.

A link is a node and a smaller one of its component; it lies in the part of its node. Round 0 is what the search has
found. Then, until nothing moves:

    answer  part -> the roots of nodes that other links name as theirs, for the parts that asked
    join    part -> its links and the answers as one forest (union-find); each link goes to the part of its node, with
            it the question for the root of its root

When no part hands a link to another and no named root has a root itself, every node has one link, and it names the
smallest node of the component. This comes to pass: the smallest link of a node only ever falls, and while none falls
nothing is handed on. As the answers let links jump, a chain takes the logarithm of its length. The two tasks do what
small-star and large-star do (Kiveris et al. 2014, Connected Components in MapReduce and Beyond), with a forest for a
star; and as a part asks once for a root, the root of a giant component is no more work than any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from pairloom.pipelines.algorithms.forest import forest, roots_of
from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.engine.shuffle import Rows, SpillTable, pack, spread
from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class Join:
    """Where the rounds lie."""

    folder: str
    num_searches: int  # tasks that write round 0
    num_parts: int

    def folder_of(self, number: int) -> str:
        """What one round writes."""
        return storage.join(self.folder, str(number))

    def links(self, number: int) -> SpillTable:
        """node, root; by part of the node."""
        num_files = self.num_parts if number else self.num_searches
        return SpillTable(storage.join(self.folder_of(number), "links"), num_files, self.num_parts)

    def asked(self, number: int) -> SpillTable:
        """root, the part of the nodes that name it, how many these are; by part of the root."""
        num_files = self.num_parts if number else self.num_searches
        return SpillTable(storage.join(self.folder_of(number), "asked"), num_files, self.num_parts)

    def answers(self, number: int) -> SpillTable:
        """node, root: what named a root has one itself; by part that asked."""
        return SpillTable(storage.join(self.folder_of(number), "answers"), self.num_parts, self.num_parts)


def plan_join(folder: str, num_searches: int, num_rows: int, rows_per_join: int) -> Join:
    """`num_rows` may be an upper bound."""
    return Join(folder, num_searches, max(1, -(-num_rows // rows_per_join)))


def hand_on(join: Join, number: int, file: int, links: Rows) -> None:
    """Hand distinct links to the parts of their nodes, and ask for the roots of what they name."""
    homes = spread(links["node"], join.num_parts)
    join.links(number).write(file, links, homes)
    order = np.lexsort((homes, links["root"]))
    roots, askers = links["root"][order], homes[order]
    first = np.flatnonzero((np.diff(roots, prepend=~roots[:1]) != 0) | (np.diff(askers, prepend=-1) != 0))
    asked = {"root": roots[first], "part": askers[first], "num": np.diff(first, append=len(order))}
    join.asked(number).write(file, pack(asked), spread(asked["root"], join.num_parts))


def join_links(join: Join, roots: SpillTable) -> int:
    """Join the links of round 0; the last link of each node goes to `roots`, a file for each part of the join.

    Returns how many nodes the largest component has.
    """
    parts, number, num_handed = range(join.num_parts), 0, 1
    while True:
        answered = run_shards(f"dedupe: join {number}", partial(answer_part, join, number), parts)
        if num_handed == 0 and not any(num for num, _ in answered):
            break
        num_handed = sum(run_shards(f"dedupe: join {number + 1}", partial(join_part, join, number + 1), parts))
        storage.remove(join.folder_of(number))
        number += 1
    run_shards("dedupe: roots", partial(write_roots, join, number, roots), parts)
    return max(size for _, size in answered)


def answer_part(join: Join, number: int, part: int) -> tuple[int, int]:
    """Answer what other parts asked; returns how many answers there are, and the largest number of nodes of a root."""
    links = join.links(number).read(part)
    asked = np.sort(join.asked(number).read(part), order=("root", "part"))
    roots = roots_of(asked["root"], forest(links["node"], links["root"]))
    is_new = roots != asked["root"]
    is_new[1:] &= (asked["root"][1:] != asked["root"][:-1]) | (asked["part"][1:] != asked["part"][:-1])
    answers = pack({"node": asked["root"][is_new], "root": roots[is_new]})
    join.answers(number).write(part, answers, asked["part"][is_new])
    _, places = np.unique(asked["root"], return_inverse=True)
    return len(answers), int(np.bincount(places, asked["num"]).max(initial=0)) + 1


def join_part(join: Join, number: int, part: int) -> int:
    """Join links and answers of the round before; returns how many links go to other parts."""
    links, answers = join.links(number - 1).read(part), join.answers(number - 1).read(part)
    joined = forest(*(np.concatenate([links[name], answers[name]]) for name in ("node", "root")))
    is_own = spread(joined["node"], join.num_parts) == part
    is_news = roots_of(joined["node"], answers) != joined["root"]  # to the part that a node belongs to
    hand_on(join, number, part, joined[is_own | is_news])
    return int((is_news & ~is_own).sum())


def write_roots(join: Join, number: int, roots: SpillTable, part: int) -> None:
    """Hand the links of the last round to those who read them."""
    links = join.links(number).read(part, only=part)
    roots.write(part, links, spread(links["node"], roots.num_parts))
