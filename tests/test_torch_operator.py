"""`rnn_ops.torch.rnn_sequence` on CPU tensors: values, gradients of every order, compilers, modes, errors, threads."""
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode

from recurrence_cases import check, random_case
from rnn_ops.backends import cpu as kernels
from rnn_ops.torch import operator, rnn_sequence

NAMES = "inputs", "state", "Wxh", "Whh", "bh"
CASES = [pytest.param(tokens, activation, id=f"{'tokens' if tokens else 'dense'}-{activation}")
         for tokens in (False, True) for activation in ("tanh", "relu")]


class OnTensors:
    """`rnn_ops.torch` with the functions of a backend, on the memory of NumPy arrays."""

    def forward(self, *arrays, activation="tanh"):
        *tensors, outputs = map(torch.from_numpy, arrays)
        self.bh = tensors[4]
        outputs.copy_(rnn_sequence(*tensors, activation)[0])

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation="tanh", **gradients):
        tensors = dict(zip(NAMES, [*map(torch.from_numpy, (inputs, state, Wxh, Whh)), self.bh]))
        wanted = [tensors[name[1:]].requires_grad_() for name in gradients]
        found = torch.autograd.grad(rnn_sequence(*tensors.values(), activation), wanted,
                                    [torch.from_numpy(doutputs), torch.from_numpy(dlast_state)])
        for array, gradient in zip(gradients.values(), found):
            torch.from_numpy(array).copy_(gradient)


def tensors_of(tokens=False, shape=(4, 3, 5, 6), dtype=torch.float64, grad=True, seed=0):
    arrays, *_ = random_case(shape, "float64", tokens, seed)
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    return [tensor.to(dtype).requires_grad_(grad) if tensor.is_floating_point() else tensor for tensor in tensors]


def floats(tensors):
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def loss_of(results):
    outputs, state = results
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape)
    return (outputs * weights).sum() + (state ** 2).sum()


def gradients_of(tensors, activation="tanh", function=rnn_sequence, wanted=None):
    return torch.autograd.grad(loss_of(function(*tensors, activation)), floats(tensors) if wanted is None else wanted)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        assert torch.equal(mine, other)


class Seen(TorchDispatchMode):
    """Names of the operators that the dispatcher sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(function.name())
        return function(*arguments, **(keywords or {}))


# --- values and gradients ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens, activation", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=25)
@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 7, 16, 33]),
                       st.sampled_from([1, 3, 8, 16, 17, 33, 64])), seed=st.integers(0, 9))
def test_values_and_gradients(shape, seed, dtype, tokens, activation):
    check(OnTensors(), shape, dtype, tokens, seed, activation)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (1, 1, 1, 1), (2, 1, 3, 1)], ids=str)
@pytest.mark.parametrize("tokens, activation", CASES)
def test_first_and_second_gradients_against_differences(tokens, activation, shape):
    tensors = tensors_of(tokens, shape, seed=3)
    assert torch.autograd.gradcheck(lambda *given: rnn_sequence(*given, activation), tensors)
    assert torch.autograd.gradgradcheck(lambda *given: rnn_sequence(*given, activation), tensors)


@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (4, 3, 5, 6)], ids=str)
@pytest.mark.parametrize("tokens, activation", CASES)
def test_second_gradients_of_every_selection(tokens, activation, shape):
    """Against autograd through the formula. With relu a gradient may depend on no tensor that needs one."""
    def plainly(inputs, state, Wxh, Whh, bh):
        outputs = []
        for each in inputs:
            sums = (Wxh[each.long()] if tokens else each @ Wxh) + state @ Whh + bh
            outputs.append(state := torch.tanh(sums) if activation == "tanh" else torch.relu(sums))
        return torch.stack(outputs), state

    for selection in range(1, 2 ** (5 - tokens)):
        found = []
        for function in plainly, lambda *given: rnn_sequence(*given, activation):
            tensors = dict(zip(NAMES, tensors_of(tokens, shape, grad=False)))
            wanted = [tensors[name].requires_grad_() for bit, name in enumerate(NAMES[tokens:]) if selection >> bit & 1]
            first = torch.autograd.grad(function(*tensors.values())[0].sum(), wanted, create_graph=True)
            penalty = sum((gradient.norm() - 1) ** 2 for gradient in first)
            second = torch.autograd.grad(penalty, wanted, allow_unused=True) if penalty.requires_grad else [None] * len(wanted)
            found.append([torch.zeros_like(tensor) if gradient is None else gradient
                          for tensor, gradient in zip(wanted, second)])
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tokens", [False, True])
def test_third_gradients_against_differences(tokens):
    def gradients(*given):
        return torch.autograd.grad(loss_of(rnn_sequence(*given)), floats(given), create_graph=True)

    assert torch.autograd.gradgradcheck(gradients, tensors_of(tokens, (3, 2, 2, 2)))


def test_the_first_gradient_has_the_same_bits_with_a_graph():
    tensors = tensors_of(dtype=torch.float32, shape=(7, 5, 11, 13))
    plain, with_graph = (torch.autograd.grad(loss_of(rnn_sequence(*tensors)), tensors, create_graph=again)
                         for again in (False, True))
    assert_same(plain, with_graph)
    assert all(gradient.requires_grad for gradient in with_graph)


@pytest.mark.parametrize("tokens, activation", CASES)
def test_gradients_that_are_wanted_have_the_same_bits_whichever_others_are(tokens, activation):
    names = NAMES[tokens:]
    everything = dict(zip(names, gradients_of(tensors_of(tokens), activation)))
    for selection in range(1, 2 ** len(names)):
        wanted = [name for bit, name in enumerate(names) if selection >> bit & 1]
        tensors = dict(zip(NAMES, tensors_of(tokens, grad=False)))
        chosen = [tensors[name].requires_grad_() for name in wanted]
        assert_same(gradients_of(tensors.values(), activation, wanted=chosen), [everything[name] for name in wanted])


@pytest.mark.parametrize("used", ["outputs", "state"])
def test_a_loss_of_one_result(used):
    """The other one's gradient is None inside, and counts as zeros."""
    tensors = tensors_of()
    outputs, state = rnn_sequence(*tensors)
    found = torch.autograd.grad(outputs.sin().sum() if used == "outputs" else state.sin().sum(), tensors)
    outputs, _ = rnn_sequence(*tensors)
    assert_same(found, torch.autograd.grad(outputs.sin().sum() if used == "outputs" else outputs[-1].sin().sum(), tensors))


