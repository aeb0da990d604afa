"""Which kernel serves which shape on which GPU: pure functions of numbers, no CUDA.

A `Variant` is a kernel with everything that is decided before it runs. `candidates` lists all that could serve a shape, or
says why a family cannot; `choose` takes the one with the fewest estimated cycles a step. The estimate is arithmetic (see
`_cycles`); its constants are by design, to be replaced by measured ones from ``python -m benchmarks.gpu``.

The families are explained at the top of kernels/cuda/{resident,cluster,grid,stepwise}.cu, the tile in tile.cuh.
"""
import functools
import math
from typing import NamedTuple

import numpy as np

from rnn_ops.backends.cuda.sources import Kernel

FAMILIES = ("resident", "cluster", "grid", "stepwise")
ARCHITECTURES = (70, 75, 80, 86, 89, 90)  # those that the tests compile for

_MOST_GROUPS = 65535  # blocks along the grid's y, on every architecture
_KIB = 1024
# Bytes of shared memory that one block may have, and multiply-adds a cycle of one multiprocessor (CUDA C++ Programming
# Guide, "Technical specifications per compute capability" and "Throughput of native arithmetic instructions").
_SHARED = {70: 96 * _KIB, 75: 64 * _KIB, 80: 163 * _KIB, 86: 99 * _KIB, 89: 99 * _KIB, 90: 227 * _KIB}
_LANES = {70: 64, 75: 64, 80: 64, 86: 128, 89: 128, 90: 128}

_LARGEST_RESIDENT, _LARGEST_CLUSTER, _LARGEST_GRID = 256, 1024, 2048  # hidden units
_GRID_K = (256, 512, 768, 1024, 1536, 2048)

# Cycles that a step costs beside its multiply-adds: barriers, the tree over the lanes, tanh; for a cluster also remote stores
# and its barrier; for a grid the way through L2; for stepwise two launches.
_LATENCY = {"resident": 150, "cluster": 400, "grid": 2000, "stepwise": 12000}
_PER_TILE = 80  # of each tile of rows: a barrier, the tree, tanh


class Device(NamedTuple):
    """What the choice depends on.

    compute_capability: 90 for 9.0; shared_memory: bytes that one block may have; clusters: how many clusters of 2, 4, 8 and 16
    blocks run at once where each block takes a whole multiprocessor, () where there are no clusters.
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
    lane_columns: int
    k_warps: int
    rows: int
    in_shared: int

    @property
    def threads(self):
        return 8 * self.columns // self.lane_columns * self.k_warps

    @property
    def chunks(self):
        return self.k // (32 * self.k_warps)

    @property
    def shared_weights(self):
        return self.in_shared * 4 * self.lane_columns * self.threads

    @property
    def partials(self):
        return self.k_warps * self.rows * self.columns

    def __str__(self):
        return f"Tile<{', '.join(map(str, self))}>"


class Variant(NamedTuple):
    """A kernel for one shape. ``tile`` and what follows is None or 1 where the family has no use for it."""
    family: str
    tile: Tile = None
    blocks: int = 1   # that share rows: of a cluster, of a group of the grid
    groups: int = 1   # of blocks that share rows
    rows: int = 1     # of the batch that a group owns
    cycles: float = math.inf  # estimated, a step

    def kernel(self, direction):
        """The `sources.Kernel` for "Forward" or "Backward". Stepwise, where the dtype counts too, has it in the launcher."""
        macros = (("PASS", f"{direction}<float>"), ("TILE", str(self.tile)))
        return Kernel(self.family, self.family, macros + (("BLOCKS", str(self.blocks)),) * (self.family == "cluster"))

    @property
    def shared(self):
        """Bytes of dynamic shared memory a block."""
        state_rows = self.tile.rows if self.family == "grid" else self.rows
        return 4 * (self.tile.shared_weights + 2 * state_rows * self.tile.k + 2 * self.tile.partials)

    def __str__(self):
        if self.family == "stepwise":
            return "stepwise: a cuBLAS product and one kernel a step"
        what = {"resident": "one block", "cluster": f"a cluster of {self.blocks} blocks",
                "grid": f"a group of {self.blocks} blocks"}[self.family]
        return f"{self.family}: {what} for {self.rows} row{'s' * (self.rows > 1)}, {self.groups} of them, {self.tile}"


def known_device(architecture, multiprocessors):
    """A Device with the limits of an architecture, for tests and for questions about a GPU that is not there."""
    return Device(f"sm_{architecture}", architecture, _SHARED[architecture], multiprocessors,
                  estimated_clusters(architecture, multiprocessors))


def estimated_clusters(compute_capability, multiprocessors):
    """`Device.clusters` of a GPU on which nobody has measured it, rather too few than too many.

    A cluster lives inside a GPC. Of those, an H100 or H200 with 132 multiprocessors has some of 16 and some of 18, and which ones
    differs from chip to chip: clusters of 2 fit everywhere, of larger ones what is left over in the GPCs may cost one or
    more. A part of a chip of at most 16 multiprocessors is taken for one GPC.
    """
    if compute_capability < 90:
        return ()
    lost = (0, 2, 1, 1) if multiprocessors > 16 else (0, 0, 0, 0)  # of 132: 66, 31, 15 and 7 remain
    return tuple(multiprocessors // size - less for size, less in zip((2, 4, 8, 16), lost))


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
                       for variant in [_variant(family, device, tile, blocks, B, H)] if variant is not None]
            if fitting:
                found += fitting
                continue
            reason = f"no tile for {H} hidden units fits {device.shared_memory // _KIB} KiB of shared memory a block" + (
                f" and {device.multiprocessors} multiprocessors" if family == "grid" else "")
        reasons[family] = reason
    # Vendor's product at half the chip's rate, and two launches.
    work = 2 * B * H * H / (device.lanes * device.multiprocessors)
    found.append(Variant("stepwise", cycles=_LATENCY["stepwise"] + work))
    return found, reasons


@functools.lru_cache(maxsize=1024)  # each launch asks, mostly for the same shape
def choose(device, dtype, B, H, family=None):
    """The variant with the fewest estimated cycles a step, of all families or of the one that is given.

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
    return min(found, key=lambda variant: variant.cycles)


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


