"""Pure: `sriovctl doctor`: the clock of the node, as far as something here goes by it.

The agent measures by CLOCK_MONOTONIC. Times in Events, the ages that `sriovctl` shows and whom the API server
trusts are by the clock.
"""

import time
from collections.abc import Iterator

from node_agent.doctor.facts import ClockFacts, Facts
from node_agent.doctor.rules import Finding, Rule, Severity

_SLACK_S = 60.0

CLOCK_UNSYNCHRONISED = Rule(
    id="clock-unsynchronised",
    severity=Severity.WARNING,
    cause="nothing keeps this node's clock right, says the kernel (STA_UNSYNC): once it is wrong by more than"
    " a little, the API server refuses the agent and Events come with wrong times",
    cure="run chrony, systemd-timesyncd or another NTP client: `timedatectl`, `chronyc tracking`",
)
CLOCK_SET_BACK = Rule(
    id="clock-set-back",
    severity=Severity.WARNING,
    cause="{path} was written {seconds} s in the future: the clock was set back since, or is wrong now",
    cure="`timedatectl` shows the clock; if it is right now, this mends itself when the file is written anew",
)
TOKEN_OUT_OF_DATE = Rule(
    id="token-out-of-date",
    severity=Severity.ERROR,
    cause="by this node's clock it is {now}, and the service account's token counts from {issued} until"
    " {expires}: the API server refuses it",
    cure="set the clock right; if it is, the kubelet has not renewed the token: look at its log",
)
RULES = (CLOCK_UNSYNCHRONISED, CLOCK_SET_BACK, TOKEN_OUT_OF_DATE)


def find(facts: Facts) -> Iterator[Finding]:
    clock = facts.clock
    asks_api_server = facts.config is not None and facts.config.kubernetes is not None
    if asks_api_server and not clock.is_synchronised:
        yield CLOCK_UNSYNCHRONISED.finding("clock")
    ahead_s = clock.newest_s - clock.now_s
    if ahead_s > _SLACK_S:
        yield CLOCK_SET_BACK.finding("clock", path=clock.newest, seconds=f"{ahead_s:.0f}")
    if asks_api_server:
        yield from _token(clock)


def _token(clock: ClockFacts) -> Iterator[Finding]:
    token = clock.token
    if token is None or token.issued_s - _SLACK_S <= clock.now_s < token.expires_s:
        return
    now, issued, expires = map(_word, (clock.now_s, token.issued_s, token.expires_s))
    yield TOKEN_OUT_OF_DATE.finding("clock", now=now, issued=issued, expires=expires)


def _word(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