@pytest.mark.parametrize("tokens", [False, True])
def test_tensors_of_any_layout_in_memory(tokens):
    """Transposed, expanded, with steps between elements, at an odd place in memory; cotangents too."""
    tensors = tensors_of(tokens, grad=False)
    expected = rnn_sequence(*tensors)
    spread = []
    for tensor in tensors:
        wide = torch.zeros([2 * size + 1 for size in tensor.shape], dtype=tensor.dtype).movedim(0, -1).contiguous().movedim(-1, 0)
        view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)]
        spread.append(view.copy_(tensor))
    assert not any(tensor.is_contiguous() for tensor in spread[:4])
    assert_same(rnn_sequence(*spread), expected)
    spread, tensors = ([tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in each]
                       for each in (spread, tensors))
    found, expected = (torch.autograd.grad(each, floats(given), [torch.ones(()).double().expand_as(result) for result in each])
                       for given, each in ((given, rnn_sequence(*given)) for given in (spread, tensors)))
    assert_same(found, expected)


def test_negated_views_are_read_right():
    """PyTorch keeps the sign of an imaginary part of a conjugate aside."""
    _, state, Wxh, Whh, bh = tensors_of(grad=False)
    inputs = torch.complex(torch.zeros(4, 3, 5), torch.rand(4, 3, 5)).to(torch.complex128).conj().imag
    assert inputs.is_neg()
    assert_same(rnn_sequence(inputs, state, Wxh, Whh, bh), rnn_sequence(inputs.clone().resolve_neg(), state, Wxh, Whh, bh))
    grown = state.clone().requires_grad_()
    outputs, _ = rnn_sequence(inputs, grown, Wxh, Whh, bh)
    negated = torch.complex(torch.zeros_like(outputs), torch.ones_like(outputs)).conj().imag
    assert_same(torch.autograd.grad(outputs, grown, negated, retain_graph=True),
                torch.autograd.grad(outputs, grown, negated.clone().resolve_neg()))


def test_int64_tokens_are_int32_tokens():
    tokens, *others = tensors_of(tokens=True)
    assert_same(rnn_sequence(tokens.long(), *others), rnn_sequence(tokens, *others))


