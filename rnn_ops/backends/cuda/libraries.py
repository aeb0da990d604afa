"""Where CUDA's own libraries are.

mxnet-cu112 and most versions of CuPy look for them where a CUDA toolkit puts them. A library that is loaded already is not
looked for, so loading the ones of NVIDIA's wheels first is all it takes: a GPU host needs a driver and no toolkit. CuPy 14
looks into wheels, but is content with a library of another version that PyTorch has loaded.
"""
import ctypes
import functools
import glob
import os
import sys
from importlib import metadata

_CUPY_11 = ("cuda_runtime/lib/libcudart.so.11.0", "cuda_nvrtc/lib/libnvrtc.so.11.2", "cublas/lib/libcublasLt.so.11",
            "cublas/lib/libcublas.so.11")
# Files in NVIDIA's folder that a distribution needs, each after those it needs itself. For CuPy not all that it could use:
# torch in the same process may bring the others.
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
    """The folders that NVIDIA's wheels share. There may be one in each folder of packages, and the first may hide the others
    from `import`: some of the wheels make a package of it."""
    folders = (os.path.join(path, "nvidia") for path in dict.fromkeys(sys.path))
    return [folder for folder in folders if os.path.isdir(folder)]


@functools.lru_cache(maxsize=None)
def load_for(distribution):
    """Load what there is, if a distribution that needs it ("mxnet-cu112", one of CUPY) is installed.

    What is missing or cannot be loaded is left to the import that follows, whose error names it.
    """
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return
    for folder in nvidia_folders():
        for file in _FILES[distribution]:
            for path in glob.glob(os.path.join(glob.escape(folder), file)):
                try:
                    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                except OSError:
                    pass
