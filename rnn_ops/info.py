"""What there is to compute with: versions, devices, kernels and the settings that choose them. ``rnn-ops info``."""
import os
import platform

import numpy

import rnn_ops
from rnn_ops.backends import cpu

_SETTINGS = ("RNN_OPS_NUM_THREADS", "OMP_NUM_THREADS", "RNN_OPS_SIMD", "RNN_OPS_DATA")


def collect():
    """What `main` prints, as a dict of name → text."""
    try:
        from rnn_ops._mxnet import mx
        mxnet = mx.__version__
    except ImportError as error:
        mxnet = f"none: {error}"
    return {
        "rnn_ops": rnn_ops.__version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": numpy.__version__,
        "MXNet": mxnet,
        "CPU": f"{_cpu_name()}, {os.cpu_count()} processors",
        "CPU kernels": f"{cpu.simd()} (of {', '.join(cpu.simd_levels())}), {cpu.threads()} threads",
        "GPU kernels": "none yet",
        "settings": ", ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ) or "none",
    }


def main():
    """Print what `collect` finds, a line each; returns the exit status 0."""
    facts = collect()
    width = max(map(len, facts))
    for name, text in facts.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that has no name there
        return platform.processor() or platform.machine()
