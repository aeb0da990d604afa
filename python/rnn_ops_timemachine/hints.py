"""Commands that are printed for the user to run: they call the program as the user did, and are quoted for the shell."""
import os
import shlex
import shutil
import sys
from typing import List

NAME = "rnn-ops"  # of the console script


def program() -> List[str]:
    """The words that call this program: the script by its name if the shell finds it, else by its path, or Python and the
    module."""
    called = sys.argv[0]
    if os.path.basename(called) == NAME and os.access(called, os.X_OK):
        found = shutil.which(NAME)
        if found and os.path.samefile(found, called):
            return [NAME]
        if os.path.dirname(called):
            return [called]
    python = getattr(sys, "orig_argv", [""])[0]  # from Python 3.10 on
    return [python if shutil.which(python) else sys.executable, "-m", "rnn_ops"]


def option(name: str, value: str) -> List[str]:
    """An option with its value, as words; as one word if the value would be taken for an option itself."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def command(*words: str) -> str:
    """The words of a command of this program, as one line for a shell."""
    return " ".join(quote(word) for word in (*program(), *words))


def command_lines(*words: str) -> str:
    """As `command`, with the options on lines of their own if one line is too wide for the screen."""
    if len(command(*words)) <= columns():
        return command(*words)
    lines, parts = [], []
    for word in (*program(), *words):
        if word.startswith("--") or not parts:
            parts.append(quote(word))
        else:
            parts[-1] += f" {quote(word)}"
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= columns():  # a space before it and " \\" after it
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}" if lines else part)
    return " \\\n".join(lines)


def columns() -> int:
    """The terminal's width; 80 without a terminal. The variable COLUMNS overrides both."""
    return shutil.get_terminal_size().columns


def quote(word: str) -> str:
    """A word quoted for a shell: as shlex does it, or as $'…' if the word itself cannot be printed and copied."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if word.isprintable() and word == word.encode(encoding, "replace").decode(encoding):
        return shlex.quote(word)
    try:
        content = os.fsencode(word)
    except UnicodeEncodeError:  # it cannot be typed here
        content = word.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
                          for byte in content) + "'"
