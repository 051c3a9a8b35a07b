"""open-iscsi's matrix (tests/flows/test_open_iscsi_matrix.py) with open-iscsi itself: a sample, behind CHAP both ways.

The seed of the sample is printed; OVS_MATRIX_SEED runs the same one again.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.flows.test_open_iscsi_matrix import METHODS, SIZES
from tests.guest.test_security import PRELUDE
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop.guarded import ANY, OUR_SECRET, SECRET, Guarded

pytestmark = [pytest.mark.guest, pytest.mark.timeout(150)]

A_METHOD = 2  # of each method's sixteen: twelve logins
DEFAULTS = {"HeaderDigest": "None", "DataDigest": "None", "InitialR2T": "No", "ImmediateData": "Yes"}
LENGTHS = ("FirstBurstLength", "MaxBurstLength", "MaxRecvDataSegmentLength")
OF_A_CONNECTION = ("HeaderDigest", "DataDigest", "MaxRecvDataSegmentLength")

NEGOTIATED = r"""
negotiated() {
    iscsiadm -m session -P 2 | awk -F': ' '
        /HeaderDigest|DataDigest|InitialR2T|ImmediateData|FirstBurst|MaxBurst|MaxRecv/ { print $1 "=" $2 }' | xargs
}
"""


def shapes(seed: int) -> list[dict[str, str]]:
    """What the sampled logins ask for, keys and values as open-iscsi has them."""
    rng = random.Random(seed)
    found = []
    for keys in METHODS.values():
        for sizes in rng.sample(SIZES, A_METHOD):
            found.append({**DEFAULTS, **keys, **dict(zip(LENGTHS, map(str, sizes), strict=True))})
    return found


def script(wanted: list[dict[str, str]]) -> str:
    lines = [PRELUDE, NEGOTIATED]
    for number, shape in enumerate(wanted):
        lines.append(
            f"one_way {ANY} {SECRET}" if number % 2 else f"mutual {ANY} {SECRET} {OUR_SECRET}",
        )
        for key, value in shape.items():
            where = "node.conn[0].iscsi" if key in OF_A_CONNECTION else "node.session.iscsi"
            lines.append(f"node {ANY} {where}.{key} {value}")
        lines.append(f'login {ANY}; bytes {ANY}; report shape-{number} "$(negotiated)"; logout {ANY}')
    return "\n".join(lines) + "\n"


def test_a_sample_of_the_matrix(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Linux negotiates what it was told to, and every byte that it writes is read back."""
    seed = int(os.environ.get("OVS_MATRIX_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"OVS_MATRIX_SEED={seed}")
    wanted = shapes(seed)
    with Guarded(short_dir, f"{TARGET_ADDRESS}:3260", network.prefix) as guarded:
        guest = Guest(network, tmp_path)
        result = guest.run(script(wanted), timeout_s=120)
        assert result.code == 0, f"{guest.tail()}\n{guarded.log[-2000:]}"
        assert result.io_errors() == []
    for number, shape in enumerate(wanted):
        said = dict(pair.split("=") for pair in result.values[f"shape-{number}"].split())
        expected = {key: value for key, value in shape.items() if key != "FirstBurstLength"}
        assert {key: said[key] for key in expected} == expected
        # Section 13.14: "FirstBurstLength MUST NOT exceed MaxBurstLength"; without unsolicited data it is irrelevant.
        if shape["InitialR2T"] == "No" or shape["ImmediateData"] == "Yes":
            first_burst = min(int(shape["FirstBurstLength"]), int(shape["MaxBurstLength"]))
            assert int(said["FirstBurstLength"]) == first_burst
