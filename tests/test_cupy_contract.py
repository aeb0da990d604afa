"""Every line that uses CuPy, compared with the CuPy that is installed: each name exists and takes the arguments it is given.

The sources are read, not run, so that no line is left out: names are followed from the imports, calls are bound to
signatures. Cython's functions have theirs in their documentation. Lines up to the driver are run by test_cuda_standin.py.
"""
import ast
import glob
import importlib
import importlib.util
import inspect
import os
import re

import pytest

cupy = pytest.importorskip("cupy", exc_type=ImportError)

PACKAGES = "rnn_ops.backends.cuda", "rnn_ops_timemachine", "rnn_ops_benchmarks"
INSTANCES = {  # what functions return, by their names
    "cupy.cuda.get_current_stream": "cupy.cuda.Stream", "cupy.RawModule.get_function": "cupy.RawKernel",
    "cupy.RawKernel.kernel": "cupy.cuda.Function", "cupy.get_default_memory_pool": "cupy.cuda.MemoryPool",
    "cupy.cuda.Stream.end_capture": "cupy.cuda.Graph", "cupy.ndarray.data": "cupy.cuda.MemoryPointer",
    "cupy.ndarray.device": "cupy.cuda.Device", "cupy.cuda.Stream.null": "cupy.cuda.Stream"}
OF_INSTANCES = {"cupy.cuda.Stream.ptr", "cupy.cuda.Event.ptr"}  # which a class does not show
INSTANCES.update((f"cupy.{name}", "cupy.ndarray")
                 for name in ("asarray", "empty", "zeros", "arange", "from_dlpack", "ndarray"))


def sources():
    """Path and text of each file that imports CuPy or takes an array namespace ``xp``."""
    for package in PACKAGES:
        folder, = importlib.util.find_spec(package).submodule_search_locations
        for path in sorted(glob.glob(os.path.join(folder, "*.py"))):
            with open(path, encoding="utf-8") as file:
                text = file.read()
            if re.search(r"\bimport cupy|\bfrom cupy|\bxp(,.*)? = ", text):
                yield os.path.basename(path), text


