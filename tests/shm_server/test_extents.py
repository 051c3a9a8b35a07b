"""What is remembered of a volume's allocation is always true, and asked of the store once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.runtime import Job, Runtime
from shm_server.volumes.volume import Volume
from tests.shm_server.test_volume import make, never

PAGE = 4096
PAGES = 64
steps = st.tuples(st.sampled_from(["write", "discard", "zeroes", "ask"]), st.integers(0, PAGES - 1), st.integers(1, 8))


@given(script=st.lists(steps, max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_are_true_whatever_was_asked_before(
    runtime: Runtime, run: Callable[..., Any], tmp_path_factory: Any, script: Any
) -> None:
    """After any script, an answer is that of a map of pages that were written and not given back."""
    volume = make(runtime, tmp_path_factory.mktemp("pool"), size=PAGES * PAGE)
    pages = [False] * PAGES
    try:
        for operation, first, count in script:
            count = min(count, PAGES - first)
            offset, length = first * PAGE, count * PAGE
            if operation == "write":
                run(volume.write([memoryview(b"x" * length)], offset, length, is_durable=False))
                pages[first : first + count] = [True] * count
            elif operation == "discard":
                run(volume.discard(offset, length, never))
                pages[first : first + count] = [False] * count
            elif operation == "zeroes":
                run(volume.write_zeroes(offset, length, never, is_durable=False, may_unmap=True))
                pages[first : first + count] = [False] * count
            else:
                run_pages = next((at for at in range(first, PAGES) if pages[at] != pages[first]), PAGES) - first
                is_data, found = run(volume.extent(offset, length))
                assert is_data == pages[first]
                assert 0 < found <= min(run_pages, count) * PAGE
    finally:
        volume.close()


def test_many_askers_are_one_look_at_the_store(runtime: Runtime, run: Callable[..., Any], tmp_path: Path) -> None:
    """A run of data is looked for once, however many ask about it at the same time."""
    volume = make(runtime, tmp_path, size=PAGES * PAGE)
    looked = count_looks(volume)
    run(volume.write([memoryview(bytes(PAGES * PAGE))], 0, PAGES * PAGE, is_durable=False))
    answers: dict[int, Any] = {}

    def ask(page: int) -> None:
        Job(volume.extent(page % PAGES * PAGE, PAGES * PAGE), lambda *answer: answers.update({page: answer})).start()

    for page in range(1000):
        ask(page)
    run(volume.extent(0, PAGE))
    assert answers == {page: ((True, (PAGES - page % PAGES) * PAGE), None) for page in range(1000)}
    assert looked == [0]
    volume.close()


def count_looks(volume: Volume) -> list[int]:
    looked: list[int] = []
    store: Any = volume.store
    look = store.extent

    def counted(offset: int, length: int) -> Any:
        looked.append(offset)
        return look(offset, length)

    store.extent = counted
    return looked
