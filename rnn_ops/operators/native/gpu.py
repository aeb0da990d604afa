"""Gives the native operator its programs for GPUs (recorder.py), when it first meets a signature.

Which kernel, its sizes and the order of things are decided by what decides them for CuPy arrays too: `variants` and
`launcher`. CuPy compiles the kernels and keeps them. After that a call takes no Python.
"""
import ctypes
import threading

from rnn_ops.backends import arguments, codes, cuda
from rnn_ops.backends.cuda import recorder

_FUNCTIONS = ("launch", "launch_cooperative", "fill", "copy", "create_handle", "set_stream", "multiply_float",
              "multiply_double")


class _Functions(ctypes.Structure):  # Functions in gpu.cc
    _fields_ = [(name, ctypes.c_void_p) for name in _FUNCTIONS]


class _Signature(ctypes.Structure):  # Signature in gpu.cc
    _fields_ = (
        [(name, ctypes.c_int64) for name in "TBIH"]
        + [(name, ctypes.c_int32) for name in ("device", "direction", "dtype", "tokens", "activation", "step")]
        + [("fills", ctypes.c_int32 * len(codes.GRADIENTS))])


_Record = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Signature), ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_int)
_pointer, _number, _flag, _bytes = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64
_lock = threading.Lock()


class Programs:
    """What stands between a native operator's library (ctypes) and the GPUs. It must live as long as the library is used."""

    def __init__(self, library):
        self._library = library
        library.rnn_ops_program_workspace.argtypes = [_pointer, ctypes.c_int64]
        library.rnn_ops_program_launch.argtypes = [
            _pointer, _pointer, _number * 3, _number, _number, _flag, ctypes.c_char_p, _number, ctypes.POINTER(_number), _flag,
            ctypes.POINTER(_number), _flag]
        library.rnn_ops_program_multiply.argtypes = [_pointer] + [_bytes] * 3 + [_flag] * 9
        library.rnn_ops_program_fill.argtypes = [_pointer, _bytes, ctypes.c_ubyte, _bytes]
        library.rnn_ops_program_copy.argtypes = [_pointer, _bytes, _bytes, _bytes]
        self._has_functions = False
        self._record = _Record(self._on_record)
        library.rnn_ops_native_use_recorder(self._record)

    def _on_record(self, signature, program, sentence, room):
        try:
            self._fill(signature.contents, program)
            return 0
        except Exception as error:  # there is nobody to raise it to: MXNet's thread calls
            text = (str(error) or type(error).__name__).encode()[:room - 1]
            ctypes.memmove(sentence, text + b"\0", len(text) + 1)
            return 1

    def _fill(self, signature, program):
        reason = cuda.why_not()
        if reason:
            raise RuntimeError(reason)
        gpu = cuda.gpu(signature.device)
        with _lock:
            if not self._has_functions:
                self._library.rnn_ops_native_use_gpu(ctypes.byref(_Functions(*map(gpu.functions().get, _FUNCTIONS))))
                self._has_functions = True
        how = dict(T=signature.T, B=signature.B, I=signature.I, H=signature.H,
                   dtype=arguments.FLOATS[signature.dtype], tokens=bool(signature.tokens),
                   activation=arguments.ACTIVATIONS[signature.activation], with_last_state=not signature.step)
        if signature.direction == codes.BACKWARD:
            fills = dict(zip(codes.GRADIENTS, signature.fills))
            recorded = recorder.record_backward(gpu.device, fills=fills, **how)
        else:
            recorded = recorder.record_forward(gpu.device, **how)
        self._library.rnn_ops_program_workspace(program, recorded.workspace)
        with gpu.current():
            for item in recorded.items:
                self._add(gpu, program, item)

    def _add(self, gpu, program, item):
        library = self._library
        if isinstance(item, recorder.LaunchItem):
            launch = item.launch
            library.rnn_ops_program_launch(
                program, gpu.function(launch), (_number * 3)(*launch.grid), launch.block, launch.shared, launch.cooperative,
                item.values, len(item.values), (_number * len(item.begins))(*item.begins), len(item.begins),
                (_number * len(item.addresses))(*item.addresses), len(item.addresses))
        elif isinstance(item, recorder.MultiplyItem):
            library.rnn_ops_program_multiply(program, *item)
        elif isinstance(item, recorder.FillItem):
            library.rnn_ops_program_fill(program, *item)
        else:
            library.rnn_ops_program_copy(program, *item)
