"""Checksums of sealed layers: made in the background, at a pace; and ``check``, which holds every page against its own.

Both go layer by layer, a step of a MiB at a time on a thread; of layers that are small, and there may be very many, it
does some at a time. What is being made stands in the files themselves, so a server that starts anew goes on where it
was. A check makes what is still missing, without a pace, and then reads all that the volume's snapshots stand on; the
background rests meanwhile. Who sees a page that is bad is found out last: from the layer upwards, as far as no layer
hides the page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from shm_server.manager import Manager
from shm_server.progress import Progress
from shm_server.runtime import Call, Job, Lane, Runtime, Wait
from shm_server.stores.base import DamagedMapError, Findings, LayerChecks, LayerFile
from shm_server.under_way import CHECKING
from shm_server.volumes.sight import who_sees

log = logging.getLogger(__name__)

DEFAULT_BYTES_PER_S = 64 << 20
CALL_S = 0.005  # of a thread's time, with steps that are small
LAYER_BYTES = 1 << 20  # what a layer costs, however small: its files are opened and synced
MAX_PROBLEMS = 1000
BAD_PAGE, LOST_CHECKSUM, DAMAGED_BLOCK, DAMAGED_HEADER = "bad page", "lost checksum", "damaged block", "damaged header"
DAMAGED_MAP = "damaged map"


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
            left = iter([file for file in await self._sealed(numbers) if file.number not in self._complete])
            while (file := await self._first_incomplete(checks, left)) is not None:
                if self._checking:
                    return  # which looks again at its end
                try:
                    await self._make(checks, file)
                except OSError as error:
                    if await self._sealed({file.number}):
                        log.error("checksums of layer %d, %s: %s", file.number, file.name, error)
                        failed.add(file.number)
        self._new = failed  # they come along when there is something to do

    async def _first_incomplete(self, checks: LayerChecks, files: Iterator[LayerFile]) -> LayerFile | None:
        """None: there is none, or a check has come."""
        while not self._checking:
            skip = partial(_skip_complete, checks, files, self._runtime.clock)
            complete, file, is_end = await self._call(skip)
            # Another layer may have been merged into one of them since.
            self._complete.update(number for number in complete if number not in self._new)
            if file is not None or is_end:
                found: LayerFile | None = file
                return found
            await self._runtime.pause
        return None

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
        if file.number not in self._new:
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
            with self._manager.under_way.doing(CHECKING, uuid):
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
            done.update(file.number for file in layers)
            steps = _through(checks, layers, renew=renew)
            while some := await self._call(partial(_some, steps, self._runtime.clock)):
                for step in some:
                    at.add(step)
                    if step.error is not None:
                        progress.check()
                        if not await self._sealed({step.file.number}):
                            continue  # it was merged meanwhile, and verified as it was
                        if not isinstance(step.error, DamagedMapError):
                            raise step.error
                        problems.append(await self._manager.on_thread(partial(self._tell_map, step.file)))
                    if (found := step.found) is not None:
                        checked.layers += 1
                        checked.pages += found.pages
                        if not found.is_clean:
                            problems += await self._manager.on_thread(partial(self._tell, step.file, found))
                await self._runtime.pause
        checked.problems, checked.told = len(problems), problems[:MAX_PROBLEMS]
        return checked

    async def _left(self, uuid: str, done: set[int]) -> list[LayerFile]:
        """Layers to look at. Asked once more behind them: the chain may have become another meanwhile."""
        chain: list[LayerFile] = await self._manager.on_thread(lambda: self._manager.lineage.chain(uuid))
        return [file for file in chain if file.is_sealed and file.number not in done]

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

    def _tell_map(self, file: LayerFile) -> Problem:
        """On a thread. Whoever stands on the layer can't be read."""
        seen = who_sees(self._manager.lineage, file, (0,), lambda _above, _pages: set())
        return Problem(DAMAGED_MAP, file, 0, 0, seen[0])


# On a thread --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """So much of a layer was read. The first says what is left, the last what was found, or why nobody knows."""

    file: LayerFile
    read_bytes: int = 0
    is_extra: bool = False  # besides reading the layer once
    left_bytes: int | None = None  # of this layer and those behind it
    found: Findings | None = None
    error: OSError | None = None


def _through(checks: LayerChecks, layers: Sequence[LayerFile], *, renew: bool) -> Iterator[_Step]:
    sizes = [checks.allocated_bytes(file) for file in layers]
    left_bytes = sum(sizes)
    for file, size_bytes in zip(layers, sizes, strict=True):
        yield _Step(file, left_bytes=left_bytes)
        left_bytes -= size_bytes
        try:
            found = yield from _through_layer(checks, file, renew=renew)
            yield _Step(file, found=found)
            checks.check_map(file)
        except OSError as error:
            yield _Step(file, error=error)


def _through_layer(checks: LayerChecks, file: LayerFile, *, renew: bool) -> Generator[_Step, None, Findings]:
    yield from (_Step(file, count, is_extra=True) for count in checks.complete(file))
    found = Findings()
    yield from (_Step(file, count) for count in checks.scrub(file, found))
    if renew and (found.lost or found.damaged_blocks or found.is_header_damaged):
        checks.renew(file)
        yield from (_Step(file, count, is_extra=True) for count in checks.complete(file))
        log.warning("damaged checksums of layer %d, %s, were made anew", file.number, file.name)
        bad = found.bad
        found = Findings()
        yield from (_Step(file, count, is_extra=True) for count in checks.scrub(file, found))
        found.bad = sorted({*bad, *found.bad})
    return found


def _some(steps: Iterator[_Step], clock: Callable[[], float]) -> list[_Step]:
    """As many as fit into CALL_S; none: that was all."""
    begun_s = clock()
    some = []
    for step in steps:
        some.append(step)
        if clock() - begun_s >= CALL_S:
            break
    return some


def _skip_complete(
    checks: LayerChecks, files: Iterator[LayerFile], clock: Callable[[], float]
) -> tuple[list[int], LayerFile | None, bool]:
    """What is complete of the next ones, in CALL_S; the one behind that is not; whether that was all of them."""
    begun_s = clock()
    complete: list[int] = []
    for file in files:
        try:
            if not checks.is_complete(file):
                return complete, file, False
        except OSError:  # who goes to work on it will hear of that again
            return complete, file, False
        complete.append(file.number)
        if clock() - begun_s >= CALL_S:
            return complete, None, False
    return complete, None, True


class _Bytes:
    """How far a check has come; what it has to do besides reading each layer once makes the whole longer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = self._left = 0

    def add(self, step: _Step) -> None:
        if step.left_bytes is not None:
            self._left = step.left_bytes
        self._done += step.read_bytes
        if not step.is_extra:
            self._left = max(0, self._left - step.read_bytes)
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
