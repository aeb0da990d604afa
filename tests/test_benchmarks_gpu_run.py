"""A run on a GPU from its start to its report: real processes, killed and crashing ones too; NumPy stands in for the GPU."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rnn_ops_benchmarks import contract, folder, gpu_parts, gpu_run, gpu_work, launches, microbench, rehearsal, report
from rnn_ops_benchmarks.folder import DONE, FAILED, LEFT_OUT, NO_TIME, PARTS, RESULTS, SHAPES
from rnn_ops_benchmarks.gpu_work import planned_items
from rnn_ops_benchmarks.problems import TUTORIAL

from rnn_ops.backends.cuda import compiler
from rnn_ops.backends.cuda.numpy_gpu import NumPyGpu
from rnn_ops.backends.cuda.selftest import sanitizer
from rnn_ops.folders import why_not_writable

HERE = os.path.dirname(os.path.abspath(__file__))
H100 = rehearsal.variants.known_device(90, 132)
EVERY = {part.name: part for part in gpu_parts.parts(90)}


@pytest.fixture(autouse=True)
def gpus(monkeypatch, tmp_path):
    """The processes find defective_gpus.py and, from another folder than the source's, the installed package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("DEFECTIVE_GPUS", str(tmp_path))


@pytest.fixture
def results(tmp_path):
    found = folder.Folder(str(tmp_path / "out"))
    found.make()
    return found


def do(results, gpu, names):
    """Some parts with a GPU of defective_gpus.py → (exit status, how each ended by name)."""
    status = gpu_run.Run(results, None, f"defective_gpus:{gpu}", "small").parts([EVERY[name] for name in names])
    return status, {name: results.read(PARTS, name) for name in names}


def until_it_hangs(process, results):
    """In the first check of the cluster family."""
    while not (results.read(RESULTS, "first-cluster") or {}).get("now"):
        assert process.poll() is None
        time.sleep(0.1)


def words(out, gpu="right"):
    return [sys.executable, "-m", "rnn_ops_benchmarks", "--device", "cuda", "--out", str(out), "--gpu", f"defective_gpus:{gpu}",
            "--sizes", "small"]


def run(out, *arguments, gpu="right", **kwargs):
    return subprocess.run([*words(out, gpu), *arguments], text=True, capture_output=True, **kwargs)


def rebuild(path):
    return subprocess.run([sys.executable, "-m", "rnn_ops_benchmarks", "--device", "cuda", "--report", str(path)], text=True,
                          capture_output=True)


# --- what fits

def test_the_parts_are_in_order_of_worth():
    names = list(EVERY)
    assert names[:8] == ["device", "compile", "first-resident", "first-cluster", "first-cluster-barrier", "first-grid",
                         "first-stepwise", "tutorial"]
    order = ["tutorial", "microbench", "quick", "training", "check", "grid", "repeats", "sanitizer"]
    assert [name for name in names if name in order] == order
    assert not [part.name for part in gpu_parts.parts(80) if "cluster" in part.name]
    assert all(0 < part.seconds <= part.limit for part in EVERY.values())
    assert sum(part.seconds for part in EVERY.values()) < 15 * 60


def test_what_fits_into_the_minutes_is_told_at_the_start():
    chosen = list(EVERY.values())
    lines = gpu_parts.table(chosen, 4.1, {"jax": "JAX is not installed"}, {"device"})
    text = dict(line.split(maxsplit=1) for line in lines[2:])
    assert "done before" in text["device"] and "LEFT OUT: JAX is not installed" in text["jax"]
    assert "LEFT OUT" not in text["tutorial"] and "LEFT OUT" not in text["microbench"]
    assert "LEFT OUT by estimate" in text["sanitizer"] and "LEFT OUT by estimate" in text["variants"]
    divided = [line for line in lines if "as far as it comes" in line]
    assert len(divided) == 1 and EVERY[divided[0].split()[0]].divisible
    assert "LEFT OUT" not in "".join(gpu_parts.table(chosen, None, {}, ()))
    assert all(len(line) < 125 for line in lines)


@pytest.mark.parametrize("left, seconds", [(None, 400), (1000, 400), (50, 50), (14, None)])
def test_a_divisible_part_takes_what_there_is(left, seconds):
    assert gpu_parts.allotted(EVERY["check"], left) == seconds


