"""Who may touch which bytes of a volume while something there must be atomic (CONTRACTS 6).

A plain read or write that ends at once claims nothing and asks nobody: its cost is none. Whatever takes more than one
step holds a ``Claim`` on its range meanwhile, plain ones too, so that an atomic operation finds them; and while there
is a claim that plain ones could disturb, the volume is *guarded*: its handles lose their shortcut, and plain operations
come here. A claim waits for every earlier one that it can't stand beside, and for no later one: first come, first
served, and as claims of one operation are all made in one step, also on two volumes, nobody waits in a circle.

    with ranges.claim(Claim.EXCLUSIVE, offset, length) as claim:
        await claim
        …

``shut`` refuses everybody: claims that wait end with its error, and so do all that are made until ``open``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from types import TracebackType

from shm_server.runtime import Resume, Runtime, Suspension, Wait


class Claim(enum.Enum):
    """What an operation does to its range."""

    READ = "plain reading"
    WRITE = "plain writing"
    STABLE = "reading in several steps what must not change meanwhile"
    EXCLUSIVE = "nobody else may look or write"


# What may stand side by side. Plain reads and writes are not ordered among themselves: SAM leaves that to initiators.
_BESIDE = {
    Claim.READ: frozenset((Claim.READ, Claim.WRITE, Claim.STABLE)),
    Claim.WRITE: frozenset((Claim.READ, Claim.WRITE)),
    Claim.STABLE: frozenset((Claim.READ, Claim.STABLE)),
    Claim.EXCLUSIVE: frozenset[Claim](),
}
_PLAIN = frozenset((Claim.READ, Claim.WRITE))


class RangeClaim(Suspension):
    """One claim: await it, and let go of it at the end of its ``with``."""

    __slots__ = ("_ranges", "_resume", "blockers", "end", "error", "followers", "kind", "owner", "start_offset")

    def __init__(self, ranges: Ranges, kind: Claim, start_offset: int, end: int, owner: object) -> None:
        self._ranges = ranges
        self.kind = kind
        self.start_offset = start_offset
        self.end = end
        self.owner = owner
        self.blockers = 0  # earlier claims that are in the way
        self.followers: list[RangeClaim] = []  # later ones that we are in the way of
        self.error: OSError | None = None
        self._resume: Resume | None = None

    def start(self, resume: Resume) -> None:
        if self.blockers and self.error is None:
            self._resume = resume
        else:
            resume(None, self.error)

    def withdraw(self) -> bool:
        self._resume = None
        return True

    def settle(self, _value: object = None, _error: object = None) -> None:
        """Resume, if it was waiting: the last that was in the way is gone, or the volume was shut."""
        if self._resume is not None:
            resume, self._resume = self._resume, None
            resume(None, self.error)

    def __enter__(self) -> RangeClaim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ranges.release(self)


class Ranges:
    """The claims of one volume. Plain operations look at ``is_guarded``; ``on_guard`` is told when it changes."""

    def __init__(self, runtime: Runtime) -> None:
        self.is_guarded = False
        self.on_guard: Callable[[], None] = lambda: None
        self._runtime = runtime
        self._plain: dict[RangeClaim, None] = {}  # both in order of arrival
        self._guarding: dict[RangeClaim, None] = {}  # that plain operations could disturb
        self._shut_by: OSError | None = None
        self._emptied: Wait[None] | None = None

    def claim(self, kind: Claim, offset: int, length: int, owner: object = None) -> RangeClaim:
        """Stand in line for the range; claims of one ``owner`` are not in each other's way."""
        claim = RangeClaim(self, kind, offset, offset + length, owner)
        claim.error = self._shut_by
        if claim.error is not None:
            return claim
        if kind in _PLAIN:
            self._follow(claim, self._guarding)
            self._plain[claim] = None
        else:
            self._follow(claim, self._guarding)
            self._follow(claim, self._plain)
            self._guarding[claim] = None
            self._look_to_guard()
        return claim

    def no_claim(self) -> RangeClaim:
        """For a step of an operation that has a claim on all of its range, or the volume to itself: a second claim of
        its own would stand in line behind those who wait for the first."""
        return RangeClaim(self, Claim.READ, 0, 0, None)

    def _follow(self, claim: RangeClaim, others: Iterable[RangeClaim]) -> None:
        beside = _BESIDE[claim.kind]
        for other in others:
            if (
                other.start_offset < claim.end
                and claim.start_offset < other.end
                and other.kind not in beside
                and (claim.owner is None or other.owner is not claim.owner)
            ):
                claim.blockers += 1
                other.followers.append(claim)

    def release(self, claim: RangeClaim) -> None:
        """Let go, granted or not. Twice is harmless."""
        claims = self._plain if claim.kind in _PLAIN else self._guarding
        if claim not in claims:
            return
        del claims[claim]
        if claims is self._guarding:
            self._look_to_guard()
        for follower in claim.followers:
            follower.blockers -= 1
            if not follower.blockers:
                self._runtime.ready.append(follower.settle)  # not from here: a long line would be a deep stack
        if self._emptied is not None and not self._plain and not self._guarding:
            emptied, self._emptied = self._emptied, None
            emptied.set()

    def shut(self, error: OSError) -> Wait[None]:
        """Refuse everybody from now on; the result is set when those that were there have gone."""
        self._shut_by = error
        self._look_to_guard()
        emptied: Wait[None] = Wait()
        for claim in (*self._plain, *self._guarding):
            if claim.blockers:
                claim.error = error
                self._runtime.ready.append(claim.settle)
        if self._plain or self._guarding:
            self._emptied = emptied
        else:
            emptied.set()
        return emptied

    def open(self) -> None:
        """Everybody may come again."""
        self._shut_by = None
        self._look_to_guard()

    def _look_to_guard(self) -> None:
        is_guarded = bool(self._guarding) or self._shut_by is not None
        if is_guarded is not self.is_guarded:
            self.is_guarded = is_guarded
            self.on_guard()
