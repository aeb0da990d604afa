"""rnn_ops.torch on CUDA tensors: standin_torch_cases.py in a process of its own, and PyTorch's CUDA libraries beside CuPy's."""
import pytest

pytest.importorskip("torch")
pytest.importorskip("cupy", exc_type=ImportError)
from test_cuda_standin import CASES, folder, run  # noqa: E402, F401


@pytest.mark.slow
def test_all_cases_pass(folder):  # noqa: F811
    status, printed = run(folder, "-c", CASES, "standin_torch_cases.py", gpus=2)
    assert status == 0 and " passed" in printed and "skipped" not in printed, printed
