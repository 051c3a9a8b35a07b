"""What goes beside a CDB: the parameter list that came, and the parameter data that goes back."""

from __future__ import annotations

from iscsi_ovs.commands import sense
from iscsi_ovs.scsi import CheckCondition, Command, Outcome


def received(command: Command, length_bytes: int, least_bytes: int) -> bytes:
    """A parameter list, copied once out of shared memory. Shorter than its header, or than its CDB says: 05/1A/00."""
    if length_bytes < least_bytes or command.data_out_bytes < length_bytes or command.data_out is None:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    return b"".join(command.data_out.views(0, length_bytes))


def answer(data: bytes, allocation_length: int) -> Outcome:
    """Parameter data, cut at the allocation length: that is no error (SPC-4 4.2.5.6)."""
    data = data[:allocation_length]
    return Outcome(data=data, transfer_bytes=len(data))
