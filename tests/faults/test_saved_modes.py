"""Mode pages and the death of processes: what was saved holds, what was not is as it was."""

from __future__ import annotations

import pytest

from tests.faults.targets import Bench, Disk, write_16

GOOD = 0x00
CONTROL_SENSE = bytes.fromhex("1a 08 0a 00 ff 00")
WRITE_PROTECTED = (0x27, 0x00)


def protect(disk: Disk, *, is_saved: bool) -> int:
    """MODE SELECT: the software write protect bit of the control mode page."""
    parameters = bytes.fromhex("00000000 0a0a0210 08 00000000000000")
    cdb = bytes((0x15, 0x10 | is_saved, 0, 0, len(parameters), 0))
    return int(disk.command(cdb, write=parameters).status)


@pytest.mark.parametrize("is_saved", [False, True])
def test_modes_after_the_death_of_target_and_volume_server(bench: Bench, is_saved: bool) -> None:
    """kill -9 of both: the disk is write protected where MODE SELECT was told to save that, and only there."""
    bench.serve()
    target = bench.target_process()
    disk = bench.login(target, 1)
    disk.write(0, b"kept" * 128)
    assert protect(disk, is_saved=is_saved) == GOOD
    assert disk.command(write_16(0, 1), write=bytes(512)).additional_sense == WRITE_PROTECTED
    target.kill()
    bench.server.kill()
    bench.server.start()
    disk = bench.login(bench.target_process(), 2)
    page = bytes(disk.command(CONTROL_SENSE, read=255).data)
    assert bool(page[4 + 4] & 0x08) is is_saved
    if is_saved:
        assert disk.command(write_16(0, 1), write=bytes(512)).additional_sense == WRITE_PROTECTED
        assert disk.read(0, 1) == b"kept" * 128
    else:
        disk.write(0, b"more" * 128)
