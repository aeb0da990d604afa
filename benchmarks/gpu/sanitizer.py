"""A few kernels of each family under NVIDIA's compute-sanitizer, which sees every access and every barrier."""
import os
import shutil
import signal
import subprocess
import sys

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SECONDS = 120  # for one tool
CLEAN = "clean"
FOUND = 97     # exit status that says that the tool has found something
OPTION = "--sanitized"  # of the command: only what these tools are to see


def run(show):
    """Run every tool → {tool: CLEAN, or what is wrong}, or None where it is not installed. ``show`` gets lines."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        show("compute-sanitizer is not on the PATH (it comes with the CUDA toolkit): its checks are left out.")
        return None
    # The package by its name here: `benchmarks` in a checkout, `rnn_ops_benchmarks` installed.
    command = [sys.executable, "-m", __package__, OPTION]
    found = {}
    for tool in TOOLS:
        found[tool] = _run_tool([path, "--tool", tool, "--error-exitcode", str(FOUND), *command])
        show(f"{tool}: {found[tool]}")
    return found


def _run_tool(command):
    # A session of its own, so that what the tool has started ends with it.
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"did not end within {SECONDS} s"
    return verdict(process.returncode, output)


def verdict(status, output):
    """CLEAN, or the tool's own words: its first lines and its last."""
    if status == 0:
        return CLEAN
    lines = [line for line in output.splitlines() if line.strip()]
    shown = lines if len(lines) <= 30 else lines[:25] + [f"… {len(lines) - 30} lines …"] + lines[-5:]
    what = "has found errors" if status == FOUND else f"ended with status {status}"
    return "\n    ".join([what + ":"] + shown)
