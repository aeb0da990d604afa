"""Takes the rows that a batch needs from a large table: the operator ``rnn_ops_lookup``, which goes before a recurrence.

With a word-sized vocabulary, everything that touches the whole table costs more than the recurrence: a transpose, a copy, a
gradient that passes through other operators. This operator hands over the rows of the batch's tokens, and writes the gradient of
the table once, into its own memory. It is in C++ (native/custom_lookup.cc describes it); arrays on a GPU are served here.
"""
import ast
import ctypes

import numpy as np

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments, cpu
from rnn_ops.operators.devices import device_for
from rnn_ops.operators.native import guard

# From so many symbols on, a graph looks tokens up. T×B×H = 35×20×200 and 64×32×256, forward and backward, on two cores: with
# 1,000 symbols that costs as much as a transpose or the guard's copy of the whole table (0.2 ms), with 2,000 it saves 0.3 ms, and
# with 4,000 it saves 1.5 ms.
MANY = 2048
# From so many symbols on, a call on NDArrays does. Such a call copies the table for its gradient only: with 8,000 symbols this
# costs as much as a call of the operator (0.4 ms), with 20,000 the operator saves 8 ms.
MANY_IN_ARRAYS = 10_000

_NAME = "rnn_ops_lookup"


def of_batch(tokens, table, layout, step=False):
    """tokens (T, B), with ``step`` (B,), and a table, (V, H) if ``layout`` is "VH" or (H, V) if "HV" → inputs and Wxh for the
    recurrence. All of them Symbols or all NDArrays."""
    options = dict(op_type=_NAME, layout=layout, step="01"[step])
    if isinstance(table, mx.nd.NDArray):
        inputs, Wxh, _ = mx.nd.Custom(tokens, table, **options)
    else:
        inputs, Wxh, _ = mx.sym.Custom(tokens, table, attr={guard.UNSHARED: "1"}, **options)
    return inputs, Wxh


def sparse_of_batch(tokens, table, V, H):
    """The same for Symbols and a table (V, H) with a row-sparse gradient. MXNet's own look-up makes such gradients."""
    tokens = mx.sym.Custom(tokens, op_type=_NAME, symbols=V)
    return _own_symbols(mx.sym, tokens), _embedded(mx.sym, tokens, table, V, H)


def small(step, inputs, state, Wxh, Whh, bh):
    """Five arguments for the native operator, Symbols or checked NDArrays → five that give the same results: if the table is
    large, with the rows that the batch needs. In a graph MXNet copies the operator's arguments and their gradients (guard.py)."""
    if isinstance(Wxh, mx.sym.Symbol):
        # In a Gluon block all arguments have types and shapes. On a GPU a copy costs less than a call of Python.
        if guard.in_block() and _symbols_of(Wxh) >= MANY and not mx.context.num_gpus():
            inputs, Wxh = of_batch(inputs, Wxh, "VH", step)
    elif (inputs.dtype == arguments.TOKENS and max(MANY_IN_ARRAYS, inputs.size + 1) <= Wxh.shape[0]
          and mx.autograd.is_recording() and inputs.context.device_type != "gpu"):
        V, H = Wxh.shape
        if guard.has_history(Wxh) and (Wxh.grad is None or Wxh.grad.stype == "default"):
            inputs, Wxh = of_batch(inputs, Wxh, "VH", step)
        else:
            inputs, Wxh = _own_symbols(mx.nd, inputs), _embedded(mx.nd, inputs, Wxh, V, H)
    return inputs, state, Wxh, Whh, bh


def _symbols_of(table):
    """V of a variable (V, H) that was made with its shape, as Gluon makes those of parameters; 0 for others."""
    known = table.attr("__shape__") if table.get_children() is None else None
    shape = ast.literal_eval(known) if known else ()
    return shape[0] if isinstance(shape, (tuple, list)) and len(shape) == 2 else 0


def _own_symbols(F, tokens):
    """A symbol of its own for each token of a batch, 0 to T·B - 1."""
    return F.cast(F.contrib.arange_like(tokens), "int32")


def _embedded(F, tokens, table, V, H):
    # MXNet's look-up fails if somebody asks for the gradient of tokens (bug 14 in _mxnet_bugs.py).
    return F.reshape(F.Embedding(F.BlockGrad(tokens), table, input_dim=V, output_dim=H, sparse_grad=True), shape=(-1, H))


