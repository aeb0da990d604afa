"""What a kernel writes lies in memory of its own: every backend refuses results that share a byte with another array, and takes
arrays that lie side by side."""
import contextlib
import itertools

import numpy as np
import pytest

from cuda_host import platform
from recurrence_cases import random_case, run
from rnn_ops.backends import cpu, cuda
from rnn_ops.backends.cuda import variants

SHAPE = T, B, I, H = 3, 4, 5, 6
READ = ("inputs", "state", "Wxh", "Whh", "outputs", "doutputs", "dlast_state")
WRITTEN = ("dinputs", "dstate", "dWxh", "dWhh", "dbh")


@pytest.fixture(params=["cpu", "cuda"])
def backend(request):
    with platform(variants.known_device(80, 6)) if request.param == "cuda" else contextlib.nullcontext():
        yield {"cpu": cpu, "cuda": cuda}[request.param]


def side_by_side(arrays, overlap=()):
    """Copies in one block of memory, one behind the other; of two names the second begins in the last number of the first."""
    memory = np.zeros(sum(array.size for array in arrays.values()), "float32")
    begins, at = {}, 0
    for name in [name for name in arrays if name not in overlap] + list(overlap):
        begins[name] = at - (name in overlap[1:])
        at += arrays[name].size
    placed = {name: memory[begins[name]:begins[name] + array.size].view(array.dtype).reshape(array.shape)
              for name, array in arrays.items()}
    for name, array in arrays.items():
        placed[name][...] = array
    return placed


def forward_case(tokens=False):
    arrays, doutputs, _ = random_case(SHAPE, "float32", tokens)
    return dict(zip(("inputs", "state", "Wxh", "Whh", "bh"), arrays), outputs=np.zeros_like(doutputs))


def backward_case():
    case = random_case(SHAPE, "float32", tokens=False)
    outputs = run(cpu, *case)["outputs"]
    arrays = dict(zip(READ, (*case[0][:4], outputs, *case[1:])))
    return dict(arrays, **{"d" + name: np.zeros_like(array) for name, array in zip(
        ("inputs", "state", "Wxh", "Whh", "bh"), case[0])})


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
def test_side_by_side_is_no_overlap(backend, tokens):
    placed, apart = side_by_side(forward_case(tokens)), forward_case(tokens)
    backend.forward(**placed)
    backend.forward(**apart)
    assert np.array_equal(placed["outputs"], apart["outputs"])
    placed, apart = side_by_side(backward_case()), backward_case()
    backend.backward(**placed)
    backend.backward(**apart)
    assert all(np.array_equal(placed[name], apart[name]) for name in apart)


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
@pytest.mark.parametrize("name", ["inputs", "state", "Wxh", "Whh", "bh"])
def test_outputs(backend, name, tokens):
    for overlap in (name, "outputs"), ("outputs", name):
        arrays = side_by_side(forward_case(tokens), overlap)
        with pytest.raises(ValueError, match=f"^outputs: got memory that overlaps {name}, needs memory of its own$"):
            backend.forward(**arrays)
        assert not arrays["outputs"][1:-1].any()  # nothing is written


def test_gradients(backend):
    for written, other in [*itertools.product(WRITTEN, READ), *itertools.combinations(WRITTEN, 2)]:
        case = {name: array for name, array in backward_case().items() if name in READ or name in (written, other)}
        for overlap in (written, other), (other, written):
            with pytest.raises(ValueError, match=f"^{written}: got memory that overlaps {other}, needs memory of its own$"):
                backend.backward(**side_by_side(case, overlap))


def test_a_gradient_in_the_memory_of_its_argument(backend):
    arrays = backward_case()
    square = side_by_side(dict(dWhh=arrays["dWhh"]))["dWhh"]
    arrays.update(dWhh=square, Whh=square)
    with pytest.raises(ValueError, match="^dWhh: got memory that overlaps Whh, needs memory of its own$"):
        backend.backward(**arrays)


def test_arrays_that_are_only_read_may_be_one_array(backend):
    arrays = backward_case()
    arrays["doutputs"] = arrays["outputs"]
    backend.backward(**arrays)
    again = dict(backward_case(), doutputs=arrays["outputs"].copy())
    backend.backward(**again)
    assert all(np.array_equal(arrays[name], again[name]) for name in WRITTEN)


@pytest.mark.parametrize("device", ["Cpu", "Gpu"])
def test_a_gradient_in_the_memory_of_a_cotangent_of_a_custom_operator(device, monkeypatch, capfd):
    """As in h.backward(state.grad)."""
    mx = pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError).mx
    from rnn_ops.operators import custom, devices
    with platform(variants.known_device(80, 6)):
        monkeypatch.setattr(custom, "device_for", lambda context: devices.Gpu(cuda.gpu(0)) if device == "Gpu" else devices.Cpu())
        values = [mx.nd.ones(shape) for shape in ((B, I), (B, H), (I, H), (H, H), (H,))]
        values[1].attach_grad()
        with mx.autograd.record():
            state = custom.rnn_step(*values)
        with pytest.raises(mx.MXNetError):
            state.backward(values[1].grad)
            mx.nd.waitall()
    assert "ValueError: dstate: got memory that overlaps doutputs, needs memory of its own\n" in capfd.readouterr().out
