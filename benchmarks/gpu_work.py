"""The work of each part of a run on a GPU, in a process of its own that gpu_run.py starts.

A part writes its results to the folder as it goes on; its output is its log. Its exit status says how it ended.
"""
import contextlib
import ctypes
import hashlib
import importlib
import os
import signal
import sys
import time

import numpy as np

from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import launcher, sources, variants
from rnn_ops.backends.cuda.selftest import checks, sanitizer

from . import gpu_measure, gpu_providers, gpu_report, launches
from .folder import RESULTS, SHAPES, name_of
from .gpu_parts import SIZES
from .worker import FAILED

DONE, FOUND, LEFT_OUT, LOST, CUT = 0, 11, 12, 13, 14  # exit statuses; 1 is an exception that nobody expected
_TIMED = ("tutorial", "quick", "grid", "variants")
_OF_FAMILIES = _TIMED + ("check", "repeats", "training", "sanitizer")
_ARGUMENTS = "its arguments and truth"  # tried first at a shape
_DIE_WITH_PARENT = 1  # prctl(PR_SET_PDEATHSIG)


class LeftOut(Exception):
    """A sentence: why a part cannot be done here."""


def gpu():
    """The `cupy_gpu.Gpu` of the first GPU."""
    reason = cuda.why_not()
    if reason:
        raise LeftOut(reason)
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    return Gpu()


class Work:
    """The parts share this: the folder, the GPU, the sizes and the time."""

    def __init__(self, part, folder, gpu, sizes, seconds, among, without=(), providers=()):
        self.part, self.folder, self.gpu, self.sizes = part, folder, gpu, SIZES[sizes]
        self.among, self.without = among, without  # families, and those whose first check has ended its process
        self.providers = providers  # beside ours and the peers
        self.device = gpu.device
        self._end = time.monotonic() + seconds

    def left(self):
        return self._end - time.monotonic()

    def keep(self, found):
        self.folder.write(RESULTS, self.part, found)


def main(part, folder, gpu, sizes, seconds, without, providers=()):
    """Do a part → exit status."""
    with contextlib.suppress(OSError, AttributeError):  # if the parent is killed nothing else would end this
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    module, name = gpu.split(":")
    if part == "mxnet":  # before CuPy, as in a user's program
        with contextlib.suppress(ImportError):  # the part says so
            importlib.import_module("rnn_ops._mxnet")
    if part in _TIMED:
        # Before CuPy loads its CUDA libraries: PyTorch brings others, of the same names.
        with contextlib.suppress(ImportError, OSError):  # told again where it is to be timed
            importlib.import_module("torch")
    try:
        the_gpu = getattr(importlib.import_module(module), name)()
        if set(variants.FAMILIES) <= set(without) and part in _OF_FAMILIES:
            raise LeftOut("every family's first check has ended its process")
        with the_gpu.current():
            among = [family for family in checks.EVERY if family not in without]
            work = Work(part, folder, the_gpu, sizes, seconds, among, without, providers)
            return _PARTS[part.split("-")[0]](work)
    except LeftOut as sentence:
        print(sentence, file=sys.stderr)
        return LEFT_OUT
    except checks.GpuLost as lost:
        print(f"The GPU no longer answers: {lost}", file=sys.stderr)
        return LOST


# --- the parts

def _alive(work):
    """See that the GPU answers."""
    checks.see_alive(work.gpu, "the GPU", RuntimeError("it was asked whether it answers"))
    return DONE


def _device(work):
    from rnn_ops import __version__

    from .environment import describe
    work.keep({"date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()), "gpu": work.gpu.describe(),
               "environment": describe(), "rnn_ops": __version__, "kernels": _digest()})
    return DONE


