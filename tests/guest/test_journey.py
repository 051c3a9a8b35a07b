"""The journey of docs/VOLUMES.md, typed as it stands there: `iscsi-ovs` beside a running `serve`, the rest in Linux.

Nothing but the portal's address is exchanged. The guest has no udev, so the links of /dev/disk/by-path are made after
each login; /mnt is a tmpfs of its own, because the guest's root is this machine's.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.documents import commands
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop import processes
from tests.interop.serving import Serve, iscsi_ovs

pytestmark = [pytest.mark.guest, pytest.mark.serial, pytest.mark.timeout(150)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "VOLUMES.md"
LIMIT_S = 60.0

PREPARED = """
mount -t tmpfs tmpfs /mnt
until grep -q ISCSIADM_ABSTRACT_NAMESPACE /proc/net/unix; do sleep 0.05; done
links() {  # what udev would do
    local iqn
    mkdir -p /dev/disk/by-path
    for iqn in $(iscsiadm -m session | awk '{ print $4 }'); do
        ln -sfn $(disk_of $iqn) /dev/disk/by-path/ip-@PORTAL@-iscsi-$iqn-lun-0
    done
}
"""


def script(lines: list[str], portal: str) -> str:
    """The guest's part; where a line is the host's it says so, and waits until that is done."""
    typed = [PREPARED.replace("@PORTAL@", portal)]
    for number, line in enumerate(lines):
        if line.startswith("iscsi-ovs "):
            typed.append(f"say host {number}.; until told {number}; do sleep 0.02; done")
        else:
            typed += [f"say line {number}.", line]
            if line.endswith("--login"):
                typed.append("links")
    return "\n".join(typed) + "\n"


def test_journey(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Files that were ruined are back after the rollback, fsck is clean; two clones of a template live side by side."""
    portal = f"{TARGET_ADDRESS}:3260"
    lines = [line.replace("127.0.0.1:3260", portal) for line in commands(DOCUMENT, "The journey")]
    assert sum(line.startswith("iscsi-ovs ") for line in lines) >= 6, "the document is read as it is meant"
    with Serve(short_dir / "s", {"other": "64M"}, portal=portal, prefix=network.prefix) as serve:
        guest = Guest(network, tmp_path)
        guest.start(script(lines, portal))
        try:
            for number, line in enumerate(lines):
                if line.startswith("iscsi-ovs "):
                    guest.wait_for(f"guest: host {number}.", LIMIT_S)
                    on_the_host(serve, line)
                    guest.tell(str(number))
            result = guest.finish(LIMIT_S)
        finally:
            guest.kill()
        reached = re.findall(r"guest: (?:line|host) (\d+)\.", guest.console_path.read_text(errors="replace"))
        assert result.code == 0, f"{lines[int(reached[-1])]}\n{guest.tail()}\n{serve.log_tail()}"
        assert result.io_errors() == []
        with Context(state_dir=serve.state_dir) as context:
            template, first, second = (context.stat_volume(name) for name in ("data", "vm1", "vm2"))
        assert max(first.allocated_bytes, second.allocated_bytes) < template.allocated_bytes / 2, "they share the rest"
        assert serve.stop() == 0


def on_the_host(serve: Serve, line: str) -> None:
    """As typed, on this instance; a new volume is there for initiators when its target says so."""
    words = shlex.split(line)[1:]
    ran = subprocess.run(
        [*iscsi_ovs(*words), "--state-dir", str(serve.state_dir)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{line}: {ran.stderr}"
    if words[:2] in (["volume", "create"], ["volume", "clone"]):
        name = words[2] if words[1] == "create" else words[-1]
        processes.wait_until(lambda: name in serve.urls, LIMIT_S, f"a target of {name}")
