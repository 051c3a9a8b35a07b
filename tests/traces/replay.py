"""The initiator's side of a recorded connection, said once more to the protocol core: no socket, no volume server.

The owner of the connections is as small as it can be: one disk in memory of the recorded size and identity, commands
executed as they come. What the target answers can then be compared with what it answered when it was recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.commands import COMMAND_SET
from iscsi_ovs.errors import LoginError
from iscsi_ovs.login.policy import OPEN, Policy
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.space import Space
from iscsi_ovs.testing.memory_device import MemoryDevice, MemoryPool
from tests.traces.reading import Recorded, RecordedPdu

IQN = "iqn.2016-01.com.openvstorage:trace"
SLOT_BYTES = 64 * 1024


class Disk:
    """What outlives a connection: the volume's bytes, its logical unit, the slots."""

    def __init__(self, recorded: Recorded) -> None:
        facts = recorded.facts
        self.portal = facts["portal"]
        self.device = MemoryDevice(int(facts["size"]))
        self.unit = scsi.LogicalUnit(COMMAND_SET, scsi.Identity("trace", facts["uuid"]), self.device.geometry)
        self.router = scsi.TaskRouter(COMMAND_SET, {0: self.unit})
        # one client's share of the region, as the volume server gives it
        self.pool = MemoryPool(slots=int(facts["region"]) * 3 // 4 // SLOT_BYTES)
        self.space = Space()
        self.space.attach(self.pool, [])


class Replay:
    """One connection, played again."""

    def __init__(self, disk: Disk, recorded: Sequence[RecordedPdu]) -> None:
        self.disk = disk
        self.space = disk.space
        self.recorded = recorded
        self.connection = Connection(self, 1, now=0.0, name="replay")
        self.log: list[str] = []
        self.connection.on_log = self.log.append
        self.nexus: scsi.Nexus | None = None
        self.session: Any = None
        self.answers = bytearray()
        self.transfer_tags: dict[tuple[int, int], int] = {}  # (task tag, offset) of an R2T → its transfer tag here

    # Surroundings of the connection

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        return [(IQN, [f"{self.disk.portal},1"])]

    def check_session(self, request: pdu.LoginRequest) -> bool:
        return False

    def check_target(self, name: str) -> None:
        if name != IQN:
            raise LoginError(2, 3, "no such target")

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        return OPEN

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)  # the same in every replay

    def output_ready(self, connection: Connection) -> None:
        pass

    # The conversation

    def run(self) -> bytes:
        """Says everything that the initiator said, and returns all that the target answers."""
        solicited: dict[int, tuple[int, int]] = {}  # recorded transfer tag → (task tag, offset)
        for each in self.recorded:
            if each.from_initiator:
                self._say(each, solicited)
            elif each.opcode == pdu.ReadyToTransfer.OPCODE:
                header: Any = each.decode()
                solicited[header.target_transfer_tag] = (header.initiator_task_tag, header.buffer_offset)
        self._happened(self.connection.received(0, now=1.0))
        return bytes(self.answers)

    def _say(self, each: RecordedPdu, solicited: dict[int, tuple[int, int]]) -> None:
        wire = each.wire
        if each.opcode == pdu.DataOut.OPCODE:
            header: Any = each.decode()
            if header.target_transfer_tag != pdu.RESERVED_TAG:
                header.target_transfer_tag = self.transfer_tags[solicited[header.target_transfer_tag]]
                wire = header.pack() + wire[pdu.BHS_BYTES :]
        while wire:
            assert self.connection.wants_read, f"the target does not listen: {self.log}"
            count = 0
            for buffer in self.connection.receive_buffers():
                piece = min(len(buffer), len(wire) - count)
                buffer[:piece] = wire[count : count + piece]
                count += piece
            wire = wire[count:]
            self._happened(self.connection.received(count, now=0.0))
            self._settle()

    def _settle(self) -> None:
        """Let the disk work, and take what the target has to say, until there is neither."""
        while True:
            completed = self.disk.device.run()
            said = b"".join(bytes(piece) for piece in self.connection.data_to_send())
            if said:
                self.connection.sent(len(said))
                self._notice_transfer_tags(said)
                self.answers += said
            self.space.serve()
            if not completed and not said:
                return

    def _notice_transfer_tags(self, said: bytes) -> None:
        for header, _ in cut(said):
            if isinstance(header, pdu.ReadyToTransfer):
                place = (header.initiator_task_tag, header.buffer_offset)
                self.transfer_tags[place] = header.target_transfer_tag

    # The owner of the connection

    def _happened(self, told: Sequence[events.Event]) -> None:
        for event in told:
            if isinstance(event, scsi.Command):
                self._execute(event)
            elif isinstance(event, events.LoginOpened):
                self._admit(event)
            elif isinstance(event, events.SessionClosed):
                event.session.when_idle(event.session.window.close)
                if self.nexus is not None:
                    self.disk.router.release(self.nexus)

    def _admit(self, event: events.LoginOpened) -> None:
        parameters = event.parameters
        nexus = scsi.Nexus(parameters.initiator_name, parameters.isid, parameters.target_name or "", 1)
        if not parameters.is_discovery:
            nexus.devices[self.disk.unit] = self.disk.device
            self.disk.router.establish(nexus)
            self.nexus = nexus
        self.session, more = self.connection.admit(nexus, 7, now=0.0)
        self._happened(more)

    def _execute(self, command: scsi.Command) -> None:
        assert self.nexus is not None, "a command in a discovery session"
        self._issue(command, self.disk.router.execute(command))

    def _issue(self, command: scsi.Command, result: scsi.Execution) -> None:
        if isinstance(result, scsi.Outcome):
            self.session.complete(command, result)
            return
        if result.operation is block.Operation.READ and result.buffer is None:
            result.buffer = self.disk.pool.allocate(result.length_bytes)
            assert result.buffer is not None

        def done(completion: block.Completion) -> None:
            request = completion.request
            assert request.finish is not None
            after = request.finish(completion)
            is_unused = isinstance(after, scsi.Outcome) and after.buffer is None
            if request.operation is block.Operation.READ and request.buffer is not None and is_unused:
                request.buffer.release()
            self._issue(command, after)

        result.done = done
        self.disk.device.submit(result)


