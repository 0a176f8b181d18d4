"""The steps of a curation and the folders of their results, `<root>/<step folder>/<name>/<hash8>`."""

from __future__ import annotations

from dataclasses import dataclass

from pairloom.schemas.storage import storage


@dataclass(frozen=True)
class Step:
    """One step: its name in commands, and the folder of its results below a root."""

    command: str
    folder: str


STEPS = (
    Step("ingest", "raw"),
    Step("signals", "signals"),
    Step("dedupe", "dedupe"),
    Step("balance", "balance"),
    Step("select", "selections"),
    Step("reshard", "curated"),
)
COMMANDS = tuple(step.command for step in STEPS)
STEP_FOLDERS = tuple(step.folder for step in STEPS)


@dataclass(frozen=True)
class ResultPath:
    """The names of the folder of one result."""

    root: str
    step: str  # one of STEP_FOLDERS
    name: str
    hash8: str

    @classmethod
    def parse(cls, folder: str) -> ResultPath | None:
        """Split a folder; None if it is not below a root."""
        root, *names = f"./{folder}".rstrip("/").rsplit("/", 3)
        if len(names) < 3 or names[0] not in STEP_FOLDERS:
            return None
        return cls(root.removeprefix("./") or ".", *names)

    @property
    def url(self) -> str:
        """The folder."""
        return storage.join(self.root, self.step, self.name, self.hash8)

    @property
    def parent(self) -> str:
        """`<root>/<step folder>/<name>`: all results of a name, and LATEST."""
        return storage.join(self.root, self.step, self.name)

    @property
    def latest_url(self) -> str:
        """The file that names the newest complete result."""
        return storage.join(self.parent, "LATEST")


def root_of(folder: str) -> str | None:
    """The root of a result's folder; None if the folder is not below a root."""
    result = ResultPath.parse(folder)
    return None if result is None else result.root
