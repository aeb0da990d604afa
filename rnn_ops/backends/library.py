"""Where the compiled library is: in this package, or in an installed one with the same code.

Python that starts in a source folder takes the rnn_ops that lies there. After 'pip install .' the compiled library is not there
but in the installed package. It fits if both packages have the same Python code.
"""
import importlib.metadata
import os

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAME = "librnn_ops.so"


def path() -> str:
    """The library's file. If no library fits, an ImportError gives the command that builds one."""
    own = os.path.join(_FOLDER, _NAME)
    if os.path.exists(own):
        return own
    why = ""
    for distribution in importlib.metadata.distributions(name="rnn_ops"):
        installed = os.path.abspath(str(distribution.locate_file("rnn_ops")))
        if os.path.exists(os.path.join(installed, _NAME)):
            if _code(installed) == _code(_FOLDER):
                return os.path.join(installed, _NAME)
            why = f", and its code is not that of the rnn_ops installed in {installed}"
    raise ImportError(f"rnn_ops in {_FOLDER} has no compiled kernels{why}: run 'pip install -e .' in {os.path.dirname(_FOLDER)}")


def _code(folder):
    """All Python files of a package, by their names."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(where, name), "rb") as file:
                    found[os.path.relpath(file.name, folder)] = file.read()
    return found
