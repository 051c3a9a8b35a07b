"""Layers by their numbers, whatever was merged since."""

from __future__ import annotations

from pathlib import Path

from shm_server.stores.base import LayerFile
from shm_server.stores.checked import Checks
from shm_server.stores.clock import Clock
from shm_server.stores.layer import Checking, Layer
from shm_server.stores.stack import BASE, Stack

UUID = "0123456789abcdef" * 2


def layer(number: int, *, is_base: bool = False) -> Layer:
    file = LayerFile(number, UUID, f"{number}.data", is_base=is_base, is_sealed=True)
    checks = Checks(Path("nowhere"))
    checking = Checking(checks, checks.verified())
    return Layer(file, Path("nowhere"), Clock(1), is_writable=False, checking=checking)


def numbers(stack: Stack) -> list[int]:
    return [each.file.number for each in stack.all_layers()]


def test_the_base_is_found_whatever_its_number() -> None:
    """It gets its row behind the first layer that lies on it."""
    base = layer(8, is_base=True)
    stack = Stack([base])
    assert (stack.top, stack.top_number, stack[BASE]) == (base, BASE, base)
    stack.push(first := layer(7))
    assert (stack.top, stack.top_number, stack[7], stack[BASE]) == (first, 7, first, base)


def test_what_was_merged_is_found_below() -> None:
    """In any order, looked for before or not; below all of them is the base."""
    base, three, five, nine = layer(4, is_base=True), layer(3), layer(5), layer(9)
    stack = Stack([base, three, five, nine])
    assert stack[5] is five
    assert stack.remove(5) is five
    assert stack[5] is three
    assert stack.remove(5) is None
    assert stack.remove(3) is three
    assert stack[5] is stack[3] is base
    stack.push(twelve := layer(12))
    assert [stack[each] for each in (3, 5, 9, 12)] == [base, base, nine, twelve]
    assert numbers(stack) == [4, 9, 12]
    assert stack.remove(9) is nine  # whatever was kept of an earlier look is forgotten
    assert stack[9] is base
