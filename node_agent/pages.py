"""Orchestrator: what the agent's HTTP endpoint answers."""

from collections.abc import Callable
from http import HTTPStatus

from node_agent.http_endpoint import Page, Pages
from node_agent.metrics import CONTENT_TYPE, Metrics

WhyNot = Callable[[], str | None]


def make_pages(metrics: Metrics, why_unwell: WhyNot, why_unready: WhyNot) -> Pages:
    """`why_unwell`: what a restart would mend. `why_unready`: why a pod's VF could not be attached now."""
    return {
        "/healthz": lambda: _answer(why_unwell()),
        "/readyz": lambda: _answer(why_unready()),
        "/metrics": lambda: Page(HTTPStatus.OK, metrics.render(), CONTENT_TYPE),
    }


def _answer(why_not: str | None) -> Page:
    if why_not is None:
        return Page(HTTPStatus.OK, "ok\n")
    return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"{why_not}\n")
