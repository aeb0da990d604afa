"""The recurrence on NVIDIA GPUs: the CUDA kernels (kernels/cuda) on CuPy arrays. Needs no MXNet and no CUDA toolkit.

``forward`` and ``backward`` check their arguments and launch; shapes and meaning are those of `rnn_ops.backends.cpu`. Arrays
are CuPy's or anything in a GPU's memory with ``__cuda_array_interface__`` or ``__dlpack__``. Work goes to the stream that
CuPy has current on the arrays' GPU. Kernels are compiled when they are first needed and kept on disk.

The modules: `launcher` makes the launches in their order, `variants` chooses the kernel for a shape, `runtime` uses CuPy,
`recorder` and `program` keep a call's launches for later calls, `sources` reads the kernels' text, `compiler` uses NVRTC,
`libraries` finds CUDA libraries that pip has installed.
"""
import functools
import importlib
import importlib.util
import threading
from types import ModuleType
from typing import Any, Dict, Optional

from rnn_ops.backends import arguments
from rnn_ops.backends.cuda import libraries
from rnn_ops.backends.cuda.launcher import Launcher

_one_at_a_time = threading.Lock()  # MXNet's threads ask for GPUs at the same time
_OPTIONAL = ("doutputs", "dlast_state", "dinputs", "dstate", "dWxh", "dWhh", "dbh")


def why_not() -> Optional[str]:
    """A sentence that says why GPUs cannot be used here and what to do; None if they can."""
    try:
        platform()
    except RuntimeError as error:
        return str(error)
    return None


def devices() -> list:
    """The GPUs of this process as a list of `variants.Device`. If it is empty, `why_not` says why."""
    if why_not():
        return []
    return [platform().device(index) for index in range(platform().count())]


def forward(inputs: Any, state: Any, Wxh: Any, Whh: Any, bh: Any, outputs: Any, activation: str = "tanh",
            variant: Any = None) -> None:
    """h_t = f(x_t·Wxh + h_{t-1}·Whh + bh) for all T steps, f tanh or relu.

    Parameters
    ----------
    inputs : float (T, B, I) or int32 tokens (T, B)
    state : float (B, H), the state before the first step
    Wxh, Whh, bh : float (I, H), (H, H), (H,)
    outputs : float (T, B, H), overwritten with the state after every step
    activation : "tanh" or "relu"
    variant : `variants.Variant` or name of a family
        Forces a kernel, for experiments. With None `variants.choose` decides.

    All C-contiguous and on one GPU; the floats all float32 or all float64. ``outputs`` overlaps none of the others.
    float32 is computed in full float32 (no TF32), with subnormal numbers as zeros. The same arguments give the same bits.

    Raises
    ------
    TypeError, ValueError
        An argument of a wrong type, dtype, shape, memory layout or GPU, a token outside [0, I), a variant that cannot
        serve the shape: nothing is launched. The call waits for the tokens to check them.
    MemoryError
        The GPU has no room for the workspace.
    RuntimeError
        There is no GPU to compute on: `why_not`.
    """
    arguments.check_activation(activation)
    inputs, state, Wxh, Whh, bh, outputs = _arrays(
        inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, bh=bh, outputs=outputs)
    T, B, I, H, dtype, _ = arguments.check(inputs, state, Wxh, Whh, bh)
    _fits("outputs", outputs, (T, B, H), dtype)
    gpu = _gpu(platform().index(inputs))
    check_apart(gpu, dict(outputs=outputs), dict(inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, bh=bh))
    with gpu.current():
        check_tokens(gpu, inputs, I)
        Launcher(gpu).forward(inputs, state, Wxh, Whh, bh, outputs, activation, variant)


