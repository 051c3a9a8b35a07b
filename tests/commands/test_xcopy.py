"""EXTENDED COPY: which blocks move where, what is refused before anything moves, that nothing foreign is reached."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.block import Error, Operation
from iscsi_ovs.commands import COMMAND_SET, vpd
from iscsi_ovs.testing.memory_device import MemoryDevice
from tests.commands.bench import Bench, code, field_pointer, new_nexus
from tests.commands.shapes import BLOCK, CAPACITY, INVALID_FIELD, INVALID_PARAMETER, PARAMETER_LENGTH, pattern

UNREACHABLE = (0xA, 0x08, 0x04)
NOT_REACHABLE = (0xA, 0x0D, 0x02)
STATUS, PARAMETERS = 0x00, 0x03
OTHER_UUID = "ffeeddccbbaa99887766554433221100"


@pytest.fixture
def disk() -> Bench:
    disk = Bench()
    disk.device.data[:] = pattern(CAPACITY)
    return disk


@dataclass
class Other:
    """Another unit, in the map of the bench's nexus as LUN 1 unless it is told otherwise."""

    device: MemoryDevice
    unit: scsi.LogicalUnit


def add_another(disk: Bench, *, is_mapped: bool = True, personality: scsi.Personality | None = None) -> Other:
    device = MemoryDevice(1 << 20)
    unit = scsi.LogicalUnit(COMMAND_SET, scsi.Identity("other", OTHER_UUID), device.geometry, personality=personality)
    if is_mapped:
        disk.router.add(1, unit)
        disk.nexus.devices[unit] = device
        disk.nexus.attentions[unit].clear()
        disk.nexus.attentions[disk.unit].clear()
    return Other(device, unit)


def target(unit: scsi.LogicalUnit, **other: int | bytes) -> bytes:
    """An identification target descriptor of a unit; ``other`` fields take the place of the right ones."""
    fields: dict[str, int | bytes] = {
        "type": 0xE4, "device": 0, "code_set": 1, "designator_type": 3, "designator": vpd.naa(unit),
        "block_bytes": unit.block_bytes,
    }  # fmt: skip
    fields.update(other)
    designator = fields["designator"]
    assert isinstance(designator, bytes)
    length = other.get("length", len(designator))
    assert isinstance(length, int)
    head = bytes((fields["type"], fields["device"], 0, 0, fields["code_set"], fields["designator_type"], 0, length))  # type: ignore[arg-type]
    return head + designator.ljust(20, b"\0") + int(fields["block_bytes"]).to_bytes(4, "big")  # type: ignore[arg-type]


def segment(source: int, destination: int, blocks: int, source_lba: int, lba: int, flags: int = 0) -> bytes:
    return (
        bytes((2, flags, 0, 24)) + source.to_bytes(2, "big") + destination.to_bytes(2, "big") + bytes(2)
        + blocks.to_bytes(2, "big") + source_lba.to_bytes(8, "big") + lba.to_bytes(8, "big")
    )  # fmt: skip


def parameters(targets: list[bytes], segments: list[bytes], list_id: int = 1, flags: int = 0, inline: int = 0) -> bytes:
    first, second = b"".join(targets), b"".join(segments)
    return (
        bytes((list_id, flags)) + len(first).to_bytes(2, "big") + bytes(4) + len(second).to_bytes(4, "big")
        + inline.to_bytes(4, "big") + first + second
    )  # fmt: skip


def copy_cdb(length: int) -> str:
    return f"83 00 0000000000000000 {length:08x} 00 00"


def copy(disk: Bench, data: bytes, length: int | None = None) -> scsi.Outcome:
    return disk.execute(copy_cdb(len(data) if length is None else length), data_out=data)


def results(disk: Bench, action: int, list_id: int = 0, length: int = 0xFFFF) -> scsi.Outcome:
    return disk.execute(f"84 {action:02x} {list_id:02x} 00000000000000 {length:08x} 00 00")


def byte_pointed_at(outcome: scsi.Outcome) -> int:
    """Of the parameter list."""
    assert outcome.sense[15] & 0xC0 == 0x80
    return int.from_bytes(outcome.sense[16:18], "big")


# What moves -----------------------------------------------------------------------------------------------------


def test_within_one_unit(disk: Bench) -> None:
    """Block to block; no byte of it goes through a buffer of ours."""
    data = parameters([target(disk.unit)], [segment(0, 0, 64, 5, CAPACITY - 64)])
    outcome = copy(disk, data)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(data))
    assert disk.device.data[-64 * BLOCK :] == pattern(CAPACITY)[5 * BLOCK : 69 * BLOCK]
    (request,) = disk.device.log
    assert (request.operation, request.buffer, request.source) == (Operation.COPY, None, disk.device)


