"""Pure: whole lines out of a stream of bytes."""

from dataclasses import dataclass, field


@dataclass
class Lines:
    """`feed` it with what arrives, in whatever pieces."""

    _pending: bytes = field(default=b"", init=False)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole by now; one that is cut short waits for its rest."""
        *whole, self._pending = (self._pending + data).split(b"\n")
        return whole
