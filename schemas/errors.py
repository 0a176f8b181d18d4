"""Exceptions, named for the reaction of the caller.

    PairloomError
    ├── UserError          the user's mistake: one line, exit code 2
    │   ├── RecipeError    a recipe field is wrong; raised before any work
    │   └── InputError     a table, tar, model or folder of the user cannot be used
    │       └── BadFileError  one file of many: the others are processed first
    ├── SampleError        drop this sample with its `drop_reason`; other samples are not affected
    ├── ShardError         this shard did not finish; run it again
    └── StorageError       the storage failed (disk full, network, permissions); retry, then stop

An error message is one line: where, what is wrong, and what to do.
"""

from __future__ import annotations

from pairloom.schemas.drop_reason import DropReason


class PairloomError(Exception):
    """Base of all errors of pairloom."""


class UserError(PairloomError):
    """The user's mistake; the command line prints one line, with exit code 2."""


class RecipeError(UserError):
    """A recipe field is wrong; no work was done."""


class InputError(UserError):
    """A table, tar, model or folder of the user is missing or unusable."""


class BadFileError(InputError):
    """One of many files of a source cannot be read; the others are processed before the error ends the command."""


class SampleError(PairloomError):
    """One sample cannot be used and is dropped with `drop_reason`."""

    def __init__(self, drop_reason: DropReason, message: str = "") -> None:
        super().__init__(message or drop_reason.value)
        self.drop_reason = drop_reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[DropReason, str]]:
        return type(self), (self.drop_reason, str(self))


class ShardError(PairloomError):
    """A shard is not done; the same command runs it again."""


class StorageError(PairloomError):
    """The storage failed after retries; free space or fix access, then run the same command."""
