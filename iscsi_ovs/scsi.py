"""SAM: commands, outcomes, nexuses, logical units. The seam between iSCSI and SCSI.

iSCSI never reads a CDB; SCSI never reads a PDU. A transport makes a Command (for a write: when all its data has
arrived), the task router finds the logical unit and executes it, and what comes back is an Outcome, or a block.Request
that must complete first: its ``finish(completion)`` gives the Outcome, or the next Request. ``finish`` is always set.
What is neither data nor an answer is asked of the target in the same way (RecordUpdate, AbortTasks).
Who submits a Request goes by ``command.device``, which the unit that executed it has set.
This module opens nothing and waits for nothing; it imports no command set: target.py hands ``commands.COMMAND_SET`` in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from iscsi_ovs import attentions, block, errors
from iscsi_ovs.attentions import ASYMMETRIC_ACCESS_STATE_CHANGED as ASYMMETRIC_ACCESS_STATE_CHANGED
from iscsi_ovs.attentions import BUS_DEVICE_RESET_OCCURRED as BUS_DEVICE_RESET_OCCURRED
from iscsi_ovs.attentions import CAPACITY_DATA_HAS_CHANGED as CAPACITY_DATA_HAS_CHANGED
from iscsi_ovs.attentions import COMMANDS_CLEARED_BY_ANOTHER_INITIATOR as COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
from iscsi_ovs.attentions import I_T_NEXUS_LOSS_OCCURRED as I_T_NEXUS_LOSS_OCCURRED
from iscsi_ovs.attentions import MEDIUM_MAY_HAVE_CHANGED as MEDIUM_MAY_HAVE_CHANGED
from iscsi_ovs.attentions import MODE_PARAMETERS_CHANGED as MODE_PARAMETERS_CHANGED
from iscsi_ovs.attentions import POWER_ON_OCCURRED as POWER_ON_OCCURRED
from iscsi_ovs.attentions import REPORTED_LUNS_DATA_HAS_CHANGED as REPORTED_LUNS_DATA_HAS_CHANGED
from iscsi_ovs.attentions import Reset as Reset
from iscsi_ovs.ports import AccessState, PortGroup, TargetPorts

# Status codes (SAM-5 5.3.1)
GOOD = 0x00
CHECK_CONDITION = 0x02
CONDITION_MET = 0x04
BUSY = 0x08
RESERVATION_CONFLICT = 0x18
TASK_SET_FULL = 0x28
ACA_ACTIVE = 0x30
TASK_ABORTED = 0x40


@dataclass(slots=True)
class Command:
    """One SCSI command as the transport received it (SAM-5: Execute Command).

    ``lun`` is the 64-bit LUN field. ``data_in_bytes`` is the room that the initiator has for data-in,
    ``data_out_bytes`` what it said it would send; ``data_out`` holds min(that, MAXIMUM TRANSFER LENGTH) bytes.
    ``context`` belongs to the transport, and says whether that has aborted the command (``is_aborted``). ``device`` is
    where its requests go: set by the unit that lets it through to the medium.
    """

    nexus: Nexus
    lun: int
    cdb: bytes
    data_in_bytes: int = 0
    data_out_bytes: int = 0
    data_out: block.Buffer | None = None
    attribute: int = 0
    context: Any = None
    device: block.Device | None = None


@dataclass(slots=True)
class Outcome:
    """How a command ended.

    ``transfer_bytes`` is what SCSI has, or wanted, to move: data-in where the command reads (the transport cuts it at
    the initiator's room and reports the residual), data-out where it writes. Data-in lies in ``data`` (small answers)
    or at the start of ``buffer`` (payload; it belongs to the transport from here on). A READ that failed brings its
    buffer too, with ``transfer_bytes`` 0, so that one place releases it.
    """

    status: int = GOOD
    sense: bytes = b""
    data: bytes = b""
    buffer: block.Buffer | None = None
    transfer_bytes: int = 0


@dataclass(slots=True)
class RecordUpdate:
    """Replace one of the volume's durable records (CONTRACTS 6), then ``finish(error)``.

    Updates of one unit's record are done one after the other: a command that asks for one while another is under way
    is executed again, from its first gate on, when that is over. So whoever returns a RecordUpdate has changed nothing
    yet, and takes the new state over in ``finish`` when ``error`` is None; anything else is BUSY to the initiator.
    """

    record: str
    data: bytes
    finish: Callable[[OSError | None], Execution]
    context: Any = None


@dataclass(slots=True)
class AbortTasks:
    """Abort every task that these nexuses have on the unit (but the asking one), then ``finish()``."""

    nexuses: tuple[Nexus, ...]
    finish: Callable[[], Execution]
    context: Any = None


Execution = Outcome | block.Request | RecordUpdate | AbortTasks


@dataclass(slots=True)
class Nexus:
    """An I_T nexus: one initiator port talking to one target port, for as long as its session lives.

    Its state is kept by unit, not by LUN: one unit may stand under several numbers, in one LUN map each.
    """

    initiator_name: str
    isid: bytes
    target_name: str
    portal_group_tag: int
    relative_port: int = 1
    router: TaskRouter | None = None  # the LUN map that it sees; set by TaskRouter.establish
    devices: dict[LogicalUnit, block.Device] = field(default_factory=dict)  # while the session holds them
    write_protected: set[LogicalUnit] = field(default_factory=set)  # by its LUN map: others may write there
    # pending unit attentions (ASC, ASCQ), first in first out; filled by LogicalUnit.establish
    attentions: dict[LogicalUnit, list[tuple[int, int]]] = field(default_factory=dict)
    # what became of its EXTENDED COPYs, by list identifier (commands.xcopy)
    copies: dict[tuple[LogicalUnit, int], Any] = field(default_factory=dict)
    ports: TargetPorts = field(default_factory=lambda: TargetPorts("", ()))  # of its target; not told: this one only

    def __post_init__(self) -> None:
        if self.portal_group_tag not in self.ports.groups:
            self.ports = TargetPorts(self.target_name, [PortGroup(self.portal_group_tag, self.relative_port)])

    @property
    def name(self) -> tuple[str, bytes, str, int]:
        """The two ports by name: what is the same when a session comes back."""
        return self.initiator_name, self.isid, self.target_name, self.portal_group_tag

    @property
    def port_group(self) -> PortGroup:
        """Where it comes in."""
        return self.ports.groups[self.portal_group_tag]


class Sense(NamedTuple):
    """Sense key, additional sense code and qualifier. ``commands.sense`` has the table of those in use."""

    key: int
    asc: int
    ascq: int


# What the gates themselves say; everything else is named in commands.sense.
NOT_READY = Sense(0x02, 0x04, 0x00)  # LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE
TARGET_PORT_IN_STANDBY_STATE = Sense(0x02, 0x04, 0x0B)
TARGET_PORT_IN_UNAVAILABLE_STATE = Sense(0x02, 0x04, 0x0C)
SANITIZE_IN_PROGRESS = Sense(0x02, 0x04, 0x1B)
MEDIUM_NOT_PRESENT = Sense(0x02, 0x3A, 0x00)
INVALID_COMMAND_OPERATION_CODE = Sense(0x05, 0x20, 0x00)
INVALID_FIELD_IN_CDB = Sense(0x05, 0x24, 0x00)
LOGICAL_UNIT_NOT_SUPPORTED = Sense(0x05, 0x25, 0x00)
WRITE_PROTECTED = Sense(0x07, 0x27, 0x00)
UNIT_ATTENTION_KEY = 0x06

NACA = 0x04  # CONTROL byte: Normal ACA (SAM-5 5.2); no ACA here


class FieldPointer(NamedTuple):
    """Which field is wrong (SPC-4 4.5.2.4.2): a byte of the CDB or of the parameter list, and its leftmost bit."""

    byte: int
    bit: int | None = None
    is_cdb: bool = True


class Progress(NamedTuple):
    """How far something long has come (SPC-4 4.5.2.4.4): 0 to 65535."""

    value: int


SenseKeySpecific = FieldPointer | Progress


class CheckCondition(errors.Error):
    """SCSI says no. Leaves at LogicalUnit.execute as CHECK CONDITION with this sense."""

    def __init__(self, sense: Sense, pointer: SenseKeySpecific | None = None, information: int | None = None) -> None:
        super().__init__(sense)
        self.sense = sense
        self.pointer = pointer
        self.information = information


def invalid_field(byte: int, bit: int | None = None) -> CheckCondition:
    """INVALID FIELD IN CDB, and which."""
    return CheckCondition(INVALID_FIELD_IN_CDB, FieldPointer(byte, bit))


class Direction(enum.Enum):
    """Which way an operation's data goes, seen from the initiator."""

    NONE = "none"
    IN = "in"
    OUT = "out"


class Conflict(enum.Flag):
    """Which reservation of another nexus refuses an operation with RESERVATION CONFLICT (SPC-4 5.13.3, tables 63 to 65,
    SBC-3 table 13; for RESERVE, SPC-2 5.5.1)."""

    RESERVED = enum.auto()  # by RESERVE of SPC-2
    WRITE_EXCLUSIVE = enum.auto()  # by a persistent reservation of this type, or its registrants only/all forms
    EXCLUSIVE_ACCESS = enum.auto()

    NEVER = 0  # INQUIRY and its like
    LOOKS = RESERVED  # looks at the unit, not at the medium
    READS = RESERVED | EXCLUSIVE_ACCESS
    WRITES = RESERVED | WRITE_EXCLUSIVE | EXCLUSIVE_ACCESS


@dataclass(frozen=True, slots=True)
class Operation:
    """A row of a command set: an opcode (and service action), its policy, and who does it.

    ``usage`` is the CDB USAGE DATA of REPORT SUPPORTED OPERATION CODES, one byte a CDB byte, a bit set where the
    device server looks at it. ``conflicts`` is a function of the CDB where it depends on more than the opcode.
    """

    opcode: int
    service_action: int | None
    name: str
    direction: Direction
    usage: bytes
    handler: Callable[[LogicalUnit, Command], Execution]
    needs_medium: bool = False  # BUSY while the volume server is away, NOT READY where the volume is not held
    allowed_under_unit_attention: bool = False
    allowed_while_unavailable: bool = False  # in a port group in unavailable state (SPC-4 5.15.2.4.5)
    needs_thin: bool = False  # there only where logical block provisioning is
    changes_medium: bool | None = None  # None: it does if data goes out to it
    conflicts: Conflict | Callable[[bytes], Conflict] = Conflict.WRITES

    def conflicts_of(self, cdb: bytes) -> Conflict:
        """The reservations that refuse this very command."""
        return self.conflicts if isinstance(self.conflicts, Conflict) else self.conflicts(cdb)

    @property
    def cdb_length(self) -> int:
        return len(self.usage)

    @property
    def writes(self) -> bool:
        """Refused on a write-protected unit."""
        changes = self.direction is Direction.OUT if self.changes_medium is None else self.changes_medium
        return self.needs_medium and changes


class ReservationGate(Protocol):
    """Who may do what on a unit that is reserved."""

    def refuses(self, nexus: Nexus, operation: Operation | None, cdb: bytes) -> bool:
        """The command ends with RESERVATION CONFLICT. One that we don't know never does: it has its own answer."""


@dataclass(frozen=True, slots=True)
class CommandSet:
    """What a command set hands to logical units, which know none themselves.

    ``build_sense(sense, pointer, information, descriptor_format)`` gives the bytes; ``failures`` what storage's
    errors mean (None: BUSY, the initiator tries again); ``write_through`` makes of a row one that answers only when
    what it wrote is durable. ``records`` are the durable records that units keep, each with who takes its bytes over
    (b"": there is none yet); it raises ValueError for what it can't read.
    """

    operations: tuple[Operation, ...]
    absent: tuple[Operation, ...]  # of LUNs that don't exist
    well_known: tuple[Operation, ...]  # of the REPORT LUNS well known logical unit
    build_sense: Callable[[Sense, SenseKeySpecific | None, int | None, bool], bytes]
    failures: Mapping[block.Error, Sense | None]
    write_through: Callable[[Operation], Operation]
    records: Mapping[str, Callable[[LogicalUnit, bytes], None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a logical unit is (CONTRACTS 4): the same on every path, kept with the volume."""

    volume_name: str
    uuid_hex: str


@dataclass(frozen=True, slots=True)
class Personality:
    """What kind of disk a logical unit presents itself as: an operator's choice, the same on every path.

    A volume of bytes is cut into whole ``logical_block_bytes``; what is left over is not shown. ``write_cache`` off
    makes every write durable before it is answered.
    """

    is_thin: bool = True
    logical_block_bytes: int = 512
    physical_block_bytes: int = 4096
    is_read_only: bool = False
    is_removable: bool = False
    vendor: str = "OVS"
    product: str = "SHM VOLUME"
    revision: str = "0001"
    serial: str | None = None  # None: the volume's UUID
    naa: int | None = None  # 64 or 128 bits; None: locally assigned, from the volume's UUID
    write_cache: bool = True
    rotation_rate: int = 1  # as VPD page B1 has it: 1 does not rotate, else revolutions a minute

    def __post_init__(self) -> None:
        if self.logical_block_bytes not in (512, 4096):
            raise ValueError(f"logical_block_bytes: {self.logical_block_bytes}, not 512 or 4096")
        if self.physical_block_bytes < self.logical_block_bytes or self.physical_block_bytes not in (512, 4096):
            raise ValueError(f"physical_block_bytes: {self.physical_block_bytes}, not 4096 or a logical block")
        if not 0 <= self.rotation_rate <= 0xFFFE:
            raise ValueError(f"rotation_rate: {self.rotation_rate} does not fit")
        naa = self.naa
        if naa is not None and naa >> 60 not in (2, 3, 5) and naa >> 124 != 6:
            raise ValueError(f"naa: {naa:x} is no NAA 2, 3 or 5 identifier of 64 bits, nor NAA 6 of 128")


@dataclass(frozen=True, slots=True)
class Modes:
    """The mode parameters that can be changed; all others are what they are (commands.mode_pages)."""

    descriptor_sense: bool = False  # D_SENSE: sense data in descriptor format
    write_protect: bool = False  # SWP
    write_cache: bool = True  # WCE


@dataclass(frozen=True, slots=True)
class Limits:
    """What VPD page B0 states (CONTRACTS 3 and 7)."""

    max_transfer_bytes: int = 8 << 20
    optimal_transfer_bytes: int = 1 << 20
    # Stated in B0 and obeyed for data; zeroing and unmapping is served at any length, stated or not.
    max_write_same_bytes: int = 32 << 20
    max_unmap_blocks: int = 1 << 20  # of one command, all its descriptors together
    max_unmap_descriptors: int = 256
    max_compare_and_write_blocks: int = 255  # what its one-byte NUMBER OF LOGICAL BLOCKS can say


DISK = 0x00  # peripheral qualifier 0, device type 00h: direct access block device
WELL_KNOWN = 0x1E
ABSENT = 0x7F  # qualifier 3 "not capable of supporting a peripheral device", type 1Fh "unknown or no device type"


class LogicalUnit:
    """One logical unit: identity, geometry, mode state, the nexuses that see it; executes commands.

    The gates, in this order: LUN (the router), unit attention, reservation, operation known, CDB whole and without
    NACA, medium, write protection. A unit whose volume the nexus does not hold says 02/04/00 to what needs the
    medium: the volume is withdrawn, or could not be opened; a unit that is ``block``ed says BUSY, which initiators
    retry. What else keeps it from its medium (ejected, being sanitized, a port group in standby) is behind
    ``is_obstructed``.
    """

    def __init__(
        self,
        command_set: CommandSet,
        identity: Identity,
        geometry: block.Geometry,
        *,
        limits: Limits | None = None,
        personality: Personality | None = None,
        peripheral: int = DISK,
        operations: tuple[Operation, ...] | None = None,
    ) -> None:
        self.command_set = command_set
        self.identity = identity
        self.limits = limits or Limits()
        self.personality = personality or Personality()
        self._is_read_only = self._is_guarded = self.personality.is_read_only
        self.peripheral = peripheral
        self.default_modes = self.saved_modes = self.modes = Modes(write_cache=self.personality.write_cache)
        self.blocked_because: str | None = None
        self.record_versions: dict[str, int] = {}  # of the records that were loaded
        self.power_on = ""  # names the life of the process, or of those that share the unit
        self.reservation: ReservationGate | None = None  # only while somebody holds one
        self.reservations: Any = None  # commands.reservations' own
        self.has_medium = True
        self._sanitize_progress: int | None = None
        self._has_restricted_nexuses = False  # some come in through a port group that does not reach the medium
        self.is_obstructed = False  # one of those above
        rows = command_set.operations if operations is None else operations
        self.operations = tuple(row for row in rows if self.personality.is_thin or not row.needs_thin)
        self._by_opcode: list[Operation | None] = [None] * 256
        self._by_service_action: dict[tuple[int, int], Operation] = {}
        self._index_operations()
        self._nexuses: dict[int, Nexus] = {}  # by id(): a Nexus is mutable, so it has no hash
        self._departed = attentions.Departed()
        # What ends with a reset, or with a nexus (reservations, prevention of removal …), is told so by these.
        self.on_reset: list[Callable[[Reset], None]] = []
        self.on_nexus_lost: list[Callable[[Nexus], None]] = []
        self.preventers: set[int] = set()  # nexuses, by id(), that prevent the removal of the medium
        self.on_reset.append(lambda kind: self.preventers.clear())
        self.on_nexus_lost.append(lambda nexus: self.preventers.discard(id(nexus)))
        # bound once: they go with every request
        self.finish_read: Callable[[block.Completion], Outcome] = self._finish_read
        self.finish_write: Callable[[block.Completion], Outcome] = self._finish_write
        self._set_geometry(geometry)

    def _set_geometry(self, geometry: block.Geometry) -> None:
        self.geometry = geometry
        self.block_bytes = self.personality.logical_block_bytes
        self.capacity_blocks = geometry.size_bytes // self.block_bytes
        self.max_transfer_blocks = self.limits.max_transfer_bytes // self.block_bytes

    def _index_operations(self) -> None:
        """Rows by opcode; without a write cache those that write through, so that with one nothing is asked."""
        writes_through = not self.modes.write_cache
        for row in self.operations:
            if writes_through:
                row = self.command_set.write_through(row)
            if row.service_action is None:
                self._by_opcode[row.opcode] = row
            else:
                self._by_service_action[row.opcode, row.service_action] = row

    def set_modes(self, modes: Modes) -> None:
        """New mode parameters, obeyed from the next command on. (To write out the cache before WCE goes is MODE
        SELECT's part.)"""
        old, self.modes = self.modes, modes
        self.is_read_only = self.personality.is_read_only or modes.write_protect
        if modes.write_cache is not old.write_cache:
            self._index_operations()

    # Commands ---------------------------------------------------------------------------------------------------

    def execute(self, command: Command) -> Execution:
        """Do a command, or say why not. Never raises for anything that a peer sent."""
        cdb = command.cdb
        operation = self._by_opcode[cdb[0]] if cdb else None
        if operation is None and len(cdb) > 1:
            operation = self._by_service_action.get((cdb[0], cdb[1] & 0x1F))
        try:
            pending = command.nexus.attentions.get(self)
            if pending and not (operation is not None and operation.allowed_under_unit_attention):
                raise CheckCondition(Sense(UNIT_ATTENTION_KEY, *pending.pop(0)))
            if self.reservation is not None and self.reservation.refuses(command.nexus, operation, cdb):
                return Outcome(RESERVATION_CONFLICT)
            if operation is None:
                raise self._unknown_operation(cdb)
            length = len(operation.usage)
            if len(cdb) < length:
                raise CheckCondition(INVALID_FIELD_IN_CDB)
            if cdb[length - 1] & NACA:
                raise invalid_field(length - 1, 2)
            if operation.needs_medium:
                if self.is_obstructed and (refusal := self._refuse(command.nexus)) is not None:
                    return refusal
                device = command.nexus.devices.get(self)
                if device is None:
                    raise CheckCondition(NOT_READY)
                command.device = device
                if self._is_guarded and operation.writes and self.is_write_protected(command.nexus):
                    raise CheckCondition(WRITE_PROTECTED)
            elif self.is_obstructed:
                self._check_available(operation, command.nexus)
            return operation.handler(self, command)
        except CheckCondition as condition:
            return Outcome(CHECK_CONDITION, self.build_sense(condition))

    def _unknown_operation(self, cdb: bytes) -> CheckCondition:
        """An opcode that is served, but not with this service action, is a field in the CDB that is wrong."""
        if self.peripheral == ABSENT:
            return CheckCondition(LOGICAL_UNIT_NOT_SUPPORTED)
        if cdb and any(opcode == cdb[0] for opcode, _ in self._by_service_action):
            return invalid_field(1, 4)
        return CheckCondition(INVALID_COMMAND_OPERATION_CODE)

    def reach_medium(self, command: Command) -> Outcome | None:
        """The gate of ``needs_medium``, for a command of which only some forms do; None: it is through."""
        if self.is_obstructed and (refusal := self._refuse(command.nexus)) is not None:
            return refusal
        command.device = command.nexus.devices.get(self)
        if command.device is None:
            raise CheckCondition(NOT_READY)
        return None

    def _refuse(self, nexus: Nexus) -> Outcome | None:
        """Does something stand between this nexus and the medium?"""
        condition = self.not_ready(nexus)
        if self.blocked_because is not None and condition is None:
            return Outcome(BUSY)
        if condition is not None:
            raise condition
        return None

    def not_ready(self, nexus: Nexus) -> CheckCondition | None:
        """Why the unit is not ready for a nexus, if it is not (a unit that is BUSY may be)."""
        state = nexus.port_group.state
        if state is AccessState.STANDBY:
            return CheckCondition(TARGET_PORT_IN_STANDBY_STATE)
        if state is AccessState.UNAVAILABLE:
            return CheckCondition(TARGET_PORT_IN_UNAVAILABLE_STATE)
        if not self.has_medium:
            return CheckCondition(MEDIUM_NOT_PRESENT)
        if self._sanitize_progress is not None:
            return CheckCondition(SANITIZE_IN_PROGRESS, Progress(self._sanitize_progress))
        return None

    def _check_available(self, operation: Operation, nexus: Nexus) -> None:
        """Through an unavailable port group only those commands that SPC-4 lists are done."""
        if nexus.port_group.state is AccessState.UNAVAILABLE and not operation.allowed_while_unavailable:
            raise CheckCondition(TARGET_PORT_IN_UNAVAILABLE_STATE)

    def build_sense(self, condition: CheckCondition) -> bytes:
        """Sense data in the format that the control mode page says."""
        return self.command_set.build_sense(
            condition.sense, condition.pointer, condition.information, self.modes.descriptor_sense
        )

    def _finish_read(self, completion: block.Completion) -> Outcome:
        request, error, done_bytes, _ = completion
        if error is None and done_bytes == request.length_bytes:
            return Outcome(GOOD, b"", b"", request.buffer, done_bytes)
        return self.failed(completion)

    def _finish_write(self, completion: block.Completion) -> Outcome:
        request, error, _, _ = completion
        if error is None:
            return Outcome(GOOD, b"", b"", None, request.length_bytes)
        return self.failed(completion)

    def failed(self, completion: block.Completion) -> Outcome:
        """What a storage failure, or a READ that came short, is in SCSI."""
        request, error, _, _ = completion
        # A short READ without an error went across the end of a volume that is smaller than its geometry said.
        sense = self.command_set.failures[error or block.Error.OUT_OF_RANGE]
        buffer = request.buffer if request.operation is block.Operation.READ else None
        if sense is None:
            return Outcome(BUSY, buffer=buffer)
        return Outcome(CHECK_CONDITION, self.build_sense(CheckCondition(sense)), buffer=buffer)

    # Nexuses ----------------------------------------------------------------------------------------------------

    def establish(self, nexus: Nexus) -> None:
        """A session came: it hears of power on first, or of the loss of the one before it (SAM-5 5.14)."""
        self._nexuses[id(nexus)] = nexus
        nexus.attentions[self] = [self._departed.came(nexus.name)]
        self._guard()
        if nexus.port_group.is_restricted:
            self.access_changed()

    def release(self, nexus: Nexus) -> None:
        """A session went. Unknown ones are no mistake: a login may end before it was established."""
        if self._nexuses.pop(id(nexus), None) is not None:
            self._departed.went(nexus.name, nexus.attentions.get(self, ()))
            for forget in self.on_nexus_lost:
                forget(nexus)
        nexus.attentions.pop(self, None)
        self._guard()

    @property
    def nexuses(self) -> list[Nexus]:
        """Those that see the unit now."""
        return list(self._nexuses.values())

    def raise_attention(self, code: tuple[int, int], but: Nexus | None = None) -> None:
        """Establish a unit attention condition on every nexus, ``but`` one."""
        for nexus in self._nexuses.values():
            if nexus is not but:
                self.attend(nexus, code)

    def attend(self, nexus: Nexus, code: tuple[int, int]) -> None:
        """Establish a unit attention condition on one nexus; one that is pending already stays single."""
        attentions.establish(nexus.attentions.setdefault(self, []), code)

    # Write protection -------------------------------------------------------------------------------------------

    @property
    def is_read_only(self) -> bool:
        """Nobody may write. What a nexus may not by its LUN map is the nexus' (``write_protected``)."""
        return self._is_read_only

    @is_read_only.setter
    def is_read_only(self, is_read_only: bool) -> None:
        self._is_read_only = is_read_only
        self._guard()

    def is_write_protected(self, nexus: Nexus) -> bool:
        """May this nexus not write?"""
        return self._is_read_only or self in nexus.write_protected

    def _guard(self) -> None:
        """One flag for the gate: is there anybody who may not write?"""
        self._is_guarded = self._is_read_only or any(self in nexus.write_protected for nexus in self._nexuses.values())

    # Records ----------------------------------------------------------------------------------------------------

    def load_record(self, record: str, version: int, data: bytes) -> None:
        """Take over what the volume keeps (at the beginning), or what another holder has put. ValueError: it can't be
        read; the unit must not be served then."""
        if self.record_versions.get(record) != version:
            self.command_set.records[record](self, data)
            self.record_versions[record] = version

    # What changes under living sessions -------------------------------------------------------------------------

    def resize(self, geometry: block.Geometry) -> None:
        """The volume has another size: READ CAPACITY is new at once, and every nexus hears of it (CONTRACTS 10)."""
        self._set_geometry(geometry)
        self.raise_attention(CAPACITY_DATA_HAS_CHANGED)

    def block(self, reason: str) -> None:
        """Medium commands are BUSY from now on (the volume server is away, a reset waits for a stuck disk)."""
        self.blocked_because = reason
        self._obstruct()

    def unblock(self) -> None:
        """Medium commands go through again."""
        self.blocked_because = None
        self._obstruct()

    def eject(self) -> None:
        """The medium of a removable unit is out: 02/3A/00 until it is loaded."""
        self.has_medium = False
        self._obstruct()

    def load(self, nexus: Nexus | None = None) -> None:
        """The medium is in again. All nexuses hear that it may be another one, but the one that put it in."""
        if not self.has_medium:
            self.has_medium = True
            self._obstruct()
            self.raise_attention(MEDIUM_MAY_HAVE_CHANGED, but=nexus)

    @property
    def sanitize_progress(self) -> int | None:
        """How far a sanitize operation has come, 0 to 65535; None: there is none."""
        return self._sanitize_progress

    @sanitize_progress.setter
    def sanitize_progress(self, progress: int | None) -> None:
        self._sanitize_progress = progress
        self._obstruct()

    def access_changed(self) -> None:
        """Some port group that reaches this unit has another access state."""
        self._has_restricted_nexuses = any(nexus.port_group.is_restricted for nexus in self._nexuses.values())
        self._obstruct()

    def _obstruct(self) -> None:
        self.is_obstructed = (
            self.blocked_because is not None
            or not self.has_medium
            or self._sanitize_progress is not None
            or self._has_restricted_nexuses
        )

    def reset(self, kind: Reset = Reset.LOGICAL_UNIT) -> None:
        """A reset's part for SCSI: mode parameters as they were saved, and every nexus hears of it.

        The tasks are the transport's to abort, before this.
        """
        self.set_modes(self.saved_modes)
        self._departed.reset()
        for forget in self.on_reset:
            forget(kind)
        self.raise_attention(kind.value)

    def nexus_lost(self, nexus: Nexus) -> None:
        """I_T NEXUS RESET's part: what is kept for this nexus only is forgotten, and it hears of that (SAM-5 6.3.4)."""
        for forget in self.on_nexus_lost:
            forget(nexus)
        self.attend(nexus, I_T_NEXUS_LOSS_OCCURRED)


# LUNs (SAM-5 4.7): eight bytes; the first two are the whole of it for single-level units.
REPORT_LUNS_WELL_KNOWN_LUN = 0xC101 << 48
_FLAT = 0x4000
MAX_LUN_NUMBER = 0x3FFF


def encode_lun(number: int) -> int:
    """The LUN field for a LUN number: peripheral device addressing up to 255, flat space above."""
    assert 0 <= number <= MAX_LUN_NUMBER
    return (number if number < 256 else _FLAT | number) << 48


class TaskRouter:
    """A LUN map: logical units by LUN, and what answers where there is none (SAM-5 4.6.4, SPC-4 6.4.2).

    A unit stands once in a map, and may stand in others.
    """

    def __init__(self, command_set: CommandSet, units: Mapping[int, LogicalUnit] | None = None) -> None:
        self.units: dict[int, LogicalUnit] = {}
        self._nexuses: dict[int, Nexus] = {}
        nobody = Identity("", "0" * 32)
        nothing = block.Geometry(0)
        self._absent = LogicalUnit(command_set, nobody, nothing, peripheral=ABSENT, operations=command_set.absent)
        well_known = LogicalUnit(command_set, nobody, nothing, peripheral=WELL_KNOWN, operations=command_set.well_known)
        self._by_lun: dict[int, LogicalUnit] = {REPORT_LUNS_WELL_KNOWN_LUN: well_known}
        for number, unit in (units or {}).items():
            self.add(number, unit)

    def execute(self, command: Command) -> Execution:
        """Find the logical unit and execute."""
        return self._by_lun.get(command.lun, self._absent).execute(command)

    def unit(self, lun: int) -> LogicalUnit | None:
        """The disk behind a 64-bit LUN field, whichever way it is written."""
        unit = self._by_lun.get(lun)
        return unit if unit is not None and unit.peripheral == DISK else None

    def add(self, number: int, unit: LogicalUnit) -> None:
        """Serve a unit under a LUN number; sessions that live already hear that the inventory has changed."""
        assert number not in self.units
        assert unit not in self.units.values()
        assert 0 <= number <= MAX_LUN_NUMBER
        self._tell_inventory()
        self.units[number] = unit
        for lun in _fields_of(number):
            self._by_lun[lun] = unit
        for nexus in self._nexuses.values():
            unit.establish(nexus)

    def remove(self, number: int) -> LogicalUnit:
        """Serve a unit no longer."""
        unit = self.units.pop(number)
        for lun in _fields_of(number):
            del self._by_lun[lun]
        for nexus in self._nexuses.values():
            unit.release(nexus)
        self._tell_inventory()
        return unit

    def _tell_inventory(self) -> None:
        for nexus in self._nexuses.values():
            for unit in self.units.values():
                unit.attend(nexus, REPORTED_LUNS_DATA_HAS_CHANGED)

    def establish(self, nexus: Nexus) -> None:
        """A session came: every unit gets to know it."""
        self._nexuses[id(nexus)] = nexus
        nexus.router = self
        nexus.ports.nexuses[id(nexus)] = nexus
        for unit in self.units.values():
            unit.establish(nexus)

    def release(self, nexus: Nexus) -> None:
        """A session went."""
        self._nexuses.pop(id(nexus), None)
        nexus.ports.nexuses.pop(id(nexus), None)
        for unit in self.units.values():
            unit.release(nexus)


def _fields_of(number: int) -> Iterable[int]:
    """Every LUN field that means this number."""
    if number < 256:
        yield number << 48
    yield (_FLAT | number) << 48
