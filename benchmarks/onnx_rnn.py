"""The recurrence as an ONNX model of one RNN node, run by onnxruntime."""
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR = 14, 8  # every onnxruntime of the last years reads these


def session(shape, Wxh, Whh, bh):
    """An InferenceSession with our weights: "X" (T, B, I) and "initial_h" (1, B, H) → "Y" (T, 1, B, H)."""
    T, B, I, H, _ = shape
    weights = {"W": Wxh.T[np.newaxis], "R": Whh.T[np.newaxis], "B": np.concatenate([bh, np.zeros_like(bh)])[np.newaxis]}
    node = helper.make_node("RNN", ["X", "W", "R", "B", "", "initial_h"], ["Y"], hidden_size=H, activations=["Tanh"])
    graph = helper.make_graph(
        [node], "recurrence",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, (T, B, I)),
         helper.make_tensor_value_info("initial_h", TensorProto.FLOAT, (1, B, H))],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, (T, 1, B, H))],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
