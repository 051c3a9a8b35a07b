"""A byte of a snapshot goes bad under a running server: an initiator hears of it, with the block; so does a check."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.testing.results import Result
from tests.faults.targets import BLOCK, Disk, read_16, write_16
from tests.interop.serving import IQN_PREFIX, Serve, iscsi_ovs, vpool

PAGE = 4096
SIZE = 4 << 20
BAD = 1 << 20  # offset of the page that goes bad
FIXED, VALID, MEDIUM_ERROR, UNRECOVERED_READ_ERROR = 0x70, 0x80, 3, (0x11, 0)
DATA = random.Random(3).randbytes(SIZE)


@pytest.fixture(params=["disk", "memory"])
def serve(request: pytest.FixtureRequest, short_dir: Path, tmp_path: Path) -> Iterator[Serve]:
    pool = (tmp_path if request.param == "disk" else short_dir) / "pool"
    with Serve(short_dir / "s", {"demo": "4M"}, vpool=vpool(pool)) as started:
        started.pool = pool  # type: ignore[attr-defined]
        yield started
        assert started.stop() == 0, started.log_tail()


@pytest.fixture
def disk(serve: Serve) -> Iterator[Disk]:
    """Full of data, and snapshot "s" of it, checked."""
    with Disk(serve.address) as opened:
        opened.login(IQN_PREFIX + "demo")
        opened.attention()
        for at in range(0, SIZE, 1 << 20):
            opened.write(at // BLOCK, DATA[at : at + (1 << 20)])
        command = iscsi_ovs("snapshot", "create", "--state-dir", str(serve.state_dir), "demo", "s")
        subprocess.run(command, check=True, timeout=20)
        checked = serve.volume("check", "demo")
        assert checked.returncode == 0, checked.stderr
        assert checked.stdout == f"1 layer, {SIZE // PAGE} pages, no problems\n"
        yield opened
        opened.logout()


def corrupt(serve: Serve, offset: int) -> None:
    """One bit."""
    fd = os.open(serve.pool / "volumes" / "demo.raw", os.O_RDWR)  # type: ignore[attr-defined]
    byte = os.pread(fd, 1, offset)
    os.pwrite(fd, bytes((byte[0] ^ 1,)), offset)
    os.close(fd)


def check_is_medium_error(result: Result, lba: int) -> None:
    """CHECK CONDITION, MEDIUM ERROR, UNRECOVERED READ ERROR, and INFORMATION is valid and says which block."""
    assert (result.status, result.sense_key, result.additional_sense) == (2, MEDIUM_ERROR, UNRECOVERED_READ_ERROR)
    assert result.sense[0] == FIXED | VALID
    assert int.from_bytes(result.sense[3:7], "big") == lba
    assert not result.data


@pytest.mark.parametrize("is_read_before", [False, True], ids=["unread", "read before"])
def test_a_bad_byte_is_found_by_reading_and_by_a_check(serve: Serve, disk: Disk, is_read_before: bool) -> None:
    """Whatever reads the page is a MEDIUM ERROR with its LBA, beside it everything goes on, `volume check` names layer,
    page, offset and who sees it, and exits with 1; the log names it, too. What is written anew is good."""
    lba = BAD // BLOCK
    if is_read_before:
        assert disk.read(0, 4096) + disk.read(4096, 4096) == DATA
    corrupt(serve, BAD + 1000)
    for first, blocks in ((lba, 1), (lba, 8), (lba - 8, 24), (0, 8192)):
        check_is_medium_error(disk.command(read_16(first, blocks), read=blocks * BLOCK), max(lba, first))
    check_is_medium_error(disk.command(read_16(lba + 3, 2), read=2 * BLOCK), lba + 3)
    check_is_medium_error(disk.command(write_16(lba + 1, 1), write=bytes(BLOCK)), lba + 1)
    verify = b"\x8f\0" + (lba - 100).to_bytes(8, "big") + (200).to_bytes(4, "big") + b"\0\0"
    check_is_medium_error(disk.command(verify), lba)
    assert disk.read(lba - 8, 8) + disk.read(lba + 8, 8) == DATA[BAD - PAGE : BAD] + DATA[BAD + PAGE :][:PAGE]

    checked = serve.volume("check", "demo")
    assert checked.returncode == 1
    page = BAD // PAGE
    assert checked.stdout.splitlines() == [
        f"bad page: layer 2, demo.raw: page {page}, offset {BAD}; seen by demo, demo@s",
        f"1 layer, {SIZE // PAGE} pages, 1 problem",
    ]
    assert f"demo.raw, layer 2: page {page}, at byte {BAD}, is not what its checksum says" in serve.log_tail(1000)

    disk.write(lba, DATA[:PAGE])
    assert disk.read(lba - 8, 16) == DATA[BAD - PAGE : BAD] + DATA[:PAGE]
