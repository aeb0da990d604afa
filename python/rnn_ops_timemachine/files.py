"""Files of a run: only plain files of a limited size are read; files are written whole or not at all, never through a link.

A run's folder may come from somebody else, with links, FIFOs and devices instead of files.
"""
import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat
from typing import Any, BinaryIO, Iterable, Iterator, Optional


def open_plain(path: str, flags: int = os.O_RDONLY, follow: bool = False) -> int:
    """A descriptor of a plain file. OSError for a folder, a FIFO or a device, and for a link unless ``follow``."""
    refused = OSError(f"{path}: is a {'' if follow else 'link, '}directory, pipe or device, needs to be a plain file")
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise refused from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return descriptor


def read(path: str, most: int) -> bytes:
    """The first ``most`` bytes of a plain file."""
    with open(open_plain(path), "rb") as file:
        return file.read(most)


def parsed(content: bytes) -> Any:
    """JSON as Python's objects. A ValueError if it is no JSON, or nested so deeply that only an attacker writes it."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A binary file in memory to write to; when the block is done, its content replaces ``path``.

    It goes to a new file beside ``path`` first, which is renamed once it is on disk. If that fails, ``path`` is unchanged and
    nothing is left beside it; `remove_temporaries` removes the file that a killed process leaves.
    """
    content = io.BytesIO()
    yield content
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"  # nobody can have put a link at this name
    try:
        with _naming(path):
            _write(temporary, os.O_CREAT | os.O_EXCL, content.getbuffer())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def remove_temporaries(folder: str, names: Iterable[str]) -> None:
    """Remove files that a killed process left while `replacing` files of these names; older versions called them name.tmp."""
    pattern = re.compile(f"({'|'.join(map(re.escape, names))})(\\.[0-9a-f]{{16}})?\\.tmp")
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """A binary file for a path that the user has named: as `replacing`, except that a link is followed, and that a device
    or a pipe is written to and not replaced."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            yield file
    else:
        with replacing(os.path.realpath(path)) as file:
            yield file


def why_not_writable(path: str) -> Optional[str]:
    """Why `writing` would fail, as far as that can be seen before there is something to write; None if it would not."""
    if os.path.isdir(path):
        return os.strerror(errno.EISDIR)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        return os.strerror(errno.ENOENT)
    written = path if os.path.exists(path) and not os.path.isfile(path) else folder
    return None if os.access(written, os.W_OK) else os.strerror(errno.EACCES)


def append(path: str, text: str) -> None:
    """Add text to the end of a plain file, as UTF-8, and see it onto the disk."""
    with _naming(path):
        _write(path, os.O_CREAT | os.O_APPEND, text.encode())


def size(path: str) -> int:
    """The size of a plain file in bytes, 0 if it does not exist."""
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def cut(path: str, length: int) -> None:
    """Cut a plain file off after ``length`` bytes; a shorter one is left alone.

    A file with a second name, such as one in a backup made of hard links, is first replaced by a copy, so that the
    other stays as it is.
    """
    if not os.path.lexists(path):
        return
    with _naming(path), open(open_plain(path, os.O_RDWR), "rb") as file:
        if os.fstat(file.fileno()).st_nlink > 1:
            with replacing(path) as copy:
                copy.write(file.read(length))
        elif os.fstat(file.fileno()).st_size > length:
            os.ftruncate(file.fileno(), length)


def set_aside(path: str) -> str:
    """Rename a file to ``path``.damaged, with a number after it if that exists, and return the new name."""
    number, aside = 1, f"{path}.damaged"
    while os.path.lexists(aside):
        number, aside = number + 1, f"{path}.damaged-{number + 1}"
    os.rename(path, aside)
    return aside


def _write(path, flags, content):
    """Write all of ``content`` without a buffer. A buffer would be written once more, and fail again, when it is closed."""
    descriptor = open_plain(path, os.O_WRONLY | flags)
    try:
        content = memoryview(content)
        while content:
            content = content[os.write(descriptor, content):]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path):
    """Give an OSError without a file name the name of the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error
