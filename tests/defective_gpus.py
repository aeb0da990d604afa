"""GPUs for tests, that compute in NumPy with any one thing wrong; processes that the tests start have them too."""
import os
import signal
import sys
import time

import numpy as np
from rnn_ops_benchmarks.gpu_work import LeftOut

from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.numpy_gpu import NumPyGpu

H100 = variants.known_device(90, 132)


class Defective(NumPyGpu):
    """``defect`` names what is wrong with it; None: nothing."""

    def __init__(self, device=H100, defect=None):
        super().__init__(device)
        self.defect, self.launches = defect, 0

    def to_device(self, array):
        if self.defect == "gone" and self.launches:
            raise RuntimeError("an illegal memory access")
        return array.copy()

    to_host = to_device

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        self.launches += 1
        if self.defect == "stepwise raises" and getattr(variant, "family", None) == "stepwise":
            raise RuntimeError("invalid configuration")
        if self.defect == "hangs":
            raise TimeoutError("a kernel hangs")
        if self.defect == "gone":
            return
        super().forward(inputs, state, Wxh, Whh, bh, outputs, activation, variant)
        wrong = (inputs < 0) | (inputs >= len(Wxh)) if inputs.ndim == 2 else np.zeros(1)
        if self.defect == "wrong tokens taken for 0" and wrong.any():
            super().forward(np.where(wrong, 0, inputs), state, Wxh, Whh, bh, outputs, activation, variant)
        if self.defect == "a wrong token spoils its neighbour" and wrong.any():
            for t, b in np.argwhere(wrong):
                outputs[t:, (b + 1) % len(state)] = np.nan
        if self.defect == "tanh off by 8 ulp":
            outputs *= 1 - 8 * np.finfo(outputs.dtype).eps
        if self.defect == "last element left out":
            outputs[-1, -1, -1] = np.nan
        if self.defect == "one too many":
            outputs.base[-1] = 0
        if self.defect == "changes its input":
            state[0, 0] += 1
        if self.defect == "other bits":
            outputs[0, 0, 0] += np.spacing(outputs[0, 0, 0]) * (self.launches % 2)

    def backward(self, inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation="tanh", variant=None,
                 **gradients):
        if self.defect == "gone":
            return
        if self.defect == "dlast_state ignored":
            dlast_state = None
        if self.defect == "doutputs needed" and doutputs is None:
            doutputs = np.ones_like(outputs)
        if self.defect == "tanh's derivative for relu":
            activation = "tanh"
        unseen = np.setdiff1d(np.arange(len(Wxh)), inputs) if self.defect == "unseen tokens left out" else []
        kept = gradients["dWxh"][unseen].copy() if len(unseen) and gradients.get("dWxh") is not None else None
        super().backward(inputs, state, Wxh, Whh, outputs, doutputs, dlast_state, activation, variant, **gradients)
        if kept is not None:
            gradients["dWxh"][unseen] = kept
        if self.defect == "dWhh of T = 1 only" and gradients.get("dWhh") is not None:
            gradients["dWhh"] -= outputs[:-1].reshape(-1, len(Whh)).T @ np.ones_like(outputs[1:]).reshape(-1, len(Whh))
        dbh = gradients.get("dbh")
        if self.defect == "without dstate all is other" and gradients.get("dstate") is None and dbh is not None:
            dbh *= 2
        if self.defect == "slightly off" and dbh is not None:
            dbh *= 1 + 1e-4 if dbh.dtype == np.float32 else 1 + 1e-8


# --- for processes: made by name

def right():
    return Defective()


def old():
    """A GPU of compute capability 8.0."""
    return Defective(variants.known_device(80, 108))


def wrong():
    return Defective(defect="tanh off by 8 ulp")


def no_gpu():
    raise LeftOut("there is no GPU: see that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not hide it")


def two():
    gpu = Defective()
    facts = gpu.describe()
    gpu.describe = lambda: dict(facts, name="two of them", devices=2)
    return gpu


class _Cluster(Defective):
    """Something happens when a variant of the cluster family is launched."""

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        if getattr(variant, "family", None) == "cluster":
            self.happen()
        super().forward(inputs, state, Wxh, Whh, bh, outputs, activation, variant)


class _Crashing(_Cluster):
    def happen(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class _Hanging(_Cluster):
    def happen(self):
        time.sleep(600)


class _Lost(_Cluster):
    """A kernel hangs and the host notices: the process has to end."""

    def happen(self):
        raise TimeoutError("the GPU has not finished within 20 s: a kernel hangs")


class _Gone(_Cluster):
    """After a launch of the cluster family no process gets an answer from the GPU any more."""

    def __init__(self):
        super().__init__()
        self.file = os.path.join(os.environ["DEFECTIVE_GPUS"], "gone")

    def happen(self):
        with open(self.file, "w", encoding="utf-8"):
            pass
        os.kill(os.getpid(), signal.SIGSEGV)

    def to_device(self, array):
        if os.path.exists(self.file):
            raise RuntimeError("no answer")
        return array.copy()


class _OutOfMemory(Defective):
    def empty(self, shape, dtype=np.float32):
        if shape[-1] == 20:
            raise MemoryError("no memory for an array")
        return np.empty(shape, dtype)


class _SmallCrash(Defective):
    """The process ends in a check of relu, each time that is reached."""

    def forward(self, *arguments, **options):
        if options.get("activation") == "relu":
            os._exit(77)
        super().forward(*arguments, **options)


class _ChosenCrash(Defective):
    """The process ends when the family that the chooser takes is launched, by name or by default."""

    def forward(self, inputs, state, Wxh, Whh, bh, outputs, activation="tanh", variant=None):
        chosen = variants.choose(self.device, np.dtype("float32"), *state.shape).family
        if getattr(variant, "family", chosen) == "resident":
            os._exit(77)
        super().forward(inputs, state, Wxh, Whh, bh, outputs, activation, variant)


def chosen_crash():
    return _ChosenCrash()


class _AsyncCrash(Defective):
    """The process ends when the cluster family is launched with st.async; its older exchange works."""

    def forward(self, *arguments, variant=None, **options):
        if getattr(variant, "family", None) == "cluster" and variant.exchange == "async":
            os._exit(77)
        super().forward(*arguments, variant=variant, **options)


def async_crash():
    return _AsyncCrash()


class _Raising(Defective):
    """Every launch raises, at length."""

    def forward(self, *arguments, **options):
        raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: " + "x" * 400)

    backward = forward


def raising():
    return _Raising()


class _MicrobenchCrash(Defective):
    """One micro-benchmark ends its process, others find nothing."""

    def program(self, cubin):
        def run(one):
            if one.kernel == "barrier_4":
                os._exit(77)
            return -1 if one.kernel in ("shuffle", "exchange_2") else 1000
        return run


def microbench_crash():
    return _MicrobenchCrash()


class _GridCrash(Defective):
    """The process of a timed part ends when the grid family is launched."""

    def forward(self, *arguments, **options):
        if "tutorial" in sys.argv and getattr(options.get("variant"), "family", None) == "grid":
            os._exit(77)
        super().forward(*arguments, **options)


def grid_crash():
    return _GridCrash()


def crashing():
    return _Crashing()


def hanging():
    return _Hanging()


def lost():
    return _Lost()


def gone():
    return _Gone()


def out_of_memory():
    return _OutOfMemory()


def small_crash():
    return _SmallCrash()
