"""The choice of a kernel for a shape and a GPU: pure functions of numbers, no CUDA.

A `Variant` is a kernel together with all sizes of its launch. `candidates` lists all variants that could serve a shape, and says
why a family cannot. `choose` takes the one with the fewest predicted cycles a step, forward and backward together.

A prediction has two parts. One comes from the kernel's machine code (predictions.json, written by ``python -m
benchmarks.machine_code.predict``): the cycles of a step with one, two and more tiles of rows a block, for a block that has a
multiprocessor to itself, and how long one tile keeps the multiprocessor busy. The other is the number of blocks that run at once,
from the limits of the device.

The families are explained at the top of kernels/cuda/{resident,cluster,grid,stepwise}.cu, the tile in tile.cuh.
"""
import functools
import json
import math
import os
from typing import NamedTuple, Optional

import numpy as np

from rnn_ops.backends.cuda.sources import Kernel

FAMILIES = ("resident", "cluster", "grid", "stepwise")
ARCHITECTURES = (70, 75, 80, 86, 89, 90)  # the tests compile for these
EXCHANGES = ("async", "barrier")  # of the cluster family; the second one is for comparison only
CLUSTER_SIZES = (2, 4, 8, 16)  # `Device.clusters` counts these

_MOST_GROUPS = 65535  # blocks along the grid's y, on every architecture
_KIB = 1024
# Bytes of shared memory that one block may have, multiply-adds a cycle, registers and threads of one multiprocessor (CUDA C++
# Programming Guide, "Technical specifications per compute capability" and "Throughput of native arithmetic instructions").
_SHARED = {70: 96 * _KIB, 75: 64 * _KIB, 80: 163 * _KIB, 86: 99 * _KIB, 89: 99 * _KIB, 90: 227 * _KIB}
_LANES = {70: 64, 75: 64, 80: 64, 86: 128, 89: 128, 90: 128}
_THREADS = {70: 2048, 75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048}
_REGISTERS = 65536
_RESERVED = 1024  # bytes of shared memory that the system takes for each block, from 8.0 on

_LARGEST_RESIDENT, _LARGEST_CLUSTER, _LARGEST_GRID = 256, 1024, 2048  # hidden units
_GRID_K = (256, 512, 768, 1024, 1536, 2048)

_STEPWISE = 12000  # two launches

_MOST_BESIDE = 2  # blocks on a multiprocessor that are worth a candidate
_DELAY = 0.6

_PREDICTIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "predictions.json")


class Device(NamedTuple):
    """The facts of a GPU that the choice depends on.

    compute_capability: 90 for 9.0; shared_memory: bytes that one block may have; clusters: how many clusters of 2, 4, 8 and 16
    blocks run at once if each block takes a whole multiprocessor, () if the device has no clusters.
    """
    name: str
    compute_capability: int
    shared_memory: int
    multiprocessors: int
    clusters: tuple = ()

    @property
    def architecture(self):
        """The newest of ARCHITECTURES that the device can run."""
        return max((a for a in ARCHITECTURES if a <= self.compute_capability), default=None)

    @property
    def lanes(self):
        """Multiply-adds a cycle of one multiprocessor."""
        return _LANES[self.architecture or ARCHITECTURES[0]]


class Tile(NamedTuple):
    """The template arguments of `Tile` in tile.cuh, in its order."""
    k: int
    columns: int
    k_lanes: int
    k_warps: int
    rows: int
    in_shared: int

    @property
    def threads(self):
        return self.columns * self.k_lanes * self.k_warps // 4

    @property
    def chunks(self):
        return self.k // (4 * self.k_lanes * self.k_warps)

    @property
    def shared_weights(self):
        return self.in_shared * 16 * self.threads

    @property
    def partials(self):
        return self.k_warps * self.rows * self.columns if self.k_warps > 1 else 0

    def __str__(self):
        return f"Tile<{', '.join(map(str, self))}>"


class Prediction(NamedTuple):
    """Of a kernel, in cycles of sm_90, and its registers a thread."""
    step: float  # with one tile of rows
    two: float   # with two
    tile: float  # what each more adds
    busy: float  # of the multiprocessor, for a tile
    registers: int