def test_between_two_units(disk: Bench) -> None:
    """In the order of the segments, whichever unit the command came to; empty segments are none."""
    other = add_another(disk)
    segments = [segment(0, 1, 8, 0, 100), segment(0, 1, 0, 0, 0), segment(1, 0, 4, 100, 2000)]
    data = parameters([target(disk.unit), target(other.unit)], segments)
    requests = []
    result = disk.start(copy_cdb(len(data)), data_out=data)
    while isinstance(result, block.Request):
        requests.append(result)
        assert result.finish is not None
        device = other.device if len(requests) == 1 else disk.device
        device.submit(result)
        (completion,) = device.run()
        result = result.finish(completion)
    assert result.status == scsi.GOOD
    assert other.device.data[100 * BLOCK : 108 * BLOCK] == pattern(8)
    assert disk.device.data[2000 * BLOCK : 2004 * BLOCK] == pattern(4)
    assert len(requests) == 2


def test_a_request_goes_to_its_destination(disk: Bench) -> None:
    """The command names the device that its next request is for."""
    other = add_another(disk)
    command = disk.command(
        "", data_out=(data := parameters([target(disk.unit), target(other.unit)], [segment(0, 1, 1, 0, 0)]))
    )
    command.cdb = bytes.fromhex(copy_cdb(len(data)))
    request = disk.router.execute(command)
    assert isinstance(request, block.Request)
    assert command.device is other.device
    assert request.source is disk.device


def test_blocks_of_two_sizes(disk: Bench) -> None:
    """NUMBER OF BLOCKS counts the source's blocks, with DC the destination's; what is no whole block is refused."""
    other = add_another(disk, personality=scsi.Personality(logical_block_bytes=4096))
    targets = [target(disk.unit), target(other.unit)]
    for list_id, flags, blocks, expected in ((2, 0, 16, 8192), (3, 2, 2, 8192), (4, 2, 1, 4096)):
        request = disk.start(
            copy_cdb(92 + 16), data_out=parameters(targets, [segment(0, 1, blocks, 8, 3, flags)], list_id)
        )
        assert isinstance(request, block.Request)
        assert (request.source_offset_bytes, request.offset_bytes, request.length_bytes) == (4096, 12288, expected)
    disk.pool = Bench().pool
    outcome = copy(disk, parameters(targets, [segment(0, 1, 7, 0, 0)]))
    assert code(outcome) == (0xA, 0x26, 0x0A)


def test_a_destination_without_a_write_cache(disk: Bench) -> None:
    """Each segment is durable there before the next one begins."""
    disk = Bench(personality=scsi.Personality(write_cache=False))
    copy(disk, parameters([target(disk.unit)], [segment(0, 0, 1, 0, 1), segment(0, 0, 1, 0, 2)]))
    operations = [request.operation for request in disk.device.log]
    assert operations[:4] == [Operation.COPY, Operation.FLUSH, Operation.COPY, Operation.FLUSH]


# What is refused ------------------------------------------------------------------------------------------------


def test_a_foreign_unit_is_not_reachable(disk: Bench) -> None:
    """Right designator, but not in the map of this nexus: nothing moves, from it or to it."""
    other = add_another(disk, is_mapped=False)
    for move in (segment(0, 1, 1, 0, 0), segment(1, 0, 1, 0, 0)):
        outcome = copy(disk, parameters([target(disk.unit), target(other.unit)], [move]))
        assert code(outcome) == NOT_REACHABLE
        assert byte_pointed_at(outcome) == 48
    assert disk.device.log == other.device.log == []


def test_only_the_naa_designator_names_a_unit(disk: Bench) -> None:
    """Its bytes under another type or code set, a part of them, or something behind them, name nothing."""
    naa = vpd.naa(disk.unit)
    move = [segment(0, 0, 1, 0, 1)]
    for wrong in (
        {"designator_type": 1}, {"designator_type": 0x13}, {"code_set": 2}, {"designator": naa[:7]},
        {"designator": naa + b"\0"}, {"designator": b""}, {"designator": bytes(8)},
    ):  # fmt: skip
        assert code(copy(disk, parameters([target(disk.unit, **wrong)], move))) == NOT_REACHABLE  # type: ignore[arg-type]
    assert disk.device.log == []