def backward(inputs: Any, state: Any, Wxh: Any, Whh: Any, outputs: Any, doutputs: Any, dlast_state: Any,
             dinputs: Any = None, dstate: Any = None, dWxh: Any = None, dWhh: Any = None, dbh: Any = None,
             activation: str = "tanh", variant: Any = None) -> None:
    """Backward through time: from the gradients of the results to those of the arguments of `forward`.

    Parameters
    ----------
    inputs, state, Wxh, Whh : as given to `forward`
    outputs : float (T, B, H), as written by `forward`
    doutputs : float (T, B, H) or None for zeros, the gradient of ``outputs``
    dlast_state : float (B, H) or None for zeros, the gradient of the last state, which adds to that of ``outputs[-1]``
    dinputs, dstate, dWxh, dWhh, dbh : float of the shapes of the arguments, or None where a gradient is not wanted
        Overwritten. Tokens have no gradient. None of them overlaps another argument.
    activation, variant : as for `forward`

    Raises
    ------
    TypeError, ValueError, MemoryError, RuntimeError
        As `forward`.
    """
    arguments.check_activation(activation)
    given = dict(inputs=inputs, state=state, Wxh=Wxh, Whh=Whh, outputs=outputs, doutputs=doutputs, dlast_state=dlast_state,
                 dinputs=dinputs, dstate=dstate, dWxh=dWxh, dWhh=dWhh, dbh=dbh)
    arrays = _arrays(**given)
    inputs, state, Wxh, Whh = arrays[:4]
    T, B, I, H, dtype, tokens = arguments.check(inputs, state, Wxh, Whh)
    if tokens and dinputs is not None:
        raise ValueError("dinputs: got an array, needs None: tokens have no gradient")
    shapes = [(T, B, H), (T, B, H), (B, H), (T, B, I), (B, H), (I, H), (H, H), (H,)]
    for name, array, shape in zip(list(given)[4:], arrays[4:], shapes):
        if array is not None:
            _fits(name, array, shape, dtype)
    gpu = _gpu(platform().index(inputs))
    names = list(given)
    check_apart(gpu, dict(zip(names[7:], arrays[7:])), dict(zip(names[:7], arrays[:7])))
    with gpu.current():
        check_tokens(gpu, inputs, I)
        Launcher(gpu).backward(*arrays, activation=activation, variant=variant)


def check_tokens(gpu: Any, inputs: Any, I: int) -> None:
    """`arguments.check_tokens` for inputs on a GPU, if they are tokens. Waits for them."""
    if inputs.dtype == arguments.TOKENS:
        arguments.check_tokens(gpu.to_host(inputs), I)


def platform() -> ModuleType:
    """The module `runtime`. A RuntimeError says why there is no GPU that it could use."""
    if importlib.util.find_spec("cupy") is None:
        raise RuntimeError(
            "CuPy is not installed: install rnn_ops[cu112] with MXNet, rnn_ops[cu13] without")
    for distribution in libraries.CUPY:
        libraries.load_for(distribution)
    try:
        runtime = importlib.import_module("rnn_ops.backends.cuda.runtime")
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(
            f"CuPy is installed but cannot be imported ({reason}): it needs the CUDA libraries that rnn_ops[cu112] or "
            "rnn_ops[cu13] brings, or a CUDA toolkit of the version in its name") from error
    if runtime.count() == 0:
        raise RuntimeError("there is no GPU: see that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not hide it")
    return runtime


@functools.lru_cache(maxsize=None)
def _made(index):
    return platform().Runtime(index)


def _gpu(index):
    with _one_at_a_time:  # a cache makes a value twice if two threads ask for it at once
        return _made(index)


def gpu(index: int) -> Any:
    """The `runtime.Runtime` of a GPU by its number. ValueError: there are fewer GPUs. RuntimeError: there are none."""
    if not 0 <= index < platform().count():
        raise ValueError(f"GPU {index}: this process has {platform().count()}, numbered from 0")
    return _gpu(index)


def _arrays(**given):
    """The arguments as arrays of the platform, all on one GPU and C-contiguous. An optional argument may stay None."""
    home = platform()
    arrays = [None if value is None and name in _OPTIONAL else home.array(name, value) for name, value in given.items()]
    first = None
    for name, array in zip(given, arrays):
        if array is None:
            continue
        index = home.index(array)
        first = index if first is None else first
        if index != first:
            raise ValueError(f"{name}: got an array on GPU {index}, needs one on GPU {first}, as inputs is")
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: got a strided array, needs a C-contiguous one (cupy.ascontiguousarray)")
    return arrays


def _fits(name, array, shape, dtype):
    if array.dtype != dtype:
        raise TypeError(f"{name}: got dtype {array.dtype}, needs {dtype}")
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {array.shape}, needs {shape}")


def check_apart(gpu: Any, written: Dict[str, Any], read: Dict[str, Any]) -> None:
    """`arguments.check_apart` of arrays by name."""
    arguments.check_apart(*[[(name, 0 if array is None else gpu.address(array), array) for name, array in arrays.items()]
                            for arrays in (written, read)])
