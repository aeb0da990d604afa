"""Shared by all commands: a parser whose errors are one line, types of options, exit statuses, imports that may fail."""
import argparse
import contextlib
import re
import sys

from rnn_ops_timemachine import streams

# Exit statuses; a signal's number is added to the last one, as shells do.
USAGE, FAILURE, SIGNALLED = 2, streams.FAILURE, 128


class CommandError(Exception):
    """A message for the user and the exit status that goes with it."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def run_as_program(main):
    """Call a module's `main` and exit with its status. A `CommandError` is a line on stderr."""
    with streams.prepared():
        try:
            sys.exit(main())
        except CommandError as error:
            streams.complain(str(error))
            sys.exit(error.status)


class Parser(argparse.ArgumentParser):
    """Its errors are one line; argparse's own parser prints its whole usage first."""

    def parse_known_args(self, args=None, namespace=None):
        """Refuse unknown arguments here: argparse's own parser of a command leaves them to the parser of all commands, which
        would point to its own help."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message):
        raise CommandError(USAGE, f"error: {message} ({self.prog} --help says more)")


def positive(text: str) -> int:
    """The type of an option that is a number of at least 1."""
    if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a whole number, 1 or more, of at most 18 digits")
    return int(text)


def path(text: str) -> str:
    """The type of an option that is a path or the name of a text."""
    if not text:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a name")
    return text


def check_settings(mxnet: bool = True) -> None:
    """Raise a `CommandError` if an environment variable cannot be followed, before anything is begun.

    mxnet: whether MXNet will be used. It is imported for that.
    """
    with importing():
        from rnn_ops import info
    for reason in info.wrong_settings(mxnet):
        raise CommandError(USAGE, f"error: {reason}")


@contextlib.contextmanager
def importing():
    """Turn any exception of an import into a line for the user. A setting may cause it: TQDM_MININTERVAL=abc is a
    ValueError, and PYTHONWARNINGS=error raises warnings."""
    try:
        with one_line(FAILURE, ImportError):
            yield
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(FAILURE, f"error: an import failed: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def one_line(status, *exceptions):
    """Turn expected exceptions into a line for the user."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(FAILURE, f"error: {error}: rnn_ops[cpu], rnn_ops[cu112], rnn_ops[cu12], rnn_ops[cu13] and "
                           "rnn_ops[torch] bring it") from error
    except exceptions as error:
        raise CommandError(status, f"error: {str(error) or type(error).__name__}") from error
