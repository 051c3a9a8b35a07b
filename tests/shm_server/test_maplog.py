"""The map of a layer: what is believed of it when."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shm_server.stores import linux, maplog
from shm_server.stores.maplog import DATA, HEADER_BYTES, RECORD_BYTES, ZERO, MapLog, Run

UUID = "0123456789abcdef" * 2
RUNS = [Run(DATA, 5, 3), Run(ZERO, 6, 1), Run(DATA, 1 << 34, 1 << 20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "7.map"


@pytest.fixture
def log(path: Path) -> MapLog:
    made = MapLog(path, 7, UUID)
    made.create()
    return made


def append_all(log: MapLog) -> None:
    for run in RUNS:
        log.append(*run)


def append_many(log: MapLog) -> None:
    for number in range(1000):
        log.append(DATA, number, 1)


def opened(path: Path, *, is_sealed: bool = False) -> list[Run]:
    log = MapLog(path, 7, UUID)
    try:
        return list(log.open(is_sealed=is_sealed))
    finally:
        log.close()


def another_boot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(maplog, "boot_id", lambda: bytes(range(16)))


def test_after_the_death_of_a_process_every_record_is_believed(log: MapLog, path: Path) -> None:
    """In their order, barriers or not."""
    append_all(log)
    assert opened(path) == RUNS


def test_after_another_boot_only_what_a_barrier_covers(
    log: MapLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was claimed while the data were being synced is not covered; then the map is written anew, and is whole."""
    log.append(*RUNS[0])
    covered = log.claimed
    log.append(*RUNS[1])
    log.barrier(covered)
    log.sync(covered)
    assert log.is_behind(log.claimed)
    another_boot(monkeypatch)
    for _ in range(2):
        assert opened(path) == RUNS[:1]
    again = MapLog(path, 7, UUID)
    again.open()
    again.append(*RUNS[2])
    assert opened(path) == [RUNS[0], RUNS[2]]
    monkeypatch.undo()
    assert opened(path) == RUNS[:1]


