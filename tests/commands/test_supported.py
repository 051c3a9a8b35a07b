"""REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS. (REPORT SUPPORTED OPERATION CODES: test_operations.)"""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.session import management
from tests.commands.bench import Bench

REPORT, WITH_TIMEOUTS = "a3 0d 00 000000 000000ff 00 00", "a3 0d 80 000000 000000ff 00 00"

# Byte and bit of each function (SPC-4 table 252)
BITS = {
    pdu.ABORT_TASK: (0, 0x80),
    pdu.ABORT_TASK_SET: (0, 0x40),
    pdu.CLEAR_ACA: (0, 0x20),
    pdu.CLEAR_TASK_SET: (0, 0x10),
    pdu.LOGICAL_UNIT_RESET: (0, 0x08),
    pdu.QUERY_TASK: (0, 0x04),
    pdu.TARGET_WARM_RESET: (0, 0x02),
    pdu.QUERY_ASYNCHRONOUS_EVENT: (1, 0x04),
    pdu.QUERY_TASK_SET: (1, 0x02),
    pdu.I_T_NEXUS_RESET: (1, 0x01),
}


def test_functions(disk: Bench) -> None:
    """Those that sessions serve (some of them from iSCSIProtocolLevel 2 on), and no others; four bytes."""
    data = disk.execute(REPORT).data
    expected = [0, 0]
    for row in management.FUNCTIONS.values():
        if row.code in BITS and row.refusal is None:
            byte, bit = BITS[row.code]
            expected[byte] |= bit
    assert data == bytes((*expected, 0, 0))


def test_with_timeouts(disk: Bench) -> None:
    """REPD: twelve bytes more, ten seconds for each."""
    short, long = disk.execute(REPORT).data, disk.execute(WITH_TIMEOUTS).data
    assert long.hex() == short[:2].hex() + "000c" + "01000000" + "00000064" + "00000000"


@pytest.mark.parametrize("length", [0, 1, 3, 4, 15])
def test_cut(disk: Bench, length: int) -> None:
    """At the allocation length."""
    whole = disk.execute(WITH_TIMEOUTS).data
    assert disk.execute(f"a3 0d 80 000000 {length:08x} 00 00").data == whole[:length]
