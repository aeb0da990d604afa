"""The samples of a run: what its model is given to continue after each epoch, and how they are written down."""
import math

from rnn_ops_timemachine import sampling

PROMPTS = ("The Time Ma", "The Medical Man rose, came to the lamp,")

_LENGTH, _TEMPERATURE = 1024, 0.1


def of(characters, vocabulary):
    """The tutorial's two prompts; for one with characters that the vocabulary lacks, a stretch of the text itself."""
    starts = range(0, len(characters), math.ceil(len(characters) / len(PROMPTS)))
    return [characters[start:start + len(prompt)] if vocabulary.missing(prompt) else prompt
            for prompt, start in zip(PROMPTS, starts)]


def for_a_shell(prompts, vocabulary):
    """A prompt that a command can have, which no NUL can be in: the first one, or what is before its NUL, or another one, or
    a character; empty where the vocabulary is that of NUL alone."""
    found = [prompt.partition("\0")[0] for prompt in prompts] + [symbol for symbol in vocabulary.symbols if symbol != "\0"]
    return next(filter(None, found), "")


def continued(prompts, parameters, vocabulary, seed, epoch):
    """How a model continues the prompts after an epoch of the run with that seed: a list of (prompt, continuation)."""
    return [(prompt, sampling.sample(parameters, vocabulary, prompt, _LENGTH, _TEMPERATURE, seed=(seed, epoch, index)))
            for index, prompt in enumerate(prompts)]


def written(samples, epoch, loss):
    """Samples as the text that samples.txt gets for an epoch."""
    parts = [f"=== epoch {epoch}: loss {loss:.4f}, temperature {_TEMPERATURE} ==="]
    parts += [f"--- {prompt!r} goes on:\n{prompt}{continuation}" for prompt, continuation in samples]
    return "\n\n".join(parts) + "\n\n\n"
