"""The numbers of gradient descent that all learners share: learning rates, losses and their averages. Needs NumPy alone."""
import math
from typing import Iterable, Optional

import numpy as np

from rnn_ops_timemachine import settings


def learning_rate_of(epoch: int, initial: float, since: int = 1) -> float:
    """The learning rate of an epoch, counted from 1: ``initial`` in the epoch ``since``, halved at every 100th after
    it, as far down as float32 goes."""
    return max(math.ldexp(initial, since // 100 - epoch // 100), float(settings.LEARNING_RATES.tiny))


def moving_average(average: Optional[float], loss: float) -> float:
    """The exponential moving average after one more loss; ``average`` is None before the first."""
    return loss if average is None else 0.99 * average + 0.01 * loss


def perplexity(loss: float) -> float:
    """exp(loss): how many equally likely characters the model hesitates between."""
    return math.exp(loss)


def checked(loss: float, of: str) -> float:
    """A loss in nats; a FloatingPointError if its perplexity is not a finite number: training has diverged.

    ``of`` says in the error which loss it is.
    """
    loss = clamped(loss)
    if not settings.is_loss(loss):
        raise FloatingPointError(f"training has diverged: the loss {of} is {loss}")
    return loss


def mean(losses: Iterable[float]) -> float:
    """The mean of the losses on a validation part, `checked`."""
    return checked(np.mean([clamped(loss) for loss in losses]), "on the validation part")


def clamped(loss: float) -> float:
    """A loss as a float, at least 0: rounding can put that of a text that leaves nothing to guess just below."""
    return 0.0 if -math.inf < loss <= 0 else float(loss)
