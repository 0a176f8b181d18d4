"""The folder of one step: `<root>/<step>/<name>/<hash8>`, what is left to do in it, and how it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, is_complete, save_manifest, set_latest
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

BeforeWork = Callable[[], None]


def nothing() -> None:
    """The BeforeWork of a caller that has started Ray already."""


@dataclass(frozen=True)
class StepResult:
    """What the work of a step gives to its manifest."""

    shards: Sequence[ShardEntry]
    drop_counts: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()  # folders that are removed once the manifest is written


@dataclass(frozen=True)
class StepFolder:
    """Where a step writes, named by the hash of everything that changes its result."""

    root: str
    step: str
    name: str
    recipe_hash: str  # 64 hex
    parents: tuple[str, ...]  # hashes of the manifests that the step reads

    @property
    def url(self) -> str:
        """The folder; its first 8 hex digits tell results apart."""
        return storage.join(self.root, self.step, self.name, self.recipe_hash[:8])

    def is_complete(self) -> bool:
        """True when the manifest is there."""
        return is_complete(self.url)

    def run_once(self, before_work: BeforeWork, work: Callable[[], StepResult]) -> str:
        """Do the work of a step unless its folder is complete, and point LATEST at it; returns the folder.

        `before_work` is called before the work, and not at all where there is none.
        """
        if not self.is_complete():
            before_work()
            self._finish(work())
        self.point_latest()
        return self.url

    def _finish(self, result: StepResult) -> None:
        """Write the manifest, which marks the folder as done."""
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
        """Make this folder what `<step>/<name>` resolves to; writes nothing when it is so already."""
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
    """The shards of `names` whose table (or other file) is not there. Lists folders of 1,000, never keys one by one."""
    names = list(names)
    there: set[str] = set()
    for part in sorted({name.partition("/")[0] for name in names}):
        there.update(f"{part}/{storage.name_of(url)}" for url in storage.list_files(storage.join(folder, part)))
    return [name for name in names if f"{name}.{extension}" not in there]


def remove_scratch(folder: str) -> None:
    """Remove what a killed worker left half written beside its target; on object storage nothing lies half written."""
    if not storage.is_local(folder):
        return
    for url in storage.list_files(folder):
        name = storage.name_of(url)
        if name.startswith(".") and name.endswith(".tmp"):
            storage.remove(url)


def only_command(step: str, name: str) -> BeforeWork:
    """A BeforeWork that refuses to work: for the steps before the one that `--only` names."""

    def refuse() -> None:
        raise InputError(
            f"{step} {name}: not complete for this recipe; run `pairloom curate RECIPE --only {step}` first"
        )

    return refuse
