"""rnn_ops.backends.cuda: it computes, and raises errors before anything is launched."""
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from cuda_host import OnGPU, platform
from recurrence_cases import check, random_case
from rnn_ops.backends import cuda
from rnn_ops.backends.cuda import variants

A100, H100 = variants.known_device(80, 6), variants.known_device(90, 8)


@pytest.fixture
def gpus():
    with platform(A100, H100) as found:
        yield found


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_backward(gpus, dtype, tokens):
    for activation in "tanh", "relu":
        check(cuda, (3, 5, 7, 33), dtype, tokens, activation=activation)
    assert gpus.emulators[0].launches


@pytest.mark.parametrize("family", variants.FAMILIES)
@pytest.mark.slow
def test_a_family_can_be_forced(gpus, family):
    arrays, doutputs, dlast_state = random_case((2, 3, 4, 40), "float32", tokens=True)
    outputs = np.empty_like(doutputs)
    if family == "cluster":
        with pytest.raises(ValueError, match="family: got 'cluster', which cannot serve B = 3, H = 40 in float32 on sm_80: "
                                             "compute capability 80: clusters need 90 or more"):
            cuda.forward(*arrays, outputs, variant=family)
        assert not gpus.emulators[0].launches
    else:
        check(cuda, (2, 3, 4, 40), "float32", True, variant=family)
        assert {launch.kernel.family for launch in gpus.emulators[0].launches} == {family, "sums"}


def test_the_gpu_of_the_arrays_computes(gpus):
    arrays, doutputs, dlast_state = random_case((2, 3, 4, 40), "float32", tokens=True)
    outputs = np.empty_like(doutputs)
    moved = [array.view(OnGPU) for array in (*arrays, outputs)]
    for array in moved:
        array.gpu = 1
    cuda.forward(*moved)
    assert list(gpus.emulators) == [1] and len(gpus.emulators[1].launches) == 1
    moved[3].gpu = 0
    with pytest.raises(ValueError, match="Whh: got an array on GPU 0, needs one on GPU 1, as inputs is"):
        cuda.forward(*moved)


def test_devices(gpus):
    assert cuda.why_not() is None and cuda.devices() == [A100, H100]
    assert cuda.gpu(1) is cuda.gpu(1) and cuda.gpu(1).device == H100
    for number in -1, 2:
        with pytest.raises(ValueError, match=f"GPU {number}: this process has 2, numbered from 0"):
            cuda.gpu(number)


T, B, I, H = 3, 4, 5, 6
NAMES = ("inputs", "state", "Wxh", "Whh", "bh", "outputs")
FAULTS = {
    "no array": ("state", lambda a: a.tolist(), TypeError, "state: got list, needs an array in the memory of a GPU"),
    "strided": ("Whh", lambda a: np.asfortranarray(a), ValueError,
                r"Whh: got a strided array, needs a C-contiguous one \(cupy.ascontiguousarray\)"),
    "dtype": ("bh", lambda a: a.astype("float64"), TypeError, "bh: got dtype float64, needs float32, the dtype of state"),
    "half": ("state", lambda a: a.astype("float16"), TypeError, "state: got dtype float16, needs float32 or float64"),
    "shape": ("Wxh", lambda a: a[:, :-1].copy(), ValueError, r"Wxh: got shape \(5, 5\), needs \(5, 6\)|Wxh: got shape \(5, 5\)"),
    "outputs' shape": ("outputs", lambda a: a[:-1].copy(), ValueError, r"outputs: got shape \(2, 4, 6\), needs \(3, 4, 6\)"),
    "outputs' dtype": ("outputs", lambda a: a.astype("float64"), TypeError, "outputs: got dtype float64, needs float32"),
    "token": ("inputs", lambda a: np.full_like(a, 5), ValueError, r"inputs: got token 5 at \[0, 0\], needs 0 <= token < 5"),
    "negative": ("inputs", lambda a: np.full_like(a, -1), ValueError, r"inputs: got token -1 at \[0, 0\]"),
}


