"""Reservations and the death of processes: what was answered GOOD holds, what was not to persist is gone."""

from __future__ import annotations

import random
import threading

import pytest

from tests.commands.sharing import (
    APTPL,
    EXCLUSIVE_ACCESS,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    RESERVE,
    plain_list,
)
from tests.faults.targets import TEST_UNIT_READY, Bench, Disk, read_16, wait_until, write_16

GOOD, BUSY, RESERVATION_CONFLICT = 0x00, 0x08, 0x18


def out(disk: Disk, action: int, key: int, action_key: int = 0, kind: int = 0, flags: int = 0) -> int:
    """The status of a PERSISTENT RESERVE OUT."""
    cdb = bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0))
    return int(disk.command(cdb, write=plain_list(key, action_key, flags)).status)


def ask(disk: Disk, action: int) -> bytes:
    result = disk.command(bytes((0x5E, action, 0, 0, 0, 0, 0, 4, 0, 0)), read=1024)
    assert result.status == GOOD, result.sense.hex()
    return bytes(result.data)


@pytest.mark.parametrize("flags", [0, APTPL])
def test_a_reservation_after_the_death_of_target_and_volume_server(bench: Bench, flags: int) -> None:
    """kill -9 of both: with APTPL it holds against a second initiator, for the same port of the first one, with its
    key; without it nothing is left."""
    bench.serve()
    target = bench.target_process()
    first, second = bench.login(target, 1), bench.login(target, 2)
    assert out(second, REGISTER, 0, 0xB, flags=flags) == GOOD
    assert out(first, REGISTER, 0, 0xA, flags=flags) == GOOD
    assert out(first, RESERVE, 0xA, kind=EXCLUSIVE_ACCESS) == GOOD
    first.write(0, b"mine" * 128)
    status, reservation = ask(second, READ_FULL_STATUS), ask(second, READ_RESERVATION)
    assert len(status) > 64
    target.kill()
    bench.server.kill()
    bench.server.start()
    target = bench.target_process()
    second = bench.login(target, 2)
    if flags:
        assert second.command(write_16(0, 1), write=bytes(512)).status == RESERVATION_CONFLICT
        assert second.command(read_16(0, 1), read=512).status == RESERVATION_CONFLICT
        assert ask(second, READ_FULL_STATUS)[4:] == status[4:], "all but the generation, which begins anew"
        assert ask(second, READ_RESERVATION)[4:] == reservation[4:]
    else:
        assert ask(second, READ_FULL_STATUS) == bytes(8)
        second.write(8, b"y" * 512)
    first = bench.login(target, 1)
    assert first.read(0, 1) == b"mine" * 128
    first.write(0, b"more" * 128)


def test_a_reservation_while_the_volume_server_is_away(bench: Bench) -> None:
    """It lives on in the target, durable or not, and holds when the server is back."""
    bench.serve()
    target = bench.target()
    first, second = bench.login(target, 1), bench.login(target, 2)
    assert out(first, REGISTER, 0, 0xA) == GOOD
    assert out(first, RESERVE, 0xA, kind=EXCLUSIVE_ACCESS) == GOOD
    bench.server.kill()
    wait_until(lambda: first.command(TEST_UNIT_READY).status == BUSY, "the target has noticed")
    assert out(second, REGISTER, 0, 0xB) == BUSY
    assert second.command(read_16(0, 1), read=512).status == RESERVATION_CONFLICT
    bench.server.start()
    wait_until(lambda: first.command(TEST_UNIT_READY).status == GOOD, "the disk is back")
    assert second.command(write_16(0, 1), write=bytes(512)).status == RESERVATION_CONFLICT
    assert out(second, REGISTER, 0, 0xB) == GOOD
    first.write(0, b"x" * 512)


@pytest.mark.parametrize("seed", range(3))
def test_every_registration_that_was_answered_is_there(bench: Bench, seed: int) -> None:
    """kill -9 of the volume server at any moment of a series of key changes: the key is the last one that was answered
    GOOD, or the one that was on its way; and the target knows which."""
    bench.serve()
    target = bench.target()
    disk = bench.login(target, 1)
    chance = random.Random(seed)
    key = 0
    for _ in range(3):
        killer = threading.Timer(chance.uniform(0.001, 0.05), bench.server.kill)
        killer.start()
        answered = key
        while out(disk, REGISTER_AND_IGNORE, 0, key + 1, flags=APTPL) == GOOD:
            key += 1
            answered = key
        killer.join()
        bench.server.start()
        wait_until(lambda: disk.command(TEST_UNIT_READY).status == GOOD, "the disk is back")
        keys = ask(disk, READ_KEYS)[8:]
        kept = int.from_bytes(keys, "big")
        assert kept in (answered, answered + 1), (kept, answered)
        assert out(disk, REGISTER, kept, kept + 1, flags=APTPL) == GOOD
        key = kept + 1
