"""``--rehearse``: all that a run on a GPU does, up to the launches, on a machine that need not have one.

Anything that fails here would have failed there, where minutes are few. Prints a line for each thing: ok, FAILED or left
out, and seconds.
"""
import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from rnn_ops import exactness
from rnn_ops.backends.cuda import compiler, variants
from rnn_ops.backends.cuda.numpy_gpu import NumPyGpu
from rnn_ops.backends.cuda.selftest import checks

from . import gpu_floor, gpu_parts, gpu_report, gpu_work, heatmap, launches, microbench, report
from .folder import FAILED, PARTS, RESULTS, Folder
from .gpu_providers import OURS, TORCH
from .machine_code import paths, sass
from .machine_code import report as machine_code
from .problems import BOTH, FORWARD, GPU_DIRECTIONS, STEPS, TUTORIAL, gpu_shapes

MULTIPROCESSORS = {70: 80, 75: 40, 80: 108, 86: 84, 89: 142, 90: 132}  # of V100, T4, A100, A40, L40 and H100
_OWN_PROCESS = ("gpu_mxnet", "jax_scan")  # modules of parts that import a library of their own


class LeftOut(Exception):
    """Why a thing cannot be rehearsed here."""


def main(architecture):
    """Rehearse a run on a GPU of an architecture → 0, or 1 where something is off."""
    device = variants.known_device(architecture, MULTIPROCESSORS[architecture])
    things = [
        ("imports", _imports), ("contract with CuPy", _contract),
        ("plan: shapes, variants, launches", lambda: _plan(device)), ("inputs and truths", _truths),
        ("kernels compiled", lambda: _kernels(device)), ("micro-benchmarks compiled", lambda: _microbench(architecture)),
        ("machine code", lambda: _machine_code(device)), ("tables and chart", _tables),
        ("a small run, NumPy for the GPU", _small_run), ("no MXNet", _no_mxnet)]
    status = 0
    print(f"A run on sm_{architecture}, {device.multiprocessors} multiprocessors, without the launches:")
    for name, thing in things:
        began = time.monotonic()
        try:
            how, detail = "ok", thing()
        except LeftOut as why:
            how, detail = "left out", str(why)
        except Exception as error:
            how, detail, status = "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}", 1
        print(f"{name:<34}{how:<9}{time.monotonic() - began:>6.1f} s  {detail}", flush=True)
    print("Something is off." if status else "All is as a run needs it.")
    return status


def _imports():
    folder, = importlib.import_module(__package__).__path__
    names = [name for name in (module.name for module in pkgutil.iter_modules([folder]))
             if name.startswith("gpu_") and name not in _OWN_PROCESS]
    names = [f"{__package__}.{name}" for name in (*names, "folder", "contract")]
    if importlib.util.find_spec("cupy"):
        names.append("rnn_ops.backends.cuda.cupy_gpu")
    for name in names:
        importlib.import_module(name)
    return f"{len(names)} modules" + ("" if "cupy" in names[-1] else "; not cupy_gpu, which needs CuPy")


def _contract():
    if importlib.util.find_spec("cupy") is None:
        raise LeftOut("CuPy is not installed")
    import cupy

    from . import contract
    found = contract.faults()
    if found:
        raise ValueError("; ".join(found))
    return f"CuPy {cupy.__version__}"


def _plan(device):
    items = gpu_work.planned_items(device, gpu_parts.SIZES["full"])
    found = launches.faults(device, items)
    if found:
        raise ValueError("; ".join(found))
    calls = gpu_work.planned(device, gpu_parts.SIZES["full"])
    return (f"{len(gpu_parts.parts(device.architecture))} parts, {len(calls):,} calls, {len(items):,} launches, "
            f"{len(launches.kernels(items))} kernels")


def _truths():
    gpu = NumPyGpu()
    for tokens in (True, False):
        problem = exactness.draw(*TUTORIAL[:4], tokens=tokens)
        truth = checks.evaluate_on(gpu, problem.astype(np.float64))
        if not all(np.isfinite(array).all() for array in truth.values()):
            raise ValueError("a truth is not finite")
        bounds = exactness.bounds(problem, truth)
    return f"float32 may be off by {min(bounds.values()):.0e} to {max(bounds.values()):.0e}"


