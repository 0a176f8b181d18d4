"""The bytes of an answer on their way to the decoder: pieces as they came, in memory or in a temporary file."""

from __future__ import annotations

import os
import shutil
import tempfile
from types import TracebackType
from typing import IO

SPOOL_BYTES = 1 << 20  # in memory up to this size, then in a temporary file
MAX_PIECES = 1000  # what one system call takes


class Body:
    """Grows by pieces, which are not moved while they wait; use from one thread at a time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self.num_bytes = 0

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        self.num_bytes += len(piece)
        if self._file is not None:
            self._file.write(piece)
            return
        self._pieces.append(piece)
        if len(self._pieces) == MAX_PIECES:  # a drip of single bytes would take forty times their size
            self._pieces = [b"".join(self._pieces)]
        if self.num_bytes > SPOOL_BYTES:
            self.spill()

    def spill(self) -> None:
        """Move what is in memory to a temporary file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
            self._file.writelines(self._pieces)
            self._pieces = []

    def read(self) -> bytes:
        """All bytes."""
        if self._file is None:
            return b"".join(self._pieces)
        self._file.seek(0)
        return self._file.read()

    def copy_to(self, descriptor: int) -> None:
        """Write all bytes at the descriptor's place."""
        if self._file is not None:
            self._file.seek(0)
            with open(descriptor, "wb", closefd=False) as file:
                shutil.copyfileobj(self._file, file, SPOOL_BYTES)
            return
        if os.writev(descriptor, self._pieces) != self.num_bytes:
            raise OSError(f"only a part of {self.num_bytes} bytes could be written")

    def close(self) -> None:
        """Give memory and file back."""
        self._pieces = []
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
