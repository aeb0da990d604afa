"""Where CUDA's own libraries are.

mxnet-cu112 and cupy-cuda11x look for the CUDA 11 libraries where a CUDA toolkit puts them. A library that is loaded already is
not looked for, so loading the ones of the nvidia-*-cu11 wheels first is all it takes: a GPU host needs a driver and no
toolkit.
"""
import ctypes
import functools
import os
import sys
from importlib import metadata

# What CuPy needs for us, and no more: torch in the same process may bring the others itself.
_FOR_CUPY = ("cuda_runtime", "cuda_nvrtc", "cublas")

# (package, file), each after those it needs.
_FILES = (
    ("cuda_runtime", "libcudart.so.11.0"), ("cuda_nvrtc", "libnvrtc.so.11.2"), ("cublas", "libcublasLt.so.11"),
    ("cublas", "libcublas.so.11"), ("cufft", "libcufft.so.10"), ("curand", "libcurand.so.10"),
    ("cusparse", "libcusparse.so.11"), ("cusolver", "libcusolver.so.11"), ("cudnn", "libcudnn.so.8"),
    ("nccl", "libnccl.so.2"), ("nvtx", "libnvToolsExt.so.1"))


def nvidia_folders():
    """The folders that NVIDIA's wheels share. There may be one in each folder of packages, and the first may hide the others
    from `import`: some of the wheels make a package of it."""
    folders = (os.path.join(path, "nvidia") for path in dict.fromkeys(sys.path))
    return [folder for folder in folders if os.path.isdir(folder)]


@functools.lru_cache(maxsize=None)
def load_for(distribution):
    """Load what there is, if a distribution that needs it ("mxnet-cu112", "cupy-cuda11x") is installed.

    What is missing or cannot be loaded is left to the import that follows, whose error names it.
    """
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return
    for folder in nvidia_folders():
        for package, file in _FILES:
            if distribution == "cupy-cuda11x" and package not in _FOR_CUPY:
                continue
            path = os.path.join(folder, package, "lib", file)
            if os.path.exists(path):
                try:
                    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    pass
