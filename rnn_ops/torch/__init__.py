"""rnn_ops on PyTorch tensors: the same kernels behind ``torch.library``. Needs PyTorch and no MXNet.

- ``rnn_sequence`` is the function of `rnn_ops.rnn_sequence`.
- ``RNN`` stands in for `torch.nn.RNN`; ``TokenRNN`` takes tokens.
"""
from rnn_ops.torch.functions import rnn_sequence
from rnn_ops.torch.layers import RNN, TokenRNN

__all__ = ["rnn_sequence", "RNN", "TokenRNN"]
