"""The providers of the recurrence on a CPU, each used as its own users would use it.

To time your own, write a class like `Provider` and name it: ``rnn-ops bench --provider
module:Class``, or from Python::

    stage = measure.Stage("mine", ((Mine, problem), (providers.Kernel, problem)))
    with worker.Workers() as workers:
        rows = measure.measure(stage, workers, rounds=10, seconds=0.05)
"""
from types import ModuleType
from typing import Any, Callable, Dict, NamedTuple, Tuple

import numpy as np

from rnn_ops import numpy_reference

from . import problems
from .problems import BOTH, FORWARD, TUTORIAL

OURS = KERNEL, PUBLIC, NATIVE, NATIVE_HYBRIDIZED, CUSTOM, CUSTOM_HYBRIDIZED, GLUON, TORCH_SEQUENCE, TORCH_LAYER = (
    "kernel", "rnn_sequence", "native", "native, hybridized", "CustomOp", "CustomOp, hybridized", "rnn_ops.gluon",
    "rnn_ops.torch.rnn_sequence", "rnn_ops.torch.RNN")
OURS_IN_TORCH = TORCH_SEQUENCE, TORCH_LAYER
_MXNET, _OUR_PACKAGES = ("mxnet", "numpy"), ("rnn_ops", "mxnet", "numpy")


class Provider:
    """Computes a problem (problems.py). It is made in a process of its own, from the problem, and imports there what it needs;
    an ImportError means that it is not installed.

    Class attributes
    ----------------
    name : str
        As the tables show it.
    process : str
        Providers that name the same one share a process. Share a process only if you use the same threads.
    packages : tuple of str
        The result file notes their versions.
    lacks : dict
        {direction: why it does not offer that}

    Attributes of an instance
    -------------------------
    about : str
        Versions, threads, how it was written.
    calls : dict
        {direction: function without arguments that returns when the results are there}
    prepared : dict
        {direction: bytes of its results}, if they are written into arrays that it holds from the start.
    """

    name: str
    process: str = "own"
    packages: Tuple[str, ...] = ()
    lacks: Dict[str, str] = {}
    about: str = ""
    calls: Dict[str, Callable[[], Any]]
    prepared: Dict[str, int] = {}

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        """NumPy arrays by name, of the last call in that direction: those of the problem's truth."""
        raise NotImplementedError


class Row(NamedTuple):
    """A provider that differs from others in arguments only: ``make(problem, *arguments)`` gives the instance."""
    name: str
    process: str
    packages: Tuple[str, ...]
    make: Callable[..., Provider]
    arguments: tuple = ()
    lacks = {}

    def __call__(self, problem: Any) -> Provider:
        return self.make(problem, *self.arguments)


class Peak(Provider):
    """Not a recurrence but a yardstick: multiply-adds in registers."""
    name = "multiply-adds"
    process = "rnn_ops"
    packages = ("rnn_ops",)

    def __init__(self, problem: problems.Peak) -> None:
        from rnn_ops.backends import cpu
        self.about = problem.name
        self.backend, self.problem = cpu, problem
        self.calls = {"peak": self._multiply_and_add}

    def _multiply_and_add(self):
        p = self.problem
        self.count = self.backend.multiply_adds(p.rounds, p.threads, p.level, p.dtype)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"multiply-adds": np.array([self.count], np.float64)}


class Tanh(Provider):
    """Not a recurrence either: the tanh that the floor leaves out."""
    name = "tanh"
    process = Peak.process
    packages = Peak.packages

    def __init__(self, problem: problems.Tanh) -> None:
        from rnn_ops.backends import cpu
        self.about = f"{cpu.simd()}, 1 thread"
        self.backend, self.problem = cpu, problem
        self.calls = {"tanh": self._tanh}

    def _tanh(self):
        self.y = self.backend.tanh(self.problem.x)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"y": self.y}


