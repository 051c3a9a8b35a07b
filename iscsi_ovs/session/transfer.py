"""The data of a task, both ways: unsolicited and solicited data-out, R2T, Data-In, status (RFC 7143 11.4, 11.7, 11.8).

Data-out lands in the task's buffer by ``views()``; only when all of it is there does SCSI hear of the command. Data-in
is sent from the buffer where the volume server put it. DataPDUInOrder and DataSequenceInOrder are always Yes, so one
position a sequence says what must come next; anything else ends the task, not the connection, because the data segment
was received all the same.

What is wrong with a data sequence is told as sense, in the words of section 11.4.7.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.session import serial
from iscsi_ovs.session.framing import sink
from iscsi_ovs.session.tasks import State, Task, Transfer

if TYPE_CHECKING:
    from iscsi_ovs.session.connection import Connection
    from iscsi_ovs.session.session import Session
    from iscsi_ovs.session.window import CommandWindow

MAX_TRANSFER_BYTES = 8 << 20  # VPD B0's MAXIMUM TRANSFER LENGTH: no command gets more buffer than this

_pack_response = pdu.ScsiResponse.pack_items
_pack_data_in = pdu.DataIn.pack_items
_ZEROS = bytes(8)
_PADDING = tuple(map(bytes, range(4)))

_ABORTED_COMMAND = 0x0B
UNEXPECTED_UNSOLICITED_DATA = (0x0C, 0x0C)
INCORRECT_AMOUNT_OF_DATA = (0x0C, 0x0D)
INITIATOR_RESPONSE_TIMEOUT = (0x4B, 0x06)
INVALID_MESSAGE = (0x05, 0x49, 0x00)  # ILLEGAL REQUEST, INVALID MESSAGE ERROR: a task attribute that is not supported
PROTOCOL_SERVICE_CRC_ERROR = (0x47, 0x05)


def aborted(code: tuple[int, int]) -> scsi.Outcome:
    """CHECK CONDITION, ABORTED COMMAND, with one of the codes above."""
    return check_condition(_ABORTED_COMMAND, *code)


def check_condition(key: int, asc: int, ascq: int) -> scsi.Outcome:
    """CHECK CONDITION with sense data in fixed format: what the transport itself has to say of a command."""
    sense = bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))
    return scsi.Outcome(status=scsi.CHECK_CONDITION, sense=sense)


def open_write(session: Session, task: Task, header: pdu.ScsiCommand) -> Sequence[memoryview]:
    """A command that writes: give it a buffer, and its immediate data a place."""
    parameters = session.parameters
    immediate_bytes: int = header.data_segment_length
    expected = task.expected_bytes
    first_burst = min(parameters.first_burst_length, expected)
    has_more = not header.flags & pdu.FINAL
    if immediate_bytes > (first_burst if parameters.immediate_data else 0) or (has_more and parameters.initial_r2t):
        session.fail(task, aborted(UNEXPECTED_UNSOLICITED_DATA))
        return sink(immediate_bytes)
    if expected == 0:
        return []
    pool = session.space.pool
    kept = session.window.slots_a_place
    if immediate_bytes == expected and pool is not None and kept and not task.is_immediate:
        # What most small writes are: whole in one PDU, on slots that its place in the window has paid for.
        buffer = pool.allocate(expected, kept) if session.window.granted_slots else None
        if buffer is not None:
            needed = -(-expected // pool.slot_bytes)
            task.kept_slots = needed if needed < kept else kept
            task.data_out_bytes = expected
            task.buffer = buffer
            task.generation = session.space.generation
            return buffer.views(0, expected)
    task.data_out_bytes = min(expected, MAX_TRANSFER_BYTES)
    if has_more:
        task.unsolicited_end = first_burst
    if pool is None:
        session.fail(task, scsi.Outcome(status=scsi.BUSY))
        return sink(immediate_bytes)
    # An immediate command stands outside the window, so no slots were kept for it.
    if task.is_immediate or not session.window.granted_slots:
        kept = 0
    buffer = None
    needed = pool.slots_for(task.data_out_bytes)
    if needed <= kept or session.space.may_take(needed - kept, session):
        buffer = pool.allocate(task.data_out_bytes, kept)
        task.kept_slots = min(kept, needed)
    if buffer is None:
        early = min(max(immediate_bytes, task.unsolicited_end), task.data_out_bytes)
        if early > kept * pool.slot_bytes or task.data_out_bytes > session.space.largest_bytes:
            session.fail(task, scsi.Outcome(status=scsi.TASK_SET_FULL))
            return sink(immediate_bytes)
        if kept:
            buffer = pool.allocate(kept * pool.slot_bytes, kept)
            task.kept_slots = kept
            assert buffer is not None, "slots of the window's grant are always there"
    task.buffer = buffer
    task.generation = session.space.generation
    return buffer.views(0, immediate_bytes) if immediate_bytes and buffer is not None else []


def data_out(session: Session, header: pdu.DataOut) -> tuple[Task | None, Sequence[memoryview]]:
    """A Data-Out header: where its data goes. No task: it is drained (the task it belongs to has ended)."""
    length: int = header.data_segment_length
    task = session.tasks.find(header.initiator_task_tag)
    if (
        task is None
        or task.state is not State.RECEIVING
        or not task.is_write
        or task.is_aborted
        or task.early_outcome is not None
    ):
        if task is not None and task.is_aborted and task.transfers and header.flags & pdu.FINAL:
            session.drained(task, header.target_transfer_tag)
        return None, sink(length)
    end = header.buffer_offset + length
    if header.target_transfer_tag == pdu.RESERVED_TAG:
        is_right = (
            task.unsolicited_end > 0
            and header.buffer_offset == task.received_bytes
            and header.data_sn == task.unsolicited_data_sn
        )
        limit = task.unsolicited_end
        task.unsolicited_data_sn += 1
    else:
        transfer = task.transfers[0] if task.transfers else None
        is_right = (
            transfer is not None
            and transfer.target_transfer_tag == header.target_transfer_tag
            and header.buffer_offset == transfer.position
            and header.data_sn == transfer.data_sn
        )
        limit = transfer.end if transfer is not None else 0
        if transfer is not None:
            transfer.data_sn += 1
    # A sequence ends with F, and F stands only there. Unsolicited data may end before FirstBurstLength.
    is_final = bool(header.flags & pdu.FINAL)
    ends_early = is_final and end < limit and header.target_transfer_tag != pdu.RESERVED_TAG
    if not is_right or end > limit or ends_early or (end == limit and not is_final):
        code = INCORRECT_AMOUNT_OF_DATA if task.unsolicited_end or task.transfers else UNEXPECTED_UNSOLICITED_DATA
        session.log(
            f"Data-Out for task {task.initiator_task_tag:#x} at {header.buffer_offset}+{length}, "
            f"DataSN {header.data_sn}, is not what was asked for: the task is aborted"
        )
        session.fail(task, aborted(code))
        return task, sink(length)
    # What is beyond MAXIMUM TRANSFER LENGTH is not kept: SCSI refuses such a command anyway.
    if end > task.data_out_bytes:
        return task, sink(length)
    assert task.buffer is not None
    return task, task.buffer.views(header.buffer_offset, end)


def data_out_arrived(session: Session, task: Task, header: pdu.DataOut) -> None:
    """The data segment of a Data-Out is whole."""
    if task.state is not State.RECEIVING:
        return
    if task.is_aborted:
        session.drained(task, header.target_transfer_tag if header.flags & pdu.FINAL else None)
        return
    if task.early_outcome is not None:
        return  # this very PDU was wrong, and its command has not had its turn
    length: int = header.data_segment_length
    is_final = bool(header.flags & pdu.FINAL)
    task.received_bytes += length
    if header.target_transfer_tag == pdu.RESERVED_TAG:
        if not is_final:
            return
        task.unsolicited_end = 0
    else:
        transfer = task.transfers[0]
        transfer.position += length
        if not is_final:
            return
        task.transfers = task.transfers[1:]
        session.data_seen_at = session.connection.now
    proceed(session, task)


def proceed(session: Session, task: Task) -> None:
    """A data sequence has ended (or the command has come): execute it, or ask for more."""
    if not task.is_admitted:
        return  # its CmdSN has not had its turn: no R2T and no slots before that
    if task.is_data_complete:
        session.ready(task)
    elif not task.unsolicited_end and task.waiter is None:
        _solicit(session, task)


def _solicit(session: Session, task: Task) -> None:
    """Take all the space that the rest needs, in order of arrival, then send R2Ts."""
    if task.is_damaged:
        # Section 7.8: the target "MUST wait to receive all the data (signaled by a data PDU with the F bit set for
        # all outstanding R2Ts) before sending the SCSI Response PDU".
        if not task.transfers:
            session.fail(task, aborted(PROTOCOL_SERVICE_CRC_ERROR))
        return
    buffer = task.buffer
    if session.space.pool is None or (buffer is not None and task.generation != session.space.generation):
        # What came so far lies in a segment that is gone: the volume server could not take it.
        session.fail(task, scsi.Outcome(status=scsi.BUSY))
        return
    if buffer is not None and buffer.length_bytes >= task.data_out_bytes:
        _send_r2ts(session, task)
        return

    def grab() -> bool:
        pool = session.space.pool
        assert pool is not None
        if task.buffer is None:
            task.buffer = pool.allocate(task.data_out_bytes)
        elif not task.buffer.extend(task.data_out_bytes):
            return False
        if task.buffer is None:
            return False
        task.waiter = None
        _send_r2ts(session, task)
        return True

    needed = session.space.pool.slots_for(task.data_out_bytes) - task.kept_slots
    task.waiter = session.space.wait(grab, needed, session)


def _send_r2ts(session: Session, task: Task) -> None:
    parameters = session.parameters
    task.next_offset = max(task.next_offset, task.received_bytes)
    while len(task.transfers) < parameters.max_outstanding_r2t and task.next_offset < task.data_out_bytes:
        start = task.next_offset
        end = min(start + parameters.max_burst_length, task.data_out_bytes)
        tag = session.next_transfer_tag()
        task.transfers = [*task.transfers, Transfer(tag, start, end)]
        task.next_offset = end
        connection = session.connection
        connection.send(
            pdu.ReadyToTransfer(
                lun=task.lun,
                initiator_task_tag=task.initiator_task_tag,
                target_transfer_tag=tag,
                # An R2T carries the next StatSN and does not advance it (section 11.8.3).
                stat_sn=connection.stat_sn,
                exp_cmd_sn=session.window.exp_cmd_sn,
                max_cmd_sn=session.window.max_cmd_sn,
                r2t_sn=task.r2t_sn,
                buffer_offset=start,
                desired_data_transfer_length=end - start,
            )
        )
        task.r2t_sn += 1


def residual(expected: int, transfer: int) -> tuple[int, int]:
    """Flags and Residual Count (section 11.4.5): what SCSI wanted to move against what the initiator expected."""
    if transfer > expected:
        return pdu.OVERFLOW, transfer - expected
    if transfer < expected:
        return pdu.UNDERFLOW, expected - transfer
    return 0, 0


def respond(session: Session, task: Task, outcome: scsi.Outcome) -> None:
    """Queue a task's data-in and status. Its place in the window is open again already."""
    connection = session.connection
    window = session.window
    flags = residual_count = data_sn = 0
    if outcome.buffer is None and task.is_read and task.expected_bytes and outcome.transfer_bytes > len(outcome.data):
        # A WRITE sent with R, or a read that ends BUSY: nothing moves in, and no header may say that something does.
        outcome.transfer_bytes = len(outcome.data)
    if outcome.transfer_bytes != task.expected_bytes:
        flags, residual_count = residual(task.expected_bytes, outcome.transfer_bytes)
    if task.is_read and outcome.transfer_bytes and task.expected_bytes:
        length = min(outcome.transfer_bytes, task.expected_bytes)
        status_goes_along = outcome.status == scsi.GOOD and not outcome.sense
        parameters = session.parameters
        if (
            status_goes_along
            and outcome.buffer is not None
            and length <= parameters.max_recv_data_segment_length
            and length <= parameters.max_burst_length
        ):
            _send_one_data_in(session, task, outcome.buffer, length, flags, residual_count)
            return
        data_sn = _send_data_in(session, task, outcome, length, flags if status_goes_along else None, residual_count)
        if status_goes_along:
            return
    elif outcome.buffer is not None:
        outcome.buffer.release()
    if outcome.status == scsi.GOOD and not outcome.sense and not data_sn:
        respond_good(connection, window, task.initiator_task_tag, flags, residual_count)
        return
    data = b""
    if outcome.sense:
        # Section 11.4.7: SenseLength, then sense data.
        data = len(outcome.sense).to_bytes(2, "big") + outcome.sense
    connection.send(
        pdu.ScsiResponse(
            flags=pdu.FINAL | flags,
            status=outcome.status,
            data_segment_length=len(data),
            initiator_task_tag=task.initiator_task_tag,
            stat_sn=connection.take_stat_sn(),
            exp_cmd_sn=window.exp_cmd_sn,
            max_cmd_sn=window.max_cmd_sn,
            exp_data_sn=data_sn,
            residual_count=residual_count,
        ),
        data,
    )


