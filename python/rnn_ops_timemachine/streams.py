"""stdout and stderr, whatever they lead to: a terminal, a file, a pipe that nobody reads, a full disk, nothing at all.

Inside `prepared`, what is printed never raises for what it says: characters that the stream's encoding lacks are written as
escapes, and so are control characters on a terminal, which a file name or a model could move the cursor or worse with. A
stdout that cannot be written to raises `Lost`, once: from then on what is printed goes nowhere. That of stderr is kept
quiet, since there is nobody to tell.
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


class Lost(Exception):
    """stdout can no longer be written to. Not an OSError, so that nobody takes it for that of a file."""

    def __init__(self, error):
        super().__init__(f"stdout: {error.strerror}")
        self.status = CLOSED_PIPE if error.errno == errno.EPIPE else FAILURE


@contextlib.contextmanager
def prepared():
    """Replace sys.stdout and sys.stderr for the time of the block by ones that stand all of the above."""
    _open_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _prepare(sys.stdout, 1, _Output), _prepare(sys.stderr, 2, _Stream)
    try:
        yield
    finally:
        for stream, old in zip((sys.stdout, sys.stderr), before):
            if stream is not old:
                with contextlib.suppress(Lost):
                    stream.flush()
                stream.detach()  # the buffer below is still that of the old one
        sys.stdout, sys.stderr = before


def lost_status():
    """The exit status that a stdout that was lost asks for; 0 where none was."""
    lost = getattr(sys.stdout, "lost", None)
    return lost.status if lost else 0


def complain(text):
    """Print a line on stderr."""
    print(f"rnn-ops: {one_line(text)}", file=sys.stderr, flush=True)


def harmless(text):
    """The text with its control characters, but for tabs and line feeds, as escapes: \\x1b, \\r."""
    return text.translate(_CONTROLS)


def one_line(text):
    """The text as one line: with spaces in the place of line breaks, and harmless."""
    return harmless(re.sub(r"\s*\n\s*", " ", text.strip()))


class _Stream(io.TextIOWrapper):
    """Text on the buffer of another stream; what cannot be written is dropped."""

    def __init__(self, buffer, encoding, **buffering):
        super().__init__(buffer, encoding=encoding, errors="backslashreplace", **buffering)

    def write(self, text):
        try:
            return super().write(text)
        except OSError as error:
            self.lose(error)
        return len(text)

    def flush(self):
        try:
            super().flush()
        except OSError as error:
            self.lose(error)

    def lose(self, error):
        """Let everything more go nowhere; what is in the buffers too, which would fail again when Python ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class _Output(_Stream):
    """stdout: what cannot be written is `Lost`; on a terminal all that is written is harmless."""

    lost = None  # once it is: the `Lost` of it

    def __init__(self, *arguments, **buffering):
        super().__init__(*arguments, **buffering)
        self._terminal = self.isatty()

    def write(self, text):
        return super().write(harmless(text) if self._terminal else text)

    def lose(self, error):
        super().lose(error)
        self.lost = Lost(error)
        raise self.lost from error


def _prepare(stream, number, kind):
    if stream is None:  # closed when Python started
        return kind(os.fdopen(number, "wb", closefd=False), "utf-8")
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's, or a StringIO: no file, and none of a file's faults
        return stream
    stream.flush()
    return kind(stream.buffer, stream.encoding, line_buffering=stream.line_buffering, write_through=stream.write_through)


def _open_closed():
    """Open what is closed of stdin, stdout and stderr, so that no file gets its number: what is printed would go into it.

    As GNU's programs do: for the wrong direction, so that its use is the error that it was ("Bad file descriptor").
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
