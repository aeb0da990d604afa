"""A lock on a run's folder, so that one process at a time trains it. It ends with its process, however that ends."""
import contextlib
import errno
import fcntl
import os

from rnn_ops_timemachine import files

FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # errors of file systems without locks


class Lock:
    """The lock of a folder, taken when it is made and kept until `release`.

    On a file system without locks nobody is refused: a run there can be trained, and ``notice`` says that two processes at
    once are not kept apart.

    Raises
    ------
    BlockingIOError
        Another process has it.
    OSError
        The folder cannot be written to.
    """

    def __init__(self, folder: str):
        self.notice = ""
        self._path = os.path.join(folder, FILE)
        while True:
            self._descriptor = files.open_plain(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._take(folder)
                if self._is_the_file():
                    return
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # its owner has just removed it; others lock a new file

    def release(self) -> None:
        """Remove the file and release the lock. A killed process leaves a file that is not locked, which keeps nobody out."""
        with contextlib.suppress(OSError):
            if self._is_the_file():
                os.remove(self._path)
        os.close(self._descriptor)

    def _take(self, folder):
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"out: another process is training the run in {folder}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.notice = (f"{folder} is on a file system without locks ({error.strerror}): "
                           "see to it that no other process trains this run")

    def _is_the_file(self):
        """Whether the locked file still has its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False