def cut(stream: bytes) -> list[tuple[pdu.Pdu, bytes]]:
    """Headers and data of the PDUs in a stream of whole ones."""
    found = []
    at = 0
    while at < len(stream):
        header: Any = pdu.decode(stream[at : at + pdu.BHS_BYTES])
        start = at + pdu.BHS_BYTES + 4 * header.total_ahs_length
        length = header.data_segment_length
        found.append((header, stream[start : start + length]))
        at = start + length + pdu.pad_bytes(length)
    return found


# What depends on when the answers of several tasks went out, or on who gave out a number.
TIMING = ("stat_sn", "exp_cmd_sn", "max_cmd_sn", "target_transfer_tag", "tsih")

# Commands whose data describe the target: INQUIRY, MODE SENSE and REPORT SUPPORTED OPERATION CODES say more with each
# command that it learns, so a replay compares what kind of answer they get, not its bytes.
DESCRIPTIVE = (b"\x12", b"\x1a", b"\x5a", b"\xa3\x0c")

Answer = tuple[str, dict[str, Any], bytes]  # the PDU's name, its fields but for those of TIMING, its data


def by_task(answers: Sequence[tuple[pdu.Pdu, bytes]]) -> dict[int, list[Answer]]:
    """The answers to each task, in order."""
    found: dict[int, list[Answer]] = defaultdict(list)
    for header, data in answers:
        fields = {name: getattr(header, name) for name in header.FIELDS if name not in TIMING}
        found[fields["initiator_task_tag"]].append((type(header).__name__, fields, data))
    return dict(found)


def descriptive_tasks(connection: Sequence[RecordedPdu]) -> set[int]:
    """Task tags of the commands in DESCRIPTIVE."""
    commands: list[Any] = [each.decode() for each in connection if each.opcode == pdu.ScsiCommand.OPCODE]
    return {command.initiator_task_tag for command in commands if command.cdb.startswith(DESCRIPTIVE)}


def statuses(answers: Sequence[Answer]) -> list[tuple[str, int]]:
    """The kinds of a task's answers, with the SCSI status of each."""
    return [(name, fields["status"]) for name, fields, _ in answers]


def was_unknown(answers: Sequence[Answer]) -> bool:
    """Whether the command was one that the target did not know when it was recorded."""
    _, _, data = answers[-1]
    return len(data) >= 16 and data[4] & 0x0F == 0x05 and data[14:16] == b"\x20\x00"
