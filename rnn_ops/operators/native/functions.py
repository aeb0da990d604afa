"""The functions that users call, in front of the native operator: they guard its gradients.

MXNet 1.9.1 does not tell a native operator whether a gradient is to be written or to be added to what is there
(``req``): the operator always overwrites. Adding is what ``grad_req="add"`` asks for and, whatever the grad_req, a graph
that sums the gradients of eight or more uses of one array (MXNET_EXEC_INPLACE_GRAD_SUM_CAP). So no gradient may go from
the operator straight to where it could be summed: every input comes through an operator of MXNet's own, which does the
adding in the backward pass and which no other call shares. A call on NDArrays of the CPU takes another way (front.py), which
knows of some gradients that they are not added.
"""
import ctypes

from rnn_ops._mxnet import mx
from rnn_ops.backends import arguments, cpu
from rnn_ops.operators.native import front, gpu

NAME = "rnn_ops_native"
UNSHARED = "__rnn_ops_unshared__"  # attribute of a Symbol that comes from a node of MXNet's own which no other call shares
CONSTANT = "__rnn_ops_constant__"  # attribute of a Symbol whose gradient nobody wants, such as a BlockGrad: none is computed

_LIBRARY = cpu.library_path()
_RANKS = (None, 2, 2, 2, 1)  # of the arguments; of the inputs it depends
_COPY_ALL_DIMENSIONS = (ctypes.c_int64 * 1)(-2)  # as a new shape


def rnn_step(inputs, state, Wxh, Whh, bh, activation="tanh"):
    """`rnn_ops.rnn_step` on the native operator. Faults in shapes, dtypes and tokens are MXNetErrors, at once or at the
    next wait for a result; a RuntimeError says why there is no native operator."""
    values = inputs, state, Wxh, Whh, bh
    state = quick_call(True, values, activation)
    return call(True, _known(values, True), activation) if state is None else state


def rnn_sequence(inputs, state, Wxh, Whh, bh, activation="tanh"):
    """`rnn_ops.rnn_sequence` on the native operator; errors as those of `rnn_step`."""
    values = inputs, state, Wxh, Whh, bh
    outputs, state = quick_call(False, values, activation) or call(False, _known(values, False), activation)
    return outputs, state


def why_not():
    """Why there is no native operator here, as a sentence, or None where there is."""
    return _NOT_LOADED


def quick_call(step, values, activation, check_tokens=False):
    """What `call` gives for NDArrays of the CPU that fit one another, in a fraction of the time; None for all else. With
    check_tokens, a token outside the vocabulary does not fit."""
    if _NOT_LOADED or activation not in arguments.ACTIVATIONS:
        return None
    return _front.call(step, values, activation, check_tokens)


def call(step, values, activation):
    """`rnn_step` or `rnn_sequence` of five values, of which NDArrays have dimensions."""
    step = "01"[step]
    arguments.check_activation(activation)
    if _NOT_LOADED:
        raise RuntimeError(f"there is no native operator: {_NOT_LOADED}")
    on_ndarrays, on_symbols = _functions
    if all(type(value) is mx.sym.Symbol for value in values):
        wanted = "".join("01"[value.attr(CONSTANT) is None] for value in values)
        return on_symbols(*map(_guarded_symbol, arguments.NAMES, _RANKS, values), _rank_symbol(values[0], step, on_symbols),
                          step=step, activation=activation, wanted=wanted, __ext_extra_inputs__="1")
    if not all(type(value) is mx.nd.NDArray for value in values):
        raise TypeError(_why_not(values))
    if not mx.autograd.is_recording():
        return on_ndarrays(*values, step=step, activation=activation)
    wanted = [has_history(value) for value in values]
    values = [_guarded_ndarray(value) if known else value for value, known in zip(values, wanted)]
    return on_ndarrays(*values, step=step, activation=activation, wanted="".join("01"[known] for known in wanted))


def _known(values, step):
    """The values; an MXNetError where one is an NDArray without dimensions. MXNet takes that for an unknown shape and writes too
    far before the operator is called (`_rank_symbol`). What else is wrong with them the operator sees."""
    if all(type(value) is mx.nd.NDArray for value in values):
        shapes = [value.shape or () for value in values]  # None of one that never had memory
        if not all(shapes):
            try:
                arguments.sizes(shapes, step)
            except ValueError as error:
                raise mx.MXNetError(str(error)) from None
    return values


