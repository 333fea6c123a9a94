"""Pure: what the guest says of itself on its control channel, and what its silence means."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hw_tests.rig.lines import Lines

EXIT_TIMEOUT = 124
EXIT_NO_VERDICT = 125

# A boot takes up to 70 s while others use the machine's cores; nobody gains by a limit that is close to it.
START_LIMIT_S = 240.0
SILENCE_LIMIT_S = 120.0


@dataclass
class Verdict:
    """Lines of the guest: `started UPTIME`, then `alive CPU` from each CPU again and again, then `exit CODE`.

    A guest was seen whose CPU 0 had lost its timer: half of what ran stood still, and the rest went on. So
    each CPU is heard by itself. Times are the clock's, in seconds; the guest is booting from now on."""

    cpus: int
    clock: Callable[[], float]
    on_start: Callable[[], None]
    exit_code: int | None = field(default=None, init=False)
    _began: float = field(init=False)
    _heard: dict[int, float] = field(default_factory=dict, init=False)  # when, by CPU; empty: not started
    _lines: Lines = field(default_factory=Lines, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a line that is cut short counts for nothing."""
        for line in self._lines.feed(data):
            match line.decode(errors="replace").split():
                case ["started", _]:
                    self._heard = dict.fromkeys(range(self.cpus), self.clock())
                    self.on_start()
                case ["alive", cpu] if cpu.isdecimal() and int(cpu) in self._heard:
                    self._heard[int(cpu)] = self.clock()
                case ["exit", code] if code.isdecimal():
                    self.exit_code = int(code)

    def why_dead(self) -> str | None:
        """What has stayed away for too long; None while there is hope."""
        now = self.clock()
        if not self._heard:
            late = now - self._began >= START_LIMIT_S
            return f"the guest has not started within {START_LIMIT_S:.0f} s" if late else None
        silent = [str(cpu) for cpu, heard in self._heard.items() if now - heard >= SILENCE_LIMIT_S]
        if not silent:
            return None
        return f"no sign of life from CPU {' and '.join(silent)} of the guest for {SILENCE_LIMIT_S:.0f} s"

    def judge(self, ended: bool, dead: str | None, timeout_s: float) -> tuple[int, str | None]:
        """Exit code, and the reason if it is not the command's own. Only an explicit verdict counts. `ended`:
        the machine switched itself off; `dead`: why it was not waited for any longer."""
        if self.exit_code is not None:
            return self.exit_code, None
        if dead is not None:
            return EXIT_NO_VERDICT, f"{dead}, the machine was killed"
        if not ended:
            return EXIT_TIMEOUT, f"no verdict within {timeout_s:.0f} s, the machine was killed"
        return EXIT_NO_VERDICT, "the machine ended without a verdict: its kernel crashed, or pid 1 died"