def _tiles(family, architecture, H=None):
    """(tile, blocks that share rows or None) of a family, for one H or for every H."""
    if family == "resident":
        for k in [_up(H, 32)] if H else range(32, _LARGEST_RESIDENT + 1, 32):
            lane_columns = 4 if k <= 192 else 8
            yield from ((tile, 1) for tile in _with_rows(family, k, k, lane_columns, 1))
    elif family == "cluster" and architecture >= 90:
        for blocks in (2, 4, 8, 16):
            step = 128 if blocks < 16 else 256
            for k in [_up(H, step)] if H else range(step, _LARGEST_CLUSTER + 1, step):
                columns = k // blocks
                shape = _warps(k, columns)
                if shape:
                    yield from ((tile, blocks) for tile in _with_rows(family, k, columns, *shape))
    elif family == "grid":
        for k in [next(k for k in _GRID_K if k >= H)] if H else _GRID_K:
            for columns in (16, 32, 64):
                shape = _warps(k, columns)
                if shape:
                    yield from ((tile, None) for tile in _with_rows(family, k, columns, *shape))


def _warps(k, columns):
    """(columns a lane, warps along k) for at most 12 warps and 128 weights a lane, or 8 warps and 256; None if neither."""
    for lane_columns, most_warps, most_chunks in ((4, 12, 8), (8, 8, 8)):
        if columns % (4 * lane_columns):
            continue
        column_warps = columns // (4 * lane_columns)
        for k_warps in (8, 4, 3, 2, 1):  # the more warps, the fewer cycles are lost waiting
            if k % (32 * k_warps) == 0 and column_warps * k_warps <= most_warps and k // (32 * k_warps) <= most_chunks:
                return lane_columns, k_warps
    return None


def _with_rows(family, k, columns, lane_columns, k_warps):
    """The tile with every number of rows at a time that its registers leave room for."""
    chunks = k // (32 * k_warps)
    for rows in (1, 2, 4) if lane_columns == 4 else (1, 2):
        if family == "grid" and lane_columns == 4 and rows == 2:
            continue  # a tile of 4 costs hardly more
        # Measured with NVRTC 11.8, tests/test_cuda_compile.py: what does not spill. 12 warps have 168 registers a
        # thread, too few for 4 rows of sums beside 8 chunks.
        twelve_warps = columns // (4 * lane_columns) * k_warps > 8
        if lane_columns == 4:
            most = 6 if rows == 4 and twelve_warps else 8
        else:
            most = 6 if family == "resident" and rows == 1 else 5
        yield Tile(k, columns, lane_columns, k_warps, rows, max(0, chunks - most))


def _variant(family, device, tile, blocks, B, H):
    """The variant of a tile for a shape, or None where it does not fit the device."""
    if blocks is None:
        blocks = -(-H // tile.columns)
    most_groups = device.multiprocessors // blocks
    if most_groups < 1:
        return None
    rows = _up(-(-B // min(B, most_groups)), tile.rows)
    if family != "grid":  # not more rows than shared memory has room for; the rest waits for its turn
        room = device.shared_memory // 4 - tile.shared_weights - 2 * tile.partials
        rows = min(rows, room // (2 * tile.k) // tile.rows * tile.rows)
        if rows < 1:
            return None
    variant = Variant(family, tile, blocks, -(-B // rows), rows)
    if variant.shared > device.shared_memory or variant.groups > _MOST_GROUPS:
        return None
    turns = -(-variant.groups // most_groups)
    return variant._replace(cycles=turns * _cycles(family, tile, rows, device.lanes))


def _cycles(family, tile, rows, lanes):
    """Estimated cycles a step of one block: the busier of arithmetic and shared memory, and what is waited for."""
    arithmetic = tile.k * tile.columns * tile.rows / lanes
    # 128 bytes a cycle: 4 k's of a row's state a warp and chunk; weights 16 bytes a lane; partial sums in and out.
    warps = tile.threads // 32
    shared = warps * (tile.chunks * tile.rows + 16 * tile.in_shared * tile.lane_columns / 4) + tile.partials / 16
    if family == "grid":  # 64 bytes a cycle from L2
        shared = max(shared, tile.rows * tile.k / 16)
    return _LATENCY[family] + rows // tile.rows * (max(arithmetic, shared) + _PER_TILE)


def _up(number, step):
    return -(-number // step) * step
