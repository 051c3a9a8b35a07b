"""Checksums of sealed layers: made in the background, at a pace; and ``check``, which holds every page against its own.

Both go layer by layer, a step of a MiB at a time on a thread. What is being made stands in the files themselves, so a
server that starts anew goes on where it was. A check makes what is still missing, without a pace, and then reads all
that the volume's snapshots stand on; the background rests meanwhile. Who sees a page that is bad is found out last:
from the layer upwards, as far as no layer hides the page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from shm_server.manager import Manager
from shm_server.progress import Progress
from shm_server.runtime import Call, Job, Lane, Runtime, Wait
from shm_server.stores.base import Findings, LayerChecks, LayerFile
from shm_server.volumes.sight import who_sees

log = logging.getLogger(__name__)

DEFAULT_BYTES_PER_S = 64 << 20
LAYER_BYTES = 1 << 20  # what a layer costs, however small: its files are opened and synced
MAX_PROBLEMS = 1000
BAD_PAGE, LOST_CHECKSUM, DAMAGED_BLOCK, DAMAGED_HEADER = "bad page", "lost checksum", "damaged block", "damaged header"


@dataclass(frozen=True, slots=True)
class Problem:
    """So many pages of a layer, one behind the other."""

    kind: str
    layer: LayerFile
    page: int
    pages: int
    seen_by: tuple[str, ...] = ()


@dataclass(slots=True)
class Checked:
    layers: int = 0
    pages: int = 0  # held against their checksums
    problems: int = 0
    told: Sequence[Problem] = ()  # the first MAX_PROBLEMS


class Scrubber:
    def __init__(
        self, runtime: Runtime, checks: LayerChecks | None, manager: Manager, bytes_per_s: int = DEFAULT_BYTES_PER_S
    ) -> None:
        """``checks`` None: there are no layers."""
        self._runtime = runtime
        self._checks = checks
        self._manager = manager
        self._bytes_per_s = bytes_per_s
        self._lane = Lane(1)
        self._checking = 0  # checks that are under way
        self._hurry: Wait[None] = Wait()  # set: the background is to go out of the way
        self._complete: set[int] = set()  # layers of which we know it
        self._must_look = False  # at all layers
        self._new: set[int] = set()  # layers that were sealed or changed, or are to be tried again
        self.is_working = False
        manager.on_sealed = self.look
        if checks is not None:
            checks.keep(manager.lineage.numbers())
            self.look()

    # In the background ----------------------------------------------------------------------------------------------

    def look(self, number: int = 0) -> None:
        """A layer was sealed, or another was merged into it; 0: it may be any."""
        if self._checks is None:
            return
        self._complete.discard(number)
        if number:
            self._new.add(number)
        else:
            self._must_look = True
        if not self.is_working and not self._checking:
            self.is_working = True
            Job(self._work(self._checks), self._worked).start()

    def _worked(self, _value: None, error: BaseException | None) -> None:
        self.is_working = False
        if error is not None:
            log.error("making checksums failed: %s", error, exc_info=not isinstance(error, OSError))

    async def _work(self, checks: LayerChecks) -> None:
        failed: set[int] = set()
        while self._must_look or self._new:
            numbers, self._new = None if self._must_look else self._new, set()
            self._must_look = False
            for file in await self._sealed(numbers):
                if self._checking:
                    return  # which looks again at its end
                if file.number in self._complete:
                    continue
                try:
                    await self._make(checks, file)
                except OSError as error:
                    if await self._sealed({file.number}):
                        log.error("checksums of layer %d, %s: %s", file.number, file.name, error)
                        failed.add(file.number)
        self._new = failed  # they come along when there is something to do

    async def _make(self, checks: LayerChecks, file: LayerFile) -> None:
        if not await self._call(lambda: checks.is_complete(file)):
            begun_s, read_bytes = self._runtime.clock(), LAYER_BYTES
            steps = checks.complete(file)
            while (count := await self._call(lambda: next(steps, None))) is not None:
                read_bytes += count
                ahead_s = read_bytes / self._bytes_per_s - (self._runtime.clock() - begun_s)
                if ahead_s > 0:
                    self._hurry = Wait()
                    await self._runtime.wait(self._hurry, ahead_s)
                else:
                    await self._runtime.pause
                if self._checking:
                    return
            if not await self._call(lambda: checks.is_complete(file)):
                return  # a merge into it, or a promotion, has begun: which says when that is over
        self._complete.add(file.number)

    async def _sealed(self, numbers: set[int] | None = None) -> list[LayerFile]:
        """All sealed layers, or those of the numbers that are."""
        lineage = self._manager.lineage
        found: list[LayerFile] = await self._manager.on_thread(lambda: lineage.sealed(numbers))
        return found

    def _call(self, function: Callable[[], object]) -> Call:
        return Call(self._runtime, self._lane, function)

    # A check --------------------------------------------------------------------------------------------------------

    async def check(self, name: str, progress: Progress, *, renew: bool = False) -> Checked:
        """Every sealed layer that the volume stands on. ``renew``: checksums that are damaged are made anew, from the
        data as they are. ENOENT; ECANCELED."""
        uuid = self._manager.record(name).uuid
        self._checking += 1
        self._hurry.set()
        try:
            checked = await self._check(uuid, progress, renew=renew)
        finally:
            self._checking -= 1
            self.look()
        log.info("volume %s checked: %d layers, %d problems", name, checked.layers, checked.problems)
        return checked

    async def _check(self, uuid: str, progress: Progress, *, renew: bool) -> Checked:
        checked = Checked()
        problems: list[Problem] = []
        done: set[int] = set()
        at = _Bytes(progress)
        checks = self._checks
        while checks is not None and (layers := await self._left(uuid, done)):
            sizes = await self._call(lambda: [checks.allocated_bytes(file) for file in layers])
            left_bytes = sum(sizes)
            for file, size_bytes in zip(layers, sizes, strict=True):
                at.left(left_bytes)
                left_bytes -= size_bytes
                done.add(file.number)
                try:
                    found = await self._check_layer(checks, file, at, renew=renew)
                except OSError:
                    progress.check()
                    if await self._sealed({file.number}):
                        raise
                    continue  # it was merged meanwhile, and verified as it was
                checked.layers += 1
                checked.pages += found.pages
                problems += await self._manager.on_thread(partial(self._tell, file, found))
        checked.problems, checked.told = len(problems), problems[:MAX_PROBLEMS]
        return checked

    async def _left(self, uuid: str, done: set[int]) -> list[LayerFile]:
        """Layers to look at. Asked once more behind them: the chain may have become another meanwhile."""
        chain: list[LayerFile] = await self._manager.on_thread(lambda: self._manager.lineage.chain(uuid))
        return [file for file in chain if file.is_sealed and file.number not in done]

    async def _check_layer(self, checks: LayerChecks, file: LayerFile, at: _Bytes, *, renew: bool) -> Findings:
        await self._steps(checks.complete(file), at, is_extra=True)
        found = Findings()
        await self._steps(checks.scrub(file, found), at)
        if renew and (found.lost or found.damaged_blocks or found.is_header_damaged):
            await self._call(lambda: checks.renew(file))
            await self._steps(checks.complete(file), at, is_extra=True)
            log.warning("damaged checksums of layer %d, %s, were made anew", file.number, file.name)
            bad = found.bad
            found = Findings()
            await self._steps(checks.scrub(file, found), at, is_extra=True)
            found.bad = sorted({*bad, *found.bad})
        return found

    async def _steps(self, steps: Iterator[int], at: _Bytes, *, is_extra: bool = False) -> None:
        while (count := await self._call(lambda: next(steps, None))) is not None:
            at.read(count, is_extra=is_extra)
            await self._runtime.pause

    def _tell(self, file: LayerFile, found: Findings) -> list[Problem]:
        """On a thread."""
        assert self._checks is not None
        problems = []
        if found.is_header_damaged:
            problems.append(Problem(DAMAGED_HEADER, file, 0, 0))
        problems += (Problem(DAMAGED_BLOCK, file, block, 1) for block in found.damaged_blocks)
        for kind, pages in ((BAD_PAGE, found.bad), (LOST_CHECKSUM, found.lost)):
            if pages:
                seen = who_sees(self._manager.lineage, file, pages, self._checks.owned)
                problems += _joined(kind, file, pages, seen)
        return problems


class _Bytes:
    """How far a check has come; what it has to do besides reading each layer once makes the whole longer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._left = 0

    def left(self, left_bytes: int) -> None:
        self._left = left_bytes
        self._tell()

    def read(self, count: int, *, is_extra: bool) -> None:
        self._done += count
        if not is_extra:
            self._left = max(0, self._left - count)
        self._tell()

    def _tell(self) -> None:
        self._progress.tell(self._done, self._done + self._left)


def _joined(kind: str, file: LayerFile, pages: list[int], seen: dict[int, tuple[str, ...]]) -> Iterator[Problem]:
    """Neighbours that the same ones see are one problem."""
    start = previous = pages[0]
    for page in [*pages[1:], -1]:
        if page == previous + 1 and seen[page] == seen[start]:
            previous = page
            continue
        yield Problem(kind, file, start, previous + 1 - start, seen[start])
        start = previous = page
