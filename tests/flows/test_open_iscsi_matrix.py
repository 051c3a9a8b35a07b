"""open-iscsi's regression matrix through the whole target, without sockets: each negotiated shape moves the same bytes.

open-iscsi's own test (test/test-open-iscsi.py) logs in with sixteen settings of FirstBurstLength, MaxBurstLength and
MaxRecvDataSegmentLength under each of its methods, and lets fio, mkfs and bonnie++ find out whether data survive. Here
each of these logins writes, reads back and compares; `testing.initiator` judges every PDU on the way (lengths, offsets,
DataSN, R2TSN, how many R2Ts are outstanding).
"""

from __future__ import annotations

import random

import pytest

from iscsi_ovs import pdu, scsi
from tests.targets.house import BLOCK, IQN, Client, House

# [FirstBurstLength, MaxBurstLength, MaxRecvDataSegmentLength], in open-iscsi's order; 131972 is no slip of ours.
SIZES = (
    (4096, 4096, 4096),
    (8192, 4096, 4096),
    (16384, 4096, 4096),
    (32768, 4096, 4096),
    (65536, 4096, 4096),
    (131972, 4096, 4096),
    (4096, 8192, 4096),
    (4096, 16384, 4096),
    (4096, 32768, 4096),
    (4096, 65536, 4096),
    (4096, 131072, 4096),
    (4096, 4096, 8192),
    (4096, 4096, 16384),
    (4096, 4096, 32768),
    (4096, 4096, 65536),
    (4096, 4096, 131072),
)
# open-iscsi's test methods, as the keys that they set.
METHODS = {
    "InitialR2T": {"InitialR2T": "Yes", "ImmediateData": "No"},
    "ImmediateData": {"InitialR2T": "No", "ImmediateData": "Yes"},
    "both": {"InitialR2T": "Yes", "ImmediateData": "Yes"},
    "neither": {"InitialR2T": "No", "ImmediateData": "No"},
    "HeaderDigest": {"HeaderDigest": "CRC32C"},
    "both digests": {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"},
}
# Below, at and above each of the sizes; 9 × 512 and 300 × 512 end in the middle of a burst.
LENGTHS_BLOCKS = (1, 8, 9, 64, 300)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(map(str, sizes)))
def test_bytes_survive(method: str, sizes: tuple[int, int, int]) -> None:
    """Write, read back, compare; what was negotiated is what RFC 7143 13.13 to 13.14 makes of the two sides."""
    first_burst, max_burst, max_recv = sizes
    house = House(slots=64)
    client = login(house, method, sizes)
    parameters = client.initiator.parameters
    assert parameters.max_burst_length == max_burst
    assert (parameters.header_digest, parameters.data_digest) == ("igest" in method, method == "both digests")
    # Section 13.14: "FirstBurstLength MUST NOT exceed MaxBurstLength."
    assert parameters.first_burst_length == min(first_burst, max_burst)
    rng = random.Random(f"{method} {sizes}")
    data = {length: rng.randbytes(length * BLOCK) for length in LENGTHS_BLOCKS}
    places = {length: 350 * number for number, length in enumerate(LENGTHS_BLOCKS)}
    writes = {length: client.write(places[length], data[length]) for length in LENGTHS_BLOCKS}  # all under way at once
    house.run()
    for length, tag in writes.items():
        result = client.initiator.results[tag]
        assert result.status == scsi.GOOD
        assert result.r2ts == expected_r2ts(method, len(data[length]), parameters.first_burst_length, max_burst)
    (handle,) = house.service.handles
    for length, place in places.items():
        assert handle.data[place * BLOCK :][: length * BLOCK] == data[length]
    for length, place in places.items():
        result = client.do(client.read(place, length))
        assert bytes(result.data) == data[length]
        assert result.data_in_pdus == pieces(len(data[length]), max_recv, max_burst)
    client.do(client.initiator.logout())
    assert client.initiator.is_logged_out
    assert house.service.pool.is_whole


def login(house: House, method: str, sizes: tuple[int, int, int]) -> Client:
    first_burst, max_burst, max_recv = map(str, sizes)
    client = house.client()
    keys = {
        **METHODS[method],
        "FirstBurstLength": first_burst,
        "MaxBurstLength": max_burst,
        "MaxRecvDataSegmentLength": max_recv,
        "MaxOutstandingR2T": "1",
    }
    client.initiator.login(IQN, **keys)
    house.run()
    assert client.initiator.is_logged_in
    client.attentions()
    return client


def expected_r2ts(method: str, length: int, first_burst: int, max_burst: int) -> int:
    """What is not sent unsolicited is asked for in bursts of MaxBurstLength."""
    unsolicited = 0 if METHODS[method] == METHODS["InitialR2T"] else min(length, first_burst)
    return -(-(length - unsolicited) // max_burst)


def pieces(length: int, segment: int, burst: int) -> int:
    """Data-In PDUs: cut by MaxRecvDataSegmentLength, and again at the end of each burst."""
    whole, rest = divmod(length, burst)
    return whole * -(-burst // segment) + -(-rest // segment)


def test_the_pdus_have_the_negotiated_shape() -> None:
    """The matrix is not empty talk: sequences end where MaxBurstLength says, segments where MaxRecv… says."""
    house = House()
    client = login(house, "ImmediateData", (4096, 8192, 4096))
    client.do(client.write(0, bytes(64 * BLOCK)))
    client.do(client.read(0, 64))
    r2ts = [seen.header for seen in client.initiator.received if isinstance(seen.header, pdu.ReadyToTransfer)]
    assert [(r2t.buffer_offset, r2t.desired_data_transfer_length) for r2t in r2ts] == [
        (4096, 8192),
        (12288, 8192),
        (20480, 8192),
        (28672, 4096),
    ]
    data_in = [seen.header for seen in client.initiator.received if isinstance(seen.header, pdu.DataIn)]
    assert [each.data_segment_length for each in data_in] == [4096] * 8
    assert [bool(each.flags & pdu.FINAL) for each in data_in] == [False, True] * 4
