"""A pool without threads: what would run on one runs when its turn comes, in an order that is chosen by a seed."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_server.abi import names
from shm_server.runtime import Call, Runtime
from shm_server.stores import checked, linux, maplog
from shm_server.volumes.catalog import Catalog, Database, connect
from tests.shm_server.crash.database import Recorded
from tests.shm_server.crash.model import Found, values_of
from tests.shm_server.crash.recorder import Recorder
from tests.shm_server.pool import Pool

RECORD = "r"


class Quiet(Runtime):
    """Its clock goes on when there is nothing else to do."""

    def __init__(self, choose: random.Random) -> None:
        self._now_s = 0.0
        super().__init__(lambda: self._now_s)
        self._calls: list[Call] = []
        self._choose = choose

    def _dispatch(self, call: Call) -> None:
        self._submitted += 1
        self._calls.append(call)

    def work(self) -> None:
        if self._calls:
            call = self._calls.pop(self._choose.randrange(len(self._calls)))
            call.run()
            if call.error is not None and not isinstance(call.error, Exception):
                raise call.error  # it died
            self.finished.append(call)
        elif not self.ready and not self.finished:
            assert self._timers, "nothing will ever happen"
            self._now_s = max(self._now_s, self._timers[0][0])
            self.fire_timers()

    def close(self, wait_s: float = 0) -> None:
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
            self.wake_fd = -1


class QuietPool(Pool):
    def __init__(self, directory: Path, seed: int, recorder: Recorder | None = None) -> None:
        """``recorder``: what the catalogue writes is noted there."""
        self._recorder = recorder
        self._connections: list[Database] = []
        self.quiet = Quiet(random.Random(seed))
        try:
            super().__init__(directory, runtime=self.quiet)
        except BaseException:
            self._end()
            raise

    def _open_catalog(self) -> Catalog:
        return Catalog(self.directory / "catalogue.sqlite", self._connect)

    def _connect(self, path: str) -> Database:
        made = connect(path) if self._recorder is None else Recorded(self._recorder, path)
        self._connections.append(made)
        return made

    def _end(self) -> None:
        for connection in self._connections:
            connection.close()
        self.quiet.close()

    def turn(self) -> None:
        self.quiet.work()
        self.quiet.collect()
        self.quiet.step()

    def abandon(self) -> None:
        """It is dead."""
        for volume in self.manager.open_volumes():
            volume.store.close()
        self.manager._open.clear()  # or what was under way would end in order
        self._end()

    # Looking --------------------------------------------------------------------------------------------------------

    def look(self) -> dict[str, Found]:
        """At everything."""
        return {info.name: self.look_at(info.name) for info in self.manager.stat_all()}

    def look_at(self, name: str) -> Found:
        content = self._read_all(name)
        snapshots = [each.name for each in self.run(self.snapshots.find_all(name, "", 100))]
        return Found(
            content,
            {each: self._read_all(names.join(name, each)) for each in snapshots},
            tuple(self.run(self.records.get(name, RECORD))),
            self.manager.record(name).is_template,
        )

    def _read_all(self, name: str) -> tuple[int, ...]:
        handle = self.hold(name, "r")
        try:
            return values_of(self.read(handle.volume, 0, handle.volume.size_bytes))
        finally:
            self.let_go(handle)

    def damage(self) -> str:
        """What the checksums of sealed layers say of their pages."""
        for name in self.manager.layers:
            if (checked := self.check(name)).problems:
                return f"{name}: {checked.told}"
        return ""

    def unknown_files(self) -> set[str]:
        """That nobody knows, once all is tidy."""
        rows = self.catalog.select("SELECT number FROM layers", ())
        known = {str(number) for (number,) in rows} | {
            self.manager.record(info.name).files for info in self.manager.stat_all()
        }
        return {path.name for path in (self.directory / "volumes").iterdir() if path.stem not in known}


class NoWatch:
    """Nobody else writes the files. (Each inotify descriptor takes the kernel 10 ms to close.)"""

    def __init__(self, modified: object) -> None:
        self._numbers = itertools.count()

    def add(self, path: Path) -> int:
        return next(self._numbers)

    def remove(self, watch: int) -> None: ...

    def look(self) -> None: ...

    def close(self) -> None: ...


def boot(patch: pytest.MonkeyPatch, number: Callable[[], int]) -> None:
    """On a disk, for all that the stores know, and in the machine's life ``number``."""
    patch.setattr(linux, "filesystem_magic", lambda fd: 0)
    patch.setattr(maplog, "boot_id", lambda: number().to_bytes(16, "little"))
    patch.setattr(checked, "Watch", NoWatch)
