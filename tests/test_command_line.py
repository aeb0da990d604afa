"""The command line on whatever it is run with: names, streams, encodings, settings, widths, hints.

Where the streams themselves matter a command is a process; elsewhere `main` is called, which imports MXNet once.
"""
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rnn_ops
from rnn_ops_cli.main import main
from rnn_ops_timemachine import checkpoint, data, hints, plot, progress, sampling, streams
from rnn_ops_timemachine.folder import PLOT
from rnn_ops_timemachine.parameters import initialise
from rnn_ops_timemachine.record import FILE as RECORD
from rnn_ops_timemachine.settings import METRICS, SAMPLES, Settings, State

pytestmark = pytest.mark.slow

BIN = os.path.dirname(sys.executable)
SCRIPT = os.path.join(BIN, "rnn-ops")
SMALL = ["--epochs", "1", "--hidden", "4", "--batch-size", "2", "--sequence-length", "7"]
SETTINGS = ("RNN_OPS_NUM_THREADS", "RNN_OPS_SIMD", "RNN_OPS_OPERATOR", "RNN_OPS_DATA", "RNN_OPS_CACHE", "OMP_NUM_THREADS",
            "PYTHONIOENCODING", "PYTHONPATH", "COLUMNS", "LC_ALL")


def environment(**settings):
    """This process's, without what changes a command, and with the script on the PATH."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return dict(kept, PATH=os.pathsep.join([BIN, kept.get("PATH", "")]), **settings)


def rnn_ops_(*words, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, program=(SCRIPT,), **settings):
    """(exit status, stdout, stderr) of a command; bytes."""
    ran = subprocess.run([*program, *words], cwd=str(cwd), stdout=stdout, stderr=stderr, env=environment(**settings),
                         timeout=200)
    return ran.returncode, ran.stdout, ran.stderr


def shell(line, cwd, **settings):
    """(exit status, output) of a command for bash; with stdout and stderr together, as text."""
    ran = subprocess.run(["bash", "-c", line], cwd=str(cwd), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env=environment(**settings), timeout=200)
    return ran.returncode, ran.stdout.decode(errors="surrogateescape")


def in_a_terminal(words, cwd, **settings):
    """(exit status, all that a terminal gets from a command)."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(words, cwd=str(cwd), stdin=terminal, stdout=terminal, stderr=terminal,
                               env=environment(**settings))
    os.close(terminal)
    shown = b""
    try:
        while True:
            part = os.read(controller, 65536)
            if not part:
                break
            shown += part
    except OSError:  # so Linux says that the other end is closed
        pass
    os.close(controller)
    return process.wait(), shown.decode().replace("\r\n", "\n")


