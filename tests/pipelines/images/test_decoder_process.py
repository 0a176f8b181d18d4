"""The decoder process: its worker survives crashes, kills and errors."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgpack
import pytest

from pairloom.pipelines.engine.spooled_bytes import SpooledBytes
from pairloom.pipelines.images.boxes import Boxes
from pairloom.pipelines.images.decode_queue import MAX_WAITING_BYTES, ImageWorkers
from pairloom.pipelines.images.decoder_messages import InvalidMessageError, pack_result, unpack_result
from pairloom.pipelines.images.decoder_process import ImageDecoder, SpooledImage
from pairloom.pipelines.images.store_image import store_image
from pairloom.pipelines.images.stored_image import StoredImage
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import SampleError, ShardError
from pairloom.schemas.recipes.curate import ImageRecipe

WORK = "tests.pipelines.images.test_decoder_process:fragile"
SEGFAULT, OUT_OF_MEMORY, BUG, ONCE = b"segfault", b"out of memory", b"bug", b"once:"
FORGED = b"forged:"


def fragile(data: bytes, recipe: ImageRecipe, boxes: Boxes) -> StoredImage:
    """`store_image` that crashes for certain bytes."""
    if data == SEGFAULT:
        ctypes.string_at(0)
    if data == OUT_OF_MEMORY:
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(FORGED):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as link:
                link.send(data[len(FORGED) :])
    if data == BUG:
        raise TypeError("a bug of ours")
    if data.startswith(ONCE):
        mark, image = data[len(ONCE) :].split(b"\n", 1)
        if not os.path.exists(mark):
            Path(os.fsdecode(mark)).touch()
            ctypes.string_at(0)
        data = image
    return store_image(data, recipe, boxes)


@pytest.fixture
def spool() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    running = ImageDecoder()
    yield running
    running.close()


def test_a_crash_loses_one_row(
    decoder: ImageDecoder, spool: IO[bytes], pages: dict[str, bytes], tmp_path: Path
) -> None:
    recipe = ImageRecipe(size=100)
    bodies = [pages[f"{index}.jpg"] for index in range(12)]
    bodies[3], bodies[7] = SEGFAULT, OUT_OF_MEMORY
    bodies[9] = ONCE + os.fsencode(tmp_path / "mark") + b"\n" + bodies[9]
    with ImageWorkers(decoder, WORK, recipe, spool) as workers:
        for row, body in enumerate(bodies):
            workers.wait_for_capacity()
            workers.submit(row, body)
        workers.finish()
    for row in range(12):
        outcome = workers.outcomes[row]
        if row in (3, 7):
            assert isinstance(outcome, SampleError)
            assert outcome.drop_reason == "decoder_crashed"
            continue
        assert isinstance(outcome, SpooledImage)
        expected = store_image(pages[f"{row}.jpg"], recipe)
        data = os.pread(spool.fileno(), outcome.byte_range.num_bytes, outcome.byte_range.offset)
        assert (data, outcome.image.sha256) == (expected.data, expected.sha256), row
    assert "signal 11" in str(workers.outcomes[3])
    assert "signal 9" in str(workers.outcomes[7])


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.putenv, ("PAIRLOOM_EVIL", "1")


def forged_messages() -> list[bytes]:
    """Messages of a decoder that runs an attacker's code."""
    good = [0, "image/jpeg", 1, 1, 1, 1, "00", "00", "00", 0, b"", 0]
    changes: list[tuple[int, object]] = [(1, "text/html"), (2, -1), (2, "1"), (6, "no hex"), (9, -1), (11, 1 << 40)]
    forged = [[*good[:index], value, *good[index + 1 :]] for index, value in changes]
    others: list[object] = [good[:-1], [1, "no reason", ""], [1, "timeout", b""], [2, "TypeError", 1, None], [9], 7, {}]
    return [pickle.dumps(Evil()), b"\xc1", *(msgpack.packb(message) for message in (*forged, *others))]


@pytest.mark.parametrize("message", forged_messages())
def test_a_malformed_message_counts_as_a_crash(message: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        unpack_result(message, 100)


def test_a_decoder_that_forges_messages_is_restarted(
    decoder: ImageDecoder, spool: IO[bytes], pages: dict[str, bytes]
) -> None:
    with ImageWorkers(decoder, WORK, ImageRecipe(), spool) as workers:
        for row, body in enumerate([FORGED + pickle.dumps(Evil()), pages["0.jpg"]]):
            workers.submit(row, body)
        workers.finish()
    assert isinstance(workers.outcomes[0], SampleError)
    assert workers.outcomes[0].drop_reason == "decoder_crashed"
    assert isinstance(workers.outcomes[1], SpooledImage)


@pytest.mark.parametrize(
    "error", [SampleError(DropReason.DECODE_ERROR, "bad \udc80"), OSError(28, "No space left on device"), KeyError("a")]
)
def test_errors_keep_type_and_text(error: Exception) -> None:
    read = unpack_result(pack_result(error), 0)
    assert type(read) is type(error)
    assert getattr(read, "drop_reason", None) == getattr(error, "drop_reason", None)
    assert getattr(read, "errno", None) == getattr(error, "errno", None)


@pytest.mark.skipif(sys.platform != "linux", reason="limits are set on Linux only")
def test_the_process_has_no_privileges_to_gain(decoder: ImageDecoder, spool: IO[bytes]) -> None:
    code = (
        "from pairloom.pipelines.images.decoder_limits import *; import resource; drop_privileges(); limit_memory(10);"
        "print(open('/proc/self/status').read().partition('NoNewPrivs:')[2][:2].strip(),"
        "resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_AS)[0] > 1 << 30)"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["1", "0", "True"]


def test_a_bug_is_no_bad_image(decoder: ImageDecoder, spool: IO[bytes], pages: dict[str, bytes]) -> None:
    workers = ImageWorkers(decoder, WORK, ImageRecipe(), spool)
    with pytest.raises(TypeError, match="a bug of ours"), workers:
        workers.submit(0, BUG)
        workers.finish()
    with ImageWorkers(decoder, WORK, ImageRecipe(), spool) as next_shard:
        next_shard.submit(0, pages["0.jpg"])
        next_shard.finish()
    assert isinstance(next_shard.outcomes[0], SpooledImage), "what the failed shard left is forgotten"


def test_a_decoder_that_cannot_start_is_no_bad_image(spool: IO[bytes]) -> None:
    decoder = ImageDecoder()
    with pytest.raises(ShardError, match="does not start"):
        decoder.begin("pairloom.pipelines.images.store_image:no_such_function", ImageRecipe(), spool)
    decoder.close()


def test_bodies_wait_on_disk_beyond_the_budget(decoder: ImageDecoder, spool: IO[bytes]) -> None:
    """Bodies that arrive without capacity go to disk."""
    bodies = []
    with ImageWorkers(decoder, WORK, ImageRecipe(), spool) as workers:
        for row in range(100):
            body = SpooledBytes()
            body.write(bytes(1 << 20))
            bodies.append(body)
            workers.submit(row, body)
        in_memory = sum(body.num_bytes for body in bodies if not body.is_on_disk) >> 20
        assert in_memory <= MAX_WAITING_BYTES >> 20
        workers.finish()
    assert {str(outcome) for outcome in workers.outcomes.values()} == {"no image format recognised"}


def test_decoder_process_loads_few_modules() -> None:
    """Each worker starts one decoder process, so it must not import the packages for tables."""
    code = "import sys; from pairloom.pipelines.images import decoder_child, store_image; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"pyarrow", "pydantic", "fsspec", "ray", "pandas", "torch"} & set(loaded)
