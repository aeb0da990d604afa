"""Who is timed at a cell. Each has several sets of arguments in memory of their own, and takes them in turn.

A provider has ``about`` (what the result file says of it), ``calls`` {mode: (before or None, call)}, functions of the
number of a set that launch and do not wait, and ``results()`` of set 0 by name after forward+backward.

All compute the same function of the same tokens: outputs, and the gradients of Wxh, Whh, bh and the initial state from
a gradient of all outputs. Ours take the tokens as they are, or, as *one-hot*, the same rows of zeros and ones that
torch.nn.RNN takes, which knows no tokens; x·Wxh is then a product of T·B×V×H for both. The rows are made before the
clock starts.
"""
import numpy as np

from .. import providers as cpu_providers
from .cells import BACKWARD, BOTH, FORWARD, STEPS

TORCH, OURS = "torch.nn.RNN", "ours"
MOST_SETS = 8


class Ours:
    """One variant of our kernels through the launcher: no checks of the arguments, no waiting."""

    def __init__(self, machine, sets, variant, one_hot=False, chosen=False):
        self._machine, self._sets, self._variant = machine, sets, variant
        self._input = "one-hot" if one_hot else "tokens"
        self.about = {"provider": OURS, "family": variant.family, "variant": str(variant), "chosen": chosen,
                      "input": self._input, "predicted_cycles": variant.cycles}
        self.calls = {FORWARD: (None, self._forward), STEPS: (None, self._steps), BACKWARD: (None, self._backward),
                      BOTH: (None, self._both)}

    def _forward(self, i):
        s = self._sets[i]
        self._machine.launcher.forward(s[self._input], s["state"], s["Wxh"], s["Whh"], s["bh"], s["outputs"],
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
        self._machine.launcher.backward(
            s[self._input], s["state"], s["Wxh"], s["Whh"], s["outputs"], s["doutputs"], None,
            **{name: s[name] for name in names}, variant=self._variant)

    def results(self):
        names = ("outputs", "dstate", "dWxh", "dWhh", "dbh")
        for name in names:
            self._sets[0][name].fill(np.nan)
        self._both(0)
        return {name: self._machine.to_host(self._sets[0][name]) for name in names}


def make_sets(machine, problem):
    """Sets of arguments for Ours, as many as fill the L2 cache twice but at most MOST_SETS → (sets, bytes of one)."""
    arrays = {"tokens": problem.inputs, "one-hot": problem.dense_inputs(), "doutputs": problem.doutputs}
    arrays.update((name, getattr(problem, name)) for name in ("state", "Wxh", "Whh", "bh"))
    size = sum(array.nbytes for array in arrays.values())
    results = {"outputs": problem.doutputs}
    results.update(("d" + name, arrays[name]) for name in ("state", "Wxh", "Whh", "bh"))
    size += sum(array.nbytes for array in results.values())
    count = min(MOST_SETS, max(2, -(-2 * machine.l2 // size)))
    sets = []
    for _ in range(count):
        sets.append({name: machine.to_device(array.copy()) for name, array in arrays.items()})
        sets[-1].update((name, machine.empty(array.shape)) for name, array in results.items())
    return sets, size


class Torch:
    """PyTorch's layer, cuDNN below it, without TF32; forward alone records nothing for backward.

    It gives a gradient for each of its two biases, where we have one.
    """

    def __init__(self, problem, count, device="cuda"):
        import torch
        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError(f"torch {torch.__version__} finds no GPU")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._torch = torch
        T, B, V, H, _ = problem.shape
        self._layers = [cpu_providers.torch_rnn(torch, V, H, problem.Wxh, problem.Whh, problem.bh).to(device)
                        for _ in range(count)]
        one_hot, doutputs = torch.from_numpy(problem.dense_inputs()), torch.from_numpy(problem.doutputs)
        state = torch.from_numpy(problem.state[np.newaxis])
        # clone: on a CPU, from_numpy and to() copy nothing
        self._inputs = [one_hot.to(device).clone() for _ in range(count)]
        self._doutputs = [doutputs.to(device).clone() for _ in range(count)]
        self._states = [state.to(device).clone().requires_grad_() for _ in range(count)]
        self._outputs = [None] * count
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        self.about = {"provider": TORCH, "family": "cuDNN", "variant": f"torch {torch.__version__}, cuDNN {cudnn}",
                      "chosen": False, "input": "one-hot"}
        self.calls = {FORWARD: (None, self._forward), BACKWARD: (self._record, self._backward),
                      BOTH: (None, self._both)}

    def _forward(self, i):
        with self._torch.no_grad():
            self._layers[i](self._inputs[i], self._states[i])

    def _record(self, i):
        self._outputs[i] = self._layers[i](self._inputs[i], self._states[i])[0]

    def _backward(self, i):
        layer = self._layers[i]
        outputs, self._outputs[i] = self._outputs[i], None
        return self._torch.autograd.grad(
            outputs, [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0, self._states[i]],
            self._doutputs[i])

    def _both(self, i):
        self._record(i)
        self._backward(i)

    def results(self):
        self._record(0)
        outputs = self._outputs[0].detach()
        dWxh, dWhh, dbh, _, dstate = self._backward(0)
        found = {"outputs": outputs, "dWxh": dWxh.T, "dWhh": dWhh.T, "dbh": dbh, "dstate": dstate[0]}
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}
