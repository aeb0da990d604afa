"""The recurrence as a native MXNet operator, ``rnn_ops_native``: no Python between MXNet and the kernels.

Importing this loads the library, so that graphs which hold the operator can be read from files; `why_not` says why where
that failed. `library_path` is the library's file, for ``mx.library.load`` and the C API where rnn_ops is not imported.

- `load` loads the library into MXNet.
- `guard` keeps the operator's gradients apart from those of others.
- `calls` calls it, `front` does so in one call of the library.
- `gpu` gives the library its programs for GPUs.
"""
from rnn_ops.backends.cpu import library_path
from rnn_ops.operators.native.calls import call, looks_at_tokens, quick_call, rnn_sequence, rnn_step
from rnn_ops.operators.native.load import unguarded, why_not

__all__ = ["rnn_step", "rnn_sequence", "call", "quick_call", "looks_at_tokens", "unguarded", "why_not", "library_path"]
