"""Problems: a shape, random inputs from a fixed seed, and the float64 truth of every result.

A problem has a ``name``, its ``shape`` (None for a yardstick), the ``directions`` in which it is timed, how many ``repeats`` of
it a call makes (its time is divided by them), ``flops(direction)`` of one of them, ``truth(direction)``: the results by name that
a provider must reproduce before it is timed, and ``small()``: the same problem at a size that costs nothing. The gradients are
the same for every provider: those of the weights, the bias and the initial state, and of the inputs where they are dense.
"""
import re
from typing import NamedTuple

import numpy as np

from rnn_ops import exactness, numpy_reference

from . import environment, floor

GRADIENTS = "gradients of Wxh, Whh, bh and the initial state, and of the inputs where they are dense"
# Directions. On a GPU backward is also timed alone, and without the gradients of the weights.
FORWARD, STEPS, BACKWARD, BOTH = GPU_DIRECTIONS = ("forward", "backward, steps alone", "backward", "forward+backward")
TRAINING = "training step"
LEARNING_RATE = 0.5  # the tutorial's


class Shape(NamedTuple):
    T: int
    B: int
    I: int
    H: int
    tokens: bool

    def __str__(self):
        return f"{self.sizes} {self.input}"

    @property
    def sizes(self):
        return "×".join(map(str, self[:4]))

    @property
    def input(self):
        return "tokens" if self.tokens else "dense"

    @classmethod
    def parse(cls, text):
        """'64,32,77,256' (tokens) or '64,64,256,512:dense'; x instead of the commas is read too."""
        match = re.fullmatch(r"(\d+)([,x×])(\d+)\2(\d+)\2(\d+)(:tokens|:dense)?", text, re.ASCII)
        sizes = [int(match.group(i)) for i in (1, 3, 4, 5)] if match else [0]
        if not all(sizes):
            raise ValueError(f"a shape is T,B,I,H, each at least 1, with :tokens or :dense after it; got {text!r}")
        return cls(*sizes, match.group(6) != ":dense")


TUTORIAL = Shape(64, 32, 77, 256, tokens=True)
SHAPES = (TUTORIAL, Shape(64, 64, 256, 512, tokens=False), Shape(128, 1, 77, 256, tokens=True))
# T, B, I, H of the grid: rows and hidden units at the tutorial's T and I, then others of these.
GRID = (*((64, B, 77, H) for H in (64, 128, 256, 512, 1024) for B in (1, 8, 32, 128)),
        (64, 32, 256, 256), (512, 32, 77, 256), (16, 32, 77, 256), (1024, 1, 77, 256))

# H and B of a GPU's grid, at the tutorial's T and I. 384: beyond the last H that cuDNN keeps on the chip.
GPU_HIDDEN, GPU_BATCHES = (64, 128, 256, 384, 512, 1024, 2048), (1, 8, 32, 64, 128)
GPU_QUICK_HIDDEN, GPU_QUICK_BATCHES = (256, 512, 1024), (1, 32, 128)
GPU_STEPS = (1, 16, 256, 1024)  # T at the tutorial's B and H, besides its own


def gpu_shapes(quick=False):
    """The tutorial's first, so that it is there if the rest is cut off; every H with every B; other numbers of steps."""
    hidden, batches = (GPU_QUICK_HIDDEN, GPU_QUICK_BATCHES) if quick else (GPU_HIDDEN, GPU_BATCHES)
    every = [TUTORIAL._replace(B=B, H=H) for H in hidden for B in batches]
    lengths = [] if quick else [TUTORIAL._replace(T=T) for T in GPU_STEPS]
    return [TUTORIAL] + [shape for shape in every if shape != TUTORIAL] + lengths


_SMALL = Shape(2, 2, 3, 4, tokens=True)


class _Problem:
    """Reaches a worker as its arguments: the fixed seed makes the same arrays again."""

    repeats = 1
    shape = None

    def __init__(self, *arguments):
        self._arguments = arguments

    def __reduce__(self):
        return type(self), self._arguments

    def small(self):
        return type(self)(_SMALL._replace(tokens=self.shape.tokens))