def test_a_part_in_one_piece_is_not_begun_without_its_estimate():
    assert gpu_parts.allotted(EVERY["tutorial"], EVERY["tutorial"].seconds - 1) is None


# --- a whole run

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small run of everything → (the folder's path, the process)."""
    home = tmp_path_factory.mktemp("whole")
    out = home / "out"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])))
        return out, run(out, cwd=home)


@pytest.mark.slow
def test_a_run_does_all_its_parts(whole):
    out, process = whole
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert list(result["parts"]) == list(EVERY)
    ended = {name: its["status"] for name, its in result["parts"].items()}
    assert {name for name, how in ended.items() if how != DONE} <= {"jax", "mxnet", "sanitizer"}
    assert result["complete"] and (result["format"], result["kind"]) == (report.FORMAT, report.GPU)
    assert result["gpu"]["name"].startswith("NumPy")
    assert {family for its in result["checks"].values() for family in its["families"]} == {
        "resident", "cluster", "grid", "stepwise"}
    assert {tuple(row["shape"]) for row in result["rows"]} == {(5, 3, 7, 12), (5, 2, 7, 20), (3, 2, 7, 40)}
    assert result["training"]["epochs"] == 3 and len(result["microbench"]["rows"]) == len(microbench.measurements(H100))
    assert len(result["occupancy"]["rows"]) == len(launches.kernels(planned_items(H100, gpu_parts.SIZES["small"])))
    text = (out / "report.md").read_text(encoding="utf-8")
    for title in ("**Checks**", "**Alone, in cycles**", "**At once**", "**Training**", "**Every variant"):
        assert title in text
    assert len(process.stdout) < 6000 and "first-cluster         done" in process.stdout
    for name in (SHAPES, PARTS, RESULTS):  # no half-written file is left
        assert all(file.endswith(".json") and file[0] != "." for file in os.listdir(out / name))


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_only_does_it_anew(whole):
    out, _ = whole

    def written():
        return [(out / RESULTS / "check.json").stat().st_mtime_ns, (out / SHAPES / "T5-B3-V7-H12.json").stat().st_mtime_ns]

    before = written()
    process = run(out)
    assert process.returncode == 0 and written() == before
    table = process.stdout.split("-" * 79, 1)[1].splitlines()[1:len(EVERY)]
    again = {line.split()[0] for line in table if "done before" not in line and "LEFT OUT" not in line}
    assert len(table) == len(EVERY) - 1 and again <= {"jax", "mxnet"}  # for CPUs: left out once they are imported
    process = run(out, "--only", "tutorial")
    assert process.returncode == 0 and "first" not in process.stdout and "tutorial              done" in process.stdout
    assert written()[0] == before[0] and written()[1] > before[1]


