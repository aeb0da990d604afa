"""Providers on a GPU: our variants, and torch.nn.RNN (cuDNN). All of them compute the same function of the same tokens: outputs,
and the gradients of Wxh, Whh, bh and the initial state from a gradient of all outputs.

Ours take the tokens as they are, or, as *one-hot*, the rows of zeros and ones that torch.nn.RNN takes, which knows no tokens;
x·Wxh is then a product of T·B×I×H for both. The rows are made before the clock starts.
"""
import numpy as np

from . import launches, providers
from .problems import BACKWARD, BOTH, FORWARD, STEPS
from .worker import BOUND

OURS, TORCH, TORCH_TF32 = "ours", "torch.nn.RNN", "torch.nn.RNN, TF32"
TF32_BOUND = 2e-2  # worst relative error: that of TF32's products, with room for sums of T·B of them
MOST_SETS = 8


class GpuProvider:
    """Computes a problem on a GPU, on several sets of arguments in memory of their own, which are taken in turn.

    It is made by ``Class(problem, count)`` with so many sets, and imports there what it needs: an ImportError means that it is
    not installed. ``rnn-ops bench --device cuda --provider module:Class`` times your own.

    Attributes
    ----------
    name, family, variant, input : str
        As the tables show it; ``input`` is "tokens" or "one-hot". An instance may know more of its variant.
    bound : float
        The largest relative error that its results may have.
    calls : dict
        {direction: (before or None, call)}: functions of the number of a set that launch and do not wait, in PyTorch's or CuPy's
        current stream, which is the default one. All calls of ``before`` are done before the clock starts.
    """

    family, variant, input = "", "", "one-hot"
    bound = BOUND
    chosen = False

    def results(self):
        """NumPy arrays by name, of set 0, after forward+backward: outputs, dstate, dWxh, dWhh, dbh."""
        raise NotImplementedError

    def launches(self, direction):
        """How many launches, products and fills a call puts into the stream, if that is known."""
        return 1


def about(provider):
    """The columns of a result's row that say who computes, of an instance or of its class."""
    return {"provider": provider.name, "family": provider.family, "variant": provider.variant, "chosen": provider.chosen,
            "input": provider.input}


class Ours(GpuProvider):
    """One variant of our kernels through the launcher: no checks of the arguments, no waiting."""
    name = OURS

    def __init__(self, gpu, sets, variant, one_hot=False, chosen=False):
        self._gpu, self._sets, self._variant = gpu, sets, variant
        self.family, self.variant, self.chosen = variant.family, str(variant), chosen
        self.input = "one-hot" if one_hot else "tokens"
        self.predicted = {}
        if variant.exchange == "async":  # the older one is not predicted
            self.predicted = {"predicted_cycles": variant.cycles, "predicted_backward_cycles": variant.backward_cycles}
        self.calls = {FORWARD: (None, self._forward), STEPS: (None, self._steps), BACKWARD: (None, self._backward),
                      BOTH: (None, self._both)}

    def launches(self, direction):
        s = self._sets[0]
        (T, B, H), (I, _) = s["outputs"].shape, s["Wxh"].shape
        return len(launches.record(self._gpu.device, (T, B, I, H), tokens=self.input == "tokens",
                                   variant=self._variant, direction=direction))

    def _forward(self, i):
        s = self._sets[i]
        self._gpu.launcher.forward(s[self.input], s["state"], s["Wxh"], s["Whh"], s["bh"], s["outputs"],
                                   variant=self._variant)

    def _backward(self, i):
        self._gradients(i, ("dstate", "dWxh", "dWhh", "dbh"))

    def _steps(self, i):
        self._gradients(i, ("dstate",))

    def _both(self, i):
        self._forward(i)
        self._backward(i)

    def _gradients(self, i, names):
        s = self._sets[i]
        self._gpu.launcher.backward(
            s[self.input], s["state"], s["Wxh"], s["Whh"], s["outputs"], s["doutputs"], None,
            **{name: s[name] for name in names}, variant=self._variant)

    def results(self):
        names = ("outputs", "dstate", "dWxh", "dWhh", "dbh")
        for name in names:
            self._gpu.spoil(self._sets[0][name])
        self._both(0)
        return {name: self._gpu.to_host(self._sets[0][name]) for name in names}


