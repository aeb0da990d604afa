"""The gradient check of the PyTorch operator: it passes, it fails on every planted error, and ``rnn-ops check`` says so."""
import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import rnn_ops  # noqa: E402
from rnn_ops import gradcheck  # noqa: E402
from rnn_ops.backends import cuda  # noqa: E402
from rnn_ops.gradcheck import Case  # noqa: E402
from rnn_ops.torch import functions, operator, selftest  # noqa: E402
from rnn_ops_cli import check  # noqa: E402
from rnn_ops_cli.main import main  # noqa: E402

CASES = [Case("sequence", 3, 2, 2, 3), Case("sequence", 4, 3, 2, 2, "tokens"), Case("step", 1, 2, 2, 3),
         Case("sequence", 3, 2, 4, 3, activation="relu")]


class Changed(torch.autograd.Function):
    """The same tensor, whose gradient is changed on its way back. Every gradient of that is right again."""
    @staticmethod
    def forward(ctx, tensor, change):
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def planted(tensor, change, sequence=functions.rnn_sequence):
    """`rnn_ops.torch.rnn_sequence` with one error: a change of an argument's gradient ("dWxh", …), of a result's ("doutputs",
    "dlast_state"), or of a result."""
    def rnn_sequence(*arguments, activation="tanh"):
        arguments = list(arguments)
        if tensor in gradcheck.GRADIENTS:
            index = gradcheck.GRADIENTS.index(tensor)
            if arguments[index].is_floating_point():
                arguments[index] = Changed.apply(arguments[index], change)
        results = dict(zip(("outputs", "state"), sequence(*arguments, activation)))
        if tensor in results:
            results[tensor] = change(results[tensor])
        elif tensor == "doutputs":
            results["outputs"] = Changed.apply(results["outputs"], change)
        elif tensor == "dlast_state":
            results["state"] = Changed.apply(results["state"], change)
        return tuple(results.values())
    return rnn_sequence


def slightly_off(tensor):
    return tensor * (1 + 1e-6)


def one_element_off(tensor):
    off = torch.zeros_like(tensor)
    off.flatten()[-1] = 1e-6
    return tensor + off


def with_nan(tensor):
    return tensor * torch.tensor(float("nan")).to(tensor)


def in_half_precision(tensor):
    return tensor if tensor.dtype is torch.float64 else tensor.half().float()


def failures(rnn_sequence, cases=CASES):
    """(comparison, tensor) of every failed row."""
    rows = gradcheck.check(rnn_sequence=rnn_sequence, cases=cases, framework="torch")
    return {(row.comparison, row.tensor) for row in rows if not row.passed}


def test_the_default_is_the_public_operator_and_a_step_is_made_of_it():
    rows = gradcheck.check(cases=CASES, framework="torch")
    assert rows and all(row.passed for row in rows)
    assert {row.tensor for row in rows if row.case.operator == "step"} == set(gradcheck.TENSORS) - {"outputs"}
    assert {row.comparison for row in rows} == set(gradcheck.COMPARISONS)


def test_a_wrapped_operator_without_a_fault_passes():
    assert failures(planted("", None)) == set()


@pytest.mark.parametrize("gradient", gradcheck.GRADIENTS)
@pytest.mark.parametrize("change", [slightly_off, one_element_off, with_nan])
def test_an_error_in_one_gradient(gradient, change):
    """It is caught in that gradient, in float64 by both comparisons, and nowhere else."""
    failed = failures(planted(gradient, change))
    assert {tensor for _, tensor in failed} == {gradient}
    assert failed >= {("float64, reference", gradient), ("float64, differences", gradient)}


@pytest.mark.parametrize("gradient", gradcheck.GRADIENTS)
def test_an_error_in_float32_alone(gradient):
    assert failures(planted(gradient, in_half_precision)) == {("float32, reference", gradient)}


@pytest.mark.parametrize("cotangent", ["doutputs", "dlast_state"])
def test_a_gradient_that_does_not_arrive(cotangent):
    failed = failures(planted(cotangent, torch.zeros_like), CASES[:2])
    for comparison in ("float64, reference", "float64, differences", "float32, reference"):
        assert {tensor for found, tensor in failed if found == comparison} == set(gradcheck.GRADIENTS), comparison
    assert not [tensor for comparison, tensor in failed if comparison == "float64, reference's differences"]


@pytest.mark.parametrize("result", ["outputs", "state"])
def test_an_error_in_a_result(result):
    failed = failures(planted(result, slightly_off), CASES[:2])
    assert ("float64, reference", result) in failed
    assert ("float32, reference", result) in failures(planted(result, with_nan), CASES[:2])


