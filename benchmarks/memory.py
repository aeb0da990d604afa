"""How much memory calls need on top of the memory in use before them: the peak of this process's resident set.

Linux keeps that peak, and lets a process set it back to its resident size. Memory that was freed and is still resident would
hide the need of the next call, so it is given back to the system first; all of it, if the C library has one arena
(MALLOC_ARENA_MAX=1). The peak is exact to some hundred kilobytes: Linux counts a thread's pages in batches.
"""
import ctypes
import gc


class Resident:
    """The memory that comes on top of the memory in use when this is made."""

    def __init__(self):
        self._before = self._give_back()

    def peak_of(self, call):
        """Bytes that ``call`` needed at the most; None if the system does not say. Memory kept by earlier calls counts too."""
        told = self._give_back() is not None and self._before is not None
        call()
        return max(0, _status("VmHWM") - self._before) if told else None

    @staticmethod
    def _give_back():
        """Free what is free, set the peak back and return the resident size; None if that cannot be done."""
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc's
            libc.malloc_trim(0)
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            return None
        return _status("VmRSS")


def _status(name):
    """Bytes, of this process."""
    try:
        with open("/proc/self/status") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith(name + ":")), None)
    except OSError:
        return None
