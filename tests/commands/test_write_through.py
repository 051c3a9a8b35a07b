"""Units without a write cache: what was answered is durable, whatever wrote it; and with one nothing is different."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Operation
from iscsi_ovs.commands import OPERATIONS
from tests.commands.bench import Bench, code

WRITE = "2a 00 00000000 00 0001 00"
UNMAP_LIST = bytes.fromhex("0026 0020 00000000 0000000000000000 00000008 00000000 0000000000000010 00000008 00000000")


def uncached() -> Bench:
    return Bench(personality=scsi.Personality(write_cache=False))


def wce(disk: Bench) -> bool:
    return bool(disk.execute("1a 08 08 00 ff 00").data[6] & 0x04)


@pytest.mark.parametrize(
    ("text", "data_out"),
    [
        ("0a 000000 01 00", b"a" * 512),
        (WRITE, b"a" * 512),
        ("aa 00 00000000 00000001 00 00", b"a" * 512),
        ("8a 00 0000000000000000 00000001 00 00", b"a" * 512),
        ("2a 00 00000000 00 0002 00", b"a" * 512),  # residual overflow: one block comes
        ("93 00 0000000000000000 00000001 00 00", b"a" * 512),
        ("93 00 0000000000000000 00000001 00 00", bytes(512)),
        ("93 08 0000000000000000 00000001 00 00", bytes(512)),
        ("42 00 00000000 00 0028 00", UNMAP_LIST),
        ("2e 00 00000000 00 0001 00", b"a" * 512),  # WRITE AND VERIFY
        ("2e 02 00000000 00 0001 00", b"a" * 512),
        ("89 00 0000000000000000 000000 01 00 00", b"b" * 512 + b"a" * 512),  # COMPARE AND WRITE
        ("8b 00 0000000000000000 00000001 00 00", b"a" * 512),  # ORWRITE
        ("9c 00 0000000000000000 0000 0001 00 00", b"a" * 512),  # WRITE ATOMIC
    ],
)
def test_without_write_cache_every_write_is_durable(text: str, data_out: bytes) -> None:
    """WCE 0 is no word only: after GOOD a power cut takes nothing."""
    disk = uncached()
    assert not wce(disk)
    disk.device.data[:] = disk.device.flushed[:] = b"b" * disk.size_bytes
    with_cache = Bench()
    for each in (disk, with_cache):
        each.device.features = block.Features(max_atomic_write_bytes=1 << 16)
    with_cache.device.data[:] = b"b" * disk.size_bytes
    outcome = disk.execute(text, data_out=data_out)
    assert outcome == with_cache.execute(text, data_out=data_out), "the answer is the same"
    assert outcome.status == scsi.GOOD
    assert disk.device.data == with_cache.device.data != b"b" * disk.size_bytes
    assert disk.device.flushed == disk.device.data
    if not text.startswith("2e"):  # WRITE AND VERIFY writes to the medium, cache or not
        assert with_cache.device.flushed == bytes(disk.size_bytes)


def test_a_flush_behind_an_unmap_may_fail() -> None:
    """Then the command has failed."""
    disk = uncached()
    disk.device.fail_next(block.Error.WRITE_FAULT, Operation.FLUSH)
    assert code(disk.execute("42 00 00000000 00 0028 00", data_out=UNMAP_LIST)) == (0x3, 0x0C, 0x00)
    disk.device.fail_next(block.Error.NO_SPACE, Operation.DISCARD)
    disk.device.log.clear()
    assert code(disk.execute("42 00 00000000 00 0028 00", data_out=UNMAP_LIST)) == (0x7, 0x27, 0x07)
    assert [request.operation for request in disk.device.log] == [Operation.DISCARD], "nothing to make durable"


def test_the_write_cache_is_switched(disk: Bench) -> None:
    """From one command to the next; the plain path is bare again with the cache on."""
    for is_on in (False, True, False):
        disk.unit.set_modes(scsi.Modes(write_cache=is_on))
        assert wce(disk) is is_on
        request = disk.start(WRITE, data_out=b"c" * 512)
        assert isinstance(request, block.Request)
        assert request.fua is not is_on
        assert request.finish == disk.unit.finish_write


def test_a_compare_that_fails_writes_nothing() -> None:
    """And so has nothing to make durable."""
    disk = uncached()
    outcome = disk.execute("89 00 0000000000000000 000000 01 00 00", data_out=b"x" * 512 + b"a" * 512)
    assert code(outcome) == (0xE, 0x1D, 0x00)
    assert [request.operation for request in disk.device.log] == [Operation.COMPARE_AND_WRITE]


def test_whatever_writes_writes_through() -> None:
    """Each row that writes has another handler there, and no row that does not."""
    disk = uncached()
    for row in OPERATIONS:
        key = row.opcode, row.service_action
        served = disk.unit._by_opcode[row.opcode] if key[1] is None else disk.unit._by_service_action[key]  # type: ignore[index]
        assert served is not None
        assert (served.handler is not row.handler) is row.writes, row.name