def test_an_error_in_the_truth_is_not_agreed_with(monkeypatch):
    """Where operator and truth share a wrong gradient, the central differences find it."""
    from rnn_ops.torch import autograd
    right = autograd.evaluate

    def wrong(problem):
        found = right(problem)
        return dict(found, dstate=found["dstate"] * 2)

    monkeypatch.setattr(autograd, "evaluate", wrong)
    failed = failures(planted("dstate", lambda tensor: 2 * tensor))
    assert failed == {("float64, differences", "dstate"), ("float64, reference's differences", "dstate")}


def test_a_framework_that_is_unknown():
    with pytest.raises(ValueError, match="^framework: got 'jax', needs 'mxnet' or 'torch'$"):
        gradcheck.check(cases=CASES[:1], framework="jax")


# --- PyTorch's own checks

@pytest.fixture
def few_cases(monkeypatch):
    monkeypatch.setattr(gradcheck, "default_cases", lambda: CASES)


def failed_outcomes():
    return {(outcome.check, outcome.case.input) for outcome in selftest.run() if not outcome.passed}


def test_pytorchs_own_checks(few_cases):
    random = torch.random.get_rng_state()
    outcomes = selftest.run()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(outcome.passed for outcome in outcomes)
    assert [(outcome.check, outcome.case) for outcome in outcomes] == [
        (name, case) for case in CASES if case.operator == "sequence" for name in ("gradcheck", "gradgradcheck")] + [
        ("opcheck", selftest.REGISTRATION._replace(input=kind)) for kind in gradcheck.INPUTS]


def test_gradcheck_finds_a_wrong_gradient(few_cases, monkeypatch):
    monkeypatch.setattr(functions, "rnn_sequence", planted("dWhh", lambda tensor: tensor * 1.01))
    assert failed_outcomes() >= {("gradcheck", "dense"), ("gradcheck", "tokens")}


def test_gradgradcheck_finds_a_wrong_second_gradient(few_cases, monkeypatch):
    """One that the gradient itself does not show."""
    def without_its_graph(gradient):
        return gradient.detach() + 0 * gradient

    monkeypatch.setattr(functions, "rnn_sequence", planted("dWhh", without_its_graph))
    assert failed_outcomes() == {("gradgradcheck", "dense"), ("gradgradcheck", "tokens")}


def test_opcheck_finds_a_wrong_shape(few_cases, monkeypatch):
    library = torch.library.Library("rnn_ops_test_wrong_shape", "DEF")
    library.define("rnn_sequence(Tensor inputs, Tensor state, Tensor Wxh, Tensor Whh, Tensor bh, str activation) -> Tensor")
    library.impl("rnn_sequence", lambda *arguments: operator.rnn_sequence(*arguments)[0].detach(), "CPU")
    torch.library.register_fake("rnn_ops_test_wrong_shape::rnn_sequence", lambda inputs, state, *_: torch.empty_like(state),
                                lib=library)
    monkeypatch.setattr(operator, "rnn_sequence", torch.ops.rnn_ops_test_wrong_shape.rnn_sequence.default)
    monkeypatch.setattr(functions, "rnn_sequence", planted("", None, operator.rnn_sequence))
    assert failed_outcomes() >= {("opcheck", "dense"), ("opcheck", "tokens")}


# --- the command

@pytest.mark.slow
def test_rnn_ops_check_passes(tmp_path, capfd):
    """The whole grid."""
    path = tmp_path / "check.json"
    assert main(["check", "--framework", "torch", "--json", str(path)]) == 0
    printed = capfd.readouterr().out
    assert printed.startswith(f"rnn_ops {rnn_ops.__version__}, PyTorch {torch.__version__} operator, on cpu against its ")
    assert "50/50" in printed and "1072 comparisons" in printed
    assert "PyTorch's own checks: 23 gradcheck, 23 gradgradcheck, 2 opcheck, 0 failed\n" in printed
    assert max(map(len, printed.splitlines())) <= 80
    record = json.loads(path.read_text())
    assert list(record) == ["rnn_ops", "numpy", "device", "torch", "rows", "pytorch_checks", "seconds", "passed", "left_out"]
    assert record["passed"] and record["device"] == "cpu" and record["torch"] == torch.__version__ and record["left_out"] == []
    assert {row["comparison"] for row in record["rows"]} == set(gradcheck.COMPARISONS)
    assert any((row["T"], row["B"], row["I"], row["H"], row["input"]) == (64, 32, 77, 256, "tokens") for row in record["rows"])
    assert all(row["error"] <= row["bound"] for row in record["rows"])
    assert len(record["pytorch_checks"]) == 48 and all(row["passed"] for row in record["pytorch_checks"])


