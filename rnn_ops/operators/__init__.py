"""The recurrence as MXNet operators: importing this registers them, and these functions call them."""
from rnn_ops.operators.api import choice, rnn_sequence, rnn_step
from rnn_ops.operators.devices import use

__all__ = ["rnn_step", "rnn_sequence", "use", "choice"]