def arguments():
    arrays, doutputs, dlast_state = random_case((T, B, I, H), "float32", tokens=True)
    return dict(zip(NAMES, (*arrays, np.full_like(doutputs, 7))))


@pytest.mark.parametrize("name, spoil, error, sentence", list(FAULTS.values()), ids=list(FAULTS))
def test_errors_of_forward(gpus, name, spoil, error, sentence):
    given = arguments()
    given[name] = spoil(given[name])
    with pytest.raises(error, match=sentence):
        cuda.forward(**given)
    assert not any(emulator.launches for emulator in gpus.emulators.values())
    if name != "outputs":
        assert (given["outputs"] == 7).all()


def test_another_activation_is_refused(gpus):
    given = arguments()
    with pytest.raises(ValueError, match="activation: got 'gelu', needs 'tanh' or 'relu'"):
        cuda.forward(**given, activation="gelu")
    del given["bh"]
    with pytest.raises(ValueError, match="activation: got None, needs 'tanh' or 'relu'"):
        cuda.backward(**given, doutputs=None, dlast_state=None, activation=None)


@pytest.mark.parametrize("name", ["state", "outputs"])
def test_none_instead_of_an_array_is_an_error(gpus, name):
    with pytest.raises(TypeError, match=f"{name}: got NoneType, needs an array"):
        cuda.forward(**dict(arguments(), **{name: None}))


@pytest.mark.parametrize("name, shape", [("doutputs", (T, B, H)), ("dlast_state", (B, H)), ("dstate", (B, H)),
                                         ("dWxh", (I, H)), ("dWhh", (H, H)), ("dbh", (H,))])
def test_errors_of_backward(gpus, name, shape):
    given = arguments()
    cuda.forward(**given)
    del given["bh"]
    given.update(doutputs=None, dlast_state=None)
    before = len(gpus.emulators[0].launches)
    for array, error, sentence in (
            (np.zeros(shape[:-1] + (shape[-1] + 1,), "float32"), ValueError, f"{name}: got shape .*, needs "),
            (np.zeros(shape), TypeError, f"{name}: got dtype float64, needs float32"),
            (np.zeros(shape + (2,), "float32")[..., 0], ValueError, f"{name}: got a strided array")):
        with pytest.raises(error, match=sentence):
            cuda.backward(**{**given, name: array})
    with pytest.raises(ValueError, match="dinputs: got an array, needs None: tokens have no gradient"):
        cuda.backward(**given, dinputs=np.zeros((T, B, I), "float32"))
    given["inputs"][1, 1] = 5
    with pytest.raises(ValueError, match=r"inputs: got token 5 at \[1, 1\]"):
        cuda.backward(**given, dstate=np.zeros((B, H), "float32"))
    assert len(gpus.emulators[0].launches) == before


def test_without_a_gpu_the_error_says_so():
    if cuda.why_not() is None:
        pytest.skip("there is a GPU")
    sentence = cuda.why_not()
    assert "CuPy is not installed: install rnn_ops[cu112]" in sentence or "nvidia-smi" in sentence or "CuPy is" in sentence
    if "nvidia-smi" in sentence and importlib.util.find_spec("cupy"):
        assert re.search(r"the driver is \d{3}\.\d\d or newer for CUDA 1[123]$", sentence)
    assert cuda.devices() == []
    with pytest.raises(RuntimeError) as raised:
        cuda.forward(**arguments())
    assert str(raised.value) == sentence


def test_import_works_without_mxnet_and_without_cupy(tmp_path):
    """A module that cannot be imported stands in the way of each."""
    for name in "mxnet", "cupy":
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not for this test')")
    program = ("import sys; sys.path.insert(0, sys.argv[1])\nfrom rnn_ops.backends import cuda\nprint(cuda.why_not())\n"
               "print(any(name in sys.modules for name in ('mxnet', 'cupy')))")
    printed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                             cwd=tmp_path, check=True).stdout
    assert "CuPy is installed but cannot be imported (cupy is not for this test)" in printed
    assert printed.endswith("False\n")
