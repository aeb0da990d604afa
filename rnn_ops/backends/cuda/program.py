"""Plays a program of `recorder` on a GPU, from Python: a call's addresses are filled in, and each item goes to the driver or to
cuBLAS. Nothing is planned, allocated or waited for.

rnn_ops/operators/native/gpu.cc does the same without Python.
"""
import ctypes

from rnn_ops.backends import codes
from rnn_ops.backends.cuda import recorder

_DTYPES = {code: dtype for dtype, code in codes.DTYPES.items()}


class Program:
    """What a `recorder.Recorder` has recorded, on the `runtime.Runtime` of the same device. Kernels are compiled and loaded here.

    Attributes
    ----------
    workspace : int
        The bytes of memory that `play` needs besides the arguments.
    """

    def __init__(self, recorded, gpu):
        self.workspace = recorded.workspace
        self._gpu = gpu
        self._multiplies = any(isinstance(item, recorder.MultiplyItem) for item in recorded.items)
        with gpu.current():
            self._items = [_PLAYERS[type(item)](gpu, item) for item in recorded.items]

    def play(self, addresses, stream):
        """Queue the work in a stream, given as the driver's number. Several threads may play a program at the same time.

        addresses: of each of `codes.REGIONS`; those that the program does not use may be anything.

        RuntimeError: the driver or cuBLAS refuses something; or this thread's first product comes while the stream is captured
        into a CUDA graph.
        """
        gpu = self._gpu
        if self._multiplies and not gpu.blas.has_handle():
            gpu.check_not_capturing(stream)
        with gpu.driver_current():
            for play in self._items:
                play(addresses, stream)


def _place(recorded):
    """The number of the region of an address in a program, and the offset there."""
    return (recorded >> 40) - 1, recorded & (1 << 40) - 1


# Each of these returns a function of a call's addresses and stream.

def _launch(gpu, item):
    launch, begins = item.launch, item.begins
    function = gpu.function(launch)
    Words, Arguments = ctypes.c_uint64 * (len(item.values) // 8), ctypes.c_void_p * len(begins)
    template = Words.from_buffer_copy(item.values)
    places = [(offset // 8, *_place(template[offset // 8])) for offset in item.addresses if template[offset // 8]]

    def play(addresses, stream):
        words = Words.from_buffer_copy(template)
        for index, region, offset in places:
            words[index] = addresses[region] + offset
        begin = ctypes.addressof(words)
        gpu.start(function, launch, Arguments(*[begin + offset for offset in begins]), stream)
    return play


def _multiply(gpu, item):
    (a, a_offset), (b, b_offset), (out, out_offset) = map(_place, (item.a, item.b, item.out))
    a_size = item.inner if item.transpose_a else item.rows, item.a_columns
    b_size = item.columns if item.transpose_b else item.inner, item.b_columns
    out_size = item.rows, item.columns
    dtype, how, multiply = _DTYPES[item.dtype], (item.transpose_a, item.transpose_b, item.accumulate), gpu.blas.multiply

    def play(addresses, stream):
        multiply(stream, dtype, (addresses[a] + a_offset, *a_size), (addresses[b] + b_offset, *b_size),
                 (addresses[out] + out_offset, *out_size), *how)
    return play


def _fill(gpu, item):
    to, offset = _place(item.to)
    return lambda addresses, stream: gpu.fill(addresses[to] + offset, item.value, item.bytes, stream)


def _copy(gpu, item):
    (to, to_offset), (source, source_offset) = _place(item.to), _place(item.source)
    return lambda addresses, stream: gpu.copy(addresses[to] + to_offset, addresses[source] + source_offset, item.bytes, stream)


_PLAYERS = {recorder.LaunchItem: _launch, recorder.MultiplyItem: _multiply, recorder.FillItem: _fill, recorder.CopyItem: _copy}
