"""Lives of a pool, recorded: what is done to it, and what may be found behind each event of it.

``Life`` does one thing after another and notes, in the recording itself, which worlds (model.py) a death of the process
or a power cut may leave from there on. ``wander`` does what chance says; every life is made again by its seed.
A life may die and go on, and may begin on what a power cut left of another.
"""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shm_server.progress import Progress
from shm_server.renaming import rename
from shm_server.runtime import Job
from shm_server.volumes.handle import Handle
from shm_server.volumes.volume import Volume as OpenVolume
from tests.shm_server.crash.disk import Disk, Image, read_image
from tests.shm_server.crash.model import SECTOR, Expected, Found, Volume, World, certain, differs, none_of, pattern
from tests.shm_server.crash.pools import RECORD, QuietPool, boot
from tests.shm_server.crash.recorder import Died, Recorder

PAGE = 4096
PAGE_BLOCKS = PAGE // SECTOR
PAGES = 16
MAX_PAGES = 20
MAX_VOLUMES = 3
MAX_SNAPSHOTS = 4

Change = Callable[[World], World | None]


def never() -> bool:
    return False


class Life:
    """``kernel`` and ``disk``: the worlds that a death of the process, and a power cut, would leave now."""

    def __init__(self, directory: Path, seed: int, begin: Image | None = None, world: World | None = None) -> None:
        """``begin``, ``world``: what the last power cut left, and what is to be found there; nothing: a new pool."""
        self.directory = directory
        self.seed = seed
        self.choose = random.Random(seed)
        self.boot = seed % 1_000_003
        self.handles: dict[str, Handle] = {}
        self.deaths = 0
        self._value = self.choose.randrange(1 << 20, 1 << 30)  # no two lives have the same
        self._number = _last_number(world or {})  # names come in the order of their makings
        if begin is not None:
            begin.write(directory, {})
        self.begin, self.inodes = read_image(directory)
        self._patch = pytest.MonkeyPatch()
        boot(self._patch, lambda: self.boot)
        self.recorder = Recorder(directory, self._patch)
        self.kernel: tuple[World, ...] = (world or {},)
        self.disk: tuple[World, ...] = (world or {},)
        self._expect()
        self.pool = QuietPool(directory, self.choose.randrange(1 << 30), self.recorder)

    def __str__(self) -> str:
        return f"life {self.seed}"

    def end(self) -> None:
        """What was recorded is all that was done."""
        self.recorder.is_dead = True
        self.handles.clear()
        self.pool.abandon()
        self.recorder.end()
        played = Disk(self.begin, self.inodes, self.recorder.events)
        while played.at < len(self.recorder.events):
            played.step()
        found, _ = read_image(self.directory)
        recorded = played.after_death()
        assert found.files.keys() == recorded.files.keys()
        for name, content in found.files.items():
            assert content == recorded.files[name], f"{name}: something was written that was not recorded"

    def _expect(self) -> None:
        self.recorder.expect(Expected(self.boot, self.kernel, self.disk))

    # What can be done -----------------------------------------------------------------------------------------------

    def _data(self, name: str, begun: Change, done: Change, done_disk: Change, act: Coroutine[Any, Any, Any]) -> None:
        """Something done to a volume's data; what it does to each world."""
        kernel, disk = self.kernel, self.disk
        self.kernel, self.disk = _each(kernel, begun), _each(disk, begun)
        self._expect()
        self.pool.run(act)
        self.kernel, self.disk = _each(kernel, done), _each(disk, done_disk)
        self._expect()

    def write(self, name: str, first: int, count: int, *, is_durable: bool = False, is_atomic: bool = False) -> None:
        self._value += 1
        value = self._value
        data = b"".join(pattern(value, block) for block in range(first, first + count))
        volume = self.handle(name).volume
        if is_atomic:
            new = _volume(name, lambda each: each.written(first, count, value).settled(first, count))
            self._change(new, volume.write_atomic(data, first * SECTOR))
            return
        begun = _volume(name, lambda each: each.written(first, count, value))
        done = _volume(name, lambda each: each.written(first, count, value).settled(first, count))
        write = volume.write([memoryview(data)], first * SECTOR, len(data), is_durable=is_durable)
        self._data(name, begun, done, done if is_durable else begun, write)

    def discard(self, name: str, first: int, count: int) -> None:
        begun = _volume(name, lambda each: each.written(first, count, 0))
        done = _volume(name, lambda each: each.written(first, count, 0).settled(first, count))
        volume = self.handle(name).volume
        self._data(name, begun, done, begun, volume.discard(first * SECTOR, count * SECTOR, never))

    def flush(self, name: str) -> None:
        done = _volume(name, lambda each: each.settled())
        self._data(name, _same, done, done, self.handle(name).volume.flush())

    def _change(self, new: Change, act: Coroutine[Any, Any, Any]) -> None:
        """Something that is done or not, and durable when it is done."""
        kernel, disk = self.kernel, self.disk
        self.kernel, self.disk = kernel + _each(kernel, new), disk + _each(disk, new)
        self._expect()
        try:
            self.pool.run(act)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # clones
                raise
            self.kernel, self.disk = kernel, disk
            self._expect()
            return
        # The catalogue has been synced: what a death of the process left in doubt is in doubt no more.
        self.kernel, self.disk = _each(kernel[:1], new), _each(disk[:1], new)
        self._expect()

    def create(self, name: str, pages: int = PAGES) -> None:
        self._change(
            lambda world: {**world, name: Volume(((0,),) * (pages * PAGE_BLOCKS))},
            self.pool.manager.create(name, pages * PAGE),
        )

    def destroy(self, name: str) -> None:
        self.let_go(name)
        self._change(
            lambda world: {each: world[each] for each in world if each != name}, self.pool.manager.remove(name)
        )

    def resize(self, name: str, pages: int) -> None:
        self._change(
            _volume(name, lambda each: each.resized(pages * PAGE_BLOCKS)), self.pool.manager.resize(name, pages * PAGE)
        )

    def snapshot(self, name: str, snapshot: str) -> None:
        self._change(_volume(name, lambda each: each.kept(snapshot)), self.pool.snapshots.create(name, snapshot))

    def snapshot_beside_writes(self, name: str, snapshot: str) -> None:
        """What is written while it is made is in it up to some write, and not behind that (CONTRACTS 10)."""
        volume = self.handle(name).volume
        kernel, disk = self.kernel, self.disk
        new = _volume(name, lambda each: each.kept(snapshot))
        self.kernel, self.disk = kernel + _each(kernel, new), disk + _each(disk, new)
        self._expect()
        is_over: list[BaseException | None] = []
        making = self.pool.snapshots.create(name, snapshot)
        Job(making, lambda _, error: is_over.append(error)).start()
        while not is_over:
            if self.choose.random() < 0.4:
                self._write_beside(name, volume, snapshot)
            else:
                self.pool.turn()
        assert is_over == [None]
        made = self.pool.look_at(name).snapshots[snapshot]
        worlds = self.kernel[len(kernel)], self.disk[len(disk)]
        assert made in worlds[0][name].snapshots[snapshot], f"{self}: {snapshot} has what was not, or not what was"
        settle = _volume(name, lambda each: replace(each, snapshots={**each.snapshots, snapshot: (made,)}))
        self.kernel, self.disk = _each(worlds[:1], settle), _each(worlds[1:], settle)
        self._expect()

    def _write_beside(self, name: str, volume: OpenVolume, snapshot: str) -> None:
        self._value += 1
        value, blocks = self._value, len(self.now[name].blocks)
        first = self.choose.randrange(blocks)
        count = self.choose.randint(1, min(blocks - first, 12))
        data = b"".join(pattern(value, block) for block in range(first, first + count))

        def begun(each: Volume) -> Volume:
            written = each.written(first, count, value)
            if snapshot in each.snapshots:
                written = replace(
                    written, snapshots={**each.snapshots, snapshot: (*each.snapshots[snapshot], written.latest)}
                )
            return written

        self.kernel, self.disk = _each(self.kernel, _volume(name, begun)), _each(self.disk, _volume(name, begun))
        self._expect()
        self.pool.write(volume, first * SECTOR, data)
        self.kernel = _each(self.kernel, _volume(name, lambda each: each.settled(first, count)))
        self._expect()

    def remove(self, name: str, snapshot: str) -> None:
        self._change(_volume(name, lambda each: _without(each, snapshot)), self.pool.snapshots.remove(name, snapshot))

    def roll_back(self, name: str, snapshot: str) -> None:
        self.let_go(name)
        names = sorted(self.now[name].snapshots)
        later = names[names.index(snapshot) + 1 :]

        def new(each: Volume) -> Volume:
            ((*values,),) = each.snapshots[snapshot]
            return replace(_without(each, *later), blocks=tuple((value,) for value in values))

        self._change(_volume(name, new), self.pool.snapshots.rollback(name, snapshot))

    def clone(self, name: str, snapshot: str, new: str) -> None:
        def cloned(world: World) -> World | None:
            if name not in world or snapshot not in world[name].snapshots:
                return None
            ((*values,),) = world[name].snapshots[snapshot]
            return {**world, new: Volume(tuple((value,) for value in values))}

        self._change(cloned, self.pool.snapshots.clone(name, snapshot, new))

    def make_template(self, name: str) -> None:
        self.let_go(name)
        self._change(
            _volume(name, lambda each: replace(each.settled(), snapshots={}, is_template=True)),
            self.pool.snapshots.make_template(name),
        )

    def clone_template(self, name: str, new: str) -> None:
        def cloned(world: World) -> World | None:
            if name not in world or not world[name].is_template:
                return None
            return {**world, new: Volume(world[name].settled().blocks)}

        self._change(cloned, self.pool.snapshots.clone(name, "", new))

    def promote(self, name: str) -> None:
        """Nobody sees that, but that what it stood on can go."""
        self._change(_same, self.pool.promoter.promote(name, Progress(lambda: 0.0, lambda *_: None, lambda: True)))

    def rename(self, name: str, new: str) -> None:
        def renamed(world: World) -> World:
            return {new if each == name else each: volume for each, volume in world.items()}

        self.let_go(name)
        self._change(renamed, rename(self.pool.manager, name, new))

    def put_record(self, name: str) -> None:
        version, _ = self.now[name].record
        data = self.choose.randbytes(self.choose.choice((20, 3000)))
        self._change(
            _volume(name, lambda each: replace(each, record=(version + 1, data))),
            self.pool.records.put(name, RECORD, version, data),
        )

    # Ends and beginnings --------------------------------------------------------------------------------------------

    @property
    def now(self) -> World:
        return self.kernel[0]

    def handle(self, name: str) -> Handle:
        if name not in self.handles:
            self.handles[name] = self.pool.hold(name)
        return self.handles[name]

    def let_go(self, name: str) -> None:
        if name in self.handles:
            self.pool.let_go(self.handles.pop(name))

    def restart(self) -> None:
        """In order."""
        for name in list(self.handles):
            self.let_go(name)
        self.pool.close()
        self.pool = QuietPool(self.directory, self.choose.randrange(1 << 30), self.recorder)

    def die(self, act: Callable[[], None] = lambda: None, events: int = 0, again: int = 0) -> bool:
        """Behind so many events of ``act``, or behind it all; ``again`` so often while it begins anew; and go on.
        False: ``act`` was over before."""
        self.deaths += 1
        if events:
            self.recorder.dies_at = len(self.recorder.events) + events
        try:
            act()
            was_over = True
        except Died:
            was_over = False
        self.recorder.is_dead = True
        self.handles.clear()
        self.pool.abandon()
        for number in range(again + 1):
            self.recorder.revive()
            if number < again:
                self.recorder.dies_at = len(self.recorder.events) + self.choose.randint(1, 12)
            try:
                self.pool = QuietPool(self.directory, self.choose.randrange(1 << 30), self.recorder)
            except Died:
                continue
            if number < again:
                self.recorder.is_dead = True
                self.pool.abandon()
        self._resolve()
        return not was_over

    def new_name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number:08d}"

    def _resolve(self) -> None:
        """What was under way has come or not: that shows now."""
        found = self.pool.look()
        self.handles.clear()
        words = none_of(self.kernel, found)
        assert not words, f"life {self.seed}, death {self.deaths}: {words}"
        world = certain(found)
        at = next(at for at, each in enumerate(self.disk) if not differs(each, found))
        # What a start of the server shows is durable, but for the data.
        self.kernel, self.disk = (world,), (_with(self.disk[at], world),)
        self._expect()


