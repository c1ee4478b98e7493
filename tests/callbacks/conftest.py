"""Settings of the callback tests."""

from collections.abc import Iterator

import pytest

from hjepa_pl.evaluation.threads import one_thread


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The toy network is too small for two threads: on a busy machine they make the tests ten times slower."""
    with one_thread():
        yield
