"""The floor on a GPU, in cycles by arithmetic: a step waits longer than it computes. A pure function of numbers."""
import math

from .problems import BACKWARD, BOTH, FORWARD, STEPS

_REGISTERS = 256 * 1024  # bytes of a multiprocessor
# Cycles that any step must wait: load the state from shared memory (25), tanh (two special functions, 40), store and
# barrier (35), and a tree of additions of 4 cycles each; across multiprocessors also the way through the cluster's
# network or through L2 and back. Estimates in the range of published microbenchmarks, rounded down; not measured here.
_WITHIN, _ADDITION, _CLUSTER, _L2 = 100, 4, 180, 400

FORMULA = ("a step: the larger of B·H² multiply-adds over all lanes of the chip, and the time that one element waits "
           f"({_WITHIN} + {_ADDITION}·log2 H cycles if Whh fits one multiprocessor, {_CLUSTER} more across a cluster, "
           f"{_L2} more through L2); backward: once more B·H² multiply-adds for the gradient of Whh")


def cycles(device, shape, direction):
    """The fewest cycles a step that a `variants.Device` could need; see FORMULA."""
    arithmetic = shape.B * shape.H ** 2 / (device.lanes * device.multiprocessors)
    latency = _WITHIN + _ADDITION * math.ceil(math.log2(shape.H))
    if 4 * shape.H ** 2 > _REGISTERS + device.shared_memory:
        latency += _CLUSTER if device.compute_capability >= 90 else _L2
    step = max(arithmetic, latency)
    return {FORWARD: step, STEPS: step, BACKWARD: step + arithmetic, BOTH: 2 * step + arithmetic}[direction]
