"""A byte that a disk gives back as another, in any file that a pool keeps beside what is being written: whoever reads
gets what was there, or an error that names the file. Never other data, whatever is merged meanwhile.

What is not promised here: the catalogue, whose pages have no checksums; what is written now, and plain volumes, whose
blocks have none either; the table of owners that a killed server left. ROT_SEED is printed, and repeats a run.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shm_server.scrubbing import BAD_PAGE, DAMAGED_MAP
from shm_server.stores import maplog
from shm_server.stores.redo import RedoFile
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool

PAGE = maplog.PAGE_BYTES
PAGES = 24
SEED = int(os.environ.get("ROT_SEED", str(random.randrange(1 << 32))))
FLIPS = 40
SOAK_FLIPS = 20_000

Content = dict[str, bytes]
NAMES = r"\.(map|data|raw|owners|sums)\b"


@pytest.fixture(scope="module")
def sound() -> Iterator[tuple[Path, Content]]:
    """A pool in order, and what is in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        pool = Pool(Path(directory) / "pool")
        choose = random.Random(1)

        def write(volume: Volume, pages: int) -> None:
            for page in choose.sample(range(PAGES), pages):
                pool.write(volume, page * PAGE, choose.randbytes(PAGE))

        pool.run(pool.manager.create("v", PAGES * PAGE))
        with pool.volume("v") as volume:
            for number in range(4):
                write(volume, 9 if number else PAGES // 2)
                pool.run(volume.discard(choose.randrange(PAGES - 3) * PAGE, 3 * PAGE, lambda: False))
                pool.run(volume.flush())
                pool.run(pool.snapshots.create("v", f"s{number}"))
            write(volume, 5)
        pool.run(pool.snapshots.clone("v", "s1", "c"))
        with pool.volume("c") as volume:
            write(volume, 4)
            pool.run(pool.snapshots.create("c", "s"))
            write(volume, 4)
        pool.run(pool.snapshots.clone("c", "s", "t"))
        pool.run(pool.snapshots.make_template("t"))
        pool.run(pool.snapshots.clone("t", "", "e"))
        with pool.volume("e") as volume:
            write(volume, 4)
        pool.settle()
        content = read_all(pool)
        pool.close()
        yield pool.directory, {name: found for name, found in content.items() if isinstance(found, bytes)}


def read_all(pool: Pool) -> dict[str, bytes | OSError]:
    """Each volume and each snapshot, page by page; zeros are told from what can't be read."""
    found: dict[str, bytes | OSError] = {}
    for record in pool.catalog.load():
        for snapshot in ("", *(f"@{each.name}" for each in pool.manager.lineage.snapshots(record.uuid))):
            name = record.name + snapshot
            try:
                with pool.volume(name, "r") as volume:
                    found[name] = pool.read(volume, 0, PAGES * PAGE)
            except OSError as error:
                found[name] = error
    pool.settle()
    return found


def flip(choose: random.Random, directory: Path, tops: set[str]) -> str:
    """Where there is something, mostly. No medium has the holes of data, which are zeros whatever happens to it."""
    files = [path for path in sorted((directory / "volumes").iterdir()) if path.name not in tops]
    path = choose.choice([path for path in files if any(path.read_bytes())])
    content = bytearray(path.read_bytes())
    marked = [at for at, byte in enumerate(content) if byte]
    is_data = path.suffix in (".data", ".raw")
    at = choose.choice(marked) if is_data or choose.random() < 0.8 else choose.randrange(len(content))
    content[at] ^= 1 << choose.randrange(8)
    path.write_bytes(content)
    return f"{path.name}, byte {at}"


def tops_of(pool: Pool) -> set[str]:
    """Files of data that are written."""
    uuids = [record.uuid for record in pool.catalog.load()]
    return {chain[-1].name for uuid in uuids if (chain := pool.manager.lineage.chain(uuid))}


def verify(found: dict[str, bytes | OSError], expected: Content, where: str) -> None:
    for name, what in found.items():
        if isinstance(what, OSError):
            assert re.search(NAMES, what.strerror or ""), f"{where}: {name}: {what!r}"
        else:
            bad = [page for page in range(PAGES) if what[page * PAGE :][:PAGE] != expected[name][page * PAGE :][:PAGE]]
            assert not bad, f"{where}: {name} has other data in pages {bad}"


def remove_one(pool: Pool) -> str:
    pool.run(pool.snapshots.remove("v", "s2"))
    return "v@s2"


def remove_lowest(pool: Pool) -> str:
    pool.run(pool.snapshots.remove("v", "s0"))
    return "v@s0"


def nothing(pool: Pool) -> str:
    return ""


ACTS: tuple[Callable[[Pool], str], ...] = (nothing, remove_one, remove_lowest)


def rot(sound: tuple[Path, Content], seed: int, patch: pytest.MonkeyPatch) -> None:
    choose = random.Random(seed)
    origin, content = sound
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name) / "pool"
        shutil.copytree(origin, directory)
        pool = Pool(directory)
        tops = tops_of(pool)
        pool.close()
        where = f"ROT_SEED={seed}: {flip(choose, directory, tops)}"
        if choose.random() < 0.5:
            patch.setattr(maplog, "boot_id", lambda: bytes(16))
        pool = Pool(directory)
        verify(read_all(pool), content, where)
        act = choose.choice(ACTS)
        where += f", {act.__name__}"
        act(pool)
        pool.settle()
        verify(read_all(pool), content, where)
        pool.restart()
        verify(read_all(pool), content, where + ", started anew")
        pool.close()
        patch.undo()