def respond_good(
    connection: Connection, window: CommandWindow, tag: int, flags: int = 0, residual_count: int = 0
) -> None:
    """The status of most writes: GOOD, no data. Packed without the object."""
    stat_sn = connection.stat_sn
    connection.stat_sn = (stat_sn + 1) & serial.MASK
    connection.outbox.put(
        _pack_response(
            pdu.ScsiResponse.OPCODE, pdu.FINAL | flags, pdu.COMPLETED_AT_TARGET, scsi.GOOD, 0, _ZEROS, tag, 0,
            stat_sn, window.exp_cmd_sn, window.max_cmd_sn, 0, 0, residual_count,
        )
    )  # fmt: skip
    if not connection.has_output:
        connection.touch()


def _send_one_data_in(
    session: Session, task: Task, buffer: block.Buffer, length: int, flags: int, residual_count: int
) -> None:
    """What most reads are: one Data-In PDU that bears the status. Packed without the object."""
    connection = session.connection
    window = session.window
    stat_sn = connection.stat_sn
    connection.stat_sn = (stat_sn + 1) & serial.MASK
    header = _pack_data_in(
        pdu.DataIn.OPCODE, pdu.FINAL | pdu.STATUS | flags, 0, scsi.GOOD, length, 0, task.initiator_task_tag,
        pdu.RESERVED_TAG, stat_sn, window.exp_cmd_sn, window.max_cmd_sn, 0, 0, residual_count,
    )  # fmt: skip
    connection.outbox.put_payload(header, buffer.views(0, length), length, _PADDING[-length & 3], buffer.release)
    if not connection.has_output:
        connection.touch()