@pytest.mark.slow
def test_a_locale_of_ascii_ends_nothing(whole):
    out, _ = whole
    ascii_only = dict(os.environ, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    process = run(out, "--only", "tutorial", "first", env=ascii_only)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "first-cluster         done" in process.stdout and r" \xb5s a step (" in process.stdout


@pytest.mark.slow
def test_a_report_is_rebuilt_from_the_files(whole):
    out, _ = whole
    text = (out / "report.md").read_text(encoding="utf-8")
    for name in ("report.md", "result.json"):
        os.unlink(out / name)
    process = rebuild(out)
    assert process.returncode == 0 and "report.md" in process.stdout
    again = (out / "report.md").read_text(encoding="utf-8")
    assert again == text and (out / "result.json").exists()
    process = rebuild(out / "none")
    assert process.returncode == 2 and "has no results of a run" in process.stderr


def test_a_report_that_cannot_be_written_is_a_sentence(results):
    results.write(RESULTS, "device", {"gpu": NumPyGpu().describe()})
    os.mkdir(results.at("result.json"))
    process = rebuild(results.path)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith(f"rnn-ops: error: --report: cannot write {results.path}: Is a directory (")


@pytest.mark.slow
def test_results_of_another_gpu_do_not_belong_into_the_folder(whole):
    out, _ = whole
    device = (out / RESULTS / "device.json").read_bytes()
    process = run(out, gpu="two")
    assert process.returncode == 2 and "needs another folder" in process.stderr
    assert (out / RESULTS / "device.json").read_bytes() == device
    changed = json.loads(device)
    changed["kernels"] = "of another day"
    (out / RESULTS / "device.json").write_text(json.dumps(changed))
    process = run(out)
    assert process.returncode == 2 and "other kernels than these" in process.stderr
    (out / RESULTS / "device.json").write_bytes(device)


@pytest.mark.slow
def test_a_provider_of_ones_own_takes_part(tmp_path):
    """In a module that the working directory has; its name reaches the parts' processes."""
    (tmp_path / "mine.py").write_text("""
from rnn_ops_benchmarks.gpu_providers import GpuProvider

class Mine(GpuProvider):
    name, input = "mine", "tokens"

    def __init__(self, problem, count):
        self.truth = problem.truth("forward+backward")
        self.calls = {"forward": (None, lambda i: None)}

    def results(self):
        return self.truth
""")
    process = run(tmp_path / "out", "--only", "tutorial", "--provider", "mine:Mine")
    assert process.returncode == 0, process.stdout + process.stderr
    rows = folder.Folder(str(tmp_path / "out")).read(SHAPES, "T5-B3-V7-H12")["rows"]
    mine, = (row for row in rows if row["provider"] == "mine")
    assert mine["status"] == "ok" and mine["median"] > 0


# --- what goes wrong

@pytest.mark.slow
def test_what_is_wrong_is_in_the_status_and_in_few_lines(results):
    status, ended = do(results, "wrong", ["first-resident", "check"])
    assert status == 1 and ended["check"]["status"] == FAILED
    failed = results.read(RESULTS, "check")["failed"]
    assert any("ulp in tanh" in line for line in failed)
    lines = gpu_run.summary(EVERY["check"], ended["check"], dict(results.read(RESULTS, "check"), failed=["x" * 500] * 300))
    assert len(lines) == 2 + gpu_run._SHOWN and sum(map(len, lines)) < 2000 and "295 more" in lines[-1]


@pytest.mark.parametrize("gpu, why", [("crashing", "SIGSEGV"), ("lost", "a kernel hangs")])
@pytest.mark.slow
def test_a_family_that_takes_its_process_with_it_costs_itself(gpu, why, results):
    status, ended = do(results, gpu, ["first-resident", "first-cluster", "first-grid", "tutorial"])
    assert status == 1 and why in ended["first-cluster"]["reason"]
    assert {name: its["status"] for name, its in ended.items()} == {
        "first-resident": DONE, "first-cluster": FAILED, "first-grid": DONE, "tutorial": DONE}
    rows = results.read(SHAPES, "T5-B3-V7-H12")["rows"]
    assert {row["family"] for row in rows if row["provider"] == "ours"} == {"resident", "grid", "stepwise"}


def test_without_any_family_nothing_is_timed(results):
    its = gpu_run.Run(results, None, "defective_gpus:right", "small")
    its._without = list(rehearsal.variants.FAMILIES)
    assert its.parts([EVERY["tutorial"], EVERY["check"]]) == 0
    assert all(results.read(PARTS, name)["status"] == LEFT_OUT and "every family" in results.read(PARTS, name)["reason"]
               for name in ("tutorial", "check"))


@pytest.mark.slow
def test_a_hanging_process_is_killed_and_the_next_part_goes_on(results, monkeypatch):
    asked, wait = [], subprocess.Popen.wait

    def wait_once_it_hangs(process, timeout=None):
        if "first-cluster" in process.args and not asked:
            asked.append(timeout)
            until_it_hangs(process, results)  # how soon it does depends on the machine
            timeout = 1
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_once_it_hangs)
    status, ended = do(results, "hanging", ["first-cluster", "microbench"])
    assert status == 1 and ended["first-cluster"]["status"] == FAILED and ended["microbench"]["status"] == DONE
    assert asked == [EVERY["first-cluster"].limit + gpu_run._GRACE]
    assert ended["first-cluster"]["reason"] == f"did not end within {asked[0]} s and was killed"
    assert results.read(RESULTS, "first-cluster")["now"]


