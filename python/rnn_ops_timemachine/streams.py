"""stdout and stderr, wherever they lead: to a terminal, a file, a pipe without a reader, a full disk, nowhere.

Inside `prepared` any text can be printed: characters that the stream's encoding lacks are written as escapes. So are control
characters on a terminal, since a file name or a model could move the cursor by them, or worse. When stdout can no longer be
written to, `Closed` is raised, once; later output goes nowhere. The same fault of stderr is ignored: nothing is left to
report it on.
"""
import contextlib
import errno
import io
import os
import re
import sys

FAILURE, CLOSED_PIPE = 1, 141  # exit statuses, the second as shells report a program that wrote into a closed pipe

# Of ASCII and Latin-1, but for the tab and the line feed.
_CONTROLS = {code: chr(code).encode("unicode_escape").decode()
             for code in [*range(32), *range(127, 160)] if chr(code) not in "\t\n"}


class Closed(Exception):
    """stdout can no longer be written to. Not an OSError, which would be taken for a file's."""

    def __init__(self, error):
        super().__init__(f"stdout: {error.strerror}")
        self.status = CLOSED_PIPE if error.errno == errno.EPIPE else FAILURE


@contextlib.contextmanager
def prepared():
    """Replace sys.stdout and sys.stderr for the time of the block by streams that do all of the above."""
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _prepare(sys.stdout, 1, _Output), _prepare(sys.stderr, 2, _Stream)
    try:
        yield
    finally:
        for stream, old in zip((sys.stdout, sys.stderr), before):
            if stream is not old:
                with contextlib.suppress(Closed):
                    stream.flush()
                stream.detach()  # the buffer below is still that of the old one
        sys.stdout, sys.stderr = before


def closed_status() -> int:
    """The exit status for a stdout that can no longer be written to; 0 for one that can."""
    closed = getattr(sys.stdout, "closed_by", None)
    return closed.status if closed else 0


def complain(text: str) -> None:
    """Print a line on stderr.

    By one write: where Python does not buffer (-u, PYTHONUNBUFFERED), `print` writes the line feed by a second one, and lines
    of several processes mix.
    """
    sys.stderr.write(f"rnn-ops: {one_line(text)}\n")
    sys.stderr.flush()


def harmless(text: str) -> str:
    """The text with its control characters, but for tabs and line feeds, as escapes: \\x1b, \\r."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """The text as one line, with spaces for line breaks, and harmless."""
    return harmless(re.sub(r"\s*\n\s*", " ", text.strip()))


class _Stream(io.TextIOWrapper):
    """Text on the buffer of another stream. A text that cannot be written is dropped."""

    def __init__(self, buffer, encoding, **buffering):
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", **buffering)

    def write(self, text):
        try:
            return super().write(text)
        except OSError as error:
            self.give_up(error)
        return len(text)

    def flush(self):
        try:
            super().flush()
        except OSError as error:
            self.give_up(error)

    def give_up(self, error):
        """Let all later output go nowhere, and the buffers' content too, which would fail again when Python ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class _Output(_Stream):
    """stdout: a text that cannot be written raises `Closed`; on a terminal all text is made harmless."""

    closed_by = None  # the `Closed` that was raised

    def __init__(self, *arguments, **buffering):
        super().__init__(*arguments, **buffering)
        self._terminal = self.isatty()

    def write(self, text):
        return super().write(harmless(text) if self._terminal else text)

    def give_up(self, error):
        super().give_up(error)
        self.closed_by = Closed(error)
        raise self.closed_by from error


def _prepare(stream, number, kind):
    if stream is None:  # closed when Python started
        return kind(os.fdopen(number, "wb", closefd=False), "utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, or a StringIO, which has none of a file's faults
        return stream
    stream.flush()
    return kind(stream.buffer, stream.encoding, line_buffering=stream.line_buffering, write_through=stream.write_through)


def _open_closed():
    """Open stdin, stdout and stderr where they are closed, so that no file gets their numbers and with them the output.

    GNU's programs do so too. They are opened for the wrong direction, so that using them is the same error as before ("Bad
    file descriptor").
    """
    for number, direction in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, direction)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
