"""The errors users can meet, as a tree. Every command turns them into one line and an exit status.

    StattenError                    base class; `exit_status` is what a command returns
    ├── InputError            (2)   something the user gave is wrong: a file, an option, a value
    │   ├── ConfigError             a configuration is invalid or contradicts the weights
    │   ├── CheckpointError         a checkpoint cannot be read or does not fit the network
    │   ├── GraphError              a graph is malformed: dangling edges, shapes that do not meet
    │   └── UnsupportedError        a node or option the target cannot express
    └── VerificationError     (1)   the artefact disagrees with the reference

A message says what is wrong, where (file, node or key), what was expected, and what to do about it.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "GraphError",
    "InputError",
    "StattenError",
    "UnsupportedError",
    "VerificationError",
]


class StattenError(Exception):
    """Base class of every error this package raises on purpose."""

    exit_status = 1


class InputError(StattenError):
    """Something the user gave is wrong: a file, an option or a value."""

    exit_status = 2


class ConfigError(InputError):
    """A configuration is invalid, incomplete or contradicts the weights."""


class CheckpointError(InputError):
    """A checkpoint cannot be read or does not fit the network."""


class GraphError(InputError):
    """A graph is malformed: dangling edges, shapes that do not meet, missing inputs."""


class UnsupportedError(InputError):
    """A node or option that the target cannot express."""


class VerificationError(StattenError):
    """The artefact that was written disagrees with the reference."""