def test_the_results_do_not_share_memory():
    outputs, state = rnn_sequence(*tensors_of(grad=False))
    assert torch.equal(outputs[-1], state)
    state.zero_()
    assert outputs[-1].abs().min() > 0


def test_the_kernel_works_on_the_tensors_own_memory(monkeypatch):
    addresses = []
    monkeypatch.setattr(kernels, "run_forward", lambda *given: addresses.append(given[4:]))
    tensors = tensors_of(grad=False)
    outputs, _ = rnn_sequence(*tensors)
    assert addresses == [tuple(tensor.data_ptr() for tensor in [*tensors, outputs])]


def test_a_result_that_was_changed_is_an_error():
    outputs, _ = rnn_sequence(*tensors_of())
    outputs.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


# --- with and without the dispatcher ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens", [False, True])
def test_the_short_way_and_the_dispatchers_give_the_same_bits(tokens, monkeypatch):
    tensors = tensors_of(tokens, dtype=torch.float32)
    if torch._C._dispatch_keys(tensors[1]) != torch._C._dispatch_keys(tensors[1]):
        pytest.skip("this PyTorch cannot compare sets of keys, so there is no short way")
    calls = []
    for name in "forward", "backward":  # the dispatcher has the functions themselves
        kernel = getattr(operator.cpu, name)
        monkeypatch.setattr(operator.cpu, name, lambda *given, name=name, kernel=kernel: calls.append(name) or kernel(*given))
    short = gradients_of(tensors)
    assert calls == ["forward", "backward"]
    assert_same(gradients_of(tensors, function=torch.ops.rnn_ops.rnn_sequence), short)
    assert calls == ["forward", "backward"]


def test_a_mode_sees_the_operators():
    """It may count, trace or replace them."""
    tensors = tensors_of()
    with Seen() as seen:
        gradients_of(tensors)
    assert {"rnn_ops::rnn_sequence", "rnn_ops::rnn_sequence_backward"} <= set(seen.names)
    outputs, _ = rnn_sequence(*tensors)
    with Seen() as seen:
        outputs.sum().backward()
    assert "rnn_ops::rnn_sequence_backward" in seen.names


def test_a_profiler_sees_the_operators():
    with torch.profiler.profile() as profile:
        gradients_of(tensors_of())
    names = {event.name for event in profile.events()}
    assert {"rnn_ops::rnn_sequence", "rnn_ops::rnn_sequence_backward"} <= names


def test_without_autograd():
    tensors = tensors_of()
    for mode in torch.no_grad, torch.inference_mode:
        with mode():
            outputs, state = rnn_sequence(*tensors)
            assert not outputs.requires_grad and outputs.is_inference() == (mode is torch.inference_mode)
            inference = rnn_sequence(*[tensor.clone() for tensor in tensors])
        assert_same([outputs, state], inference)


@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_is_refused(grad):
    """Nobody takes silent zeros for tangents."""
    from torch.autograd import forward_ad
    inputs, *others = tensors_of(grad=grad)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="^rnn_sequence: got a tensor with a tangent"):
        rnn_sequence(forward_ad.make_dual(inputs, inputs.detach()), *others)
    with pytest.raises(NotImplementedError, match="^rnn_sequence: got a t"):
        torch.func.jvp(lambda value: rnn_sequence(value, *others), (inputs,), (inputs.detach(),))
    with forward_ad.dual_level():  # tangents of other tensors do not matter
        assert_same(rnn_sequence(inputs, *others), rnn_sequence(inputs, *others))


def test_tangents_of_cotangents_are_refused():
    from torch.autograd import forward_ad
    outputs, _ = rnn_sequence(*tensors_of())
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="^rnn_sequence: got a tensor with a tangent"):
        ones = torch.ones_like(outputs)
        outputs.backward(forward_ad.make_dual(ones, ones))


def test_torch_func_is_refused():
    with pytest.raises(NotImplementedError, match="^rnn_sequence: got a transform of torch.func, needs torch.autograd"):
        torch.func.grad(lambda *given: loss_of(rnn_sequence(*given)))(*tensors_of())


