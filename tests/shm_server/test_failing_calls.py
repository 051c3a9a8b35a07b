"""Lives of a pool in which any system call of the server may fail, in the middle of anything, and does by chance: full
disks, bad media, no descriptors. Whoever hears of an error finds what was there or what was to come, and from then on
always the same; what was acknowledged is there, snapshots stay what they are, and the next start finds all of that.

FAULT_SEED is printed, and repeats a run.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm_server.progress import Progress
from shm_server.stores import file, linux
from shm_server.stores.owners import CHUNK_BYTES, CHUNK_PAGES
from shm_server.volumes.compound import write_atomic
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool
from tests.shm_server.test_compound import Bytes

SEED = int(os.environ.get("FAULT_SEED", str(random.randrange(1 << 32))))
LIVES, STEPS = 4, 30
SOAK_LIVES, SOAK_STEPS = 1000, 200
SECTOR, PAGE = 512, 4096
PAGES = 24
BLOCKS = PAGES * PAGE // SECTOR
BEGIN = (CHUNK_PAGES - PAGES // 2) * PAGE  # on both sides of a border between two chunks of owners
FULL, BROKEN, MANY, MEMORY = errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENOMEM
CALLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "pwrite": (os, (FULL, BROKEN)),
    "pwritev": (os, (FULL, BROKEN)),
    "pread": (os, (BROKEN,)),
    "preadv": (os, (BROKEN,)),
    "fdatasync": (os, (BROKEN, FULL)),
    "fsync": (os, (BROKEN,)),
    "open": (os, (MANY, MEMORY)),
    "ftruncate": (os, (FULL, BROKEN)),
    "unlink": (os, (BROKEN,)),
    "link": (os, (FULL,)),
    "copy_file_range": (os, (FULL, BROKEN)),
    "lseek": (os, (BROKEN,)),
    "fstat": (os, (BROKEN,)),
    "posix_fallocate": (os, (FULL,)),
    "fallocate": (linux, (FULL,)),
}

Values = list[set[int]]  # what each block may have: the numbers of writes


def never() -> bool:
    return False


class Faults:
    """Some kinds of calls fail now and then, while it is on."""

    def __init__(self, choose: random.Random, patch: pytest.MonkeyPatch) -> None:
        self._choose = choose
        self._share = 0.0
        self._kinds: set[str] = set()
        for name, (module, numbers) in CALLS.items():
            patch.setattr(module, name, self._wrap(name, getattr(module, name), numbers))

    def _wrap(self, name: str, call: Callable[..., Any], numbers: tuple[int, ...]) -> Callable[..., Any]:
        def may_fail(*arguments: Any, **more: Any) -> Any:
            if name in self._kinds and self._choose.random() < self._share:
                raise OSError(self._choose.choice(numbers), f"{name}: as the test wants it")
            return call(*arguments, **more)

        return may_fail

    def turn_on(self) -> None:
        choose = self._choose
        self._share = choose.choice((0.02, 0.1, 0.3))
        self._kinds = set(choose.sample(sorted(CALLS), choose.choice((1, 2, 3, len(CALLS)))))

    def turn_off(self) -> None:
        self._kinds = set()


class Model:
    def __init__(self, values: Values) -> None:
        self.values = values
        self.snapshots: dict[str, Values] = {}


def copied(values: Values) -> Values:
    return [set(each) for each in values]


def content(value: int, first: int, count: int) -> bytes:
    blocks = range(first, first + count)
    return b"".join(struct.pack("<QQ", value, block) * 32 if value else bytes(SECTOR) for block in blocks)


class Life:
    def __init__(self, directory: Path, seed: int, patch: pytest.MonkeyPatch) -> None:
        self.choose = random.Random(seed)
        self.faults = Faults(self.choose, patch)
        patch.setattr(file, "MAX_OPEN_LAYERS", 2)
        self.pool = Pool(directory, map_cache_bytes=CHUNK_BYTES)
        self.models = {"v0": Model([{0} for _ in range(BLOCKS)])}
        self.handles: dict[str, Any] = {}
        self.number = 0
        self.pool.run(self.pool.manager.create("v0", BEGIN + PAGES * PAGE))

    def next(self) -> int:
        self.number += 1
        return self.number

    def volume(self, name: str) -> Volume:
        if name not in self.handles:
            self.handles[name] = self.pool.hold(name)
        opened: Volume = self.handles[name].volume
        return opened

    def let_go(self, name: str) -> None:
        if name in self.handles:
            self.pool.let_go(self.handles.pop(name))

    # What is done ---------------------------------------------------------------------------------------------------

    def act(self) -> None:
        name = self.choose.choice(sorted(self.models))
        acts, weights = zip(*ACTS.items(), strict=True)
        self.choose.choices(acts, weights)[0](self, name, self.models[name])

    def range(self) -> tuple[int, int]:
        unit = self.choose.choice((1, PAGE // SECTOR))
        first = self.choose.randrange(BLOCKS // unit) * unit
        return first, min(self.choose.choice((1, 2, 5)) * unit, BLOCKS - first)

    def write(self, name: str, model: Model) -> None:
        first, count = self.range()
        is_zero = self.choose.random() < 0.2
        value = 0 if is_zero else self.next()
        volume, offset = self.volume(name), BEGIN + first * SECTOR
        data = content(value, first, count)
        for block in range(first, first + count):
            model.values[block].add(value)
        if is_zero:
            self.pool.run(volume.discard(offset, len(data), never))
        elif self.choose.random() < 0.15:
            self.pool.run(write_atomic(volume, Bytes(data), offset, len(data), never))
        else:
            self.pool.write(volume, offset, data, is_durable=self.choose.random() < 0.1)
        for block in range(first, first + count):
            model.values[block] = {value}

    def flush(self, name: str, _model: Model) -> None:
        self.pool.run(self.volume(name).flush())

    def close(self, name: str, _model: Model) -> None:
        self.let_go(name)

    def snapshot(self, name: str, model: Model) -> None:
        if len(model.snapshots) < 4:
            snapshot = f"s{self.next():06}"
            model.snapshots[snapshot] = copied(model.values)
            self.pool.run(self.pool.snapshots.create(name, snapshot))

    def remove(self, name: str, model: Model) -> None:
        if model.snapshots:
            snapshot = self.choose.choice(sorted(model.snapshots))
            self.pool.run(self.pool.snapshots.remove(name, snapshot))

    def roll_back(self, name: str, model: Model) -> None:
        if not model.snapshots:
            return
        self.let_go(name)
        snapshot = self.choose.choice(sorted(model.snapshots))
        before = model.values
        model.values = [old | new for old, new in zip(before, model.snapshots[snapshot], strict=True)]
        try:
            self.pool.run(self.pool.snapshots.rollback(name, snapshot))
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                model.values = before
            raise
        model.values = copied(model.snapshots[snapshot])

    def clone(self, name: str, model: Model) -> None:
        if model.snapshots and len(self.models) < 3:
            snapshot, new = self.choose.choice(sorted(model.snapshots)), f"v{self.next()}"
            self.models[new] = Model(copied(model.snapshots[snapshot]))
            self.pool.run(self.pool.snapshots.clone(name, snapshot, new))

    def promote(self, name: str, _model: Model) -> None:
        progress = Progress(lambda: 0.0, lambda *_: None, lambda: True)
        self.pool.run(self.pool.promoter.promote(name, progress))

    def settle(self, _name: str, _model: Model) -> None:
        self.pool.settle()

    def restart(self) -> None:
        for name in list(self.handles):
            self.let_go(name)
        self.pool.restart()

    # What is found --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """No volume and no snapshot has what it may not have; and what it has it keeps."""
        for name in [name for name, handle in self.handles.items() if handle.volume.failure]:
            self.let_go(name)
        there = {record.name: record.uuid for record in self.pool.catalog.load()}
        self.models = {name: model for name, model in self.models.items() if name in there}
        assert there.keys() == self.models.keys()
        for name, model in self.models.items():
            kept = {each.name for each in self.pool.manager.lineage.snapshots(there[name])}
            assert kept <= model.snapshots.keys()
            model.snapshots = {each: model.snapshots[each] for each in kept}
            self._look(name, model.values)
            for snapshot, values in model.snapshots.items():
                self._look(f"{name}@{snapshot}", values)

    def _look(self, name: str, values: Values) -> None:
        with self.pool.volume(name, "r") as volume:
            data = self.pool.read(volume, BEGIN, PAGES * PAGE)
        for block, may in enumerate(values):
            found = data[block * SECTOR : (block + 1) * SECTOR]
            value = int.from_bytes(found[:8], "little")
            assert value in may, f"{name}, block {block}: {value}, not one of {may}"
            assert found == content(value, block, 1), f"{name}, block {block}: torn"
            may.intersection_update({value})


ACTS: dict[Callable[[Life, str, Model], None], int] = {
    Life.write: 55,
    Life.flush: 5,
    Life.close: 7,
    Life.snapshot: 12,
    Life.remove: 7,
    Life.roll_back: 4,
    Life.clone: 4,
    Life.promote: 3,
    Life.settle: 3,
}


def live(seed: int, steps: int, patch: pytest.MonkeyPatch) -> None:
    print(f"FAULT_SEED={seed}")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, patch.context() as context:
        life = Life(Path(directory), seed, context)
        for _ in range(steps):
            life.faults.turn_on()
            try:
                for _ in range(life.choose.randint(1, 6)):
                    life.act()
            except OSError:
                pass  # what was under way has come or not
            life.faults.turn_off()
            if life.choose.random() < 0.1:
                life.restart()
            life.look()
        life.restart()
        life.look()
        life.pool.settle()
        for name in life.models:
            assert life.pool.check(name).problems == 0
        life.pool.close()


def test_any_call_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few lives, new ones each time."""
    for number in range(LIVES):
        live(SEED + number, STEPS, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones each time."""
    for number in range(SOAK_LIVES):
        live(number, SOAK_STEPS, monkeypatch)
