"""A `metrics.jsonl` that grows during a step: line by line on a local disk, as one small object on remote storage.

Metrics are not part of the data set: if they cannot be written, the step logs a warning and continues.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping

from pairloom.schemas.errors import StorageError
from pairloom.schemas.storage import storage

logger = logging.getLogger("pairloom")
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPLOADS = 60.0  # each upload puts the whole object


class MetricsFile:
    """Appends to the file of earlier runs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_local = storage.is_local(url)
        self._text: str | None = None  # remote storage: the whole content
        self._line_at = self._upload_at = time.monotonic()

    def put_if_due(self, make_line: Callable[[], Mapping[str, object]]) -> None:
        """Add a line if the last one is older than `SECONDS_BETWEEN_LINES`."""
        if time.monotonic() - self._line_at > SECONDS_BETWEEN_LINES:
            is_upload_due = time.monotonic() - self._upload_at > SECONDS_BETWEEN_UPLOADS
            self.put(make_line(), upload=is_upload_due)

    def put(self, line: Mapping[str, object], upload: bool = True) -> None:
        """Add a line; remote storage is updated only if `upload` is true."""
        self._line_at = time.monotonic()
        try:
            self._append(json.dumps(line, sort_keys=True) + "\n", upload)
        except StorageError as error:
            logger.warning("metrics could not be written: %s", error)

    def _append(self, text: str, upload: bool) -> None:
        if self._is_local:
            storage.append_local(self._url, text.encode())
            return
        if self._text is None:
            self._text = storage.read_text(self._url) if storage.exists(self._url) else ""
        self._text += text
        if upload:
            self._upload_at = time.monotonic()
            storage.put_bytes(self._url, self._text.encode())
