"""jax.lax.scan under jit beside our kernels, in a process of its own, as JAX takes a part of the GPU's memory for itself.

By the clock on the wall, since JAX's stream is its own: calls that are waited for together, and one by one.
"""
import math
import os
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from .. import problems  # noqa: E402
from ..worker import BOUND, FAILED, OK, verify  # noqa: E402
from .cells import BOTH, FORWARD  # noqa: E402

PROVIDER = "jax.lax.scan"
_SECONDS, _WAITED = 0.5, 50  # of calls that are waited for together; calls that are waited for one by one


def _forward(parameters, tokens):
    state, Wxh, Whh, bh = parameters

    def step(state, token):
        state = jnp.tanh(Wxh[token] + state @ Whh + bh)
        return state, state
    return jax.lax.scan(step, state, tokens)[1]


def _both(parameters, tokens, doutputs):
    outputs, back = jax.vjp(lambda parameters: _forward(parameters, tokens), parameters)
    return outputs, back(doutputs)[0]


def measure(cell):
    """Rows for a cell, as those of timing.py: forward and both ways, in full precision."""
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    problem = problems.Recurrence(problems.Shape(cell.T, cell.B, cell.V, cell.H, tokens=True))
    parameters = tuple(map(jnp.asarray, (problem.state, problem.Wxh, problem.Whh, problem.bh)))
    tokens, doutputs = jnp.asarray(problem.inputs), jnp.asarray(problem.doutputs)
    forward, both = jax.jit(_forward), jax.jit(_both)
    row = {**cell._asdict(), "provider": PROVIDER, "family": "XLA", "chosen": False, "input": "tokens",
           "variant": f"jax {jax.__version__} on {jax.devices()[0].device_kind}"}
    try:
        outputs, gradients = both(parameters, tokens, doutputs)
        found = dict(zip(("dstate", "dWxh", "dWhh", "dbh"), map(np.asarray, gradients)), outputs=np.asarray(outputs))
        row["error"] = verify(found, problem.truth(BOTH), BOUND)
        return [dict(row, mode=mode, status=OK, **_timed(call)) for mode, call in (
            (FORWARD, lambda: forward(parameters, tokens)), (BOTH, lambda: both(parameters, tokens, doutputs)))]
    except Exception as error:  # whatever is wrong with it belongs into the table
        return [dict(row, mode=None, status=FAILED, reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])]


def _timed(call):
    alone = []
    jax.block_until_ready(call())
    for _ in range(_WAITED):
        started = time.perf_counter()
        jax.block_until_ready(call())
        alone.append(time.perf_counter() - started)
    count = max(1, math.ceil(_SECONDS / float(np.median(alone))))
    started = time.perf_counter()
    for _ in range(count):
        found = call()
    jax.block_until_ready(found)
    return {"wall": (time.perf_counter() - started) / count, "wall_waited": float(np.median(alone))}
