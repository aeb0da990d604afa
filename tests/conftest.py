"""The same start for all tests, and fixtures for several test files.

RNN_OPS_NUM_THREADS, OMP_NUM_THREADS, RNN_OPS_SIMD and OPENBLAS_CORETYPE are left as they are: the tests pass under each.
"""
import contextlib
import logging
import os
import signal
import subprocess

import pytest

# Tests check which operator is the default, and set the other one themselves; they check with MXNet's own engine when an error
# comes. Options for pytest and for warnings are for this process, not for the processes that tests start.
for name in ("RNN_OPS_OPERATOR", "MXNET_ENGINE_TYPE", "PYTEST_ADDOPTS", "PYTHONWARNINGS"):
    os.environ.pop(name, None)
for name in ("RNN_OPS_DATA", "RNN_OPS_CACHE"):  # some tests go to other folders
    if os.environ.get(name):
        os.environ[name] = os.path.abspath(os.environ[name])
# Some tests ask a server on this machine that does not exist. No proxy may answer for it.
os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
# Under nohup, or in the background of a shell, these are ignored, and so they would be in the processes that tests interrupt.
for number, handler in (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL):
    signal.signal(number, handler)
# Matplotlib warns on stderr, which tests read, when it makes a folder or a list of fonts for the first time.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

with contextlib.suppress(ImportError):  # where the CUDA half alone is tested
    from hypothesis import HealthCheck, settings
    # The same examples everywhere and every time, however long the machine takes for one.
    settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("same")


@pytest.fixture(scope="module", params=["native", "custom"])
def operator(request):
    """`rnn_ops.rnn_sequence` and `rnn_step` on one operator, then on the other; so do processes that are started."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RNN_OPS_OPERATOR", request.param)
        yield request.param


@pytest.fixture
def book():
    """*The Time Machine* as a `rnn_ops_timemachine.text.Text`, from the folder that RNN_OPS_DATA names."""
    if not os.path.exists(os.path.join(os.environ.get("RNN_OPS_DATA", ""), "timemachine.txt")):
        pytest.skip("the book is not here: RNN_OPS_DATA names no folder with timemachine.txt")
    from rnn_ops_timemachine import text
    return text.load("timemachine")


@pytest.fixture
def start():
    """`subprocess.Popen`. SIGINT, SIGTERM and SIGHUP do the same as in a terminal. (`nohup` and a script's background jobs ignore
    some of them, and processes inherit that.) Processes that still run at the end of the test are killed."""
    started = []

    def popen(*arguments, **keywords):
        normal = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
        before = {number: signal.signal(number, handler) for number, handler in normal.items()}
        try:
            started.append(subprocess.Popen(*arguments, **keywords))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()
