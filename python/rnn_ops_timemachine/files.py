"""Files of a run: read where they are plain files of a bearable size, written whole or not at all, never through a link.

A run's folder may come from somebody else, with links, FIFOs and devices where its files belong.
"""
import contextlib
import errno
import io
import json
import os
import re
import secrets
import stat


def open_plain(path, flags=os.O_RDONLY, follow=False):
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


def read(path, most):
    """The first ``most`` bytes of a plain file."""
    with open(open_plain(path), "rb") as file:
        return file.read(most)


def parsed(content):
    """JSON as Python's objects. ValueError where it is none, or so deep that only somebody malicious has written it."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


@contextlib.contextmanager
def replacing(path):
    """A binary file in memory to write to; when the block is done, what it holds takes the place of ``path``.

    It goes to a new file beside ``path`` first, which is renamed once it is on disk. Where that fails, ``path`` stays
    what it was and nothing is left beside it; `remove_temporaries` does away with what a killed process leaves.
    """
    content = io.BytesIO()
    yield content
    temporary = f"{path}.{secrets.token_hex(8)}.tmp"  # a name that nobody can have put a link at
    try:
        with _naming(path):
            _write(temporary, os.O_CREAT | os.O_EXCL, content.getbuffer())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def remove_temporaries(folder, names):
    """Remove what a killed process left of `replacing` files of these names; older versions called it name.tmp."""
    pattern = re.compile(f"({'|'.join(map(re.escape, names))})(\\.[0-9a-f]{{16}})?\\.tmp")
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def writing(path):
    """A binary file for what the user wants written to ``path``: as `replacing`, but that a link is followed and that a
    device or a pipe stays one."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            yield file
    else:
        with replacing(os.path.realpath(path)) as file:
            yield file


def why_not_writable(path):
    """What would keep `writing` from it, as far as it can be seen before there is something to write; None for nothing."""
    if os.path.isdir(path):
        return os.strerror(errno.EISDIR)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        return os.strerror(errno.ENOENT)
    place = path if os.path.exists(path) and not os.path.isfile(path) else folder
    return None if os.access(place, os.W_OK) else os.strerror(errno.EACCES)


def append(path, text):
    """Add text to the end of a plain file, as UTF-8, and see it onto the disk."""
    with _naming(path):
        _write(path, os.O_CREAT | os.O_APPEND, text.encode())


def size(path):
    """The size of a plain file in bytes, 0 where there is none."""
    try:
        descriptor = open_plain(path)
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def cut(path, length):
    """Cut a plain file off after ``length`` bytes; a shorter one is left alone.

    A file with a second name, such as one in a backup made of hard links, is first replaced by a copy: what happens to
    it from here on does not happen to the other.
    """
    if not os.path.lexists(path):
        return
    with _naming(path), open(open_plain(path, os.O_RDWR), "rb") as file:
        if os.fstat(file.fileno()).st_nlink > 1:
            with replacing(path) as copy:
                copy.write(file.read(length))
        elif os.fstat(file.fileno()).st_size > length:
            os.ftruncate(file.fileno(), length)


def set_aside(path):
    """Give a file another name beside the old one, ``path``.damaged or that and a number, and return it."""
    number, aside = 1, f"{path}.damaged"
    while os.path.lexists(aside):
        number, aside = number + 1, f"{path}.damaged-{number + 1}"
    os.rename(path, aside)
    return aside


def _write(path, flags, content):
    """Write all of ``content`` without a buffer, which would be written once more, and fail again, when it is closed."""
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
    """Give an OSError that names no file the name of the one that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error
