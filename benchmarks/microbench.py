"""Each thing that a step of the recurrence waits for, alone, in cycles: microbench.cu compiled, run, as rows and as a table.

Most of it is unpublished: how long a store into another block's memory takes to be noticed there, and the barriers.
"""
import os
from typing import NamedTuple

from rnn_ops.backends.cuda import compiler
from rnn_ops.backends.cuda.selftest import checks

from .report import markdown_table

ROUNDS = 1024  # as in microbench.cu
TIMES = 5      # each is run; the fewest cycles count, the most are shown
OPTIONS = ("--std=c++17", "-ftz=true")  # those of the kernels
CLUSTERS = (2, 4, 8, 16)
# Name, description, threads a block, how many of them a round has.
_OF_CLUSTER = (
    ("send_4_one_lane", "st.async of 4 bytes by one lane → mbarrier wait, one way", 32, 2),
    ("send_16_one_lane", "st.async of 16 bytes by one lane → mbarrier wait, one way", 32, 2),
    ("send_4_warp", "st.async of 4 bytes by 32 lanes → mbarrier wait, one way", 32, 2),
    ("send_16_warp", "st.async of 16 bytes by 32 lanes → mbarrier wait, one way", 32, 2),
    ("exchange", "each sends 512 bytes to all and waits for all", 32, 1),
    ("barrier", "barrier.cluster", 128, 1),
    ("barrier_relaxed", "barrier.cluster, relaxed", 128, 1),
    ("barrier_stores", "barrier.cluster after stores to global memory", 128, 1),
    ("barrier_relaxed_stores", "barrier.cluster, relaxed, after stores to global memory", 128, 1))


class Measurement(NamedTuple):
    """A kernel of microbench.cu and how it is launched. A round does the counted thing ``of`` times."""
    kernel: str
    what: str
    blocks: int = 1
    threads: int = 1
    of: float = 1
    cluster: int = 1
    cooperative: bool = False


def measurements(device):
    """All that a device can run, as `Measurement`s."""
    found = [
        Measurement("shared_load_32", "load of 4 bytes from shared memory, latency"),
        Measurement("shared_load_128", "load of 16 bytes from shared memory, latency"),
        Measurement("shuffle", "shuffle, latency", threads=32),
        Measurement("tanh_chain", "tanhf, latency")]
    load = "load of 16 bytes a lane, 8 warps, cycles a warp: "
    found += [
        Measurement("load_rate_eight_apart", load + "8 addresses, the lanes of one 8 apart", threads=256, of=8),
        Measurement("load_rate_neighbours", load + "8 addresses, the lanes of one neighbours", threads=256, of=8),
        Measurement("load_rate_all_different", load + "32 addresses", threads=256, of=8)]
    found += [Measurement("block_barrier", f"__syncthreads of {warps} warps", threads=32 * warps) for warps in (4, 8, 12)]
    for blocks in CLUSTERS if device.compute_capability >= 90 else ():
        for name, what, threads, of in _OF_CLUSTER:
            found.append(Measurement(f"{name}_{blocks}", f"cluster of {blocks}: {what}", blocks, threads, of, blocks))
    return found + [Measurement("grid_barrier", f"barrier of {blocks} blocks through L2", blocks, 256, cooperative=True)
                    for blocks in dict.fromkeys((2, 16, device.multiprocessors))]


def text():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "microbench.cu"), encoding="utf-8") as file:
        return file.read()


def compiled(architecture, driver=None):
    """`compiler.Compiled` of microbench.cu."""
    return compiler.find(architecture, driver).compile(text(), OPTIONS, architecture)


def measure(gpu, cubin, show, rows=()):
    """Run all of them, from behind the ``rows`` that there are → a row for each; ``show`` gets the rows so far.

    A row that fails says why; GpuLost if the GPU no longer answers. A row is shown before it is tried, too: if that ends the
    process, the next process goes on behind it.
    """
    run, rows = gpu.program(cubin), list(rows)
    for one in measurements(gpu.device)[len(rows):]:
        row = {"kernel": one.kernel, "what": one.what, "threads": one.threads, "blocks": one.blocks}
        show(rows + [dict(row, reason="its process has ended, or hung until it was")])
        try:
            cycles = [run(one) for _ in range(TIMES)]
            if min(cycles) < 0:
                row["reason"] = "gave up waiting for another block" if one.blocks > 1 else "wrote no result"
            else:
                low, high = (value / (ROUNDS * one.of) for value in (min(cycles), max(cycles)))
                row.update(cycles=low, most=high)
        except Exception as error:
            row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            show(rows + [row])
            checks.see_alive(gpu, one.kernel, error)
        rows.append(row)
        show(rows)
    return rows


def markdown(rows):
    """A table's lines."""
    table = [["what", "cycles"]] + [[row["what"], f"{row['cycles']:,.1f} ({row['most']:,.1f})" if "cycles" in row else
                                     row["reason"].replace("|", "\\|")] for row in rows]
    return [f"**Alone, in cycles**: the fewest of {TIMES} runs of {ROUNDS:,} rounds (the most)", "", *markdown_table(table), ""]