class Lookup(mx.operator.CustomOp):
    """The operator on arrays of a GPU."""

    def __init__(self, device, symbols, tokens_rank, layout):
        super().__init__()
        self._device = device
        self._symbols = symbols
        self._tokens_rank = tokens_rank
        self._layout = layout
        self._Wxh = 1 if layout else 0  # which of the results

    def forward(self, is_train, req, in_data, out_data, aux):
        device = self._device
        with device.active():
            inputs, *tables = map(device.view, in_data)
            kept = 0
            if self._symbols:
                device.check_tokens(inputs, self._symbols)
            else:
                Wxh = self._by_symbol(tables[0])
                if self._by_row(inputs, Wxh):
                    device.check_tokens(inputs, len(Wxh))
                    Wxh, kept = Wxh[inputs.ravel()], inputs
                    inputs = _library(inputs).arange(inputs.size, dtype=inputs.dtype).reshape(inputs.shape)
                self._deliver(out_data[self._Wxh], req[self._Wxh], Wxh)
                if self._layout:
                    self._deliver(out_data[2], "write", kept)
            if self._symbols or self._layout:
                self._deliver(out_data[0], req[0], inputs)

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        device = self._device
        with device.active():
            inputs = device.view(in_data[0])
            self._deliver(in_grad[0], req[0], 0 if inputs.dtype == arguments.TOKENS else device.view(out_grad[0]))
            if self._symbols or req[1] == "null":
                return
            gradient, arrived = self._by_symbol(device.view(in_grad[1])), device.view(out_grad[self._Wxh])
            if self._by_row(inputs, gradient):
                tokens = device.view(out_data[2]) if self._layout else inputs
                device.check_tokens(tokens, len(gradient))
                tokens, sums = sums_by_token(tokens.ravel(), arrived)
                if req[1] != "add":
                    gradient[:] = 0
                gradient[tokens] += sums
            else:
                self._deliver(in_grad[1], req[1], arrived if self._layout == "VH" else arrived.T)

    def _by_symbol(self, table):
        """A table in either layout as (V, H)."""
        return table if self._layout == "VH" else table.T

    def _by_row(self, inputs, Wxh):
        """Whether each token gets a row of its own. Graphs that earlier versions have saved always do that."""
        return not self._layout or (inputs.ndim == self._tokens_rank and inputs.size < len(Wxh))

    def _deliver(self, array, req, result):
        if req != "null":
            view = self._device.view(array)
            view[:] = view + result if req == "add" else result


def sums_by_token(tokens, rows):
    """tokens (N,), rows (N, H) → the distinct tokens (U,) and the sum of each one's rows (U, H), of NumPy or CuPy arrays."""
    return sums_by_product(_library(rows), tokens, rows)


def sums_by_product(xp, tokens, rows):
    """The same as a product, which CuPy computes in one order. Its sums by index use atomics, which add in any order."""
    distinct = xp.unique(tokens)
    return distinct, (distinct[:, None] == tokens[None, :]).astype(rows.dtype) @ rows


def _library(array):
    """The library of an array, NumPy or CuPy."""
    if isinstance(array, np.ndarray):
        return np
    import cupy
    return cupy


@mx.operator.register(_NAME + "_gpu")
class _OnGpu(mx.operator.CustomOpProp):
    """Makes the operator for GPUs. MXNet asks the operator in C++, and for arrays on a GPU that asks this one."""

    def __init__(self, symbols, tokens_rank, layout=None):
        super().__init__()
        self._options = int(symbols), int(tokens_rank), layout

    def list_arguments(self):
        return ["inputs"] if self._options[0] else ["inputs", "table"]

    def list_outputs(self):
        return ["inputs", "Wxh", "tokens"] if self._options[2] else ["inputs"]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        return Lookup(device_for(ctx), *self._options)


def _register():
    library = ctypes.CDLL(cpu.library_path())
    if not library.rnn_ops_register_lookup():
        raise RuntimeError(f"MXNet {mx.__version__} does not take the operator {_NAME}, which is made for 1.9.1")
    # mx.operator.register has just given MXNet the function that makes the operator in Python. It is the last in this registry.
    creator = mx.operator._registry.ref_holder[max(mx.operator._registry.ref_holder)]
    creator = ctypes.cast(creator, ctypes.c_void_p)
    library.rnn_ops_lookup_use_gpu(creator)
    return creator  # which has to stay


_gpu_creator = _register()
