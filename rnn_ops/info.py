"""What there is to compute with: versions, devices, kernels and the settings that choose them. ``rnn-ops info``."""
import json
import os
import platform
import shutil
import textwrap

import numpy

import rnn_ops
from rnn_ops import _mxnet_import
from rnn_ops.backends import cpu, cuda
from rnn_ops.backends.cuda import compiler, variants

_SETTINGS = ("RNN_OPS_NUM_THREADS", "OMP_NUM_THREADS", "RNN_OPS_SIMD", "RNN_OPS_OPERATOR", "RNN_OPS_DATA", "RNN_OPS_CACHE")


def collect(batch_size=32, hidden_size=256):
    """What `main` prints, as a dict of name → text. The shape is the one that kernels are chosen for."""
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
        "operator": _operator(),
        "CPU": f"{_cpu_name()}, {os.cpu_count()} processors",
        "CPU kernels": _cpu_kernels(),
        f"CPU, B={batch_size}, H={hidden_size}": _split(batch_size, hidden_size),
    }
    found = ", ".join(map(str, compiler.found())) or "none"
    facts["CUDA compilers"] = f"{found}; machine code is kept in {compiler.folder()}"
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
            facts[f"GPU {number}, B={batch_size}, H={hidden_size}"] = choice(device, batch_size, hidden_size)
        facts["arrays in mx.cpu()"] = ("computed on by the CPU; after rnn_ops.use('cuda') by GPU 0: each call copies tokens, "
                                       "parameters, results and gradients, the states for the backward pass stay there")
    facts["settings"] = ", ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ) or "none"
    reason = _no_folder()
    if reason:
        facts["settings"] += f"; {reason}"
    return facts


def wrong_settings():
    """What is wrong with the environment variables that choose what computes: a list of sentences."""
    found = _wrong_for_kernels()
    try:
        _choice()
    except (ValueError, RuntimeError) as error:
        found.append(str(error))
    except ImportError:  # no MXNet, which is no setting
        pass
    return found + list(filter(None, [_mxnet_import.why_not()]))


def choice(device, batch_size, hidden_size):
    """Which CUDA kernel computes a float32 recurrence of a shape on a `variants.Device`, and what speaks against others."""
    chosen = variants.choose(device, "float32", batch_size, hidden_size)
    found, reasons = variants.candidates(device, "float32", batch_size, hidden_size)
    others = []
    for family in variants.FAMILIES:
        if family in reasons:
            others.append(f"{family} cannot: {reasons[family]}")
        elif family != chosen.family:
            others.append(f"{family} {min(v.cycles for v in found if v.family == family):.0f}")
    return f"{chosen}; estimated cycles a step {chosen.cycles:.0f}; {', '.join(others)}"


def main(batch_size=32, hidden_size=256, as_json=False):
    """Print what `collect` finds, a line each or as JSON → exit status: 0, or 1 where a setting is wrong."""
    facts, wrong = collect(batch_size, hidden_size), wrong_settings() + list(filter(None, [_no_folder()]))
    if as_json:
        print(json.dumps(dict(facts, wrong=wrong), indent=1))
        return int(bool(wrong))
    width = max(map(len, facts))
    columns = shutil.get_terminal_size().columns
    for name, text in facts.items():
        print(textwrap.fill(text, max(columns, width + 20), initial_indent=f"{name:<{width}}  ",
                            subsequent_indent=" " * (width + 2), break_long_words=False, break_on_hyphens=False))
    return int(bool(wrong))


def _cpu_kernels():
    wrong = _wrong_for_kernels()
    return f"none: {'; '.join(wrong)}" if wrong else (
        f"{cpu.simd()} (of {', '.join(cpu.simd_levels())}), {cpu.threads()} threads")


def _split(batch_size, hidden_size):
    if _wrong_for_kernels():
        return "none"
    rows, columns = cpu.split(batch_size, hidden_size)
    return f"each step in {rows} group{'s' * (rows > 1)} of rows by {columns} group{'s' * (columns > 1)} of columns"


def _wrong_for_kernels():
    found = []
    for ask in cpu.threads, cpu.simd:
        try:
            ask()
        except ValueError as error:
            found.append(str(error))
    return found


def _no_folder():
    folder = os.environ.get("RNN_OPS_DATA")
    return f"RNN_OPS_DATA: got {folder!r}, needs a folder" if folder and not os.path.isdir(folder) else None


def _choice():
    from rnn_ops.operators import in_use
    return in_use()


def _operator():
    """Which MXNet operator computes, and why not the other one."""
    try:
        taken = _choice()
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
    """What compiles for a GPU, or why nothing does."""
    try:
        return str(cuda.platform().nvrtc(number))
    except RuntimeError as error:
        return f"none: {error}"


def _cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that has no name there
        return platform.processor() or platform.machine()
