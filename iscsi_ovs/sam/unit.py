"""A logical unit: the gates before every command, and what changes under living sessions (SAM-5 4.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iscsi_ovs import block
from iscsi_ovs.sam import attentions
from iscsi_ovs.sam.attentions import (
    CAPACITY_DATA_HAS_CHANGED,
    I_T_NEXUS_LOSS_OCCURRED,
    MEDIUM_MAY_HAVE_CHANGED,
    Reset,
)
from iscsi_ovs.sam.command import BUSY, CHECK_CONDITION, GOOD, RESERVATION_CONFLICT, Command, Execution, Outcome
from iscsi_ovs.sam.conditions import (
    INVALID_COMMAND_OPERATION_CODE,
    INVALID_FIELD_IN_CDB,
    LOGICAL_UNIT_NOT_SUPPORTED,
    MEDIUM_NOT_PRESENT,
    NOT_READY,
    SANITIZE_COMMAND_FAILED,
    SANITIZE_IN_PROGRESS,
    TARGET_PORT_IN_STANDBY_STATE,
    TARGET_PORT_IN_UNAVAILABLE_STATE,
    UNIT_ATTENTION_KEY,
    WRITE_PROTECTED,
    CheckCondition,
    Progress,
    Sense,
    invalid_field,
)
from iscsi_ovs.sam.identity import Identity, Limits, Modes, Personality
from iscsi_ovs.sam.nexus import Nexus
from iscsi_ovs.sam.operations import CommandSet, Operation, ReservationGate
from iscsi_ovs.sam.ports import AccessState

NACA = 0x04  # CONTROL byte: Normal ACA (SAM-5 5.2); no ACA here
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
        self.soft_threshold_bytes = 0  # left in the store: then 38/07 is raised; 0: there is no such threshold
        self._sanitize_progress: int | None = None
        self._has_failed_to_sanitize = False
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
        self.now_ms: Callable[[], int] = lambda: 0  # since 1970; whoever serves the unit hands a clock in
        self.timestamp_offset_ms: int | None = None  # what SET TIMESTAMP has put to it
        self.preventers: set[int] = set()  # nexuses, by id(), that prevent the removal of the medium
        self.on_reset.append(lambda kind: self.preventers.clear())
        self.on_nexus_lost.append(lambda nexus: self.preventers.discard(id(nexus)))
        # bound once: they go with every request
        self.finish_read: Callable[[block.Completion], Outcome] = self._finish_read
        self.finish_write: Callable[[block.Completion], Outcome] = self._finish_write
        self._room_bytes = self.limits.max_transfer_bytes
        self._set_geometry(geometry)

    def _set_geometry(self, geometry: block.Geometry) -> None:
        self.geometry = geometry
        self.block_bytes = self.personality.logical_block_bytes
        self.capacity_blocks = geometry.size_bytes // self.block_bytes
        self.max_transfer_blocks = min(self.limits.max_transfer_bytes, self._room_bytes) // self.block_bytes

    def limit_transfers(self, room_bytes: int) -> None:
        """There is no room for more than so much of one command's data."""
        self._room_bytes = room_bytes
        self._set_geometry(self.geometry)

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
                code = pending.pop(0)
                raise CheckCondition(Sense(UNIT_ATTENTION_KEY, *code), information=attentions.INFORMATION.get(code))
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
                if self.is_obstructed and (refusal := self._refuse(command.nexus, operation)) is not None:
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

    def _refuse(self, nexus: Nexus, operation: Operation | None = None) -> Outcome | None:
        """Does something stand between this nexus and the medium?"""
        condition = self.not_ready(nexus)
        if condition is not None:
            is_helped = operation is not None and operation.ends_sanitize_failure
            if not is_helped or condition.sense != SANITIZE_COMMAND_FAILED:
                raise condition
        return None if self.blocked_because is None else Outcome(BUSY)

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
        if self._has_failed_to_sanitize:
            return CheckCondition(SANITIZE_COMMAND_FAILED)
        return None

    def is_reserved_against(self, nexus: Nexus, opcode: int) -> bool:
        """Would a reservation refuse this nexus a command with this opcode?"""
        gate = self.reservation
        return gate is not None and gate.refuses(nexus, self._by_opcode[opcode], bytes((opcode,)))

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
        request, error, _, detail = completion
        # A short READ without an error went across the end of a volume that is smaller than its geometry said.
        sense = self.command_set.failures[error or block.Error.OUT_OF_RANGE]
        buffer = request.buffer if request.operation is block.Operation.READ else None
        if sense is None:
            return Outcome(BUSY, buffer=buffer)
        information = None
        if error is block.Error.BAD_PAGE:
            # Which block, as disks say it: its LBA in the INFORMATION field. Of a medium that fails nobody knows.
            information = (request.offset_bytes + detail) // self.block_bytes
        return Outcome(CHECK_CONDITION, self.build_sense(CheckCondition(sense, information=information)), buffer=buffer)

    # Nexuses ----------------------------------------------------------------------------------------------------

    def establish(self, nexus: Nexus) -> None:
        """A session came: it hears of power on first, or of the loss of the one before it (SAM-5 5.14)."""
        self._nexuses[id(nexus)] = nexus
        nexus.attentions[self] = self._departed.came(nexus.name)
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

    def change_medium(self, geometry: block.Geometry) -> None:
        """Other data lie on the volume (it was rolled back), perhaps more or less of them: every nexus hears of that,
        and whoever comes back (CONTRACTS 5)."""
        codes = [MEDIUM_MAY_HAVE_CHANGED]
        if geometry.size_bytes != self.geometry.size_bytes:
            codes.append(CAPACITY_DATA_HAS_CHANGED)
        self._set_geometry(geometry)
        for code in codes:
            self.raise_attention(code)
            self._departed.missed(code)

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

    @property
    def has_failed_to_sanitize(self) -> bool:
        """The last sanitize operation failed: nothing of the medium is shown before one succeeds (SBC-3 4.11.3)."""
        return self._has_failed_to_sanitize

    @has_failed_to_sanitize.setter
    def has_failed_to_sanitize(self, has_failed: bool) -> None:
        self._has_failed_to_sanitize = has_failed
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
            or self._has_failed_to_sanitize
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
