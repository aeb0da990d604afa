"""Whether a folder can be written to, known before there is anything to write."""
import os
import tempfile
from typing import Optional


def why_not_writable(path: str) -> Optional[str]:
    """Why no file can be written into a folder, in the system's words; None if one can.

    A folder that does not exist is not made: something is written where it would be. Permissions alone would not do, because
    root has all of them, in /proc too.
    """
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    try:
        os.rmdir(tempfile.mkdtemp(dir=path))
    except OSError as error:
        return error.strerror or str(error)
    return None
