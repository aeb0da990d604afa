"""The samples of a run: the prompts that its model continues after each epoch, and how samples.txt shows them."""
import math
from typing import Dict, List, Tuple

import numpy as np

from rnn_ops_timemachine import sampling
from rnn_ops_timemachine.data import Vocabulary

PROMPTS = ("The Time Ma", "The Medical Man rose, came to the lamp,")

_LENGTH, _TEMPERATURE = 1024, 0.1


def of(characters: str, vocabulary: Vocabulary) -> List[str]:
    """The tutorial's two prompts. If the vocabulary lacks characters of one, a piece of the text replaces it."""
    starts = range(0, len(characters), math.ceil(len(characters) / len(PROMPTS)))
    return [characters[start:start + len(prompt)] if vocabulary.missing(prompt) else prompt
            for prompt, start in zip(PROMPTS, starts)]


def for_a_shell(prompts: List[str], vocabulary: Vocabulary) -> str:
    """A prompt for a command, which cannot have a NUL: the first one, or its part before the NUL, or another one, or a single
    character. Empty if NUL is the only symbol."""
    found = [prompt.partition("\0")[0] for prompt in prompts] + [symbol for symbol in vocabulary.symbols if symbol != "\0"]
    return next(filter(None, found), "")


def continued(prompts: List[str], parameters: Dict[str, np.ndarray], vocabulary: Vocabulary, seed: int,
              epoch: int) -> List[Tuple[str, str]]:
    """(prompt, continuation) of each prompt after an epoch of the run with that seed."""
    return [(prompt, sampling.sample(parameters, vocabulary, prompt, _LENGTH, _TEMPERATURE, seed=(seed, epoch, index)))
            for index, prompt in enumerate(prompts)]


def written(samples: List[Tuple[str, str]], epoch: int, loss: float) -> str:
    """The text of an epoch's samples in samples.txt."""
    parts = [f"=== epoch {epoch}: loss {loss:.4f}, temperature {_TEMPERATURE} ==="]
    parts += [f"--- {prompt!r} goes on:\n{prompt}{continuation}" for prompt, continuation in samples]
    return "\n\n".join(parts) + "\n\n\n"
