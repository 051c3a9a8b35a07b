"""Bits that flip between Linux and the target, under TCP's nose: digests catch each, and no byte is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.flipper import ANSWER_FLIPS, DATA_FLIPS, HEADER_FLIPS
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop.serving import IQN_PREFIX, Serve

pytestmark = [pytest.mark.guest, pytest.mark.timeout(150)]

IQN = f"{IQN_PREFIX}disk"
BEHIND = "127.0.0.1:3259"
IN_FRONT = f"{TARGET_ADDRESS}:3260"

SCRIPT = f"""
discover {TARGET_ADDRESS}
for digest in HeaderDigest DataDigest; do
    iscsiadm -m node -T {IQN} -o update -n node.conn[0].iscsi.$digest -v CRC32C
done
login {IQN}
disk=$(disk_of {IQN})
dd if=/dev/urandom of=/run/random bs=1M count=16 status=none
dd if=/run/random of=$disk bs=64k oflag=direct status=none
echo 3 >/proc/sys/vm/drop_caches
cmp -n $((16 << 20)) /run/random $disk
logout {IQN}
"""


def test_no_flipped_bit_reaches_a_file(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Data that arrive wrong are rejected, their write fails with PROTOCOL SERVICE CRC ERROR, and Linux tries it again.

    A wrong header costs one connection, and so does a wrong Data-In, which Linux finds; it logs in again and goes on.
    """
    with Serve(short_dir / "s", {"disk": "32M"}, portal=BEHIND, advertise=IN_FRONT, prefix=network.prefix) as serve:
        command = [*network.prefix, sys.executable, "-m", "tests.guest.flipper", IN_FRONT, BEHIND]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as flipper:
            try:
                assert flipper.stdout is not None
                assert flipper.stdout.readline() == "ready\n"
                guest = Guest(network, tmp_path)
                result = guest.run(SCRIPT, timeout_s=120)
            finally:
                flipper.kill()
            flips = [line.split()[1] for line in flipper.stdout]
        log = serve.log_path.read_text()
        assert result.code == 0, f"{guest.tail()}\n{flips}\n{log[-3000:]}"
        assert result.io_errors() == []
        assert sorted(flips) == sorted(["data"] * DATA_FLIPS + ["header"] * HEADER_FLIPS + ["answer"] * ANSWER_FLIPS)
        assert log.count("rejected: data digest error on ") == DATA_FLIPS
        assert log.count("closed: protocol error: header digest error") == HEADER_FLIPS
        assert serve.stop() == 0
