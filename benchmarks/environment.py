"""Where a measurement was made: processor, threads, versions, commit."""
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("rnn_ops", "numpy", "mxnet", "mxnet-cu112", "torch")
_THREADS = ("RNN_OPS_NUM_THREADS", "RNN_OPS_SIMD", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def describe():
    """A dictionary for the result file. Versions and settings that are absent are left out.

    ``load`` is the mean number of running processes over the last minute, before the measurement adds its own.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name, version in ((name, _version(name)) for name in _PACKAGES) if version},
        "settings": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "commit": _commit(),
    }


def _processor():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit():
    """That of the working directory where it is a checkout of this project; None elsewhere."""
    if not Path("benchmarks/environment.py").is_file():
        return None
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
