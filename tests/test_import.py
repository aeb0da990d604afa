"""`import rnn_ops`: without MXNet until somebody imports it, and then with all preparations."""
import ast
import importlib
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import typing

import numpy
import pytest

import rnn_ops

WITHOUT_MXNET = ["rnn_ops", "rnn_ops.backends", "rnn_ops.backends.cpu", "rnn_ops.backends.cuda",
                 "rnn_ops.backends.cuda.compiler", "rnn_ops.info", "rnn_ops_benchmarks", "rnn_ops_benchmarks.cli",
                 "rnn_ops_benchmarks.gpu_training", "rnn_ops_benchmarks.rehearsal", "rnn_ops_benchmarks.machine_code.report",
                 "rnn_ops.backends.cuda.cupy_gpu", "rnn_ops.backends.cuda.numpy_gpu", "rnn_ops.backends.cuda.selftest.checks",
                 "rnn_ops.exactness", "rnn_ops.torch"]
LENDS = "bool" not in vars(numpy)  # NumPy has to be changed for the import of MXNet


def python(code, *arguments, folder=None, status=0):
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True,
                          cwd=str(folder or os.path.dirname(os.path.abspath(__file__))))
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """A file with a graph that holds both operators."""
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    path = tmp_path_factory.mktemp("graph") / "graph.json"
    python("import sys\nfrom rnn_ops.operators import custom, native\nfrom rnn_ops._mxnet import mx\n"
           "inputs = list(map(mx.sym.var, ('x', 'h', 'Wxh', 'Whh', 'bh')))\n"
           "mx.sym.Group([native.rnn_step(*inputs), custom.rnn_step(*inputs)]).save(sys.argv[1])", path)
    return path


@pytest.mark.parametrize("module", WITHOUT_MXNET)
def test_it_is_imported_without_mxnet(module):
    if module.endswith("cupy_gpu"):
        pytest.importorskip("cupy", exc_type=ImportError)
    if module.endswith("torch"):
        pytest.importorskip("torch")
    code = (f"import importlib, sys\nimportlib.import_module({module!r})\n"
            "print([name for name in sys.modules if name.split('.')[0] == 'mxnet'])")
    assert python(code) == "[]\n"


def test_without_pytorch_the_extra_is_named():
    code = ("import importlib.util, sys\nfind = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *package: None if name == 'torch' else find(name, *package)\n"
            "import rnn_ops\ntry:\n    rnn_ops.torch\nexcept ImportError as error:\n    print(error)")
    assert python(code) == "This needs PyTorch 2.4 or newer: install rnn_ops[torch]\n"


def test_import_star_leaves_the_name_of_pytorch_alone():
    assert python("torch = 'mine'\nfrom rnn_ops import *\nprint(torch)") == "mine\n"


def test_it_does_not_even_import_numpy():
    assert python("import rnn_ops, sys; print('numpy' in sys.modules)") == "False\n"


def test_looking_for_a_gpu_imports_no_mxnet():
    code = "import sys; from rnn_ops.backends import cuda; cuda.why_not(); cuda.devices(); print('mxnet' in sys.modules)"
    assert python(code) == "False\n"


@pytest.mark.parametrize("ask", ["from rnn_ops import rnn_sequence", "import rnn_ops; rnn_ops.rnn_step",
                                 "import rnn_ops; rnn_ops.use", "from rnn_ops import gluon", "import rnn_ops.reference",
                                 "from rnn_ops._mxnet import mx",
                                 "import rnn_ops, mxnet", "import rnn_ops; import mxnet.gluon", "import rnn_ops.operators",
                                 "import rnn_ops\nimport mxnet as mx\nfrom rnn_ops import rnn_sequence"])
@pytest.mark.slow
def test_each_way_to_ask_for_mxnet_registers_the_operators(graph, ask):
    """NumPy and the import system are then as they were found."""
    code = (f"import sys\nbefore = list(sys.meta_path)\n{ask}\nimport mxnet, numpy\n"
            "print(mxnet.sym.load(sys.argv[1]).list_arguments())\n"
            "print(before == sys.meta_path, 'bool' in vars(numpy), type(mxnet.__loader__).__name__,\n"
            "      mxnet.__spec__.loader is mxnet.__loader__)")
    assert python(code, graph) == f"['x', 'h', 'Wxh', 'Whh', 'bh']\nTrue {not LENDS} SourceFileLoader True\n"


