"""Commands that are printed for the user to run: called as this one was, quoted for the shell."""
import os
import shlex
import shutil
import sys

NAME = "rnn-ops"  # of the console script


def program():
    """The words that call this program: the script by its name where the shell finds it, by its path where not, or a Python
    and its module."""
    called = sys.argv[0]
    if os.path.basename(called) == NAME and os.access(called, os.X_OK):
        found = shutil.which(NAME)
        if found and os.path.samefile(found, called):
            return [NAME]
        if os.path.dirname(called):
            return [called]
    python = getattr(sys, "orig_argv", [""])[0]  # from Python 3.10 on
    return [python if shutil.which(python) else sys.executable, "-m", "rnn_ops"]


def option(name, value):
    """An option with its value, as words; as one word where the value would be taken for an option itself."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def command(*words):
    """The words of a command of this program, as one line for a shell."""
    return " ".join(quote(word) for word in (*program(), *words))


def command_lines(*words):
    """As `command`, with the options on lines of their own where one line is too wide for the screen."""
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


def columns():
    """Of the terminal, 80 where there is none; COLUMNS says otherwise."""
    return shutil.get_terminal_size().columns


def quote(word):
    """A word as a shell reads it: as shlex does it, and with $'…' where that could not be printed and copied."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if word.isprintable() and word == word.encode(encoding, "replace").decode(encoding):
        return shlex.quote(word)
    try:
        content = os.fsencode(word)
    except UnicodeEncodeError:  # nobody could type it here
        content = word.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
                          for byte in content) + "'"
