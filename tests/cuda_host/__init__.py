"""Runs the CUDA kernels on a CPU: the launcher uses an `Emulator` instead of a GPU's `Runtime`.

The unmodified sources are compiled by the C++ compiler and run by the emulator in emulator.h, with the grid, block and shared
memory that the launcher asks for. Only primitives.cuh has a twin here.
"""
from cuda_host import driver  # noqa: F401
from cuda_host.emulator import Emulator, KernelError, compile_kernels, text_of
from cuda_host.gpus import OnGPU, platform

__all__ = ["driver", "Emulator", "OnGPU", "platform", "KernelError", "compile_kernels", "text_of"]