class Sequence(_Problem):
    """The recurrence over a whole sequence. Backward starts from a gradient of all the outputs, as in training."""

    directions = (FORWARD, BOTH)

    def __init__(self, shape):
        super().__init__(shape)
        self.shape = shape
        self.name = str(shape)
        self.arguments = exactness.draw(*shape[:4], tokens=shape.tokens)._replace(dlast_state=None)
        self.inputs, self.state, self.Wxh, self.Whh, self.bh, self.doutputs, _ = self.arguments.arrays

    def dense_inputs(self):
        """Floats (T, B, I) for providers that take no tokens, made before the clock starts."""
        return numpy_reference.one_hot(self.inputs, self.shape.I) if self.shape.tokens else self.inputs

    def flops(self, direction):
        return floor.forward(self.shape) if direction == FORWARD else floor.forward_backward(self.shape)

    def truth(self, direction):
        arguments = self.arguments.astype(np.float64)
        if direction == FORWARD:
            return {"outputs": numpy_reference.forward(*arguments[:5])}
        return exactness.evaluate(arguments)


class TrainingStep(_Problem):
    """One step of the tutorial's character model: loss, gradients, stochastic gradient descent.

    A call makes some of them, on a batch each, as in an epoch: the state goes from one to the next, and the loss is read as
    a number at every step, as the tutorial does for its moving average. ``truth`` is that of the first call, from a zero
    state: parameters, loss and gradients after its last step.
    """

    directions = (TRAINING,)

    def __init__(self, shape, repeats=4):
        super().__init__(shape, repeats)
        self.shape, self.repeats = shape, repeats
        self.name = f"{shape}, whole training step"
        T, B, V, H, _ = shape
        random = np.random.RandomState(0)
        self.tokens = random.randint(V, size=(repeats, T, B)).astype(np.int32)
        self.labels = random.randint(V, size=(repeats, T, B)).astype(np.int32)
        self.state = np.zeros((B, H), np.float32)
        self.parameters = {"Wxh": exactness.weights(random, (V, H), H), "Whh": exactness.weights(random, (H, H), H),
                           "bh": exactness.weights(random, (H,), H), "Why": exactness.weights(random, (H, V), H),
                           "by": exactness.weights(random, (V,), H)}

    def flops(self, direction):
        return floor.training_step(self.shape)

    def truth(self, direction):
        parameters = {name: array.astype(np.float64) for name, array in self.parameters.items()}
        state = self.state.astype(np.float64)
        for tokens, labels in zip(self.tokens, self.labels):
            loss, gradients = numpy_reference.language_model_gradients(tokens, labels, state, **parameters)
            state = numpy_reference.forward(tokens, state, *(parameters[name] for name in ("Wxh", "Whh", "bh")))[-1]
            parameters = {name: parameters[name] - LEARNING_RATE * gradient for name, gradient in gradients.items()}
        return dict(parameters, loss=np.array([loss]), **{"d" + name: gradient for name, gradient in gradients.items()})


class Gemm(_Problem):
    """The machine's own rate: one large float32 product by the BLAS that NumPy brings."""

    directions = ("gemm",)
    n = 2048

    def __init__(self):
        super().__init__()
        self.name = f"sgemm {self.n}³"
        random = np.random.RandomState(0)
        self.a, self.b = random.randn(2, self.n, self.n).astype(np.float32)

    def flops(self, direction):
        return floor.gemm(self.n)

    def truth(self, direction):
        return {"first rows": self.a[:4].astype(np.float64) @ self.b.astype(np.float64)}

    def small(self):
        return self


class Peak(_Problem):
    """The processor's own rate: multiply-adds in registers, at one SIMD level (None: the one in use) on so many threads (None:
    `all_threads`)."""

    directions = ("peak",)
    rounds = 1 << 17  # some hundreds of microseconds

    def __init__(self, level=None, threads=None, dtype="float32"):
        super().__init__(level, threads, dtype)
        from rnn_ops.backends import cpu
        self.level, self.threads, self.dtype = level or cpu.simd(), threads or all_threads(), dtype
        self.name = f"{self.level} {dtype}, {self.threads} thread{'s' * (self.threads > 1)}"
        self._count = cpu.multiply_adds(1, 1, self.level, dtype) * self.rounds * self.threads

    def flops(self, direction):
        return floor.multiply_adds(self._count)

    def truth(self, direction):
        return {"multiply-adds": np.array([self._count], np.float64)}

    def small(self):
        return self


def all_threads():
    """As many as the kernels use, but no more than the process may run on."""
    from rnn_ops.backends import cpu
    return min(cpu.threads(), len(environment.processors()))


class Tanh(_Problem):
    """tanh as the kernels compute it, on one thread, of values that the L2 cache holds."""

    directions = ("tanh",)
    n = 1 << 14

    def __init__(self):
        super().__init__()
        self.name = "tanh, 1 thread"
        self.x = np.random.RandomState(0).uniform(-3, 3, self.n).astype(np.float32)

    def flops(self, direction):
        return 0

    def truth(self, direction):
        return {"y": np.tanh(self.x.astype(np.float64))}

    def small(self):
        return self