def test_under_checkpointing_and_with_saved_tensors_elsewhere():
    from torch.utils.checkpoint import checkpoint
    tensors = tensors_of()
    expected = gradients_of(tensors)
    assert_same(torch.autograd.grad(loss_of(checkpoint(rnn_sequence, *tensors, use_reentrant=False)), tensors), expected)
    with torch.autograd.graph.save_on_cpu():
        assert_same(gradients_of(tensors), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype):
    tensors = tensors_of(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        results = rnn_sequence(*[tensor.to(dtype) for tensor in tensors])
        mixed = rnn_sequence(tensors[0].to(dtype), *tensors[1:])
    assert {result.dtype for result in [*results, *mixed]} == {torch.float32}
    assert_same(results, rnn_sequence(*[tensor.to(dtype).float() for tensor in tensors]))
    assert_same(mixed, rnn_sequence(tensors[0].to(dtype).float(), *tensors[1:]))
    loss_of(mixed).backward()
    assert {tensor.grad.dtype for tensor in tensors} == {torch.float32}


# --- compilers ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("grad", [False, True], ids=["constants", "variables"])
@pytest.mark.parametrize("tokens, activation", CASES)
def test_pytorchs_own_checks_of_an_operator(tokens, activation, grad):
    """All four: schema, registration of autograd, fake tensors, and autograd compiled ahead of time with symbolic sizes."""
    tensors = tensors_of(tokens, grad=grad)
    assert set(torch.library.opcheck(operator.rnn_sequence, (*tensors, activation)).values()) == {"SUCCESS"}
    outputs, state = rnn_sequence(*tensors, activation)
    wanted = [not tokens and grad, True, True, True, True]
    for cotangents in [outputs.detach(), state.detach()], [outputs.detach(), None], [None, state.detach()]:
        results = torch.library.opcheck(operator.rnn_sequence_backward,
                                        (*cotangents, *tensors[:4], outputs.detach(), activation, wanted))
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("tokens, activation", CASES)
def test_compiled_as_a_whole(tokens, activation, dynamic):
    def function(*given):
        outputs, state = rnn_sequence(*given)
        return outputs.sin(), state * 2

    compiled = torch.compile(lambda *given: function(*given, activation), fullgraph=True, dynamic=dynamic)
    for shape in [(4, 3, 5, 6), (7, 2, 5, 6)][:1 + dynamic]:
        tensors = tensors_of(tokens, shape)
        ours, theirs = compiled(*tensors), function(*tensors, activation)
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)
        for mine, other in zip(*(torch.autograd.grad(loss_of(each), floats(tensors)) for each in (ours, theirs))):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)


def test_exported_with_a_batch_of_any_size(tmp_path):
    class Module(torch.nn.Module):
        def forward(self, inputs, state, Wxh, Whh, bh):
            return rnn_sequence(inputs, state, Wxh, Whh, bh, "relu")

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Module(), tuple(tensors_of(grad=False)), dynamic_shapes=(
        {1: rows}, {0: rows}, None, None, None))
    torch.export.save(program, str(tmp_path / "program.pt2"))
    loaded = torch.export.load(str(tmp_path / "program.pt2")).module()
    tensors = tensors_of(shape=(4, 9, 5, 6), grad=False)
    assert_same(loaded(*tensors), rnn_sequence(*tensors, "relu"))


def test_shapes_on_the_meta_device():
    outputs, state = rnn_sequence(*[tensor.to("meta") for tensor in tensors_of(grad=False)])
    assert (outputs.shape, state.shape, outputs.device.type) == ((4, 3, 6), (3, 6), "meta")


# --- errors ---------------------------------------------------------------------------------------------------------------

def without(*size, dtype=torch.float64):
    return torch.zeros(*size, dtype=dtype)


