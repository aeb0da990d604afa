"""The operators on CPU tensors: the kernels of `rnn_ops.backends.cpu` on the tensors' own memory.

A call uses as many threads as PyTorch does (`torch.set_num_threads`), unless RNN_OPS_NUM_THREADS is set.
"""
import ctypes

import torch

from rnn_ops.backends import cpu
from rnn_ops.torch.arguments import check


def forward(inputs, state, Wxh, Whh, bh, activation):
    signature = check(inputs, state, Wxh, Whh, bh, activation)
    T, B, _, H, *_ = signature
    given = [tensor.contiguous() for tensor in (inputs, state, Wxh, Whh, bh)]
    outputs, last_state = state.new_empty((T, B, H)), state.new_empty((B, H))
    address = outputs.data_ptr()
    cpu.run_forward(signature, activation, torch.get_num_threads(), *[tensor.data_ptr() for tensor in given], address)
    size = last_state.nbytes
    ctypes.memmove(last_state.data_ptr(), address + (T - 1) * size, size)
    return outputs, last_state


def backward(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    signature = check(inputs, state, Wxh, Whh, Whh[0], activation)
    read = [None if tensor is None else tensor.contiguous()
            for tensor in (inputs, state, Wxh, Whh, outputs, doutputs, dlast_state)]
    written = [state.new_empty(shape) if each else None for each, shape in zip(
        wanted, (inputs.shape, state.shape, Wxh.shape, Whh.shape, Whh.shape[:1]))]
    da = torch.empty_like(read[4])
    cpu.run_backward(signature, activation, torch.get_num_threads(),
                     *[None if tensor is None else tensor.data_ptr() for tensor in read + written + [da]])
    return [tensor for tensor in written if tensor is not None]
