"""Sleeping safely (CONTRACTS 8): two processes, one ring each way, and no wake-up is ever lost."""

from __future__ import annotations

import mmap
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shm_server.abi import layout, ring, segment
from shm_server.abi.doorbell import Doorbell
from tests.shm_server.handoff_peer import LIMIT_MS, dawdle, naps

ENTRIES = 16


@pytest.mark.parametrize(
    ("hand_offs", "seed"),
    [
        pytest.param(200_000, 1, id="200000"),
        pytest.param(10_000_000, 2, id="10000000", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_no_wake_up_is_lost(hand_offs: int, seed: int) -> None:
    """Every hand-off arrives: no sleeper is left asleep while its ring has something for it.

    A wait that ends only by its time-out, with something in the ring, is a lost wake-up. How long a wait took says
    nothing on a machine that is busy with other things, so that is not what is judged.
    """
    rings_fd = segment.create_rings(ENTRIES, ENTRIES, layout.SLOT_BYTES, 1)
    submission, completion = Doorbell(), Doorbell()
    descriptors = [rings_fd, submission.fileno(), completion.fileno()]
    command = [sys.executable, "-m", "tests.shm_server.handoff_peer", *map(str, descriptors)]
    command += [str(ENTRIES), str(hand_offs), str(seed)]
    with subprocess.Popen(
        command, pass_fds=descriptors, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    ) as peer:
        try:
            lost = _drive(rings_fd, submission, completion, hand_offs, seed)
            output, _ = peer.communicate(timeout=60)
        finally:
            peer.kill()
    assert lost == 0
    assert int(output.split()[0]) == 0
    submission.close()
    completion.close()


def _drive(rings_fd: int, submission: Doorbell, completion: Doorbell, hand_offs: int, seed: int) -> int:
    mapping = mmap.mmap(rings_fd, 0)
    view = memoryview(mapping)
    producer = ring.SubmissionProducer(view, ENTRIES)
    consumer = ring.CompletionConsumer(view, ENTRIES, ENTRIES)
    poll = select.poll()
    poll.register(completion.fileno(), select.POLLIN)
    pauses = naps(seed + 1000)
    sent = done = lost = idle = 0
    while done < hand_offs:
        depth = 1 + (pauses[sent & 4095] > 0) * 3
        if sent - done < depth and sent < hand_offs and producer.has_room(1):
            dawdle(pauses[sent & 4095])
            producer.push(1, 0, 0, 0, 0, 0, sent, ())
            sent += 1
            if producer.publish():
                submission.ring()
            continue
        taken = consumer.take()
        assert [completion[0] for completion in taken] == list(range(done, done + len(taken)))
        done += len(taken)
        if not taken and consumer.raise_sleep():
            begun = time.monotonic()
            if not poll.poll(LIMIT_MS):
                lost += consumer.has_pending()
                idle += 1
                assert idle < 60, f"the peer has been silent since {begun}"
            else:
                idle = 0
            consumer.lower_sleep()
            completion.clear()
    producer.release()
    consumer.release()
    view.release()
    mapping.close()
    return lost
