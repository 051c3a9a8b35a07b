"""What a chain keeps of who owns its pages, over its closing: when it is believed, and that losing it loses nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shm_server.stores import layer, maplog
from shm_server.stores.layered import LayeredStore
from shm_server.stores.maplog import PAGE_BYTES as PAGE
from shm_server.stores.maplog import Place
from shm_server.stores.owners import CHUNK_BYTES, CHUNK_PAGES, Owners
from shm_server.stores.table import HEADER_BYTES, STRIDE_BYTES, Table
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool

UUID = "0123456789abcdef" * 2
SIZE = 1 << 20


@pytest.fixture
def path(pool: Pool) -> Path:
    return pool.directory / "volumes" / "demo.owners"


def boot(patch: pytest.MonkeyPatch, number: int) -> None:
    patch.setattr(maplog, "boot_id", lambda: bytes([number]) * 16)


class Reads:
    """How many records of maps were looked at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        scan = maplog.MapLog._scan

        def counted(log: maplog.MapLog, since: Place) -> Any:
            runs, of = scan(log, since)
            self.count += len(runs)
            return runs, of

        patch.setattr(maplog.MapLog, "_scan", counted)

    def take(self) -> int:
        taken, self.count = self.count, 0
        return taken


def live(pool: Pool) -> bytes:
    """Layers with a page each; what the volume holds then."""
    with pool.volume("demo") as volume:
        for number in range(8):
            pool.write(volume, number * PAGE, bytes([number + 1]) * PAGE)
            pool.run(pool.snapshots.create("demo", f"s{number}"))
        pool.write(volume, 2 * PAGE, b"x" * PAGE)
        expected = pool.read(volume, 0, SIZE)
    pool.settle()
    return expected


def content(pool: Pool) -> bytes:
    with pool.volume("demo") as volume:
        found = pool.read(volume, 0, SIZE)
    pool.settle()  # its closing has an end of its own
    return found


@pytest.mark.parametrize("is_other_boot", [False, True])
def test_what_was_closed_is_opened_without_its_maps(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, is_other_boot: bool
) -> None:
    """Whatever its snapshots and records, and after another start of the machine, too."""
    boot(monkeypatch, 1)
    expected = live(pool)
    reads = Reads(monkeypatch)
    if is_other_boot:
        boot(monkeypatch, 2)
    assert content(pool) == expected
    assert reads.take() == 0
    with pool.volume("demo") as volume:
        pool.write(volume, 9 * PAGE, b"y" * PAGE)
    assert content(pool) == expected[: 9 * PAGE] + b"y" * PAGE + expected[10 * PAGE :]
    assert reads.take() <= 1  # the start of the machine, that the second opening noted


def killed(pool: Pool, volume: Volume) -> Pool:
    """A pool as it is found when the server was killed."""
    assert isinstance(volume.store, LayeredStore)
    return Pool(pool.directory)


