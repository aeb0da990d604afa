"""The character model trained in PyTorch with the recurrence of `rnn_ops.torch`: MXNet is not needed.

The output layer, the cross-entropy and the gradients are PyTorch's. The update is plain, as `torch.optim.SGD` does it. No graph
goes from one batch into the next: the state is detached.
"""
from typing import Any, Dict, Iterator, Optional

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rnn_ops.torch import rnn_sequence
from rnn_ops_timemachine import contexts, descent, parameters


class Device:
    """The one device of a training in PyTorch, as an `exchange.Contexts` that splits nothing.

    ``names`` are MXNet's: "cpu(0)" is PyTorch's cpu, "gpu(1)" is cuda:1. A ValueError if there are several, or no such GPU.
    """
    rank, workers, told, wrong = 0, 1, True, None
    steps = ("torch",)

    def __init__(self, names: str):
        self.contexts = contexts.parsed(names)
        if len(self.contexts) > 1:
            raise ValueError(f"ctx: got {names!r}, needs one such as gpu(0): the torch step trains on one device")
        context, = self.contexts
        if context.kind == "gpu" and context.number >= torch.cuda.device_count():
            raise ValueError(f"ctx: got {context}, but PyTorch finds {torch.cuda.device_count()} GPUs")
        self.device = torch.device("cuda", context.number) if context.kind == "gpu" else torch.device("cpu")

    def about(self) -> Dict[str, Any]:
        """As `exchange.Contexts.about`."""
        return dict(workers=1, kvstore=None, ctx=",".join(map(str, self.contexts)))

    def check(self, batch_size: int) -> None:
        """As `exchange.Contexts.check`: one row is enough."""

    def leave(self, reason: str, signal: int = 0) -> None:
        """As `exchange.Contexts.leave`: nobody else is there."""

    def close(self) -> None:
        """As `exchange.Contexts.close`."""


class Learner:
    """A `learners.Learner` in PyTorch.

    Parameters
    ----------
    arrays : dict
        The first parameters as NumPy arrays by name, all float32 or all float64.
    exchange : Device
        By default the CPU.
    """

    def __init__(self, arrays: Dict[str, np.ndarray], exchange: Optional[Device] = None):
        self._device = exchange.device if exchange else torch.device("cpu")
        self._parameters = {name: torch.tensor(array, device=self._device, requires_grad=True)
                            for name, array in arrays.items()}

    def train_epoch(self, inputs: np.ndarray, labels: np.ndarray, learning_rate: float) -> Iterator[float]:
        """As `learners.Learner.train_epoch`."""
        weights, state = list(self._parameters.values()), self._no_state(inputs)
        for number, batch in enumerate(zip(inputs, labels), start=1):
            loss, state = self._loss(*batch, state)
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients):
                    weight.sub_(gradient, alpha=learning_rate)
            yield descent.checked(loss.item(), f"of batch {number}")

    def loss(self, inputs: np.ndarray, labels: np.ndarray) -> float:
        """As `learners.Learner.loss`."""
        losses, state = [], self._no_state(inputs)
        with torch.no_grad():
            for batch in zip(inputs, labels):
                loss, state = self._loss(*batch, state)
                losses.append(loss.item())
        return descent.mean(losses)

    def arrays(self) -> Dict[str, np.ndarray]:
        """As `learners.Learner.arrays`."""
        return parameters.finite({name: weight.detach().cpu().numpy().copy() for name, weight in self._parameters.items()})

    def _no_state(self, inputs):
        bias = self._parameters["bh"]
        return bias.new_zeros((inputs.shape[2], len(bias)))

    def _loss(self, tokens, labels, state):
        """The mean loss of a batch, from its tokens and labels (T, B) and the state before it → (loss, the state after it)."""
        Wxh, Whh, bh, Why, by = (self._parameters[name] for name in parameters.NAMES)
        outputs, state = rnn_sequence(self._tensor(tokens, np.int32), state, Wxh, Whh, bh)
        logits = torch.addmm(by, outputs.flatten(0, 1), Why)
        return cross_entropy(logits, self._tensor(labels, np.int64).flatten()), state.detach()

    def _tensor(self, tokens, dtype):
        return torch.from_numpy(tokens.astype(dtype, "C")).to(self._device)
