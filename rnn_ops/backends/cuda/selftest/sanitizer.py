"""A few kernels of each family under NVIDIA's compute-sanitizer, which sees every access and every barrier."""
import os
import shutil
import signal
import subprocess
import sys
from typing import Callable, Dict, Optional, Sequence

TOOLS = ("racecheck", "memcheck", "synccheck", "initcheck")
SECONDS = 120  # for one tool, at most; a tool that hangs leaves the others their shares of the time
_LEAST = 10    # seconds, below which no tool is started
CLEAN = "clean"
FOUND = 97     # exit status by which the tool says that it has found an error


def find() -> Optional[str]:
    """The tool's path, or None."""
    return shutil.which("compute-sanitizer")


def run(show: Callable, left: Callable, keep: Callable, arguments: Sequence[str] = ()) -> Dict[str, str]:
    """Run every tool → {tool: CLEAN, or a text that says what is wrong}.

    Parameters
    ----------
    show : callable
        Called with lines for the screen.
    left : callable
        Gives the seconds that are left.
    keep : callable
        Called with the results so far.
    arguments : list of str
        For __main__.py.
    """
    command = [sys.executable, "-m", __package__, *arguments]
    found = {}
    for number, tool in enumerate(TOOLS):
        if left() < _LEAST:
            found[tool] = "was not started: no time was left"
        else:
            found[tool] = _run_tool([find(), "--tool", tool, "--error-exitcode", str(FOUND), *command],
                                    min(SECONDS, left() / (len(TOOLS) - number)))
        show(f"{tool}: {found[tool]}")
        keep(found)
    return found


def _run_tool(command, seconds):
    # A session of its own, so that the processes that the tool has started end with it.
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"did not end within {seconds:.0f} s"
    return verdict(process.returncode, output)


def verdict(status: int, output: str) -> str:
    """CLEAN, or the tool's own words: its first lines and its last."""
    if status == 0:
        return CLEAN
    lines = [line for line in output.splitlines() if line.strip()]
    shown = lines if len(lines) <= 30 else lines[:25] + [f"… {len(lines) - 30} lines …"] + lines[-5:]
    what = "has found errors" if status == FOUND else f"ended with status {status}"
    return "\n    ".join([what + ":"] + shown)
