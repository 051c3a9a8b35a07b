"""What the lowest layer of a clone has of others, copied into it, so that it can be the base of a chain of its own.

The layer is sealed. What it does not own nobody reads in it: whoever stands on it finds that in the layers below. So
these pages can be written while everybody goes on, and may have anything in them before: each is written, or made a
hole, exactly once. It is for the caller to note how far that is durable, and then that it is done.

Their checksums are taken away first, as in a merge, and made anew in the background when all is done; what is copied
is read through the checksums of where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

from shm_server.stores.base import INLINE_BYTES, LayerFile
from shm_server.stores.checked import Checks
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import open_data
from shm_server.stores.maplog import DATA, PAGE_BYTES, Run
from shm_server.stores.merging import take_sums_away
from shm_server.stores.sealed import SealedStore

LOOK_BYTES = 1 << 30  # owners are looked for of so much at once
STEP_BYTES = INLINE_BYTES
CHECKPOINT_BYTES = 256 << 20  # copied: so much is done again after a crash

Step = tuple[int, bool]  # how many bytes of the layer are done, and whether durably


def promote(
    file: LayerFile, source: Callable[[], SealedStore], checks: Checks, done_bytes: int
) -> Generator[Step, None, None]:
    """``source`` opens the chain of which ``file`` is the last; so many bytes were done, durably, before. All of it is
    durable at the end. BadPageError: a page can't be read."""
    with _opened(file, source, checks) as (chain, data):
        copied = 0
        for at, runs in _foreign(file, chain, data.size_bytes(), done_bytes):
            yield from ((at, False) for _ in take_sums_away(checks.sums(file), runs))
            for run in runs:
                for offset, step in _copy(chain, data, run.first * PAGE_BYTES, run.pages * PAGE_BYTES):
                    copied += step
                    yield offset, False
            if copied >= CHECKPOINT_BYTES:
                data.sync_data()
                copied = 0
                yield min(at + LOOK_BYTES, data.size_bytes()), True
        data.sync_data()
        yield data.size_bytes(), True


def give_up(file: LayerFile, source: Callable[[], SealedStore], checks: Checks) -> Generator[Step, None, None]:
    """What was copied is given back."""
    with _opened(file, source, checks) as (chain, data):
        for at, runs in _foreign(file, chain, data.size_bytes(), 0):
            yield from ((at, False) for _ in take_sums_away(checks.sums(file), runs))
            for run in runs:
                data.punch(run.first * PAGE_BYTES, run.pages * PAGE_BYTES)
            yield at, False


@contextmanager
def _opened(
    file: LayerFile, source: Callable[[], SealedStore], checks: Checks
) -> Iterator[tuple[SealedStore, DescriptorStore]]:
    """Nobody makes checksums of the layer meanwhile, and what was verified of it before is forgotten."""
    sums = checks.sums(file)
    sums.begin_merge()
    try:
        with closing(source()) as chain, closing(open_data(file, checks.directory, is_writable=True)) as data:
            yield chain, data
    finally:
        sums.is_being_merged = False
        checks.forget(file.number)


def _foreign(file: LayerFile, chain: SealedStore, size_bytes: int, done_bytes: int) -> Iterator[tuple[int, list[Run]]]:
    """The pages that are not the layer's own, by pieces; and where each piece begins."""
    for at in range(done_bytes, size_bytes, LOOK_BYTES):
        first = at // PAGE_BYTES
        runs = []
        for owner, pages in chain.sources(first, -(-min(LOOK_BYTES, size_bytes - at) // PAGE_BYTES)):
            if owner != file.number:
                runs.append(Run(DATA, first, pages))
            first += pages
        yield at, runs


def _copy(chain: SealedStore, data: DescriptorStore, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Up to where, and how many bytes were copied, by each step; holes stay holes."""
    buffer = memoryview(bytearray(STEP_BYTES))
    end = offset + length
    while offset < end:
        is_data, run = chain.extent(offset, end - offset)
        if is_data:
            run = min(run, STEP_BYTES)
            chain.read((buffer[:run],), offset)
            data.write((buffer[:run],), offset)
        else:
            data.punch(offset, run)
        offset += run
        yield offset, run if is_data else 0
