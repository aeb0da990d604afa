"""The recurrence as MXNet operators: importing this registers them, and these functions call them.

- `native`, `custom`: the two operators; `in_use` says which of them `rnn_step` and `rnn_sequence` take.
- `devices`: where CustomOps compute; `use` chooses it for arrays on the CPU.
- `lookup`: of a large Wxh, the rows that a batch needs.
"""
from rnn_ops.operators import custom, devices, lookup, native
from rnn_ops.operators.api import in_use, looks_at_tokens, rnn_sequence, rnn_step
from rnn_ops.operators.devices import use

__all__ = ["rnn_step", "rnn_sequence", "use", "in_use", "looks_at_tokens", "native", "custom", "devices", "lookup"]
