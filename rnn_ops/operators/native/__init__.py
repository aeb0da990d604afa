"""The recurrence as a native MXNet operator, ``rnn_ops_native``: no Python between MXNet and the CPU kernels.

Importing this does nothing yet: the first call, or `why_not`, builds the library (build.py, once for a machine) and
loads it into MXNet. A graph that holds the operator can be read from a file only after that.
"""
from rnn_ops.operators.native.functions import rnn_sequence, rnn_step, why_not

__all__ = ["rnn_step", "rnn_sequence", "why_not"]
