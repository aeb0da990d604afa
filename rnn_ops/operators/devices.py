"""Where the operators compute: a place gives them arrays over MXNet's memory, memory besides, and the two passes.

- `Cpu`: memory of the CPU, CPU kernels.
- `Gpu`: memory of a GPU, in place, CUDA kernels.
- `Offload`: memory of the CPU, CUDA kernels; arguments and results are copied. For GPUs that MXNet 1.9.1 itself has no
  kernels for (compute capability 9.0 and newer), where all its arrays live in ``mx.cpu()``. Chosen by `use`.
"""
import contextlib

import numpy as np

from rnn_ops.backends import arguments, cpu, cuda
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.operators import ndarray

_offload = None  # the number of the GPU that computes for arrays on the CPU, or None


def use(device):
    """Choose what computes for arrays in ``mx.cpu()``, from now on and in the whole process.

    Parameters
    ----------
    device : str
        "cpu", as it is from the start, or "cuda" or "cuda:1": a GPU. Each call of an operator then copies its arguments
        there and its results back. That is the way to compute on GPUs that MXNet 1.9.1 itself has no kernels for (compute
        capability 9.0 and newer). Arrays in ``mx.gpu(i)`` are computed on where they are in any case. Choose before graphs are
        made: a Symbol, or a block that has been called after it was hybridized, stays with what it has.

    Raises
    ------
    ValueError
        Another device, or a number that no GPU has.
    RuntimeError
        There is no GPU to compute on; why, and what to do.
    """
    global _offload
    kind, _, number = device.partition(":") if isinstance(device, str) else (None, "", "")
    if device != "cpu" and (kind != "cuda" or not (number.isdigit() or device == "cuda")):
        raise ValueError(f"device: got {device!r}, needs 'cpu', 'cuda' or 'cuda:' and the number of a GPU")
    if device == "cpu":
        _offload = None
    else:
        _offload = cuda.gpu(int(number or 0)).index


def in_use():
    """The device that `use` has chosen, as it takes it: "cpu" or "cuda:0"."""
    return "cpu" if _offload is None else f"cuda:{_offload}"


def device_for(context):
    """The place for arrays in a context, a new one for each operator. A ValueError says why there is none."""
    if context.device_type in ("cpu", "cpu_pinned", "cpu_shared"):  # a DataLoader's workers hand over the last kind
        return Cpu() if _offload is None else Offload(cuda.gpu(_offload))
    if context.device_type == "gpu":
        reason = cuda.why_not()
        if reason is None:
            return Gpu(cuda.gpu(context.device_id))
        raise ValueError(f"inputs: got an array on {context}, needs one on cpu, since {reason}")
    raise ValueError(f"inputs: got an array on {context}, needs one on cpu or gpu")


def _check_tokens(tokens, symbols):
    if tokens.dtype == arguments.TOKENS:
        arguments.check_tokens(tokens, symbols)


class Cpu:
    view = staticmethod(ndarray.view)
    empty = staticmethod(np.empty)
    check_tokens = staticmethod(_check_tokens)
    forward = staticmethod(cpu.forward)
    backward = staticmethod(cpu.backward)

    def active(self):
        """The operator's whole call happens inside this."""
        return contextlib.nullcontext()


class Gpu:
    """MXNet's own device memory, no copy.

    Order: MXNet calls an operator when all that its inputs come from is done, and takes its outputs for ready when the call
    returns. MXNet's streams and the legacy default stream, in which we launch, also wait for one another. So it is enough
    that the call waits for its own work at the end.
    """

    def __init__(self, gpu):
        self._gpu = gpu
        self._launcher = Launcher(gpu)

    def view(self, array):
        return self._gpu.view(ndarray.address(array), array.shape, array.dtype)

    def empty(self, shape, dtype):
        return self._gpu.empty(shape, dtype)

    @contextlib.contextmanager
    def active(self):
        with self._gpu.default_stream():
            yield
            self._gpu.synchronize()

    def check_tokens(self, tokens, symbols):
        cuda.check_tokens(self._gpu, tokens, symbols)

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation):
        self.check_tokens(inputs, Wxh.shape[0])
        self._launcher.forward(inputs, state, Wxh, Whh, bh, outputs, activation)

    def backward(self, *arrays, **options):
        self._launcher.backward(*arrays, **options)


class Offload:
    """NumPy arrays over MXNet's memory, copied to the GPU and back.

    What a call copies there lives as long as the call, so that no parameter can be older than MXNet's own. Only the states
    between two steps stay: the backward pass finds those that its forward pass has left, and they need not come back.
    """
    view = staticmethod(ndarray.view)
    empty = staticmethod(np.empty)
    check_tokens = staticmethod(_check_tokens)

    def __init__(self, gpu):
        self._gpu = gpu
        self._launcher = Launcher(gpu)
        self._states = None, None  # where the host has them, the device's

    def active(self):
        return self._gpu.default_stream()

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation):
        self.check_tokens(inputs, Wxh.shape[0])
        gpu = self._gpu
        states = gpu.empty(outputs.shape, outputs.dtype)
        self._launcher.forward(*map(gpu.to_device, (inputs, state, Wxh, Whh, bh)), states, activation)
        gpu.to_host(states, outputs)
        self._states = outputs.ctypes.data, states

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation, **gradients):
        gpu = self._gpu
        where, states = self._states
        if where != outputs.ctypes.data:  # MXNet has moved them, or asks another operator of the same graph
            states = gpu.to_device(outputs)
        self._states = None, None
        given = [gpu.to_device(array) for array in (inputs, state, Wxh, Whh)]
        arriving = [None if array is None else gpu.to_device(array) for array in (doutputs, dlast_state)]
        copies = {name: None if array is None else gpu.empty(array.shape, array.dtype)
                  for name, array in gradients.items()}
        self._launcher.backward(*given, states, *arriving, activation=activation, **copies)
        for name, array in gradients.items():
            if array is not None:
                gpu.to_host(copies[name], array)
