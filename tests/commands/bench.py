"""A disk on a bench: router, unit, memory device and pool, driven as the target drives them, without a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.scsi import PortGroup, TargetPorts
from iscsi_ovs.testing.memory_device import MemoryDevice, MemoryPool

UUID = "00112233445566778899aabbccddeeff"
IQN = "iqn.2016-01.com.openvstorage:demo"

Code = tuple[int, int, int]


def cdb(text: str) -> bytes:
    """A CDB from hex, filled up to the sixteen bytes that an iSCSI header has."""
    return bytes.fromhex(text).ljust(16, b"\0")


def code(outcome: scsi.Outcome) -> Code:
    """(key, ASC, ASCQ) of an outcome with fixed format sense."""
    assert outcome.status == scsi.CHECK_CONDITION, outcome
    assert outcome.sense[0] & 0x7F == 0x70
    assert len(outcome.sense) == 18
    return outcome.sense[2] & 0xF, outcome.sense[12], outcome.sense[13]


def list_pointer(outcome: scsi.Outcome) -> tuple[int, int | None]:
    """(byte, bit) of the parameter list that an outcome's sense points at."""
    flags, pointer = outcome.sense[15], int.from_bytes(outcome.sense[16:18], "big")
    assert flags & 0xC0 == 0x80, outcome
    return pointer, flags & 0x07 if flags & 0x08 else None


def field_pointer(outcome: scsi.Outcome) -> tuple[int, int | None]:
    """(byte, bit) of the CDB that an outcome's sense points at."""
    flags, pointer = outcome.sense[15], int.from_bytes(outcome.sense[16:18], "big")
    assert flags & 0xC0 == 0xC0, outcome
    return pointer, flags & 0x07 if flags & 0x08 else None


def new_nexus(name: str = "iqn.test:initiator", tag: int = 1, ports: TargetPorts | None = None) -> scsi.Nexus:
    ports = ports or TargetPorts(IQN, [PortGroup(tag, tag)])
    return scsi.Nexus(name, b"\x80\0\0\0\0\1", IQN, portal_group_tag=tag, ports=ports)


@dataclass
class Bench:
    """``execute`` takes a command to its Outcome; payload of a READ is in ``payload``, cut as the transport would."""

    size_bytes: int = 1 << 20
    logical_block_bytes: int = 512
    personality: scsi.Personality | None = None
    device: MemoryDevice = field(init=False)
    unit: scsi.LogicalUnit = field(init=False)

    def __post_init__(self) -> None:
        if self.personality is None:
            self.personality = scsi.Personality(logical_block_bytes=self.logical_block_bytes)
        self.device = MemoryDevice(self.size_bytes)
        self.pool = MemoryPool(slots=256)
        self.unit = scsi.LogicalUnit(
            COMMAND_SET, scsi.Identity("demo", UUID), self.device.geometry, personality=self.personality
        )
        for record in COMMAND_SET.records:
            self.unit.load_record(record, 0, b"")
        self.router = scsi.TaskRouter(COMMAND_SET, {0: self.unit})
        self.ports = TargetPorts(IQN, [PortGroup(1, 1), PortGroup(2, 2)], can_set=True)
        self.nexus = self.login()
        self.payload = b""
        self.used_bytes: int | None = 0  # what the volume takes in its store
        self.available_bytes: int | None = None
        self.records: dict[str, bytes] = {}  # what the unit has kept with its volume
        self.sanitizes: list[scsi.SanitizeRequest] = []
        self.sanitize_error: OSError | None = None  # what becomes of them
        self.aborted: list[scsi.Nexus] = []  # whose tasks it had aborted

    def login(self, nexus: scsi.Nexus | None = None, *, tag: int = 1, hears_power_on: bool = False) -> scsi.Nexus:
        nexus = nexus or new_nexus(tag=tag, ports=self.ports)
        nexus.devices[self.unit] = self.device
        self.router.establish(nexus)
        if not hears_power_on:
            nexus.attentions[self.unit].clear()
        return nexus

    def start(
        self,
        text: str,
        *,
        lun: int = 0,
        data_in: int = 0,
        data_out: bytes = b"",
        data_out_bytes: int | None = None,
        nexus: scsi.Nexus | None = None,
    ) -> scsi.Execution:
        """What the router says at once."""
        return self.router.execute(self.command(text, lun, data_in, data_out, data_out_bytes, nexus))

    def command(
        self,
        text: str,
        lun: int = 0,
        data_in: int = 0,
        data_out: bytes = b"",
        data_out_bytes: int | None = None,
        nexus: scsi.Nexus | None = None,
    ) -> scsi.Command:
        command = scsi.Command(nexus or self.nexus, lun, cdb(text), data_in)
        command.data_out_bytes = len(data_out) if data_out_bytes is None else data_out_bytes
        if data_out:
            buffer = self.pool.allocate(len(data_out))
            assert buffer is not None
            at = 0
            for view in buffer.views(0, len(data_out)):
                view[:] = data_out[at : at + len(view)]
                at += len(view)
            command.data_out = buffer
        return command

    def execute(
        self,
        text: str,
        *,
        lun: int = 0,
        data_in: int = 1 << 20,
        data_out: bytes = b"",
        data_out_bytes: int | None = None,
        nexus: scsi.Nexus | None = None,
    ) -> scsi.Outcome:
        """To the end, as the target does it."""
        free_slots = self.pool.free_slots
        outcome = self.drive(self.command(text, lun, 0 if data_out else data_in, data_out, data_out_bytes, nexus))
        assert self.pool.free_slots == free_slots, "a buffer was lost"
        return outcome

    def drive(self, command: scsi.Command) -> scsi.Outcome:
        result = self.router.execute(command)
        while not isinstance(result, scsi.Outcome):
            if isinstance(result, scsi.RecordUpdate):
                self.records[result.record] = result.data
                result = result.finish(None)
            elif isinstance(result, scsi.SanitizeRequest):
                self.sanitizes.append(result)
                result = result.finish(self.sanitize_error)
            elif isinstance(result, scsi.UsageQuery):
                result = result.finish(self.used_bytes, self.available_bytes)
            elif isinstance(result, scsi.AbortTasks):
                self.aborted += result.nexuses
                result = result.finish()
            else:
                assert isinstance(result, block.Request)
                result = self.step(result)
        self.payload = result.data
        if result.buffer is not None:
            length = min(result.transfer_bytes, command.data_in_bytes)
            assert length <= result.buffer.length_bytes
            self.payload = b"".join(result.buffer.views(0, length))
            result.buffer.release()
        if command.data_out is not None:
            command.data_out.release()
        return result

    def step(self, request: block.Request) -> scsi.Execution:
        """One request through the device."""
        if request.operation is block.Operation.READ:
            assert request.buffer is None
            request.buffer = self.pool.allocate(request.length_bytes)
            assert request.buffer is not None
        assert request.done is None
        assert request.context is None
        assert request.finish is not None
        self.device.submit(request)
        (completion,) = self.device.run()
        result: scsi.Execution = request.finish(completion)
        return result
