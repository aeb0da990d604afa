"""Who is timed at a cell. Each has several sets of arguments in memory of their own, and takes them in turn.

A provider has ``about`` (what the result file says of it), ``calls`` {mode: (before or None, call)}, functions of the
number of a set that launch and do not wait, and ``results()`` of set 0 by name after forward+backward.

All compute the same function of the same tokens: outputs, and the gradients of Wxh, Whh, bh and the initial state from
a gradient of all outputs. Ours take the tokens as they are, or, as *one-hot*, the same rows of zeros and ones that
torch.nn.RNN takes, which knows no tokens; x·Wxh is then a product of T·B×V×H for both. The rows are made before the
clock starts. Those who compute in less than float32, for information, have a bound of their own on the error.
"""
import numpy as np

from .. import providers as cpu_providers
from . import launches
from .cells import BACKWARD, BOTH, FORWARD, STEPS

TORCH, TORCH_TF32, OURS = "torch.nn.RNN", "torch.nn.RNN, TF32", "ours"
FLASHRNN = [(backend, dtype) for backend in ("cuda", "cuda_fused", "triton_fused") for dtype in ("float32", "bfloat16")]
MOST_SETS = 8


class Ours:
    """One variant of our kernels through the launcher: no checks of the arguments, no waiting."""

    def __init__(self, machine, sets, variant, one_hot=False, chosen=False):
        self._machine, self._sets, self._variant = machine, sets, variant
        self._input = "one-hot" if one_hot else "tokens"
        self.about = {"provider": OURS, "family": variant.family, "variant": str(variant), "chosen": chosen,
                      "input": self._input}
        if variant.exchange == "async":  # the older one is not predicted
            self.about.update(predicted_cycles=variant.cycles, predicted_backward_cycles=variant.backward_cycles)
        self.calls = {FORWARD: (None, self._forward), STEPS: (None, self._steps), BACKWARD: (None, self._backward),
                      BOTH: (None, self._both)}

    def launches(self, mode):
        """How many launches, products and fills a call puts into the stream."""
        s = self._sets[0]
        (T, B, H), (V, _) = s["outputs"].shape, s["Wxh"].shape
        return len(launches.record(self._machine.device, (T, B, V, H), tokens=self._input == "tokens",
                                   variant=self._variant, mode=mode))

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
            self._machine.spoil(self._sets[0][name])
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


class _OnTorch:
    """Sets of arguments as tensors, and the calls. Forward alone records nothing for backward."""

    def __init__(self, torch, problem, count, device, dtype):
        self._torch = torch
        # clone: on a CPU, from_numpy and to() copy nothing
        self._inputs, self._doutputs, self._states = (
            [torch.from_numpy(array).to(device, dtype).clone() for _ in range(count)]
            for array in (problem.dense_inputs(), problem.doutputs, problem.state[np.newaxis]))
        for state in self._states:
            state.requires_grad_()
        self._outputs = [None] * count
        self.calls = {FORWARD: (None, self._forward), BACKWARD: (self._record, self._backward),
                      BOTH: (None, self._both)}

    def _apply(self, i):
        """The outputs of set i, (T, B, H)."""
        raise NotImplementedError

    def _wanted(self, i):
        """What gradients are taken of: Wxhᵀ, Whhᵀ, bh and the initial state, then what else must have one."""
        raise NotImplementedError

    def _forward(self, i):
        with self._torch.no_grad():
            self._apply(i)

    def _record(self, i):
        self._outputs[i] = self._apply(i)

    def _backward(self, i):
        outputs, self._outputs[i] = self._outputs[i], None
        return self._torch.autograd.grad(outputs, self._wanted(i), self._doutputs[i])

    def _both(self, i):
        self._record(i)
        self._backward(i)

    def results(self):
        self._record(0)
        outputs = self._outputs[0].detach()
        dWxh, dWhh, dbh, dstate, *_ = self._backward(0)
        found = {"outputs": outputs, "dWxh": dWxh.T, "dWhh": dWhh.T, "dbh": dbh, "dstate": dstate[0]}
        return {name: tensor.float().cpu().numpy() for name, tensor in found.items()}


class Torch(_OnTorch):
    """PyTorch's layer, cuDNN below it, without TF32 or, for information, with it.

    It gives a gradient for each of its two biases, where we have one.
    """

    def __init__(self, problem, count, device="cuda", tf32=False):
        import torch
        _see_gpu(torch, device)
        super().__init__(torch, problem, count, device, torch.float32)
        self._tf32 = tf32
        self._layers = [cpu_providers.torch_rnn(torch, problem.shape.I, problem.shape.H, problem.Wxh, problem.Whh,
                                                problem.bh).to(device) for _ in range(count)]
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        self.about = dict(about_torch(tf32), variant=f"torch {torch.__version__}, cuDNN {cudnn}")

    def _apply(self, i):
        self._choose_precision()
        return self._layers[i](self._inputs[i], self._states[i])[0]

    def _wanted(self, i):
        layer = self._layers[i]
        return [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, self._states[i], layer.bias_hh_l0]

    def _backward(self, i):
        self._choose_precision()
        return super()._backward(i)

    def _choose_precision(self):
        """Settings of the whole process, which another provider may have changed."""
        self._torch.backends.cudnn.allow_tf32 = self._torch.backends.cuda.matmul.allow_tf32 = self._tf32


class FlashRNN(_OnTorch):
    """FlashRNN's Elman cell (NX-AI), for information, by its package's one function. x·Wxh is PyTorch's product.

    It compiles itself for each shape when it is first called, which takes minutes and needs a CUDA toolkit. Its backend
    "triton_fused" has had no Elman cell so far; the row says what it answers.
    """

    def __init__(self, problem, count, backend, dtype, device="cuda"):
        import torch
        from flashrnn import flashrnn
        _see_gpu(torch, device)
        self._flashrnn = flashrnn
        self._backend, self._dtype = backend, dtype
        dtype = getattr(torch, dtype)
        super().__init__(torch, problem, count, device, dtype)
        self._weights = [[torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype).clone().requires_grad_()
                          for array in (problem.Wxh.T, problem.Whh.T, problem.bh)] for _ in range(count)]
        self.about = dict(about_flashrnn(backend, self._dtype), variant=f"torch {torch.__version__}")

    def _apply(self, i):
        torch = self._torch
        torch.backends.cuda.matmul.allow_tf32 = False
        Wxh, Whh, bh = self._weights[i]
        H = len(bh)
        projected = (self._inputs[i] @ Wxh.T).transpose(0, 1)[:, :, None, None]  # batch, time, gate, head, unit
        states, _ = self._flashrnn(projected, Whh.reshape(1, 1, H, H), bh.reshape(1, 1, H),
                                   states=self._states[i][:, :, None, None], function="elman", backend=self._backend,
                                   dtype=self._dtype)
        return states[0, :, :, 0].transpose(0, 1)  # of state, batch, time, head, unit

    def _wanted(self, i):
        return [*self._weights[i], self._states[i]]


def about_torch(tf32):
    """What is known of `Torch` before it is made."""
    return {"provider": TORCH_TF32 if tf32 else TORCH, "family": "cuDNN", "variant": "", "chosen": False, "input": "one-hot"}


def about_flashrnn(backend, dtype):
    """What is known of `FlashRNN` before it is made."""
    return {"provider": f"FlashRNN, {backend}, {dtype}", "family": backend, "variant": "", "chosen": False,
            "input": "one-hot"}


def _see_gpu(torch, device):
    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError(f"torch {torch.__version__} finds no GPU")
