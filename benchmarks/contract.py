"""Every name that a run uses of CuPy, looked up in the CuPy that is installed. Needs no GPU and touches none.

Names are read off the sources: every dotted name that begins with something imported from CuPy has to be there. What is
called on objects, and functions that write where they are told, are listed.
"""
import ast
import importlib
import inspect

_ROOTS = ("cupy", "cupy_backends")
# Of objects that only a GPU gives: their classes have these.
_OBJECTS = {
    "cupy.ndarray": "data nbytes get set fill view reshape sum copy astype T dtype shape ravel item size __setitem__",
    "cupy.cuda.MemoryPointer": "ptr memset_async",
    "cupy.cuda.Event": "record synchronize",
    "cupy.cuda.Stream": "begin_capture end_capture synchronize",
    "cupy.cuda.Graph": "launch",
    "cupy.cuda.MemoryPool": "malloc free_all_blocks",
    "cupy.RawModule": "get_function",
    "cupy.RawKernel": "kernel __call__",
}
# Functions of the array namespace in rnn_ops_timemachine/cuda_training.py, with their keywords.
_FUNCTIONS = {"arange": "dtype", "zeros": "dtype", "empty": "dtype", "sum": "axis out keepdims", "amax": "axis out keepdims",
              "mean": "out keepdims", "take": "out"}
_ELEMENTWISE = "add subtract multiply divide exp log equal tanh maximum"
# cupy.cuda.Device.attributes are made of these.
_ATTRIBUTES = ("ClockRate", "L2CacheSize", "MaxSharedMemoryPerMultiprocessor", "MemoryClockRate", "MultiProcessorCount",
               "MaxSharedMemoryPerBlockOptin")


def faults():
    """Names that are missing or of another kind, as sentences; empty if all is well."""
    import cupy
    from cupy_backends.cuda.api import runtime as cuda_runtime
    found = []
    for module in ("rnn_ops.backends.cuda.runtime", "rnn_ops.backends.cuda.cupy_gpu"):
        for name in names(inspect.getsource(importlib.import_module(module))):
            if not _there(name):
                found.append(f"{name}: used by {module}, not in CuPy {cupy.__version__}")
    for name, attributes in _OBJECTS.items():
        found += [f"{name}.{attribute}: not in CuPy {cupy.__version__}" for attribute in attributes.split()
                  if not hasattr(_resolve(name), attribute)]
    for name, words in _FUNCTIONS.items():
        taken = inspect.signature(getattr(cupy, name)).parameters
        found += [f"cupy.{name}: got {word}, needs one of {', '.join(taken)}" for word in words.split() if word not in taken]
    found += [f"cupy.{name}: got {getattr(cupy, name)!r}, needs a ufunc that takes out"
              for name in _ELEMENTWISE.split() if not isinstance(getattr(cupy, name), cupy.ufunc)]
    found += [f"cupy.cuda.Device.attributes: no {name}" for name in _ATTRIBUTES if not hasattr(
        cuda_runtime, "cudaDevAttr" + name)]
    if cupy.ndarray.__module__.partition(".")[0] != "cupy":
        found.append(f"cupy.ndarray: got module {cupy.ndarray.__module__}, needs cupy, as numpy_reference.namespace takes it")
    return found


def names(source):
    """Every dotted name in a source that begins with something imported from CuPy, in full, each once."""
    tree, roots = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots.update((alias.asname or alias.name, alias.name) for alias in node.names
                         if alias.name.split(".")[0] in _ROOTS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _ROOTS:
            roots.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    hidden = {inner for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
              for own in [{name.id for name in ast.walk(function) if isinstance(name, ast.Name)
                           and isinstance(name.ctx, ast.Store)}]
              for inner in ast.walk(function) if isinstance(inner, ast.Name) and inner.id in own}  # a local of that name
    found = {}
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in roots and node not in hidden:
            found[".".join([roots[node.id], *reversed(parts)])] = None
    return list(found)


def _resolve(name):
    """The object of a dotted name: its longest beginning that is a module, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(name)


def _there(name):
    try:
        _resolve(name)
    except AttributeError:
        return False
    return True
