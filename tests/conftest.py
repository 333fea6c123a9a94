"""Shared test code that asserts says what it compared, as test modules do; what every test begins with."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

pytest.register_assert_rewrite("tests.kernel_contract", "tests.vf_contract", "tests.host_link_contract")

# A machine that is busy elsewhere must not make a property fail; nor, in continuous integration, luck.
hypothesis.settings.register_profile("quiet", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("quiet")


@pytest.fixture(autouse=True)
def no_log_of_another_test() -> Iterator[None]:
    """The agent's `main` sets up logging for its process, on a stderr that ends with its test."""
    yield
    structlog.reset_defaults()
