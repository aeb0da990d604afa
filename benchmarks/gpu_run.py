"""A run on a GPU, ``rnn-ops bench --device cuda``: the parts one after the other, each a process of its own with an end.

The parent never touches the GPU. A part that hangs, crashes or breaks the driver's context costs itself only: it is killed, its
reason is written down, and if the GPU still answers the next one begins. The lines printed fit a small screen; the output of the
parts is in the folder's logs.
"""
import contextlib
import datetime
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time

from rnn_ops.backends.cuda import compiler
from rnn_ops.backends.cuda.selftest import checks, sanitizer
from rnn_ops.folders import why_not_writable
from rnn_ops_timemachine import files, streams
from rnn_ops_timemachine.options import USAGE, CommandError

from . import gpu_parts as planning
from . import gpu_report, gpu_work, heatmap, report
from .folder import CUT, DONE, FAILED, LEFT_OUT, NO_TIME, PARTS, RESULTS, SHAPES, Folder, assemble, name_of
from .gpu_parts import COMPILE, DEVICE

_TRIES = 3       # of a part that crashes and can go on; each goes on behind the cause of the last crash
_GRACE = 20      # seconds from when a part should have come to its end to when it is killed
_REPORT = 5      # seconds that are kept for the report
_ALIVE = 60      # seconds within which the GPU must answer in a new process
_KILL = 20       # seconds that a killed process may take to go
_SHOWN = 5       # failures that are printed of the first part that has some, then one a part; all are in its results
GPU = f"{gpu_work.__name__}:gpu"  # makes the GPU in the processes of the parts