WRONG = {
    "a list": (dict(inputs=[1.0]), TypeError, "inputs: got list, needs a tensor"),
    "an array": (dict(Wxh=without(5, 6).numpy()), TypeError, "Wxh: got ndarray, needs a tensor"),
    "nothing": (dict(state=None), TypeError, "state: got NoneType, needs a tensor"),
    "sparse": (dict(bh=without(6).to_sparse()), TypeError,
               "bh: got a tensor with the layout torch.sparse_coo, needs torch.strided"),
    "half": (dict(Whh=without(6, 6, dtype=torch.bfloat16)), TypeError, "Whh: got dtype bfloat16, needs float32 or float64"),
    "mixed": (dict(bh=without(6, dtype=torch.float32)), TypeError, "bh: got dtype float32, needs float64, the dtype of state"),
    "int8 tokens": (dict(inputs=without(4, 3, dtype=torch.int8)), TypeError,
                    "inputs: got dtype int8, needs float32 or float64, or int32 or int64 for tokens"),
    "float tokens": (dict(inputs=without(4, 3)), ValueError,
                     "inputs: got float64 of shape (4, 3), needs (T, B, I) of floats or (T, B) of int32 tokens; cast tokens to "
                     "int32"),
    "transposed": (dict(Wxh=without(6, 5)), ValueError,
                   "Wxh: got shape (6, 5), needs (5, 6), (I, H) with I = 5 from inputs and H = 6 from state: Wxh.T"),
    "empty": (dict(inputs=without(0, 3, 5)), ValueError,
              "inputs: got shape (0, 3, 5), needs every dimension to be at least 1"),
    "a token too large": (dict(inputs=torch.tensor([[0, 4, 5]])), ValueError,
                          "inputs: got token 5 at [0, 2], needs 0 <= token < 5, I = 5 from Wxh"),
    "a negative token": (dict(inputs=torch.tensor([[0, -1, 4]], dtype=torch.int32)), ValueError,
                         "inputs: got token -1 at [0, 1], needs 0 <= token < 5, I = 5 from Wxh"),
    "a token beyond int32": (dict(inputs=torch.tensor([[2 ** 32 + 1, 0, 0]])), ValueError,
                             "inputs: got token 2147483647 at [0, 0], needs 0 <= token < 5, I = 5 from Wxh"),
    "activation": (dict(activation="sigmoid"), ValueError, "activation: got 'sigmoid', needs 'tanh' or 'relu'"),
    "devices": (dict(Whh=without(6, 6).to("meta")), ValueError,
                "Whh: got a tensor on meta, needs one on cpu, the device of inputs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case):
    changed, kind, sentence = WRONG[case]
    given = dict(zip(NAMES, tensors_of(grad=False)), **changed)
    with pytest.raises(kind) as error:
        rnn_sequence(**given)
    assert str(error.value) == sentence


@pytest.mark.parametrize("name, value, sentence", [
    ("outputs", without(4, 3, 7), "outputs: got float64 of shape (4, 3, 7) on cpu, needs float64 of shape (4, 3, 6) on cpu"),
    ("doutputs", without(4, 2, 6), "doutputs: got float64 of shape (4, 2, 6) on cpu, needs float64 of shape (4, 3, 6) on cpu"),
    ("doutputs", without(4, 3, 6).to("meta"),
     "doutputs: got float64 of shape (4, 3, 6) on meta, needs float64 of shape (4, 3, 6) on cpu"),
    ("Whh", without(6, 6).to("meta"), "Whh: got a tensor on meta, needs one on cpu, the device of inputs"),
    ("dlast_state", without(3, 6, dtype=torch.float32),
     "dlast_state: got float32 of shape (3, 6) on cpu, needs float64 of shape (3, 6) on cpu"),
    ("wanted", [True] * 4, "wanted: got 4 flags, needs 5, for dinputs, dstate, dWxh, dWhh and dbh"),
    ("wanted", [True] * 6, "wanted: got 6 flags, needs 5, for dinputs, dstate, dWxh, dWhh and dbh"),
    ("inputs", torch.zeros(4, 3, dtype=torch.int32), "wanted: got True for dinputs, needs False: tokens have no gradient")])
def test_wrong_arguments_of_the_gradient_are_named(name, value, sentence):
    """It can be called by its name, and must not read or write behind the end of a tensor."""
    given = dict(zip(("doutputs", "dlast_state"), (without(4, 3, 6), None)), **dict(zip(NAMES, tensors_of(grad=False)[:4])),
                 outputs=without(4, 3, 6), activation="tanh", wanted=[True] * 5)
    with pytest.raises(ValueError) as error:
        operator.rnn_sequence_backward(**dict(given, **{name: value}))
    assert str(error.value) == sentence


# --- threads --------------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("variables, own, threads", [
    ({}, 1, 1), ({}, 3, 3), ({"OMP_NUM_THREADS": "4"}, 2, 2), ({"RNN_OPS_NUM_THREADS": "2"}, 1, 2),
    ({"RNN_OPS_NUM_THREADS": "1"}, 3, 1)])
