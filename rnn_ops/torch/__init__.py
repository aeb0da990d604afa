"""rnn_ops on PyTorch tensors: the same kernels behind ``torch.library``. Needs PyTorch and no MXNet.

- ``rnn_sequence`` is the function of `rnn_ops.rnn_sequence`.
- ``RNN`` stands in for `torch.nn.RNN`; ``TokenRNN`` takes tokens.
"""
import importlib.util

if importlib.util.find_spec("torch") is None:
    raise ImportError("This needs PyTorch 2.4 or newer: install rnn_ops[torch]")

from rnn_ops.torch.functions import rnn_sequence
from rnn_ops.torch.layers import RNN, TokenRNN

__all__ = ["rnn_sequence", "RNN", "TokenRNN"]
