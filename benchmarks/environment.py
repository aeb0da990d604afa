"""Where a measurement was made: processor, threads, versions, commit."""
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

from rnn_ops.info import cpu_name

_PACKAGES = ("rnn_ops", "numpy", "mxnet", "mxnet-cu112", "torch", "jax", "jaxlib", "onnxruntime")
_THREADS = ("RNN_OPS_NUM_THREADS", "RNN_OPS_SIMD", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE",
            "MKL_NUM_THREADS")


def describe():
    """A dictionary for the result file. Versions and settings that are absent are left out.

    ``load`` is the mean number of running processes over the last minute, before the measurement adds its own.
    """
    return {
        "processor": cpu_name(),
        "cores": len(processors()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in ((name, _version(name)) for name in _PACKAGES) if version},
        "settings": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "commit": _commit(),
    }


class Others:
    """The share of our processors that other programs have taken, all but this process and its children."""

    def __init__(self):
        self._began = self._now()

    def share(self):
        """Since this was made, 0 to 1; None if the system does not say. Children count once they have ended."""
        (clock, busy, own), (clock_before, busy_before, own_before) = self._now(), self._began
        if busy is None:
            return None
        others = busy - busy_before - (own - own_before)
        return min(1.0, max(0.0, others / (clock - clock_before) / len(processors())))

    @staticmethod
    def _now():
        return time.monotonic(), _busy(), sum(os.times()[:4])


def _busy():
    """Seconds that our processors have been busy since the system started, or waited for a host that was; None if the
    system does not say."""
    ours = {f"cpu{number}" for number in processors()}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        # Of user, nice, system, idle, iowait, irq, softirq and steal all but two; later columns are contained in these.
        return sum(sum(map(int, line[1:4] + line[6:9])) for line in lines if line and line[0] in ours) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def processors():
    """The processors that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of the working directory if that is a checkout of this project, else None."""
    if not Path("benchmarks/environment.py").is_file():
        return None
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
