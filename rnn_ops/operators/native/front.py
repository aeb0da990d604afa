"""A call of the native operator on NDArrays, in one call of the library (front.cc), where all is as it should be."""
import ctypes

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments

_FUNCTIONS = ("NDArrayGetShapeEx", "NDArrayGetDType", "NDArrayGetContext", "NDArrayGetStorageType", "NDArrayGetData",
              "NDArrayWaitToRead", "NDArrayCreateEx64", "NDArrayReshape64", "NDArrayFree", "NDArrayToDLPack",
              "NDArrayCallDLPackDeleter", "AutogradIsRecording", "NDArrayGetGradState", "NDArraySetGradState",
              "AutogradGetSymbol", "SymbolGetName", "SymbolFree", "EnginePushSyncND", "ImperativeInvoke")
_pointer = ctypes.c_void_p
_DONE, _LOOK_CLOSER, _MXNET_ERROR = range(3)  # Answer in front.cc


class _Call(ctypes.Structure):  # FrontCall in front.cc
    _fields_ = ([(name, ctypes.c_int32) for name in ("step", "activation", "check_tokens")] + [("node", ctypes.c_uint64)]
                + [(name, _pointer) for name in ("weights", "result", "state")])


class _Weights:
    """The guards of a call's weights. They are the library's; ``arrays`` keeps what they guard, so that it can be told apart."""
    __slots__ = ("pointer", "arrays", "_free")

    def __init__(self, pointer, arrays, free):
        self.pointer, self.arrays, self._free = pointer, arrays, free

    def __del__(self):
        self._free(self.pointer)


_NO_LINK = (None, 0)  # to a call before: its weights, the node of its results


class Front:
    """What calls a native operator's library (ctypes), by MXNet's handle of the operator."""

    def __init__(self, library, operation):
        addresses = [ctypes.cast(getattr(mx.base._LIB, "MX" + name), _pointer) for name in _FUNCTIONS]
        library.rnn_ops_native_use_mxnet((_pointer * len(addresses))(*addresses), operation)
        self._call, self._free = library.rnn_ops_native_call, library.rnn_ops_native_free_weights
        self._call.argtypes = [_pointer] * 5 + [ctypes.POINTER(_Call)]
        self._free.argtypes, self._free.restype = [_pointer], None

    def call(self, step, values, activation, check_tokens):
        """`rnn_step` or `rnn_sequence` of five values, one or two NDArrays; None where something has to be looked at closer. With
        check_tokens, a token that is none is such a thing. A failure of MXNet itself is its MXNetError."""
        NDArray = mx.nd.NDArray
        for value in values:
            if type(value) is not NDArray:
                return None
        inputs, state, Wxh, Whh, bh = values
        before, node = getattr(state.handle, "rnn_ops_link", _NO_LINK)
        call = _Call(step, arguments.ACTIVATIONS.index(activation), check_tokens, node, before and before.pointer)
        answer = self._call(inputs.handle, state.handle, Wxh.handle, Whh.handle, bh.handle, call)
        if answer:
            if answer == _MXNET_ERROR:
                mx.base.check_call(-1)
            return None
        result = mx.base.NDArrayHandle(call.result)
        results = NDArray(result)
        if call.weights:
            if not before or before.pointer != call.weights:
                before = _Weights(call.weights, (Wxh, Whh, bh), self._free)
            result.rnn_ops_link = before, call.node
        if step:
            return results
        state = mx.base.NDArrayHandle(call.state)
        if call.weights:
            state.rnn_ops_link = before, call.node
        return results, NDArray(state)