@pytest.mark.parametrize("length", range(1, 16 + 32 + 28))
def test_a_cut_list(disk: Bench, length: int) -> None:
    """PARAMETER LIST LENGTH that ends inside of what the header says is there."""
    data = parameters([target(disk.unit)], [segment(0, 0, 1, 0, 1)])
    assert code(copy(disk, data[:length])) == PARAMETER_LENGTH
    assert code(copy(disk, data[:length], len(data))) == PARAMETER_LENGTH
    assert disk.device.log == []


def test_no_list(disk: Bench) -> None:
    """No error, whatever; neither is a list without segments."""
    assert copy(disk, b"") == scsi.Outcome()
    assert copy(disk, parameters([], [])).status == scsi.GOOD
    assert copy(disk, parameters([target(disk.unit)], [])).status == scsi.GOOD
    assert disk.device.log == []


def test_too_many(disk: Bench) -> None:
    """One target, one segment, or one byte too many, each by its own code."""
    one, move = target(disk.unit), segment(0, 0, 1, 0, 1)
    assert copy(disk, parameters([one] * 16, [move] * 16)).status == scsi.GOOD
    disk.device.log.clear()
    assert code(copy(disk, parameters([one] * 17, [move]))) == (0x5, 0x26, 0x06)
    assert code(copy(disk, parameters([one], [move] * 17))) == (0x5, 0x26, 0x08)
    assert code(copy(disk, parameters([one] * 17, [move] * 17))) == PARAMETER_LENGTH
    assert code(copy(disk, parameters([one], [move], inline=1) + b"x")) == (0x5, 0x26, 0x0B)
    assert disk.device.log == []


def test_types_that_are_not_served(disk: Bench) -> None:
    """Target and segment descriptors, and what kind of device a target is said to be."""
    move = segment(0, 0, 1, 0, 1)
    for kind in (0xE0, 0xE1, 0xE5, 0x00, 0xFF):
        assert code(copy(disk, parameters([target(disk.unit, type=kind)], [move]))) == (0x5, 0x26, 0x07)
    for kind in (0x00, 0x03, 0x07, 0xBE):
        assert code(copy(disk, parameters([target(disk.unit)], [bytes((kind, 0, 0, 0))]))) == (0x5, 0x26, 0x09)
    outcome = copy(disk, parameters([target(disk.unit, device=1)], [move]))
    assert code(outcome) == (0xA, 0x0D, 0x03)
    # LU ID TYPE and NUL are obsolete
    assert copy(disk, parameters([target(disk.unit, device=0xE0)], [move])).status == scsi.GOOD


@pytest.mark.parametrize(
    ("wrong", "byte"),
    [({"block_bytes": 4096}, 45), ({"block_bytes": 0}, 45), ({"length": 21}, 23), ({"length": 255}, 23)],
)
def test_targets_that_lie(disk: Bench, wrong: dict[str, int], byte: int) -> None:
    """A block length that the unit does not have would move other blocks than were meant."""
    outcome = copy(disk, parameters([target(disk.unit, **wrong)], [segment(0, 0, 1, 0, 1)]))
    assert (code(outcome), byte_pointed_at(outcome)) == (INVALID_PARAMETER, byte)


def test_segments_that_lie(disk: Bench) -> None:
    """Length, index, range: and no segment before a bad one is copied."""
    one, good = target(disk.unit), segment(0, 0, 1, 0, 1)
    short = bytes((2, 0, 0, 20)) + good[4:24]
    outcome = copy(disk, parameters([one], [good, short]))
    assert (code(outcome), byte_pointed_at(outcome)) == (INVALID_PARAMETER, 16 + 32 + 28 + 2)
    assert code(copy(disk, parameters([one], [good, good[:27]]))) == INVALID_PARAMETER
    assert code(copy(disk, parameters([one], [good, good[:3]]))) == INVALID_PARAMETER
    assert code(copy(disk, parameters([one + b"x"], [good]))) == INVALID_PARAMETER
    for index in (1, 0xF800, 0xFFFF):
        assert code(copy(disk, parameters([one], [good, segment(0, index, 1, 0, 0)]))) == UNREACHABLE
        assert code(copy(disk, parameters([one], [good, segment(index, 0, 1, 0, 0)]))) == UNREACHABLE
    for lbas in ((0, CAPACITY - 1), (CAPACITY - 1, 0), (1 << 63, 0), (0, (1 << 64) - 1)):
        assert code(copy(disk, parameters([one], [good, segment(0, 0, 2, *lbas)]))) == (0xA, 0x00, 0x00)
    assert disk.device.log == []


