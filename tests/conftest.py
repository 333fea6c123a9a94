"""Shared test code that asserts says what it compared, as test modules do."""

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.kernel_contract")

# A machine that is busy elsewhere must not make a property fail.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