class Gemm(Provider):
    """Not a recurrence but a yardstick: NumPy's own BLAS on all the threads it takes."""
    name = "sgemm"
    process = "numpy"
    packages = ("numpy",)

    def __init__(self, problem: problems.Gemm) -> None:
        self.about = f"NumPy {np.__version__}"
        self.problem = problem
        self.out = np.empty_like(problem.a)
        self.calls = {"gemm": self._multiply}

    def _multiply(self):
        np.matmul(self.problem.a, self.problem.b, out=self.out)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"first rows": self.out[:4]}


class Kernel(Provider):
    """Our CPU backend on NumPy arrays: the operators' own, without MXNet around it."""
    name = KERNEL
    process = "rnn_ops"
    packages = ("rnn_ops", "numpy")

    def __init__(self, problem: problems.Sequence) -> None:
        from rnn_ops.backends import cpu
        self.backend = cpu
        self.about = f"{cpu.simd()}, {cpu.threads()} threads, NumPy {np.__version__}"
        self.problem = p = problem
        self.outputs = np.ones_like(p.doutputs)  # written to: an array of zeros has no memory yet
        self.gradients = {"dstate": np.ones_like(p.state), "dWxh": np.ones_like(p.Wxh), "dWhh": np.ones_like(p.Whh),
                          "dbh": np.ones_like(p.bh)}
        if not p.shape.tokens:
            self.gradients["dinputs"] = np.ones_like(p.inputs)
        self.prepared = {FORWARD: self.outputs.nbytes, BOTH: self.outputs.nbytes + sum(
            array.nbytes for array in self.gradients.values())}
        self.calls = {FORWARD: self._forward, BOTH: self._forward_backward}

    def _forward(self):
        p = self.problem
        self.backend.forward(p.inputs, p.state, p.Wxh, p.Whh, p.bh, self.outputs)

    def _forward_backward(self):
        self._forward()
        p = self.problem
        self.backend.backward(p.inputs, p.state, p.Wxh, p.Whh, self.outputs, p.doutputs, None, **self.gradients)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"outputs": self.outputs} if direction == FORWARD else dict(self.gradients, outputs=self.outputs)


class NumPyLoop(Provider):
    """One product a step, tanh by NumPy, backward by hand."""
    name = "NumPy loop"
    process = "numpy"
    packages = ("numpy",)

    def __init__(self, problem: problems.Sequence) -> None:
        self.about = f"NumPy {np.__version__}"
        self.problem = problem
        self.calls = {FORWARD: self._forward, BOTH: self._forward_backward}

    def _forward(self):
        p = self.problem
        self.outputs = numpy_reference.forward(p.inputs, p.state, p.Wxh, p.Whh, p.bh)

    def _forward_backward(self):
        self._forward()
        p = self.problem
        self.gradients = numpy_reference.backward(p.inputs, p.state, p.Wxh, p.Whh, self.outputs, p.doutputs)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"outputs": self.outputs} if direction == FORWARD else dict(self.gradients, outputs=self.outputs)


class _MXNet(Provider):
    """NDArrays with gradients, recording, and waiting for MXNet's engine."""

    def __init__(self, problem, tokens):
        """``tokens``: whether it takes tokens as they are; one-hot rows else."""
        from rnn_ops._mxnet import mx
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        inputs = problem.inputs if tokens else problem.dense_inputs()
        self.inputs, self.state, self.Wxh, self.Whh, self.bh, self.doutputs = (
            mx.nd.array(array, dtype=array.dtype) for array in (
                inputs, problem.state, problem.Wxh, problem.Whh, problem.bh, problem.doutputs))
        self.differentiable = {"dstate": self.state, "dWxh": self.Wxh, "dWhh": self.Whh, "dbh": self.bh}
        if not problem.shape.tokens:
            self.differentiable["dinputs"] = self.inputs
        for array in self.differentiable.values():
            array.attach_grad()
        self.calls = {FORWARD: self._forward, BOTH: self._forward_backward}

    def _forward(self):
        self.outputs = self._run()
        self.mx.nd.waitall()

    def _forward_backward(self):
        with self.mx.autograd.record():
            self.outputs = self._run()
        self.outputs.backward(self.doutputs)
        self.mx.nd.waitall()

    def _gradients(self):
        return {name: array.grad.asnumpy() for name, array in self.differentiable.items()}

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        results = {"outputs": self.outputs.asnumpy()}
        if direction != FORWARD:
            results.update(self._gradients())
        return results


