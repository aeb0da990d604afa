"""The recurrence as a native MXNet operator, ``rnn_ops_native``: no Python between MXNet and the kernels.

Importing this loads the library, so that graphs which hold the operator can be read from files; `why_not` says why where
that failed. `library_path` is the library's file, for ``mx.library.load`` and the C API where rnn_ops is not imported.
"""
from rnn_ops.backends.cpu import library_path
from rnn_ops.operators.native.functions import (
    CONSTANT, UNSHARED, call, has_history, in_block, quick_call, rnn_sequence, rnn_step, why_not)

__all__ = ["rnn_step", "rnn_sequence", "call", "quick_call", "why_not", "library_path", "has_history", "in_block", "CONSTANT",
           "UNSHARED"]
