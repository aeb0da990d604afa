"""Where CUDA's own libraries are.

mxnet-cu112 and most versions of CuPy look for them where a CUDA toolkit puts them. The loader does not look for a library that is
loaded already. So it is enough to load those of NVIDIA's wheels first, and a host with a GPU needs a driver but no toolkit. CuPy
14 looks into the wheels, but would accept a library of another major version that PyTorch has loaded. One of the same major
version is shared: two of one name are never in a process.
"""
import ctypes
import functools
import glob
import os
import sys
from importlib import metadata

_CUPY_11 = ("cuda_runtime/lib/libcudart.so.11.0", "cuda_nvrtc/lib/libnvrtc.so.11.2", "cublas/lib/libcublasLt.so.11",
            "cublas/lib/libcublas.so.11")
# Files in NVIDIA's folder that a distribution needs, each after the files that it depends on. CuPy could use more, but torch in
# the same process may bring its own versions of those.
_FILES = {
    "cupy-cuda11x": _CUPY_11,
    "cupy-cuda12x": ("cuda_nvrtc/lib/libnvrtc.so.12", "cublas/lib/libcublasLt.so.12", "cublas/lib/libcublas.so.12"),
    "cupy-cuda13x": ("cu13/lib/libnvrtc-builtins.so.13.*", "cu13/lib/libnvrtc.so.13", "cu13/lib/libcublasLt.so.13",
                     "cu13/lib/libcublas.so.13"),
    "mxnet-cu112": (*_CUPY_11, "cufft/lib/libcufft.so.10", "curand/lib/libcurand.so.10", "cusparse/lib/libcusparse.so.11",
                    "cusolver/lib/libcusolver.so.11", "cudnn/lib/libcudnn.so.8", "nccl/lib/libnccl.so.2",
                    "nvtx/lib/libnvToolsExt.so.1"),
}
CUPY = tuple(name for name in _FILES if name.startswith("cupy"))


def nvidia_folders():
    """The folders that NVIDIA's wheels share. Each folder of packages may have one. The first may hide the others from `import`,
    since some of the wheels make it a package."""
    folders = (os.path.join(path, "nvidia") for path in dict.fromkeys(sys.path))
    return [folder for folder in folders if os.path.isdir(folder)]


@functools.lru_cache(maxsize=None)
def load_for(distribution):
    """Load the CUDA libraries that a distribution ("mxnet-cu112", one of CUPY) needs, if it is installed.

    A library that is missing or cannot be loaded is no error here: the import that follows fails and names it. One whose name is
    loaded already, such as by PyTorch, stays the only one.
    """
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return
    for folder in nvidia_folders():
        for file in _FILES[distribution]:
            for path in glob.glob(os.path.join(glob.escape(folder), file)):
                if _is_loaded(os.path.basename(path)):
                    continue
                try:
                    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    pass


def _is_loaded(name):
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True