def make_sets(gpu, problem):
    """Sets of arguments for Ours, as many as fill the L2 cache twice but at most MOST_SETS → (sets, bytes of one)."""
    arrays = {"tokens": problem.inputs, "one-hot": problem.dense_inputs(), "doutputs": problem.doutputs}
    arrays.update((name, getattr(problem, name)) for name in ("state", "Wxh", "Whh", "bh"))
    size = sum(array.nbytes for array in arrays.values())
    results = {"outputs": problem.doutputs}
    results.update(("d" + name, arrays[name]) for name in ("state", "Wxh", "Whh", "bh"))
    size += sum(array.nbytes for array in results.values())
    count = min(MOST_SETS, max(2, -(-2 * gpu.l2 // size)))
    sets = []
    for _ in range(count):
        sets.append({name: gpu.to_device(array.copy()) for name, array in arrays.items()})
        sets[-1].update((name, gpu.empty(array.shape)) for name, array in results.items())
    return sets, size


class Torch(GpuProvider):
    """PyTorch's layer, cuDNN below it, in full precision. Forward alone records nothing for backward.

    It gives a gradient for each of its two biases, where we have one.
    """
    name, family = TORCH, "cuDNN"
    tf32 = False

    def __init__(self, problem, count, device="cuda"):
        import torch
        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError(f"torch {torch.__version__} finds no GPU")
        self._torch = torch
        # clone: on a CPU, from_numpy and to() copy nothing
        self._inputs, self._doutputs, self._states = (
            [torch.from_numpy(array).to(device).clone() for _ in range(count)]
            for array in (problem.dense_inputs(), problem.doutputs, problem.state[np.newaxis]))
        for state in self._states:
            state.requires_grad_()
        self._outputs = [None] * count
        self._layers = [providers.torch_rnn(torch, torch.nn.RNN, problem.shape.I, problem.shape.H, problem.Wxh, problem.Whh,
                                            problem.bh).to(device) for _ in range(count)]
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        self.variant = f"torch {torch.__version__}, cuDNN {cudnn}"
        self.calls = {FORWARD: (None, self._forward), BACKWARD: (self._record, self._backward), BOTH: (None, self._both)}

    def _choose_precision(self):
        """Settings of the whole process, which another provider may have changed."""
        self._torch.backends.cudnn.allow_tf32 = self._torch.backends.cuda.matmul.allow_tf32 = self.tf32

    def _apply(self, i):
        self._choose_precision()
        return self._layers[i](self._inputs[i], self._states[i])[0]

    def _forward(self, i):
        with self._torch.no_grad():
            self._apply(i)

    def _record(self, i):
        self._outputs[i] = self._apply(i)

    def _backward(self, i):
        self._choose_precision()
        outputs, self._outputs[i] = self._outputs[i], None
        layer = self._layers[i]
        wanted = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, self._states[i], layer.bias_hh_l0]
        return self._torch.autograd.grad(outputs, wanted, self._doutputs[i])

    def _both(self, i):
        self._record(i)
        self._backward(i)

    def results(self):
        self._record(0)
        outputs = self._outputs[0].detach()
        dWxh, dWhh, dbh, dstate, _ = self._backward(0)
        found = {"outputs": outputs, "dWxh": dWxh.T, "dWhh": dWhh.T, "dbh": dbh, "dstate": dstate[0]}
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}


class TorchTF32(Torch):
    """The same with TF32, for information: its products keep 10 bits."""
    name, bound = TORCH_TF32, TF32_BOUND
    tf32 = True


PEERS = (Torch, TorchTF32)
