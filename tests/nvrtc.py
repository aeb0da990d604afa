"""NVRTC 11.8 from the pip wheel nvidia-cuda-nvrtc-cu11, through its C API: CUDA C++ to machine code with no GPU.

CuPy has the same compiler inside, but will not call it where there is no driver.
"""
import ctypes
import functools
import glob
import importlib.util
import os
import re
from typing import NamedTuple


class Resources(NamedTuple):
    """What ptxas says of one kernel: registers a thread, and bytes."""
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


class CompileError(Exception):
    """The compiler's own words."""


@functools.lru_cache(maxsize=None)
def _library():
    try:
        package = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:  # there is no package of NVIDIA's at all
        package = None
    folders = package.submodule_search_locations if package else []
    found = [file for folder in folders for file in glob.glob(os.path.join(folder, "lib", "libnvrtc.so.11*"))]
    if not found:
        raise ImportError("the compile tests need the package nvidia-cuda-nvrtc-cu11, which the extra 'test' brings")
    return ctypes.CDLL(found[0])


def compile(source, expressions, architecture, options=()):
    """Compile for a compute capability such as 80 → Resources of each name expression, by expression."""
    library = _library()
    from rnn_ops.backends.cuda.libraries import locale_kept  # after the error for a missing compiler
    with locale_kept():
        return _compile(library, source, expressions, architecture, options)


def _compile(library, source, expressions, architecture, options):
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        for expression in expressions:
            _check(library.nvrtcAddNameExpression(program, expression.encode()))
        words = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", *options]
        status = library.nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*[word.encode() for word in words]))
        size = ctypes.c_size_t()
        _check(library.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        _check(library.nvrtcGetProgramLog(program, log))
        log = log.value.decode()
        if status:
            raise CompileError(log)
        return {expression: _resources(log, _lowered(program, expression)) for expression in expressions}
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _lowered(program, expression):
    name = ctypes.c_char_p()
    _check(_library().nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
    return name.value.decode()


def _resources(log, name):
    section = re.search(rf"Compiling entry function '{re.escape(name)}'(.*?)(?=Compiling entry function|\Z)", log, re.S)
    text = section.group(1)
    stack, stores, loads = map(int, re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text).groups())
    registers = int(re.search(r"Used (\d+) registers", text).group(1))
    shared = re.search(r"(\d+) bytes smem", text)
    return Resources(registers, stack, stores, loads, int(shared.group(1)) if shared else 0)


def _check(status):
    if status:
        raise CompileError(f"NVRTC answered with status {status}")