@pytest.mark.slow
def test_a_gpu_that_answers_no_more_ends_the_run(results, capsys):
    status, ended = do(results, "gone", ["first-resident", "first-cluster", "first-grid"])
    assert status == 1 and ended["first-resident"]["status"] == DONE and ended["first-grid"] is None
    assert "no longer answers, in a new process either" in capsys.readouterr().out


@pytest.mark.slow
def test_a_check_goes_on_behind_what_has_ended_its_process(results):
    """Tries of one call, then those of the next one: each task that ends the process is told once, all others are done."""
    status, first = do(results, "small_crash", ["check"])
    assert first["check"]["status"] == FAILED and "ended with status 77" in first["check"]["reason"]
    status, second = do(results, "small_crash", ["check"])
    found = results.read(RESULTS, "check")
    assert status == 1 and second["check"]["reason"] == ""
    assert len(found["done"]) == found["tasks"] == len(set(found["done"])) and found["now"] is None
    ended = [line for line in found["failed"] if "its process has ended" in line]
    assert len(ended) == len(found["failed"]) == 3 and all("relu" in line for line in ended)


@pytest.mark.slow
def test_where_everything_fails_the_words_are_few(tmp_path):
    process = run(tmp_path / "out", gpu="raising")
    assert process.returncode == 1 and len(process.stdout) < 10000, len(process.stdout)
    assert process.stdout.count("    FAILED  ") >= 10 and "more: results/check.json" in process.stdout


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNN_OPS_CACHE", str(tmp_path / "file" / "cache"))
    process = run(tmp_path / "out", "--only", "compile")
    assert process.returncode == 0, process.stdout
    assert f"RNN_OPS_CACHE: cannot write {tmp_path}/file/cache: Not a directory; " in process.stdout
    assert any(name.endswith(".cubin") for name in os.listdir(tmp_path / "out" / "cubins"))
    assert why_not_writable(str(tmp_path / "new")) is None


@pytest.mark.slow
def test_a_micro_benchmark_that_ends_its_process_costs_itself(results):
    status, ended = do(results, "microbench_crash", ["microbench"])
    assert status == 1 and ended["microbench"]["reason"] == ""
    found = results.read(RESULTS, "microbench")
    assert [row["kernel"] for row in found["rows"]] == [one.kernel for one in microbench.measurements(H100)]
    assert found["failed"] == ["shuffle: wrote no result", "exchange_2: gave up waiting for another block",
                               "barrier_4: its process has ended, or hung until it was"]


@pytest.mark.slow
def test_where_async_does_not_work_the_older_exchange_stands_in(results):
    names = ["first-cluster", "first-cluster-barrier", "tutorial"]
    status, ended = do(results, "async_crash", names)
    assert [ended[name]["status"] for name in names] == [FAILED, DONE, DONE]
    assert results.read(RESULTS, "first-cluster-barrier")["families"]["cluster"]["right"] > 0
    rows = [row for row in results.read(SHAPES, "T5-B3-V7-H12")["rows"] if row["provider"] == "ours"]
    assert {row["family"] for row in rows} == {"resident", "cluster", "grid", "stepwise"}
    assert all("cluster barriers" in row["variant"] for row in rows if row["family"] == "cluster")


def test_what_hangs_at_the_tutorials_shape_costs_no_other_part_its_tries(results):
    begun = {"number": 0, "rows": [{"status": "ok"}], "failed": ["one"], "tried": ["one"], "now": "another"}
    results.write(SHAPES, "T5-B3-V7-H12", begun)
    its = gpu_work.Work("quick", results, NumPyGpu(), "small", 60, rehearsal.variants.FAMILIES)
    assert gpu_work._quick(its) == gpu_work.FOUND and results.read(RESULTS, "quick")["failed"] == ["one"]
    assert results.read(SHAPES, "T5-B3-V7-H12") == begun and results.read(SHAPES, "T5-B2-V7-H20")["rows"]
    results.write(SHAPES, "T5-B3-V7-H12", dict(begun, rows=[]))  # not even the best: tried again
    gpu_work._quick(its)
    assert len(results.read(SHAPES, "T5-B3-V7-H12")["rows"]) > 1


