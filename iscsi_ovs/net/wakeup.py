"""Something to do in the next turn of the loop, asked for from a signal handler or another thread."""

from __future__ import annotations

import os
from collections.abc import Callable

from iscsi_ovs.net.driver import EDGE, Driver


class Wakeup:
    """``callback`` is called in the loop, once for any number of rings before that."""

    def __init__(self, driver: Driver, callback: Callable[[], None]) -> None:
        self._driver = driver
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        driver.watch(self._fd, lambda mask: callback(), EDGE)

    def ring(self) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        self._driver.unwatch(fd)
        os.close(fd)