def _kernels(device):
    kernels = launches.kernels(gpu_work.planned_items(device, gpu_parts.SIZES["full"]))
    results = compiler.compile_all(kernels, device.architecture)
    failed = [f"{kernel}: {result}" for kernel, result in results.items() if isinstance(result, Exception)]
    if failed:
        raise ValueError("; ".join(failed))
    return f"{len(kernels)} by {compiler.find(device.architecture)} in {compiler.folder()}"


def _microbench(architecture):
    code = microbench.compiled(architecture)
    device = variants.known_device(architecture, MULTIPROCESSORS[architecture])
    missing = [one.kernel for one in microbench.measurements(device) if f"'{one.kernel}'" not in code.log]
    if missing:
        raise ValueError(f"not in microbench.cu: {', '.join(missing)}")
    return f"{len(microbench.measurements(device))} measurements"


def _machine_code(device):
    """The gates of every tiled kernel's loop, and the prediction at the tutorial's shape."""
    try:
        sass.nvdisasm()
    except RuntimeError as error:
        raise LeftOut(str(error)) from error
    tiled = {variant for *_, variant in gpu_work.planned(device, gpu_parts.SIZES["full"]) if variant.tile}
    kernels = list(dict.fromkeys(variant.kernel(direction) for variant in tiled for direction in ("Forward", "Backward")))
    codes = {kernel: _code(path) for kernel, path in compiler.compile_all(kernels, device.architecture).items()}
    found = [f"{kernel}: {sentence}" for kernel, (function,) in zip(kernels, sass.disassemble(list(codes.values())))
             for sentence in paths.Loop(function).gates()]
    if found:
        raise ValueError(f"{len(found)} sentences: {'; '.join(found)}")
    chosen = variants.choose(device, np.float32, TUTORIAL.B, TUTORIAL.H)
    arguments = machine_code.arguments_of(chosen.tile, tiles=chosen.rows // chosen.tile.rows)
    cycles = [round(machine_code.report(codes[chosen.kernel(direction)], **arguments).prediction.cycles)
              for direction in ("Forward", "Backward")]
    return (f"{len(kernels)} loops; tutorial's shape, {chosen.family}: {cycles[0]:,} cycles a step forward, "
            f"{cycles[1]:,} backward")


def _code(path):
    if isinstance(path, Exception):
        raise path
    with open(path, "rb") as file:
        return file.read()


def _tables():
    result = made_up()
    text = gpu_report.markdown(json.loads(json.dumps(result)))
    for title in ("forward, µs a step", "every provider", "is faster", "Chosen family", "Every variant"):
        if title not in text:
            raise ValueError(f"no table {title!r}")
    if importlib.util.find_spec("matplotlib") is None:
        return f"{len(text.splitlines())} lines; no chart: matplotlib is not installed"
    with tempfile.TemporaryDirectory() as folder:
        heatmap.draw_gpu(result, os.path.join(folder, "chart.png"))
        return f"{len(text.splitlines())} lines, {os.path.getsize(os.path.join(folder, 'chart.png')):,} bytes of PNG"


def _small_run():
    """The whole way: parent, a process a part, files, report."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        process = subprocess.run(
            [sys.executable, "-m", __package__, "--device", "cuda", "--out", out, "--sizes", "small", "--gpu",
             f"{NumPyGpu.__module__}:{NumPyGpu.__name__}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=600)
        if process.returncode:
            raise ValueError(_reasons(Folder(out)) or process.stdout[-1000:])
        with open(os.path.join(out, "result.json"), encoding="utf-8") as file:
            result = json.load(file)
        ended = [its["status"] for its in result["parts"].values()]
        return f"{ended.count('done')} of {len(ended)} parts done, {len(process.stdout):,} characters printed"


def _reasons(out):
    """Which parts of a run have failed and why, as a sentence; "" if no part has."""
    failed = {}
    for name in out.names(PARTS):
        record = out.read(PARTS, name)
        if record["status"] == FAILED:
            found = out.read(RESULTS, name) or {}
            failed[name] = record["reason"] or next(iter(found.get("failed", ())), "no reason given")
    reasons = dict.fromkeys(reason[:300] for reason in failed.values())  # several parts may fail for one reason
    return f"parts {', '.join(failed)} failed: {'; '.join(reasons)}" if failed else ""


def _no_mxnet():
    if "mxnet" in sys.modules:
        raise ValueError("mxnet was imported on the way")
    return ""


def made_up(torch=True):
    """A result by formulas: ours 64 steps of 0.5 µs · (0.3 + H / 256)(1 + B / 100), thrice that both ways; cuDNN more."""
    rows = []
    for shape in gpu_shapes():
        seconds = shape.T * 5e-7 * (0.3 + shape.H / 256) * (1 + shape.B / 100)
        for direction, factor in zip(GPU_DIRECTIONS, (1, 1.2, 2, 3)):
            chosen = "resident" if shape.H < 256 else "cluster" if shape.H <= 1024 else "grid"
            for family, slower in (("resident", 1.3), ("cluster", 1.1), ("grid", 2), ("stepwise", 9)):
                slower = 1 if family == chosen else slower
                if family == "resident" and shape.H == 128 and shape.B == 64:
                    slower = 1.4  # the chooser is wrong here
                if (family, shape.H <= 256) != ("resident", False) and (family, shape.H <= 1024) != ("cluster", False):
                    rows.append(made_up_row(shape, direction, factor * slower * seconds, family=family, chosen=family == chosen))
            if shape == TUTORIAL:  # the older exchange, which is not predicted
                rows.append(made_up_row(shape, direction, 1.2 * factor * seconds, variant="cluster, cluster barriers: Tile<256>"))
                del rows[-1]["predicted_cycles"], rows[-1]["predicted_backward_cycles"]
            rows.append(made_up_row(shape, direction, 1.1 * factor * seconds, family=chosen, chosen=True, input="one-hot"))
            if torch and direction != STEPS:
                rows.append(made_up_row(shape, direction, factor * 5 * seconds / (1 + min(shape.H, 1024) / 512), TORCH, "cuDNN",
                                        "torch 2.5.1, cuDNN 90100", input="one-hot"))
        if not torch:
            rows.append({"stage": shape.sizes, "shape": list(shape[:4]), "provider": TORCH, "family": "cuDNN", "variant": "",
                         "chosen": False, "input": "one-hot", "direction": None, "status": "not installed",
                         "reason": "No module named 'torch'"})
    gpu = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": 9.0, "multiprocessors": 132, "memory": 85 * 10 ** 9,
           "shared_memory_per_block": 232448, "shared_memory_per_multiprocessor": 233472, "l2_cache": 52428800,
           "clock_khz": 1980000, "measured_clock_khz": 1950000, "memory_clock_khz": 2619000, "driver": "550.54.15",
           "cuda_driver": "12.4", "cuda_runtime": "11.8", "cupy": "13.6.0", "truths": "CuPy", "devices": 1}
    environment = {"commit": None, "versions": {}, "settings": {}}
    here = [row for row in rows if row["shape"] == list(TUTORIAL[:4]) and row["provider"] == OURS and row["input"] == "tokens"]
    return {"format": report.FORMAT, "kind": report.GPU, "date": "2026-01-02T03:04:05", "complete": True, "gpu": gpu,
            "environment": environment, "rnn_ops": "0.1.0", "parts": {}, "checks": {}, "rows": rows, "jax": None, "mxnet": None,
            "microbench": None, "occupancy": None, "variants": {"rows": here}, "training": None, "sanitizer": None}


def made_up_row(shape, direction, seconds, provider=OURS, family="cluster", variant=None, chosen=False, input="tokens"):
    """A row of gpu_measure.py."""
    device = variants.known_device(90, 132)
    wall = shape == TUTORIAL and direction in (FORWARD, BOTH)
    return {"stage": shape.sizes, "shape": list(shape[:4]), "provider": provider, "family": family,
            "variant": variant or f"{family}: Tile<{shape.H}>", "chosen": chosen, "input": input, "sets": 8, "set_bytes": 10 ** 6,
            "direction": direction, "status": "ok", "error": 1e-7, "calls": 100, "best": 0.9 * seconds, "p20": 0.95 * seconds,
            "median": seconds, "p80": 1.1 * seconds, "turns": [seconds] * 25, "turns_with_host_time": 0, "launched": "one by one",
            "seconds_per_step": seconds / shape.T, "clock": 1e9, "cycles_per_step": 1e9 * seconds / shape.T,
            "floor_cycles": gpu_floor.cycles(device, shape, direction),
            **({"predicted_cycles": 608.0, "predicted_backward_cycles": 608.0} if provider == OURS else {}),
            **({"wall": 1.5 * seconds, "wall_waited": seconds + 2e-5} if wall else {})}
