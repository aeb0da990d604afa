"""Write a file whole or not at all."""
import contextlib
import os


@contextlib.contextmanager
def replacing(path):
    """A binary file to write to, which takes the place of ``path`` when it is complete and on disk.

    Where that fails, and also where the block raises, ``path`` stays what it was and nothing is left beside it.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def append(path, text):
    """Add text to the end of a file, as UTF-8, and see it onto the disk."""
    with open(path, "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def size(path):
    """The size of a file in bytes, 0 where there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def cut(path, length):
    """Cut a file off after ``length`` bytes; a shorter one is left alone."""
    if size(path) > length:
        os.truncate(path, length)
