"""Rows of Wxh for the tokens of a batch, out of Gluon's i2h_weight (H, V), as an ``mx.operator.CustomOp``: ``rnn_ops_lookup``.

With a word-sized vocabulary, whatever touches the whole weight costs more than the recurrence: its transpose, a copy of
it, its gradient's way through other operators. This reads the columns of the batch's tokens and, backward, fills the
gradient with zeros once and adds to those columns. Sums run in the order of the batch.
"""
import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.operators import native
from rnn_ops.operators.places import place_for

_CACHE = 2 ** 18  # bytes of a gradient that are filled and written to at once

_ARGUMENTS = ["tokens", "i2h_weight"]


class Lookup(mx.operator.CustomOp):
    """tokens (T, B), i2h_weight (H, V) → rows (T·B, H)."""

    def __init__(self, place):
        super().__init__()
        self._place = place

    def forward(self, is_train, req, in_data, out_data, aux):
        if req[0] == "null":
            return
        place = self._place
        with place.active():
            tokens, weight = map(place.view, in_data)
            place.check_tokens(tokens, weight.shape[1])
            rows = weight.take(tokens.ravel(), axis=1).T
            result = place.view(out_data[0])
            result[:] = result + rows if req[0] == "add" else rows

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        place = self._place
        with place.active():
            if req[0] not in ("null", "add"):
                place.view(in_grad[0])[:] = 0  # what MXNet takes for the gradient of integers
            if req[1] == "null":
                return
            gradient = place.view(in_grad[1])
            tokens, sums = sums_by_token(place.view(in_data[0]).ravel(), place.view(out_grad[0]))
            if req[1] == "add":
                gradient[:, tokens] += sums.T
                return
            # So many units at once as fit a cache: what has just been filled is then written to there.
            step = len(gradient)  # on a GPU, where each step would be a launch
            if isinstance(gradient, np.ndarray):
                step = max(1, _CACHE // (gradient.itemsize * gradient.shape[1]))
            for begin in range(0, len(gradient), step):
                part = gradient[begin:begin + step]
                part[:] = 0
                part[:, tokens] = sums.T[begin:begin + step]


def sums_by_token(tokens, rows):
    """tokens (N,), rows (N, H) → the distinct tokens (U,) and the sum of each one's rows (U, H), of NumPy or CuPy arrays."""
    if not isinstance(rows, np.ndarray):
        import cupy
        return sums_by_product(cupy, tokens, rows)
    order = np.argsort(tokens, kind="stable")
    distinct, starts = np.unique(tokens[order], return_index=True)
    again = np.delete(order, starts)  # where a token comes another time, in the batch's order
    if 4 * len(again) > len(order):
        return distinct, np.add.reduceat(rows[order], starts, axis=0)
    sums = rows[order[starts]]
    np.add.at(sums, np.searchsorted(distinct, tokens[again]), rows[again])
    return distinct, sums


def sums_by_product(xp, tokens, rows):
    """The same as a product, which CuPy computes in one order: it adds to a place several times by atomics, in any order."""
    distinct = xp.unique(tokens)
    return distinct, (distinct[:, None] == tokens[None, :]).astype(rows.dtype) @ rows


@mx.operator.register("rnn_ops_lookup")
class _Property(mx.operator.CustomOpProp):
    def __init__(self, **attributes):  # those that MXNet and the user put on the node
        super().__init__()

    def list_arguments(self):
        return _ARGUMENTS

    def list_outputs(self):
        return ["rows"]

    def infer_shape(self, in_shape):
        tokens, weight = in_shape
        known = tokens and weight and min(tokens) > 0 and weight[0] > 0
        return in_shape, [[int(np.prod(tokens)), weight[0]] if known else [-1, -1]]

    def infer_type(self, in_type):
        dtype = in_type[1] if in_type[1] is not None else np.float32
        return [np.int32, dtype], [dtype]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        return Lookup(place_for(ctx))


def lookup(tokens, i2h_weight):
    """The rows of Wxh = i2h_weightᵀ for each token: int32 (T, B), (H, V) → (T·B, H), of Symbols."""
    return mx.sym.Custom(tokens, i2h_weight, op_type="rnn_ops_lookup", attr={native.UNSHARED: "1"})
