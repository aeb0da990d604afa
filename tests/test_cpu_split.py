"""How a step is split over threads: the choice, and that neither it nor threads that come late change a result."""
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recurrence_cases import check, random_case, run
from rnn_ops.backends import cpu

HERE = os.path.dirname(os.path.abspath(__file__))
L1, L2 = 32 << 10, 1 << 20

# Few rows and columns enough to be split; one of several blocks of 256, one with a padded last panel, one with two teams of two.
SHAPES = [(12, 1, 5, 300), (9, 2, 4, 512), (7, 3, 6, 777), (30, 1, 7, 128), (5, 4, 3, 600)]


def ceil_div(a, b):
    return -(-a // b)


@given(B=st.integers(1, 300), H=st.integers(1, 4096), threads=st.integers(1, 256), dtype=st.sampled_from(["float32", "float64"]))
@example(B=1, H=1, threads=256, dtype="float64")
@settings(max_examples=300)
def test_any_split_gives_every_thread_something(B, H, threads, dtype):
    rows, columns = cpu.split(B, H, dtype, threads, L1, L2)
    assert 1 <= rows <= B and 1 <= columns <= H and rows * columns <= threads


@given(B=st.integers(1, 128), H=st.integers(1, 2048), threads=st.integers(1, 128))
@settings(max_examples=200)
def test_more_threads_never_have_more_to_do(B, H, threads):
    """The largest part, in rows times columns, is no larger than that of one thread less."""
    def largest(count):
        rows, columns = cpu.split(B, H, "float32", count, L1, L2)
        return ceil_div(B, rows) * ceil_div(H, columns)
    assert largest(threads + 1) <= 1.5 * largest(threads)  # another cut may be coarser and meet less often


@pytest.mark.skipif(cpu.simd_levels()[0] != "avx512", reason="the model counts in panels, which the SIMD level gives")
@pytest.mark.parametrize("B, H, threads, expected", [
    (1, 64, 2, (1, 1)),      # a meeting would cost more than the step
    (1, 128, 2, (1, 2)),
    (1, 1024, 2, (1, 2)),    # each core streams its half of Whh
    (8, 512, 2, (1, 2)),     # half of Whh fits the L2 cache, all of it does not
    (8, 256, 2, (2, 1)),
    (32, 256, 2, (2, 1)),    # the tutorial's shape
    (32, 1024, 2, (2, 1)),   # many rows: the multiply-adds take longer than reading Whh
    (32, 256, 64, (8, 8)),   # more cores than rows
    (32, 64, 64, (32, 1)),
    (128, 1024, 64, (16, 4)),
])
def test_choices(B, H, threads, expected):
    assert cpu.split(B, H, "float32", threads, L1, L2) == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_bits_do_not_depend_on_threads(monkeypatch, shape, tokens, dtype):
    """From one thread to many more than there are processors, so that most of them are late or have lost their core."""
    case = random_case(shape, dtype, tokens)
    check(cpu, shape, dtype, tokens)
    results = []
    for threads in 1, 2, 3, 5, 16:
        monkeypatch.setenv("RNN_OPS_NUM_THREADS", str(threads))
        results += [run(cpu, *case) for _ in range(3)]
    for name in results[0]:
        assert all(np.array_equal(results[0][name], other[name]) for other in results[1:]), name


def test_a_split_of_columns_takes_place():
    """Else the tests here would test nothing: with two threads the shapes above are split as their comment says."""
    assert [cpu.split(shape[1], shape[3], "float32", 4)[1] > 1 for shape in SHAPES] == [True] * len(SHAPES)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a processor")
def test_one_processor_for_eight_threads(tmp_path):
    """Threads that can never run side by side do not wait for one another: the one that runs does the work."""
    code = (
        "import os, sys; sys.path.insert(0, %r)\n"
        "os.environ['RNN_OPS_NUM_THREADS'] = '1'\n"
        "import numpy as np; from recurrence_cases import random_case, run; from rnn_ops.backends import cpu\n"
        "case = random_case((40, 1, 5, 512), 'float32', True)\n"
        "alone = run(cpu, *case)\n"
        "os.environ['RNN_OPS_NUM_THREADS'] = '8'\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "for _ in range(20):\n"
        "    crowd = run(cpu, *case)\n"
        "    assert all(np.array_equal(alone[name], crowd[name]) for name in alone)\n"
        "print('same bits')") % HERE
    ran = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), stdout=subprocess.PIPE,
                         text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout == "same bits\n"


def test_callers_while_another_caller_has_the_threads(monkeypatch):
    """A second caller does all members' work itself, one after the other."""
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", "4")
    cases = [random_case(shape, "float32", tokens=False, seed=i) for i, shape in enumerate(SHAPES)]
    alone = [run(cpu, *case) for case in cases]
    wrong = []

    def call(case, expected):
        for _ in range(15):
            got = run(cpu, *case)
            wrong.extend(name for name in got if not np.array_equal(got[name], expected[name]))

    callers = [threading.Thread(target=call, args=pair) for pair in zip(cases, alone)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("arguments, name", [
    (dict(B=0, H=5), "B"), (dict(B=2.5, H=5), "B"), (dict(B=1, H=-1), "H"), (dict(B=1, H=True), "H"),
    (dict(B=1, H=2, thread_count=0), "thread_count"), (dict(B=1, H=2, thread_count=2 ** 70), "thread_count"),
    (dict(B=1, H=2, dtype="int32"), "dtype"), (dict(B=1, H=2, l2=-1), "l2")])
def test_an_invalid_size_is_an_error(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, needs "):
        cpu.split(**arguments)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in Linux's /proc")
def test_there_may_be_more_tasks_than_threads(tmp_path):
    """Far more threads than processors would be in one another's way: so many are not started, and all tasks are done."""
    code = (
        "import os, sys; sys.path.insert(0, %r)\n"
        "import numpy as np; from recurrence_cases import random_case, run; from rnn_ops.backends import cpu\n"
        "case = random_case((20, 9, 5, 1500), 'float32', True)\n"
        "alone = run(cpu, *case)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "os.environ['RNN_OPS_NUM_THREADS'] = '60000'\n"
        "crowd = run(cpu, *case)\n"
        "assert all(np.array_equal(alone[name], crowd[name]) for name in alone)\n"
        "print(len(os.listdir('/proc/self/task')) - before)") % HERE
    ran = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), stdout=subprocess.PIPE,
                         text=True, timeout=60, env=dict(os.environ, RNN_OPS_NUM_THREADS="1"))
    assert ran.returncode == 0 and int(ran.stdout) <= max(64, 4 * os.cpu_count())