def _rank_symbol(inputs, step, on_symbols):
    """A node that refuses inputs of which not even the number of dimensions is known, before the operator meets them.

    MXNet 1.9.1 counts such a shape as -1 numbers and then writes behind the end of the memory for them all (`infer_shape` in
    c_api.cc). The other arguments are given theirs by `_guarded_symbol`; of the inputs it can be either of two. So MXNet is to
    infer this node first, an argument that nothing is read of. It takes a shape as an array, and the shape of that is known.
    """
    return on_symbols(mx.sym.shape_array(inputs), step=step, rank="1",
                      name=mx.name.NameManager.current.get(None, "rnn_ops_rank_"))


def _guarded_symbol(name, rank, symbol):
    """The same values from a node of MXNet's own.

    A plain identity would not do: MXNet makes one node of those that share operator, inputs and attributes, and the
    gradients of the calls that it then serves are summed before they reach it. Nodes without inputs are left alone,
    and with them the nodes they lead to, even the copies in a symbol that is composed several times. The zeros are such a
    node. They also say how many dimensions there are, where there is but one number (`_rank_symbol` says why it has to be known).

    A control-flow operator runs the nodes of its body by the shapes of their inputs, and cannot run one without any. SwapAxis,
    which copies where both axes are the same, is left alone too, since it has a state.
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
    # Here somebody may look on with a Monitor, and the zeros above, of which only the shape counts, are never written. Adding them
    # writes them; the identity refuses an array that has no memory for the shape which MXNet has inferred for it.
    return mx.sym.add_n(internal._identity_with_attr_like_rhs(symbol, symbol), zeros, name=node)


def in_block():
    """Whether a Gluon block is making its graph, which is made for speed."""
    return getattr(mx.gluon.block._BlockScope._current, "value", None) is not None


def _mxnets(name):
    """MXNet's function of an operator for Symbols, as MXNet made it: its mixed precision (AMP) replaces those in mx.sym, and what
    it puts there cannot call an operator without inputs."""
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(name.encode(), ctypes.byref(handle)))
    return mx.sym.register._make_symbol_function(handle, name, name)


_zeros = _mxnets("_zeros_without_dtype")


def _in_control_flow():
    """Whether MXNet is building the body of foreach, while_loop or cond."""
    scope = getattr(mx.AttrScope._current, "value", None)
    return scope is not None and "__subgraph_name__" in scope.get(None)


def _guarded_ndarray(array):
    """The same memory as another NDArray, which autograd takes for a reshape. ``array.reshape`` does so too, ten times
    slower."""
    handle = mx.base.NDArrayHandle()
    mx.base.check_call(mx.base._LIB.MXNDArrayReshape64(
        array.handle, 1, _COPY_ALL_DIMENSIONS, False, ctypes.byref(handle)))
    return mx.nd.NDArray(handle)


def has_history(array):
    """Whether autograd knows the array: if not, nobody can ask for its gradient. MXNet has no function that tells; one that
    sets a mark of what it knows, here to what it is, fails on everything else."""
    fresh = ctypes.c_int()
    mx.base._LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(fresh))
    return mx.base._LIB.MXNDArraySetGradState(array.handle, fresh) == 0


def _why_not(values):
    from rnn_ops.operators.api import _why_not  # which may import this
    return _why_not(values)


def _load():
    """Load the library into MXNet → the operator's functions for NDArrays and for Symbols; what the library calls; what calls
    it."""
    try:
        # What mx.library.load does, less its making anew of every function in mx.nd and mx.sym, which takes 0.4 s.
        mx.base.check_call(mx.base._LIB.MXLoadLib(_LIBRARY.encode(), 0))
    except mx.MXNetError as error:
        raise RuntimeError(f"MXNet {mx.__version__} does not load it, which is made for 1.9.1: {error}") from error
    handle = ctypes.c_void_p()
    mx.base.check_call(mx.base._LIB.NNGetOpHandle(NAME.encode(), ctypes.byref(handle)))
    functions = (mx.nd.register._make_ndarray_function(handle, NAME, NAME),
                 mx.sym.register._make_symbol_function(handle, NAME, NAME))
    library = ctypes.CDLL(_LIBRARY)
    return functions, gpu.Programs(library), front.Front(library, handle)


try:
    (_functions, _programs, _front), _NOT_LOADED = _load(), None
except (RuntimeError, AttributeError) as error:  # ctypes: an MXNet without such a function
    _functions, _programs, _front, _NOT_LOADED = None, None, None, str(error)
