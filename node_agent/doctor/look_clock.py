"""Adapter: the node's clock, and what was written by it."""

import base64
import contextlib
import ctypes
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from node_agent.doctor.facts import ClockFacts, TokenTimes

TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")  # where a pod has it
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_SIZE = 512  # struct timex has 208 bytes


def is_synchronised() -> bool:
    """By the kernel (kernel/time/ntp.c). Where it may not be asked nothing is known against it."""
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_SIZE))
    return state != _TIME_ERROR


def look_at_clock(
    files: Iterable[Path], token: Path, ask: Callable[[], bool] = is_synchronised
) -> ClockFacts:
    newest_s, newest = max(_written(files), default=(0.0, ""))
    return ClockFacts(
        now_s=time.time(),
        is_synchronised=ask(),
        newest=newest,
        newest_s=newest_s,
        token=_token_times(token),
    )


def _written(files: Iterable[Path]) -> Iterator[tuple[float, str]]:
    for file in files:
        with contextlib.suppress(OSError):  # removed meanwhile, or not for whoever looks
            yield file.stat().st_mtime, str(file)


def _token_times(path: Path) -> TokenTimes | None:
    """A JSON web token: its second part is the claims (RFC 7519)."""
    try:
        claims = path.read_text().split(".")[1]
        read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return TokenTimes(issued_s=float(read["iat"]), expires_s=float(read["exp"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
