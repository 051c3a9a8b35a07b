"""Sessions that real initiators had with this target: every PDU decoded and encoded, judged twice, said once more.

The files are listed in README.md, which says how each was made; `make traces` makes them anew.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.testing import initiator as judging
from tests.tools import require_tool
from tests.traces import reading
from tests.traces.reading import TRACES, Recorded, RecordedPdu
from tests.traces.record import MAX_BYTES, RECORDINGS
from tests.traces.replay import Disk, Replay, by_task, cut, descriptive_tasks, statuses, was_unknown


@cache
def load(name: str) -> Recorded:
    return reading.load(name)


@pytest.fixture(params=TRACES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return load(request.param)


def test_every_recording_is_here() -> None:
    """The files are those that the recorder makes, and small enough to live in a repository."""
    assert {recording.name for recording in RECORDINGS} == set(TRACES)
    assert all(reading.path_of(name).stat().st_size <= MAX_BYTES for name in TRACES)
    readme = (reading.HERE / "README.md").read_text()
    assert all(f"`{name}.pcapng`" in readme for name in TRACES)


def test_what_the_recordings_hold() -> None:
    """Together they show most of the protocol: the opcodes of ordinary life, and solicited and unsolicited data."""
    seen = {each.opcode for name in TRACES for connection in load(name).connections for each in connection}
    requests = {pdu.NopOut, pdu.ScsiCommand, pdu.LoginRequest, pdu.TextRequest, pdu.DataOut, pdu.LogoutRequest}
    responses = {pdu.NopIn, pdu.ScsiResponse, pdu.LoginResponse, pdu.TextResponse, pdu.DataIn, pdu.LogoutResponse}
    assert {each.OPCODE for each in requests | responses | {pdu.ReadyToTransfer}} <= seen
    data_out: list[Any] = [
        each.decode() for name in TRACES for each in load(name).pdus(True) if each.opcode == pdu.DataOut.OPCODE
    ]
    assert {header.target_transfer_tag == pdu.RESERVED_TAG for header in data_out} == {True, False}


def test_every_pdu_survives_decoding(recorded: Recorded) -> None:
    """Decoded and encoded again, every header of either side is the same 48 bytes, and every PDU as long as it was."""
    pdus = [*recorded.pdus(True), *recorded.pdus(False)]
    assert pdus
    for each in pdus:
        header: Any = each.decode()
        assert header.pack() == each.header
        assert judging.encode(header, each.data, each.additional) == each.header + each.additional + each.data + bytes(
            len(each.padding)
        )
        assert header.data_segment_length == len(each.data)
    senders = {each.opcode: each.from_initiator for each in pdus}
    assert all(opcode in (pdu.REQUESTS if asks else pdu.RESPONSES) for opcode, asks in senders.items())


def test_the_target_kept_the_rules(recorded: Recorded) -> None:
    """StatSN counts without a gap, MaxCmdSN never goes back, DataSN and offsets run on, padding is zero."""
    for connection in recorded.connections:
        next_stat_sn: int | None = None
        max_cmd_sn: int | None = None
        data_sn: Counter[int] = Counter()
        for each in connection:
            if each.from_initiator:
                continue
            header: Any = each.decode()
            assert each.padding == bytes(len(each.padding))
            assert max_cmd_sn is None or (header.max_cmd_sn - max_cmd_sn) & 0xFFFFFFFF < 1 << 31
            max_cmd_sn = header.max_cmd_sn
            if isinstance(header, pdu.DataIn):
                assert header.data_sn == data_sn[header.initiator_task_tag]
                data_sn[header.initiator_task_tag] += 1
                is_last = bool(header.flags & pdu.STATUS)
            else:
                is_last = True
            if not is_last or isinstance(header, pdu.ReadyToTransfer):
                continue
            if isinstance(header, pdu.NopIn) and header.initiator_task_tag == pdu.RESERVED_TAG:
                continue
            assert next_stat_sn in (None, header.stat_sn)
            next_stat_sn = (header.stat_sn + 1) & 0xFFFFFFFF
            data_sn.pop(header.initiator_task_tag, None)


def test_replay(recorded: Recorded) -> None:
    """The protocol core, hearing the initiator's side again, gives each task the answers that were recorded."""
    disk = Disk(recorded)
    for connection in recorded.connections:
        replay = Replay(disk, connection)
        answers = by_task(cut(replay.run()))
        expected = by_task([(each.decode(), each.data) for each in connection if not each.from_initiator])
        assert set(answers) == set(expected), replay.log
        for tag, recorded_answers in expected.items():
            if tag in descriptive_tasks(connection):
                assert statuses(answers[tag]) == statuses(recorded_answers)
            elif not was_unknown(recorded_answers):
                assert answers[tag] == recorded_answers, replay.log
    assert disk.pool.is_whole


def test_replay_compares_what_matters() -> None:
    """Of the recorded tasks, most are compared to the last byte; other bytes on the disk would be noticed."""
    recorded = load("open-iscsi")
    disk = Disk(recorded)
    session = recorded.connections[1]
    expected = by_task([(each.decode(), each.data) for each in session if not each.from_initiator])
    compared = set(expected) - descriptive_tasks(session)
    assert len(compared) > len(expected) // 2
    disk.device.data[0] ^= 1
    answers = by_task(cut(Replay(disk, session).run()))
    assert [tag for tag in compared if answers[tag] != expected[tag]]


