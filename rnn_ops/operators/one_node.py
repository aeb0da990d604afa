"""A function of NDArrays that autograd takes for one operator.

What is computed around a recurrence (masks, transposes, stacks) is several operators to autograd, and backward frees only
those that lead to the loss. A state that is carried on to the next batch and not detached would then hang on nodes of
which some are freed and some are not, which is an MXNetError at the next backward. With MXNet's own layers it is no error:
outputs and states come from one node, which is freed as a whole, and the state is a constant from then on. So it is here.
"""
import contextlib

from rnn_ops._mxnet import mx


class OneNode:
    """Calls a function of Symbols on NDArrays, as MXNet's CachedOp. Keeps a graph for each ``key``."""

    def __init__(self):
        self._graphs = {}

    def __call__(self, key, compute, arrays):
        """compute(*symbols) → list of Symbols, here of NDArrays. None among the arrays goes to ``compute`` as it is. Calls
        with one ``key`` must be of the same function, and of arrays that are None in the same places."""
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _graph(compute, arrays)
        operator, used = graph
        results = operator(*(arrays[i] for i in used))
        return [results] if isinstance(results, mx.nd.NDArray) else results

    def __deepcopy__(self, memo):
        return OneNode()  # graphs are made again where they are missed

    def __reduce__(self):
        return OneNode, ()


def _graph(compute, arrays):
    """The operator, and the indices of the arrays that it takes, in its order."""
    with mx.name.NameManager(), _no_attributes():  # names do not count among the user's, nor are the user's attributes theirs
        symbols = [None if array is None else mx.sym.var(f"data{i}") for i, array in enumerate(arrays)]
        results = mx.sym.Group(compute(*symbols))
    used = [int(name[len("data"):]) for name in results.list_inputs()]
    return mx.nd.CachedOp(results), used


@contextlib.contextmanager
def _no_attributes():
    scope = mx.AttrScope._current
    before, scope.value = getattr(scope, "value", None), mx.AttrScope()
    try:
        yield
    finally:
        scope.value = before or mx.AttrScope()
