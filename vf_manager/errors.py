"""Pure: the error family of the project.

Every expected failure is a `SriovError`. The edge that talks to somebody else (CNI, gRPC, CLI) maps it
to that protocol's code; nothing below the edge knows those codes.
"""

import errno
import os


class SriovError(Exception):
    """An expected failure. `transient` says whether the same call may succeed later without a change."""

    transient = False


class InvalidInput(SriovError):
    """What the caller asked for is malformed. Names the key, the value and what would be right."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        self.key = key
        self.value = value
        self.expected = expected
        super().__init__(f"{plain(key)}: {shorten(value)} is not valid; expected {expected}")


class Refused(SriovError):
    """Well-formed, but not allowed in this state or by the administrator. The message says which rule."""


class Busy(SriovError):
    """Somebody else holds what is needed (a VF, a lock); the same call may succeed later."""

    transient = True


class NotFound(SriovError):
    """The object named does not exist (any more)."""


class Exhausted(SriovError):
    """A finite resource (addresses of a range, VFs of a pool) has nothing left."""

    transient = True


class CorruptRecord(SriovError):
    """A file of ours on disk does not parse. It is never deleted silently."""


class KernelError(SriovError):
    """The kernel refused an operation.

    Says operation, object, kernel answer and hint, e.g.
    `set vlan on vf 3 of ens1f0 (0000:3b:00.0): EBUSY (Device or resource busy); ...`.
    """

    def __init__(self, operation: str, code: int, hint: str = "") -> None:
        self.operation = operation
        self.code = code
        # ENOTSUP is the same number on Linux; the kernel's sources and man pages say EOPNOTSUPP.
        name = "EOPNOTSUPP" if code == errno.EOPNOTSUPP else errno.errorcode.get(code, str(code))
        super().__init__(f"{operation}: {name} ({os.strerror(code)})" + (f"; {hint}" if hint else ""))

    @property
    def transient(self) -> bool:  # type: ignore[override]
        return self.code in (errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ETIMEDOUT)


def plain(text: str, limit: int = 160) -> str:
    """A key of the caller's for a message: as it is, if it can be printed and is of a sane length."""
    return text if text.isprintable() and len(text) <= limit else shorten(text, limit)


def shorten(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message, cut at `limit` characters: input may be as large as it likes."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
