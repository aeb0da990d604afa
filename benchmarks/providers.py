"""Who computes the recurrence. Each is used as its own users would use it.

A provider is made from a problem, imports what it needs when it is made (an ImportError means that it is not
installed here), and has

    name            as the table shows it
    process         whom it shares a process with: those that bring the same threads
    packages        whose versions are noted
    about           what it runs on: versions, threads, how it was written
    calls           {mode: function without arguments that returns when its results are there}
    lacks           {mode: why there is no such call}, where one is missing
    prepared        {mode: bytes of its results}, where they are written into arrays that the provider holds from the start
    results(mode)   NumPy arrays by name, as in the problem's truth, of the last call in that mode
"""
import numpy as np

from rnn_ops import numpy_reference

OURS = KERNEL, PUBLIC, NATIVE, NATIVE_HYBRIDIZED, CUSTOM, CUSTOM_HYBRIDIZED, GLUON = (
    "kernel", "rnn_sequence", "native", "native, hybridized", "CustomOp", "CustomOp, hybridized", "rnn_ops.gluon")


class Peak:
    """Not a recurrence but a yardstick: multiply-adds in registers."""
    name = "multiply-adds"
    process = "rnn_ops"
    packages = ("rnn_ops",)

    def __init__(self, problem):
        from rnn_ops.backends import cpu
        self.about = problem.name
        self.backend, self.problem = cpu, problem
        self.calls = {"peak": self._multiply_and_add}

    def _multiply_and_add(self):
        p = self.problem
        self.count = self.backend.multiply_adds(p.rounds, p.threads, p.level, p.dtype)

    def results(self, mode):
        return {"multiply-adds": np.array([self.count], np.float64)}


class Tanh:
    """Not a recurrence either: what the floor leaves out."""
    name = "tanh"
    process = Peak.process
    packages = Peak.packages

    def __init__(self, problem):
        from rnn_ops.backends import cpu
        self.about = f"{cpu.simd()}, 1 thread"
        self.backend, self.problem = cpu, problem
        self.calls = {"tanh": self._tanh}

    def _tanh(self):
        self.y = self.backend.tanh(self.problem.x)

    def results(self, mode):
        return {"y": self.y}


class Gemm:
    """Not a recurrence but a yardstick: NumPy's own BLAS on all the threads it takes."""
    name = "sgemm"
    process = "numpy"
    packages = ("numpy",)

    def __init__(self, problem):
        self.about = f"NumPy {np.__version__}"
        self.problem = problem
        self.out = np.empty_like(problem.a)
        self.calls = {"gemm": self._multiply}

    def _multiply(self):
        np.matmul(self.problem.a, self.problem.b, out=self.out)

    def results(self, mode):
        return {"first rows": self.out[:4]}


class Kernel:
    """Our CPU backend on NumPy arrays: what the operators call, without MXNet around it."""
    name = KERNEL
    process = "rnn_ops"
    packages = ("rnn_ops", "numpy")

    def __init__(self, problem):
        from rnn_ops.backends import cpu
        self.backend = cpu
        self.about = f"{cpu.simd()}, {cpu.threads()} threads, NumPy {np.__version__}"
        self.problem = p = problem
        self.outputs = np.ones_like(p.doutputs)  # written to: an array of zeros has no memory yet
        self.gradients = {"dstate": np.ones_like(p.state), "dWxh": np.ones_like(p.Wxh), "dWhh": np.ones_like(p.Whh),
                          "dbh": np.ones_like(p.bh)}
        if not p.shape.tokens:
            self.gradients["dinputs"] = np.ones_like(p.inputs)
        self.prepared = {"forward": self.outputs.nbytes, "forward+backward": self.outputs.nbytes + sum(
            array.nbytes for array in self.gradients.values())}
        self.calls = {"forward": self._forward, "forward+backward": self._forward_backward}

    def _forward(self):
        p = self.problem
        self.backend.forward(p.inputs, p.state, p.Wxh, p.Whh, p.bh, self.outputs)

    def _forward_backward(self):
        self._forward()
        p = self.problem
        self.backend.backward(p.inputs, p.state, p.Wxh, p.Whh, self.outputs, p.doutputs, None, **self.gradients)

    def results(self, mode):
        return {"outputs": self.outputs} if mode == "forward" else dict(self.gradients, outputs=self.outputs)