def test_a_barrier_that_a_dead_process_left_is_synced(log: MapLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died before the sync behind the barrier: who opens the map next takes it for durable only when it is."""
    log.append(*RUNS[0])
    log.barrier(log.claimed)
    synced: list[str] = []
    monkeypatch.setattr(maplog.os, "fdatasync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    again = MapLog(path, 7, UUID)
    again.open()
    assert not again.is_behind(again.claimed)
    assert synced == [str(path)]


def test_of_a_sealed_layer_what_no_barrier_covers_is_nobodys(log: MapLog, path: Path) -> None:
    """Whichever boot it is; and the file stays as it is."""
    log.append(*RUNS[0])
    log.barrier(log.claimed)
    log.append(*RUNS[1])
    before = path.read_bytes()
    assert opened(path, is_sealed=True) == RUNS[:1]
    assert path.read_bytes() == before


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)


@pytest.mark.parametrize("at", range(HEADER_BYTES, HEADER_BYTES + 3 * RECORD_BYTES, 5))
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_dead_process_leaves_no_gap(log: MapLog, path: Path, at: int, is_sealed: bool) -> None:
    """Any byte of any record: it is damage, and EIO, and nothing is cut off."""
    append_all(log)
    flip(path, at)
    before = path.read_bytes()
    with pytest.raises(OSError, match=rf"7\.map is damaged at byte {at // RECORD_BYTES * RECORD_BYTES}"):
        opened(path, is_sealed=is_sealed)
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", range(HEADER_BYTES, HEADER_BYTES + 4 * RECORD_BYTES, 5))
def test_a_power_cut_leaves_none_in_what_was_durable(
    log: MapLog, path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Before what a barrier says was durable a gap is damage; behind that it ends the log. What is appended next
    counts, and what stood behind the gap does not any more."""
    log.append(*RUNS[0])
    log.barrier(log.claimed)
    log.sync(log.claimed)
    log.append(*RUNS[1])
    log.barrier(log.claimed)
    flip(path, at)
    another_boot(monkeypatch)
    if at < HEADER_BYTES + 2 * RECORD_BYTES:
        with pytest.raises(OSError, match="is damaged at byte"):
            opened(path)
        return
    assert opened(path) == RUNS[:1]
    again = MapLog(path, 7, UUID)
    again.open()
    again.append(*RUNS[2])
    assert opened(path) == [RUNS[0], RUNS[2]]


@pytest.mark.parametrize("at", range(HEADER_BYTES, HEADER_BYTES + 3 * RECORD_BYTES, 5))
def test_its_last_barrier_is_a_witness(log: MapLog, path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Of what is closed, or sealed, no record can go without that being seen, after any boot; but for the witness."""
    log.append(*RUNS[0])
    covered = log.claimed
    log.barrier(covered)
    log.sync(covered)
    log.witness()
    length = path.stat().st_size
    log.witness()
    assert path.stat().st_size == length == HEADER_BYTES + 3 * RECORD_BYTES
    flip(path, at)
    another_boot(monkeypatch)
    if at < length - RECORD_BYTES:
        with pytest.raises(OSError, match="is damaged at byte"):
            opened(path, is_sealed=True)
    else:
        assert opened(path, is_sealed=True) == RUNS[:1]


def test_a_witness_is_told_once(log: MapLog, path: Path) -> None:
    """However often the log is opened and closed."""
    log.append(*RUNS[0])
    log.barrier(log.claimed)
    log.sync(log.claimed)
    log.witness()
    before = path.stat().st_size
    again = MapLog(path, 7, UUID)
    again.open()
    again.witness()
    assert path.stat().st_size == before


def test_who_appends_meanwhile_damages_nothing(log: MapLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only looks may have read the end of the log before a record was there, and asked for its size behind that."""
    append_all(log)
    whole = path.read_bytes()
    reads = iter([whole[:HEADER_BYTES], whole[HEADER_BYTES:-RECORD_BYTES] + bytes(RECORD_BYTES)])
    pread = os.pread
    monkeypatch.setattr(maplog.os, "pread", lambda *place: next(reads, None) or pread(*place))
    looking = MapLog(path, 7, UUID)
    looking.open(is_sealed=True)
    looking.close()


def test_a_log_that_is_cut_anywhere_has_the_records_before(log: MapLog, path: Path) -> None:
    """A record is there whole or not."""
    append_all(log)
    content = path.read_bytes()
    for length in range(HEADER_BYTES, len(content) + 1):
        path.write_bytes(content[:length])
        assert opened(path) == RUNS[: (length - HEADER_BYTES) // RECORD_BYTES]


def test_a_barrier_has_its_room_before_what_it_covers(log: MapLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a run is refused, and never the FLUSH of those that were not."""
    taken: list[int] = []
    monkeypatch.setattr(linux, "fallocate", lambda fd, mode, offset, length: taken.append(offset + length))
    for number in range(1000):
        log.append(DATA, number, 1)
        log.barrier(log.claimed)
        assert log.claimed + RECORD_BYTES <= taken[-1]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(linux, "fallocate", full)
    with pytest.raises(OSError, match="full"):
        append_many(log)
    log.barrier(log.claimed)


def test_a_newer_format_is_refused_by_number(log: MapLog, path: Path) -> None:
    """Both numbers are said."""
    os.truncate(path, HEADER_BYTES)
    with path.open("r+b") as file:
        file.seek(8)
        file.write((9).to_bytes(4, "little"))
    with pytest.raises(OSError, match="format 9, this server knows up to 1") as caught:
        opened(path)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_another_map_is_refused(log: MapLog, path: Path) -> None:
    """Missing, of another layer, of another volume, damaged, or no map at all: EIO with the path."""
    for layer, uuid in ((8, UUID), (7, "00" * 16)):
        with pytest.raises(OSError, match=r"7\.map is the map of layer 7"):
            MapLog(path, layer, uuid).open()
    content = path.read_bytes()
    path.write_bytes(content[:30] + b"\xff" + content[31:])
    with pytest.raises(OSError, match="damaged"):
        opened(path)
    for bad in (b"", content[:100], bytes(HEADER_BYTES)):
        path.write_bytes(bad)
        with pytest.raises(OSError, match="no map of a layer"):
            opened(path)
    path.unlink()
    with pytest.raises(OSError, match="missing") as caught:
        opened(path)
    assert caught.value.errno == errno.EIO
