"""Adapter: a person's terminal, or a file of commands, as the keyboard of the emulated machine."""

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator

_END_OF_INPUT = b"\x04"  # what Ctrl-D is to the terminal in the machine
_PIECE = 4096


def terminal_size() -> str:
    """`ROWS COLUMNS`, as stty(1) takes them."""
    size = os.get_terminal_size(sys.stdin.fileno()) if sys.stdin.isatty() else os.terminal_size((110, 40))
    return f"{size.lines} {size.columns}"


@contextlib.contextmanager
def keyboard(keys: int, send: Callable[[bytes], None]) -> Iterator[None]:
    """Hand on all that is typed there, Ctrl-C included, until the end of the context."""
    stopped, stop = os.pipe()
    thread = threading.Thread(target=_hand_on, args=(keys, stopped, send), name="rig-keyboard", daemon=True)
    with _raw(keys):
        thread.start()
        try:
            yield
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)


def _hand_on(keys: int, stopped: int, send: Callable[[bytes], None]) -> None:
    while True:
        ready, _, _ = select.select([keys, stopped], [], [])
        if stopped in ready:
            return
        typed = os.read(keys, _PIECE)
        send(typed or _END_OF_INPUT)
        if not typed:
            return


@contextlib.contextmanager
def _raw(keys: int) -> Iterator[None]:
    """No key has a meaning here; lines of our own still begin on the left."""
    if not os.isatty(keys):
        yield
        return
    before = termios.tcgetattr(keys)
    tty.setraw(keys)
    raw = termios.tcgetattr(keys)
    raw[1] = before[1]
    termios.tcsetattr(keys, termios.TCSADRAIN, raw)
    try:
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
