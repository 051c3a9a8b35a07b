"""Operations: rows of a command set, and the policy that a unit's gates go by."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from iscsi_ovs import block
from iscsi_ovs.sam.command import Command, Execution
from iscsi_ovs.sam.conditions import Sense, SenseKeySpecific

if TYPE_CHECKING:
    from iscsi_ovs.sam.nexus import Nexus
    from iscsi_ovs.sam.unit import LogicalUnit


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
    ends_sanitize_failure: bool = False  # done even while a sanitize operation that failed keeps all else away
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
