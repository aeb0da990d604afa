"""The recurrence in plain NumPy: one product a step forward, one a step backward, the weights' gradients at the end.

In float64 it is the truth of all checks; in float32 the benchmark times it as a provider. Shapes as in ``rnn_ops.reference``:
inputs are floats (T, B, I) or int32 tokens (T, B). The arrays may be CuPy's; the GPU then computes.
"""
import sys
from typing import Any, Dict, Tuple

import numpy as np

Array = Any  # NumPy's or CuPy's


def namespace(array: Array) -> Any:
    """The module whose functions take the array: NumPy, or CuPy."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def forward(inputs: Array, state: Array, Wxh: Array, Whh: Array, bh: Array, activation: str = "tanh") -> Array:
    """The hidden state after every step, (T, B, H). activation: "tanh" or "relu"."""
    xp = namespace(state)
    outputs = (Wxh[inputs] if inputs.ndim == 2 else inputs @ Wxh) + bh  # the part of a step that no other step delays
    for t in range(len(outputs)):
        a = outputs[t] + state @ Whh
        outputs[t] = state = xp.tanh(a) if activation == "tanh" else xp.maximum(a, 0)
    return outputs


def backward(inputs: Array, state: Array, Wxh: Array, Whh: Array, outputs: Array, doutputs: Array,
             activation: str = "tanh") -> Dict[str, Array]:
    """Gradients {"dstate", "dWxh", "dWhh", "dbh"} and, for dense inputs, "dinputs"."""
    H, xp = Whh.shape[0], namespace(state)
    da = xp.empty_like(outputs)  # gradient of the argument of tanh or relu
    dh = xp.zeros_like(state)
    for t in reversed(range(len(outputs))):
        da[t] = (doutputs[t] + dh) * (1 - outputs[t] ** 2 if activation == "tanh" else outputs[t] > 0)
        dh = da[t] @ Whh.T
    flat = da.reshape(-1, H)
    gradients = {
        "dstate": dh,
        "dWhh": state.T @ da[0] + outputs[:-1].reshape(-1, H).T @ flat[len(state):],
        "dbh": flat.sum(axis=0),
    }
    if inputs.ndim == 2:
        rows = one_hot(inputs, len(Wxh), Wxh.dtype)
    else:
        rows = inputs
        gradients["dinputs"] = da @ Wxh.T
    gradients["dWxh"] = rows.reshape(-1, len(Wxh)).T @ flat
    return gradients


def one_hot(tokens: Array, V: int, dtype: Any = np.float32) -> Array:
    """Rows (..., V) with a one at each token."""
    return (tokens[..., None] == namespace(tokens).arange(V)).astype(dtype)


def language_model_gradients(tokens: Array, labels: Array, state: Array, Wxh: Array, Whh: Array, bh: Array, Why: Array,
                             by: Array) -> Tuple[Array, Dict[str, Array]]:
    """Cross-entropy of the next token averaged over batch and time, and its gradients.

    tokens and labels: int32 (T, B) → (loss, {"Wxh": …, "Whh": …, "bh": …, "Why": …, "by": …}).
    """
    xp = namespace(state)
    outputs = forward(tokens, state, Wxh, Whh, bh)
    logits = outputs @ Why + by
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - xp.log(xp.exp(logits).sum(axis=-1, keepdims=True))
    targets = one_hot(labels, len(by), by.dtype)
    loss = -(targets * log_probabilities).sum() / labels.size
    dlogits = (xp.exp(log_probabilities) - targets) / labels.size
    recurrence = backward(tokens, state, Wxh, Whh, outputs, dlogits @ Why.T)
    gradients = {name: recurrence["d" + name] for name in ("Wxh", "Whh", "bh")}
    gradients["Why"] = outputs.reshape(-1, len(Why)).T @ dlogits.reshape(-1, len(by))
    gradients["by"] = dlogits.sum(axis=(0, 1))
    return loss, gradients