class _Sequence(_MXNet):
    """A function with the signature of ``rnn_sequence``, called imperatively or, hybridized, inside a block, where MXNet keeps
    its memory from call to call."""

    def __init__(self, problem, load, tokens=True, hybridized=False):
        super().__init__(problem, tokens)
        sequence = load()
        if hybridized:
            class Block(self.mx.gluon.HybridBlock):
                def hybrid_forward(self, F, *arrays):
                    return sequence(*arrays)

            self._sequence = Block()
            self._sequence.hybridize(static_alloc=True, static_shape=True)
        else:
            self._sequence = sequence

    def _run(self):
        return self._sequence(self.inputs, self.state, self.Wxh, self.Whh, self.bh)[0]


def native() -> Callable:
    """Our native operator, which `rnn_ops.rnn_sequence` takes."""
    from rnn_ops import operators
    return operators.native.rnn_sequence


def custom() -> Callable:
    """Our CustomOp in Python."""
    from rnn_ops import operators
    return operators.custom.rnn_sequence


def _public():
    """The function that users call: the native operator where it works, and checks before it."""
    import rnn_ops
    return rnn_ops.rnn_sequence


def _tutorial():
    """The tutorial's own loop."""
    from rnn_ops import reference
    return reference.rnn_sequence


Native = Row(NATIVE, "rnn_ops", _OUR_PACKAGES, _Sequence, (native,))
Public = Row(PUBLIC, "rnn_ops", _OUR_PACKAGES, _Sequence, (_public,))
CustomOp = Row(CUSTOM, "rnn_ops", _OUR_PACKAGES, _Sequence, (custom,))
NativeHybridized = Row(NATIVE_HYBRIDIZED, "rnn_ops", _OUR_PACKAGES, _Sequence, (native, True, True))
CustomOpHybridized = Row(CUSTOM_HYBRIDIZED, "rnn_ops", _OUR_PACKAGES, _Sequence, (custom, True, True))
NDArrayLoop = Row("ndarray loop", "mxnet", _MXNET, _Sequence, (_tutorial, False))


class _Layer(_MXNet):
    """MXNet's fused layer, hybridized, which knows no tokens: its users feed one-hot rows. Or ours in its place."""

    def __init__(self, problem, ours):
        super().__init__(problem, tokens=ours)
        layer_class = self.mx.gluon.rnn.RNN
        if ours:
            from rnn_ops import gluon
            layer_class = gluon.TokenRNN if problem.shape.tokens else gluon.RNN
        shape = problem.shape
        self.layer = gluon_rnn(self.mx, layer_class, shape.I, shape.H, problem.Wxh, problem.Whh, problem.bh)
        self.layer.hybridize(static_alloc=True, static_shape=True)

    def _run(self):
        return self.layer(self.inputs, [self.state.expand_dims(0)])[0]

    def _gradients(self):
        gradients = {"dstate": self.state.grad.asnumpy(), **gluon_rnn_gradients(self.layer)}
        if "dinputs" in self.differentiable:
            gradients["dinputs"] = self.inputs.grad.asnumpy()
        return gradients


GluonRNN = Row("mx.gluon.rnn.RNN", "mxnet", _MXNET, _Layer, (False,))
OurGluon = Row(GLUON, "rnn_ops", _OUR_PACKAGES, _Layer, (True,))


def gluon_rnn(mx: ModuleType, layer_class: type, I: int, H: int, Wxh: np.ndarray, Whh: np.ndarray, bh: np.ndarray) -> Any:
    """A layer with the interface of mx.gluon.rnn.RNN and our weights; its second bias stays zero."""
    layer = layer_class(H, activation="tanh", input_size=I)
    layer.initialize(mx.init.Zero())
    layer.l0_i2h_weight.set_data(mx.nd.array(Wxh.T))
    layer.l0_h2h_weight.set_data(mx.nd.array(Whh.T))
    layer.l0_i2h_bias.set_data(mx.nd.array(bh))
    return layer