def test_behind_a_killed_server_the_rest_of_the_log_is_read(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more of it; the machine is still the same."""
    live(pool)
    reads = Reads(monkeypatch)
    with pool.volume("demo") as volume:
        pool.run(volume.flush())
        for number in range(20, 25):
            pool.write(volume, number * PAGE, b"z" * PAGE)
        expected = pool.read(volume, 0, SIZE)
        reads.take()
        again = killed(pool, volume)
        assert content(again) == expected
        assert reads.take() == 5
        again.close()


def test_what_a_killed_server_had_open_is_settled_by_the_next(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to open the volume for that: what was acknowledged, and never flushed, outlives the machine's end."""
    boot(monkeypatch, 1)
    live(pool)
    with pool.volume("demo") as volume:
        pool.write(volume, 30 * PAGE, b"z" * PAGE)
        expected = pool.read(volume, 0, SIZE)
        again = killed(pool, volume)
        again.close()
        boot(monkeypatch, 2)
        later = Pool(pool.directory)
        assert content(later) == expected
        later.close()


def test_what_was_in_use_is_nothing_after_another_start(
    pool: Pool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of it may be newer than their records: it is made anew, and the old one is left as it was."""
    boot(monkeypatch, 1)
    expected = live(pool)
    with pool.volume("demo") as volume:
        pool.write(volume, 30 * PAGE, b"z" * PAGE)
        os.link(path, path.with_suffix(".old"))
        before = path.read_bytes()
        boot(monkeypatch, 2)
        again = killed(pool, volume)
        assert content(again) == expected
        again.close()
    assert path.with_suffix(".old").read_bytes()[HEADER_BYTES:] == before[HEADER_BYTES:]


@pytest.mark.parametrize("at", range(0, 100, 4))
def test_a_header_that_is_damaged_is_not_believed(pool: Pool, path: Path, at: int) -> None:
    """Any field of it; the maps have all."""
    expected = live(pool)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    raw[HEADER_BYTES:] = bytes(len(raw) - HEADER_BYTES)
    path.write_bytes(raw)
    assert content(pool) == expected


@pytest.mark.parametrize("at", [0, 2 * 4, 7 * 4 + 3, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 3])
def test_an_owner_that_is_another_is_no_ones_data(pool: Pool, path: Path, at: int) -> None:
    """A bit of what was closed, or of its checksum: EIO by name, never an older page; then the maps are read."""
    expected = live(pool)
    raw = bytearray(path.read_bytes())
    raw[HEADER_BYTES + at] ^= 4
    path.write_bytes(raw)
    with pytest.raises(OSError, match=r"demo\.owners is damaged: who owns pages 0 to 16383") as caught:
        content(pool)
    assert caught.value.errno == errno.EIO
    pool.settle()
    assert content(pool) == expected
    assert content(pool) == expected


@pytest.mark.parametrize("end", [HEADER_BYTES, HEADER_BYTES + CHUNK_BYTES, HEADER_BYTES + CHUNK_BYTES + 5])
def test_a_chunk_that_has_gone_is_missed(pool: Pool, path: Path, monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """It would read as the base's; the maps are read instead."""
    expected = live(pool)
    os.truncate(path, end)
    reads = Reads(monkeypatch)
    assert content(pool) == expected
    assert reads.take() > 0
    assert content(pool) == expected
    assert reads.take() == 0


def test_chunks_are_held_against_their_checksums_over_lives(pool: Pool, path: Path) -> None:
    """One that is left alone keeps its checksum, one that is written gets another, one whose server was killed too."""
    live(pool)
    pool.run(pool.manager.resize("demo", 2 * CHUNK_PAGES * PAGE))
    far = CHUNK_PAGES * PAGE
    for number in range(3):
        with pool.volume("demo") as volume:
            pool.write(volume, far + number * PAGE, b"f" * PAGE)
        pool.settle()
    with pool.volume("demo") as volume:
        pool.write(volume, far + 3 * PAGE, b"f" * PAGE)
        again = killed(pool, volume)
        again.settle()
        with again.volume("demo") as found:
            assert again.read(found, far, 4 * PAGE) == b"f" * 4 * PAGE
            assert again.read(found, 2 * PAGE, PAGE) == b"x" * PAGE
        again.settle()
        again.close()
        for chunk in range(2):
            raw = path.read_bytes()
            damaged = bytearray(raw)
            damaged[HEADER_BYTES + chunk * STRIDE_BYTES] ^= 4
            path.write_bytes(damaged)
            later = Pool(pool.directory)
            with pytest.raises(OSError, match="is damaged"), later.volume("demo") as found:
                later.read(found, chunk * far, PAGE)
            later.settle()
            later.close()
            path.write_bytes(raw)


def test_another_log_than_it_was_made_of(pool: Pool, path: Path) -> None:
    """Shorter, of another layer, or one that has something else at that place: then the maps are read."""
    expected = live(pool)
    kept = path.read_bytes()
    with pool.volume("demo") as volume:
        pool.write(volume, 40 * PAGE, b"z" * PAGE)
        store = volume.store
        assert isinstance(store, LayeredStore)
        log = store._log
        shorter = log.place()
    expected = content(pool)
    os.truncate(log.path, shorter.length - maplog.RECORD_BYTES)
    assert content(pool) == expected[: 40 * PAGE] + bytes(PAGE) + expected[41 * PAGE :]
    for bad in (b"", kept[:100], os.urandom(len(kept))):
        path.write_bytes(bad)
        assert content(pool)[:PAGE] == expected[:PAGE]
    path.unlink()
    assert content(pool)[:PAGE] == expected[:PAGE]


def test_rollback_and_merges_keep_it_right(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge costs nothing at the next opening; behind a rollback the maps are read once."""
    expected = live(pool)
    kept = expected[: 2 * PAGE] + b"\x03" * PAGE + expected[3 * PAGE : 6 * PAGE] + bytes(SIZE - 6 * PAGE)
    for name in ("s3", "s4", "s0"):
        pool.run(pool.snapshots.remove("demo", name))
    pool.settle()
    reads = Reads(monkeypatch)
    assert content(pool) == expected
    assert reads.take() == 0
    pool.run(pool.snapshots.rollback("demo", "s5"))
    pool.settle()
    reads.take()
    assert content(pool) == kept
    assert reads.take() > 0
    assert content(pool) == kept
    assert reads.take() == 0


def test_a_map_that_cannot_be_kept_costs_nothing(pool: Pool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its file breaks behind a record, what was written is there, now and later; nobody hears of it."""
    live(pool)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with pool.volume("demo") as volume:
        pool.write(volume, 50 * PAGE, b"a" * PAGE)
        with monkeypatch.context() as patch:
            patch.setattr(Table, "write", broken)
            pool.write(volume, 51 * PAGE, b"b" * PAGE)
        pool.write(volume, 52 * PAGE, b"c" * PAGE)
        assert not path.exists()
        assert pool.read(volume, 50 * PAGE, 3 * PAGE) == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE
    with pool.volume("demo") as volume:
        assert pool.read(volume, 50 * PAGE, 3 * PAGE) == b"a" * PAGE + b"b" * PAGE + b"c" * PAGE


def test_a_map_that_can_not_be_removed_is_not_believed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is what can't be written kept, nor can the file go: what was claimed since is read again from the maps,
    whatever was flushed and closed behind that."""
    live(pool)

    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "broken")

    with pool.volume("demo") as volume:
        pool.write(volume, 50 * PAGE, b"a" * PAGE)
        with monkeypatch.context() as patch:
            patch.setattr(Table, "write", broken)
            patch.setattr(Path, "unlink", broken)
            pool.write(volume, 51 * PAGE, b"b" * PAGE)
        pool.write(volume, 51 * PAGE, b"c" * PAGE)
        pool.run(volume.flush())
        expected = pool.read(volume, 0, SIZE)
        assert expected[51 * PAGE : 52 * PAGE] == b"c" * PAGE
    pool.settle()
    assert content(pool) == expected


@pytest.mark.parametrize("length", [512, PAGE, 3 * PAGE])
def test_a_full_disk_is_met_before_the_record(pool: Pool, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """No room for the owner of a page: the write fails with ENOSPC, no record says otherwise, and so it stays."""
    expected = live(pool)
    places = [CHUNK_PAGES // 2 * PAGE, 60 * PAGE]
    pool.run(pool.manager.resize("demo", CHUNK_PAGES * PAGE))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pool.volume("demo") as volume, monkeypatch.context() as patch:
        patch.setattr(Owners, "make_room", full)
        for place in places:
            with pytest.raises(OSError) as caught:
                pool.write(volume, place, b"b" * length)
            assert caught.value.errno == errno.ENOSPC
            assert pool.read(volume, place, length) == bytes(length)
    monkeypatch.setattr(Table, "recall", lambda _table: None)
    with pool.volume("demo") as volume:
        assert pool.read(volume, 0, SIZE) == expected
        for place in places:
            assert pool.read(volume, place, length) == bytes(length)
            pool.write(volume, place, b"c" * length, is_durable=True)


def test_a_plain_volume_has_none(pool: Pool, path: Path) -> None:
    """What was left of a time when it had snapshots goes with the opening; and it goes with the volume."""
    path.write_bytes(b"old")
    content(pool)
    assert not path.exists()
    live(pool)
    assert path.exists()
    pool.run(pool.manager.remove("demo"))
    assert [file.name for file in path.parent.iterdir()] == []


def test_a_table_without_a_name_is_nobodys(tmp_path: Path) -> None:
    """Of a snapshot that is open: nothing of it is found later."""
    table = Table(tmp_path)
    assert table.recall() is None
    table.renew()
    table.note(Place(1, 512, 512, 512, 0, bytes(16)))
    table.finish(Place(1, 512, 512, 512, 0, bytes(16)), [0])
    assert list(tmp_path.iterdir()) == []
    table.close()


def test_only_so_many_layers_are_looked_at(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening what was closed opens the map of its top, and no other."""
    live(pool)
    opened: list[int] = []
    open_log = layer.open_log
    monkeypatch.setattr(layer, "open_log", lambda file, where: opened.append(file.number) or open_log(file, where))
    content(pool)
    assert len(set(opened)) == 1


@pytest.mark.parametrize("call", ["read", "use"])
def test_a_table_that_can_not_be_read_is_made_anew(pool: Pool, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Where the medium has lost it the maps still have it all: at once, or for who opens the volume next."""
    live(pool)
    expected = content(pool)

    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "the medium")

    with monkeypatch.context() as patch:
        patch.setattr(Table, call, lost)
        patch.setattr(Table, "read_now", lambda *_: None)
        if call == "use":
            assert content(pool) == expected
        else:
            with pytest.raises(OSError, match="the medium"):
                content(pool)
            pool.settle()
    patched = Reads(monkeypatch)
    assert content(pool) == expected
    assert (patched.take() > 0) is (call == "read")
