"""Another configuration for a process that serves: by SIGHUP, or because an operator asks for it.

It is read and checked as a whole before anything is touched; where it can't be obeyed, the one that was goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from iscsi_ovs.config.configuration import Configuration
from iscsi_ovs.errors import ConfigurationError

logger = logging.getLogger("iscsi_ovs.target")


class Reload:
    """``load`` reads the configuration, ``configure`` takes it over and says what is different."""

    def __init__(self, load: Callable[[], Configuration], configure: Callable[[Configuration], list[str]]) -> None:
        self._load = load
        self._configure = configure

    def now(self) -> list[str]:
        """Returns what is different. Raises ConfigurationError: all is as before."""
        try:
            changes = self._configure(self._load())
        except ConfigurationError as error:
            logger.error("the configuration stays as it was: %s", error)
            raise
        except Exception as error:  # our mistake: it must not cost the sessions that are there
            logger.exception("the configuration could not be taken over")
            raise ConfigurationError("a mistake of ours, which the log describes") from error
        for change in changes:
            logger.info("reload: %s", change)
        logger.info("reloaded: %d changes", len(changes))
        return changes

    def hung_up(self) -> None:
        """SIGHUP: nobody waits for an answer."""
        try:
            self.now()
        except ConfigurationError:
            pass  # it is in the log