class NumPyLoop:
    """One product a step, tanh by NumPy, backward by hand."""
    name = "NumPy loop"
    process = "numpy"
    packages = ("numpy",)

    def __init__(self, problem):
        self.about = f"NumPy {np.__version__}"
        self.problem = problem
        self.calls = {"forward": self._forward, "forward+backward": self._forward_backward}

    def _forward(self):
        p = self.problem
        self.outputs = numpy_reference.forward(p.inputs, p.state, p.Wxh, p.Whh, p.bh)

    def _forward_backward(self):
        self._forward()
        p = self.problem
        self.gradients = numpy_reference.backward(p.inputs, p.state, p.Wxh, p.Whh, self.outputs, p.doutputs)

    def results(self, mode):
        return {"outputs": self.outputs} if mode == "forward" else dict(self.gradients, outputs=self.outputs)


class _MXNet:
    """What the MXNet providers share: NDArrays with gradients, recording, and waiting for the engine."""
    packages = ("mxnet", "numpy")

    def __init__(self, problem):
        from rnn_ops._mxnet import mx
        self.mx = mx
        self.about = f"mxnet {mx.__version__}"
        self.inputs, self.state, self.Wxh, self.Whh, self.bh, self.doutputs = (
            mx.nd.array(array, dtype=array.dtype) for array in (
                self._inputs(problem), problem.state, problem.Wxh, problem.Whh, problem.bh, problem.doutputs))
        self.differentiable = {"dstate": self.state, "dWxh": self.Wxh, "dWhh": self.Whh, "dbh": self.bh}
        if not problem.shape.tokens:
            self.differentiable["dinputs"] = self.inputs
        for array in self.differentiable.values():
            array.attach_grad()
        self.calls = {"forward": self._forward, "forward+backward": self._forward_backward}

    def _inputs(self, problem):
        return problem.dense_inputs()

    def _run(self):
        """outputs (T, B, H), by a function with the signature of ``rnn_sequence``"""
        return self.sequence(self.inputs, self.state, self.Wxh, self.Whh, self.bh)[0]

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

    def results(self, mode):
        results = {"outputs": self.outputs.asnumpy()}
        if mode != "forward":
            results.update(self._gradients())
        return results


class NDArrayLoop(_MXNet):
    """The tutorial's own loop, on one-hot rows made beforehand as the tutorial makes them."""
    name = "ndarray loop"
    process = "mxnet"

    def __init__(self, problem):
        super().__init__(problem)
        from rnn_ops import reference
        self.sequence = reference.rnn_sequence


class Native(_MXNet):
    """Our native operator, called imperatively: what `rnn_ops.rnn_sequence` takes."""
    name = NATIVE
    process = "rnn_ops"
    packages = ("rnn_ops", "mxnet", "numpy")

    def __init__(self, problem):
        super().__init__(problem)
        from rnn_ops import operators
        self.sequence = self._sequence_of(operators)

    def _sequence_of(self, operators):
        return operators.native.rnn_sequence

    def _inputs(self, problem):
        return problem.inputs


class Public(Native):
    """What users call, `rnn_ops.rnn_sequence`: the native operator where there is one, and the checks before it."""
    name = PUBLIC

    def _sequence_of(self, operators):
        import rnn_ops
        return rnn_ops.rnn_sequence


class CustomOp(Native):
    """Our CustomOp in Python, called imperatively."""
    name = CUSTOM

    def _sequence_of(self, operators):
        return operators.custom.rnn_sequence


