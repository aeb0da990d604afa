"""The recurrence as a user of JAX writes it: ``jax.lax.scan`` under ``jit``, its gradients by ``vjp``.

There is more than one way to write it, and which is faster depends on the shape. `Scan` tries all at its shape, forward and
both ways, and goes on with the fastest. JaxScan in providers.py times it on a CPU, `measure_on_gpu` on a GPU.
"""
import jax
import jax.numpy as jnp
import numpy as np

from . import problems, providers, worker
from .clock import by_the_wall, time_calls
from .problems import BOTH, FORWARD

_TRIED = 0.02    # seconds, of each form, in which the fastest is found
_TOGETHER = 0.5  # seconds of calls that are waited for together


def _scan(step, state, inputs):
    def one(state, x):
        state = jnp.tanh(step(state, x))
        return state, state
    return jax.lax.scan(one, state, inputs)[1]


def _before(inputs, state, Wxh, Whh, bh):
    return _scan(lambda h, x: x + h @ Whh, state, inputs @ Wxh + bh)


def _inside(inputs, state, Wxh, Whh, bh):
    return _scan(lambda h, x: x @ Wxh + h @ Whh + bh, state, inputs)


def _gathered(tokens, state, Wxh, Whh, bh):
    return _scan(lambda h, x: x + h @ Whh, state, Wxh[tokens] + bh)


_DENSE = {"x·Wxh before the scan": _before, "x·Wxh inside the scan": _inside}
_TOKENS = {"rows of Wxh gathered before the scan": _gathered}


class Scan:
    """A problem's arrays on JAX's device, and its two calls in their fastest forms, which do not wait."""

    def __init__(self, problem):
        self._names = ("dstate", "dWxh", "dWhh", "dbh") + (() if problem.shape.tokens else ("dinputs",))
        rest = tuple(map(jnp.asarray, (problem.state, problem.Wxh, problem.Whh, problem.bh)))
        dense = jnp.asarray(problem.dense_inputs())
        forms = [(form, function, (dense, *rest)) for form, function in _DENSE.items()]
        if problem.shape.tokens:
            tokens = jnp.asarray(problem.inputs)
            forms += [(form, function, (tokens, *rest)) for form, function in _TOKENS.items()]
        doutputs = jnp.asarray(problem.doutputs)
        self.forward_form, self.forward = _fastest((form, jax.jit(function), arguments) for form, function, arguments in forms)
        self.both_form, self.both = _fastest(
            (form, jax.jit(_with_gradients(function, dense=not problem.shape.tokens)), (doutputs, *arguments))
            for form, function, arguments in forms)

    def results(self, found, direction):
        if direction == FORWARD:
            return {"outputs": np.asarray(found)}
        outputs, gradients = found
        return dict(zip(self._names, map(np.asarray, gradients)), outputs=np.asarray(outputs))


def _with_gradients(function, dense):
    def both(doutputs, inputs, *rest):
        if dense:
            outputs, back = jax.vjp(lambda rest, inputs: function(inputs, *rest), rest, inputs)
            gradients, dinputs = back(doutputs)
            return outputs, (*gradients, dinputs)
        outputs, back = jax.vjp(lambda rest: function(inputs, *rest), rest)
        return outputs, back(doutputs)[0]
    return both


def _fastest(forms):
    """(form, its call) of the form with the shortest best call."""
    tried = []
    for form, function, arguments in forms:
        def call(function=function, arguments=arguments):
            return function(*arguments)

        def waited(call=call):
            return jax.block_until_ready(call())
        waited()  # compiles
        tried.append((min(time_calls(waited, _TRIED)), form, call))
    _, form, call = min(tried, key=lambda one: one[0])
    return form, call


def measure_on_gpu(shape):
    """Rows for a shape, by the clock on the wall, in full precision. An ImportError says that JAX finds no GPU."""
    if jax.default_backend() != "gpu":
        raise ImportError(f"jax {jax.__version__} finds no GPU")
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    row = {"stage": shape.sizes, "shape": list(shape[:4]), "input": shape.input, "provider": providers.JaxScan.name,
           "family": "XLA", "variant": "", "chosen": False}
    try:
        made, known = worker.prepare(providers.JaxScan._replace(arguments=()), problems.Sequence(shape))
        launched = {FORWARD: made.recurrence.forward, BOTH: made.recurrence.both}
        return [dict(row, direction=direction, status=worker.OK, variant=f"{made.about}, on {jax.devices()[0].device_kind}",
                     error=known["errors"][direction], **_by_the_wall(call)) for direction, call in launched.items()]
    except Exception as error:  # whatever is wrong with it belongs into the table
        return [dict(row, direction=None, status=worker.FAILED,
                     reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])]


def _by_the_wall(call):
    last = []

    def launch(_):
        last[:] = [call()]
    return by_the_wall(launch, lambda: jax.block_until_ready(last), _TOGETHER)
