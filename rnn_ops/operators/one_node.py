"""A function of NDArrays that autograd takes for one operator.

A layer is a recurrence with masks, transposes and stacks around it: several operators to autograd. backward frees only those
that lead to the loss (bug 18 in _mxnet_bugs.py). If the state is then carried on to the next batch and not detached, the next
backward comes to freed nodes, which is an MXNetError. With MXNet's own layers it is no error: outputs and states come from one
node, which is freed as a whole, and from then on the state is a constant. OneNode makes our layers do the same.
"""
import contextlib

from rnn_ops._mxnet import mx


class OneNode:
    """Calls a function of Symbols on NDArrays, as an MXNet CachedOp. Keeps a graph for each ``key``."""

    def __init__(self):
        self._graphs = {}

    def __call__(self, key, compute, arrays):
        """compute(*symbols) gives a list of Symbols; this gives the same of NDArrays. None among the arrays goes to ``compute``
        as it is. Calls with one ``key`` must have the same function, and None in the same positions."""
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _graph(compute, arrays)
        operator, used = graph
        results = operator(*(arrays[i] for i in used))
        return [results] if isinstance(results, mx.nd.NDArray) else results

    def __deepcopy__(self, memo):
        return OneNode()  # the copy makes its own graphs

    def __reduce__(self):
        return OneNode, ()


def _graph(compute, arrays):
    """The operator, and the indices of the arrays that it takes, in its order."""
    with mx.name.NameManager(), _no_attributes():  # do not use up the user's names, do not take the user's attributes
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