def gluon_rnn_gradients(layer: Any) -> Dict[str, np.ndarray]:
    return {"dWxh": layer.l0_i2h_weight.grad().asnumpy().T, "dWhh": layer.l0_h2h_weight.grad().asnumpy().T,
            "dbh": layer.l0_i2h_bias.grad().asnumpy()}


class _Torch(Provider):
    """Tensors with gradients, on as many threads as PyTorch takes by itself, or so many."""

    def __init__(self, problem, tokens, threads=None):
        """``tokens``: whether it takes tokens as they are; one-hot rows else."""
        import torch
        if threads:
            torch.set_num_threads(threads)
        self.torch = torch
        self.about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        self.inputs = torch.tensor(problem.inputs if tokens else problem.dense_inputs())
        self.inputs.requires_grad_(not problem.shape.tokens)
        self.state = torch.tensor(problem.state, requires_grad=True)
        self.doutputs = torch.tensor(problem.doutputs)
        self.calls = {FORWARD: self._forward, BOTH: self._forward_backward}

    def _forward(self):
        with self.torch.no_grad():
            self.outputs = self._run()

    def _forward_backward(self):
        self.inputs.grad = self.state.grad = None
        self._forget_gradients()
        self.outputs = self._run()
        self.outputs.backward(self.doutputs)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        results = {"outputs": self.outputs.detach().numpy()}
        if direction != FORWARD:
            results.update(self._gradients(), dstate=self.state.grad.numpy().reshape(self.doutputs.shape[1:]))
            if self.inputs.requires_grad:
                results["dinputs"] = self.inputs.grad.numpy()
        return results


class _TorchSequence(_Torch):
    """Our operator on tensors."""

    def __init__(self, problem):
        super().__init__(problem, tokens=True)
        from rnn_ops.torch import rnn_sequence
        self._sequence = rnn_sequence
        self._weights = [self.torch.tensor(array, requires_grad=True) for array in (problem.Wxh, problem.Whh, problem.bh)]

    def _run(self):
        return self._sequence(self.inputs, self.state, *self._weights)[0]

    def _forget_gradients(self):
        for tensor in self._weights:
            tensor.grad = None

    def _gradients(self):
        return {name: tensor.grad.numpy() for name, tensor in zip(("dWxh", "dWhh", "dbh"), self._weights)}


class _TorchLayer(_Torch):
    """PyTorch's layer on dense input, or ours instead of it on the same."""

    def __init__(self, problem, ours=False, threads=None):
        super().__init__(problem, tokens=False, threads=threads)
        self.state = self.torch.tensor(problem.state[np.newaxis], requires_grad=True)
        layer_class, shape = self.torch.nn.RNN, problem.shape
        if ours:
            from rnn_ops.torch import RNN as layer_class
        self.layer = torch_rnn(self.torch, layer_class, shape.I, shape.H, problem.Wxh, problem.Whh, problem.bh)

    def _run(self):
        return self.layer(self.inputs, self.state)[0]

    def _forget_gradients(self):
        self.layer.zero_grad()

    def _gradients(self):
        return torch_rnn_gradients(self.layer)


OurTorchSequence = Row(TORCH_SEQUENCE, "rnn_ops.torch", ("rnn_ops", "torch"), _TorchSequence)
OurTorchRNN = Row(TORCH_LAYER, "rnn_ops.torch", ("rnn_ops", "torch"), _TorchLayer, (True,))
TorchRNN = Row("torch.nn.RNN", "torch", ("torch",), _TorchLayer)
# Faster where a step is too small to share.
TorchRNNOneThread = Row("torch.nn.RNN, 1 thread", "torch, 1 thread", ("torch",), _TorchLayer, (False, 1))