class Variant(NamedTuple):
    """A kernel for one shape. Fields that a family does not use are None or 1."""
    family: str
    tile: Optional[Tile] = None
    blocks: int = 1   # that share rows: a cluster, or a group of the grid family
    groups: int = 1   # clusters, groups, or single blocks
    rows: int = 1     # of the batch, for each group
    cycles: float = math.inf           # predicted, a step forward
    backward_cycles: float = math.inf  # predicted, a step backward
    exchange: str = "async"            # of the cluster family

    def kernel(self, direction):
        """The `sources.Kernel` for "Forward" or "Backward". The launcher makes stepwise's, which also depends on the dtype."""
        macros = (("PASS", f"{direction}<float>"), ("TILE", str(self.tile)))
        name = self.family
        if self.family == "cluster":
            macros += (("BLOCKS", str(self.blocks)), ("EXCHANGE", self.exchange.capitalize()))
            name += "_barrier" * (self.exchange == "barrier")
        return Kernel(self.family, f"rnn_{name}_{direction.lower()}", macros)

    @property
    def shared(self):
        """Bytes of dynamic shared memory of a block."""
        state_rows = self.tile.rows if self.family == "grid" else self.rows
        mbarriers = 16 * (self.rows // self.tile.rows) if self.family == "cluster" else 0
        return mbarriers + 4 * (self.tile.shared_weights + self.tile.partials + 2 * state_rows * self.tile.k)

    def __str__(self):
        if self.family == "stepwise":
            return "stepwise: a cuBLAS product and one kernel a step"
        what = {"resident": "one block", "cluster": f"a cluster of {self.blocks} blocks",
                "grid": f"a group of {self.blocks} blocks"}[self.family]
        old = ", cluster barriers" * (self.exchange == "barrier")
        return f"{self.family}: {what} for {self.rows} row{'s' * (self.rows > 1)}, {self.groups} of them, {self.tile}{old}"


def known_device(architecture, multiprocessors):
    """A Device with the limits of an architecture, for tests and for GPUs that this process does not have."""
    return Device(f"sm_{architecture}", architecture, _SHARED[architecture], multiprocessors,
                  estimated_clusters(architecture, multiprocessors))


def estimated_clusters(compute_capability, multiprocessors):
    """`Device.clusters` of a GPU where it has not been measured: too few rather than too many.

    A cluster lives inside a GPC. An H100 or H200 with 132 multiprocessors has GPCs of 16 and of 18, and their numbers differ from
    chip to chip. Clusters of 2 fit everywhere. Larger ones leave multiprocessors unused in some GPCs, which may cost one cluster
    or more. A part of a chip with at most 16 multiprocessors counts as one GPC.
    """
    if compute_capability < 90:
        return ()
    lost = (0, 2, 1, 1) if multiprocessors > 16 else (0, 0, 0, 0)  # of 132: 66, 31, 15 and 7 remain
    return tuple(multiprocessors // size - less for size, less in zip(CLUSTER_SIZES, lost))


def tiles(family, architecture):
    """Every (tile, blocks) of a family that `candidates` can ever take on an architecture."""
    return list(dict.fromkeys(_tiles(family, architecture)))


def candidates(device, dtype, B, H):
    """All variants that can serve a shape, and why the other families cannot.

    Parameters
    ----------
    device : Device
    dtype : float32 or float64
    B, H : int
        Rows of the batch, hidden units.

    Returns
    -------
    list of Variant, dict of family → sentence
    """
    found, reasons = [], {}
    for family in FAMILIES[:-1]:
        reason = _why_not(family, device, dtype, H)
        if reason is None:
            fitting = [variant for tile, blocks in _tiles(family, device.architecture, H)
                       for variant in _variants(family, device, tile, blocks, B, H)]
            if fitting:
                found += fitting
                continue
            reason = f"no tile for {H} hidden units fits {device.shared_memory // _KIB} KiB of shared memory a block" + (
                f" and {device.multiprocessors} multiprocessors" if family != "resident" else "")
        reasons[family] = reason
    # cuBLAS's product at half the chip's rate, and two launches.
    work = 2 * B * H * H / (device.lanes * device.multiprocessors)
    found.append(Variant("stepwise", cycles=_STEPWISE + work, backward_cycles=_STEPWISE + work))
    return found, reasons


@functools.lru_cache(maxsize=1024)  # each launch calls it, mostly for the same shape
def choose(device, dtype, B, H, family=None):
    """The variant with the fewest predicted cycles, of a step forward plus a step backward; of all families, or of one.

    Raises
    ------
    ValueError
        The family is not one of FAMILIES, or cannot serve the shape on the device: the reason.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family: got {family!r}, needs one of {', '.join(FAMILIES)}")
    found, reasons = candidates(device, dtype, B, H)
    found = [variant for variant in found if family in (None, variant.family)]
    if not found:
        raise ValueError(f"family: got {family!r}, which cannot serve B = {B}, H = {H} in {np.dtype(dtype)} on "
                         f"{device.name}: {reasons[family]}")
    return min(found, key=total_cycles)


def _why_not(family, device, dtype, H):
    if np.dtype(dtype) != np.float32:
        return f"{np.dtype(dtype)}: only float32 fits on the chip"
    if device.architecture is None:
        return f"compute capability {device.compute_capability}: needs 70 or more"
    if family == "cluster" and device.compute_capability < 90:
        return f"compute capability {device.compute_capability}: clusters need 90 or more"
    largest = {"resident": _LARGEST_RESIDENT, "cluster": _LARGEST_CLUSTER, "grid": _LARGEST_GRID}[family]
    if H > largest:
        return f"{H} hidden units: at most {largest}"
    return None


def total_cycles(variant):
    """Predicted cycles of a step forward plus a step backward, which `choose` minimises."""
    return variant.cycles + variant.backward_cycles


def _tiles(family, architecture, H=None):
    """(tile, blocks that share rows or None) of a family, for one H or for every H."""
    if family == "resident":
        for k in [_up(H, 32)] if H else range(32, _LARGEST_RESIDENT + 1, 32):
            yield from ((_tile(family, k, k, rows, architecture), 1) for rows in (1, 2, 4))
    elif family == "cluster" and architecture >= 90:
        for blocks in CLUSTER_SIZES:
            step = 128 if blocks < 16 else 256
            for k in [_up(H, step)] if H else range(step, _LARGEST_CLUSTER + 1, step):
                for rows in (1, 2, 4):
                    tile = _tile(family, k, k // blocks, rows, architecture)
                    if tile and 4 * tile.shared_weights < _SHARED[architecture]:
                        yield tile, blocks
    elif family == "grid":
        for k in [next(k for k in _GRID_K if k >= H)] if H else _GRID_K:
            for columns in (16, 32, 64):
                k_warps = _k_warps(k, columns)
                if k_warps:
                    # A tile of 4 rows costs hardly more than one of 2.
                    yield from ((_with_shared(Tile(k, columns, 8, k_warps, rows, 0), architecture), None) for rows in (1, 4))


def _tile(family, k, columns, rows, architecture):
    """The best tile whose warps have all of k: with the fewest weights in shared memory, then with a warp for each scheduler,
    then with the fewest lanes along k, whose sums are added in a tree. None if no tile fits."""
    found = []
    for k_lanes in (4, 8, 16, 32):
        if family == "cluster" and 4 * rows > k_lanes:
            continue  # each lane finishes one element
        threads, weights = columns * k_lanes // 4, 4 * k // k_lanes
        if k % (4 * k_lanes) == 0 and columns % (128 // k_lanes) == 0 and weights <= 256 and threads <= 512:
            found.append(_with_shared(Tile(k, columns, k_lanes, 1, rows, 0), architecture))
    return min(found, key=lambda tile: (tile.shared_weights, tile.threads < 128, tile.k_lanes), default=None)


def _k_warps(k, columns):
    """Warps along k for at most 12 warps and 128 weights a lane, or 8 warps and 256; None if neither."""
    for most_warps, most_chunks in ((12, 8), (8, 16)):
        for k_warps in (8, 4, 3, 2):  # the more warps, the fewer cycles are lost waiting
            if k % (32 * k_warps) == 0 and columns // 16 * k_warps <= most_warps and k // (32 * k_warps) <= most_chunks:
                return k_warps
    return None


def _with_shared(tile, architecture):
    """The tile with as many weights in registers as there is room for. A thread needs registers besides the 16 weights of a
    chunk. How many was found by compiling (tests/test_cuda_compile.py), so that nothing spills with NVRTC 13.0 on sm_90, and with
    11.8 and 13.0 on older architectures."""
    registers = min(255, _REGISTERS // _up(tile.threads, 128) // 8 * 8)  # each of the four schedulers has a quarter
    if architecture >= 90:
        besides = {1: 57, 2: 80 if tile.k_lanes == 4 else 63, 4: 128 if tile.k_lanes == 4 else 82}
    else:
        besides = {1: 80 if architecture == 70 and tile.k_warps > 1 else 73, 2: 96, 4: 140 if tile.k_lanes == 4 else 98}
    return tile._replace(in_shared=max(0, tile.chunks - (registers - besides[tile.rows]) // 16))


def _variants(family, device, tile, blocks, B, H):
    """The variants of a tile for a shape: with one block on a multiprocessor and, if there is room, with two."""
    if blocks is None:
        blocks = -(-H // tile.columns)
    at_once = device.multiprocessors // blocks  # groups, one block a multiprocessor
    if family == "cluster":
        clusters = device.clusters or estimated_clusters(device.compute_capability, device.multiprocessors)
        at_once = min(at_once, clusters[CLUSTER_SIZES.index(blocks)])
    if at_once < 1:
        return
    tried = set()
    for beside in (1,) if family == "grid" else range(1, _MOST_BESIDE + 1):
        rows = _up(-(-B // min(B, at_once * beside)), tile.rows)
        if family != "grid":  # shared memory limits the rows of a block; further blocks run later
            room = device.shared_memory - 4 * tile.shared_weights
            row = 8 * tile.k + (16 // tile.rows if family == "cluster" else 0)
            rows = min(rows, room // (tile.rows * row) * tile.rows)
            if rows < 1:
                return
        variant = Variant(family, tile, blocks, -(-B // rows), rows)
        if rows in tried or variant.shared > device.shared_memory or variant.groups > _MOST_GROUPS:
            continue
        tried.add(rows)
        if _beside(device, variant) >= beside:
            yield variant._replace(**{
                name: _cycles(device, variant, at_once, beside, direction)
                for name, direction in (("cycles", "Forward"), ("backward_cycles", "Backward"))})


def _beside(device, variant):
    """How many blocks of a variant fit on one multiprocessor."""
    warps = variant.tile.threads // 32
    registers = max(predictions()[str(variant.kernel(direction))].registers for direction in ("Forward", "Backward"))
    allocated = _up(registers * 32, 256) * _up(warps, 4)
    threads = _THREADS[device.architecture]
    return min(_REGISTERS // allocated, (device.shared_memory + _RESERVED) // (variant.shared + _RESERVED),
               threads // variant.tile.threads)


def _cycles(device, variant, at_once, beside, direction):
    """Predicted cycles a step. Blocks on one multiprocessor wait at different times and share its throughput. In the simulation
    of two clusters of 4 blocks, one block delays the other by _DELAY of the time that it keeps the multiprocessor busy."""
    tiles = variant.rows // variant.tile.rows
    step, two, tile, busy, _ = predictions()[str(variant.kernel(direction))]
    slower = 128 / device.lanes  # than sm_90, in multiply-adds a cycle
    multiply_adds = variant.tile.k * variant.tile.columns * variant.tile.rows / 128
    alone = (step if tiles == 1 else two + (tiles - 2) * tile) + (slower - 1) * tiles * multiply_adds
    busy = tiles * max(busy, slower * multiply_adds)
    turns = -(-variant.groups // (at_once * beside))
    together = -(-variant.groups // at_once) if turns == 1 else beside
    return turns * max(alone + (together - 1) * _DELAY * busy, together * busy)


@functools.lru_cache(maxsize=None)
def predictions():
    """{name of a kernel, as ``str(kernel)`` gives it: its `Prediction`}."""
    with open(_PREDICTIONS, encoding="utf-8") as file:
        return {kernel: Prediction(*numbers) for kernel, numbers in json.load(file)["kernels"].items()}


def _up(number, step):
    return -(-number // step) * step
