"""What is timed: shapes, and the floor of each by arithmetic. Pure functions of numbers."""
import math
from typing import NamedTuple

FORWARD, STEPS, BACKWARD, BOTH = MODES = ("forward", "backward, steps alone", "backward", "forward+backward")
HIDDEN = (64, 128, 256, 384, 512, 1024, 2048)  # 384: beyond the last that cuDNN keeps on the chip
BATCHES = (1, 8, 32, 64, 128)
QUICK_HIDDEN, QUICK_BATCHES = (256, 512, 1024), (1, 32, 128)
STEPS_TIMED = (1, 16, 256, 1024)  # at the tutorial's B and H, besides its own T

_REGISTERS = 256 * 1024  # bytes of a multiprocessor
# Cycles that any step must wait: load the state from shared memory (25), tanh (two special functions, 40), store and
# barrier (35), and a tree of additions of 4 cycles each; across multiprocessors also the way through the cluster's
# network or through L2 and back. Estimates in the range of published microbenchmarks, rounded down; not measured here.
_WITHIN, _ADDITION, _CLUSTER, _L2 = 100, 4, 180, 400

FLOOR = ("a step: the larger of B·H² multiply-adds over all lanes of the chip, and what one element waits for "
         f"({_WITHIN} + {_ADDITION}·log2 H cycles where Whh fits one multiprocessor, {_CLUSTER} more across a cluster, "
         f"{_L2} more through L2); backward: once more B·H² multiply-adds for the gradient of Whh")


class Cell(NamedTuple):
    T: int
    B: int
    V: int
    H: int

    def __str__(self):
        return f"T{self.T}-B{self.B}-V{self.V}-H{self.H}"


TUTORIAL = Cell(64, 32, 77, 256)


def cells(quick=False):
    """The tutorial's first, so that it is there if the rest is cut off; every H with every B; other numbers of steps."""
    hidden, batches = (QUICK_HIDDEN, QUICK_BATCHES) if quick else (HIDDEN, BATCHES)
    every = [TUTORIAL._replace(B=B, H=H) for H in hidden for B in batches]
    lengths = [] if quick else [TUTORIAL._replace(T=T) for T in STEPS_TIMED]
    return [TUTORIAL] + [cell for cell in every if cell != TUTORIAL] + lengths


def floor_cycles(device, cell, mode):
    """The fewest cycles a step that the device could need for a mode; see FLOOR."""
    arithmetic = cell.B * cell.H ** 2 / (device.lanes * device.multiprocessors)
    latency = _WITHIN + _ADDITION * math.ceil(math.log2(cell.H))
    if 4 * cell.H ** 2 > _REGISTERS + device.shared_memory:
        latency += _CLUSTER if device.compute_capability >= 90 else _L2
    step = max(arithmetic, latency)
    return {FORWARD: step, STEPS: step, BACKWARD: step + arithmetic, BOTH: 2 * step + arithmetic}[mode]