def _digest():
    """Of all that decides the launches: results of other kernels do not belong into the same folder."""
    texts = [sources.text(family) for family in (*variants.FAMILIES, "sums")]
    for module in (variants, launcher):
        with open(module.__file__, encoding="utf-8") as file:
            texts.append(file.read())
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def planned(device, sizes):
    """All calls that a run makes, as (shape, dtype, tokens, variant), each once."""
    found = []
    for plan in (sizes.first, dict(sizes.first, among=(checks.BARRIER,)), sizes.check, sizes.repeats, checks.TINY):
        for task in checks.plan(device, **plan):
            found += [(task.shape, task.dtype, task.tokens, variant) for variant in task.variants]
    for shape in [sizes.tutorial, *sizes.quick, *sizes.grid]:
        chosen = gpu_measure.timed_variants(device, shape)
        found += [(shape[:4], checks.FLOAT32, True, variant) for variant in chosen]
        found.append((shape[:4], checks.FLOAT32, False, chosen[0]))
    for shape in sizes.quick:
        found += [(shape[:4], checks.FLOAT32, True, variant) for variant in gpu_measure.timed_variants(device, shape, True)]
    return list(dict.fromkeys(found))


def planned_items(device, sizes):
    """The recorded items that those calls put into a stream, each launch of a kernel with the same sizes once."""
    found = {}
    for shape, dtype, tokens, variant in planned(device, sizes):
        T, *rest = shape
        for item in launches.record(device, (min(T, 3), *rest), dtype, tokens, variant):  # from the third on steps are alike
            if hasattr(item, "launch"):
                found.setdefault(item.launch, item)
    return list(found.values())


def _compile(work):
    from rnn_ops.backends.cuda import compiler
    kernels = launches.kernels(planned_items(work.device, work.sizes))
    started = time.monotonic()
    results = compiler.compile_all(kernels, work.device.compute_capability, work.gpu.cuda_driver)
    failed = [f"{kernel}: {' '.join(str(result).split())[:300]}" for kernel, result in results.items()
              if isinstance(result, Exception)]
    work.keep({"kernels": len(kernels), "seconds": time.monotonic() - started, "folder": compiler.folder(),
               "failed": failed})
    return FOUND if failed else DONE


def _first(work):
    family = work.part.split("-", 1)[1]
    return _checked(work, dict(work.sizes.first, among=(family,)))


def _check(work):
    return _checked(work, dict(work.sizes.check, among=work.among))


def _repeats(work):
    return _checked(work, dict(work.sizes.repeats, among=work.among))


def _checked(work, plan):
    """The tasks of a plan, from where an earlier process was cut off. A task that has ended its process is a finding."""
    tasks = checks.plan(work.device, **plan)
    found = work.folder.read(RESULTS, work.part) or {
        "tasks": len(tasks), "done": [], "now": None, "count": 0, "failed": [], "families": {}}
    if found["now"]:
        found["failed"].append(f"{found['now']}: its process has ended, or hung until it was")
        found["done"].append(found["now"])
    for task in tasks:
        if task.name in found["done"]:
            continue
        if work.left() < 0:
            found["now"] = None
            work.keep(found)
            return CUT
        found["now"] = task.name
        work.keep(found)
        print(f"[{len(found['done']) + 1}/{len(tasks)}] {task.name}", flush=True)
        try:
            results = checks.run(work.gpu, [task])
        except checks.GpuLost as lost:
            _count(found, lost.results)
            found["done"].append(found["now"])
            found["now"] = None
            work.keep(found)
            raise
        _count(found, results)
        found["done"].append(task.name)
        found["now"] = None
    work.keep(found)
    print(f"{found['count']:,} checks, {len(found['failed'])} failed")
    return FOUND if found["failed"] else DONE


def _count(found, results):
    """Add results to those that a check has found."""
    for result in results:
        found["count"] += 1
        its = found["families"].setdefault(result.family, {"count": 0, "right": 0, "share": 0, "nearest": ""})
        its["count"] += 1
        its["right"] += bool(result.passed)
        if not result.passed:
            found["failed"].append(str(result))
            print(f"FAILED  {result}", flush=True)
        share = result.error / result.bound if result.bound else 0
        if its["share"] < share < np.inf:
            its.update(share=float(share), nearest=f"{result.case}: {result.what}")


def _tutorial(work):
    return _timed(work, [work.sizes.tutorial])


def _quick(work):
    return _timed(work, work.sizes.quick)


def _grid(work):
    return _timed(work, work.sizes.grid)


