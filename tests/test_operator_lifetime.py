"""The operators over time and across threads and processes."""
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import memory
import rnn_ops
from rnn_ops._mxnet import mx
from rnn_ops.gradcheck import Case, draw, values_and_gradients

pytestmark = pytest.mark.usefixtures("operator")


@pytest.mark.slow
def test_no_growth_over_20000_calls():
    state, Wxh, Whh, bh = (mx.nd.ones(shape) for shape in ((2, 256), (3, 256), (256, 256), (256,)))
    tokens = mx.nd.array([[0, 2]], dtype="int32")
    for array in (state, Wxh, Whh, bh):
        array.attach_grad()

    def calls(count):
        for index in range(count):
            if index % 4 == 0:
                with mx.autograd.record():
                    outputs, _ = rnn_ops.rnn_sequence(tokens, state, Wxh, Whh, bh)
                outputs.backward()
                bh.grad.wait_to_read()
            else:
                rnn_ops.rnn_step(tokens[0], state, Wxh, Whh, bh).wait_to_read()
        mx.nd.waitall()

    calls(6000)  # MXNet's own pools fill up meanwhile
    size, blocks = memory.growth(calls, 14000)
    # One (B, H) state kept by every call would be 28 MB, one object of Python's 14,000 blocks.
    assert size < 2e6 and blocks < 2000


def test_threads_get_exact_results():
    cases = [Case("sequence", 6, 5, 11, 64, "tokens"), Case("sequence", 3, 4, 9, 33), Case("step", 1, 8, 7, 129),
             Case("sequence", 9, 2, 5, 17)]
    work = [(getattr(rnn_ops, "rnn_" + case.operator), *draw(case)) for case in cases]
    alone = [values_and_gradients(*job) for job in work]
    wrong = []

    def repeat(job, wanted):
        for _ in range(60):
            found = values_and_gradients(*job)
            wrong.extend(name for name in wanted if not np.array_equal(found[name], wanted[name]))

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(work, alone)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def run(script, *arguments, **environment):
    """Run a script in a fresh Python → what it prints."""
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], env={**os.environ, **environment},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


USE = """
import rnn_ops
from rnn_ops._mxnet import mx

def use():
    Wxh, Whh, bh = mx.nd.ones((4, 5)), mx.nd.zeros((5, 5)), mx.nd.zeros(5)
    Wxh.attach_grad()
    with mx.autograd.record():
        outputs, state = rnn_ops.rnn_sequence(mx.nd.ones((3, 2, 4)), mx.nd.zeros((2, 5)), Wxh, Whh, bh)
    outputs.backward()
    return float(outputs.sum().asscalar()), float(Wxh.grad.sum().asscalar())
"""


def assert_used(printed):
    tanh = np.tanh(4.0)
    assert np.allclose(np.array(printed.split(), float), [30 * tanh, 3 * 2 * 4 * 5 * (1 - tanh ** 2)], rtol=1e-4)


@pytest.mark.slow
def test_in_a_spawned_process(tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(USE + """
if __name__ == "__main__":
    import multiprocessing
    use()  # the parent has used the operator before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(use))
""")
    assert_used(run(script))


@pytest.mark.slow
def test_with_the_naive_engine(tmp_path):
    script = tmp_path / "naive.py"
    script.write_text(USE + "print(*use())")
    assert_used(run(script, MXNET_ENGINE_TYPE="NaiveEngine"))


@pytest.mark.slow
def test_a_saved_symbol_runs_in_a_fresh_process(tmp_path):
    variables = [mx.sym.var(name) for name in ("inputs", "state", "Wxh", "Whh", "bh")]
    outputs, state = rnn_ops.rnn_sequence(*variables)
    state = rnn_ops.rnn_step(mx.sym.var("one_more"), state, *variables[2:])
    symbol = mx.sym.Group([outputs, state])
    symbol.save(str(tmp_path / "symbol.json"))
    arguments, _ = draw(Case("sequence", 4, 3, 5, 7))
    data = dict(zip(("inputs", "state", "Wxh", "Whh", "bh"), map(mx.nd.array, arguments)), one_more=mx.nd.ones((3, 5)))
    mx.nd.save(str(tmp_path / "data"), data)
    script = tmp_path / "load.py"
    script.write_text("""
import sys
import rnn_ops  # registers the operators
from rnn_ops._mxnet import mx
folder, = sys.argv[1:]
executor = mx.sym.load(folder + "/symbol.json").bind(mx.cpu(), mx.nd.load(folder + "/data"))
mx.nd.save(folder + "/results", executor.forward())
""")
    run(script, tmp_path)
    for found, wanted in zip(mx.nd.load(str(tmp_path / "results")), symbol.bind(mx.cpu(), data).forward()):
        assert np.array_equal(found.asnumpy(), wanted.asnumpy())


@pytest.mark.slow
def test_a_script_may_end_with_operators_in_the_queue(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text("""
import rnn_ops
from rnn_ops._mxnet import mx

weights = [mx.nd.ones(shape) for shape in ((77, 256), (256, 256), (256,))]
for weight in weights:
    weight.attach_grad()
for _ in range(3):
    with mx.autograd.record():
        outputs, state = rnn_ops.rnn_sequence(mx.nd.zeros((64, 32), dtype="int32"), mx.nd.zeros((32, 256)), *weights)
    outputs.backward()
print("end")
""")
    for _ in range(3):
        assert run(script) == "end\n"