@pytest.mark.slow
def test_training_takes_the_best_family_that_is_left(results):
    status, ended = do(results, "chosen_crash", ["first-resident", "training"])
    assert status == 1 and ended["first-resident"]["status"] == FAILED and ended["training"]["status"] == DONE
    assert not results.read(RESULTS, "training")["variant"].startswith("resident")


def test_the_sanitizer_leaves_out_what_has_ended_its_process(results, monkeypatch):
    asked = []
    monkeypatch.setattr(sanitizer, "find", lambda: "tool")
    monkeypatch.setattr(sanitizer, "_run_tool", lambda command, seconds: asked.append((command, seconds)) or sanitizer.CLEAN)
    without = ["cluster"]
    among = [family for family in rehearsal.variants.FAMILIES if family not in without]
    its = gpu_work.Work("sanitizer", results, NumPyGpu(), "small", 200, among, without)
    assert gpu_work._sanitizer(its) == gpu_work.DONE and len(asked) == 4
    assert all(command[-2:] == ["--without", "cluster"] for command, _ in asked)
    assert asked[0][1] <= 50  # its share: the part as a whole has an end


@pytest.mark.slow
def test_a_variant_that_ends_its_process_costs_itself_alone(results):
    status, ended = do(results, "grid_crash", ["tutorial"])
    assert status == 1 and ended["tutorial"]["status"] == FAILED and ended["tutorial"]["reason"] == ""
    found = results.read(SHAPES, "T5-B3-V7-H12")
    assert {row["family"] for row in found["rows"] if row["provider"] == "ours"} == {"resident", "cluster", "stepwise"}
    assert [row for row in found["rows"] if row["chosen"] and "median" in row] and "tried" not in found
    assert len(found["failed"]) == 1 and ", ours, grid: " in found["failed"][0] and "process has ended" in found["failed"][0]


def test_a_cell_that_has_no_memory_costs_itself(results):
    status, ended = do(results, "out_of_memory", ["quick"])
    assert status == 1 and ended["quick"]["status"] == FAILED
    assert results.read(SHAPES, "T5-B3-V7-H12")["rows"]
    assert results.read(SHAPES, "T5-B2-V7-H20") == {
        "number": 1, "rows": [], "failed": ["5×2×7×20: MemoryError: no memory for an array"]}
    assert results.read(RESULTS, "quick")["failed"] == ["5×2×7×20: MemoryError: no memory for an array"]


def test_a_part_whose_time_is_over_keeps_what_it_has(results):
    gpu = NumPyGpu()
    late = gpu_work.Work("check", results, gpu, "small", -1, rehearsal.variants.FAMILIES)
    assert gpu_work._check(late) == gpu_work.CUT and results.read(RESULTS, "check")["done"] == []
    assert gpu_work._check(gpu_work.Work("check", results, gpu, "small", 60, rehearsal.variants.FAMILIES)) == gpu_work.DONE
    late = gpu_work.Work("quick", results, gpu, "small", -1, rehearsal.variants.FAMILIES)
    assert gpu_work._quick(late) == gpu_work.CUT and results.names(SHAPES) == []


def test_no_time_is_no_failure(results):
    its = gpu_run.Run(results, 0.1, "defective_gpus:right", "small")
    assert its.parts([EVERY["tutorial"]]) == 0
    record = results.read(PARTS, "tutorial")
    assert record["status"] == NO_TIME and record["reason"].startswith("about 40 s, and ")
    results.write(RESULTS, "device", {"gpu": NumPyGpu().describe()})
    for name in EVERY:
        results.write(PARTS, name, dict(record, status=DONE))
    assert folder.assemble(results, list(EVERY))["complete"]
    results.write(PARTS, "tutorial", record)
    assert not folder.assemble(results, list(EVERY))["complete"]


def test_a_folder_of_version_0_1_is_complete_without_the_part_that_is_new(results):
    for name in set(EVERY) - {"mxnet"}:
        results.write(PARTS, name, {"status": DONE, "reason": "", "seconds": 1})
    complete = []
    for version in ("0.1.0", "0.2.0"):
        results.write(RESULTS, "device", {"gpu": NumPyGpu().describe(), "rnn_ops": version})
        complete.append(folder.assemble(results, list(EVERY))["complete"])
    assert complete == [True, False]
    results.write(RESULTS, "device", {"gpu": NumPyGpu().describe(), "rnn_ops": "0.1.0"})
    results.remove(PARTS, "variants")
    assert not folder.assemble(results, list(EVERY))["complete"]


