"""The other process of test_handoff: takes submissions, completes them, sleeps as the rings say."""

from __future__ import annotations

import mmap
import random
import select
import sys
import time

from shm_server.abi import ring
from shm_server.abi.doorbell import Doorbell

LIMIT_MS = 1000


def naps(seed: int) -> list[float]:
    """Seconds to dawdle, most of them none, so that the two sides meet in every phase."""
    chance = random.Random(seed)
    return [chance.choice([0, 0, 0, 0, 1e-6, 5e-6, 2e-5, 5e-5]) * chance.random() for _ in range(4096)]


def dawdle(seconds: float) -> None:
    if seconds:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass


def main() -> None:
    rings_fd, submission, completion, entries, hand_offs, seed = map(int, sys.argv[1:])
    mapping = mmap.mmap(rings_fd, 0)
    view = memoryview(mapping)
    consumer = ring.SubmissionConsumer(view, entries)
    producer = ring.CompletionProducer(view, entries, entries)
    waits, bell = Doorbell(submission), Doorbell(completion)
    poll = select.poll()
    poll.register(submission, select.POLLIN)
    pauses = naps(seed)
    done = lost = longest_us = 0
    while done < hand_offs:
        taken = consumer.peek(entries)
        if taken:
            consumer.advance(len(taken))
            dawdle(pauses[done & 4095])
            for entry in taken:
                producer.push(entry[8], 0, 0, 0)
            done += len(taken)
            if producer.publish():
                bell.ring()
        elif consumer.raise_sleep():
            begun = time.perf_counter()
            if not poll.poll(LIMIT_MS) and consumer.pending():
                lost += 1
            longest_us = max(longest_us, int((time.perf_counter() - begun) * 1e6))
            consumer.lower_sleep()
            waits.clear()
    print(lost, longest_us, flush=True)


if __name__ == "__main__":
    main()