def test_rnn_ops_check_fails_where_a_gradient_is_wrong(few_cases, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(functions, "rnn_sequence", planted("dbh", with_nan))
    path = tmp_path / "check.json"
    assert main(["check", "--framework", "torch", "--json", str(path)]) == 1
    printed = capfd.readouterr().out
    assert "FAILED  sequence T=3 B=2 I=2 H=3 dense random:\n        float64, reference, dbh: inf > 1.00e-09\n" in printed
    assert "FAILED  gradcheck, sequence T=3 B=2 I=2 H=3 dense random: GradcheckError: " in printed
    record = json.loads(path.read_text())
    assert not record["passed"] and {row["tensor"] for row in record["rows"] if row["error"] is None} == {"dbh"}
    assert {row["check"] for row in record["pytorch_checks"] if not row["passed"]} == {"gradcheck", "gradgradcheck"}


def test_rnn_ops_check_fails_where_a_check_of_pytorchs_fails(few_cases, monkeypatch, capfd):
    monkeypatch.setattr(selftest, "run", lambda: [selftest.Outcome("opcheck", CASES[0], "for a reason")])
    assert main(["check", "--framework", "torch"]) == 1
    printed = capfd.readouterr().out
    assert ", 0 failed\n" in printed and "FAILED  opcheck, sequence T=3 B=2 I=2 H=3 dense random: for a reason\n" in printed


def in_python(code):
    """(exit status, stdout, stderr) of code in a process of its own."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def test_without_mxnet_pytorch_is_checked():
    status, printed, said = in_python(
        "import sys; sys.modules['mxnet'] = None\nfrom rnn_ops import gradcheck\nfrom rnn_ops_cli.main import main\n"
        "gradcheck.default_cases = lambda: [gradcheck.Case('sequence', 3, 2, 5, 7, 'tokens')]\n"
        "status = main(['check'])\n"
        "assert not [name for name in sys.modules if name.startswith(('mxnet.', 'rnn_ops._mxnet.', 'rnn_ops.operators'))]\n"
        "raise SystemExit(status)")
    assert (status, said) == (0, "")
    assert "PyTorch" in printed and printed.endswith("PyTorch's own checks: 1 gradcheck, 1 gradgradcheck, 2 opcheck, 0 failed\n")


def test_without_pytorch_one_sentence_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["check", "--framework", "torch"]) == 1
    assert capfd.readouterr().err == (
        "rnn-ops: error: --framework torch: PyTorch is not installed; rnn_ops[torch] brings it\n")


# --- on a GPU, with everything that computes replaced

def test_a_missing_gpu_is_refused_in_words(capfd):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["check", "--framework", "torch", "--device", "cuda"]) == 2
    assert capfd.readouterr().err == (
        f"rnn-ops: error: --device cuda: PyTorch {torch.__version__} finds no GPU that it can use\n")


def where_new_tensors_go():
    try:
        return torch.empty(0).device.type
    except (AssertionError, RuntimeError):  # there is no GPU
        return "cuda"


@pytest.fixture
def gpu(monkeypatch, few_cases, tmp_path, capfd):
    """``rnn-ops check --device cuda`` where each part only says that it ran → (status, lines, file's record)."""
    row = gradcheck.Row(CASES[0], "float64, reference", "dWxh", 0.0, 1.0)

    def part(name):
        def run(*_, **__):
            print(name, "on", where_new_tensors_go())
            return {"gradients": [row], "PyTorch": []}.get(name, 0)
        return run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    monkeypatch.setattr(check, "_check_kernels", part("kernels"))
    monkeypatch.setattr(gradcheck, "check", part("gradients"))
    monkeypatch.setattr(selftest, "run", part("PyTorch"))

    def call(*options):
        path = tmp_path / "check.json"
        status = main(["check", "--device", "cuda", "--json", str(path), *options])
        return status, capfd.readouterr().out.splitlines(), json.loads(path.read_text())
    return call


def test_on_a_gpu_kernels_come_first_then_tensors_on_it(gpu):
    status, lines, record = gpu("--framework", "torch")
    assert [line for line in lines if line.endswith((" on cpu", " on cuda"))] == [
        "kernels on cpu", "gradients on cuda", "PyTorch on cuda"]
    assert status == 0 and record["device"] == "a GPU" and record["left_out"] == []
    assert where_new_tensors_go() == "cpu"


def test_on_a_gpu_without_cupy_the_kernels_alone_are_left_out(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "why_not", lambda: "CuPy is not installed")
    status, lines, record = gpu("--framework", "torch")
    assert status == 0 and "kernels on cpu" not in lines and "gradients on cuda" in lines
    assert record["left_out"] == ["the kernels alone: CuPy is not installed"] and lines[-1] == (
        "Left out: the kernels alone: CuPy is not installed")


def test_a_pytorch_without_a_gpu_is_left_out_if_nobody_asked_for_it(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None if name == "mxnet" else "found")
    status, lines, record = gpu()
    assert status == 0 and "kernels on cpu" in lines and "gradients on cuda" not in lines
    assert record["left_out"] == [f"the operators: PyTorch {torch.__version__} finds no GPU that it can use"]
