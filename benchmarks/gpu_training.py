"""The tutorial's whole training on the GPU, as ``rnn-ops train --step cuda`` does it: checked against float64, timed.

The host waits only to read the losses of an epoch. Shapes: T steps, B batch rows, H hidden units, V symbols.
"""
import re
import time

import numpy as np

from rnn_ops import numpy_reference
from rnn_ops.backends.cuda.selftest import checks
from rnn_ops.exactness import different_cells
from rnn_ops_timemachine import cuda_training, data, descent, parameters, sampling

from . import problems
from .problems import TUTORIAL
from .worker import FAILED, OK

EPOCHS = 2000  # the tutorial's
# Epochs that are compared with NumPy in float64, and how far a batch's loss may be off, relative: the bound that
# tests/test_timemachine_swap.py has for the CPU. NumPy in float32 is off by 6e-5; in the third epoch single batches would be
# off by 2e-3, since training at this rate makes more of every rounding.
CHECKED, BOUND = 2, 1e-3
SHOWN = 100      # epochs between two lines on the screen
LAUNCHES, GRAPH = "launch by launch", "a graph an epoch"
_PROMPT, _LENGTH, _TEMPERATURE = "The Time Traveller", 300, 0.1


def train(learner, inputs, labels, epochs, show=None):
    """The tutorial's epochs → the loss of every batch, (epochs, batches).

    ``show(epochs done, mean loss of the last one)`` is called now and then. A FloatingPointError says that training has
    diverged.
    """
    losses = np.empty((epochs, len(inputs)))
    for epoch in range(1, epochs + 1):
        losses[epoch - 1] = list(learner.train_epoch(
            inputs, labels, descent.learning_rate_of(epoch, problems.LEARNING_RATE)))
        if show and (epoch % SHOWN == 0 or epoch == epochs):
            show(epoch, float(losses[epoch - 1].mean()))
    return losses


def true_losses(gpu, arrays, inputs, labels, epochs):
    """The loss of every batch in float64, by numpy_reference.py, (epochs, batches)."""
    weights = {name: gpu.for_truth(array.astype(np.float64)) for name, array in arrays.items()}
    inputs, labels = gpu.for_truth(inputs), gpu.for_truth(labels)
    losses = np.empty((epochs, len(inputs)))
    for epoch in range(epochs):
        state = gpu.for_truth(np.zeros((inputs.shape[2], len(weights["bh"]))))
        for batch, (tokens, targets) in enumerate(zip(inputs, labels)):
            loss, gradients = numpy_reference.language_model_gradients(tokens, targets, state, **weights)
            losses[epoch, batch] = float(loss)
            state = numpy_reference.forward(tokens, state, *(weights[name] for name in ("Wxh", "Whh", "bh")))[-1]
            for name, gradient in gradients.items():
                weights[name] -= descent.learning_rate_of(epoch + 1, problems.LEARNING_RATE) * gradient
    return losses


def measure(gpu, book, epochs=EPOCHS, show=None, T=TUTORIAL.T, B=TUTORIAL.B, H=TUTORIAL.H, among=checks.EVERY):
    """Check the training, then time ``epochs`` of it.

    Each way to launch it trains for CHECKED epochs twice from the same start: the losses must be NumPy's within BOUND, the
    parameters and losses the same bits both times. The second time is measured. Then the faster way does all epochs.

    Parameters
    ----------
    gpu : cupy_gpu.Gpu
    book : rnn_ops_timemachine.text.Text
    epochs : int
    show : callable or None
        As in `train`.
    among : names of families
        The best variant of these is used.

    Returns
    -------
    dict
        For the result file: text and model, ``ways`` (a row for each, with its tokens a second), ``failed`` (sentences),
        and, if a way works, the whole training's seconds, tokens a second and mean losses by epoch, and a sample with the
        part of its words that are words of the text.
    """
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = data.batches(vocabulary.encode(book.characters), T, B)
    arrays = parameters.initialise(len(vocabulary), H, seed=0)
    variant = checks.those_of(checks.families(gpu.device, np.float32, (T, B, len(vocabulary), H)), among)[0]
    found = {"text": book.name, "notice": book.notice, "T": T, "B": B, "V": len(vocabulary), "H": H, "batches": len(inputs),
             "variant": str(variant), "checked_epochs": CHECKED, "bound": BOUND,
             "failed": [], "ways": []}
    true, works = true_losses(gpu, arrays, inputs, labels, CHECKED), {}
    for way, record in ((LAUNCHES, False), (GRAPH, True)):
        try:
            learner, runs = cuda_training.Learner(arrays, gpu, variant, record), []
            list(learner.train_epoch(inputs, labels, 0.0))  # changes no parameter; compiles and records
            for _ in range(2):
                learner.start(arrays)
                gpu.wait()
                began = time.perf_counter()
                losses = train(learner, inputs, labels, CHECKED)
                seconds = time.perf_counter() - began
                runs.append((losses, *learner.arrays().values()))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            found["ways"].append({"way": way, "status": FAILED, "reason": reason})
            found["failed"].append(f"{way}: {reason}")
            checks.see_alive(gpu, f"training, {way}", error)
            continue
        changed = sum(different_cells(*pair) for pair in zip(*runs))
        if changed:
            found["failed"].append(f"{way}: {changed} losses and parameters differ between two runs")
        worst = float((np.abs(losses - true) / true).max())
        if not worst <= BOUND:
            found["failed"].append(f"{way}: a loss is off by a relative {worst:.1e}, allowed are {BOUND:.0e}")
        found["ways"].append({"way": way, "status": OK, "error": worst, **_rates(seconds, CHECKED, inputs)})
        works[way] = seconds, learner
    if not works:
        return found
    way = min(works, key=lambda way: works[way][0])
    learner = works[way][1]
    learner.start(arrays)
    gpu.wait()
    began = time.perf_counter()
    losses = train(learner, inputs, labels, epochs, show)
    found.update(way=way, **_rates(time.perf_counter() - began, epochs, inputs), losses=losses.mean(axis=1).tolist())
    prompt = book.characters[:len(_PROMPT)] if vocabulary.missing(_PROMPT) else _PROMPT
    sample = sampling.sample(learner.arrays(), vocabulary, prompt, _LENGTH, _TEMPERATURE, seed=0)
    words, known = re.findall(r"\w+", sample)[1:-1], set(re.findall(r"\w+", book.characters))  # but those cut off
    found.update(sample=prompt + sample, known_words=sum(word in known for word in words) / max(1, len(words)))
    return found


def _rates(seconds, epochs, inputs):
    return {"epochs": epochs, "seconds": seconds, "tokens_per_second": epochs * inputs.size / seconds,
            "us_per_batch": 1e6 * seconds / (epochs * len(inputs))}
