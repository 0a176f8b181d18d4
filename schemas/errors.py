"""Exceptions, named for what the caller does about them.

    PairloomError
    ├── UserError          the user's mistake: one line, exit code 2
    │   ├── RecipeError    a recipe field is wrong; raised before any work begins
    │   └── InputError     a table, tar, model or folder that the user named cannot be used
    ├── SampleError        drop this sample, with its `drop_reason`; nothing else is lost
    ├── ShardError         this shard did not finish; run it again
    └── StorageError       the storage failed (disk full, network, permissions); retry, then stop

An error message says what is wrong, where, and what to do, in one line.
"""

from __future__ import annotations

from pairloom.schemas.drop_reason import DropReason


class PairloomError(Exception):
    """Base of every error that pairloom raises on purpose."""


class UserError(PairloomError):
    """The user's mistake: shown as one line, exit code 2."""


class RecipeError(UserError):
    """A recipe field is wrong; nothing has been done yet."""


class InputError(UserError):
    """A table, tar, model or folder that the user named is missing or unusable."""


class SampleError(PairloomError):
    """One sample cannot be used; it is dropped with `drop_reason`."""

    def __init__(self, drop_reason: DropReason, message: str = "") -> None:
        super().__init__(message or drop_reason.value)
        self.drop_reason = drop_reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[DropReason, str]]:
        return type(self), (self.drop_reason, str(self))


class ShardError(PairloomError):
    """A shard did not finish; the same command runs it again."""


class StorageError(PairloomError):
    """The storage failed after retries; free space or fix access, then run the same command."""