def live(
    directory: Path, seed: int, steps: int, begin: Image | None = None, found: Mapping[str, Found] | None = None
) -> Life:
    """A life of chance, to its end."""
    directory.mkdir()
    life = Life(directory, seed, begin, certain(found or {}))
    try:
        wander(life, steps)
    finally:
        life.end()
        shutil.rmtree(directory)
    return life


def wander(life: Life, steps: int) -> None:
    """What chance says."""
    for _ in range(steps):
        _step(life)


def _step(life: Life) -> None:
    choose = life.choose
    acts = _possible(life)
    names, weights = zip(*((act, weight) for act, weight in acts), strict=True)
    (act,) = choose.choices(names, weights)
    if choose.random() < 0.04:
        life.die(act, choose.randint(1, 40), choose.choice((0, 0, 1)))
    else:
        act()


def _possible(life: Life) -> list[tuple[Callable[[], None], int]]:
    """What can be done now, and how likely that is to be."""
    choose, now = life.choose, life.now
    if not now:
        return [(lambda: life.create(life.new_name("v")), 1)]
    name = choose.choice(sorted(now))
    if now[name].is_template:
        return _possible_of_a_template(life, name)
    blocks = len(now[name].blocks)
    first = choose.randrange(blocks)
    count = choose.randint(1, min(blocks - first, 20))
    page = first // PAGE_BLOCKS
    pages = choose.randint(1, min(blocks // PAGE_BLOCKS - page, 4))
    acts: list[tuple[Callable[[], None], int]] = [
        (lambda: life.write(name, first, count), 8),
        (lambda: life.write(name, page * PAGE_BLOCKS, pages * PAGE_BLOCKS), 14),
        (lambda: life.write(name, first, count, is_durable=True), 3),
        (lambda: life.write(name, first, count, is_atomic=True), 3),
        (lambda: life.discard(name, first, count), 2),
        (lambda: life.discard(name, page * PAGE_BLOCKS, pages * PAGE_BLOCKS), 4),
        (lambda: life.flush(name), 10),
        (lambda: life.let_go(name), 2),
        (lambda: life.put_record(name), 2),
        (life.pool.settle, 3),
        (lambda: life.rename(name, life.new_name("v")), 1),
        (lambda: life.promote(name), 2),
        (lambda: life.make_template(name), 1),
        (life.restart, 1),
    ]
    if len(now) < MAX_VOLUMES:
        acts.append((lambda: life.create(life.new_name("v")), 2))
    if len(now) > 1:
        acts.append((lambda: life.destroy(name), 1))
    if blocks < MAX_PAGES * PAGE_BLOCKS:
        acts.append((lambda: life.resize(name, blocks // PAGE_BLOCKS + 1), 2))
    if len(now[name].snapshots) < MAX_SNAPSHOTS:
        acts.append((lambda: life.snapshot(name, life.new_name("s")), 5))
        acts.append((lambda: life.snapshot_beside_writes(name, life.new_name("s")), 4))
    if now[name].snapshots:
        snapshot = choose.choice(sorted(now[name].snapshots))
        acts.append((lambda: life.remove(name, snapshot), 5))
        acts.append((lambda: life.roll_back(name, snapshot), 3))
        if len(now) < MAX_VOLUMES:
            acts.append((lambda: life.clone(name, snapshot, life.new_name("v")), 4))
    return acts


def _last_number(world: World) -> int:
    names = [*world, *(snapshot for volume in world.values() for snapshot in volume.snapshots)]
    return max((int(name[1:]) for name in names if name[1:].isdigit()), default=0)


def _possible_of_a_template(life: Life, name: str) -> list[tuple[Callable[[], None], int]]:
    acts: list[tuple[Callable[[], None], int]] = [
        (life.pool.settle, 1),
        (lambda: life.promote(name), 1),
        (lambda: life.rename(name, life.new_name("v")), 1),
        (lambda: life.destroy(name), 1),
    ]
    if len(life.now) < MAX_VOLUMES:
        acts.append((lambda: life.clone_template(name, life.new_name("v")), 5))
    return acts


def _with(disk: World, kernel: World) -> World:
    """What the kernel has is what came last."""
    return {
        name: replace(
            kernel[name],
            blocks=tuple(
                (*(each for each in values if each != now), now)
                for values, now in zip(volume.blocks, kernel[name].latest, strict=True)
            ),
        )
        for name, volume in disk.items()
    }


def _each(worlds: tuple[World, ...], change: Change) -> tuple[World, ...]:
    """Where it applies."""
    changed = (change(world) for world in worlds)
    return tuple(world for world in changed if world is not None)


def _same(world: World) -> World:
    return world


def _volume(name: str, change: Callable[[Volume], Volume]) -> Change:
    def changed(world: World) -> World:
        if name not in world:
            return world
        try:
            return {**world, name: change(world[name])}
        except (IndexError, KeyError):  # in a world where this is not so, and which will be none
            return world

    return changed


def _without(volume: Volume, *snapshots: str) -> Volume:
    kept = {name: values for name, values in volume.snapshots.items() if name not in snapshots}
    return replace(volume, snapshots=kept)
