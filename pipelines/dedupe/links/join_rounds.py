"""Connected components in rounds of tasks: the root of every linked node. Each task holds the links of one part.

A link is a node and a smaller node of its component; it is stored in the part of its node. Round 0 holds the links of
the search. Then, until nothing changes:

    answer  part -> roots of the nodes that links of other parts name as root, for the requesting parts
    join    part -> one forest of its links and the answers (union-find); each link goes to the part of its node,
            with a request for the root of its root

The rounds end when no part sends a link to another part and no named root has a root itself; then every node has one
link, to the smallest node of its component. They end because the smallest link of a node only decreases. Answers
shortcut chains, so that the number of rounds is logarithmic in the length of a chain. The tasks correspond to
small-star and large-star (Kiveris et al. 2014, Connected Components in MapReduce and Beyond), with forests instead of
stars; a part requests each root once, so that the root of a giant component costs no more than any other.
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
    """The spill tables of the rounds."""

    folder: str
    num_searches: int  # tasks that write round 0
    num_parts: int

    def folder_of(self, number: int) -> str:
        """The folder of one round."""
        return storage.join(self.folder, str(number))

    def links(self, number: int) -> SpillTable:
        """node, root; by part of the node."""
        num_files = self.num_parts if number else self.num_searches
        return SpillTable(storage.join(self.folder_of(number), "links"), num_files, self.num_parts)

    def requested(self, number: int) -> SpillTable:
        """root, requesting part, number of nodes that name it; by part of the root."""
        num_files = self.num_parts if number else self.num_searches
        return SpillTable(storage.join(self.folder_of(number), "requested"), num_files, self.num_parts)

    def answers(self, number: int) -> SpillTable:
        """node, root: named roots that have a root themselves; by requesting part."""
        return SpillTable(storage.join(self.folder_of(number), "answers"), self.num_parts, self.num_parts)


def plan_join(folder: str, num_searches: int, num_rows: int, rows_per_join: int) -> Join:
    """The plan of the join; `num_rows` may be an upper bound."""
    return Join(folder, num_searches, max(1, -(-num_rows // rows_per_join)))


def write_links(join: Join, number: int, file: int, links: Rows) -> None:
    """Write unique links by part of their node, and request the roots of the nodes that they name."""
    homes = spread(links["node"], join.num_parts)
    join.links(number).write(file, links, homes)
    order = np.lexsort((homes, links["root"]))
    roots, requesters = links["root"][order], homes[order]
    first = np.flatnonzero((np.diff(roots, prepend=~roots[:1]) != 0) | (np.diff(requesters, prepend=-1) != 0))
    requested = {"root": roots[first], "part": requesters[first], "num": np.diff(first, append=len(order))}
    join.requested(number).write(file, pack(requested), spread(requested["root"], join.num_parts))


def join_links(join: Join, roots: SpillTable) -> int:
    """Join the links of round 0; `roots` receives the last link of each node, one file per part of the join.

    Returns the number of nodes of the largest component.
    """
    parts, number, num_moved = range(join.num_parts), 0, 1
    while True:
        answered = run_shards(f"dedupe: join {number}", partial(answer_part, join, number), parts)
        if num_moved == 0 and not any(num for num, _ in answered):
            break
        num_moved = sum(run_shards(f"dedupe: join {number + 1}", partial(join_part, join, number + 1), parts))
        storage.remove(join.folder_of(number))
        number += 1
    run_shards("dedupe: roots", partial(write_roots, join, number, roots), parts)
    return max(size for _, size in answered)


def answer_part(join: Join, number: int, part: int) -> tuple[int, int]:
    """Answer the requests of other parts. Returns the number of answers, and the largest number of nodes of a root."""
    links = join.links(number).read(part)
    requested = np.sort(join.requested(number).read(part), order=("root", "part"))
    roots = roots_of(requested["root"], forest(links["node"], links["root"]))
    is_new = roots != requested["root"]
    is_new[1:] &= (requested["root"][1:] != requested["root"][:-1]) | (requested["part"][1:] != requested["part"][:-1])
    answers = pack({"node": requested["root"][is_new], "root": roots[is_new]})
    join.answers(number).write(part, answers, requested["part"][is_new])
    _, root_of = np.unique(requested["root"], return_inverse=True)
    return len(answers), int(np.bincount(root_of, requested["num"]).max(initial=0)) + 1


def join_part(join: Join, number: int, part: int) -> int:
    """Join links and answers of the previous round. Returns the number of links for other parts."""
    links, answers = join.links(number - 1).read(part), join.answers(number - 1).read(part)
    links = forest(*(np.concatenate([links[name], answers[name]]) for name in ("node", "root")))
    is_own = spread(links["node"], join.num_parts) == part
    is_news = roots_of(links["node"], answers) != links["root"]  # for the part of the node
    write_links(join, number, part, links[is_own | is_news])
    return int((is_news & ~is_own).sum())


def write_roots(join: Join, number: int, roots: SpillTable, part: int) -> None:
    """Write the links of the last round to `roots`."""
    links = join.links(number).read(part, only=part)
    roots.write(part, links, spread(links["node"], roots.num_parts))