def _send_data_in(
    session: Session, task: Task, outcome: scsi.Outcome, length: int, status_flags: int | None, residual_count: int
) -> int:
    """Data-In PDUs for ``length`` bytes; the last bears status if ``status_flags`` are given. Returns their number."""
    parameters = session.parameters
    connection = session.connection
    buffer = outcome.buffer
    segment = parameters.max_recv_data_segment_length
    burst = parameters.max_burst_length
    header = pdu.DataIn(
        initiator_task_tag=task.initiator_task_tag,
        exp_cmd_sn=session.window.exp_cmd_sn,
        max_cmd_sn=session.window.max_cmd_sn,
    )
    outbox = connection.outbox
    small = memoryview(outcome.data) if buffer is None else None
    offset = 0
    burst_end = burst
    while offset < length:
        end = min(offset + segment, burst_end, length)
        header.data_segment_length = end - offset
        header.buffer_offset = offset
        flags = pdu.FINAL if end in (burst_end, length) else 0
        if end == burst_end:
            burst_end += burst
        if end == length and status_flags is not None:
            flags |= pdu.STATUS | status_flags
            header.residual_count = residual_count
            header.stat_sn = connection.take_stat_sn()
        header.flags = flags
        outbox.put(header.pack())
        if buffer is not None:
            for view in buffer.views(offset, end):
                outbox.put(view)
        elif small is not None:
            outbox.put(small[offset:end])
        if (end - offset) & 3:
            outbox.put(bytes(-(end - offset) & 3))
        header.data_sn += 1
        offset = end
    if buffer is not None:
        outbox.mark(buffer.release)
    if not connection.has_output:
        connection.touch()
    return int(header.data_sn)


def next_tag(tag: int) -> int:
    """The target transfer tag after ``tag``, never the reserved one."""
    tag = serial.add(tag, 1)
    return 0 if tag == pdu.RESERVED_TAG else tag