def make_run(folder, symbols="abc \n", hidden=4):
    """The folder of a model that has learned nothing."""
    os.makedirs(str(folder), exist_ok=True)
    vocabulary = data.Vocabulary(symbols)
    settings = Settings(text="/a text", step="native", hidden=hidden)._asdict()
    state = State(epoch=0, moving_loss=None, sha256="0" * 64, written={METRICS: 0, SAMPLES: 0}, rnn_ops=rnn_ops.__version__)
    checkpoint.save(os.path.join(str(folder), checkpoint.FILE), checkpoint.Checkpoint(
        initialise(len(vocabulary), hidden, seed=1), vocabulary, dict(settings, **state._asdict())))
    return str(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text, text.txt, and a model, model."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "text.txt").write_text("to be or not to be, café, that is the question\n" * 10, encoding="utf-8")
    make_run(folder / "model", symbols="abcdefé \n")
    return folder


# --- names ----------------------------------------------------------------------------------------------------------

NAMES = [b"Ba$$in.txt", b"a$b$c.txt", b"plain_{x}^2.txt", rb"$\frac{1}.txt", b"back\\slash.txt", b"two\nlines.txt",
         b"\x1b]0;owned\x07\x1b[2J.txt", b"no utf-8 \xff\xfe.txt", "时间机器.txt".encode(), b"-dash '\".txt",
         b"$" * 100 + b".txt"]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """Run a command in tmp_path, in this process → (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def run_it(*words, **settings):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            status = main([os.fsdecode(word) for word in words])
        return (status, *capfd.readouterr())
    return run_it


def words_of(hint):
    """What a shell reads a printed command as, without what calls the program."""
    read = subprocess.run(["bash", "-c", f"printf '%s\\0' {hint.strip()}"], stdout=subprocess.PIPE, check=True).stdout
    return [os.fsdecode(word) for word in read.split(b"\0")][len(hints.program()):-1]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_run_takes_any_name(workplace, tmp_path, call, name):
    shutil.copy(str(workplace / "text.txt"), os.path.join(os.fsencode(str(tmp_path)), name))
    # The folder that the run chooses has the name too.
    status, stdout, stderr = call("train", "--text", os.path.join(b".", name), *SMALL)
    assert (status, stderr) == (0, "")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", stdout)
    folder, = (os.path.join("runs", folder) for folder in os.listdir("runs"))
    assert set(os.listdir(folder)) == {checkpoint.FILE, RECORD, METRICS, SAMPLES, PLOT}
    with open(os.path.join(folder, RECORD), encoding="utf-8") as file:
        record = json.load(file)
    assert os.fsencode(record["text"]["name"]) == os.path.join(os.fsencode(str(tmp_path)), name)
    # The last lines are a command that runs as it stands.
    hint = re.search(r"^.* sample (.|\n)*\Z", stdout, re.MULTILINE).group()
    status, sample, stderr = call(*words_of(hint), "--length", "5")
    assert (status, len(sample), stderr) == (0, len(record["prompts"][0]) + 6, "")
    # What a name breaks it would break again.
    status, stdout, stderr = call("train", "--resume", "--out", folder, "--epochs", "2")
    assert (status, stderr) == (0, "")


BOOKS = ["abcdefgh" * 3 + " --validation it's --x\n", "-x y\n", "--help --quiet\n", "a\0b", "\0ab", "\0" * 12 + "a",
         "\x1b\0- --\n"]


@pytest.mark.parametrize("book", BOOKS, ids=repr)
def test_the_command_at_a_runs_end_runs_whatever_the_prompt_is(tmp_path, call, book):
    with open("book.txt", "w", newline="") as file:
        file.write(book * 60)
    out = "-- --out of 'it"
    status, stdout, stderr = call("train", "--text", "book.txt", *SMALL, f"--out={out}", COLUMNS="20")
    assert (status, stderr) == (0, "")
    hint = re.search(r"^.* sample (.|\n)*\Z", stdout, re.MULTILINE).group()
    status, sample, stderr = call(*words_of(hint), "--length", "5")
    assert (status, stderr) == (0, "") and len(sample) > 6
    assert book[0] == "\0" or sample.startswith(book[:3].partition("\0")[0])


def test_without_a_prompt_for_a_shell_there_is_no_command(tmp_path, call):
    (tmp_path / "nul.txt").write_text("\0" * 100)
    status, stdout, stderr = call("train", "--text", "nul.txt", *SMALL, "--out", "run")
    assert (status, stderr) == (0, "") and " sample " not in stdout
    assert " ".join(stdout.split()).endswith("run holds model.npz, metrics.jsonl, samples.txt, loss.png and run.json")


@pytest.mark.parametrize("out", ["-run", "--resume", "a --out b"])
def test_the_command_after_a_signal_runs_whatever_the_folder_is(workplace, tmp_path, out):
    code = ("import os, signal, sys; from rnn_ops_cli import main as cli; from rnn_ops_timemachine import progress\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a script's background job ignores
            "progress._line = lambda *_: os.kill(os.getpid(), signal.SIGINT) or 'an epoch'\n"
            f"sys.exit(cli.main(['train', '--text', {str(workplace / 'text.txt')!r}, *{SMALL}, '--epochs', '9', '--out={out}']))")
    status, _, stderr = rnn_ops_("-c", code, cwd=tmp_path, program=(sys.executable,))
    assert status == 130, stderr
    hint = re.search("to go on: (.*)$", stderr.decode()).group(1)
    status, shown = shell(f"{hint} --epochs 2 --quiet", tmp_path)
    assert (status, shown) == (0, f"{out}\n")


def test_a_plot_that_fails_does_not_end_a_run(workplace, tmp_path, call):
    """Whatever it is: here matplotlib itself cannot be imported."""
    status, stdout, stderr = rnn_ops_("train", "--text", str(workplace / "text.txt"), *SMALL, "--out", "run", cwd=tmp_path,
                                      MPLBACKEND="no such backend")
    assert status == 0 and len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith(b"rnn-ops: loss.png could not be drawn: ValueError: ") and b"no such backend" in stderr
    assert len(stderr) < 160
    assert set(os.listdir(str(tmp_path / "run"))) == {checkpoint.FILE, RECORD, METRICS, SAMPLES}
    status, _, stderr = call("train", "--resume", "--out", "run", "--epochs", "2")
    assert (status, stderr) == (0, "") and os.path.exists(str(tmp_path / "run" / PLOT))


def test_what_is_drawn_is_drawn_as_it_is(tmp_path):
    pytest.importorskip("matplotlib")
    import matplotlib
    from matplotlib.text import Text
    metrics = [dict(epoch=1, loss=2.0, moving_loss=2.1, perplexity=7.4)]
    pictures = []
    for title in ("a$b$c", "abc", "$\udcff\x1b\n" * 3):
        with open(str(tmp_path / "plot.png"), "w+b") as file:
            plot.draw(file, metrics, title)
            pictures.append(file.seek(0) or file.read())
    assert len(set(pictures)) == 3
    with matplotlib.rc_context({"text.usetex": True}), plot.plain_text():
        text = Text(text=r"$\frac$")
        assert not text.get_usetex() and text._preprocess_math(text.get_text()) == (r"$\frac$", False)


# --- streams --------------------------------------------------------------------------------------------------------

COMMANDS = {"--version": ["--version"], "train --help": ["train", "--help"], "info": ["info", "--json"],
            "sample": ["sample", "--checkpoint", "model", "--prompt", "abc", "--length", "99"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line(workplace, command):
    with open("/dev/full", "wb") as full:
        status, _, stderr = rnn_ops_(*COMMANDS[command], cwd=workplace, stdout=full)
    assert (status, stderr) == (1, b"rnn-ops: error: stdout: No space left on device\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout_is_one_line(workplace, command):
    status, shown = shell(f"rnn-ops {shlex.join(COMMANDS[command])} >&-", workplace)
    assert (status, shown) == (1, "rnn-ops: error: stdout: Bad file descriptor\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_that_nobody_reads_is_no_line(workplace, command):
    reading, writing = os.pipe()
    os.close(reading)
    status, _, stderr = rnn_ops_(*COMMANDS[command], cwd=workplace, stdout=writing)
    os.close(writing)
    assert (status, stderr) == (141, b"")


def test_a_reader_that_has_enough_ends_a_sample(workplace):
    line = "rnn-ops sample --checkpoint model --prompt abc --length 1000000000000"
    assert shell(f"{line} | head -c 5000 | wc -c; echo ${{PIPESTATUS[0]}}", workplace) == (0, "5000\n141\n")


def test_a_reader_that_has_enough_ends_a_check(tmp_path):
    assert shell("rnn-ops check --json check.json | head -n 1; echo ${PIPESTATUS[0]}", tmp_path)[1].endswith("\n141\n")
    assert os.listdir(str(tmp_path)) == []


def test_what_was_measured_is_written_before_it_is_printed(tmp_path):
    measured = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "benchmarks", "results", "cpu.json")
    status, shown = shell(f"rnn-ops bench --from {shlex.quote(measured)} --json out.json >/dev/full", tmp_path)
    assert (status, shown) == (1, "rnn-ops: error: stdout: No space left on device\n")
    with open(measured, encoding="utf-8") as file, open(str(tmp_path / "out.json"), encoding="utf-8") as written:
        assert json.load(file) == json.load(written)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words, status", [("fly", 2), ("sample --checkpoint nowhere --prompt a", 2), ("--version", 0)])
def test_without_stderr_the_status_is_the_same(workplace, redirection, words, status):
    if ">&- " in f" {redirection}" and status == 0 and redirection != "2>&-":
        status = 1  # that of a closed stdout
    assert shell(f"rnn-ops {words} {redirection} | cat; exit ${{PIPESTATUS[0]}}", workplace)[0] == status


@pytest.mark.parametrize("redirection, status, said", [
    (">/dev/full", 1, "stdout: No space left on device: the training goes on\n"),
    (">&-", 1, "stdout: Bad file descriptor: the training goes on\n"),
    ("> >(true)", 141, "stdout: Broken pipe: the training goes on\n"),
    (">/dev/full 2>/dev/full", 1, ""),
])
def test_without_a_stdout_training_goes_on(workplace, tmp_path, redirection, status, said):
    words = ["train", "--text", str(workplace / "text.txt"), *SMALL, "--epochs", "3", "--out", "run"]
    line = f"sleep 0.2; exec rnn-ops {shlex.join(words)}"
    found, shown = shell(f"({line}) {redirection}", tmp_path)
    assert (found, shown) == (status, f"rnn-ops: {said}" if said else "")
    assert checkpoint.load(str(tmp_path / "run")).settings["epoch"] == 3
    assert sorted(os.listdir(str(tmp_path / "run"))) == sorted(
        [checkpoint.FILE, RECORD, METRICS, SAMPLES, PLOT])


def test_what_is_closed_is_not_what_files_are_opened_as(workplace, tmp_path):
    """A file that got the number of stdout would get what is printed as well."""
    status, _ = shell(f"rnn-ops train --text {shlex.quote(str(workplace / 'text.txt'))} {' '.join(SMALL)} --out run "
                      "<&- >&- 2>&-", tmp_path)
    assert status == 1 and checkpoint.load(str(tmp_path / "run")).settings["epoch"] == 1
    with open(str(tmp_path / "run" / METRICS)) as file:
        assert [json.loads(line)["epoch"] for line in file] == [1]


@pytest.mark.parametrize("settings", [dict(PYTHONIOENCODING="ascii"), dict(PYTHONIOENCODING="latin-1:strict"),
                                      dict(LC_ALL="C"), dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")], ids=str)
def test_other_encodings_lose_no_character(workplace, tmp_path, settings):
    if settings.get("PYTHONIOENCODING") == "ascii":
        name = str(tmp_path / "d\xe9j\xe0 \u65f6.txt").encode()
        shutil.copy(str(workplace / "text.txt"), name)
        status, stdout, stderr = rnn_ops_("train", "--text", name, *SMALL, "--out", "run", cwd=tmp_path, **settings)
        assert (status, stderr) == (0, b"") and rb"d\xe9j\xe0 \u65f6.txt" in stdout
    vocabulary = make_run(tmp_path / "model", symbols="\xe9\u65f6")
    prompt = "\xe9\u65f6"
    status, stdout, stderr = rnn_ops_("sample", "--checkpoint", vocabulary, "--prompt", prompt.encode(), "--length", "40",
                                      cwd=tmp_path, **settings)
    if settings.get("PYTHONUTF8"):  # the prompt's bytes are no characters there
        assert status == 2 and stderr.startswith(b"rnn-ops: error: prompt: got ") and stderr.count(b"\n") == 1
        return
    assert (status, stderr) == (0, b"")
    encoding = settings.get("PYTHONIOENCODING", "utf-8").split(":")[0]
    arguments = checkpoint.load(vocabulary)
    expected = prompt + sampling.sample(arguments.parameters, arguments.vocabulary, prompt, 40, 0.5, 0)
    assert stdout == expected.encode(encoding, "backslashreplace") + b"\n" and len(set(expected)) == 2


@pytest.mark.parametrize("settings", [{}, dict(PYTHONUNBUFFERED="1")], ids=str)
def test_a_line_is_one_write(tmp_path, settings):
    """Else lines of the processes of a job mix. In this kind of pipe every write can be read by itself."""
    reading, writing = os.pipe2(os.O_DIRECT)
    rnn_ops_("fly", cwd=tmp_path, stderr=writing, **settings)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        line = pipe.read(4096)
        assert line.startswith(b"rnn-ops: error: ") and line.endswith(b"\n") and pipe.read(4096) == b""


def test_the_streams_are_given_back():
    """What calls `main` goes on with its own."""
    code = ("import io, sys; from rnn_ops_cli.main import main; before = sys.stdout, sys.stderr\n"
            "statuses = [main(['--version']), main(['fly'])]\n"
            "assert (sys.stdout, sys.stderr) == before; print(statuses); print('after', file=sys.stderr)\n"
            "sys.stdout = io.StringIO(); main(['--version']); sys.__stdout__.write(repr(sys.stdout.getvalue()))")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment())
    version = f"rnn-ops {rnn_ops.__version__}\n"
    assert ran.returncode == 0 and ran.stdout.decode() == f"{version}[0, 2]\n{version!r}"
    assert ran.stderr.startswith(b"rnn-ops: error: ") and ran.stderr.endswith(b"\nafter\n")


# --- terminals ------------------------------------------------------------------------------------------------------

EVIL = "a\x1b[31mb\x07\x9b2J\r\x7f\tc\nd"


def test_what_a_model_says_is_harmless_to_a_terminal_and_itself_elsewhere(tmp_path):
    folder = make_run(tmp_path / "model", symbols=EVIL)
    words = ["sample", "--checkpoint", folder, "--prompt", EVIL, "--length", "200", "--temperature", "9"]
    status, piped, _ = rnn_ops_(*words, cwd=tmp_path)
    assert status == 0 and {"\x1b", "\x07", "\x9b", "\r", "\x7f"} <= set(piped.decode()[len(EVIL):])
    status, shown = in_a_terminal([SCRIPT, *words], tmp_path)
    assert status == 0 and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert shown.startswith("a\\x1b[31mb\\x07\\x9b2J\\r\\x7f\tc\nd")
    assert shown == streams.harmless(piped.decode())


def test_no_name_writes_to_the_terminal_but_its_letters(workplace, tmp_path, call):
    name = "x\x1b]0;owned\x07\x9b2J"
    for words in (["sample", "--checkpoint", name, "--prompt", "a"], ["train", "--text", name],
                  ["train", "--resume", "--out", name],
                  ["train", "--text", str(workplace / "text.txt"), *SMALL, "--out", f"/dev/null/{name}"], [name], ["info", name],
                  ["check", "--json", f"{name}/x"], ["bench", "--from", name]):
        status, stdout, stderr = call(*words)
        assert (status, stdout) == (2, "") and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", stderr), words
        assert "\\x1b]0;owned\\x07\\x9b2J" in stderr and stderr.count("\n") == 1, stderr
    status, shown = in_a_terminal([SCRIPT, "info"], tmp_path, RNN_OPS_CACHE=f"/tmp/{name}")
    assert status == 0 and "\\x1b]0;owned\\x07\\x9b2J" in shown and "\x1b" not in shown


# --- samples --------------------------------------------------------------------------------------------------------

def test_a_long_sample_begins_at_once_and_ends_when_told(workplace):
    for told, status in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        process = subprocess.Popen([SCRIPT, "sample", "--checkpoint", "model", "--prompt", "abc", "--length", str(10 ** 30)],
                                   cwd=str(workplace), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        shown = process.stdout.read(1000)
        with open(f"/proc/{process.pid}/status") as file:
            memory = int(re.search(r"VmHWM:\s+(\d+) kB", file.read()).group(1))
        process.send_signal(told)
        rest, stderr = process.communicate(timeout=60)
        assert shown.startswith(b"abc") and memory < 1e6
        assert (process.returncode, stderr) == (status, b"" if status < 0 else b"rnn-ops: interrupted\n")


def test_a_stream_is_the_sample_in_pieces(workplace):
    saved = checkpoint.load(str(workplace / "model"))
    for length in (1, 63, 64, 65, 200):
        arguments = (saved.parameters, saved.vocabulary, "abc", length, 1.0, 7)
        pieces = list(sampling.stream(*arguments))
        assert "".join(pieces) == sampling.sample(*arguments) and len("".join(pieces)) == length
    # The numbers are drawn in pieces too, and are those of one draw.
    pieces, random = [], np.random.default_rng(3)
    for size in (64, 64, 1):
        pieces.append(random.random(size))
    np.testing.assert_array_equal(np.concatenate(pieces), np.random.default_rng(3).random(129))


def test_what_the_model_does_not_know_is_listed_in_a_line(tmp_path, call):
    known = "".join(map(chr, range(0x4e00, 0x4e00 + 9000)))
    folder = make_run(tmp_path / "model", symbols=known, hidden=1)
    words = ["sample", "--checkpoint", folder, "--length", "5", "--prompt"]
    assert call(*words, "\u4e00Zeb\x1br\u4e01a") == (
        2, "", "rnn-ops: error: prompt: got '\\x1b', 'Z', 'a', 'b', 'e', 'r', not among the 9,000 symbols that the model knows; "
        "--ignore-unknown leaves such characters out\n")
    status, _, stderr = call(*words, "".join(map(chr, range(200, 20000))))
    assert status == 2 and len(stderr) < 250 and " and 19,758 more, not among" in stderr

    status, stdout, stderr = call(*words, "\u4e00Zeb\x1br\u4e01a", "--ignore-unknown")
    assert status == 0 and stderr == (
        "rnn-ops: prompt: leaves out '\\x1b', 'Z', 'a', 'b', 'e', 'r', which the model does not know\n")
    assert (0, stdout, "") == call(*words, "\u4e00\u4e01") and len(stdout) == 2 + 5 + 1
    assert call(*words, "\u4e00", "--ignore-unknown")[2] == ""
    status, _, stderr = call(*words, "Zebra", "--ignore-unknown")
    assert status == 2 and "prompt: got an empty text" in stderr


# --- settings -------------------------------------------------------------------------------------------------------

WRONG = [(dict(RNN_OPS_NUM_THREADS="0"), "RNN_OPS_NUM_THREADS: got '0', needs a number of threads, 1 or more, at most 65,536"),
         (dict(RNN_OPS_NUM_THREADS="65537"),
          "RNN_OPS_NUM_THREADS: got '65537', needs a number of threads, 1 or more, at most 65,536"),
         (dict(RNN_OPS_NUM_THREADS="x"), "RNN_OPS_NUM_THREADS: got 'x', needs a number of threads, 1 or more"),
         (dict(RNN_OPS_SIMD="neon"), "RNN_OPS_SIMD: got 'neon', needs one of "),
         (dict(RNN_OPS_OPERATOR="fast"), "RNN_OPS_OPERATOR: got 'fast', needs 'custom' or 'native'"),
         (dict(OMP_NUM_THREADS="2,2"), "OMP_NUM_THREADS: got '2,2', needs one whole number"),
         (dict(OMP_NUM_THREADS="99999999999"), "OMP_NUM_THREADS: got '99999999999', needs one whole number"),
         (dict(MXNET_ENGINE_TYPE="foo"), "MXNET_ENGINE_TYPE: got 'foo', needs one of NaiveEngine, ThreadedEngine, Thr"),
         (dict(MXNET_ENGINE_TYPE=""), "MXNET_ENGINE_TYPE: got '', needs one of "),
         (dict(MXNET_CPU_WORKER_NTHREADS="x"), "MXNET_CPU_WORKER_NTHREADS: got 'x', needs a number from 1 to 1024"),
         (dict(MXNET_CPU_WORKER_NTHREADS="0"), "MXNET_CPU_WORKER_NTHREADS: got '0', needs a number from 1 to 1024")]


@pytest.mark.parametrize("settings, reason", WRONG, ids=str)
def test_a_setting_that_is_none_is_one_line(workplace, tmp_path, call, settings, reason):
    train = ["train", "--text", str(workplace / "text.txt"), *SMALL, "--out", "run"]
    for words in train, ["check"], ["bench", "--quick"], ["bench", "--profile"]:
        status, stdout, stderr = call(*words, **settings)
        assert (status, stdout) == (2, "") and stderr.startswith(f"rnn-ops: error: {reason}"), words
        assert stderr.count("\n") == 1 and os.listdir(str(tmp_path)) == []
    status, stdout, stderr = call("info", COLUMNS="1000", **settings)
    assert (status, stderr) == (1, "") and [line.split("  ")[0] for line in stdout.splitlines()] == [
        line.split("  ")[0] for line in call("info", COLUMNS="1000")[1].splitlines()]
    assert reason in stdout or not reason.startswith("RNN_OPS")  # MXNet is here already, and MXNet's line says that
    status, stdout, stderr = call("info", "--json", **settings)
    found = json.loads(stdout)
    assert (status, stderr, len(found["wrong"])) == (1, "", 1) and found["wrong"][0].startswith(reason)


def test_several_are_all_named_by_info(call):
    status, stdout, _ = call("info", "--json", RNN_OPS_NUM_THREADS="x", RNN_OPS_SIMD="y", RNN_OPS_OPERATOR="z",
                             RNN_OPS_DATA="/nowhere", OMP_NUM_THREADS="1")
    assert status == 1 and [reason.split(":")[0] for reason in json.loads(stdout)["wrong"]] == [
        "RNN_OPS_NUM_THREADS", "RNN_OPS_SIMD", "RNN_OPS_OPERATOR", "RNN_OPS_DATA"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, call):
    (tmp_path / "file").write_text("mine")
    for cache, why in (("/proc/x", ""), (str(tmp_path / "file"), "Not a directory"),
                       (str(tmp_path / "file" / "cache"), "Not a directory")):
        said = f"RNN_OPS_CACHE: got {cache!r}, needs a folder that can be written to: {why}"
        status, stdout, stderr = call("info", COLUMNS="1000", RNN_OPS_CACHE=cache)
        assert (status, stderr) == (1, "") and said in stdout and "; machine code is not kept\n" in stdout
        wrong, = json.loads(call("info", "--json", RNN_OPS_CACHE=cache)[1])["wrong"]
        assert wrong.startswith(said)
    for cache in ("", str(tmp_path), str(tmp_path / "new" / "cache")):
        status, stdout, _ = call("info", COLUMNS="1000", RNN_OPS_CACHE=cache)
        assert status == 0 and "RNN_OPS_CACHE: " not in stdout
        assert f"; machine code is kept in {cache}" in stdout
    assert os.listdir(str(tmp_path)) == ["file"]


def test_importing_mxnet_says_what_it_would_end_the_process_for():
    for name, value, status in (
            ("OMP_NUM_THREADS", "2,2", 1), ("OMP_NUM_THREADS", "x", 1), ("OMP_NUM_THREADS", "", 0), ("OMP_NUM_THREADS", " 3", 0),
            ("MXNET_ENGINE_TYPE", "foo", 1), ("MXNET_ENGINE_TYPE", "NaiveEngine", 0), ("MXNET_CPU_WORKER_NTHREADS", "", 0),
            ("MXNET_CPU_WORKER_NTHREADS", "2", 0)):
        ran = subprocess.run([sys.executable, "-c", "import rnn_ops, mxnet"], capture_output=True,
                             env=environment(**{name: value}), cwd=os.path.dirname(os.path.abspath(__file__)))
        assert ran.returncode == status, (name, value, ran.stderr)
        assert not status or f"ImportError: {name}: got {value!r}" in ran.stderr.decode()


@pytest.mark.parametrize("settings, words, said", [
    (dict(TQDM_MININTERVAL="abc"), ["train", "--out", "run"], b"an import failed: ValueError: could not convert string"),
    *((dict(PYTHONWARNINGS="error"), words, b"MXNet is installed but cannot be imported: ") for words in (
        ["train", "--out", "run"], ["check"], ["bench", "--profile"]))],
    ids=str)
def test_an_import_that_fails_is_one_line(tmp_path, settings, words, said):
    status, stdout, stderr = rnn_ops_(*words, cwd=tmp_path, **settings)
    assert (status, stdout, stderr.count(b"\n")) == (1, b"", 1) and stderr.startswith(b"rnn-ops: error: " + said), stderr
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("words, option, got", [
    (["info", "--hidden", "\u00b2"], "--hidden", "'\u00b2', needs a whole number, 1 or more"),
    (["info", "--batch-size", "0"], "--batch-size", "'0', needs a whole number, 1 or more"),
    (["bench", "--rounds", "1e3"], "--rounds", "'1e3', needs a whole number, 1 or more"),
    (["bench", "--from", ""], "--from", "'', needs a name"), (["check", "--json", ""], "--json", "'', needs a name"),
    (["sample", "--prompt", "a", "--checkpoint", ""], "--checkpoint", "'', needs a name")])
def test_what_an_option_needs_is_said(call, words, option, got):
    status, stdout, stderr = call(*words)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"rnn-ops: error: argument {option}: got {got}")


@pytest.mark.parametrize("shape", ["99999999999x1x1x1", "1x1x99999999999999999x99999999999", "1x1x2x99999999999999999999:dense"])
def test_a_shape_that_no_machine_can_hold_is_one_line(call, shape):
    status, stdout, stderr = call("bench", "--shape", shape)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith("rnn-ops: error: --shape: ") and ": too large for this machine (" in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_workers_of_a_bench_that_is_ended_say_nothing(tmp_path, start, number):
    process = start([SCRIPT, "bench", "--quick", "--rounds", "100000"], cwd=str(tmp_path), stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=environment())
    for line in process.stderr:
        if line.startswith(b"measuring"):
            break
    time.sleep(1)  # into the rounds, where an answer is under way
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)  # the workers have the pipe too: this is when all of them are gone
    assert (process.returncode, stderr) == (-number, b"")


def test_info_as_json(call):
    status, stdout, _ = call("info", "--json")
    found = json.loads(stdout)
    assert status == 0 and found["wrong"] == [] and found["rnn_ops"] == rnn_ops.__version__ and found["MXNet"]
    shown = call("info", COLUMNS="10000")[1]
    assert [line.split("  ", 1)[0] for line in shown.splitlines()] == [name for name in found if name != "wrong"]


@pytest.mark.parametrize("words, command, said", [
    (["train", "--no-such-option"], "train", "unrecognized arguments: --no-such-option"),
    (["sample", "--checkpoint", "a", "--prompt", "b", "c"], "sample", "unrecognized arguments: c"),
    (["info", "--shape", "1"], "info", "unrecognized arguments: --shape 1"),
    (["check", "x"], "check", "unrecognized arguments: x"),
    (["bench", "--no-such-option"], "bench", "unrecognized arguments: --no-such-option"),
    (["train", "--device", "cuda"], "train", "--device: not an option of train, which takes --step cuda to train on a GPU"),
    (["train", "--device=cpu"], "train", "--device: not an option of train, which takes --step cuda to train on a GPU")])
def test_an_unknown_option_points_to_the_help_of_its_command(call, words, command, said):
    status, stdout, stderr = call(*words)
    assert (status, stdout) == (2, "")
    assert stderr == f"rnn-ops: error: {said} ({hints.command(command)} --help says more)\n"


# --- what is printed ------------------------------------------------------------------------------------------------

def test_version_by_every_door(tmp_path):
    assert rnn_ops_("--version", cwd=tmp_path) == (0, f"rnn-ops {rnn_ops.__version__}\n".encode(), b"")
    python = (sys.executable, "-m", "rnn_ops")
    assert rnn_ops_("--version", cwd=tmp_path, program=python)[:2] == (0, f"rnn-ops {rnn_ops.__version__}\n".encode())
    status, _, stderr = rnn_ops_("fly", cwd=tmp_path, program=python)
    assert status == 2 and stderr.endswith(f"({sys.executable} -m rnn_ops --help says more)\n".encode())


def test_quiet_is_the_folder_alone(workplace, tmp_path, call):
    words = ["train", "--text", str(workplace / "text.txt"), *SMALL, "--quiet"]
    status, stdout, stderr = call(*words)
    assert (status, stderr) == (0, "") and re.fullmatch(r"runs/text-\d{8}-\d{6}\n", stdout)
    assert os.path.exists(os.path.join(stdout.strip(), PLOT))
    status, shown = in_a_terminal([SCRIPT, *words, "--out", "run"], tmp_path)
    assert (status, shown) == (0, "run\n")
    status, stdout, stderr = call(*words, "--out", "run")
    assert (status, stdout) == (2, "") and "already holds a run" in stderr


CALLS = [(["rnn-ops"], {}, "rnn-ops "), ([SCRIPT], {}, "rnn-ops "), (["./rnn-ops"], dict(cwd=BIN), "rnn-ops "),
         (["bin/rnn-ops"], dict(PATH=""), "bin/rnn-ops "),
         (["an environment/bin/rnn-ops"], dict(PATH=""), "'an environment/bin/rnn-ops' "),
         (["an environment/bin/python", "-m", "rnn_ops"], dict(PATH=""), "'an environment/bin/python' -m rnn_ops "),
         ([sys.executable, "-c", "import sys; from rnn_ops_cli.main import main; sys.exit(main())"], dict(PATH=""),
          f"{shlex.quote(sys.executable)} -m rnn_ops ")]


@pytest.mark.parametrize("program, settings, begins", CALLS)
def test_hints_run_as_they_are_printed(tmp_path, program, settings, begins):
    """By name where the shell finds it, by path where not, by a Python that may have a space in its path."""
    if sys.version_info < (3, 10) and program[0] == "an environment/bin/python":
        begins = f"{shlex.quote(sys.executable)} -m rnn_ops "  # which does not know how it was called
    (tmp_path / "bin").symlink_to(BIN)
    (tmp_path / "an environment").symlink_to(os.path.dirname(BIN))
    where = dict(cwd=settings.get("cwd", str(tmp_path)), env=environment(),
                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if "PATH" in settings:
        where["env"]["PATH"] = "/usr/bin:/bin"
    said = subprocess.run([*program, "sample"], **where).stdout
    hint, = re.findall(r"\((.* --help) says more\)$", said.strip())
    assert hint == f"{begins}sample --help"
    assert subprocess.run(["bash", "-c", hint], **where).stdout.startswith("usage: ")


@pytest.mark.parametrize("word", ["plain", "two words", "$HOME", "it's", "a\nb", "\x1b[2J\x07", "\udcff\\", "é时",
                                  "'\x01\\x41", ""])
def test_quoted_words_are_what_the_shell_reads(word, monkeypatch):
    for encoding in "utf-8", "ascii":
        class Stream:
            pass
        Stream.encoding = encoding
        monkeypatch.setattr(sys, "stdout", Stream)
        quoted = hints.quote(word)
        monkeypatch.undo()
        assert quoted.isprintable() and quoted.encode(encoding)
        echoed = subprocess.run(["bash", "-c", f"printf %s {quoted}"], stdout=subprocess.PIPE).stdout
        assert echoed == os.fsencode(word)


def test_a_hint_that_is_wide_goes_on_in_the_next_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    monkeypatch.setenv("PATH", BIN)
    words = ["sample", "--checkpoint", "c" * 40, "--prompt", "The Time Ma", "--length", "3"]
    monkeypatch.setenv("COLUMNS", "80")
    assert hints.command_lines(*words) == (
        f"rnn-ops sample --checkpoint {'c' * 40} \\\n    --prompt 'The Time Ma' --length 3")
    assert hints.command_lines("sample", "--prompt", "a  --b " * 11, "--length", "3") == (
        f"rnn-ops sample \\\n    --prompt '{'a  --b ' * 11}' \\\n    --length 3")
    monkeypatch.setenv("COLUMNS", "200")
    assert hints.command_lines(*words) == f"rnn-ops sample --checkpoint {'c' * 40} --prompt 'The Time Ma' --length 3"


def too_wide(shown, columns=80):
    return [line for line in shown.splitlines() if len(line) > columns]


@pytest.mark.parametrize("words", [[], ["train"], ["sample"], ["check"], ["bench"], ["info"]], ids=str)
def test_help_fits_a_small_screen(tmp_path, words):
    status, stdout, _ = rnn_ops_(*words, "--help", cwd=tmp_path)
    assert status == 0 and stdout.startswith(b"usage: rnn-ops") and too_wide(stdout.decode()) == []


def test_what_is_printed_fits_a_small_screen(workplace, tmp_path, call):
    shutil.copy(str(workplace / "text.txt"), str(tmp_path / "t.txt"))
    words = ["train", "--text", "t.txt", *SMALL, "--epochs", "3", "--learning-rate", "0.123456789"]
    # The names of files aside, which nobody can break: they are as long as pytest makes its folders.
    status, stdout, _ = call(*words)
    assert status == 0 and too_wide(re.sub(r"/\S+|\S+ -m rnn_ops", "", stdout)) == []
    status, shown = in_a_terminal([SCRIPT, *words], tmp_path, COLUMNS="60")
    assert status == 0 and too_wide(re.sub(r"[^\n]*\r", "", shown).replace(str(tmp_path), ""), 60) == []
    status, stdout, _ = call("info")
    assert status == 0 and too_wide(stdout) == []


def test_an_epochs_line_has_what_there_is_room_for():
    metrics = dict(epoch=1999, loss=1.23456, perplexity=3.4, lr=0.5 / 2 ** 19, tokens_per_second=1234567.8, seconds=10.5)
    line = "epoch 1999/2000  loss 1.2346  perplexity 3.40  lr 9.537e-07  1,234,568 tokens/s  10.50 s"
    assert progress._line(metrics, 2000, 100) == line
    assert progress._line(metrics, 2000, 79) == line[:-len("  10.50 s")]
    assert progress._line(metrics, 2000, 78) == line[:line.index("  1,234,568")]
    assert progress._line(metrics, 2000, 30) == line[:line.index("  perplexity")]
    assert progress._line(metrics, 2000, 26) == "epoch 1999/2000"  # which a learning rate would still go after
