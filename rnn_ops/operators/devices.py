"""The devices that CustomOps compute on. Each makes arrays over MXNet's memory, has memory besides, and runs the two passes.

- `Cpu`: memory of the CPU, CPU kernels.
- `Gpu`: memory of a GPU, CUDA kernels, no copies.
- `Offload`: memory of the CPU, CUDA kernels; arguments and results are copied. `use` chooses it. It is for GPUs that MXNet 1.9.1
  has no kernels for (compute capability 9.0 and newer): there all of MXNet's arrays stay in ``mx.cpu()``. Several such GPUs work
  side by side under MXNet's data parallelism, where ``mx.cpu(i)`` stands for GPU i.
"""
import contextlib

import numpy as np

from rnn_ops.backends import arguments, cpu, cuda
from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.operators import ndarray

__all__ = ["use", "in_use", "check_context", "device_for", "Cpu", "Gpu", "Offload"]

_CPU_CONTEXTS = ("cpu", "cpu_pinned", "cpu_shared")  # a DataLoader's workers hand over arrays of the last kind
_SAME_NUMBER = "same number"
# What computes for arrays on the CPU. None: the CPU. A number: that GPU. _SAME_NUMBER: the GPU with the number of the context.
_offload = None


def use(device: str) -> None:
    """Choose the device that computes for arrays in ``mx.cpu()``, from now on and in the whole process.

    Parameters
    ----------
    device : str
        - "cpu", the default.
        - "cuda": arrays in ``mx.cpu(i)`` are computed on GPU i. So MXNet's data parallelism over ``mx.cpu(0)``, ``mx.cpu(1)``,
          ... keeps as many GPUs busy. A call with arrays in an ``mx.cpu(i)`` that has no GPU is a ValueError, in a graph an
          MXNetError.
        - "cuda:1": arrays in every ``mx.cpu(i)`` are computed on GPU 1.

        With a GPU, each call of an operator copies its arguments there and its results back. That is the way to compute on GPUs
        that MXNet 1.9.1 has no kernels for (compute capability 9.0 and newer). Arrays in ``mx.gpu(i)`` are always computed on
        GPU i. Choose before graphs are made: a Symbol, or a block that has been called after it was hybridized, stays with the
        device that it has.

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
        first = cuda.gpu(int(number or 0)).index
        _offload = first if number else _SAME_NUMBER


def in_use() -> str:
    """The device that `use` has chosen, in its words: "cpu", "cuda" (the GPU with the context's number) or "cuda:1"."""
    return {None: "cpu", _SAME_NUMBER: "cuda"}.get(_offload, f"cuda:{_offload}")


def check_context(context):
    """Raise an error that says why nothing computes on arrays of a context, if that is so.

    ValueError: the context is not one that arrays are computed in. RuntimeError: its GPU cannot be used.
    """
    needs = None
    if context.device_type in _CPU_CONTEXTS:
        needs = _why_no_gpu(context.device_id) if _offload is _SAME_NUMBER else None
    elif context.device_type != "gpu":
        needs = "cpu or gpu"
    elif cuda.why_not():
        needs = f"cpu, since {cuda.why_not()}"
    if needs:
        raise ValueError(f"inputs: got an array on {context}, needs one on {needs}")


def _why_no_gpu(number):
    """What is needed instead of a context on the CPU with this number, if no GPU has the number."""
    count = cuda.platform().count()
    if number < count:
        cuda.gpu(number)  # raises a RuntimeError here, in the user's thread, if this GPU cannot be used
        return None
    here = "cpu(0), since this process has 1 GPU" if count == 1 else (
        f"cpu(0) to cpu({count - 1}), since this process has {count} GPUs")
    return f"{here} and use('cuda') computes arrays in cpu(i) on GPU i"


def device_for(context):
    """The device for arrays of a context, a new one for each operator. The errors are those of `check_context`."""
    check_context(context)
    if context.device_type == "gpu":
        return Gpu(cuda.gpu(context.device_id))
    number = context.device_id if _offload is _SAME_NUMBER else _offload
    return Cpu() if number is None else Offload(cuda.gpu(number))


class Cpu:
    looks_at_tokens = True  # whether `forward` itself refuses those outside [0, I); otherwise `check_tokens` comes before it
    view = staticmethod(ndarray.view)
    empty = staticmethod(np.empty)
    forward = staticmethod(cpu.forward)
    backward = staticmethod(cpu.backward)

    def active(self):
        """The operator's whole call happens inside this."""
        return contextlib.nullcontext()

    @staticmethod
    def check_tokens(tokens, symbols):
        """Raise a ValueError where tokens, if the inputs are tokens, are not in [0, symbols)."""
        if tokens.dtype == arguments.TOKENS:
            arguments.check_tokens(tokens, symbols)


class Gpu:
    """MXNet's own device memory, no copy.

    Order: MXNet calls an operator after everything that its inputs come from is done, and takes its outputs for ready when
    the call returns. MXNet's streams and the legacy default stream, in which we launch, also wait for one another. So it is
    enough that the call waits for its own work at the end.
    """
    looks_at_tokens = False

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
        read = dict(inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, bh=bh)
        cuda.check_apart(self._gpu, dict(outputs=outputs), read)
        self._launcher.forward(*read.values(), outputs, activation)

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation, **gradients):
        read = dict(inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, outputs=outputs, doutputs=doutputs, dlast_state=dlast_state)
        cuda.check_apart(self._gpu, gradients, read)
        self._launcher.backward(*read.values(), activation=activation, **gradients)


class Offload:
    """NumPy arrays over MXNet's memory, copied to the GPU and back.

    The copies live as long as the call, so no parameter on the GPU can be older than MXNet's own. Only the states between two
    steps stay: the backward pass finds those that its forward pass has left, and they need not be copied a second time.
    """
    looks_at_tokens = False
    view = staticmethod(ndarray.view)
    empty = staticmethod(np.empty)
    check_tokens = staticmethod(Cpu.check_tokens)

    def __init__(self, gpu):
        self._gpu = gpu
        self._launcher = Launcher(gpu)
        self._states = None, None  # the states' address on the host, and their copy on the GPU

    def active(self):
        return self._gpu.default_stream()

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation):
        gpu = self._gpu
        states = gpu.empty(outputs.shape, outputs.dtype)
        self._launcher.forward(*map(gpu.to_device, (inputs, state, Wxh, Whh, bh)), states, activation)
        gpu.to_host(states, outputs)
        self._states = outputs.ctypes.data, states

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation, **gradients):
        gpu = self._gpu
        where, states = self._states
        if where != outputs.ctypes.data:  # MXNet has moved them, or another operator of the same graph runs backward
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