class Reader(ast.NodeVisitor):
    """Walks a source. ``faults`` are sentences, ``seen`` the names that it has followed."""

    def __init__(self, text):
        self.faults, self.seen = [], set()
        # Of each function around: name → (full name, object), where that is a class perhaps for an instance.
        self._names = [{"xp": ("cupy", cupy)}]
        self.visit(ast.parse(text))

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0].startswith("cupy"):
                name = alias.asname or alias.name.split(".")[0]
                full = alias.name if alias.asname else name
                self._names[-1][name] = full, self._resolve(alias.name) and self._resolve(full)

    def visit_ImportFrom(self, node):
        if (node.module or "").split(".")[0].startswith("cupy"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if alias.name == "cublas":  # which needs the library
                    self.seen.add(full)
                    if importlib.util.find_spec(full) is None:
                        self.faults.append(f"{full} does not exist")
                    continue
                self._names[-1][alias.asname or alias.name] = full, self._resolve(full)

    def visit_FunctionDef(self, node):
        arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        self._names.append(dict.fromkeys(arguments))
        self.generic_visit(node)
        self._names.pop()

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_With(self, node):
        for item in node.items:
            if item.optional_vars is not None:
                self._assign(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    def _assign(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for pair in zip(target.elts, value.elts):
                self._assign(*pair)
        elif isinstance(target, ast.Name) and target.id != "xp":
            self._names[-1][target.id] = self._follow(value)

    def visit_Attribute(self, node):
        self._follow(node)
        self.generic_visit(node)

    def visit_Subscript(self, node):
        """Keys of what CuPy gives as a dict."""
        key = getattr(node.slice, "value", node.slice)  # Python 3.8 has an Index around it
        key = getattr(key, "value", getattr(key, "s", key))
        name = getattr(node.value, "attr", getattr(node.value, "id", getattr(getattr(node.value, "func", None), "attr", "")))
        if isinstance(key, str) and name in ("attributes", "_attributes"):
            self.seen.add(f"attributes.{key}")
            if not hasattr(runtime(), f"cudaDevAttr{key}"):
                self.faults.append(f"Device.attributes has no {key}")
        if isinstance(key, str) and name in ("properties", "getDeviceProperties"):
            self.seen.add(f"properties.{key}")
            if not is_property(key):
                self.faults.append(f"getDeviceProperties has no {key}")
        self.generic_visit(node)

    def visit_Call(self, node):
        self.generic_visit(node)
        words = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        if getattr(node.func, "attr", "") in ("import_module", "__import__") and str(words[:1]).startswith("['cupy"):
            self.faults.append(f"{words[0]} is imported by its name, past what its package does before")
        found = self._follow(node.func)
        if found is None or any(isinstance(argument, ast.Starred) for argument in node.args) or (
                any(keyword.arg is None for keyword in node.keywords)):
            return
        name, function = found
        given = len(node.args), {keyword.arg for keyword in node.keywords}
        reason = misfit(name, function, *given)
        if reason:
            self.faults.append(f"{name}: {reason}")

    def _follow(self, node):
        """(full name, object) of an expression; the class for an instance of it; None where it is not known."""
        if isinstance(node, ast.Name):
            return next((names[node.id] for names in reversed(self._names) if node.id in names), None)
        if isinstance(node, ast.Call):
            found = self._follow(node.func)
            if found is None:
                return None
            name, function = found
            if name in INSTANCES:
                return INSTANCES[name], self._resolve(INSTANCES[name])
            return (name, function) if inspect.isclass(function) else None
        if not isinstance(node, ast.Attribute):
            return None
        found = self._follow(node.value)
        if found is None:
            return None
        full = f"{found[0]}.{node.attr}"
        self.seen.add(full)
        if full in OF_INSTANCES:
            return None
        try:
            attribute = getattr(found[1], node.attr)
        except AttributeError:
            if f"{full} does not exist" not in self.faults:
                self.faults.append(f"{full} does not exist")
            return None
        if full in INSTANCES and not callable(attribute):
            return INSTANCES[full], self._resolve(INSTANCES[full])
        return full, attribute

    def _resolve(self, name):
        self.seen.add(name)
        parts = name.split(".")
        found = importlib.import_module(parts[0])
        for count, part in enumerate(parts[1:], 2):
            try:
                found = getattr(found, part)
            except AttributeError:
                try:
                    found = importlib.import_module(".".join(parts[:count]))
                except ImportError:
                    self.faults.append(f"{name} does not exist")
                    return None
        return found


def runtime():
    from cupy_backends.cuda.api import runtime
    return runtime


def is_property(key):
    """Whether getDeviceProperties gives a key, which it tells only where there is a GPU: CuPy itself takes it, or the
    compiled module has the word."""
    with open(importlib.util.find_spec("cupyx._runtime").origin, encoding="utf-8") as file:
        if f"props['{key}']" in file.read():
            return True
    with open(runtime().__file__, "rb") as file:
        return f"\0{key}\0".encode() in file.read()


def misfit(name, function, count, keywords):
    """Why a function does not take so many arguments and these keywords, or None."""
    if isinstance(function, cupy.ufunc):
        more = keywords - {"out", "dtype"}
        if more or not function.nin <= count <= function.nargs:
            return f"a ufunc of {function.nin} inputs does not take {count} arguments and {sorted(keywords)}"
        return None
    names, least, most = parameters(name, function)
    if names is None:
        return None
    more = keywords - set(names)
    given = count + len(keywords)
    if more or count > most or given < least:
        return f"{', '.join(names)} do not take {count} arguments and {sorted(keywords)}"
    return None


def parameters(name, function):
    """Names of a function's parameters, how many it needs and how many by position; None where anything goes."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        first = (function.__doc__ or "").split("\n")[0]
        text = re.fullmatch(r"[\w.]+\((.*)\)(?: -> .*)?", first)
        assert text, f"{name} does not say what it takes: {first!r}"
        words = [word.strip() for word in re.split(r",(?![^(\[]*[)\]])", text.group(1)) if word.strip()]
        words = [word for word in words if word != "self"]
        positional = words[:words.index("*")] if "*" in words else words
        names = [re.sub(r"=.*", "", word).split()[-1] for word in words if word != "*"]
        return names, sum("=" not in word for word in words if word != "*"), len(positional)
    kinds = [one for one in found.parameters.values() if one.name != "self"]
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in kinds):
        return None, None, None
    return ([one.name for one in kinds], sum(one.default is one.empty for one in kinds),
            sum(one.kind is not one.KEYWORD_ONLY for one in kinds))


@pytest.mark.parametrize("text", [text for _, text in sources()], ids=[name for name, _ in sources()])
def test_all_that_is_used_exists_and_takes_what_it_is_given(text):
    assert Reader(text).faults == []


def test_a_stream_has_a_pointer():
    """That of an event takes a GPU; test_cuda_standin.py asks for it."""
    assert cupy.cuda.Stream.null.ptr == 0


def test_the_lines_that_count_are_seen():
    """Else the test above might see nothing."""
    seen = set().union(*(Reader(text).seen for _, text in sources()))
    assert {"cupy.cuda.Device.compute_capability", "cupy.cuda.Device.attributes", "attributes.MultiProcessorCount",
            "properties.name", "cupy.RawModule", "cupy.RawModule.get_function", "cupy.RawKernel.kernel",
            "cupy.cuda.UnownedMemory", "cupy.cuda.MemoryPointer", "cupy_backends.cuda.api.driver.launchKernel",
            "cupy.from_dlpack", "cupy_backends.cuda.libs.cublas", "cupy.cuda.Stream.begin_capture", "cupy.cuda.Stream.ptr",
            "cupy.cuda.Graph.launch", "cupy.cuda.Event.record", "cupy.cuda.using_allocator", "attributes.ClockRate",
            "properties.totalGlobalMem", "cupy.take", "cupy.amax"} <= seen


@pytest.mark.parametrize("text, fault", [
    ("import cupy\ncupy.nothing", "cupy.nothing does not exist"),
    ("from cupy.cuda import nothing", "cupy.cuda.nothing does not exist"),
    ("import cupy\ngpu = cupy.cuda.Device(0)\ngpu.nothing", "cupy.cuda.Device.nothing does not exist"),
    ("import cupy\ncupy.cuda.Device(0).attributes['ComputeCapabilityMajor']",
     "Device.attributes has no ComputeCapabilityMajor"),
    ("from cupy.cuda import runtime\nruntime.getDeviceProperties(0)['nothing']", "getDeviceProperties has no nothing"),
    ("import importlib\nimportlib.import_module('cupy_backends.cuda.libs.cublas')",
     "cupy_backends.cuda.libs.cublas is imported by its name, past what its package does before"),
    ("import cupy\ncupy.RawModule(file='x')", "cupy.RawModule: .* do not take 0 arguments and \\['file'\\]"),
    ("import cupy\ncupy.RawModule(path='x').get_function('y').nothing", "cupy.RawKernel.nothing does not exist"),
    ("import cupy\ncupy.get_default_memory_pool().nothing()", "cupy.cuda.MemoryPool.nothing does not exist"),
    ("from cupy_backends.cuda.api import driver\ndriver.funcSetAttribute(1, 2)",
     ".*funcSetAttribute: .* do not take 2 arg.*"),
    ("from cupy_backends.cuda.api import driver\ndriver.funcSetAttribute(1, 2, 3, 4)",
     ".*funcSetAttribute: .* do not take 4.*"),
    ("import cupy\nwith cupy.cuda.Stream(nonblocking=True) as s:\n    pass",
     ".*Stream: .* do not take 0 arg.*'nonblocking'.*"),
    ("import cupy\na, b = cupy.cuda.Event(), cupy.cuda.Event()\nb.recorded()", "cupy.cuda.Event.recorded does not exist"),
    ("import cupy\ncupy.cuda.get_current_stream().pointer", "cupy.cuda.Stream.pointer does not exist"),
    ("import cupy\ncupy.empty(3, 'f').data.pointer", "cupy.cuda.MemoryPointer.pointer does not exist"),
    ("import cupy\ncupy.empty(3, 'f').data.memset_async(0)", ".*memset_async: .* do not take 1 arg.*"),
    ("def f(machine):\n    xp = machine.xp\n    xp.amax(1, axis=0, keepdim=True)",
     "cupy.amax: .* do not take 1 arg.*'keepdim'.*"),
    ("def f(machine):\n    xp = machine.xp\n    xp.add(1, axis=0)", "cupy.add: a ufunc of 2 inputs .*"),
], ids=range(18))
def test_a_fault_is_seen(text, fault):
    faults = Reader(text).faults
    assert len(faults) == 1 and re.fullmatch(fault, faults[0]), faults
