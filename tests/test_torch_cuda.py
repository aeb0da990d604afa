"""rnn_ops.torch on CUDA tensors: standin_torch_cases.py in a process of its own, and PyTorch's CUDA libraries beside CuPy's."""
import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cupy", exc_type=ImportError)
import cuda_standin  # noqa: E402
from rnn_ops.torch import cuda  # noqa: E402
from test_cuda_standin import CASES, NAMES, VERSION, folder, run, wheel  # noqa: E402, F401


@pytest.mark.slow
def test_all_cases_pass(folder):  # noqa: F811
    status, printed = run(folder, "-c", CASES, "standin_torch_cases.py", gpus=2)
    assert status == 0 and " passed" in printed and "skipped" not in printed, printed


def test_the_gpu_and_the_stream_are_pytorchs(monkeypatch):
    """The lines that the cases replace, with a tensor that has a device and no memory."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0x5000 + device))
    with torch._subclasses.FakeTensorMode():
        assert cuda._place(torch.empty(2, device="cuda:1")) == (1, 0x5001)


LOADED = """
import ctypes, sys
for path in sys.argv[1:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
from rnn_ops.backends.cuda import libraries
for distribution in libraries.CUPY:
    libraries.load_for(distribution)
with open("/proc/self/maps") as maps:
    print(*sorted({line.split()[-1] for line in maps if "/libcublas.so" in line}), sep="\\n")
"""


@pytest.mark.parametrize("version", [11, 12, 13])
def test_a_cublas_of_pytorchs_is_shared_if_it_is_of_cupys_version_and_else_both_are_there(folder, tmp_path, version):  # noqa: F811
    path = str(tmp_path / f"libcublas.so.{version}")
    cuda_standin.compile_library(path, NAMES)
    status, printed = run(folder, "-c", LOADED, path)
    assert status == 0, printed
    assert set(printed.split()) == {os.path.realpath(path)} | ({wheel(folder)} if version != VERSION else set())
