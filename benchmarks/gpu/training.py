"""The tutorial's whole training on the GPU: tokens in, parameters updated, and the host waits only to read losses.

The recurrence is the launcher's, the products of the output layer are cuBLAS's, and all else is operations of an array
namespace (CuPy, in the tests NumPy) that write where they are told. The launches of an epoch are always the same, on the
same memory: so they are recorded once, and an epoch is one launch of a CUDA graph. The same parameters give the same bits.

Shapes: T steps, B batch rows, N = T·B predictions a batch, H hidden units, V symbols.
"""
import math
import re
import time

import numpy as np
from rnn_ops.backends.cuda import variants
from rnn_ops_timemachine import data, sampling

from rnn_ops import numpy_reference

from .. import problems
from ..worker import FAILED, OK
from . import checks
from .cells import TUTORIAL

EPOCHS, QUICK_EPOCHS = 2000, 100  # the tutorial's, and some of them
# Epochs that are held against NumPy in float64, and how far a batch's loss may be off, relative: what
# tests/test_timemachine_swap.py allows the CPU. NumPy in float32 is off by 6e-5; in the third epoch single batches would be by
# 2e-3, since training at this rate makes more of every rounding.
CHECKED, BOUND = 2, 1e-3
READ = 100       # epochs between two looks at the losses
LAUNCHES, GRAPH = "launch by launch", "a graph an epoch"
_PROMPT, _LENGTH, _TEMPERATURE = "The Time Traveller", 300, 0.1
_ALIGNED = 64    # elements: every parameter begins at a multiple, as an array of its own would


