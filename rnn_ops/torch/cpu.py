"""The operators on CPU tensors: the kernels of `rnn_ops.backends.cpu` on the tensors' own memory.

A call uses as many threads as PyTorch does (`torch.set_num_threads`), unless RNN_OPS_NUM_THREADS is set, and they are the same
threads, those of PyTorch's OpenMP runtime. Tensors are made in the ways that take the least time: `empty_like`, and `new_empty`
with numbers.
"""
import ctypes

import torch

from rnn_ops.backends import cpu
from rnn_ops.torch.arguments import check, check_backward


def _find_openmp():
    """The address of GOMP_parallel in the OpenMP runtime that PyTorch uses; None where it uses none."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # looks into the libraries that this one needs
    except (AttributeError, OSError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


_OPENMP = _find_openmp()


def forward(inputs, state, Wxh, Whh, bh, activation):
    signature = check((inputs, state, Wxh, Whh, bh), activation)
    T, B, _, H, *_ = signature
    given = [tensor.contiguous() for tensor in (inputs, state, Wxh, Whh, bh)]
    outputs, last_state = state.new_empty(T, B, H), torch.empty_like(given[1])
    address = outputs.data_ptr()
    cpu.run_forward(signature, activation, torch.get_num_threads(), _OPENMP, *[tensor.data_ptr() for tensor in given], address)
    size = last_state.nbytes
    ctypes.memmove(last_state.data_ptr(), address + (T - 1) * size, size)
    return outputs, last_state


def backward(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    signature = check((inputs, state, Wxh, Whh), activation)
    check_backward(signature, outputs, doutputs, dlast_state, inputs.device, wanted)
    if wanted[0]:  # the kernel does not read it for anything else
        Wxh = Wxh.contiguous()
    read = [inputs.contiguous(), state.contiguous(), Wxh, *[
        None if tensor is None else tensor.contiguous() for tensor in (Whh, outputs, doutputs, dlast_state)]]
    _, _, I, H, *_ = signature
    written = [torch.empty_like(read[0]) if wanted[0] else None,
               torch.empty_like(read[1]) if wanted[1] else None,
               state.new_empty(I, H) if wanted[2] else None,
               torch.empty_like(read[3]) if wanted[3] else None,
               state.new_empty(H) if wanted[4] else None,
               torch.empty_like(read[4])]  # da
    cpu.run_backward(signature, activation, torch.get_num_threads(), _OPENMP,
                     *[None if tensor is None else tensor.data_ptr() for tensor in read + written])
    return [tensor for tensor in written[:5] if tensor is not None]
