"""tshark as a second judge on conversations: the whole target on one side, testing.initiator on the other.

What went over the (imagined) wire is wrapped into segments and given to tshark: it finds nothing malformed, the same
PDUs as we do, and the same opcodes in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.target import Settings
from shm_server.abi import control
from tests.flows.unh.exchange import read_cdb, write_cdb
from tests.targets.house import IQN, Client, House, info_of
from tests.tools import require_tool
from tests.traces import pcapng, reading
from tests.traces.test_traces import is_cut_vpd_page, tshark_packets_of, tshark_pdus

pytestmark = pytest.mark.interop


class Recorded(House):
    """A target whose connections are written down."""

    def __init__(self, path: Path) -> None:
        self.writer = pcapng.Writer(path, "size=1048576")
        super().__init__()

    def client(self, **identity: object) -> Client:
        client = super().client(**identity)
        flow = self.writer.connect()
        feed, give = client.initiator.feed, client.give

        def heard(data: bytes) -> object:
            self.writer.data(flow, False, bytes(data))
            return feed(data)

        def said(data: bytes) -> None:
            self.writer.data(flow, True, data)
            give(data)

        client.initiator.feed = heard  # type: ignore[method-assign, assignment]
        client.give = said  # type: ignore[method-assign]
        return client


def everyday(house: House) -> None:
    """Reads and writes of many shapes, pings, text, a logout."""
    client = house.client()
    client.initiator.login(IQN, MaxRecvDataSegmentLength="4096", FirstBurstLength="1024", MaxBurstLength="8192")
    house.run()
    client.attentions()
    for blocks in (1, 9, 64):
        client.do(client.initiator.command(write_cdb(3, blocks), write=bytes(range(256)) * 2 * blocks))
        client.do(client.initiator.command(read_cdb(3, blocks), read=512 * blocks))
    client.do(client.initiator.nop_out(b"ping"))
    client.do(client.initiator.send_targets(""))
    client.do(client.initiator.logout())


def probing(house: House) -> None:
    """What an initiator asks a disk first: INQUIRY and its pages, capacity, mode pages, LUNs, operation codes."""
    client = house.login()
    for text in ("12000000ff00", "120100000400", "120180000400", "1201830004 00", "1201b0004000", "1201b1004000"):
        client.do(client.initiator.command(bytes.fromhex(text), read=1024))
    for text in ("25" + "00" * 9, "9e10" + "00" * 11 + "20", "1a003f00ff00", "a0" + "00" * 8 + "ff0000"):
        client.do(client.initiator.command(bytes.fromhex(text), read=255))
    client.do(client.initiator.command(bytes.fromhex("a30c000000000000ffff0000"), read=65535))


def refusals(house: House) -> None:
    """Sense, Reject, task management, residuals, and logins that are refused."""
    client = house.login()
    client.do(client.initiator.command(b"\xff" + bytes(15)))
    client.do(client.initiator.command(read_cdb(5000, 1), read=512))
    client.do(client.initiator.command(read_cdb(0, 4), read=512))
    for function in (pdu.ABORT_TASK, pdu.LOGICAL_UNIT_RESET, pdu.TASK_REASSIGN):
        client.do(client.initiator.tmf(function, referenced_task_tag=0x7777))
    client.initiator.raw(pdu.SnackRequest(initiator_task_tag=1))
    house.run()
    for wrong in ({"InitiatorName": None}, {"TargetName": IQN + "x"}, {"AuthMethod": "KRB5"}):
        other = house.client(isid=b"\x80\0\0\0\0\7")
        other.initiator.login(IQN, identity=wrong)
        house.run()
        assert other.initiator.login_status != (0, 0)


def discovery(house: House) -> None:
    """More targets than fit one answer."""
    for number in range(60):
        house.service.infos[f"v{number}"] = info_of(f"v{number}", f"{number:032x}")
        house.service.on_event(control.VolumeCreated(0, house.service.infos[f"v{number}"]))
    client = house.client()
    client.initiator.login(None, MaxRecvDataSegmentLength="1024")
    house.run()
    names = [name for key, name in client.do(client.initiator.send_targets("All")).pairs if key == "TargetName"]
    assert Settings().iqn("v59") in names
    client.do(client.initiator.logout())


def is_text_that_goes_on(segment: bytes) -> bool:
    """tshark does not put pieces of text together: a pair that spans two of them (section 6.1) is malformed to it."""
    return segment[0] & pdu.OPCODE_MASK == pdu.TextResponse.OPCODE and not segment[1] & pdu.FINAL


@pytest.mark.parametrize("talk", [everyday, probing, refusals, discovery], ids=lambda talk: talk.__name__)
def test_tshark_sees_what_we_see(talk: Callable[[House], None], tmp_path: Path) -> None:
    """Nothing malformed, but for pages that an allocation length cut and text that goes on; the same opcodes, PDU for
    PDU."""
    require_tool("tshark", "tshark")
    path = tmp_path / "talk.pcapng"
    house = Recorded(path)
    talk(house)
    house.writer.close()
    packets = tshark_packets_of(path)
    for number, layers in enumerate(packets, 1):
        if "_ws.malformed" in layers:
            assert layers["ip"]["ip.src"] == "192.0.2.1", number
            segment = bytes.fromhex(layers["tcp"]["tcp.payload"].replace(":", ""))
            assert is_cut_vpd_page(segment) or is_text_that_goes_on(segment), number
    connections = [list(reading.cut(each)) for each in pcapng.read(path).connections]
    for from_initiator in (True, False):
        ours = [each.opcode for pdus in connections for each in pdus if each.from_initiator is from_initiator]
        theirs = [int(layer["iscsi.opcode"], 0) for layer in tshark_pdus(packets, from_initiator)]
        assert theirs == ours
        assert len(ours) >= 4
