"""The exceptions of the target, by who is at fault and where each leaves.

    Error
    ├── ProtocolError          the peer broke RFC 7143; carries its own answer and reach; leaves at Connection.received
    │   ├── PduError           this PDU is refused by a Reject, the connection goes on
    │   ├── ConnectionAbortError   this connection is closed (framing is lost, or the RFC says so)
    │   └── LoginError         the login is refused with a Status-Class and Status-Detail, then closed
    │       └── RedirectError  … because the target is at another address now
    ├── CheckCondition         SCSI says no: status, sense; leaves at LogicalUnit.execute (defined in scsi)
    └── ConfigurationError     an operator's words; names file, key or option; leaves at the command line

Storage failures are values, not exceptions (block.Error in a block.Completion): they arrive later than the call.
OSErrors of the client library are the errnos that Open vStorage's manual promises. Asserts are for our own mistakes.
"""

from __future__ import annotations


class Error(Exception):
    """Base of everything this package raises on purpose."""


class ProtocolError(Error):
    """The peer broke the protocol. The message is for the log and names the cause."""


class PduError(ProtocolError):
    """One PDU is refused by Reject with ``reason`` (section 11.17.1); the connection goes on."""

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConnectionAbortError(ProtocolError):
    """The connection is closed: what follows on it can't be trusted."""


class LoginError(ProtocolError):
    """The login is refused with ``status_class``/``status_detail`` (section 11.13.5)."""

    def __init__(self, status_class: int, status_detail: int, message: str) -> None:
        super().__init__(message)
        self.status_class = status_class
        self.status_detail = status_detail


class RedirectError(LoginError):
    """The login is sent elsewhere (0101, target moved temporarily): ``address`` goes with it as TargetAddress."""

    def __init__(self, address: str, message: str) -> None:
        super().__init__(0x01, 0x01, message)
        self.address = address


class ConfigurationError(Error):
    """A configuration that can't be obeyed."""
