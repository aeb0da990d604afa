"""Every CUDA kernel that can be chosen, compiled for every architecture: the machine code keeps the promises of the design.

The promise of the resident, cluster and grid families is that a block's share of the matrix stays in registers and
shared memory. The compiler breaks it silently: if values do not fit into registers, it moves ("spills") them to local
memory, which is slow. So these tests read each kernel's figures.
"""
import concurrent.futures
import multiprocessing
import os

import pytest

from rnn_ops.backends.cuda import compiler, sources, variants

FAMILIES = variants.FAMILIES + ("sums",)
CASES = [(family, architecture) for family in FAMILIES for architecture in variants.ARCHITECTURES
         if family != "cluster" or architecture >= 90]
TILED = [(family, architecture) for family, architecture in CASES if family not in ("stepwise", "sums")]
REGISTERS = 65536  # of a multiprocessor


def kernels(family, architecture):
    """Threads a block by `sources.Kernel`, for all kernels of a family."""
    if family == "sums":
        return {sources.Kernel(family, name, (("REAL", real),)): threads
                for name, threads in (("rnn_sum_rows", 128), ("rnn_sum_chunks", 256)) for real in ("float", "double")}
    if family == "stepwise":
        return {sources.Kernel(family, f"rnn_stepwise_{direction.lower()}",
                               (("PASS", f"{direction}<{real}>"), ("REAL", real))): 256
                for direction in ("Forward", "Backward") for real in ("float", "double")}
    return {variants.Variant(family, tile, blocks, exchange=exchange).kernel(direction): tile.threads
            for tile, blocks in variants.tiles(family, architecture) for direction in ("Forward", "Backward")
            # The older exchange is compared with at the workload's H alone.
            for exchange in variants.EXCHANGES if exchange == "async" or family == "cluster" and tile.k == 256}


def out_of_bounds(figures, threads):
    """The faults of one kernel's figures, as words; empty if all is well."""
    found = []
    if figures.spill_stores or figures.spill_loads:
        found.append("spills")
    if figures.stack:
        found.append("uses local memory")
    if figures.static_shared:
        found.append("has static shared memory, which variants.py does not count")
    # Registers come in units of 8 a thread; a warp lives on one of 4 schedulers, each with a quarter of them.
    allocated = -(-figures.registers // 8) * 8 * 32 * (-(-threads // 128) * 4)
    if allocated > REGISTERS:
        found.append(f"needs {allocated} registers of {REGISTERS} for its {threads} threads")
    return found


@pytest.fixture(scope="module")
def workers():
    """Processes and not threads: NVRTC compiles one program at a time in a process."""
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("family, architecture", CASES)
@pytest.mark.slow
def test_kernels_stay_on_the_chip(workers, family, architecture):
    threads = kernels(family, architecture)
    jobs = {kernel: workers.submit(compiler.compiled, kernel, architecture) for kernel in threads}
    codes = {kernel: job.result() for kernel, job in jobs.items()}
    figures = {kernel: compiler.resources(code.log, kernel.name) for kernel, code in codes.items()}
    if architecture == 90:  # other tests read this machine code, now from the disk
        for kernel, code in codes.items():
            compiler._store(code.cubin, compiler._path(sources.text(family), compiler.options(kernel), 90, compiler.find(90)))
    assert len(figures) == len(threads) > 0 and max(threads.values()) <= 1024
    wrong = [f"sm_{architecture} {kernel} {', '.join(found)}: {figures[kernel]}"
             for kernel in threads for found in [out_of_bounds(figures[kernel], threads[kernel])] if found]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_readme_has_the_right_number_of_kernels():
    each = [kernel for case in CASES for kernel in kernels(*case)]
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "kernels", "README.md"), encoding="utf-8") as file:
        text = " ".join(file.read().split())
    assert f"The {len(set(each))} kernels that can be chosen are compiled" in text and f", {len(each)} times in all" in text


@pytest.mark.parametrize("family, architecture", TILED)
def test_the_largest_variant_fits_shared_memory(family, architecture):
    """Few multiprocessors and many rows, so that a block takes as many rows as it ever does."""
    limit = variants.known_device(architecture, 1).shared_memory
    shared = {}
    for tile, _ in variants.tiles(family, architecture):
        for multiprocessors in (16, 200):
            device = variants.known_device(architecture, multiprocessors)
            for variant in variants.candidates(device, "float32", 4096, tile.k)[0]:
                if variant.family == family:
                    shared[variant.tile] = max(shared.get(variant.tile, 0), variant.shared)
    wrong = [f"sm_{architecture} {family} {tile}: {size} bytes of {limit}"
             for tile, size in shared.items() if size > limit]
    assert shared and not wrong, "\n" + "\n".join(wrong)


def test_one_chunk_too_many_in_registers_is_noticed():
    """The check itself: the largest resident tile cannot have all of its weights in registers."""
    tile = variants.Tile(256, 256, 4, 1, 1, 0)
    kernel = variants.Variant("resident", tile).kernel("Forward")
    figures = compiler.resources(compiler.compiled(kernel, 80).log, kernel.name)
    assert "spills" in out_of_bounds(figures, tile.threads)


@pytest.mark.parametrize("figures, threads, words", [
    (compiler.Resources(168, 0, 0, 0, 0), 384, None), (compiler.Resources(169, 0, 0, 0, 0), 384, "needs 67584 registers"),
    (compiler.Resources(255, 0, 0, 0, 0), 224, None), (compiler.Resources(255, 0, 0, 0, 0), 288, "registers of 65536"),
    (compiler.Resources(40, 8, 0, 0, 0), 32, "local memory"), (compiler.Resources(40, 0, 0, 4, 0), 32, "spills"),
    (compiler.Resources(40, 0, 4, 0, 0), 32, "spills"), (compiler.Resources(40, 0, 0, 0, 16), 32, "static shared memory")])
def test_each_bound_is_checked(figures, threads, words):
    found = out_of_bounds(figures, threads)
    assert (not found) if words is None else (len(found) == 1 and words in found[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_a_family_is_complete(family):
    text = sources.text(family)
    assert "#include" not in text and "#pragma once" not in text
    compiler.compiled(next(iter(kernels(family, 90))), 90)  # with no folder to include from


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_header_makes_a_new_text(family):
    with open(os.path.join(sources.folder(), "cuda", "primitives.cuh"), encoding="utf-8") as file:
        header = file.read()
    marked = sources.text(family, {"primitives.cuh": header + "// a new version\n"})
    assert "// a new version" in marked and marked != sources.text(family)
    passes = sources.text(family, {"passes.cuh": "struct Forward {};\n"})
    assert (passes == sources.text(family)) == (family == "sums")
