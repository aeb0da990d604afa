"""The CUDA half on the real CuPy, down to the driver: standin_cases.py in a process of its own, and processes that find
cuBLAS.

What cuda_standin.py says of itself holds here: no GPU, no driver, and everything of CuPy that runs before a kernel does.
"""
import ctypes
import glob
import importlib.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("cupy", exc_type=ImportError)
import cuda_standin  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
VERSION, NAMES = cuda_standin.cublas_names()
PATHFINDER = importlib.util.find_spec("cuda.pathfinder") if importlib.util.find_spec("cuda") else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin")
    cuda_standin.build(str(folder))
    return folder


def run(folder, *arguments, gpus=1, **more):
    """(exit status, what it printed) of a Python that finds the stand-in driver and no CUDA toolkit."""
    environment = dict(cuda_standin.environment(str(folder), gpus), CUDA_PATH=str(folder / "no toolkit"))
    environment.update(more)
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=HERE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


# At its end a process would call functions of Python that are gone by then.
CASES = """
import os, pytest, sys
status = pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]])
sys.stdout.flush()
os._exit(status)
"""


@pytest.mark.slow
def test_all_cases_pass(folder):
    status, printed = run(folder, "-c", CASES, "standin_cases.py")
    assert status == 0 and " passed" in printed and "skipped" not in printed, printed


@pytest.mark.parametrize("gpus", [2, 8])
@pytest.mark.slow
def test_all_cases_of_several_gpus_pass(folder, gpus):
    status, printed = run(folder, "-c", CASES, "standin_gpus_cases.py", gpus=gpus)
    assert status == 0 and " passed" in printed and "skipped" not in printed, printed


# Where cuBLAS is found. A library says where it lies: the path of what holds a function's address.

FIND = """
import ctypes, os, sys
sys.path.append(sys.argv[1])
for path in sys.argv[2:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
import cuda_standin
cuda_standin.install()
from rnn_ops.backends import cuda
class Found(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)]
try:
    functions = cuda.gpu(0).functions()
except RuntimeError as error:
    print(error, flush=True)
    os._exit(1)
for name, address in functions.items():
    found = Found()
    ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(found))
    print(name, os.path.realpath(found.file.decode()), found.name.decode(), flush=True)
os._exit(0)
"""
DRIVER_FUNCTIONS = {"launch": "cuLaunchKernel", "launch_cooperative": "cuLaunchCooperativeKernel", "fill": "cuMemsetD8Async",
                    "copy": "cuMemcpyDtoDAsync_v2"}


def found_in(folder, *loaded, **more):
    """Path by name of the functions of cuBLAS that `Runtime.functions` finds after other libraries were loaded."""
    status, printed = run(folder, "-c", FIND, HERE, *loaded, **more)
    assert status == 0, printed
    lines = {name: (path, function) for name, path, function in map(str.split, printed.splitlines())}
    driver = os.path.realpath(str(folder / "libcuda.so.1"))
    assert {name: lines.pop(name) for name in DRIVER_FUNCTIONS} == {
        name: (driver, function) for name, function in DRIVER_FUNCTIONS.items()}
    assert {function: name for name, (_, function) in lines.items()} == cuda_standin.GEMM
    path, = {path for path, _ in lines.values()}
    return path


def wheel(folder):
    path, = glob.glob(str(folder / "wheels" / "nvidia" / "*" / "lib" / f"libcublas.so.{VERSION}"))
    return os.path.realpath(path)


def test_cublas_is_found_in_a_wheel(folder):
    assert found_in(folder) == wheel(folder)


@pytest.mark.slow
def test_a_cublas_that_is_loaded_already_is_used(folder, tmp_path):
    """As by PyTorch, from another place: two of one version in a process are never wanted."""
    path = str(tmp_path / f"libcublas.so.{VERSION}")
    cuda_standin.compile_library(path, NAMES)
    assert found_in(folder, path) == os.path.realpath(path)


@pytest.mark.parametrize("other", [11, 12, 13])
@pytest.mark.slow
def test_a_cublas_of_another_version_is_not_used(folder, tmp_path, other):
    if other == VERSION:
        pytest.skip("the same version")
    path = str(tmp_path / f"libcublas.so.{other}")
    cuda_standin.compile_library(path, NAMES)
    assert found_in(folder, path) == wheel(folder)


@pytest.mark.slow
def test_cublas_is_found_in_a_toolkit(folder, tmp_path):
    """Where CuPy looks for it: from 14 on where CUDA_PATH says, before that where the loader looks."""
    toolkit = tmp_path / "toolkit" / "lib64"
    toolkit.mkdir(parents=True)
    paths = [str(toolkit / f"{name}.so.{VERSION}") for name in ("libcublasLt", "libcublas")]
    for path, names in zip(paths, ([], NAMES)):
        cuda_standin.compile_library(path, names)
    more = {"LD_LIBRARY_PATH": f"{folder}:{toolkit}"} if PATHFINDER is None else {"CUDA_PATH": str(toolkit.parent)}
    assert found_in(folder, PYTHONPATH="", **more) == os.path.realpath(paths[1])


@pytest.mark.slow
def test_without_cublas_the_error_says_what_to_install(folder):
    status, printed = run(folder, "-c", FIND, HERE, PYTHONPATH="")
    package = "nvidia-cublas" if VERSION >= 13 else f"nvidia-cublas-cu{VERSION}"
    last = printed.strip().splitlines()[-1]
    assert status == 1, printed
    assert last.startswith("cuBLAS cannot be loaded (") and last.endswith(f": pip install {package}")


# The stand-in itself.


def test_parameters_are_read_from_machine_code():
    """Of a kernel with some of every size, one of them a structure with padding."""
    from rnn_ops.backends.cuda import compiler
    text = """struct Odd { char a; double b; int c; };
              extern "C" __global__ void kernel(int* a, Odd b, char c, long long d) {}"""
    for nvrtc in compiler.found():
        sections = cuda_standin.elf_sections(nvrtc.compile(text, [], 80).cubin)
        assert cuda_standin.parameters(sections[".nv.info.kernel"]) == [8, 24, 1, 8]


def test_a_library_passes_its_arguments_on(tmp_path):
    path = str(tmp_path / "libsome.so.1")
    cuda_standin.compile_library(path, ["one"])
    library = ctypes.CDLL(path)
    assert library.one(1, 2) == 801
    kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 14)
    sums = kind(lambda *given: sum(given))
    library.set_one(sums)
    assert library.one(*range(1, 15)) == 105
