"""Calls the native operator on NDArrays of the CPU with one call of the library (front.cc), if the arguments are right."""
import ctypes

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments

_pointer, _flag = ctypes.c_void_p, ctypes.c_int
_FUNCTIONS = (  # Functions in front.cc
    "MXNDArrayGetShapeEx", "MXNDArrayGetDType", "MXNDArrayGetContext", "MXNDArrayGetStorageType", "MXNDArrayGetData",
    "MXNDArrayWaitToRead", "MXNDArrayCreateEx64", "MXNDArrayReshape64", "MXNDArrayFree", "MXNDArrayToDLPack",
    "MXNDArrayCallDLPackDeleter", "MXAutogradIsRecording", "MXNDArrayGetGrad", "MXNDArrayGetGradState",
    "MXNDArraySetGradState", "MXAutogradGetSymbol",
    "MXSymbolFree", "MXAutogradMarkVariables", "MXEnginePushSyncND", "MXImperativeInvoke")
_INFO_TYPE = "_ZZN4dmlc3any8TypeInfoIN5mxnet10Imperative6AGInfoEE8get_typeEvE2tp"  # a variable of a C++ function of MXNet
_DONE, _LOOK_CLOSER, _MXNET_ERROR = range(3)  # Answer in front.cc


class Front:
    """Calls a native operator's library (ctypes). ``operation`` is MXNet's handle of the operator."""

    def __init__(self, library, operation):
        lib = mx.base._LIB
        addresses = [ctypes.cast(getattr(lib, name), _pointer) for name in _FUNCTIONS]
        try:
            addresses.append(ctypes.addressof(ctypes.c_char.in_dll(lib, _INFO_TYPE)))
        except ValueError:  # not in this MXNet; front.cc works without it
            addresses.append(None)
        library.rnn_ops_native_use_mxnet((_pointer * len(addresses))(*addresses), operation)
        self._call = library.rnn_ops_native_call
        self._call.argtypes = [_pointer] * 5 + [_flag] * 3 + [_pointer]

    def call(self, step, values, activation, check_tokens):
        """`rnn_step` or `rnn_sequence` of five values: one or two NDArrays. None if the arguments need a closer look, with
        check_tokens also for a token outside [0, I). A failure of MXNet itself is its MXNetError."""
        NDArray, Handle = mx.nd.NDArray, mx.base.NDArrayHandle
        for value in values:
            if type(value) is not NDArray:
                return None
        inputs, state, Wxh, Whh, bh = values
        results = (_pointer * 2)()
        answer = self._call(inputs.handle, state.handle, Wxh.handle, Whh.handle, bh.handle, step,
                            arguments.ACTIVATIONS.index(activation), check_tokens, results)
        if answer == _LOOK_CLOSER:
            return None
        if answer == _MXNET_ERROR:
            mx.base.check_call(-1)
        if step:
            return NDArray(Handle(results[0]))
        return NDArray(Handle(results[0])), NDArray(Handle(results[1]))
