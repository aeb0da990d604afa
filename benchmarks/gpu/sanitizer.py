"""A few kernels of each family under NVIDIA's compute-sanitizer, which sees every access and every barrier."""
import os
import shutil
import signal
import subprocess
import sys

TOOLS = ("racecheck", "memcheck", "synccheck", "initcheck")
SECONDS = 120  # for one tool, at most; a tool that hangs leaves the others their shares of what there is
_LEAST = 10    # seconds that are worth its start
CLEAN = "clean"
FOUND = 97     # exit status that says that the tool has found something
PART = "sanitized"  # of the command: only what these tools are to see


def find():
    """The tool's path, or None."""
    return shutil.which("compute-sanitizer")


def run(show, left, keep, arguments=()):
    """Run every tool → {tool: CLEAN, or what is wrong}.

    Parameters
    ----------
    show : callable
        Gets lines.
    left : callable
        How many seconds there are.
    keep : callable
        Gets the results so far.
    arguments : list of str
        For the command, besides the part.
    """
    # The package by its name here: `benchmarks` in a checkout, `rnn_ops_benchmarks` installed.
    command = [sys.executable, "-m", __package__, "--part", PART, *arguments]
    found = {}
    for number, tool in enumerate(TOOLS):
        if left() < _LEAST:
            found[tool] = "was not begun: the time was over"
        else:
            found[tool] = _run_tool([find(), "--tool", tool, "--error-exitcode", str(FOUND), *command],
                                    min(SECONDS, left() / (len(TOOLS) - number)))
        show(f"{tool}: {found[tool]}")
        keep(found)
    return found


def _run_tool(command, seconds):
    # A session of its own, so that what the tool has started ends with it.
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


def verdict(status, output):
    """CLEAN, or the tool's own words: its first lines and its last."""
    if status == 0:
        return CLEAN
    lines = [line for line in output.splitlines() if line.strip()]
    shown = lines if len(lines) <= 30 else lines[:25] + [f"… {len(lines) - 30} lines …"] + lines[-5:]
    what = "has found errors" if status == FOUND else f"ended with status {status}"
    return "\n    ".join([what + ":"] + shown)