def torch_rnn(torch: ModuleType, layer_class: type, I: int, H: int, Wxh: np.ndarray, Whh: np.ndarray, bh: np.ndarray) -> Any:
    """A layer with the interface of torch.nn.RNN and our weights; its second bias starts at zero."""
    layer = layer_class(I, H, nonlinearity="tanh")
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor(Wxh.T))
        layer.weight_hh_l0.copy_(torch.tensor(Whh.T))
        layer.bias_ih_l0.copy_(torch.tensor(bh))
        layer.bias_hh_l0.zero_()
    return layer


def torch_rnn_gradients(layer: Any) -> Dict[str, np.ndarray]:
    return {"dWxh": layer.weight_ih_l0.grad.numpy().T, "dWhh": layer.weight_hh_l0.grad.numpy().T,
            "dbh": layer.bias_ih_l0.grad.numpy()}


class _JaxScan(Provider):
    """jax.lax.scan under jit, in the fastest of the ways to write it. It takes tokens, or one-hot rows where that is faster."""

    def __init__(self, problem, platform=None):
        from . import jax_scan
        self.jax = jax_scan.jax
        if platform:
            self.jax.config.update("jax_platforms", platform)
        self.recurrence = jax_scan.Scan(problem)
        self.about = (f"jax {jax_scan.jax.__version__}; forward: {self.recurrence.forward_form}; "
                      f"forward+backward: {self.recurrence.both_form}")
        self.calls = {FORWARD: self._forward, BOTH: self._forward_backward}

    def _forward(self):
        self.found = self.jax.block_until_ready(self.recurrence.forward())

    def _forward_backward(self):
        self.found = self.jax.block_until_ready(self.recurrence.both())

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return self.recurrence.results(self.found, direction)


JaxScan = Row("jax.lax.scan", "jax", ("jax", "jaxlib", "numpy"), _JaxScan, ("cpu",))


class OnnxRuntime(Provider):
    """An ONNX model of one RNN node, on dense input and as many threads as onnxruntime takes by itself."""
    name = "onnxruntime"
    process = "onnxruntime"
    packages = ("onnxruntime", "onnx", "numpy")
    lacks = {BOTH: "it computes no gradients"}

    def __init__(self, problem: problems.Sequence) -> None:
        from . import onnx_rnn
        self.about = f"onnxruntime {onnx_rnn.onnxruntime.__version__}"
        self.session = onnx_rnn.session(problem.shape, problem.Wxh, problem.Whh, problem.bh)
        self.inputs = {"X": problem.dense_inputs(), "initial_h": problem.state[np.newaxis]}
        self.calls = {FORWARD: self._forward}

    def _forward(self):
        self.outputs, = self.session.run(["Y"], self.inputs)

    def results(self, direction: str) -> Dict[str, np.ndarray]:
        return {"outputs": self.outputs[:, 0]}


# Processes that may take packages from a folder of their own (worker.Workers), such as newer ones than MXNet's NumPy allows.
OTHERS = (OurTorchSequence.process, TorchRNN.process, TorchRNNOneThread.process, JaxScan.process, OnnxRuntime.process)


def for_shape(shape: problems.Shape) -> tuple:
    """The providers of a shape, ours first, the tutorial's loop last."""
    return (Kernel, Native, NativeHybridized, CustomOp, CustomOpHybridized, OurGluon, OurTorchSequence, OurTorchRNN,
            *_peers(shape), NDArrayLoop)


def for_grid(shape: problems.Shape) -> tuple:
    """The providers of the grid: our kernel, our operators as users call them, and the peers."""
    return (Kernel, Public, OurTorchSequence, OurTorchRNN, *_peers(shape))


def _peers(shape):
    one_thread = (TorchRNNOneThread,) if shape.B == 1 else ()
    return (JaxScan, GluonRNN, TorchRNN, *one_thread, OnnxRuntime, NumPyLoop)


# Names that providers of your own cannot have.
NAMES = {"floor", "ours", PUBLIC} | {
    provider.name for provider in (Peak, Tanh, Gemm, *for_shape(TUTORIAL._replace(B=1)))}