class _Hybridized:
    """The same inside a hybridized block, where MXNet keeps its memory from call to call."""

    def _sequence_of(self, operators):
        sequence = super()._sequence_of(operators)

        class Block(self.mx.gluon.HybridBlock):
            def hybrid_forward(self, F, inputs, state, Wxh, Whh, bh):
                return sequence(inputs, state, Wxh, Whh, bh)

        block = Block()
        block.hybridize(static_alloc=True, static_shape=True)
        return block


class NativeHybridized(_Hybridized, Native):
    name = NATIVE_HYBRIDIZED


class CustomOpHybridized(_Hybridized, CustomOp):
    name = CUSTOM_HYBRIDIZED


class GluonRNN(_MXNet):
    """MXNet's fused layer, hybridized. It knows no tokens: its users feed one-hot rows."""
    name = "mx.gluon.rnn.RNN"
    process = "mxnet"

    def __init__(self, problem):
        super().__init__(problem)
        shape = problem.shape
        self.layer = gluon_rnn(self.mx, self._layer_class(), shape.I, shape.H, problem.Wxh, problem.Whh, problem.bh)
        self.layer.hybridize(static_alloc=True, static_shape=True)

    def _layer_class(self):
        return self.mx.gluon.rnn.RNN

    def _run(self):
        return self.layer(self.inputs, [self.state.expand_dims(0)])[0]

    def _gradients(self):
        gradients = {"dstate": self.state.grad.asnumpy(), **gluon_rnn_gradients(self.layer)}
        if "dinputs" in self.differentiable:
            gradients["dinputs"] = self.inputs.grad.asnumpy()
        return gradients


class OurGluon(GluonRNN):
    """Our layer in the place of MXNet's, hybridized. It takes tokens as they are."""
    name = GLUON
    process = Native.process
    packages = Native.packages

    def _inputs(self, problem):
        return problem.inputs

    def _layer_class(self):
        from rnn_ops import gluon
        return gluon.RNN if self.inputs.ndim == 3 else gluon.TokenRNN


def gluon_rnn(mx, layer_class, I, H, Wxh, Whh, bh):
    """mx.gluon.rnn.RNN, or what stands in for it, with our weights; its second bias stays zero."""
    layer = layer_class(H, activation="tanh", input_size=I)
    layer.initialize(mx.init.Zero())
    layer.l0_i2h_weight.set_data(mx.nd.array(Wxh.T))
    layer.l0_h2h_weight.set_data(mx.nd.array(Whh.T))
    layer.l0_i2h_bias.set_data(mx.nd.array(bh))
    return layer


def gluon_rnn_gradients(layer):
    return {"dWxh": layer.l0_i2h_weight.grad().asnumpy().T, "dWhh": layer.l0_h2h_weight.grad().asnumpy().T,
            "dbh": layer.l0_i2h_bias.grad().asnumpy()}


class TorchRNN:
    """PyTorch's layer on dense input, with as many threads as PyTorch takes by itself."""
    name = "torch.nn.RNN"
    process = "torch"
    packages = ("torch",)
    threads = None

    def __init__(self, problem):
        import torch
        if self.threads:
            torch.set_num_threads(self.threads)
        self.torch = torch
        self.about = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        shape = problem.shape
        self.layer = torch_rnn(torch, shape.I, shape.H, problem.Wxh, problem.Whh, problem.bh)
        self.inputs = torch.tensor(problem.dense_inputs(), requires_grad=not shape.tokens)
        self.state = torch.tensor(problem.state[np.newaxis], requires_grad=True)
        self.doutputs = torch.tensor(problem.doutputs)
        self.calls = {"forward": self._forward, "forward+backward": self._forward_backward}

    def _forward(self):
        with self.torch.no_grad():
            self.outputs = self.layer(self.inputs, self.state)[0]

    def _forward_backward(self):
        self.layer.zero_grad()
        self.inputs.grad = self.state.grad = None
        self.outputs = self.layer(self.inputs, self.state)[0]
        self.outputs.backward(self.doutputs)

    def results(self, mode):
        results = {"outputs": self.outputs.detach().numpy()}
        if mode != "forward":
            results.update(torch_rnn_gradients(self.layer), dstate=self.state.grad[0].numpy())
            if self.inputs.requires_grad:
                results["dinputs"] = self.inputs.grad.numpy()
        return results


