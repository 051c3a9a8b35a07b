"""The power fails, or the process dies, at every moment of a volume's life with snapshots, and CONTRACTS 1 holds.

One life is recorded: writes of whole pages and less, flushes, FUA, discards, an atomic write, snapshots, a clone, a
merge, a rollback, a start of the machine in between. Then, behind each event, the disk is built as it may be
(recorder.py), the pool opened on it, and everything read: each block of 512 bytes is what was flushed last, or written
since; snapshots that replied are there to the byte; after the mere death of the process everything acknowledged is
there; and no file is left that nobody knows. The same with each sync taken out in turn must be found wrong.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.stores import linux, maplog
from shm_server.volumes.catalog import Catalog
from shm_server.volumes.handle import Handle
from tests.shm_server.pool import Pool
from tests.shm_server.recorder import SECTOR, Disk, Image, Recorder

LOOK_EVENTS = 20
PAGE = maplog.PAGE_BYTES
PAGES = 16
SIZE = PAGES * PAGE
FIRST_BOOT, SECOND_BOOT, LATER_BOOT = (bytes([number]) * 16 for number in (1, 2, 3))


def never() -> bool:
    return False


class Entry:
    """Something done to a volume: events [begun, done) of the recording; ``blocks`` are what it wrote."""

    def __init__(self, begun: int, blocks: dict[int, int], *, is_durable: bool, is_atomic: bool = False) -> None:
        self.begun = begun
        self.is_atomic = is_atomic
        self.done = 0
        self.blocks = blocks
        self.is_durable = is_durable


class Life:
    """What was done, and when."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(linux, "filesystem_magic", lambda fd: 0)  # a disk, for all that the store knows
        patch.setattr(maplog, "boot_id", lambda: FIRST_BOOT)
        self._patch = patch
        self.directory = directory
        self.catalog = Catalog(None)
        self.pool = Pool(directory, catalog=self.catalog)
        self.pool.run(self.pool.manager.create("v", SIZE))
        self.entries: dict[str, list[Entry]] = {"v": []}
        self.snapshots: dict[str, tuple[str, int, int, bytes]] = {}  # volume, from and to which event, content
        self.contents = {"v": bytearray(SIZE // SECTOR)}  # a byte a block
        self._value = 0
        self.handles: dict[str, Handle] = {}
        self.recorder: Recorder | None = None
        self.write("v", 0, PAGES * PAGE)
        self.flush("v")
        self.entries["v"] = []
        self.begin = bytes(self.contents["v"])
        self.recorder = Recorder(directory / "volumes", self.catalog, patch)

    @property
    def now(self) -> int:
        return len(self.recorder.events) if self.recorder else 0

    def write(self, name: str, offset: int, length: int, *, is_durable: bool = False, is_atomic: bool = False) -> None:
        self._value += 1
        entry = self._entry(name, offset, length, self._value, is_durable or is_atomic)
        entry.is_atomic = is_atomic
        data = bytes([self._value]) * length
        if is_atomic:
            self.pool.run(self.handle(name).volume.write_atomic(data, offset))
        else:
            self.pool.write(self.handle(name).volume, offset, data, is_durable=is_durable)
        self._done(name, entry)

    def discard(self, name: str, offset: int, length: int) -> None:
        entry = self._entry(name, offset, length, 0, False)
        self.pool.run(self.handle(name).volume.discard(offset, length, never))
        self._done(name, entry)

    def create(self, name: str) -> None:
        begun = self.now
        self.pool.run(self.pool.manager.create(name, SIZE))
        self.contents[name] = bytearray(SIZE // SECTOR)
        entry = Entry(self.now, dict(enumerate(self.contents[name])), is_durable=True)
        entry.done = self.now
        self.entries[name] = [entry]
        assert begun < self.now

    def forget_past(self, name: str) -> None:
        """It has no snapshots, nobody holds it: it becomes a plain store."""
        self.pool.let_go(self.handles.pop(name))
        self.pool.settle()
        self.pool.snapshots.tidy()
        self.pool.settle()
        assert name not in self.pool.manager.layers

    def make_template(self, name: str) -> None:
        self.pool.let_go(self.handles.pop(name))
        entry = self._entry(name, 0, 0, 0, True)
        for snapshot in [each for each, (whose, *_) in self.snapshots.items() if whose == name]:
            self._forget(snapshot)
        self.pool.run(self.pool.snapshots.make_template(name))
        self._done(name, entry)
        self.pool.settle()
        self.snapshots[""] = (name, self.now, 1 << 30, bytes(self.contents[name]))

    def close(self, name: str) -> None:
        """Nobody holds it any more; all of it is durable then."""
        entry = self._entry(name, 0, 0, 0, True)
        self.pool.let_go(self.handles.pop(name))
        self.pool.settle()
        self._done(name, entry)

    def flush(self, name: str) -> None:
        entry = self._entry(name, 0, 0, 0, True)
        self.pool.run(self.handle(name).volume.flush())
        self._done(name, entry)

    def snapshot(self, name: str, snapshot: str) -> None:
        entry = self._entry(name, 0, 0, 0, True)
        self.pool.run(self.pool.snapshots.create(name, snapshot))
        self._done(name, entry)
        self.snapshots[snapshot] = (name, self.now, 1 << 30, bytes(self.contents[name]))

    def remove(self, name: str, snapshot: str) -> None:
        self._forget(snapshot)
        self.pool.run(self.pool.snapshots.remove(name, snapshot))
        self.pool.settle()

    def roll_back(self, name: str, snapshot: str) -> None:
        content = self.snapshots[snapshot][3]
        self.pool.let_go(self.handles.pop(name))
        self.pool.settle()
        entry = Entry(self.now, dict(enumerate(content)), is_durable=True)
        for later, (whose, since, _, _) in list(self.snapshots.items()):
            if whose == name and since > self.snapshots[snapshot][1]:
                self._forget(later)
        self.pool.run(self.pool.snapshots.rollback(name, snapshot))
        self.pool.settle()
        self._done(name, entry)

    def clone(self, name: str, snapshot: str, new: str) -> None:
        self.pool.run(self.pool.snapshots.clone(name, snapshot, new))
        content = self.snapshots[snapshot][3]
        self.contents[new] = bytearray(content)
        entry = Entry(self.now, dict(enumerate(content)), is_durable=True)
        entry.done = self.now
        self.entries[new] = [entry]

    def _forget(self, snapshot: str) -> None:
        name, since, until, content = self.snapshots[snapshot]
        self.snapshots[snapshot] = (name, since, min(until, self.now), content)

    def reboot(self) -> None:
        """All that the kernel had has come to the disk, by chance; but nobody knows that."""
        self.handles.clear()
        self.pool.runtime.close()
        assert self.recorder is not None
        self.recorder.mark("reboot")
        self.rebooted = self.now
        self._patch.setattr(maplog, "boot_id", lambda: SECOND_BOOT)
        self.pool = Pool(self.directory, catalog=self.catalog)
        for name in self.contents:
            found = self.pool.read(self.handle(name).volume, 0, SIZE)
            self.contents[name] = bytearray(found[at] for at in range(0, SIZE, SECTOR))
            entry = Entry(self.now, dict(enumerate(self.contents[name])), is_durable=True)
            entry.done = self.now
            self.entries[name].append(entry)

    def handle(self, name: str) -> Handle:
        if name not in self.handles:
            self.handles[name] = self.pool.hold(name)
        return self.handles[name]

    def _entry(self, name: str, offset: int, length: int, value: int, is_durable: bool) -> Entry:
        blocks = range(offset // SECTOR, (offset + length) // SECTOR)
        entry = Entry(self.now, dict.fromkeys(blocks, value), is_durable=is_durable)
        self.entries[name].append(entry)
        return entry

    def _done(self, name: str, entry: Entry) -> None:
        entry.done = self.now
        if entry not in self.entries[name]:
            self.entries[name].append(entry)
        for block, value in entry.blocks.items():
            self.contents[name][block] = value


def live(life: Life) -> None:
    life.write("v", 0, PAGE)
    life.write("v", 3 * PAGE + 1024, 2048)
    life.flush("v")
    life.write("v", 5 * PAGE, PAGE)
    life.snapshot("v", "s1")
    life.write("v", 0, PAGE)
    life.write("v", 3 * PAGE + 512, 512)
    life.write("v", 0, 1024)
    life.flush("v")
    life.write("v", 7 * PAGE, 2 * PAGE)
    life.discard("v", 5 * PAGE, 2 * PAGE)
    life.flush("v")
    life.write("v", 5 * PAGE, 512)
    life.write("v", 8 * PAGE + 512, 2 * PAGE, is_atomic=True)
    life.write("v", 9 * PAGE, 512)
    life.flush("v")
    life.snapshot("v", "s2")
    life.write("v", 0, PAGE)
    life.write("v", PAGE, 512, is_durable=True)
    life.clone("v", "s2", "c")
    life.write("c", 2 * PAGE, PAGE + 512)
    life.flush("c")
    life.remove("v", "s1")
    life.write("v", 10 * PAGE, PAGE)
    life.close("v")
    life.write("v", 4 * PAGE, PAGE)
    life.write("v", 6 * PAGE, 512)
    life.flush("v")
    life.write("v", 2 * PAGE, PAGE)
    life.close("v")
    for page in (11, 13, 14, 15):
        life.write("v", page * PAGE, PAGE)
    life.write("c", 11 * PAGE, PAGE)
    life.reboot()
    life.write("v", 12 * PAGE, PAGE)
    life.write("v", 11 * PAGE + 512, 512)
    life.flush("v")
    life.snapshot("v", "s3")
    life.write("v", 0, PAGE)
    life.write("v", 13 * PAGE, 512)
    life.snapshot("v", "s4")
    life.discard("v", 0, 3 * PAGE)
    life.roll_back("v", "s3")
    life.write("v", 14 * PAGE, PAGE)
    life.flush("v")
    life.remove("v", "s3")
    life.write("v", 14 * PAGE, 512)
    life.create("w")
    life.write("w", 0, 2 * PAGE)
    life.snapshot("w", "s5")
    life.write("w", 0, 512)
    life.remove("w", "s5")
    life.write("w", PAGE, PAGE)
    life.discard("w", 0, PAGE)
    life.write("w", 4 * PAGE, PAGE)
    life.forget_past("w")
    life.write("w", 4 * PAGE, PAGE)
    life.flush("w")
    life.write("w", 0, PAGE)
    life.snapshot("w", "s6")
    life.write("w", 512, PAGE)
    life.make_template("w")
    life.clone("w", "", "d")
    life.write("d", 512, 512)


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    with pytest.MonkeyPatch.context() as patch:
        made = Life(directory, patch)
        live(made)
        made.pool.runtime.close()
    yield made
    assert made.recorder is not None
    made.recorder.close()
    shutil.rmtree(directory)


class Judge:
    """Opens a pool on what is left, and says what is wrong with it."""

    def __init__(self, life: Life, directory: Path) -> None:
        self._life = life
        self._directory = directory
        (directory / "volumes").mkdir()

    def wrong(self, image: Image, at: int, *, was_cut: bool) -> str:
        """What is not as it must be; "" if nothing."""
        life, volumes = self._life, self._directory / "volumes"
        for path in volumes.iterdir():
            path.unlink()
        for name, content in image.files.items():
            (volumes / name).write_bytes(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linux, "filesystem_magic", lambda fd: 0)
            boot = SECOND_BOOT if "reboot" in image.marks else FIRST_BOOT
            patch.setattr(maplog, "boot_id", lambda: LATER_BOOT if was_cut else boot)
            catalog = Catalog(None)
            catalog._database.deserialize(image.catalogue)
            pool = Pool(self._directory, catalog=catalog)
            try:
                return self._look(pool, life, at, was_cut=was_cut)
            except OSError as error:
                return f"{error}"
            finally:
                pool.close()
                catalog.close()

    def _look(self, pool: Pool, life: Life, at: int, *, was_cut: bool) -> str:
        for name, entries in life.entries.items():
            if name != "v" and entries[0].begun > at:
                continue
            content = self._read(pool, name)
            since = at if was_cut else life.rebooted if at >= life.rebooted else 0
            if words := _differs(content, life.begin, entries, at, since):
                return f"{name}: {words}"
        for snapshot, (name, since, until, kept) in life.snapshots.items():
            if since <= at <= until:
                pool.run(pool.snapshots.clone(name, snapshot, "look"))
                if self._read(pool, "look") != b"".join(bytes([value]) * SECTOR for value in kept):
                    return f"snapshot {snapshot} is another"
                pool.run(pool.manager.remove("look"))
        pool.settle()
        for name in pool.manager.layers:
            if (checked := pool.check(name)).problems:
                return f"{name}: {checked.told}"
        rows = pool.catalog.select("SELECT number, file FROM layers", ())
        known = {"v.raw", "v.redo", "v.owners", "c.redo", "c.owners", "w.raw", "w.owners", "d.owners"}
        known |= {name for number, file in rows for name in (file, f"{number}.map", f"{number}.sums")}
        unknown = {path.name for path in (self._directory / "volumes").iterdir()} - known
        return f"files that nobody knows: {unknown}" if unknown else ""

    @staticmethod
    def _read(pool: Pool, name: str) -> bytes:
        handle = pool.hold(name, "r" if pool.manager.stat(name).is_template else "rw")
        content = pool.read(handle.volume, 0, SIZE)
        pool.let_go(handle)
        return content


def _differs(content: bytes, begin: bytes, entries: list[Entry], at: int, since: int) -> str:
    """``since``: what was acknowledged and not flushed is sure from there on."""
    sure = list(begin)
    maybe: list[list[int]] = [[] for _ in begin]
    for entry in entries:
        if entry.begun > at:
            break
        for block, value in entry.blocks.items():
            maybe[block].append(value)
        if entry.done <= at:
            settled = range(len(sure)) if entry.is_durable else entry.blocks if entry.begun >= since else ()
            for block in settled:
                if maybe[block]:
                    sure[block] = maybe[block][-1]
                    maybe[block].clear()
    last = max((entry for entry in entries if entry.begun <= at), key=lambda entry: entry.begun)
    if last.is_atomic:
        found_new = [content[block * SECTOR] == value for block, value in last.blocks.items()]
        if any(found_new) and not all(found_new):
            return f"an atomic write is half there: {found_new}"
    for block, value in enumerate(sure):
        found = content[block * SECTOR : (block + 1) * SECTOR]
        if found not in [bytes([each]) * SECTOR for each in (value, *maybe[block])]:
            return f"block {block} has {found[:1].hex()}…{found[-1:].hex()}, not {value} or one of {maybe[block]}"
    return ""


def first_wrong(life: Life, directory: Path, seeds: int, ignored: str = "") -> str:
    """Play the life, look behind each event; where syncs are ignored, behind those and for a while."""
    recorder = life.recorder
    assert recorder is not None
    judge = Judge(life, directory)
    disk = Disk(recorder.names, recorder.contents_at_begin, recorder.events, ignored)
    ignored_at = -LOOK_EVENTS
    for at in range(1, len(recorder.events) + 1):
        if disk.step().site == ignored != "":
            ignored_at = at
        if ignored and at - ignored_at > LOOK_EVENTS:
            continue
        if not ignored and (words := judge.wrong(disk.after_death(), at, was_cut=False)):
            return f"killed behind event {at}: {words}"
        for seed in range(seeds):
            if words := judge.wrong(disk.after_cut(number := seed * 100_003 + at), at, was_cut=True):
                return f"power cut behind event {at}, seed {number}: {words}"
    return ""


def test_any_moment(life: Life, tmp_path: Path) -> None:
    """Nothing that was promised is lost."""
    assert first_wrong(life, tmp_path, 2) == ""


@pytest.mark.soak
def test_any_moment_in_many_ways(life: Life, tmp_path: Path) -> None:
    """The same, many more disks behind each event."""
    assert first_wrong(life, tmp_path, 400) == ""


# Who asks for a sync of what: every one of them is needed …
SITES = [
    "checksums.py: SumsFile.cover, the file",
    "checksums.py: SumsFile.uncover, the file",
    "descriptor.py: DescriptorStore.sync, the data",
    "file.py: FileStores.create, the directory",
    "file.py: FileStores.create, the file",
    "layer.py: create_files, the directory",
    "layer.py: remove_files, the directory",
    "layered.py: LayeredStore._sync_layers, the data",
    "layered.py: LayeredStore._sync_layers, the map",
    "layered.py: LayeredStore.sync, the record",
    "maplog.py: MapLog.create, the file",
    "merging.py: _make_durable, the data",
    "merging.py: _make_durable, the map",
    "redo.py: RedoFile._create, the directory",
    "redo.py: RedoFile.record, the file",
    "table.py: Table.finish, the file",
    "table.py: Table.use, the file",
]
# … but these: the first hears of losses, and there are none here; the sync of the first record covers the third; the
# others want two crashes, one behind the other (test_maplog.py, test_redo.py).
SPARE = [
    "checksums.py: SumsFile.cover, the directory",  # a file that is lost is made anew
    "checksums.py: SumsFile.sync, the file",  # a merge begins anew before anybody can look
    "file.py: FileStores.open, the file",
    "layer.py: create_files, the file",  # an empty layer that lost its size gets it at the next open
    "maplog.py: MapLog.open, the file",
    "redo.py: RedoFile._create, the file",
    "redo.py: RedoFile.replay, the record",
]


def test_the_sites_are_those_of_the_store(life: Life) -> None:
    """A sync that is new must be in the list, and so be found missing below."""
    assert life.recorder is not None
    assert life.recorder.sites() == sorted(SITES + SPARE)


@pytest.mark.parametrize("site", SITES)
def test_a_sync_that_is_missing_is_found(life: Life, tmp_path: Path, site: str) -> None:
    """Without it something that was promised is lost at some moment."""
    assert first_wrong(life, tmp_path, 12, site) != ""