@pytest.mark.parametrize("gpu, sentence", [
    ("no_gpu", "rnn-ops: error: there is no GPU: see that nvidia-smi lists one"),
    ("missing", "rnn-ops: error: ended with status 1: AttributeError: ")])
@pytest.mark.slow
def test_without_a_gpu_nothing_is_left_behind(gpu, sentence, tmp_path):
    process = run(tmp_path / "new", gpu=gpu)
    assert process.returncode == 2 and process.stderr.startswith(sentence) and process.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    process = run(tmp_path / "file" / "out")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith(f"rnn-ops: error: --out: cannot write {tmp_path}/file/out: Not a directory (")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured(start, number, tmp_path):
    out = tmp_path / "out"
    process = start(words(out, "hanging"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_it_hangs(process, folder.Folder(str(out)))
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == 130 and stderr == "rnn-ops: interrupted\n"
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["checks"]["first-resident"]["families"]["resident"]["right"] > 0 and not result["complete"]
    assert "**Incomplete.**" in (out / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_part_ends_with_its_parent(start, tmp_path):
    """Nothing is left on the GPU if the run is killed outright."""
    out = tmp_path / "out"
    process = start(words(out, "hanging"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until_it_hangs(process, folder.Folder(str(out)))

    def children():
        path = f"/proc/{process.pid}/task/{process.pid}/children"
        return open(path).read().split() if os.path.exists(path) else []

    started = children()
    assert started
    process.kill()
    process.wait()
    while any(_runs(child) for child in started):  # if it never ends, neither does the test
        time.sleep(0.1)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_two_gpus_and_an_older_one(tmp_path):
    process = run(tmp_path / "two", "--only", "microbench", gpu="two")
    assert process.returncode == 0 and "2 GPUs: the first one is used" in process.stdout
    process = run(tmp_path / "old", "--only", "microbench", "first", gpu="old")
    assert process.returncode == 0 and "cluster" not in process.stdout
    rows = folder.Folder(str(tmp_path / "old")).read(RESULTS, "microbench")["rows"]
    assert len(rows) == len(microbench.measurements(rehearsal.variants.known_device(80, 108)))


# --- the rehearsal and what it stands on

def test_launches_out_of_bounds_are_found():
    items = launches.record(H100, (3, 5, 7, 61))
    assert launches.faults(H100, items) == []
    item = items[0]
    for change, word in [
            (dict(block=2048), "threads a block"), (dict(shared=232449), "shared memory"), (dict(grid=(0, 1, 1)), "grid"),
            (dict(grid=(1, 70000, 1)), "grid"), (dict(cluster=3), "cluster"),
            (dict(cluster=2, grid=(3, 1, 1)), "cluster"),
            (dict(grid=(133, 1, 1), cooperative=True), "cooperative grid")]:
        found = launches.faults(H100, [item._replace(launch=item.launch._replace(**change))])
        assert len(found) == 1 and f": {word}: got " in found[0]
    assert launches.faults(H100, [item._replace(begins=[0, 4])])


def test_the_plan_names_every_kernel_that_a_run_launches():
    found = {kernel.family for kernel in launches.kernels(planned_items(H100, gpu_parts.SIZES["full"]))}
    assert found == {"resident", "cluster", "grid", "stepwise", "sums"}
    shape = TUTORIAL._replace(T=1024)
    assert (shape[:4], rehearsal.checks.FLOAT32, False) in {call[:3] for call in gpu_work.planned(H100, gpu_parts.SIZES["full"])}


def test_names_are_read_off_a_source():
    source = ("import cupy\nfrom cupy.cuda import runtime as r\nimport numpy as np\ncupy.a.b(r.c)\nnp.d\n"
              "def f():\n  r = 1\n  r.e\n")
    assert set(contract.names(source)) == {"cupy.a", "cupy.a.b", "cupy.cuda.runtime.c"}


def test_the_contract_with_cupy():
    pytest.importorskip("cupy")
    assert contract.faults() == []


def test_a_broken_contract_is_found(monkeypatch):
    pytest.importorskip("cupy")
    monkeypatch.setattr(contract, "_OBJECTS", {"cupy.ndarray": "data nothing"})
    monkeypatch.setattr(contract, "_FUNCTIONS", {"take": "somewhere"})
    monkeypatch.setattr(contract, "_ATTRIBUTES", ("ComputeCapabilityMajor",))
    monkeypatch.setattr(contract, "names", lambda source: ["cupy.cuda.runtime.noSuchThing", "cupy.empty"])
    found = " ".join(contract.faults())
    for word in ("ndarray.nothing", "got somewhere", "no ComputeCapabilityMajor", "noSuchThing"):
        assert word in found
    assert "cupy.empty:" not in found


@pytest.mark.parametrize("architecture", [75, 90])
@pytest.mark.slow
def test_the_microbenchmarks_compile(architecture):
    device = rehearsal.variants.known_device(architecture, rehearsal.MULTIPROCESSORS[architecture])
    try:
        code = microbench.compiled(architecture)
    except RuntimeError as error:
        pytest.skip(str(error))
    for one in microbench.measurements(device):
        resources = compiler.resources(code.log, one.kernel)
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, one
    assert "ROUNDS = 1024" in microbench.text() and microbench.ROUNDS == 1024


@pytest.mark.slow
def test_the_rehearsal(capsys, monkeypatch):
    """All of it but the compilation of every kernel, which the compile tests do."""
    monkeypatch.setattr(rehearsal, "_kernels", lambda device: "")
    monkeypatch.setattr(rehearsal, "_machine_code", lambda device: "")
    monkeypatch.setattr(rehearsal, "_no_mxnet", lambda: "")  # other tests have imported it
    assert rehearsal.main(90) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "All is as a run needs it." and len(lines) == 12


def test_a_rehearsal_that_finds_something_says_so(capsys, monkeypatch):
    for other in ("_contract", "_truths", "_tables", "_small_run"):
        monkeypatch.setattr(rehearsal, other, lambda: "")
    for other in ("_kernels", "_microbench", "_machine_code"):
        monkeypatch.setattr(rehearsal, other, lambda device: "")
    monkeypatch.setitem(sys.modules, "mxnet", None)
    monkeypatch.setitem(sys.modules, "rnn_ops_benchmarks.gpu_report", None)
    limits = launches.faults
    monkeypatch.setattr(launches, "faults", lambda device, items: limits(device._replace(shared_memory=1000), items))
    assert rehearsal.main(90) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert [line.split("  ")[0] for line in found] == ["imports", "plan: shapes, variants, launches", "no MXNet"]
    assert "rnn_ops_benchmarks.gpu_report" in found[0] and "needs at most 1000 bytes" in found[1]


def test_a_rehearsal_names_the_parts_of_its_small_run_that_fail_and_why(monkeypatch):
    """A reason that several parts give is said once."""
    def failing_run(command, **_):
        results = folder.Folder(command[command.index("--out") + 1])
        results.make()
        for part, status, reason in (("device", DONE, ""), ("compile", FAILED, "got NVRTC none"), ("quick", FAILED, ""),
                                     ("microbench", FAILED, "got NVRTC none"), ("jax", LEFT_OUT, "JAX is not installed")):
            results.write(PARTS, part, {"status": status, "reason": reason, "seconds": 1})
        results.write(RESULTS, "quick", {"failed": ["5×2×7×20: no memory", "another"]})
        return subprocess.CompletedProcess(command, 1, "quick   FAILED\n")

    monkeypatch.setattr(subprocess, "run", failing_run)
    with pytest.raises(ValueError) as raised:
        rehearsal._small_run()
    assert str(raised.value) == "parts compile, microbench, quick failed: got NVRTC none; 5×2×7×20: no memory"


def test_a_kernel_that_does_not_compile_is_a_finding(monkeypatch, results):
    broken = launches.kernels(launches.record(H100, (3, 5, 7, 61)))[0]._replace(macros=(("PASS", "nothing"),))
    monkeypatch.setattr(launches, "kernels", lambda items: [broken])
    assert gpu_work._compile(gpu_work.Work("compile", results, NumPyGpu(), "small", 60, ())) == gpu_work.FOUND
    assert "nothing" in results.read(RESULTS, "compile")["failed"][0]