def test_maximum_segment_length(disk: Bench) -> None:
    """16 MiB (CONTRACTS 7)."""
    disk.unit.resize(block.Geometry(1 << 40))
    disk.nexus.attentions[disk.unit].clear()
    limit = (16 << 20) // BLOCK
    request = disk.start(copy_cdb(76), data_out=parameters([target(disk.unit)], [segment(0, 0, limit, 0, 1 << 20)]))
    assert isinstance(request, block.Request)
    disk.pool = Bench().pool
    outcome = copy(disk, parameters([target(disk.unit)], [segment(0, 0, limit + 1, 0, 1 << 20)], 2))
    assert (code(outcome), byte_pointed_at(outcome)) == (INVALID_PARAMETER, 16 + 32 + 10)


def test_a_protected_destination(disk: Bench) -> None:
    """The unit that the command came to may be written; the one that a segment names may not."""
    other = add_another(disk, personality=scsi.Personality(is_read_only=True))
    targets = [target(disk.unit), target(other.unit)]
    assert code(copy(disk, parameters(targets, [segment(0, 1, 1, 0, 0)]))) == (0xA, 0x27, 0x00)
    assert isinstance(disk.start(copy_cdb(108), data_out=parameters(targets, [segment(1, 0, 1, 0, 0)])), block.Request)


RESERVE_6 = "16 00 000000 00"


@pytest.mark.parametrize("is_source", [True, False])
def test_a_reserved_unit_is_not_reached_by_a_copy(disk: Bench, is_source: bool) -> None:
    """Another nexus has reserved it: nothing moves; that nexus' own copies do."""
    other = add_another(disk)
    nexus = disk.login(new_nexus("iqn.test:other"))
    nexus.devices[other.unit] = other.device
    nexus.attentions[other.unit].clear()
    assert disk.execute(RESERVE_6, lun=1 << 48, nexus=nexus).status == scsi.GOOD
    before = bytes(disk.device.data), bytes(other.device.data)
    ends = (1, 0) if is_source else (0, 1)
    data = parameters([target(disk.unit), target(other.unit)], [segment(*ends, 4, 0, 8)])
    assert code(copy(disk, data)) == NOT_REACHABLE
    assert (bytes(disk.device.data), bytes(other.device.data)) == before
    assert disk.execute(copy_cdb(len(data)), data_out=data, nexus=nexus).status == scsi.GOOD


def test_a_unit_that_is_reserved_in_the_middle_of_a_copy(disk: Bench) -> None:
    """The segments before it have moved; the next one does not."""
    other = add_another(disk)
    nexus = disk.login(new_nexus("iqn.test:other"))
    nexus.attentions[other.unit].clear()
    data = parameters([target(disk.unit), target(other.unit)], [segment(0, 1, 4, 0, 8), segment(0, 1, 4, 4, 12)])
    request = disk.start(copy_cdb(len(data)), data_out=data)
    assert isinstance(request, block.Request)
    assert disk.execute(RESERVE_6, lun=1 << 48, nexus=nexus).status == scsi.GOOD
    outcome = disk.step(request)
    assert isinstance(outcome, scsi.Outcome)
    assert code(outcome) == NOT_REACHABLE
    assert [request.operation for request in disk.device.log] == [Operation.COPY]


def test_a_unit_that_has_no_medium_now(disk: Bench) -> None:
    """Blocked, ejected, or being sanitized."""
    other = add_another(disk)
    other.unit.sanitize_progress = 7
    targets = [target(disk.unit), target(other.unit)]
    for move in (segment(0, 1, 1, 0, 0), segment(1, 0, 1, 0, 0)):
        assert code(copy(disk, parameters(targets, [move]))) == NOT_REACHABLE


# Failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [(Error.MEDIUM_READ, (0xA, 0x11, 0x00)), (Error.NO_SPACE, (0xA, 0x27, 0x07)), (Error.OUTCOME_UNKNOWN, (0xB, 0, 0))],
)
def test_storage_fails(disk: Bench, error: Error, expected: tuple[int, int, int]) -> None:
    """COPY ABORTED with the reason; unknown outcomes are ABORTED COMMAND (CONTRACTS 9). The rest is left undone."""
    disk.device.fail_next(error)
    move = segment(0, 0, 1, 0, 1)
    assert code(copy(disk, parameters([target(disk.unit)], [move, move]))) == expected
    assert len(disk.device.log) == 1


