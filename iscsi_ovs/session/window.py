"""The command window: ExpCmdSN, MaxCmdSN, and what each open place costs (RFC 7143 section 4.2.2.1, CONTRACTS 3).

MaxCmdSN never goes back, and a command inside the window may bring FirstBurstLength of unsolicited data. So each
place, open or taken by a task, stands on a grant of that many slots; a place opens again when its task has ended.
The window starts with a few places and doubles, as far as space allows, whenever it is found used up.
"""

from __future__ import annotations

from iscsi_ovs.session import serial
from iscsi_ovs.session.space import Space

MAX_PLACES = 128  # commands that a session may have open or in execution
IMMEDIATE_LIMIT = 64  # immediate commands in execution (they stand outside the window)


class CommandWindow:
    """The window of one session."""

    def __init__(self, space: Space, exp_cmd_sn: int, slots_a_place: int) -> None:
        self.exp_cmd_sn = exp_cmd_sn
        self.max_cmd_sn = serial.add(exp_cmd_sn, -1)
        self.slots_a_place = slots_a_place
        self.granted_slots = 0
        self.generation = 0  # of the pool that the grant is from
        self._space = space
        self.places = 0  # open or taken
        self.taken = 0  # ExpCmdSN itself is inside the window where taken < places
        self._open(space.first_places(slots_a_place))
        if not self.places:
            # The offer was made when there was room for one place at least: someone was faster. One unpaid place:
            # a command that brings data is drained and answered TASK SET FULL.
            self._add(1)

    @property
    def open_places(self) -> int:
        return self.places - self.taken

    @property
    def open_numbers(self) -> list[int]:
        """ExpCmdSN … MaxCmdSN."""
        return [serial.add(self.exp_cmd_sn, ahead) for ahead in range(self.open_places)]

    def accepts(self, cmd_sn: int) -> bool:
        """True inside [ExpCmdSN, MaxCmdSN]; anything else is silently ignored (section 4.2.2.1)."""
        return ((cmd_sn - self.exp_cmd_sn) & serial.MASK) < ((self.max_cmd_sn - self.exp_cmd_sn + 1) & serial.MASK)

    def take(self) -> None:
        """The command ExpCmdSN is here: its place is taken until ``reopen``."""
        self.exp_cmd_sn = (self.exp_cmd_sn + 1) & serial.MASK
        self.taken += 1
        if self.taken >= self.places and self.places < MAX_PLACES:
            self.grow()

    def reopen(self) -> None:
        """A task has ended: its place is offered again."""
        self.taken -= 1
        self.max_cmd_sn = (self.max_cmd_sn + 1) & serial.MASK

    def grow(self) -> None:
        """The window was used up: up to twice as many places, if space can be had."""
        wanted = min(self.places, MAX_PLACES - self.places)
        self._open(self._space.growth_places(self.slots_a_place, wanted))

    def _open(self, places: int) -> None:
        # All places are paid for, or none is: where some were opened unpaid, they are paid for with the new ones.
        slots = (self.places + places) * self.slots_a_place - self.granted_slots
        if places and self._space.grant(slots):
            self.granted_slots += slots
            self.generation = self._space.generation
            self._add(places)

    def _add(self, places: int) -> None:
        self.places += places
        self.max_cmd_sn = serial.add(self.max_cmd_sn, places)

    def close(self) -> None:
        """The session ends: give the grant back."""
        if self.generation == self._space.generation:
            self._space.ungrant(self.granted_slots)
        self.granted_slots = 0
