"""The operators on CUDA tensors: the kernels of `rnn_ops.backends.cuda`, in PyTorch's current stream, with PyTorch's memory.

CuPy loads the kernels and calls the driver, as for CuPy arrays and for MXNet: it needs no CUDA toolkit, one path is tested for
all, and kernels and cuBLAS handles are shared. PyTorch has no call for it: its own way to kernels, a C++ extension, needs a
toolkit where it is built and is built for each version of PyTorch. CuPy's memory, streams and current device are not used.

- The first call of a signature (shapes, dtypes, the gradients that are wanted) plans the work, as for MXNet's native operator; it
  may compile kernels and load them. Later ones only queue it (`rnn_ops.backends.cuda.program`).
- Results and the workspace are tensors, so the memory is PyTorch's caching allocator's, in the order of the stream.
- Nothing waits for the GPU. So tokens are not looked at: one outside [0, I) makes the states of its row NaN from there on.
- Calls can be captured into a CUDA graph after a first call of the same signature, forward and backward. A first call during a
  capture is a RuntimeError.
"""
import importlib.util

import torch

from rnn_ops.backends import codes, cuda
from rnn_ops.backends.cuda import program, recorder
from rnn_ops.torch.arguments import check, check_backward, check_device

_MOST_PROGRAMS = 256  # each length of a sequence needs its own. One more, and all are dropped.
_programs = {}


def forward(inputs, state, Wxh, Whh, bh, activation):
    arguments = inputs, state, Wxh, Whh, bh
    check_device(arguments)
    signature = check(arguments, activation)
    T, B, _, H, *_ = signature
    given = [tensor.contiguous() for tensor in arguments]
    outputs, last_state = state.new_empty((T, B, H)), state.new_empty((B, H))
    _play(recorder.record_forward, (*signature, activation, True), [*given, outputs, last_state, *[None] * 7])
    return outputs, last_state


def backward(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    arguments = inputs, state, Wxh, Whh
    check_device(arguments)
    signature = check(arguments, activation)
    check_backward(signature, outputs, doutputs, dlast_state, inputs.device, wanted)
    read = [None if tensor is None else tensor.contiguous()
            for tensor in (inputs, state, Wxh, Whh, None, outputs, None, doutputs, dlast_state)]
    written = [state.new_empty(shape) if each else None for each, shape in zip(
        wanted, (inputs.shape, state.shape, Wxh.shape, Whh.shape, Whh.shape[:1]))]
    _play(_record_backward, (*signature, activation, tuple(wanted)), read + written)
    return [tensor for tensor in written if tensor is not None]


def _record_backward(device, *signature):
    *how, wanted = signature
    return recorder.record_backward(
        device, *how, True, {name: codes.COMPUTE for name, each in zip(codes.GRADIENTS, wanted) if each})


def _play(record, signature, tensors):
    """Queue a pass. tensors: for `codes.REGIONS` but the last, the workspace. None is address 0, a cotangent of zeros."""
    index, stream = _place(tensors[0])
    key = index, record, signature
    planned = _programs.get(key)
    if planned is None:
        gpu = _gpu(index)
        gpu.check_not_capturing(stream)
        planned = program.Program(record(gpu.device, *signature), gpu)
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.clear()
        _programs[key] = planned
    if planned.workspace:
        tensors.append(tensors[1].new_empty(planned.workspace, dtype=torch.uint8))
    planned.play([0 if tensor is None else tensor.data_ptr() for tensor in tensors], stream)


def _place(tensor):
    """The number of a tensor's GPU and of PyTorch's current stream there. Tests, which have no CUDA tensors, replace this."""
    index = tensor.get_device()
    return index, torch.cuda.current_stream(index).cuda_stream


def _gpu(index):
    """The `rnn_ops.backends.cuda.runtime.Runtime` of a GPU. A RuntimeError says why it cannot be used."""
    why = cuda.why_not()
    if why is None:
        return cuda.gpu(index)
    if torch.version.cuda and importlib.util.find_spec("cupy") is None:
        major = torch.version.cuda.split(".")[0]
        package = f"rnn_ops[cu{major}]" if major in ("12", "13") else f"cupy-cuda{major}x"
        why = f"CuPy, which launches the kernels, is not installed: pip install '{package}', for CUDA {major} as PyTorch is"
    raise RuntimeError(f"inputs: got a tensor on cuda:{index}, needs one on the CPU, since {why}")