# The second judge ------------------------------------------------------------------------------------------------

# tshark's field → ours; a PDU is compared in those of them that tshark shows for it.
FIELDS = {
    "iscsi.totalahslength": "total_ahs_length",
    "iscsi.datasegmentlength": "data_segment_length",
    "iscsi.initiatortasktag": "initiator_task_tag",
    "iscsi.targettransfertag": "target_transfer_tag",
    "iscsi.cmdsn": "cmd_sn",
    "iscsi.expstatsn": "exp_stat_sn",
    "iscsi.statsn": "stat_sn",
    "iscsi.expcmdsn": "exp_cmd_sn",
    "iscsi.maxcmdsn": "max_cmd_sn",
    "iscsi.datasn": "data_sn",
    "iscsi.r2tsn": "r2t_sn",
    "iscsi.bufferOffset": "buffer_offset",
    "iscsi.desireddatalength": "desired_data_transfer_length",
    "iscsi.expdatasn": "exp_data_sn",
    "iscsi.tsih": "tsih",
    "iscsi.cid": "cid",
    "iscsi.time2wait": "time2wait",
    "iscsi.time2retain": "time2retain",
    "iscsi.flags": "flags",
    "iscsi.logout.response": "response",
    "iscsi.scsiresponse.response": "response",
    "iscsi.scsiresponse.status": "status",
    "iscsi.scsiresponse.residualcount": "residual_count",
    "iscsi.scsidata.readresidualcount": "residual_count",
    "iscsi.scsiresponse.bidireadresidualcount": "bidi_read_residual_count",
    "iscsi.scsicommand.expecteddatatransferlength": "expected_data_transfer_length",
}
# What tshark must have shown of each kind of PDU, or there was nothing to compare.
LEAST = {"iscsi.datasegmentlength", "iscsi.initiatortasktag"}


def tshark_packets(name: str) -> list[dict[str, Any]]:
    return tshark_packets_of(reading.path_of(name))


def tshark_packets_of(path: Path) -> list[dict[str, Any]]:
    tshark = require_tool("tshark", "tshark")
    options = ["-d", "tcp.port==3260,iscsi", "-T", "json", "--no-duplicate-keys"]
    done = subprocess.run([tshark, "-r", str(path), *options], capture_output=True, text=True, timeout=60, check=True)
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def tshark_pdus(packets: list[dict[str, Any]], from_initiator: bool) -> Iterator[dict[str, str]]:
    """The iSCSI layers of one direction, in order, one connection after the other."""
    for layers in sorted(packets, key=lambda layers: int(layers["tcp"]["tcp.stream"])):
        if (layers["ip"]["ip.dst"] == "192.0.2.1") is from_initiator and "iscsi" in layers:
            found = layers["iscsi"]
            yield from found if isinstance(found, list) else [found]


@pytest.mark.parametrize("from_initiator", [True, False], ids=["initiator", "target"])
@pytest.mark.parametrize("name", TRACES)
def test_tshark_agrees(name: str, from_initiator: bool) -> None:
    """tshark finds the same PDUs as we do, with the same opcodes, tags, numbers, lengths and statuses."""
    theirs = list(tshark_pdus(tshark_packets(name), from_initiator))
    ours = list(load(name).pdus(from_initiator))
    assert [int(each["iscsi.opcode"], 0) for each in theirs] == [each.opcode for each in ours]
    for layer, each in zip(theirs, ours, strict=True):
        header = each.decode()
        shown = {field: int(layer[field], 0) for field in FIELDS if field in layer}
        assert set(shown) >= LEAST
        assert {field: getattr(header, FIELDS[field]) for field in shown} == shown, header
    bearing = [layer for layer in theirs if "iscsi.statsn" in layer]
    assert from_initiator or len(bearing) == sum(bears_stat_sn(each) for each in ours)


def bears_stat_sn(each: RecordedPdu) -> bool:
    return each.opcode != pdu.DataIn.OPCODE or bool(each.header[1] & pdu.STATUS)


@pytest.mark.parametrize("name", TRACES)
def test_tshark_finds_nothing_malformed(name: str) -> None:
    """No packet is malformed to tshark, but for INQUIRY data that the initiator's ALLOCATION LENGTH cut short."""
    for number, layers in enumerate(tshark_packets(name), 1):
        if "_ws.malformed" in layers:
            assert layers["ip"]["ip.src"] == "192.0.2.1", f"{name}: packet {number}"
            assert is_cut_vpd_page(bytes.fromhex(layers["tcp"]["tcp.payload"].replace(":", ""))), f"packet {number}"


def is_cut_vpd_page(segment: bytes) -> bool:
    """Whether a segment begins with Data-In that is a VPD page shorter than its own length says."""
    if segment[0] & pdu.OPCODE_MASK != pdu.DataIn.OPCODE:
        return False
    length = int.from_bytes(segment[5:8], "big")
    page = segment[pdu.BHS_BYTES : pdu.BHS_BYTES + length]
    return 4 + int.from_bytes(page[2:4], "big") > len(page)