@pytest.mark.slow
def test_with_mxnet_imported_first_the_operators_come_at_once(graph):
    lend = "numpy.bool = numpy.bool_; " if LENDS else ""
    code = (f"import sys, numpy; {lend}import mxnet\nimport rnn_ops\n"
            "print(mxnet.sym.load(sys.argv[1]).list_arguments())")
    assert python(code, graph) == "['x', 'h', 'Wxh', 'Whh', 'bh']\n"


def test_an_import_that_fails_leaves_numpy_alone_and_can_be_tried_again(tmp_path):
    (tmp_path / "mxnet.py").write_text("import numpy, os\n"
                                       "assert numpy.bool\n"
                                       "if not os.path.exists('there'):\n    raise OSError('not yet')\n"
                                       "__version__ = 'of this test'\n")
    code = ("import sys; sys.path.insert(0, sys.argv[1])\nimport rnn_ops, numpy\nfor _ in range(2):\n"
            "    try:\n        import mxnet\n    except OSError as error:\n        print(error, 'bool' in vars(numpy))\n"
            "open('there', 'w').close()\nimport mxnet; print(mxnet.__version__, 'bool' in vars(numpy))")
    lent = not LENDS
    assert python(code, tmp_path, folder=tmp_path).startswith(f"not yet {lent}\nnot yet {lent}\nof this test {lent}\n")


def test_without_mxnet_pythons_own_error_comes(tmp_path):
    """A Python that finds everything but MXNet."""
    code = ("import sys\nclass Without:\n    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] == 'mxnet':\n            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, Without())\nimport rnn_ops\n"
            "try:\n    import mxnet\nexcept ModuleNotFoundError as error:\n    print(error)")
    assert python(code) == "mxnet\n"


def test_two_wheels_of_mxnet_at_once_are_named(tmp_path):
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    metadata = tmp_path / "mxnet_cu112-1.9.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mxnet-cu112\nVersion: 1.9.1\n")
    code = ("import sys, warnings\nsys.path.append(sys.argv[1])\n"
            "with warnings.catch_warnings(record=True) as caught:\n    warnings.simplefilter('always')\n"
            "    import rnn_ops._mxnet\n"
            "print([str(w.message) for w in caught if 'mxnet-cu112' in str(w.message)])")
    assert "mxnet and mxnet-cu112 are both installed and have written the same module 'mxnet' over each other" in python(
        code, tmp_path)
    assert python(code, tmp_path / "nothing") == "[]\n"


