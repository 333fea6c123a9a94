"""When a guest of the rig has come to its verdict, and when it counts as dead. No machine is booted."""

from dataclasses import dataclass, field

import pytest

from hw_tests.rig.verdict import SILENCE_LIMIT_S, START_LIMIT_S, Verdict

CPUS = 2


@dataclass
class Guest:
    """A verdict, the clock that it is judged by, and how often the guest was said to have started."""

    now: float = 1000.0
    starts: int = 0
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        self.verdict = Verdict(CPUS, lambda: self.now, self._start)

    def _start(self) -> None:
        self.starts += 1

    def says(self, *lines: str) -> None:
        self.verdict.feed("".join(f"{line}\n" for line in lines).encode())

    def lives(self, seconds: float, *cpus: int) -> None:
        """Time goes on, and these CPUs are heard every five seconds of it."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 5, end)
            self.says(*(f"alive {cpu}" for cpu in cpus))

    @property
    def why_dead(self) -> str | None:
        return self.verdict.why_dead()


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_run_as_it_should_be(guest: Guest) -> None:
    assert (guest.starts, guest.verdict.exit_code, guest.why_dead) == (0, None, None)
    guest.lives(60)
    guest.says("started 12.61")
    assert guest.starts == 1
    guest.lives(4000, 0, 1)
    assert guest.why_dead is None
    guest.says("exit 1")
    assert guest.verdict.exit_code == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_arrive_in_pieces(guest: Guest, size: int) -> None:
    said = b"started 12.61\nalive 0\nalive 1\nexit 17\n"
    for start in range(0, len(said), size):
        guest.verdict.feed(said[start : start + size])
    assert (guest.starts, guest.verdict.exit_code) == (1, 17)


@pytest.mark.parametrize(
    "line",
    [b"exit 0", b"exit\n", b"exit -1\n", b"exit 0 1\n", b"xexit 0\n", b"\xff\n", b"alive\n", b"alive x\n"],
)
def test_what_is_no_verdict(guest: Guest, line: bytes) -> None:
    """The first is one that was cut short: there may have been more digits."""
    guest.says("started 1")
    guest.verdict.feed(line)
    assert guest.verdict.exit_code is None


def test_a_boot_that_hangs(guest: Guest) -> None:
    guest.lives(START_LIMIT_S - 1)
    assert guest.why_dead is None
    guest.lives(1)
    assert guest.why_dead == "the guest has not started within 240 s"


def test_a_sign_of_life_before_the_start_is_none(guest: Guest) -> None:
    guest.lives(START_LIMIT_S, 0, 1)
    assert guest.why_dead == "the guest has not started within 240 s"


@pytest.mark.parametrize(("alive", "silent"), [((0,), "1"), ((1,), "0"), ((), "0 and 1")])
def test_a_cpu_that_stands_still(guest: Guest, alive: tuple[int, ...], silent: str) -> None:
    """The others go on as if nothing had happened."""
    guest.says("started 1")
    guest.lives(50, 0, 1)
    guest.lives(SILENCE_LIMIT_S - 1, *alive)
    assert guest.why_dead is None
    guest.lives(1, *alive)
    assert guest.why_dead == f"no sign of life from CPU {silent} of the guest for 120 s"


def test_a_cpu_that_never_came_up(guest: Guest) -> None:
    guest.says("started 1")
    guest.lives(SILENCE_LIMIT_S, 0)
    assert guest.why_dead == "no sign of life from CPU 1 of the guest for 120 s"


def test_a_cpu_of_another_machine_counts_for_nothing(guest: Guest) -> None:
    guest.says("started 1", "alive 2")
    guest.lives(SILENCE_LIMIT_S, 2)
    assert guest.why_dead == "no sign of life from CPU 0 and 1 of the guest for 120 s"


def test_a_busy_guest_is_late_at_times(guest: Guest) -> None:
    guest.says("started 1")
    for _ in range(20):
        guest.lives(SILENCE_LIMIT_S - 1)
        assert guest.why_dead is None
        guest.says("alive 0", "alive 1")


@pytest.mark.parametrize(
    ("ended", "dead", "code", "words"),
    [
        (True, None, 125, "ended without a verdict"),
        (False, None, 124, "no verdict within 600 s"),
        (False, "CPU 0 is silent", 125, "CPU 0 is silent, the machine was killed"),
    ],
)
def test_without_a_verdict_it_is_a_failure(
    guest: Guest, ended: bool, dead: str | None, code: int, words: str
) -> None:
    guest.says("started 1", "alive 0")
    judged, why = guest.verdict.judge(ended, dead, 600)
    assert (judged, words in str(why)) == (code, True)


@pytest.mark.parametrize(("ended", "dead"), [(True, None), (False, None), (False, "CPU 0 is silent")])
def test_a_verdict_holds_however_the_machine_ended(guest: Guest, ended: bool, dead: str | None) -> None:
    """One that does not get itself switched off has run its command all the same."""
    guest.says("started 1", "exit 3")
    assert guest.verdict.judge(ended, dead, 600) == (3, None)