class TorchRNNOneThread(TorchRNN):
    """The same on one thread, which is faster where a step is too small to share."""
    name = "torch.nn.RNN, 1 thread"
    process = "torch, 1 thread"
    threads = 1


def torch_rnn(torch, I, H, Wxh, Whh, bh):
    """torch.nn.RNN with our weights; its second bias starts at zero."""
    layer = torch.nn.RNN(I, H, nonlinearity="tanh")
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor(Wxh.T))
        layer.weight_hh_l0.copy_(torch.tensor(Whh.T))
        layer.bias_ih_l0.copy_(torch.tensor(bh))
        layer.bias_hh_l0.zero_()
    return layer


def torch_rnn_gradients(layer):
    return {"dWxh": layer.weight_ih_l0.grad.numpy().T, "dWhh": layer.weight_hh_l0.grad.numpy().T,
            "dbh": layer.bias_ih_l0.grad.numpy()}


class JaxScan:
    """jax.lax.scan under jit, in the fastest of the ways to write it. It takes tokens, or one-hot rows where that is faster."""
    name = "jax.lax.scan"
    process = "jax"
    packages = ("jax", "jaxlib", "numpy")

    def __init__(self, problem):
        from . import jax_scan
        self.recurrence = jax_scan.Recurrence(problem)
        self.about = (f"jax {jax_scan.jax.__version__}; forward: {self.recurrence.forward_form}; "
                      f"forward+backward: {self.recurrence.both_form}")
        self.calls = {"forward": self._forward, "forward+backward": self._forward_backward}

    def _forward(self):
        self.found = self.recurrence.forward()

    def _forward_backward(self):
        self.found = self.recurrence.both()

    def results(self, mode):
        return self.recurrence.results(self.found, mode)


class OnnxRuntime:
    """An ONNX model of one RNN node, on dense input and as many threads as onnxruntime takes by itself."""
    name = "onnxruntime"
    process = "onnxruntime"
    packages = ("onnxruntime", "onnx", "numpy")
    lacks = {"forward+backward": "it computes no gradients"}

    def __init__(self, problem):
        from . import onnx_rnn
        self.about = f"onnxruntime {onnx_rnn.onnxruntime.__version__}"
        self.session = onnx_rnn.session(problem.shape, problem.Wxh, problem.Whh, problem.bh)
        self.inputs = {"X": problem.dense_inputs(), "initial_h": problem.state[np.newaxis]}
        self.calls = {"forward": self._forward}

    def _forward(self):
        self.outputs, = self.session.run(["Y"], self.inputs)

    def results(self, mode):
        return {"outputs": self.outputs[:, 0]}


# The processes that may have packages of their own, see worker.Workers: newer ones, for one, than go with MXNet's NumPy.
OTHERS = (TorchRNN.process, TorchRNNOneThread.process, JaxScan.process, OnnxRuntime.process)


def for_shape(shape):
    """The providers of a shape, ours first, the tutorial's loop last."""
    return (Kernel, Native, NativeHybridized, CustomOp, CustomOpHybridized, OurGluon, *_peers(shape), NDArrayLoop)


def for_grid(shape):
    """Those of the grid: our kernel, our operator as users call it, and who may be faster."""
    return (Kernel, Public, *_peers(shape))


def _peers(shape):
    one_thread = (TorchRNNOneThread,) if shape.B == 1 else ()
    return (JaxScan, GluonRNN, TorchRNN, *one_thread, OnnxRuntime, NumPyLoop)