def initial(V, H, dtype=np.float32):
    """The first parameters, N(0, 0.01²): those that ``rnn-ops train`` draws for seed 0 (`timemachine.model.initialise`)."""
    generator = np.random.default_rng(0)
    shapes = {"Wxh": (V, H), "Whh": (H, H), "bh": (H,), "Why": (H, V), "by": (V,)}
    return {name: (0.01 * generator.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def learning_rate_of(epoch):
    """Of an epoch counted from 1: halved at every 100th, as `timemachine.training.learning_rate_of` says."""
    return math.ldexp(problems.LEARNING_RATE, -(epoch // 100))


class Trainer:
    """A model and what it is trained on, in the memory of a machine. Nothing here waits but `arrays`.

    Parameters
    ----------
    machine : machine.Machine
        Or what has its ``xp``, ``runtime``, ``launcher``, ``to_device`` and ``to_host``.
    arrays : dict
        The first parameters as NumPy arrays by name, as `initial` gives them, all float32 or all float64.
    inputs, labels : int32 (batches, T, B)
        As `rnn_ops_timemachine.data.batches` gives them, tokens and labels in [0, V).
    variant : variants.Variant or None
        Of the recurrence; None: the launcher chooses.

    Attributes
    ----------
    losses : (batches,)
        On the machine: the mean cross-entropy of each batch in the last epoch, in nats.
    """

    def __init__(self, machine, arrays, inputs, labels, variant=None):
        xp = machine.xp
        (V, H), dtype = arrays["Wxh"].shape, arrays["Wxh"].dtype
        batches, T, B = inputs.shape
        N = T * B
        self._variant = variant
        self._machine, self._launcher, self._multiply = machine, machine.launcher, machine.runtime.multiply
        self._tokens = machine.to_device(inputs)
        self._labels = machine.to_device(labels.reshape(batches, N, 1))
        # Of each label's logit among the N·V of a batch.
        self._places = machine.to_device(np.arange(N) * V + labels.reshape(batches, N))
        self._symbols = xp.arange(V, dtype=np.int32)
        self._layout, size = _side_by_side(arrays)
        self._all_parameters, self._all_gradients = xp.zeros(size, dtype), xp.zeros(size, dtype)
        self._parameters, self._gradients = self._views(self._all_parameters), self._views(self._all_gradients)
        self._states = xp.empty((2, T, B, H), dtype)  # of this batch and of the last one, in turn
        self._zero = xp.zeros((B, H), dtype)
        self._dstates = xp.empty((T, B, H), dtype)
        self._logits, self._hits = xp.empty((N, V), dtype), xp.empty((N, V), bool)
        self._column, self._picked = xp.empty((N, 1), dtype), xp.empty(N, dtype)
        self._rate = xp.zeros(1, dtype)
        self.losses = xp.zeros(batches, dtype)
        self.start(arrays)

    def start(self, arrays):
        """Take these parameters, and a learning rate of 0."""
        for name, view in self._parameters.items():
            view[...] = self._machine.to_device(arrays[name])
        self.set_learning_rate(0)

    def set_learning_rate(self, rate):
        # The gradients are those of the sum of a batch's losses. Their mean's 1/N is in here.
        self._rate.fill(rate / len(self._picked))

    def arrays(self):
        """The parameters as NumPy arrays by name. Waits."""
        return self._views(self._machine.to_host(self._all_parameters))

    def epoch(self):
        """Train on every batch in order, from a state of zeros. The state goes from batch to batch, no gradient does."""
        for number in range(len(self.losses)):
            self._batch(number)

    def _batch(self, number):
        xp, weights, gradients, multiply = self._machine.xp, self._parameters, self._gradients, self._multiply
        tokens, states = self._tokens[number], self._states[number % 2]
        state = self._states[(number - 1) % 2, -1] if number else self._zero
        rows, drows = (array.reshape(len(self._picked), -1) for array in (states, self._dstates))
        Wxh, Whh, bh, Why = (weights[name] for name in ("Wxh", "Whh", "bh", "Why"))

        self._launcher.forward(tokens, state, Wxh, Whh, bh, states, variant=self._variant)
        multiply(rows, Why, self._logits)
        dlogits = self._cross_entropy(number)
        xp.sum(dlogits, axis=0, out=gradients["by"])
        multiply(rows, dlogits, gradients["Why"], transpose_a=True)
        multiply(dlogits, Why, drows, transpose_b=True)
        self._launcher.backward(tokens, state, Wxh, Whh, states, self._dstates, None,
                                **{"d" + name: gradients[name] for name in ("Wxh", "Whh", "bh")}, variant=self._variant)
        xp.multiply(self._all_gradients, self._rate, out=self._all_gradients)
        xp.subtract(self._all_parameters, self._all_gradients, out=self._all_parameters)

    def _cross_entropy(self, number):
        """From the products of the output layer to the loss of the batch and, in their place, the gradient of its sum."""
        xp, logits, column, picked = self._machine.xp, self._logits, self._column, self._picked
        xp.add(logits, self._parameters["by"], out=logits)
        xp.amax(logits, axis=1, keepdims=True, out=column)
        xp.subtract(logits, column, out=logits)
        xp.take(logits, self._places[number], out=picked)
        xp.exp(logits, out=logits)
        xp.sum(logits, axis=1, keepdims=True, out=column)
        xp.divide(logits, column, out=logits)
        xp.equal(self._labels[number], self._symbols, out=self._hits)
        xp.subtract(logits, self._hits, out=logits)
        xp.log(column, out=column)
        xp.subtract(column[:, 0], picked, out=picked)
        xp.mean(picked, keepdims=True, out=self.losses[number:number + 1])
        return logits

    def _views(self, memory):
        return {name: memory[begin:begin + math.prod(shape)].reshape(shape)
                for name, (begin, shape) in self._layout.items()}


def _side_by_side(arrays):
    """Where each parameter begins in one array of all, with its shape, by name → (that, elements of all)."""
    places, size = {}, 0
    for name, array in arrays.items():
        places[name] = size, array.shape
        size += -(-array.size // _ALIGNED) * _ALIGNED
    return places, size


def train(trainer, machine, epoch, epochs, show=None):
    """``epochs`` times ``epoch()``, the trainer's own or a recording of it → the loss of every batch, (epochs, batches).

    ``show(epochs done, mean loss of the last one)`` is called whenever the losses are read.

    Raises
    ------
    FloatingPointError
        Training has diverged: a loss is not finite.
    """
    history = machine.xp.empty((epochs, len(trainer.losses)), trainer.losses.dtype)
    for number in range(1, epochs + 1):
        trainer.set_learning_rate(learning_rate_of(number))
        epoch()
        history[number - 1] = trainer.losses
        if number % READ == 0 or number == epochs:
            loss = float(machine.to_host(trainer.losses).mean())
            if not math.isfinite(loss):
                raise FloatingPointError(f"training has diverged: the loss of epoch {number} is {loss}")
            if show:
                show(number, loss)
    return machine.to_host(history)


def true_losses(machine, arrays, inputs, labels, epochs):
    """The loss of every batch in float64, by numpy_reference.py where the machine computes truths, (epochs, batches)."""
    weights = {name: machine.for_truth(array.astype(np.float64)) for name, array in arrays.items()}
    inputs, labels = machine.for_truth(inputs), machine.for_truth(labels)
    losses = np.empty((epochs, len(inputs)))
    for epoch in range(epochs):
        state = machine.for_truth(np.zeros((inputs.shape[2], len(weights["bh"]))))
        for batch, (tokens, targets) in enumerate(zip(inputs, labels)):
            loss, gradients = numpy_reference.language_model_gradients(tokens, targets, state, **weights)
            losses[epoch, batch] = float(loss)
            state = numpy_reference.forward(tokens, state, *(weights[name] for name in ("Wxh", "Whh", "bh")))[-1]
            for name, gradient in gradients.items():
                weights[name] -= learning_rate_of(epoch + 1) * gradient
    return losses


def measure(machine, book, epochs=EPOCHS, show=None, T=TUTORIAL.T, B=TUTORIAL.B, H=TUTORIAL.H, among=checks.EVERY):
    """Check the training, then time ``epochs`` of it.

    Each way to launch it is run for CHECKED epochs twice from the same start: the losses must be NumPy's within BOUND, the
    parameters and losses the same bits both times. The second run is timed. Then the faster way does all.

    Parameters
    ----------
    machine : machine.Machine
    book : timemachine.text.Text
    epochs : int
    show : callable or None
        As in `train`.
    among : names of families
        The best variant of these is used.

    Returns
    -------
    dict
        For the result file: what was trained, ``ways`` (a row for each, with its tokens a second), ``failed`` (sentences),
        and, where a way works, the whole training's seconds, tokens a second and mean losses by epoch, and a sample with the
        part of its words that are words of the text.
    """
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = data.batches(vocabulary.encode(book.characters), T, B)
    arrays = initial(len(vocabulary), H)
    variant = checks.those_of(checks.families(machine.device, np.float32, (T, B, len(vocabulary), H)), among)[0]
    trainer = Trainer(machine, arrays, inputs, labels, variant)
    found = {"text": book.name, "notice": book.notice, "T": T, "B": B, "V": len(vocabulary), "H": H, "batches": len(inputs),
             "variant": str(variant), "checked_epochs": CHECKED, "bound": BOUND,
             "failed": [], "ways": []}
    true, works = true_losses(machine, arrays, inputs, labels, CHECKED), {}
    for way, make in ((LAUNCHES, lambda: trainer.epoch), (GRAPH, lambda: machine.recorded(trainer.epoch))):
        try:
            trainer.start(arrays)
            epoch, runs = make(), []
            for _ in range(2):
                trainer.start(arrays)
                machine.wait()
                began = time.perf_counter()
                losses = train(trainer, machine, epoch, CHECKED)
                seconds = time.perf_counter() - began
                runs.append((losses, *trainer.arrays().values()))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            found["ways"].append({"way": way, "status": FAILED, "reason": reason})
            found["failed"].append(f"{way}: {reason}")
            checks.see_alive(machine, f"training, {way}", error)
            continue
        changed = sum(checks.different_cells(*pair) for pair in zip(*runs))
        if changed:
            found["failed"].append(f"{way}: {changed} losses and parameters differ between two runs")
        worst = float((np.abs(losses - true) / true).max())
        if not worst <= BOUND:
            found["failed"].append(f"{way}: a loss is off by a relative {worst:.1e}, allowed are {BOUND:.0e}")
        found["ways"].append({"way": way, "status": OK, "error": worst, **_rates(seconds, CHECKED, inputs)})
        works[way] = seconds, epoch
    if not works:
        return found
    way = min(works, key=lambda way: works[way][0])
    trainer.start(arrays)
    machine.wait()
    began = time.perf_counter()
    losses = train(trainer, machine, works[way][1], epochs, show)
    found.update(way=way, **_rates(time.perf_counter() - began, epochs, inputs), losses=losses.mean(axis=1).tolist())
    prompt = book.characters[:len(_PROMPT)] if vocabulary.missing(_PROMPT) else _PROMPT
    sample = sampling.sample(trainer.arrays(), vocabulary, prompt, _LENGTH, _TEMPERATURE, seed=0)
    words, known = re.findall(r"\w+", sample)[1:-1], set(re.findall(r"\w+", book.characters))  # without what is cut off
    found.update(sample=prompt + sample, known_words=sum(word in known for word in words) / max(1, len(words)))
    return found


def _rates(seconds, epochs, inputs):
    return {"epochs": epochs, "seconds": seconds, "tokens_per_second": epochs * inputs.size / seconds,
            "us_per_batch": 1e6 * seconds / (epochs * len(inputs))}