def test_busy_only_before_anything_is_copied(disk: Bench) -> None:
    """A second try of the whole list would read what the first has written."""
    data = parameters([target(disk.unit)], [segment(0, 0, 1, 0, 1), segment(0, 0, 1, 1, 2)])
    disk.device.fail_next(Error.UNREACHABLE)
    assert copy(disk, data).status == scsi.BUSY
    first = disk.start(copy_cdb(len(data)), data_out=data)
    assert isinstance(first, block.Request)
    second = disk.step(first)
    assert isinstance(second, block.Request)
    disk.device.fail_next(Error.CANCELLED)
    outcome = disk.step(second)
    assert isinstance(outcome, scsi.Outcome)
    assert code(outcome) == (0xB, 0x00, 0x00)


# List identifiers and RECEIVE COPY RESULTS ----------------------------------------------------------------------


def test_operating_parameters(disk: Bench) -> None:
    """What is obeyed above; at any allocation length."""
    outcome = results(disk, PARAMETERS)
    assert outcome.data.hex() == (
        "0000002a" "01000000" "0010" "0010" "000003c0" "01000000" "00000000" "00000000" "00000000" "0000" "00ff" "ff"
        "09" "0000" "000000" "02" "02e4"
    )  # fmt: skip
    for length in (0, 1, 44, 46):
        assert results(disk, PARAMETERS, length=length).data == outcome.data[:length]
    assert results(Bench(logical_block_bytes=4096), PARAMETERS).data[37] == 12


def test_copy_status(disk: Bench) -> None:
    """Completed: told once, with segments and KiB; unknown list identifiers are an invalid field."""
    move = segment(0, 0, 8, 0, 8)
    for list_id in (0, 7, 255):
        outcome = results(disk, STATUS, list_id)
        assert (code(outcome), field_pointer(outcome)) == (INVALID_FIELD, (2, None))
        copy(disk, parameters([target(disk.unit)], [move, move], list_id))
        assert results(disk, STATUS, list_id).data.hex() == "000000088100020100000008"
        assert code(results(disk, STATUS, list_id)) == INVALID_FIELD


def test_copy_status_of_a_failure(disk: Bench) -> None:
    """How many segments were done before."""
    move = segment(0, 0, 4, 0, 8)
    data = parameters([target(disk.unit)], [move, move])
    first = disk.start(copy_cdb(len(data)), data_out=data)
    assert isinstance(first, block.Request)
    assert results(disk, STATUS, 1).data.hex() == "000000088000000100000000"
    second = disk.step(first)
    assert isinstance(second, block.Request)
    assert results(disk, STATUS, 1).data.hex() == "000000088000010100000002"
    disk.device.fail_next(Error.MEDIUM_WRITE)
    disk.step(second)
    assert results(disk, STATUS, 1).data.hex() == "000000088200010100000002"


def test_other_nexuses_know_nothing_of_it(disk: Bench) -> None:
    """Copies are an initiator's own."""
    copy(disk, parameters([target(disk.unit)], [segment(0, 0, 1, 0, 1)], 9))
    other = disk.login()
    outcome = disk.execute("84 00 09 00000000000000 0000ffff 00 00", nexus=other)
    assert code(outcome) == INVALID_FIELD


def test_a_list_identifier_in_use(disk: Bench) -> None:
    """OPERATION IN PROGRESS while its copy is under way; free again when it was aborted between two segments."""
    move = segment(0, 0, 1, 0, 1)
    data = parameters([target(disk.unit)], [move, move])

    class Task:
        is_aborted = False

    command = disk.command(copy_cdb(len(data)), data_out=data)
    command.context = Task()
    assert isinstance(disk.router.execute(command), block.Request)
    assert code(copy(disk, data)) == (0x5, 0x00, 0x16)
    assert copy(disk, parameters([target(disk.unit)], [move], 2)).status == scsi.GOOD
    assert copy(disk, parameters([target(disk.unit)], [move], 0, flags=0x18)).status == scsi.GOOD
    command.context.is_aborted = True
    assert results(disk, STATUS, 1).data[4] == 0x82
    assert copy(disk, data).status == scsi.GOOD


def test_list_id_usage(disk: Bench) -> None:
    """01b is reserved; 11b has no identifier, and keeps nothing."""
    move = [segment(0, 0, 1, 0, 1)]
    for list_id, flags in ((1, 0x08), (1, 0x18)):
        outcome = copy(disk, parameters([target(disk.unit)], move, list_id, flags))
        assert (code(outcome), byte_pointed_at(outcome)) == (INVALID_PARAMETER, 1)
    assert copy(disk, parameters([target(disk.unit)], move, 0, 0x18)).status == scsi.GOOD
    assert code(results(disk, STATUS, 0)) == INVALID_FIELD
    assert copy(disk, parameters([target(disk.unit)], move, 3, 0x10)).status == scsi.GOOD
    assert results(disk, STATUS, 3).status == scsi.GOOD
