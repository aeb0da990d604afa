"""Fixtures for several test files."""
import os

import pytest


@pytest.fixture(scope="module", params=["native", "custom"])
def operator(request):
    """`rnn_ops.rnn_sequence` and `rnn_step` on one operator, then on the other; so do processes that are started."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RNN_OPS_OPERATOR", request.param)
        yield request.param


@pytest.fixture
def book():
    """*The Time Machine* as a `timemachine.text.Text`, from the folder that RNN_OPS_DATA names."""
    if not os.path.exists(os.path.join(os.environ.get("RNN_OPS_DATA", ""), "timemachine.txt")):
        pytest.skip("the book is not here: RNN_OPS_DATA names no folder with timemachine.txt")
    from timemachine import text
    return text.load("timemachine")
