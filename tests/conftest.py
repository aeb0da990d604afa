"""Fixtures for several test files."""
import os

import pytest


@pytest.fixture
def book():
    """*The Time Machine* as a `timemachine.text.Text`, from the folder that RNN_OPS_DATA names."""
    if not os.path.exists(os.path.join(os.environ.get("RNN_OPS_DATA", ""), "timemachine.txt")):
        pytest.skip("the book is not here: RNN_OPS_DATA names no folder with timemachine.txt")
    from timemachine import text
    return text.load("timemachine")