def _timed(work, shapes):
    """The shapes that are not timed yet."""
    failed, facts = [], ""

    def keep(done):
        work.keep({"shapes": done, "of": len(shapes), "failed": failed, "facts": facts})

    for done, shape in enumerate(shapes):
        keep(done)
        number = work.sizes.grid.index(shape)
        found = work.folder.read(SHAPES, name_of(shape)) or {
            "number": number, "rows": [], "failed": [], "tried": [], "now": None}
        # A variant that hangs at the tutorial's shape costs that part its tries, not these; the best are timed.
        enough = work.part != "tutorial" and shape == work.sizes.tutorial and found["rows"]
        if "tried" in found and not enough:
            if work.left() < 0:
                return CUT
            print(shape.sizes, flush=True)
            try:
                over = not _shape(work, shape, found)
            finally:
                failed += found["failed"]
                facts = gpu_report.timed_headline(found["rows"], shape)
                keep(done)
            if over:
                return CUT
            work.gpu.free()
        else:
            failed += found["failed"]
    keep(len(shapes))
    return FOUND if failed else DONE


def _shape(work, shape, found):
    """Time a shape, from behind a provider that has ended an earlier process; ``found`` is its file → whether the time was
    enough."""
    def keep(now):
        found["now"] = now
        work.folder.write(SHAPES, name_of(shape), found)

    def fail(line):
        print(f"FAILED  {line}", flush=True)
        found["failed"].append(line)

    if found["now"]:
        fail(f"{shape.sizes}, {found['now']}: its process has ended, or hung until it was")
        found["tried"].append(found["now"])
    if _ARGUMENTS not in found["tried"]:
        keep(_ARGUMENTS)
        try:
            for names, rows in gpu_measure.stages(work.gpu, shape, work.sizes.rounds, among=work.among,
                                                  without=found["tried"], more=work.providers):
                if rows is None:
                    keep(names[0])
                    continue
                for row in rows:
                    if row["status"] == FAILED and row["provider"] == gpu_providers.OURS:
                        fail(f"{shape.sizes}, {row['variant']}, {row['input']}: {row['reason']}")
                found["rows"] += rows
                found["tried"] += names
                keep(None)
                if work.left() < 0:
                    return False
        except checks.GpuLost as lost:
            fail(str(lost))
            found["tried"].append(found["now"])
            keep(None)
            raise
        except Exception as error:  # such as too little memory for this shape
            fail(f"{shape.sizes}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            checks.see_alive(work.gpu, shape.sizes, error)
    del found["tried"], found["now"]
    work.folder.write(SHAPES, name_of(shape), found)
    return True


def _variants(work):
    """Every variant at the quick shapes: the chooser's numbers are to be fitted to these."""
    found = work.folder.read(RESULTS, work.part) or {"shapes": [], "rows": [], "failed": []}
    for shape in work.sizes.quick:
        if shape.sizes in found["shapes"]:
            continue
        if work.left() < 0:
            return CUT
        found["shapes"].append(shape.sizes)
        work.keep(found)  # whatever happens, the next process begins behind it
        rows = gpu_measure.measure(work.gpu, shape, rounds=gpu_measure.FEWEST_ROUNDS, all_variants=True, among=work.among,
                                   alone=True)
        found["rows"] += rows
        found["failed"] += [f"{shape.sizes}, {row['variant']}: {row['reason']}" for row in rows if row["status"] == FAILED]
        work.keep(found)
        work.gpu.free()
    return FOUND if found["failed"] else DONE


def _microbench(work):
    from . import microbench
    cubin = microbench.compiled(work.device.compute_capability, work.gpu.cuda_driver).cubin
    found = {"rows": [], "failed": []}

    def keep(rows):
        found.update(rows=rows, failed=[f"{row['kernel']}: {row['reason']}" for row in rows if "reason" in row])
        work.keep(found)

    before = work.folder.read(RESULTS, work.part) or found
    keep(microbench.measure(work.gpu, cubin, keep, before["rows"]))
    return FOUND if found["failed"] else DONE


def _occupancy(work):
    """Of each kernel with the largest shared memory that it is launched with."""
    largest = {}
    for item in planned_items(work.device, work.sizes):
        launch = item.launch
        if launch.kernel not in largest or largest[launch.kernel].shared < launch.shared:
            largest[launch.kernel] = launch
    found = {"rows": [], "failed": []}
    for kernel, launch in largest.items():
        try:
            blocks, clusters = work.gpu.occupancy(launch)
        except Exception as error:
            found["failed"].append(f"{kernel}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            checks.see_alive(work.gpu, str(kernel), error)
            continue
        found["rows"].append({
            "kernel": str(kernel), "family": kernel.family, "threads": launch.block, "shared": launch.shared,
            "cluster": launch.cluster, "blocks": blocks, "clusters": clusters})
    work.keep(found)
    return FOUND if found["failed"] else DONE


def _training(work):
    try:
        from rnn_ops_timemachine import text
    except ImportError as error:
        raise LeftOut(f"{error}: install rnn_ops or, in a clone, set PYTHONPATH=python") from error
    from . import gpu_training

    def show(number, loss):
        print(f"epoch {number:,}: loss {loss:.4f}", flush=True)
        work.keep({"failed": [], "so_far": {"epochs": number, "loss": loss}})

    try:
        book = text.load("timemachine")
        book = book._replace(characters=book.characters[:work.sizes.characters])
        found = gpu_training.measure(work.gpu, book, work.sizes.epochs, show, **work.sizes.model, among=work.among)
    except checks.GpuLost as lost:
        work.keep({"failed": [str(lost)]})
        raise
    except Exception as error:
        found = {"failed": [f"{type(error).__name__}: {' '.join(str(error).split())}"]}
        work.keep(found)
        checks.see_alive(work.gpu, "training", error)
    work.keep(found)
    return FOUND if found["failed"] else DONE


def _sanitizer(work):
    if sanitizer.find() is None:
        raise LeftOut("compute-sanitizer is not on the PATH: it comes with the CUDA toolkit")
    without = [word for family in work.without for word in ("--without", family)]
    found = sanitizer.run(print, work.left, work.keep, without)
    return FOUND if any(what != sanitizer.CLEAN for what in found.values()) else DONE


def _mxnet(work):
    """Each provider once, whatever it does to the process: the next process goes on behind it."""
    try:
        from rnn_ops.operators import selftest
    except ImportError as error:
        raise LeftOut(f"{error}") from error
    reason = selftest.why_not()
    if reason:
        raise LeftOut(reason)
    from . import gpu_mxnet
    found = work.folder.read(RESULTS, work.part) or {"tried": [], "rows": [], "failed": []}
    target = selftest.gpu()
    for name in gpu_mxnet.PROVIDERS:
        if name in found["tried"]:
            continue
        found["tried"].append(name)
        found["failed"].append(f"{name}: its process has ended, or hung until it was")
        work.keep(found)
        rows = gpu_mxnet.measure(target, name)
        found["rows"] += rows
        found["failed"][-1:] = [f"{name}: {row['reason']}" for row in rows if row["status"] == FAILED]
        work.keep(found)
    return FOUND if found["failed"] else DONE


def _jax(work):
    """jax.lax.scan by the clock on the wall, since its stream is its own; in a process of its own, as JAX takes a part of the
    GPU's memory for itself."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX is imported
    try:
        from . import jax_scan
        rows = jax_scan.measure_on_gpu(work.sizes.tutorial)
    except ImportError as error:
        raise LeftOut(f"{error}") from error
    failed = [row["reason"] for row in rows if row["status"] == FAILED]
    work.keep({"rows": rows, "failed": failed})
    return FOUND if failed else DONE


_PARTS = {"alive": _alive, "device": _device, "compile": _compile, "first": _first, "tutorial": _tutorial,
          "microbench": _microbench, "occupancy": _occupancy, "quick": _quick, "training": _training, "check": _check,
          "grid": _grid, "repeats": _repeats, "mxnet": _mxnet, "jax": _jax, "sanitizer": _sanitizer,
          "variants": _variants}