@pytest.fixture
def source_folder(tmp_path):
    """A folder with the package's code and without the compiled library: Python that starts there imports this code."""
    shutil.copytree(os.path.dirname(rnn_ops.__file__), str(tmp_path / "rnn_ops"),
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_a_source_folder_takes_the_installed_library(source_folder):
    found = python("import rnn_ops; from rnn_ops.backends import cpu; print(rnn_ops.__file__); print(cpu.library_path())",
                   folder=source_folder).splitlines()
    installed = os.path.join(os.path.dirname(rnn_ops.__file__), "librnn_ops.so")
    assert found == [str(source_folder / "rnn_ops" / "__init__.py"), installed]


@pytest.mark.parametrize("installed", [True, False], ids=["other code is installed", "nothing is installed"])
def test_a_source_folder_without_a_library_that_fits_says_what_to_run(source_folder, installed):
    with open(source_folder / "rnn_ops" / "exactness.py", "a") as file:
        file.write("# one line more\n")
    code = "import rnn_ops.backends.cpu"
    if not installed:
        code = f"import importlib.metadata; importlib.metadata.distributions = lambda **name: []; {code}"
    folder = source_folder / "rnn_ops"
    why = f", and its code is not that of the rnn_ops installed in {os.path.dirname(rnn_ops.__file__)}" if installed else ""
    assert python(code, folder=source_folder, status=1).splitlines()[-1] == (
        f"ImportError: rnn_ops in {folder} has no compiled kernels{why}: run 'pip install -e .' in {source_folder}")


def test_the_package_says_what_it_has():
    assert set(dir(rnn_ops)) >= {"__version__", "__doc__", *rnn_ops.__all__}
    assert set(rnn_ops.__all__) == {name for name in dir(rnn_ops) if not name.startswith("_")}
    assert os.path.exists(os.path.join(os.path.dirname(rnn_ops.__file__), "py.typed"))


def test_without_mxnet_the_package_shows_what_works():
    """`import *`, `inspect` and pydoc look at every name. To ask for one of the others says what is missing."""
    code = ("import sys; sys.modules['mxnet'] = None\nimport inspect, pydoc\nimport rnn_ops\nfrom rnn_ops import *\n"
            "print(rnn_ops.__all__, [name for name, _ in inspect.getmembers(rnn_ops) if name[0] != '_'])\n"
            "print(numpy_reference.__name__, backends.__name__, 'numpy_reference' in pydoc.render_doc(rnn_ops))\n"
            "try:\n    rnn_ops.gluon\nexcept ImportError as error:\n    print(error)")
    public, found, why = python(code).splitlines()
    assert public == "['gradcheck', 'numpy_reference', 'backends'] ['backends', 'gradcheck', 'numpy_reference']"
    assert found == "rnn_ops.numpy_reference rnn_ops.backends True"
    assert why.startswith("This needs MXNet 1.9.1: install rnn_ops[cpu]")


def test_with_mxnet_import_star_has_every_name():
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    names = {}
    exec("from rnn_ops import *", names)
    assert {"rnn_step", "rnn_sequence", "use", "gluon", "reference", "gradcheck", "numpy_reference", "operators",
            "backends"} == set(names) - {"__builtins__"}


def test_type_checkers_see_every_name_and_no_other():
    """They take ``if TYPE_CHECKING:`` and believe in every name where they see a `__getattr__`."""
    with open(rnn_ops.__file__) as file:
        body = ast.parse(file.read()).body
    seen = []
    for node in body:
        seen += node.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING" else [node]
    imported = [alias.name for node in seen if isinstance(node, ast.ImportFrom) for alias in node.names]
    public, = (ast.literal_eval(node.value) for node in seen
               if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    assert set(public) <= set(imported)
    assert set(public) >= set(rnn_ops.__all__)
    if importlib.util.find_spec("mxnet"):
        assert public == rnn_ops.__all__
    assert "__getattr__" not in [node.name for node in seen if isinstance(node, ast.FunctionDef)]


def functions_of(module, names):
    """The functions of these names, and the constructors and public methods of classes that the module defines."""
    for value in (getattr(module, name) for name in names):
        if inspect.isfunction(value):
            yield value
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            yield from (method for name, method in vars(value).items() if inspect.isfunction(method)
                        and (name == "__init__" or not name.startswith("_")))


def untyped(functions):
    for function in functions:
        hints = typing.get_type_hints(function)
        missing = set(inspect.signature(function).parameters) - {"self"} - set(hints)
        if missing or "return" not in hints:
            yield function


def test_public_functions_have_type_hints():
    pytest.importorskip("rnn_ops._mxnet", exc_type=ImportError)
    from rnn_ops import gluon, operators, reference
    functions = [getattr(module, name) for module in (operators, reference) for name in module.__all__]
    functions += [getattr(gluon, name).__init__ for name in gluon.__all__]
    functions += [getattr(operators.native, name) for name in operators.native.__all__]
    functions += [operators.custom.rnn_step, operators.custom.rnn_sequence, operators.custom.call,
                  operators.custom.looks_at_tokens]
    assert not list(untyped(filter(callable, functions)))


@pytest.mark.parametrize("module", ["rnn_ops.backends.cpu", "rnn_ops.backends.cuda", "rnn_ops.numpy_reference", "rnn_ops.info",
                                    "rnn_ops_benchmarks.providers"])
def test_public_functions_that_need_no_mxnet_have_type_hints(module):
    module = importlib.import_module(module)
    functions = [function for function in functions_of(module, [name for name in vars(module) if not name.startswith("_")])
                 if function.__module__ == module.__name__]
    assert functions and not list(untyped(functions))