def test_as_many_threads_as_pytorch_has(tmp_path, variables, own, threads):
    """In a process of its own, whose threads are counted before and after: torch.set_num_threads, unless RNN_OPS_NUM_THREADS.
    The threads are our own there, because OpenMP ends some of its threads when it needs fewer."""
    code = (
        "import os, torch\nfrom rnn_ops.torch import cpu, rnn_sequence\n"
        f"torch.set_num_threads({own}); cpu._OPENMP = None\n"
        "given = [torch.zeros(*n, requires_grad=True) for n in [(8, 64, 300), (64, 256), (300, 256), (256, 256), (256,)]]\n"
        "cotangent = torch.ones(8, 64, 256)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "found = torch.autograd.grad(rnn_sequence(*given)[0], given, cotangent)\n"
        "print(len(os.listdir('/proc/self/task')) - before + 1)")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", code], env=dict(environment, **variables), check=True, cwd=str(tmp_path),
                         stdout=subprocess.PIPE, text=True)
    assert ran.stdout.split() == [str(threads)]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in Linux's /proc")
def test_the_threads_are_those_of_pytorchs_openmp(tmp_path):
    """They spin after PyTorch's operations, so others would have to wait for a processor."""
    code = (
        "import os, torch\nfrom rnn_ops.torch import cpu, rnn_sequence\n"
        "torch.set_num_threads(2)\n"
        "given = [torch.zeros(*n, requires_grad=True) for n in [(8, 64, 300), (64, 256), (300, 256), (256, 256), (256,)]]\n"
        "cotangent = torch.ones(8, 64, 256)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "torch.relu(torch.zeros(1000000)); before = count()\n"
        "torch.autograd.grad(rnn_sequence(*given)[0], given, cotangent); shared = count()\n"
        "cpu._OPENMP = None\n"
        "torch.autograd.grad(rnn_sequence(*given)[0], given, cotangent)\n"
        "print(shared - before, count() - before)")
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=str(tmp_path), stdout=subprocess.PIPE,
                         text=True)
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch has another kind of threads")
    assert ran.stdout.split() == ["0", "1"]


def test_the_number_of_threads_changes_no_bit():
    tensors, before, found = tensors_of(shape=(9, 37, 70, 130), dtype=torch.float32), torch.get_num_threads(), []
    try:
        for count in 1, 2, 5:
            torch.set_num_threads(count)
            found.append([rnn_sequence(*tensors)[0].detach(), *gradients_of(tensors)])
    finally:
        torch.set_num_threads(before)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_calls_from_several_threads():
    tensors = tensors_of(shape=(16, 9, 7, 33))
    expected, found = gradients_of(tensors), []
    workers = [threading.Thread(target=lambda: found.extend(gradients_of(tensors) for _ in range(20))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    for each in found:
        assert_same(each, expected)


# --- beside MXNet ---------------------------------------------------------------------------------------------------------

def python(code, cwd):
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(cwd))
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_needs_no_mxnet(tmp_path):
    code = "import sys; sys.modules['mxnet'] = None\nfrom rnn_ops.torch import RNN, TokenRNN, rnn_sequence\nprint('imported')"
    assert python(code, tmp_path) == "imported\n"
    code = "import rnn_ops.torch, sys; print('mxnet' in sys.modules)"
    assert python(code, tmp_path) == "False\n"


@pytest.mark.parametrize("first", ["torch", "mxnet", "rnn_ops.torch"])
def test_in_one_process_with_mxnet(first, tmp_path):
    """Whichever is imported first: both compute forward and backward, and give the same gradient."""
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    code = f"""
import rnn_ops
import {first}
import numpy, torch, mxnet as mx
import rnn_ops.torch
random = numpy.random.RandomState(0)
arrays = [random.uniform(-.5, .5, size) for size in [(9, 4, 7), (4, 33), (7, 33), (33, 33), (33,)]]
tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
def ours():
    rnn_ops.torch.rnn_sequence(*tensors)[0].sum().backward()
    return (tensors[0] @ tensors[2]).sum().item()
ndarrays = [mx.nd.array(array, dtype="float64") for array in arrays]
for array in ndarrays:
    array.attach_grad()
def theirs():
    with mx.autograd.record():
        loss = rnn_ops.rnn_sequence(*ndarrays)[0].sum()
    loss.backward()
    return mx.nd.dot(ndarrays[0].reshape((36, 7)), ndarrays[2]).sum().asscalar()
products = [each() for each in ((ours, theirs) if {first!r} != "mxnet" else (theirs, ours))]
assert abs(products[0] - products[1]) < 1e-9, products
for tensor, array in zip(tensors, ndarrays):
    assert abs(tensor.grad.numpy() - array.grad.asnumpy()).max() < 1e-12
print("same")
"""
    assert python(code, tmp_path) == "same\n"