class Run:
    """A run into a folder.

    Parameters
    ----------
    folder : Folder
    minutes : float or None
        None: as long as it takes.
    gpu : str
        ``module:function`` that makes the GPU in each process.
    sizes : str
        A name in `gpu_parts.SIZES`.
    providers : list of str
        ``module:Class`` of further providers, see `gpu_providers.GpuProvider`.
    """

    def __init__(self, folder, minutes=None, gpu=GPU, sizes="full", providers=()):
        self.folder, self._gpu, self._sizes, self._providers = folder, gpu, sizes, providers
        self._end = None if minutes is None else time.monotonic() + 60 * minutes - _REPORT
        # Families whose first check did not come to an end. If that of "cluster" did not, its older exchange must first show
        # that it works.
        self._without = []

    def left(self):
        return None if self._end is None else self._end - time.monotonic()

    def device(self):
        """Look for a GPU → None, or a sentence that says why no GPU can be used."""
        part = planning.parts(90)[0]
        record = self._attempt(part, part.limit)
        if record["status"] == DONE:
            self.folder.write(PARTS, DEVICE, record)
            return None
        return record["reason"]

    def parts(self, chosen):
        """Do the parts → exit status: 0, or 1 if one has found something wrong or has not ended by itself."""
        status, shown = 0, _SHOWN
        for part in chosen:
            left = self.left()
            seconds = planning.allotted(part, left)
            if seconds is None:
                record = _record(NO_TIME, f"about {part.seconds} s, and {max(0, left):.0f} s were left")
            else:
                record = self._part(part, seconds)
            self.folder.write(PARTS, part.name, record)
            status |= record["status"] == FAILED
            found = self.folder.read(RESULTS, part.name)
            print("\n".join(summary(part, record, found, shown)), flush=True)
            if (found or {}).get("failed"):
                shown = 1
            if record.get("lost"):
                print("The GPU no longer answers, in a new process either: nothing after this was run.", flush=True)
                break
        return int(status)

    def _part(self, part, seconds):
        """A part; again if it crashes and can go on behind the cause."""
        for _ in range(_TRIES if part.divisible or part.resumes else 1):
            record = self._attempt(part, seconds)
            if "crash" not in record:
                if part.family in self._without:
                    self._without.remove(part.family)
                return record
            alive = self._attempt(planning.Part("alive", "", 0, _ALIVE), _ALIVE)
            if alive["status"] != DONE:
                return dict(record, lost=True)
            if part.family:
                self._without += [checks.BARRIER] * (part.family == "cluster") + [part.family]
            left = self.left()
            if left is not None and left < seconds:
                seconds = left
            if planning.allotted(part, seconds) is None:
                break
        return record

    def _attempt(self, part, seconds):
        """A process → the record of how it ended."""
        killed = seconds if self.left() is not None and self.left() < seconds + _GRACE else seconds + _GRACE
        soft = max(5, killed - _GRACE)
        command = [sys.executable, "-X", "faulthandler", "-m", __package__, "--device", "cuda", "--part", part.name, "--out",
                   self.folder.path, "--seconds", f"{soft:.0f}", "--gpu", self._gpu, "--sizes", self._sizes]
        command += [word for family in self._without for word in ("--without", family)]
        command += [word for provider in self._providers for word in ("--provider", provider)]
        began = time.monotonic()
        with open(self.folder.log(part.name), "a", encoding="utf-8") as log:
            begins = log.tell()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                       start_new_session=True, env=_environment(part.name))
            try:
                status = process.wait(killed)
            except BaseException as error:
                gone = _kill(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                reason = f"did not end within {killed:.0f} s and was killed" + ("" if gone else ", but is still there")
                return dict(_record(FAILED, reason, began), crash=True)
        return self._judge(part, status, began, begins)

    def _judge(self, part, status, began, begins):
        said = _last_line(self.folder.log(part.name), begins)
        if status == gpu_work.DONE:
            return _record(DONE, "", began)
        if status == gpu_work.FOUND:
            return _record(FAILED, "", began)
        if status == gpu_work.CUT:
            return _record(CUT, "the time was over", began)
        if status == gpu_work.LEFT_OUT:
            return _record(LEFT_OUT, said, began)
        if status == gpu_work.LOST:
            return dict(_record(FAILED, said, began), crash=True)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return dict(_record(FAILED, f"{how}: {said}" if said else how, began), crash=True)


def do_part(options):
    """Do one part, in the process that `Run` has started for it, and end the process."""
    status = gpu_work.main(options.part, Folder(options.out), options.gpu, options.sizes, options.seconds, options.without,
                           options.providers or ())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an error while libraries are unloaded is nobody's result


def main(path, minutes=None, only=None, gpu=GPU, sizes="full", providers=()):
    """A run from its start to its report → exit status. An OSError says why the folder cannot be written, a CommandError why the
    run cannot begin. ``only``: names of parts, which are done anew; the others as for `Run`."""
    signal.signal(signal.SIGTERM, _interrupted)
    folder = Folder(path)
    new = not os.path.exists(folder.path)
    folder.make()
    run = Run(folder, minutes, gpu, sizes, providers)
    before = folder.read(RESULTS, DEVICE)
    try:
        reason = run.device()
        if reason:
            if new:
                shutil.rmtree(folder.path)
            raise CommandError(USAGE, f"error: {reason}")
        device = folder.read(RESULTS, DEVICE)
        other = before and _other(before, device)
        if other:
            folder.write(RESULTS, DEVICE, before)
            raise CommandError(USAGE, f"error: --out: got {folder.path}, which has results of {other}, needs another folder")
        every = planning.parts(round(10 * device["gpu"]["compute_capability"]))
        chosen = choose(folder, every, only)
        status = _parts(run, folder, every, chosen, device, minutes)
    except KeyboardInterrupt:
        streams.complain("interrupted")
        status = 130
    write_report(folder)
    return status


def _parts(run, folder, every, chosen, device, minutes):
    done = {part.name for part in every if (folder.read(PARTS, part.name) or {}).get("status") == DONE}
    why_not = unavailable()
    print(gpu_report.facts(device))
    reason = why_not_writable(compiler.folder())
    if reason:  # every part would compile anew
        print(f"RNN_OPS_CACHE: cannot write {compiler.folder()}: {reason}; compiled kernels go to {folder.at('cubins')}")
        os.environ["RNN_OPS_CACHE"] = folder.at("cubins")
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: cuDNN is not timed beside ours.")
    print("\n".join(planning.table(chosen, minutes, why_not, done)), flush=True)
    for name, why in why_not.items():
        if name in [part.name for part in chosen]:
            folder.write(PARTS, name, _record(LEFT_OUT, why))
    return run.parts([part for part in chosen if part.name not in done and part.name not in why_not])


def choose(folder, every, only):
    """The parts that are to be done. The results of parts that ``only`` names are removed first, so that they are done anew."""
    if not only:
        return every[1:]
    chosen = [part for part in every[1:] if part.name.split("-")[0] in only or part.name == COMPILE]
    for part in chosen:
        folder.remove(PARTS, part.name)
        folder.remove(RESULTS, part.name)
    sizes = planning.SIZES
    for name in set(only) & {"tutorial", "quick", "grid"}:
        for size in sizes.values():
            for shape in [size.tutorial] if name == "tutorial" else getattr(size, name):
                folder.remove(SHAPES, name_of(shape))
    return chosen


def unavailable():
    """{part's name: why it cannot be done here}, as far as that is known without trying."""
    found = {}
    for part, module, name in (("jax", "jax", "JAX"), ("mxnet", "mxnet", "MXNet")):
        if importlib.util.find_spec(module) is None:
            found[part] = f"{name} is not installed"
    if sanitizer.find() is None:
        found["sanitizer"] = "compute-sanitizer is not on the PATH"
    if importlib.util.find_spec("rnn_ops_timemachine") is None:
        found["training"] = "rnn_ops_timemachine cannot be imported: in a clone, set PYTHONPATH=python"
    return found


def summary(part, record, found, most=_SHOWN):
    """The lines that are printed of a part that has ended, with so many failures at most."""
    head = f"{part.name:<22}{record['status']:<9}{record['seconds']:>6.0f} s  {record['reason'][:200]}".rstrip()
    facts = gpu_report.headline(part.name, found) if found else ""
    failed = (found or {}).get("failed", [])
    shown = [f"    FAILED  {line[:200]}" for line in failed[:most]]
    if len(failed) > most:
        shown.append(f"    ... and {len(failed) - most} more: {RESULTS}/{part.name}.json")
    return [f"{head}{'  ' if facts else ''}{facts[:300]}"] + shown


def rebuild(path):
    """``--report``: the report of a run that was made → 0; a CommandError if the folder has no results."""
    folder = Folder(path)
    if folder.read(RESULTS, DEVICE) is None:
        raise CommandError(USAGE, f"error: --report: {path} has no results of a run")
    write_report(folder)
    return 0


def write_report(folder):
    """Rebuild result.json, report.md and, if matplotlib is installed, chart.png from the folder's files."""
    device = folder.read(RESULTS, DEVICE)
    if device is None:
        return
    architecture = round(10 * device["gpu"]["compute_capability"])
    result = assemble(folder, [part.name for part in planning.parts(architecture)])
    report.write_json(result, folder.at("result.json"))
    with files.writing(folder.at("report.md")) as file:
        file.write(gpu_report.markdown(result).encode("utf-8", "backslashreplace"))
    written = ["result.json", "report.md"]
    if gpu_report.axes(result["rows"])[0]:
        try:
            heatmap.draw_gpu(result, folder.at("chart.png"))
            written.append("chart.png")
        except ImportError:
            print("There is no chart: it needs matplotlib, which is not installed.")
        except Exception as error:  # a picture is not worth a run
            print(f"There is no chart: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    print(f"Written: {folder.path}: {', '.join(written)}")


def _other(before, now):
    """Whether results are those of another GPU or of other kernels, as words; else None."""
    for what in ("name", "compute_capability"):
        if before["gpu"][what] != now["gpu"][what]:
            return f"{before['gpu']['name']}, where this is {now['gpu']['name']}"
    if before["rnn_ops"] != now["rnn_ops"] or before.get("kernels") != now.get("kernels"):
        return "other kernels than these"
    return None


def _environment(part):
    """For a part: CuPy's products in full precision, whatever the user has set, and a log in UTF-8, whatever the locale is.
    MXNet's cuDNN computes in full precision too."""
    return dict(os.environ, CUPY_TF32="0", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8",
                **({"NVIDIA_TF32_OVERRIDE": "0"} if part == "mxnet" else {}))


def _record(status, reason, began=None):
    return {"status": status, "reason": reason, "seconds": 0 if began is None else round(time.monotonic() - began, 1),
            "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def _kill(process):
    """Kill a process and all that it has started → whether it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_KILL)
    except subprocess.TimeoutExpired:
        return False
    return True


def _last_line(path, begins):
    """The last line in a log, from a place on, that says something."""
    try:
        with open(path, "rb") as file:
            file.seek(begins)
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return ""
    said = [line for line in lines if line and not line.startswith("[")]
    errors = [line for line in said if line.startswith("Fatal Python error")]
    return (errors or said or [""])[-1][:500]


def _interrupted(*_):
    raise KeyboardInterrupt
