"""Where the compiled library is: in this package, or in an installed one with the same code.

Python that starts in a source folder takes the rnn_ops that lies there. After 'pip install .' the compiled library is not there
but in the installed package. It fits if both packages have the same Python code.
"""
import json
import os
import urllib.parse

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAME = "librnn_ops.so"


def path() -> str:
    """The library's file. If no library fits, an ImportError gives the command that builds one."""
    own = os.path.join(_FOLDER, _NAME)
    if os.path.exists(own):
        return own
    import importlib.metadata  # here, since it takes longer than all else that is imported
    why = ""
    for distribution in importlib.metadata.distributions(name="rnn_ops"):
        installed = os.path.join(_folder_of(distribution), "rnn_ops")
        if os.path.exists(os.path.join(installed, _NAME)):
            if _code(installed) == _code(_FOLDER):
                return os.path.join(installed, _NAME)
            why = f", and its code is not that of the rnn_ops installed in {installed}"
    raise ImportError(f"rnn_ops in {_FOLDER} has no compiled kernels{why}: run 'pip install -e .' in {os.path.dirname(_FOLDER)}")


def _folder_of(distribution):
    """The folder that an installed distribution's packages are in. For 'pip install -e' it is the one that was installed."""
    source = json.loads(distribution.read_text("direct_url.json") or "{}")  # PEP 610
    if source.get("dir_info", {}).get("editable"):
        return urllib.parse.unquote(urllib.parse.urlparse(source["url"]).path)
    return os.path.abspath(str(distribution.locate_file("")))


def _code(folder):
    """All Python files of a package, by their names."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".py"):
                with open(os.path.join(where, name), "rb") as file:
                    found[os.path.relpath(file.name, folder)] = file.read()
    return found
