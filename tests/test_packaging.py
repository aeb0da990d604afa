"""What pip makes of the project: a base without MXNet, the sentences for what is missing, NumPy left as it was."""
import os
import re
import subprocess
import sys
import venv

import numpy
import pytest

from rnn_ops._mxnet import mx

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")


def run(*command, **kwargs):
    """(exit status, what it printed), with nothing but the environment's own packages in reach."""
    kwargs["env"] = {name: value for name, value in kwargs.get("env", os.environ).items() if name != "PYTHONPATH"}
    ran = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         universal_newlines=True, **kwargs)
    return ran.returncode, ran.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The bin folder of a fresh environment that has rnn_ops and what it requires, no extra."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(str(folder), with_pip=True)
    status, printed = run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", ROOT)
    assert status == 0, printed
    return folder / "bin"


@pytest.mark.slow
def test_base_needs_numpy_alone(base, tmp_path):
    status, printed = run(base / "python", "-m", "pip", "list", "--format=freeze", "--exclude", "pip", "--exclude",
                          "setuptools", "--exclude", "wheel")
    packages = [line.split("==")[0] for line in printed.splitlines() if "==" in line]
    assert sorted(packages) == ["numpy", "rnn_ops"] and status == 0
    code = ("import numpy as np; from rnn_ops.backends import cpu; outputs = np.empty((3, 2, 4), 'f')\n"
            "cpu.forward(np.zeros((3, 2), 'i'), np.zeros((2, 4), 'f'), np.ones((5, 4), 'f'), np.zeros((4, 4), 'f'),\n"
            "            np.zeros(4, 'f'), outputs)\n"
            "print(np.allclose(outputs, np.tanh(1)))")
    assert run(base / "python", "-c", code, cwd=tmp_path) == (0, "True\n")
    status, printed = run(base / "rnn-ops", "info", cwd=tmp_path)
    assert status == 0 and "CPU kernels" in printed and re.search("GPU kernels +none: CuPy is not installed", printed)


@pytest.mark.slow
def test_the_cuda_kernels_come_along(base, tmp_path):
    code = ("from rnn_ops.backends.cuda import sources\n"
            "print(sources.folder(), all('__global__' in sources.text(family) for family in\n"
            "                            ('resident', 'cluster', 'grid', 'stepwise', 'sums')))")
    status, printed = run(base / "python", "-c", code, cwd=tmp_path)
    assert status == 0 and printed.endswith("rnn_ops/backends/cuda/kernels True\n")
    status, printed = run(base / "python", "-m", "rnn_ops_benchmarks.gpu", cwd=tmp_path)
    assert status == 2 and "CuPy is not installed" in printed and "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("code", [
    "import rnn_ops; rnn_ops.rnn_sequence", "from rnn_ops import rnn_step", "import rnn_ops.reference",
    "import rnn_ops; rnn_ops.gradcheck"])
def test_without_mxnet_one_sentence_says_what_to_install(base, tmp_path, code):
    status, printed = run(base / "python", "-c", code, cwd=tmp_path)
    last = printed.strip().splitlines()[-1]
    assert status == 1 and last.startswith("ImportError: ")
    assert "rnn_ops[cpu]" in last and "rnn_ops[cu112]" in last and "never both" in last


@pytest.mark.slow
def test_the_commands_say_so_too(base, tmp_path):
    for arguments in ["train"], ["check"]:
        status, printed = run(base / "rnn-ops", *arguments, cwd=tmp_path)
        assert status != 0 and "rnn_ops[cpu]" in printed and "Traceback" not in printed


@pytest.mark.slow
def test_mxnet_beside_numpy_2_is_one_sentence(base, tmp_path):
    status, printed = run(base / "python", "-c", "import numpy; print(numpy.__version__)")
    if int(printed.split(".")[0]) < 2:
        pytest.skip(f"this Python gets NumPy {printed.strip()}")
    assert run(base / "python", "-m", "pip", "install", "--quiet", "--no-deps", "mxnet==1.9.1")[0] == 0
    try:
        status, printed = run(base / "python", "-c", "import rnn_ops; rnn_ops.rnn_step", cwd=tmp_path)
        assert status == 1 and "install 'numpy<2'" in printed.splitlines()[-1]
    finally:
        run(base / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "mxnet")


@pytest.mark.slow
def test_without_a_compiler_one_sentence_says_what_to_install(base, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    status, printed = run(base / "python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT,
                          env=dict(environment, PATH=str(base)))  # where there is no compiler
    said = [line.strip() for line in printed.splitlines() if "no C++ compiler" in line]
    assert status == 1 and len(said) == 1, printed
    assert said[0].startswith("rnn_ops: no C++ compiler was found") and "apt-get install g++" in said[0]
    assert "Traceback" not in printed


def test_numpy_is_left_as_it_was_found():
    assert mx.__version__ == "1.9.1"
    if tuple(map(int, numpy.__version__.split(".")[:2])) >= (1, 24):
        assert "bool" not in vars(numpy)


def test_the_gpu_wheel_without_a_driver_says_what_to_install(tmp_path):
    (tmp_path / "mxnet.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file: No such file')\n")
    status, printed = run(sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); from rnn_ops import rnn_step",
                          tmp_path, cwd=tmp_path)
    last = printed.strip().splitlines()[-1]
    assert status == 1 and "libcuda.so.1" in last and "NVIDIA driver" in last and "rnn_ops[cpu]" in last
