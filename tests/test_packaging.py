"""The project as pip sees it: files of wheel and sdist, a base without MXNet, errors for missing software."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv

import numpy
import pytest

import rnn_ops
from rnn_ops._mxnet import mx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*command, **kwargs):
    """(exit status, what it printed), with nothing but the environment's own packages in reach."""
    kwargs["env"] = {name: value for name, value in kwargs.get("env", os.environ).items() if name != "PYTHONPATH"}
    ran = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, **kwargs)
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
def test_the_packages_and_nothing_else_are_installed(base, tmp_path):
    packages = {"rnn_ops": "rnn_ops", "benchmarks": "rnn_ops_benchmarks", "kernels": "rnn_ops/backends/cuda/kernels",
                **{f"python/{name}": name for name in os.listdir(os.path.join(ROOT, "python"))}}
    expected = {"rnn_ops/librnn_ops.so"}
    for folder, package in packages.items():
        for path in glob.glob(os.path.join(ROOT, folder, "**"), recursive=True):
            name = os.path.relpath(path, os.path.join(ROOT, folder))
            if name.endswith((".py", ".cu", ".cuh", ".json", "py.typed")) or name == "codes.h":
                expected.add(f"{package}/{name}")
    expected = {name for name in expected if not name.startswith("rnn_ops_benchmarks/results/")}

    status, printed = run(base / "python", "-c", "import importlib.metadata as m, json\n"
                          "print(json.dumps([str(path) for path in m.files('rnn_ops')]))", cwd=tmp_path)
    installed = {name for name in json.loads(printed)
                 if not (name.endswith(".pyc") or ".dist-info/" in name or name.startswith("../"))}
    assert installed == expected and status == 0


@pytest.mark.slow
def test_the_licence_is_named(base, tmp_path):
    code = "import importlib.metadata as m; print(m.metadata('rnn_ops')); print(*m.files('rnn_ops'), sep='\\n')"
    status, printed = run(base / "python", "-c", code, cwd=tmp_path)
    assert re.search("^License(-Expression)?: Apache-2.0$", printed, re.MULTILINE)  # Python 3.8: without -Expression
    assert re.search(r"^rnn_ops-.*\.dist-info/.*LICENSE$", printed, re.MULTILINE) and status == 0


def test_the_sdist_is_the_whole_project(tmp_path):
    if not os.path.exists(os.path.join(ROOT, ".git")):
        pytest.skip("this is no clone")
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    tracked = {name for name in tracked if os.path.exists(os.path.join(ROOT, name))}
    for name in tracked:
        os.makedirs(tmp_path / "clone" / os.path.dirname(name), exist_ok=True)
        shutil.copy(os.path.join(ROOT, name), tmp_path / "clone" / name)
    status, printed = run(sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_sdist('..'))",
                          cwd=tmp_path / "clone")
    assert status == 0, printed
    assert not re.search("deprecat.*licen|licen.*deprecat", printed, re.IGNORECASE)
    with tarfile.open(str(tmp_path / printed.split()[-1])) as archive:
        packed = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    for_a_clone = {name for name in tracked
                   if name.startswith(".github/") or name in (".gitignore", ".clang-format", ".pre-commit-config.yaml")}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in packed if name.startswith("rnn_ops.egg-info/")}
    assert packed - made == tracked - for_a_clone


def test_versions_that_are_written_twice_are_the_same():
    def versions(pattern, name):
        with open(os.path.join(ROOT, name), encoding="utf-8") as file:
            return sorted(re.findall(pattern, file.read()))

    assert versions(r"(?m)^version: (.*)$", "CITATION.cff") == [rnn_ops.__version__]
    tools = versions(r"(?:ruff|clang-format)==[\d.]+", "pyproject.toml")
    assert len(tools) == 2
    if os.path.exists(os.path.join(ROOT, ".pre-commit-config.yaml")):  # not in an sdist
        assert versions(r"(?:ruff|clang-format)==[\d.]+", ".pre-commit-config.yaml") == tools


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_a_python_that_is_too_old(version):
    names = [f"python{version}", *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python"))]
    pythons = [name for name in names if shutil.which(name) and run(name, "--version")[0] == 0]
    if not pythons:
        pytest.skip(f"no Python {version} is here")
    assert run(pythons[0], "setup.py", "--version", cwd=ROOT) == (1, f"rnn_ops: got Python {version}, needs 3.8 to 3.12\n")


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
    status, printed = run(base / "rnn-ops", "bench", "--device", "cuda", cwd=tmp_path)
    assert status == 2 and "CuPy is not installed" in printed and "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("code", [
    "import rnn_ops; rnn_ops.rnn_sequence", "from rnn_ops import rnn_step", "import rnn_ops.reference",
    "from rnn_ops import gradcheck; gradcheck.check()"])
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
