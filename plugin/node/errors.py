"""What can go wrong with a local node; every message is one sentence with the remedy."""

from __future__ import annotations


class NodeError(RuntimeError):
    """The node could not be assembled, started or stopped.

    `log_tail` holds the last lines of the log that tells why, where there is one.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class ToolMissingError(NodeError):
    """A JDK or Maven that is needed was not found."""


class PortTakenError(NodeError):
    """A port that was asked for is in use."""


class AssemblyError(NodeError):
    """Maven failed, or the plugin's sources are not there."""


class StartError(NodeError):
    """The node ended, or was not ready in time."""