def test_no_byte_that_turns_gives_other_data(sound: tuple[Path, Content], monkeypatch: pytest.MonkeyPatch) -> None:
    """Any byte of any file, under the same boot and another."""
    for number in range(FLIPS):
        rot(sound, SEED + number, monkeypatch)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A volume with two snapshots and a clone of the first, and something written since."""
    made = Pool(tmp_path)
    made.run(made.manager.create("v", PAGES * PAGE))
    for snapshot in ("a", "b"):
        with made.volume("v") as volume:
            made.write(volume, 0, snapshot.encode() * PAGE)
        made.run(made.snapshots.create("v", snapshot))
    made.run(made.snapshots.clone("v", "a", "c"))
    with made.volume("v") as volume:
        made.write(volume, PAGE, b"z" * PAGE)
    made.settle()
    yield made
    made.close()


def damage(pool: Pool, number: int) -> None:
    path = pool.directory / "volumes" / f"{number}.map"
    content = bytearray(path.read_bytes())
    content[maplog.HEADER_BYTES + 8] ^= 1
    path.write_bytes(content)


def begins(pool: Pool, name: str) -> bytes:
    with pool.volume(name, "r") as volume:
        found = pool.read(volume, 0, 1)
    pool.settle()
    return found


def test_a_check_tells_of_a_damaged_map(pool: Pool) -> None:
    """With who can't be read by it, and all else that it finds; what stands below is read as ever."""
    base, upper, _ = pool.manager.lineage.chain(pool.manager.record("v").uuid)
    damage(pool, upper.number)
    (found,) = pool.check("v").told
    assert (found.kind, found.layer.number, found.seen_by) == (DAMAGED_MAP, upper.number, ("v", "v@b"))
    path = pool.directory / "volumes" / base.name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    told = {(each.kind, each.layer.number, each.seen_by) for each in pool.check("v").told}
    assert told == {(DAMAGED_MAP, upper.number, ("v", "v@b")), (BAD_PAGE, base.number, ("c", "v@a"))}


@pytest.mark.parametrize("which", [1, 2])
def test_a_rollback_gets_rid_of_a_damaged_map(pool: Pool, which: int) -> None:
    """The volume can't be opened; but it can be what it was, and what was left to be written again is gone."""
    chain = pool.manager.lineage.chain(pool.manager.record("v").uuid)
    damage(pool, chain[which].number)
    for path in (pool.directory / "volumes").glob("*.owners"):
        path.unlink()
    redo = RedoFile(pool.directory / "volumes" / "v.redo", pool.manager.record("v").uuid)
    redo.record(0, b"r" * PAGE)
    redo.close()
    with pytest.raises(OSError, match=r"\.map is damaged"):
        begins(pool, "v")
    snapshot = "ab"[which - 1]
    pool.run(pool.snapshots.rollback("v", snapshot))
    assert begins(pool, "v") == snapshot.encode()
    pool.restart()
    assert begins(pool, "v") == begins(pool, f"v@{snapshot}") == snapshot.encode()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_bytes_that_turn(sound: tuple[Path, Content], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones each time."""
    for number in range(SOAK_FLIPS):
        rot(sound, number, monkeypatch)
