"""The launches of a call, written down by `rnn_ops.backends.cuda.recorder` without a GPU."""
import numpy as np

from rnn_ops.backends.cuda.launcher import Launcher
from rnn_ops.backends.cuda.recorder import LaunchItem, Recorder

from .problems import BACKWARD, BOTH, FORWARD

_MOST_THREADS, _MOST_ALONG_X, _MOST_ALONG_YZ = 1024, 2 ** 31 - 1, 65535  # of a block; blocks of a grid


def record(device, shape, dtype=np.float32, tokens=True, variant=None, direction=BOTH):
    """Everything that a call puts into a stream, in order: the items of a `Recorder`.

    Parameters
    ----------
    device : variants.Device
    shape : (T, B, I, H)
    dtype : float32 or float64
    tokens : bool
    variant : variants.Variant or None
    direction : one of problems.GPU_DIRECTIONS
    """
    T, B, I, H = shape
    recorder = Recorder(device)
    launcher = Launcher(recorder)
    inputs = recorder.region("inputs", (T, B) if tokens else (T, B, I), "int32" if tokens else dtype)
    state, Wxh, Whh, bh, outputs, doutputs = (recorder.region(name, size, dtype) for name, size in (
        ("state", (B, H)), ("Wxh", (I, H)), ("Whh", (H, H)), ("bh", (H,)), ("outputs", (T, B, H)), ("doutputs", (T, B, H))))
    if direction in (FORWARD, BOTH):
        launcher.forward(inputs, state, Wxh, Whh, bh, outputs, variant=variant)
    if direction != FORWARD:
        wanted = {"dstate": (B, H)}
        if direction in (BACKWARD, BOTH):
            wanted.update(dWxh=(I, H), dWhh=(H, H), dbh=(H,))
        launcher.backward(inputs, state, Wxh, Whh, outputs, doutputs, None, variant=variant,
                          **{name: recorder.region(name, size, dtype) for name, size in wanted.items()})
    return recorder.items


def kernels(items):
    """The `sources.Kernel`s among recorded items, each once."""
    return list(dict.fromkeys(item.launch.kernel for item in items if isinstance(item, LaunchItem)))


def faults(device, items):
    """Faults in recorded launches that a driver would refuse, as sentences."""
    found = []
    for item in items:
        if not isinstance(item, LaunchItem):
            continue
        launch = item.launch
        x, y, z = launch.grid
        bad = [f"{what}: got {got}, needs {needs}" for what, got, needs, fits in (
            ("threads a block", launch.block, f"1 to {_MOST_THREADS}", 1 <= launch.block <= _MOST_THREADS),
            ("grid", launch.grid, f"at most {_MOST_ALONG_X} × {_MOST_ALONG_YZ} × {_MOST_ALONG_YZ} blocks and no 0",
             1 <= x <= _MOST_ALONG_X and 1 <= y <= _MOST_ALONG_YZ and 1 <= z <= _MOST_ALONG_YZ),
            ("shared memory", launch.shared, f"at most {device.shared_memory} bytes",
             0 <= launch.shared <= device.shared_memory),
            ("cluster", launch.cluster, "1, 2, 4, 8 or 16 blocks that divide the grid's x",
             launch.cluster in (1, 2, 4, 8, 16) and x % launch.cluster == 0),
            ("cooperative grid", x * y * z, f"at most {device.multiprocessors} blocks, all at once",
             not launch.cooperative or x * y * z <= device.multiprocessors),
            ("arguments", item.begins, "one at least, each at a multiple of 8 bytes",
             item.begins and all(begin % 8 == 0 for begin in item.begins))) if not fits]
        found += [f"{launch.kernel}: {sentence}" for sentence in bad]
    return list(dict.fromkeys(found))
