"""Long-lived threads: one that ends before it was told to is the end of all, with the reason."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from node_agent.supervisor import Supervisor

_DEADLINE_S = 5.0


@pytest.fixture
def logged() -> structlog.testing.LogCapture:
    return structlog.testing.LogCapture()


@pytest.fixture
def supervisor(logged: structlog.testing.LogCapture) -> Iterator[Supervisor]:
    log: FilteringBoundLogger = structlog.wrap_logger(
        None, [logged], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    before = threading.active_count()
    supervisor = Supervisor(log)
    yield supervisor
    supervisor.stop.set()
    supervisor.join(_DEADLINE_S)
    assert threading.active_count() == before


def events(logged: structlog.testing.LogCapture) -> list[Any]:
    return [(entry["event"], entry.get("thread")) for entry in logged.entries]


def test_threads_that_end_when_told_are_no_failure(
    supervisor: Supervisor, logged: structlog.testing.LogCapture
) -> None:
    running = threading.Barrier(3)

    def work() -> None:
        running.wait(_DEADLINE_S)
        supervisor.stop.wait(_DEADLINE_S)

    supervisor.start("one", work)
    supervisor.start("two", work)
    running.wait(_DEADLINE_S)
    supervisor.stop.set()
    supervisor.join(_DEADLINE_S)
    assert supervisor.failure is None
    assert events(logged) == []


def test_a_thread_that_ends_by_itself_stops_everything(supervisor: Supervisor) -> None:
    supervisor.start("quiet", lambda: None)
    assert supervisor.stop.wait(_DEADLINE_S)
    assert supervisor.failure == "thread quiet ended by itself"


def test_a_thread_that_fails_stops_everything_with_the_reason(
    supervisor: Supervisor, logged: structlog.testing.LogCapture
) -> None:
    def fail() -> None:
        raise KeyError("the reason")

    supervisor.start("loud", fail)
    assert supervisor.stop.wait(_DEADLINE_S)
    supervisor.join(_DEADLINE_S)
    assert supervisor.failure == "thread loud failed: 'the reason'"
    (entry,) = logged.entries
    assert (entry["event"], entry["thread"], entry["exc_info"]) == ("thread failed", "loud", True)


def test_a_failure_while_stopping_is_logged_and_not_the_reason(
    supervisor: Supervisor, logged: structlog.testing.LogCapture
) -> None:
    def fail_at_the_end() -> None:
        supervisor.stop.wait(_DEADLINE_S)
        raise ValueError

    supervisor.start("late", fail_at_the_end)
    supervisor.stop.set()
    supervisor.join(_DEADLINE_S)
    assert supervisor.failure is None
    assert events(logged) == [("thread failed", "late")]


def test_a_thread_that_does_not_end_is_named(
    supervisor: Supervisor, logged: structlog.testing.LogCapture
) -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(_DEADLINE_S)

    supervisor.start("stuck", hang)
    supervisor.stop.set()
    supervisor.join(0.01)
    assert events(logged) == [("thread does not end", "stuck")]
    release.set()


def test_threads_have_their_names_and_do_not_hold_up_the_process(supervisor: Supervisor) -> None:
    seen: list[threading.Thread] = []

    def work() -> None:
        seen.append(threading.current_thread())
        supervisor.stop.wait(_DEADLINE_S)

    supervisor.start("inventory", work)
    supervisor.stop.set()
    supervisor.join(_DEADLINE_S)
    assert [(thread.name, thread.daemon) for thread in seen] == [("inventory", True)]


def test_it_is_well_while_every_thread_is_there(supervisor: Supervisor) -> None:
    def work() -> None:
        supervisor.stop.wait(_DEADLINE_S)

    supervisor.start("one", work)
    assert supervisor.why_unwell() is None
    supervisor.start("quiet", lambda: None)
    assert supervisor.stop.wait(_DEADLINE_S)
    assert supervisor.why_unwell() == "thread quiet ended by itself"


def test_it_is_not_well_while_it_ends(supervisor: Supervisor) -> None:
    supervisor.stop.set()
    assert supervisor.why_unwell() == "the agent is about to end"
