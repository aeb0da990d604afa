"""The native operator under AddressSanitizer and UBSan: its own tests once more, with a library that sees stray accesses."""
import os
import shutil
import subprocess
import sys

import pytest

import rnn_ops
from rnn_ops.backends.cuda import sources
from rnn_ops.operators import native
from test_cpu_kernels import load_setup

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = os.path.join(HERE, "..", "rnn_ops", "operators", "native")
COMPILER = os.environ.get("CXX", "g++").split()
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", "-pthread", "-I", os.path.join(HERE, "..", "kernels", "cpu")]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Object files of the CPU kernels, as they are: test_cpu_kernels.py has them watched."""
    return load_setup().compile_sources(str(tmp_path_factory.mktemp("kernels")), extra=["-O1"])


def run_sanitized(folder, kernels, tests, edit=lambda text: text):
    """pytest on a copy of the package whose operator is compiled from edited sources: (exit status, what it printed)."""
    shutil.copytree(os.path.dirname(rnn_ops.__file__), str(folder / "rnn_ops"), ignore=shutil.ignore_patterns("__pycache__"))
    kernels_of_gpus = folder / "rnn_ops" / "backends" / "cuda" / "kernels"
    if not kernels_of_gpus.is_dir():  # where rnn_ops is installed with pip install -e
        shutil.copytree(sources.folder(), str(kernels_of_gpus))
    shutil.copytree(SOURCES, str(folder / "sources"))
    source = folder / "sources" / "gpu.cc"
    source.write_text(edit(source.read_text()))
    library = folder / "rnn_ops" / os.path.basename(native.library_path())
    library.unlink()
    files = sorted(str(file) for file in (folder / "sources").glob("*.cc"))
    subprocess.run([*COMPILER, *FLAGS, *files, *kernels, "-o", str(library)], check=True)
    runtimes = [subprocess.check_output([*COMPILER, f"-print-file-name={name}"], universal_newlines=True).strip()
                for name in ("libasan.so", "libubsan.so")]
    # And with NumPy's products as an older processor computes them: no test may go by the bits of this one's.
    environment = dict(os.environ, PYTHONPATH=str(folder), LD_PRELOAD=" ".join(runtimes), ASAN_OPTIONS="detect_leaks=0",
                       OPENBLAS_CORETYPE="Nehalem")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *tests], env=environment,
                          cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def test_the_operators_tests_pass(tmp_path, kernels):
    status, printed = run_sanitized(tmp_path, kernels, [
        "test_native_gpu.py", "test_native.py", "test_native_memory.py", "test_native_front.py", "test_operators.py",
        "test_operator_errors.py", "test_operator_lifetime.py", "-k",
        "not custom and (test_native_gpu or misfits or inferred or attributes or only_some_arrays or another_cpu or "
        "processes_share or threads_get or sentences or arrives or (test_native_front and not engine and not growth))"])
    assert status == 0 and " passed" in printed, printed


def test_a_planted_error_is_noticed(tmp_path, kernels):
    """Room for the arguments of a kernel, and not all of it."""
    def edit(text):
        assert "(values.size() + 7) / 8" in text
        return text.replace("(values.size() + 7) / 8", "values.size() / 8 - 1")

    status, printed = run_sanitized(tmp_path, kernels, ["test_native_gpu.py", "-k", "a_step"], edit)
    assert status != 0 and "AddressSanitizer: heap-buffer-overflow" in printed and "gpu.cc" in printed, printed
