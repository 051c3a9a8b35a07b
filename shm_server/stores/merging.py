"""A sealed layer merged into the sealed one below it, which nothing else stands on any more.

What the upper owns it hides in the lower, so nobody sees the lower change there; and until the caller has noted that
the upper is gone, everything of it is still where it was. A merge that a crash ended begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shm_server.stores.base import INLINE_BYTES, LayerFile
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import open_data, open_log
from shm_server.stores.maplog import DATA, PAGE_BYTES, MapLog

STEP_BYTES = INLINE_BYTES
PUNCH_STEP_BYTES = 1 << 30


def merge(upper_file: LayerFile, lower_file: LayerFile, directory: Path) -> Iterator[None]:
    """One step for each next(); durable at the end. Raises OSError, and then nothing has happened."""
    source_log = open_log(upper_file, directory)
    log = None if lower_file.is_base else open_log(lower_file, directory)
    upper = open_data(upper_file, directory, is_writable=False)
    lower = open_data(lower_file, directory, is_writable=True)
    try:
        runs = source_log.open(is_sealed=True)
        if log is not None:
            log.open()
        if lower.size_bytes() < upper.size_bytes():
            lower.resize(upper.size_bytes())
        for kind, first, count in runs:
            offset, length = first * PAGE_BYTES, count * PAGE_BYTES
            # In the order in which they were made: what was discarded and written again is there at the end.
            yield from _copy(upper, lower, offset, length) if kind == DATA else _punch(lower, offset, length)
            if log is not None:
                log.append(kind, first, count)
        _make_durable(lower, log)
    finally:
        source_log.close()
        if log is not None:
            log.close()
        upper.close()
        lower.close()


def _make_durable(lower: DescriptorStore, log: MapLog | None) -> None:
    covered = 0 if log is None else log.claimed
    lower.sync_data()
    if log is not None and log.is_behind(covered):
        log.barrier(covered)
        log.sync(covered)


def _copy(upper: DescriptorStore, lower: DescriptorStore, offset: int, length: int) -> Iterator[None]:
    done = 0
    while done < length:
        is_data, run = upper.extent(offset + done, length - done)
        step = min(run, STEP_BYTES if is_data else PUNCH_STEP_BYTES)
        if is_data:
            lower.copy_from(upper, offset + done, offset + done, step)
        else:
            lower.punch(offset + done, step)
        done += step
        yield


def _punch(lower: DescriptorStore, offset: int, length: int) -> Iterator[None]:
    for at in range(0, length, PUNCH_STEP_BYTES):
        lower.punch(offset + at, min(PUNCH_STEP_BYTES, length - at))
        yield
