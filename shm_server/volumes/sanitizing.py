"""What a sanitize operation is, as it stands in the catalogue, and the work itself: every byte of a volume, for good.

``overwrite`` fills the volume with a pattern, then with the next, where there are several; ``block erase`` gives
everything back to the store, so that it reads zeros and takes no space. Both go on where they were after a restart:
how far they came is made durable every CHECKPOINT_BYTES, and only what has been synced counts. Honest doubt: an
overwrite goes through a file system; one that never writes in place (btrfs), or a disk that remaps, may keep old blocks
that nobody can read through this server. Cryptographic erase is not offered: nothing here is encrypted.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shm_server.runtime import Wait
from shm_server.volumes.volume import MAX_PATTERN_BYTES, PUNCH, WRITE_STEP_BYTES, Volume

OVERWRITE = "overwrite"
BLOCK_ERASE = "block erase"
MAX_PASSES = 31  # SBC-3: OVERWRITE COUNT has five bits
CHECKPOINT_BYTES = 64 << 20
ERASE_STEP_BYTES = 16 << 30
PROGRESS_DENOMINATOR = 65536  # SPC-4: the progress indication's


@dataclass(frozen=True, slots=True)
class Sanitizing:
    """One operation: running, or failed. ``may_exit``: after a failure the volume may be used again as it is (AUSE)."""

    uuid: str
    kind: str
    size_bytes: int  # of the volume
    patterns: tuple[bytes, ...] = ()  # one a pass, all of one length
    may_exit: bool = False
    done_bytes: int = 0  # of all passes together
    failure: int = 0  # errno

    def check(self) -> None:
        """EINVAL where it is not one that we can do."""
        if self.kind not in (OVERWRITE, BLOCK_ERASE):
            raise OSError(errno.EINVAL, f"sanitize by {self.kind!r}: {OVERWRITE} or {BLOCK_ERASE}")
        if self.kind == BLOCK_ERASE:
            if self.patterns:
                raise OSError(errno.EINVAL, f"{BLOCK_ERASE} has no pattern")
            return
        if not 0 < len(self.patterns) <= MAX_PASSES:
            raise OSError(errno.EINVAL, f"{len(self.patterns)} passes: 1 to {MAX_PASSES}")
        lengths = {len(pattern) for pattern in self.patterns}
        if len(lengths) > 1 or not 0 < max(lengths) <= MAX_PATTERN_BYTES:
            raise OSError(
                errno.EINVAL, f"patterns of {sorted(lengths)} bytes: all of one length, 1 to {MAX_PATTERN_BYTES}"
            )

    @property
    def total_bytes(self) -> int:
        """Of all passes together."""
        return max(len(self.patterns), 1) * self.size_bytes

    @property
    def progress(self) -> int:
        """0 to 65535."""
        total = max(self.total_bytes, 1)
        return min(self.done_bytes * PROGRESS_DENOMINATOR // total, PROGRESS_DENOMINATOR - 1)


Checkpoint = Callable[[int], Awaitable[None]]


async def work(volume: Volume, order: Sanitizing, checkpoint: Checkpoint, bytes_per_s: int | None = None) -> None:
    """Do all that is left; ``checkpoint(done_bytes)`` is awaited when so much is done and synced. Raises OSError.

    Everybody else is shut out of the volume (Ranges.shut). An overwrite takes no more than ``bytes_per_s`` of the disk.
    """
    size, done = order.size_bytes, order.done_bytes
    most = CHECKPOINT_BYTES if bytes_per_s is None else min(CHECKPOINT_BYTES, max(bytes_per_s, MAX_PATTERN_BYTES))
    while done < order.total_bytes:
        number, offset = divmod(done, size)
        if order.kind == BLOCK_ERASE:
            length = min(ERASE_STEP_BYTES, size - offset)
            await volume.in_steps(PUNCH, offset, length, _never, is_claimed=True)
        else:
            pattern = order.patterns[number]
            # A whole number of patterns, so that each pass is one unbroken run of them.
            length = min(most - most % len(pattern), size - offset)
            block = memoryview(pattern * (WRITE_STEP_BYTES // len(pattern)))
            await volume.fill_steps(block, offset, length, _never, is_claimed=True)
        await volume.flush()
        done += length
        await checkpoint(done)
        if bytes_per_s is not None and order.kind == OVERWRITE:
            await volume.runtime.wait(Wait[None](), length / bytes_per_s)
        await volume.runtime.pause


def _never() -> bool:
    return False
