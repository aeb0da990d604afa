"""What a step of the recurrence waits for, each thing alone, in cycles: microbench.cu compiled, run, as rows and as a table.

Nobody has published most of it: how long a store into another block's memory takes to be noticed there, and the barriers.
"""
import os
from typing import NamedTuple

from rnn_ops.backends.cuda import compiler

from . import checks

ROUNDS = 1024  # as in microbench.cu
TIMES = 5      # each is run; the fewest cycles count, the most are told
OPTIONS = ("--std=c++17", "-ftz=true")  # those of the kernels
CLUSTERS = (2, 4, 8, 16)


class Measurement(NamedTuple):
    """A kernel of microbench.cu and how it is launched. A round has ``of`` of what is counted."""
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
    for layout, where in (("eight_apart", "those of one address 8 lanes apart"), ("neighbours", "those of one address neighbours"),
                          ("all_different", "32 addresses")):
        found.append(Measurement(f"load_rate_{layout}", f"load of 16 bytes a lane, 8 warps, cycles a warp: {where}", threads=256,
                                 of=8))
    found += [Measurement("block_barrier", f"__syncthreads of {warps} warps", threads=32 * warps) for warps in (4, 8, 12)]
    for blocks in CLUSTERS if device.compute_capability >= 90 else ():
        for bytes_, lanes, name in ((4, "one lane", "send_4_one_lane"), (16, "one lane", "send_16_one_lane"),
                                    (4, "32 lanes", "send_4_warp"), (16, "32 lanes", "send_16_warp")):
            found.append(Measurement(f"{name}_{blocks}", f"cluster of {blocks}: st.async of {bytes_} bytes by {lanes} → mbarrier "
                                     "wait, one way", blocks, 32, 2, blocks))
        found.append(Measurement(f"exchange_{blocks}", f"cluster of {blocks}: all send 512 bytes to all and wait", blocks, 32, 1,
                                 blocks))
        for name, how in (("barrier", "barrier.cluster"), ("barrier_relaxed", "barrier.cluster, relaxed"),
                          ("barrier_stores", "barrier.cluster after stores to global memory"),
                          ("barrier_relaxed_stores", "barrier.cluster, relaxed, after stores to global memory")):
            found.append(Measurement(f"{name}_{blocks}", f"cluster of {blocks}: {how}", blocks, 128, 1, blocks))
    return found + [Measurement("grid_barrier", f"barrier of {blocks} blocks through L2", blocks, 256, cooperative=True)
                    for blocks in dict.fromkeys((2, 16, device.multiprocessors))]


def text():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "microbench.cu"), encoding="utf-8") as file:
        return file.read()


def compiled(architecture, driver=None):
    """`compiler.Compiled` of microbench.cu."""
    return compiler.find(architecture, driver).compile(text(), OPTIONS, architecture)


def measure(machine, cubin, show):
    """Run all of them → a row for each; ``show`` gets the rows so far. What fails says why; Lost where the machine answers no
    more."""
    run, rows = machine.program(cubin), []
    for one in measurements(machine.device):
        row = {"kernel": one.kernel, "what": one.what, "threads": one.threads, "blocks": one.blocks}
        try:
            cycles = [run(one) for _ in range(TIMES)]
            if min(cycles) < 0:
                row["reason"] = "gave up waiting for another block"
            else:
                low, high = (value / (ROUNDS * one.of) for value in (min(cycles), max(cycles)))
                row.update(cycles=low, most=high)
        except Exception as error:
            row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            show(rows + [row])
            checks.see_alive(machine, one.kernel, error)
        rows.append(row)
        show(rows)
    return rows


def markdown(rows):
    """A table's lines."""
    lines = [f"**Alone, in cycles**: the fewest of {TIMES} runs of {ROUNDS:,} rounds (the most)", "", "| what | cycles |",
             "| :-- | --: |"]
    for row in rows:
        value = f"{row['cycles']:,.1f} ({row['most']:,.1f})" if "cycles" in row else row["reason"].replace("|", "\\|")
        lines.append(f"| {row['what']} | {value} |")
    return lines + [""]
