"""SIGTERM under living sessions, with real processes: who logs out is let go, who does not is dropped with words."""

from __future__ import annotations

import contextlib
import time

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.target import Settings
from iscsi_ovs.testing.socket_initiator import LoginRefusedError
from tests.faults.targets import BLOCK, Bench, Disk, wait_until

DRAIN_S = Settings().drain_s  # after which who has not logged out is dropped


@pytest.fixture(autouse=True)
def _served(bench: Bench) -> None:
    bench.serve()


def events(disk: Disk) -> list[int]:
    headers = [each.header for each in disk.initiator.received]
    return [header.async_event for header in headers if isinstance(header, pdu.AsynchronousMessage)]


def test_who_is_asked_to_log_out_and_does(bench: Bench) -> None:
    """Its last write is in, its logout is answered, nobody is let in meanwhile, and the target ends at once, well."""
    target = bench.target_process()
    disk = bench.login(target)
    target.process.terminate()
    disk._until(lambda: pdu.ASYNC_LOGOUT_REQUEST in events(disk))
    disk.write(8, b"w" * BLOCK)
    with pytest.raises(LoginRefusedError) as refused:
        bench.login(target, 2)
    assert refused.value.status == (3, 1)
    began = time.monotonic()
    assert disk.logout().response == pdu.LOGOUT_SUCCESS
    assert target.process.wait(5.0) == 0
    assert time.monotonic() - began < DRAIN_S
    again = bench.login(bench.target_process())
    assert again.read(8, 1) == b"w" * BLOCK


def test_who_is_asked_to_log_out_and_does_not(bench: Bench) -> None:
    """It hears that it is dropped, and the connection ends; so does the target."""
    target = bench.target_process()
    disk = bench.login(target)
    target.process.terminate()
    with contextlib.suppress(EOFError):
        while True:
            disk.pump()
    assert events(disk) == [pdu.ASYNC_LOGOUT_REQUEST, pdu.ASYNC_DROP_SESSION]
    assert target.process.wait(5.0) == 0


def test_a_second_signal_does_not_wait(bench: Bench) -> None:
    target = bench.target_process()
    disk = bench.login(target)
    target.process.terminate()
    disk._until(lambda: bool(events(disk)))
    began = time.monotonic()
    target.process.terminate()
    wait_until(lambda: target.process.poll() is not None, "the target has ended")
    assert time.monotonic() - began < DRAIN_S
    assert target.process.returncode == 0
