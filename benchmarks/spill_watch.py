"""Peak size of the spill files of a dedupe step."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path


class SpillWatch(threading.Thread):
    """Measures every second the bytes of the spill files of a dedupe step."""

    def __init__(self, root: str) -> None:
        super().__init__(daemon=True)
        self._root, self._peak = Path(root), 0
        self._done = threading.Event()

    def run(self) -> None:
        """Measure until `stop`."""
        while not self._done.wait(1):
            with suppress(FileNotFoundError):  # removed between listing and stat
                files = [path.stat().st_size for path in self._root.glob("dedupe/*/*/spill/**/*")]
                self._peak = max(self._peak, sum(files))

    def stop(self) -> int:
        """The peak, in bytes."""
        self._done.set()
        self.join()
        return self._peak
