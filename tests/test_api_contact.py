"""Whether the API server answers, by what those find who ask it."""

from pathlib import Path

import pytest

from node_agent.api_contact import Answer, ApiContact, answer_of
from node_agent.api_errors import ApiServerError
from node_agent.api_server import ApiServer
from tests.api_double import api_double
from tests.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (None, Answer.UNREACHABLE),
        (408, Answer.BUSY),
        (429, Answer.BUSY),
        (500, Answer.BUSY),
        (503, Answer.BUSY),
        (401, Answer.FORBIDDEN),
        (403, Answer.FORBIDDEN),
        (404, Answer.REFUSED),
        (409, Answer.REFUSED),
        (422, Answer.REFUSED),
    ],
)
def test_a_failure_by_its_status(status: int | None, answer: Answer) -> None:
    assert answer_of(ApiServerError("", status)) is answer


def test_since_when_it_answers() -> None:
    """A refusal is an answer."""
    clock = FakeClock()
    contact = ApiContact(clock)
    assert contact.state().reachable is None
    steps: list[tuple[ApiServerError | None, bool, float]] = [
        (None, True, 1),
        (ApiServerError("", 404), True, 1),
        (ApiServerError("", None), False, 3),
        (ApiServerError("", 503), False, 3),
        (None, True, 5),
    ]
    for failure, reachable, since in steps:
        clock.pass_by(1)
        contact.note(failure)
        assert (contact.state().reachable, contact.state().since) == (reachable, since)
    assert contact.state().answers == {
        Answer.SUCCESS: 2,
        Answer.FORBIDDEN: 0,
        Answer.REFUSED: 1,
        Answer.BUSY: 1,
        Answer.UNREACHABLE: 1,
    }


def test_each_question_is_noted(tmp_path: Path) -> None:
    with api_double() as double:
        api = ApiServer(double.kubeconfig(tmp_path))
        double.pods["ml/a"] = None
        api.read_pod("ml", "a")
        with pytest.raises(ApiServerError):
            api.read_pod("ml", "b")
        assert api.contact.state().reachable is True
    api.close()
    with pytest.raises(ApiServerError):
        api.annotate_node("n", {})
    state = api.contact.state()
    assert state.reachable is False
    assert {answer: n for answer, n in state.answers.items() if n} == {
        Answer.SUCCESS: 1,
        Answer.REFUSED: 1,
        Answer.UNREACHABLE: 1,
    }
