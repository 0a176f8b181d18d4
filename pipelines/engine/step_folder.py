"""The folder of one step, `<root>/<step>/<name>/<hash8>`: its missing files, its manifest, LATEST."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, is_complete, save_manifest, set_latest
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

BeforeWork = Callable[[], None]


def nothing() -> None:
    """The BeforeWork of a caller that has started Ray."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step's work, for its manifest."""

    shards: Sequence[ShardEntry]
    drop_counts: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()  # folders that are removed after the manifest is written


@dataclass(frozen=True)
class StepFolder:
    """The folder of a step; its name has the hash of everything that changes the result."""

    root: str
    step: str
    name: str
    recipe_hash: str  # 64 hex digits
    parents: tuple[str, ...]  # hashes of the manifests that the step reads

    @property
    def url(self) -> str:
        """The folder, with the first 8 hex digits of the hash."""
        return storage.join(self.root, self.step, self.name, self.recipe_hash[:8])

    def is_complete(self) -> bool:
        """Whether the manifest exists."""
        return is_complete(self.url)

    def run_once(self, before_work: BeforeWork, work: Callable[[], StepResult]) -> str:
        """Run `work` unless the folder is complete, and point LATEST at it. Returns the folder.

        `before_work` is called before `work`, and not called if the folder is complete.
        """
        if not self.is_complete():
            before_work()
            self._finish(work())
        self.point_latest()
        return self.url

    def _finish(self, result: StepResult) -> None:
        """Write the manifest, which marks the folder as complete."""
        for folder in sorted({shard.name.partition("/")[0] for shard in result.shards}):
            remove_scratch(storage.join(self.url, folder))
        manifest = Manifest(
            name=self.name,
            step=self.step,
            recipe_hash=self.recipe_hash,
            parents=self.parents,
            shards=result.shards,
            drop_counts=result.drop_counts,
            details=result.details,
        )
        save_manifest(self.url, manifest)
        for scratch in result.scratch:
            storage.remove(scratch)

    def point_latest(self) -> None:
        """Let `<step>/<name>` resolve to this folder; writes nothing if it does already."""
        if latest_folder(self.root, self.step, self.name) != self.url:
            set_latest(self.url)


def latest_folder(root: str, step: str, name: str) -> str | None:
    """The newest complete folder of `<step>/<name>`, or None."""
    parent = storage.join(root, step, name)
    try:
        return storage.join(parent, storage.read_text(storage.join(parent, "LATEST")).strip())
    except FileNotFoundError:
        return None


def missing_tables(folder: str, names: Iterable[str], extension: str = "parquet") -> list[str]:
    """The shards of `names` without a table (or other file). Lists folders of 1,000 shards, never single keys."""
    names = list(names)
    there: set[str] = set()
    for part in sorted({name.partition("/")[0] for name in names}):
        there.update(f"{part}/{storage.name_of(url)}" for url in storage.list_files(storage.join(folder, part)))
    return [name for name in names if f"{name}.{extension}" not in there]


def remove_scratch(folder: str) -> None:
    """Remove temporary files of killed workers. Object storage has none: puts are atomic."""
    if not storage.is_local(folder):
        return
    for url in storage.list_files(folder):
        name = storage.name_of(url)
        if name.startswith(".") and name.endswith(".tmp"):
            storage.remove(url)


def only_command(step: str, name: str) -> BeforeWork:
    """A BeforeWork that raises InputError: for steps before the one that `--only` names."""

    def refuse() -> None:
        raise InputError(
            f"{step} {name}: not complete for this recipe; run `pairloom curate RECIPE --only {step}` first"
        )

    return refuse
