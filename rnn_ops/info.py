"""The facts that ``rnn-ops info`` prints: versions, devices, kernels and the settings that choose them."""
import importlib.metadata
import os
import platform
from typing import Dict, List

import numpy

import rnn_ops
from rnn_ops import _mxnet_import, folders
from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import compiler, variants

_SETTINGS = ("RNN_OPS_NUM_THREADS", "OMP_NUM_THREADS", "RNN_OPS_SIMD", "RNN_OPS_OPERATOR", "RNN_OPS_DATA", "RNN_OPS_CACHE",
             "RNN_OPS_JOIN_TIMEOUT")


def collect(batch_size: int = 32, hidden_size: int = 256) -> Dict[str, str]:
    """Facts by name. The shape is the one that kernels are chosen for."""
    try:
        from rnn_ops._mxnet import mx
        mxnet = mx.__version__ + (", built for CUDA" if mx.runtime.Features().is_enabled("CUDA") else ", built for CPUs")
    except ImportError as error:
        mxnet = f"none: {error}"
    facts = {
        "rnn_ops": rnn_ops.__version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": numpy.__version__,
        "MXNet": mxnet,
        "PyTorch": _pytorch(),
        "operator": _operator(),
        "CPU": f"{cpu_name()}, {os.cpu_count()} processors",
        "CPU kernels": _cpu_kernels(),
        f"CPU, B={batch_size}, H={hidden_size}": _split(batch_size, hidden_size),
    }
    found = ", ".join(map(str, compiler.found())) or "none"
    kept = "not kept" if _wrong_cache() else f"kept in {compiler.folder()}"
    facts["CUDA compilers"] = f"{found}; machine code is {kept}"
    reason = cuda.why_not()
    if reason:
        facts["GPU kernels"] = f"none: {reason}"
    else:
        facts["GPU kernels"] = f"compiled on first use, run by {cuda.platform().versions()}"
        for number, device in enumerate(cuda.devices()):
            facts[f"GPU {number}"] = _device(device)
            if device.clusters:
                facts[f"GPU {number}, clusters"] = ", ".join(
                    f"{count} of {size}" for count, size in zip(device.clusters, variants.CLUSTER_SIZES)) + " blocks at once"
            facts[f"GPU {number}, compiler"] = _compiler(number)
            facts[f"GPU {number}, B={batch_size}, H={hidden_size}"] = kernel_for(device, batch_size, hidden_size)
        facts["arrays in mx.cpu(i)"] = (
            "computed on by the CPU; after rnn_ops.use('cuda') by GPU i, after rnn_ops.use('cuda:0') all by GPU 0: each call "
            "copies tokens, parameters, results and gradients, the states for the backward pass stay there")
    facts["settings"] = ", ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ) or "none"
    facts["settings"] = "; ".join([facts["settings"], *wrong_folders()])
    return facts


def wrong_settings(mxnet: bool = True) -> List[str]:
    """What is wrong with the environment variables that choose an operator and its kernels, as sentences.

    mxnet: whether those of MXNet and its operators count too. MXNet is imported for that.
    """
    found = _wrong_for_kernels()
    if not mxnet:
        return found
    try:
        _operator_in_use()
    except (ValueError, RuntimeError) as error:
        found.append(str(error))
    except ImportError:  # MXNet is missing, which is no setting
        pass
    return found + list(filter(None, [_mxnet_import.why_not()]))


def wrong_folders() -> List[str]:
    """What is wrong with RNN_OPS_DATA and RNN_OPS_CACHE, as sentences. Everything works without these folders."""
    folder = os.environ.get("RNN_OPS_DATA")
    data = [f"RNN_OPS_DATA: got {folder!r}, needs a folder"] if folder and not os.path.isdir(folder) else []
    return data + _wrong_cache()


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that has no name there
        return platform.processor() or platform.machine()


def kernel_for(device: variants.Device, batch_size: int, hidden_size: int) -> str:
    """Which CUDA kernel computes a float32 recurrence of a shape, and the reasons against the others."""
    chosen = variants.choose(device, "float32", batch_size, hidden_size)
    found, reasons = variants.candidates(device, "float32", batch_size, hidden_size)
    others = []
    for family in variants.FAMILIES:
        if family in reasons:
            others.append(f"{family} cannot: {reasons[family]}")
        elif family != chosen.family:
            others.append(f"{family} {min(v.cycles for v in found if v.family == family):.0f}")
    return f"{chosen}; estimated cycles a step {chosen.cycles:.0f}; {', '.join(others)}"


def _pytorch():
    """The version of PyTorch, without its import, which takes seconds."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "none: PyTorch is not installed; rnn_ops[torch] brings it"


def _cpu_kernels():
    wrong = _wrong_for_kernels()
    if wrong:
        return f"none: {'; '.join(wrong)}"
    try:
        from rnn_ops.backends import cpu
    except ImportError as error:  # a source folder
        return f"none: {error}"
    return f"{cpu.simd()} (of {', '.join(cpu.simd_levels())}), {cpu.threads()} threads"


def _split(batch_size, hidden_size):
    if _cpu_kernels().startswith("none"):
        return "none"
    from rnn_ops.backends import cpu
    rows, columns = cpu.split(batch_size, hidden_size)
    return f"each step in {rows} group{'s' * (rows > 1)} of rows by {columns} group{'s' * (columns > 1)} of columns"


def _wrong_cache():
    folder = os.environ.get("RNN_OPS_CACHE")
    reason = folder and folders.why_not_writable(folder)
    return [f"RNN_OPS_CACHE: got {folder!r}, needs a folder that can be written to: {reason}"] if reason else []


def _wrong_for_kernels():
    try:
        from rnn_ops.backends import cpu
    except ImportError:  # a source folder, where a GPU can compute all the same
        return []
    found = []
    for setting in cpu.threads, cpu.simd:
        try:
            setting()
        except ValueError as error:
            found.append(str(error))
    return found


def _operator_in_use():
    from rnn_ops.operators import in_use
    return in_use()


def _operator():
    """Which MXNet operator computes, and why the native one does not."""
    try:
        taken = _operator_in_use()
        from rnn_ops.operators import native
    except (ImportError, RuntimeError, ValueError) as error:
        return f"none: {error}"
    reason = native.why_not()
    return f"{taken} (there is no native one: {reason})" if reason else taken


def _device(device):
    capability = divmod(device.compute_capability, 10)
    # MXNet 1.9.1's wheels hold machine code for compute capability 5.0 to 8.6 (which 8.9 runs too) and no PTX.
    without_mxnet = "; newer than MXNet 1.9.1, whose arrays have to stay in mx.cpu()" if capability >= (9, 0) else ""
    return (f"{device.name}, compute capability {capability[0]}.{capability[1]}, {device.multiprocessors} multiprocessors, "
            f"{device.shared_memory // 1024} KiB of shared memory a block{without_mxnet}")


def _compiler(number):
    """The compiler for a GPU, or why no compiler can be used."""
    try:
        return str(cuda.platform().nvrtc(number))
    except RuntimeError as error:
        return f"none: {error}"
