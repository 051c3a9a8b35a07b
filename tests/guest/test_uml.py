"""The harness itself: what a guest's script comes to is told truly, and nothing of it stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guest.console import GuestError, GuestResult
from tests.guest.uml import Guest, GuestNetwork

pytestmark = pytest.mark.guest


def test_results_and_failures_are_told(network: GuestNetwork, tmp_path: Path) -> None:
    """Values come back, a failing command ends the script, and its exit code is the result's."""
    result = Guest(network, tmp_path).run("report kernel $(uname -r)\nfalse\nreport never reached\n")
    assert result.code == 1
    assert set(result.values) == {"kernel"}
    assert result.io_errors() == []


def test_a_guest_that_hangs_is_ended(network: GuestNetwork, tmp_path: Path) -> None:
    """A script that does not end is an error within its time, and no process of the guest is left."""
    guest = Guest(network, tmp_path)
    guest.start("say asleep\nsleep 1000\n")
    guest.wait_for("guest: asleep", 30.0)
    with pytest.raises(GuestError, match="not done after"):
        guest.finish(0.5)
    pids = subprocess.run([network.ip, "netns", "pids", network.name], capture_output=True, text=True, check=True)
    assert pids.stdout == ""


def test_io_errors_are_seen() -> None:
    """The lines that the kernel writes when a disk fails are recognised."""
    lines = [
        "[    9.1] blk_update_request: I/O error, dev sda, sector 2048 op 0x1:(WRITE)",
        "[    9.2] Buffer I/O error on dev sda, logical block 1, lost async page write",
        "[    9.3] EXT4-fs error (device sda): ext4_journal_check_start:83: Detected aborted journal",
        "[    9.4] sd 0:0:0:0: rejecting I/O to offline device",
    ]
    dmesg = "\n".join(["[    1.0] EXT4-fs (sda): mounted filesystem", *lines])
    assert GuestResult(0, {}, "", dmesg).io_errors() == lines
