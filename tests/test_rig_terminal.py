"""The keyboard of the emulated machine: a person's terminal, or a file of commands."""

import os
import pty
import termios
from collections.abc import Iterator

import pytest

from hw_tests.rig.terminal import keyboard
from tests.agent_node import eventually


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The person's side, and the program's."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


def test_commands_of_a_file_end_as_if_ctrl_d_was_typed() -> None:
    keys, file = os.pipe()
    sent: list[bytes] = []
    os.write(file, b"sriovctl vfs\n")
    os.close(file)
    with keyboard(keys, sent.append):
        eventually(lambda: sent[-1:] == [b"\x04"], "the end of the file is handed on")
    os.close(keys)
    assert b"".join(sent) == b"sriovctl vfs\n\x04"


def test_keys_with_a_meaning_are_for_the_machine(terminal: tuple[int, int]) -> None:
    person, program = terminal
    before = termios.tcgetattr(program)
    sent: list[bytes] = []
    with keyboard(program, sent.append):
        assert termios.tcgetattr(program)[1] == before[1], "lines of the launcher begin on the left"
        os.write(person, b"\x03x")  # Ctrl-C, and no Enter
        eventually(lambda: b"".join(sent) == b"\x03x", "it is handed on")
    assert termios.tcgetattr(program) == before
