"""Sampling: the distribution is the reference's softmax with temperature, and the same seed gives the same text."""
import collections

import numpy as np
import pytest

from rnn_ops import reference
from rnn_ops._mxnet import mx
from rnn_ops_timemachine import data, sampling
from rnn_ops_timemachine.parameters import initialise

VOCABULARY = data.Vocabulary("abcdefg\n")


def parameters(scale, seed=1):
    return {name: scale * array for name, array in initialise(len(VOCABULARY), 12, seed).items()}


def true_probabilities(arrays, text, temperature):
    """What comes after a text according to the reference, (V,)."""
    nd = {name: mx.nd.array(array) for name, array in arrays.items()}
    tokens = mx.nd.array(VOCABULARY.encode(text), dtype="int32").reshape((-1, 1))
    _, state = reference.rnn_sequence(tokens, mx.nd.zeros((1, 12)), nd["Wxh"], nd["Whh"], nd["bh"])
    return reference.softmax(reference.output_layer(state, nd["Why"], nd["by"]), temperature)[0].asnumpy()


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
@pytest.mark.slow
def test_frequencies_are_the_references_probabilities(temperature):
    arrays, count = parameters(60), 4000
    second = collections.defaultdict(collections.Counter)
    for seed in range(count):
        first, after = sampling.sample(arrays, VOCABULARY, "bad\ncafe", 2, temperature, seed)
        second[first][after] += 1
    expected = true_probabilities(arrays, "bad\ncafe", temperature)
    observed = [sum(second[symbol].values()) / count for symbol in VOCABULARY.symbols]
    np.testing.assert_allclose(observed, expected, atol=5 * 0.5 / count ** 0.5)  # 5 standard deviations of a frequency
    likeliest = VOCABULARY.symbols[int(np.argmax(expected))]
    expected = true_probabilities(arrays, "bad\ncafe" + likeliest, temperature)
    draws = sum(second[likeliest].values())
    observed = [second[likeliest][symbol] / draws for symbol in VOCABULARY.symbols]
    np.testing.assert_allclose(observed, expected, atol=5 * 0.5 / draws ** 0.5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-300])
def test_near_temperature_zero_the_likeliest_is_taken(temperature):
    arrays, text = parameters(100), "abc"
    for _ in range(20):
        text += VOCABULARY.symbols[int(np.argmax(true_probabilities(arrays, text, 1)))]
    assert "abc" + sampling.sample(arrays, VOCABULARY, "abc", 20, temperature, seed=0) == text


def test_the_seed_decides():
    arrays = parameters(10)
    before = np.random.get_state()[1].copy()
    drawn = [sampling.sample(arrays, VOCABULARY, "abc", 200, 1.0, seed) for seed in (7, 7, 8)]
    assert (np.random.get_state()[1] == before).all()
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 200


@pytest.mark.parametrize("change, message", [
    (dict(prompt=""), "prompt: got an empty text"),
    (dict(prompt="abXcé"), "prompt: got 'X', 'é', not among the 8 symbols that the model knows$"),
    (dict(prompt="".join(map(chr, range(100, 1000)))), "prompt: got 'h', 'i', .*, 'q' and 886 more, not among the 8 symbols"),
    (dict(length=0), "length: got 0, needs at least 1"),
    (dict(temperature=0.0), "temperature: got 0.0, needs a finite number greater than 0"),
    (dict(temperature=-1.0), "temperature: got -1.0"),
    (dict(temperature=float("nan")), "temperature: got nan"),
    (dict(temperature=float("inf")), "temperature: got inf"),
    (dict(seed=-1), "seed: got -1, needs at least 0"),
])
def test_what_cannot_be_sampled_is_named(change, message):
    arguments = dict(prompt="abc", length=5, temperature=1.0, seed=0)
    with pytest.raises(ValueError, match=message):
        sampling.sample(parameters(1), VOCABULARY, **dict(arguments, **change))
