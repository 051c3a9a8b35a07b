"""SCSI Commands as nearly all of them come: in order, with all of their data behind them (RFC 7143 section 11.3).

``take`` makes of a run of such commands what Session.begin_command and finish_command would have made of each, in one
frame: half the time. Whatever is not plain is left where it lies, for the general path: immediate delivery, a CmdSN
that is not due, additional headers, ORDERED and HEAD OF QUEUE, data that is not all here, slots that must be waited
for, and everything that is wrong. tests/session/test_plain.py holds the two paths against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session import serial
from iscsi_ovs.session.tasks import State, Task
from iscsi_ovs.session.window import MAX_PLACES

if TYPE_CHECKING:
    from iscsi_ovs.session.session import Session

_SIMPLE = (pdu.ATTRIBUTE_UNTAGGED, pdu.ATTRIBUTE_SIMPLE)
_READS = frozenset(pdu.FINAL | pdu.READ | attribute for attribute in _SIMPLE)
_WRITES = frozenset(pdu.FINAL | pdu.WRITE | attribute for attribute in _SIMPLE)


def take(session: Session, scratch: memoryview, start: int, end: int) -> tuple[int, int]:
    """Take plain commands from ``scratch[start:end]``. Returns where it stopped, and the data segments it passed."""
    segments = 0
    if session.holds_commands:
        return start, segments
    window, space, by_tag = session.window, session.space, session.tasks.by_tag
    parameters, tell = session.parameters, session.connection.tell
    pool = space.pool
    kept_slots = window.slots_a_place
    write_limit = 0
    if parameters.immediate_data and pool is not None and window.granted_slots:
        # What a place in the window has paid for, in one data segment.
        write_limit = min(parameters.first_burst_length, parameters.target_max_recv_data_segment_length)
    while end - start >= pdu.BHS_BYTES:
        opcode, flags, _, lengths, lun, tag, expected, cmd_sn, _, cdb = pdu.ScsiCommand.unpack_items(scratch, start)
        if (
            opcode != pdu.ScsiCommand.OPCODE
            or cmd_sn != window.exp_cmd_sn
            or window.taken >= window.places
            or tag in by_tag
            or tag == pdu.RESERVED_TAG
        ):
            break
        data = start + pdu.BHS_BYTES
        if flags in _WRITES:
            # The word holds TotalAHSLength, too: equal means that there are no additional headers.
            if lengths != expected or not 0 < expected <= write_limit or expected & 3 or data + expected > end:
                break
            assert pool is not None
            buffer = pool.allocate(expected, kept_slots)
            if buffer is None:
                break
            task = Task(tag, lun, expected)
            task.is_write = True
            needed_slots = -(-expected // pool.slot_bytes)
            task.kept_slots = needed_slots if needed_slots < kept_slots else kept_slots
            task.data_out_bytes = task.received_bytes = expected
            task.buffer = buffer
            task.generation = space.generation
            start = data + expected
            for view in buffer.views(0, expected):
                view[:] = scratch[data : data + len(view)]
                data += len(view)
            segments += 1
            command = scsi.Command(session.nexus, lun, cdb, 0, expected, buffer, flags & pdu.ATTRIBUTE_MASK, task)
        elif flags in _READS and not lengths:
            task = Task(tag, lun, expected)
            task.is_read = True
            start = data
            command = scsi.Command(session.nexus, lun, cdb, expected, 0, None, flags & pdu.ATTRIBUTE_MASK, task)
        else:
            break
        task.session = session
        task.command = command
        task.is_admitted = True
        task.state = State.EXECUTING
        by_tag[tag] = task
        window.exp_cmd_sn = (cmd_sn + 1) & serial.MASK
        window.taken += 1
        if window.taken >= window.places and window.places < MAX_PLACES:
            window.grow()
        tell(command)
    return start, segments
