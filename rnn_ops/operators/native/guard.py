"""Guards: nodes of MXNet's own between the native operator and its arguments, so that MXNet adds its gradients up.

MXNet 1.9.1 does not say to a native operator whether a gradient is to be written or added (bug 4 in _mxnet_bugs.py), so
the operator always overwrites. Therefore no gradient may go from the operator straight to where it could be summed: each
argument comes through an operator of MXNet's own, which does the adding in the backward pass and which no other call
shares. A call on NDArrays of the CPU takes another way (front.py) and leaves out guards that it can prove to be needless.
"""
import ctypes

from rnn_ops._mxnet import mx
from rnn_ops.backends.arguments import NAMES
from rnn_ops.operators.native import load

UNSHARED = "__rnn_ops_unshared__"  # attribute of a Symbol that comes from a node of MXNet's own which no other call shares
CONSTANT = "__rnn_ops_constant__"  # attribute of a Symbol whose gradient nobody wants, such as a BlockGrad: it is not computed

_RANKS = (None, 2, 2, 2, 1)  # of the arguments; inputs can have either of two
_COPY_ALL_DIMENSIONS = (ctypes.c_int64 * 1)(-2)  # as a new shape


def guarded_symbols(values, step):
    """Six arguments for the operator from five Symbols: each behind its guard, and a zero that is not read (`_rank_of`)."""
    return [*map(_guarded_symbol, NAMES, _RANKS, values), _rank_of(values[0], step)]


def _rank_of(inputs, step):
    """A node that refuses inputs whose number of dimensions is unknown, before the operator meets them (bug 5).

    `_guarded_symbol` gives the other arguments their number of dimensions; inputs can have either of two. MXNet infers this
    node before the operator, because the operator takes its result as an argument. It takes a shape as an array, and the
    shape of that array is always known.
    """
    return load.operator.on_symbols(mx.sym.shape_array(inputs), step=step, rank="1",
                                    name=mx.name.NameManager.current.get(None, "rnn_ops_rank_"))


def _guarded_symbol(name, rank, symbol):
    """The same values from a node of MXNet's own.

    1. The node must not be shared. MXNet merges nodes that have the same operator, inputs and attributes, so a plain
       identity would be merged with that of another call, and the gradients of both calls would be summed before it (bug 4).
       MXNet does not merge nodes without inputs, nor the nodes that they lead to. The zeros are a node without inputs.
    2. The zeros also fix the number of dimensions, which has to be known (bug 5).
    3. Inside a control-flow operator, MXNet cannot run a node without inputs (bug 6). There SwapAxis does the same: MXNet
       does not merge it either, because it has a state, and with both axes equal it copies.
    """
    if symbol.attr(UNSHARED) or symbol.attr(CONSTANT):
        return symbol
    internal = mx.sym._internal
    node = mx.name.NameManager.current.get(None, f"rnn_ops_{name}_")
    if _in_control_flow():
        copied = mx.sym.SwapAxis(symbol, dim1=0, dim2=0)
        return internal._identity_with_attr_like_rhs(copied, symbol, name=node)  # shapes are inferred both ways
    zeros = _zeros(**({"shape": (-1,) * rank} if rank else {}))
    if in_block():
        return internal._identity_with_attr_like_rhs(symbol, zeros, name=node)
    # Outside a block a Monitor may look at the zeros, and the identity alone never writes them (bug 6). Adding them does. The
    # identity inside refuses an array that has no memory for the shape which MXNet has inferred.
    return mx.sym.add_n(internal._identity_with_attr_like_rhs(symbol, symbol), zeros, name=node)


def in_block():
    """Whether a Gluon block is making its graph. Such a graph is made for speed."""
    return getattr(mx.gluon.block._BlockScope._current, "value", None) is not None


def _mxnets(name):
    """MXNet's function of an operator for Symbols, as MXNet made it. MXNet's mixed precision (AMP) replaces the functions in
    mx.sym by others, which cannot call an operator without inputs."""
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(name.encode(), ctypes.byref(handle)))
    return mx.sym.register._make_symbol_function(handle, name, name)


_zeros = _mxnets("_zeros_without_dtype")


def _in_control_flow():
    """Whether MXNet is building the body of foreach, while_loop or cond."""
    scope = getattr(mx.AttrScope._current, "value", None)
    return scope is not None and "__subgraph_name__" in scope.get(None)


def guarded_ndarray(array):
    """The same memory as another NDArray, which autograd takes for a reshape. ``array.reshape`` does the same and is ten times
    slower."""
    handle = mx.base.NDArrayHandle()
    mx.base.check_call(mx.base._LIB.MXNDArrayReshape64(
        array.handle, 1, _COPY_ALL_DIMENSIONS, False, ctypes.byref(handle)))
    return mx.nd.NDArray(handle)


def has_history(array):
    """True if autograd tracks the array; otherwise nobody can ask for its gradient.

    MXNet has no function that tells this. So we set the array's fresh_grad mark to the value that it has: MXNet changes
    nothing then, and fails for an array that autograd does not track.
    """
    fresh = ctypes.c_int()
    mx.base._LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(fresh))
    return mx.base._LIB.MXNDArraySetGradState(array.handle, fresh) == 0
