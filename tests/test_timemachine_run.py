"""Runs and the command line: what train writes, how it goes on, what is refused, and that nothing saved is lost."""
import fcntl
import importlib
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

import rnn_ops
from rnn_ops import operators, reference
from rnn_ops._mxnet import mx
from rnn_ops.operators.native import load
from rnn_ops_cli.main import main
from rnn_ops_timemachine import checkpoint, data, hints, model, progress, prompts, text, training
from rnn_ops_timemachine.folder import PLOT
from rnn_ops_timemachine.parameters import initialise
from rnn_ops_timemachine.record import FILE as RECORD
from rnn_ops_timemachine.settings import METRICS, SAMPLES, STEPS
from timemachine_cases import SMALL, assert_same_run, book_file, content_of, metrics_of, one_line, train, train_by_hand

EACH_STEP = [pytest.param(step, marks=pytest.mark.slow if step == "cuda" else ()) for step in STEPS]  # cuda: by the emulator


@pytest.mark.parametrize("step", EACH_STEP)
def test_what_a_run_leaves(train, book_file, step):
    status, folder, stdout, stderr = train("--epochs", "3", "--step", step, "--seed", "4")
    assert (status, stderr) == (0, "")
    assert sorted(os.listdir(folder)) == sorted([checkpoint.FILE, RECORD, METRICS, SAMPLES, PLOT])

    # The metrics are those of the same training done by hand.
    book = text.load(book_file)
    vocabulary = data.Vocabulary(book.characters)
    inputs, labels = (mx.nd.array(tokens, dtype="int32")
                      for tokens in data.batches(vocabulary.encode(book.characters), 7, 3))
    parameters = model.trainable(initialise(len(vocabulary), 8, seed=4))
    rnn_sequence = {"reference": reference, "native": operators.native, "custom": operators.custom,
                    "gluon": rnn_ops, "cuda": reference, "torch": reference}[step].rnn_sequence
    others = "gluon", "cuda", "torch"  # their loss is the same function, computed by other operations
    tolerance = 1e-5 if step in others else 1e-12
    moving_loss = None
    for epoch, line in enumerate(metrics_of(folder), start=1):
        losses = train_by_hand(parameters, inputs, labels, 0.5, rnn_sequence)
        for loss in losses:
            moving_loss = loss if moving_loss is None else 0.99 * moving_loss + 0.01 * loss
        assert list(line) == ["epoch", "loss", "moving_loss", "perplexity", "lr", "tokens_per_second", "seconds", "workers"]
        assert (line["epoch"], line["lr"]) == (epoch, 0.5)
        assert line["loss"] == pytest.approx(np.mean(losses), rel=tolerance)
        assert line["moving_loss"] == pytest.approx(moving_loss, rel=tolerance)
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["tokens_per_second"] * line["seconds"] == pytest.approx(inputs.size)
    assert epoch == 3
    saved = checkpoint.load(folder)
    for name, parameter in parameters._asdict().items():
        if step in others:
            assert np.abs(saved.parameters[name] - parameter.asnumpy()).max() <= 1e-5
        else:
            np.testing.assert_array_equal(saved.parameters[name], parameter.asnumpy())
    assert saved.vocabulary.symbols == vocabulary.symbols and saved.settings["epoch"] == 3

    contents = content_of(folder)
    assert contents[PLOT].startswith(b"\x89PNG")
    samples = contents[SAMPLES].decode()
    assert len(re.findall("^=== epoch", samples, re.MULTILINE)) == 3
    record = json.loads(contents[RECORD])
    assert record["text"] == dict(asked=book_file, name=book_file, source=book_file, sha256=book.sha256, notice="",
                                  characters=len(book.characters), symbols=len(vocabulary))
    assert record["settings"]["step"] == step and record["settings"]["hidden"] == 8
    assert record["batches_per_epoch"] == len(inputs) and record["parameters"] == sum(p.size for p in parameters)
    library = importlib.import_module({"cuda": "cupy", "torch": "torch"}.get(step, "mxnet"))
    assert record["sessions"][0]["versions"][library.__name__] == library.__version__

    # The little book lacks a character of the second prompt: a stretch of the book is continued in its place.
    assert record["prompts"][0] == "The Time Ma"
    assert len(record["prompts"][1]) == len(prompts.PROMPTS[1]) and record["prompts"][1] in book.characters
    for prompt in record["prompts"]:
        assert len(re.findall(re.escape(f"goes on:\n{prompt}") + "(?s:.{1024})\n\n", samples)) == 3

    # Not on a terminal: two lines before, one an epoch, how long they will take, the last samples, two lines after.
    lines = stdout.splitlines()
    assert "\r" not in stdout and len(lines) == 2 + 1 + 1 + 2 + 2 + 2
    assert re.search(r"^2 more in about \d+ (s|min)$", lines.pop(3)) and "about" not in "".join(lines)
    assert [line.split()[:2] for line in lines[2:5]] == [["epoch", f"{epoch}/3"] for epoch in (1, 2, 3)]
    assert lines[5].startswith("  The Time Ma")
    assert lines[-1] == hints.command("sample", "--checkpoint", folder, "--prompt", record["prompts"][0])


@pytest.mark.parametrize("step", [step if step == "native" else pytest.param(step, marks=pytest.mark.slow) for step in STEPS])
def test_a_resumed_run_never_stopped(train, step):
    _, whole, _, _ = train("--epochs", "4", "--step", step, out="whole")
    _, parts, _, _ = train("--epochs", "2", "--step", step, out="parts")
    before = content_of(parts)
    status, _, stdout, _ = train("--resume", "--epochs", "4", out="parts")
    assert status == 0 and "epochs 3 to 4" in stdout
    assert_same_run(whole, parts)
    assert content_of(parts)[METRICS].startswith(before[METRICS])
    record = json.loads(content_of(parts)[RECORD])
    assert [session["first_epoch"] for session in record["sessions"]] == [1, 3] and record["settings"]["epochs"] == 4


@pytest.mark.slow
def test_a_run_takes_the_operator_that_there_is_and_stays_with_it(train, monkeypatch):
    def step_of(folder):
        return json.loads(content_of(folder)[RECORD])["settings"]["step"]

    assert step_of(train("--epochs", "1", out="native")[1]) == "native"
    monkeypatch.setenv("RNN_OPS_OPERATOR", "custom")
    assert step_of(train("--epochs", "1", out="custom")[1]) == "custom"
    monkeypatch.delenv("RNN_OPS_OPERATOR")
    assert train("--resume", "--epochs", "2", out="custom")[0] == 0  # as one from before there was a native operator

    monkeypatch.setattr(load, "failure", "the reason")
    assert step_of(train("--epochs", "1", out="none")[1]) == "custom"
    for arguments in ["--step", "native", "--epochs", "1"], ["--resume", "--epochs", "2"]:
        status, _, _, stderr = train(*arguments, out="other" if "--step" in arguments else "native")
        assert status == 2
        one_line(stderr, "step: got 'native', but there is no native operator: the reason")
    monkeypatch.setenv("RNN_OPS_OPERATOR", "native")
    status, _, _, stderr = train("--epochs", "1", out="another")
    assert status == 2
    one_line(stderr, "RNN_OPS_OPERATOR: got 'native', and there is no native operator: the reason")


@pytest.mark.parametrize("seconds, words", [
    (0.2, "1 s"), (59.4, "59 s"), (59.5, "1 min"), (1500, "25 min"), (3599, "1 h 0 min"), (5400, "1 h 30 min"),
    (86399, "1 d 0 h"), (200000, "2 d 8 h")])
def test_durations(seconds, words):
    assert progress.duration(seconds) == words


@pytest.mark.slow
def test_a_crash_before_the_checkpoint_costs_only_the_epoch(train, tmp_path):
    _, whole, _, _ = train("--epochs", "4", out="whole")
    _, crashed, _, _ = train("--epochs", "2", out="crashed")
    shutil.copy(os.path.join(crashed, checkpoint.FILE), tmp_path)
    train("--resume", "--epochs", "3", out="crashed")
    shutil.copy(tmp_path / checkpoint.FILE, crashed)  # epoch 3 was written down but not saved,
    with open(os.path.join(crashed, METRICS), "a") as file:
        file.write('{"epoch": 4, "lo')  # nor was the next line whole
    assert train("--resume", "--epochs", "4", out="crashed")[0] == 0
    assert_same_run(whole, crashed)


def test_a_run_is_never_overwritten(train):
    _, folder, _, _ = train("--epochs", "1")
    before = content_of(folder)
    status, _, _, stderr = train("--epochs", "1")
    assert status == 2 and content_of(folder) == before
    one_line(stderr, folder, "already holds a run", "--resume")
    os.remove(os.path.join(folder, checkpoint.FILE))  # what is left of a run is still somebody's
    status, _, _, stderr = train("--epochs", "1")
    assert status == 2 and "--resume" not in stderr
    one_line(stderr, f"out: {folder} holds {RECORD}, a name that a run's own file has, and no {checkpoint.FILE} to resume")


def test_files_with_other_names_are_left_alone(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    status, folder, _, stderr = train("--epochs", "1")
    assert (status, stderr) == (0, "") and content_of(folder)["README.md"] == b"mine"


@pytest.mark.parametrize("out", ["/proc/x", "file/out", None])
def test_an_unwritable_folder_is_named_before_a_text_is_read(tmp_path, monkeypatch, capfd, out):
    def load(*_):
        raise AssertionError("the text is read")

    monkeypatch.setattr(text, "load", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    if out is None:
        (tmp_path / "runs").write_text("mine")
    before = content_of(str(tmp_path))
    assert main(["train", *([] if out is None else ["--out", out])]) == 2
    one_line(capfd.readouterr().err, f"rnn-ops: error: out: cannot write to {out or 'runs'}: ")
    assert content_of(str(tmp_path)) == before


@pytest.mark.parametrize("options, parts", [
    (["--hidden", "9"], ["hidden: got 9", "has 8"]),
    (["--text", "timemachine"], ["text: got 'timemachine'", "little book.txt"]),
    (["--epochs", "1"], ["epochs: got 1, needs at least the 2"]),
    (["--validation", "0.1"], ["validation: got 0.1", "has 0.0"]),
    (["--init-from", "elsewhere"], ["init_from: a run that is resumed has its parameters already"]),
])
def test_a_run_is_resumed_as_it_was(train, options, parts):
    _, folder, _, _ = train("--epochs", "2")
    before = content_of(folder)
    status, _, _, stderr = train("--resume", *options)
    assert status == 2 and content_of(folder) == before
    one_line(stderr, *parts)


def test_a_run_is_not_resumed_on_another_text(train, book_file):
    _, folder, _, _ = train("--epochs", "1")
    with open(book_file, "a") as file:
        file.write("!")
    status, _, _, stderr = train("--resume", "--epochs", "2")
    assert status == 2
    one_line(stderr, f"text: {book_file} is not the text of the run")


def test_a_run_that_diverges_keeps_its_last_good_epoch(train):
    status, folder, _, stderr = train("--learning-rate", "1e9", out="at once")
    assert status == 1 and checkpoint.load(folder).settings["epoch"] == 0
    one_line(stderr, "epoch 1: training has diverged: the loss of batch", f"{checkpoint.FILE} holds epoch 0")

    _, folder, _, _ = train("--epochs", "2", out="later")
    saved = checkpoint.load(folder)
    saved.parameters["Why"] *= np.float32(1e30)
    assert_diverges(train, folder, saved, "training has diverged: the loss of batch 1 is")


def test_parameters_that_are_no_numbers_are_not_saved(train):
    _, folder, _, _ = train("--epochs", "2", "--sequence-length", "200")  # one batch an epoch: no loss tells of it
    saved = checkpoint.load(folder)
    saved.parameters["Why"] *= np.float32(1e3)
    saved.settings["learning_rate"] = 3e38
    assert_diverges(train, folder, saved, "training has diverged: ", "is no longer finite")


@pytest.mark.parametrize("step", EACH_STEP)
def test_a_text_of_one_character_leaves_nothing_to_guess(train, tmp_path, step):
    """Its loss is 0, which float32 can round to something below."""
    (tmp_path / "a.txt").write_text("a" * 500)
    status, folder, _, stderr = train("--text", str(tmp_path / "a.txt"), "--epochs", "2", "--step", step, "--validation", "0.3",
                                      "--hidden", "30" if step == "cuda" else "300")
    assert (status, stderr) == (0, "")
    assert all(0 <= line[name] < 1e-5 for line in metrics_of(folder) for name in ("loss", "validation_loss", "moving_loss"))
    assert train("--resume", "--epochs", "3")[::3] == (0, "")


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_model_that_cannot_be_sampled_from_ends_in_a_line(train, capfd, recwarn, value):
    _, folder, _, _ = train("--epochs", "1")
    saved = checkpoint.load(folder)
    saved.parameters["Why"][:], saved.parameters["bh"][:] = value, 9
    checkpoint.save(os.path.join(folder, checkpoint.FILE), saved)
    assert main(["sample", "--checkpoint", folder, "--prompt", "The"]) == 1
    stdout, stderr = capfd.readouterr()
    assert stdout == "The\n"
    one_line(stderr, f"error: checkpoint: {folder}: the logits are not finite: the model's parameters are too large")
    status, _, _, stderr = train("--resume", "--epochs", "1")  # which trains nothing, and shows its samples
    assert status == 1
    one_line(stderr, "error: the logits are not finite")
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_a_run_whose_samples_fail_keeps_its_last_good_epoch(train):
    """One batch an epoch: its loss is good, and the weights stay finite, but a sum over 16 units of them does not."""
    _, folder, _, _ = train("--epochs", "2", "--sequence-length", "200", "--hidden", "16")
    saved = checkpoint.load(folder)
    for name, array in saved.parameters.items():  # all units do the same
        array[:] = dict(bh=9, Why=saved.parameters["Why"][0]).get(name, 0)
    saved.settings["learning_rate"] = 3e38
    assert_diverges(train, folder, saved, "the logits are not finite")


def assert_diverges(train, folder, poisoned, *messages):
    """The third epoch of a run that is resumed from a poisoned checkpoint fails, and leaves all as it was."""
    checkpoint.save(os.path.join(folder, checkpoint.FILE), poisoned)
    before = content_of(folder)
    status, _, _, stderr = train("--resume", "--epochs", "3", out=folder)
    assert status == 1
    one_line(stderr, "epoch 3: ", *messages, "smaller learning rate",
             f"{checkpoint.FILE} holds epoch 2")
    after = content_of(folder)
    assert all(after[name] == before[name] for name in (METRICS, SAMPLES))
    saved = checkpoint.load(folder)
    assert saved.settings["epoch"] == 2
    for name, array in poisoned.parameters.items():
        np.testing.assert_array_equal(saved.parameters[name], array)


@pytest.mark.parametrize("options, parts", [
    (["--epochs", "0"], ["epochs: got 0, needs an integer of at least 1"]),
    (["--epochs", "two"], ["--epochs", "'two'"]),
    (["--hidden", "-3"], ["hidden: got -3"]),
    (["--seed", "-1"], ["seed: got -1, needs an integer of at least 0"]),
    (["--learning-rate", "0"], ["learning_rate: got 0.0"]),
    (["--learning-rate", "nan"], ["learning_rate: got nan"]),
    (["--learning-rate", "1e39"], ["learning_rate: got 1e+39, needs a number from 1.2e-38 to 3.4e+38"]),
    (["--step", "fast"], ["--step", "'fast'"]),
    (["--sequence-length", "1000"], ["text: got 640 characters, needs 3,001 for one batch"]),
    (["--text", "no such text"], ["text: got 'no such text', needs an existing file or one of"]),
    (["--hidden", "1000000000000"], ["hidden: got 1000000000000, which is too many for this machine (Unable to allocate"]),
    (["--hidden", str(2 ** 63 - 1)], [f"hidden: got {2 ** 63 - 1}, which is too many for this machine"]),
    (["--out", ""], ["--out: got ''"]),
    (["--text", ""], ["--text: got ''"]),
    (["--init-from", ""], ["--init-from: got ''"]),
    (["--epoch", "3"], ["--epoch 3"]),
    (["--resume"], ["checkpoint: ", "out/model.npz does not exist"]),
])
def test_what_cannot_be_trained_is_named(train, options, parts):
    status, folder, stdout, stderr = train(*options)
    assert (status, stdout) == (2, "") and not os.path.exists(folder)
    one_line(stderr, *parts)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_a_text_that_is_empty_is_named(train, tmp_path, content):
    (tmp_path / "nothing.txt").write_bytes(content)
    status, folder, _, stderr = train("--text", str(tmp_path / "nothing.txt"))
    assert status == 2 and not os.path.exists(folder)
    one_line(stderr, f"error: text: {tmp_path / 'nothing.txt'} is empty, needs at least one character")


def test_an_unwritable_folder_is_named(train, book_file):
    status, _, _, stderr = train("--out", os.path.join(book_file, "out"))
    assert status == 2
    one_line(stderr, f"out: cannot write to {book_file}")


@pytest.mark.parametrize("missing, step, status, said", [
    (["tqdm", "cupy", "mxnet"], ["--step", "cuda"], 2, "step: got 'cuda', but nothing can be computed on a GPU here: CuPy is"),
    (["tqdm", "cupy", "mxnet"], ["--step", "native"], 1, "This needs MXNet 1.9.1: install rnn_ops[cpu]"),
    (["tqdm", "torch"], ["--step", "torch"], 2, "step: got 'torch', but PyTorch is not installed: install rnn_ops[torch]"),
    (["tqdm", "cupy", "mxnet", "torch"], [], 1, "This needs MXNet 1.9.1: install rnn_ops[cpu]"),
    (["tqdm"], ["--step", "native"], 1, "tqdm")])
def test_the_library_that_a_step_lacks_is_named_first(book_file, tmp_path, missing, step, status, said):
    """As in a plain install, which has nothing but NumPy."""
    code = (f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
            "from rnn_ops_cli.main import main; sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "train", "--text", book_file, "--out", "out", *step],
                          capture_output=True, text=True, cwd=str(tmp_path))
    assert (done.returncode, done.stdout) == (status, "") and not os.path.exists(str(tmp_path / "out"))
    one_line(done.stderr, f"rnn-ops: error: {'' if said != 'tqdm' else 'import of '}{said}")


def test_by_default_every_run_has_a_folder_of_its_own(book_file, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--text", book_file, "--epochs", "1", *SMALL]) == 0
    assert re.fullmatch(r"little book-\d{8}-\d{6}", os.listdir("runs")[0])
    for name, stem in (("a" * 250, "a" * 200), ("\u65f6" * 80, "\u65f6" * 66)):  # bytes of which file systems take 255
        shutil.copy(book_file, name)
        assert main(["train", "--text", name, "--epochs", "1", *SMALL]) == 0
        assert any(re.fullmatch(stem + r"-\d{8}-\d{6}", folder) for folder in os.listdir("runs"))
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]  # nor a plot without room
    assert re.search(r"sample( \\\n   )? --checkpoint 'runs/little book-", capfd.readouterr().out)


@pytest.mark.slow
def test_without_the_book_the_record_says_what_was_read(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(text, "_URL", "http://127.0.0.1:9/{name}.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RNN_OPS_DATA", raising=False)
    folder = str(tmp_path / "out")
    assert main(["train", "--epochs", "1", "--hidden", "8", "--batch-size", "1000", "--out", folder]) == 0
    one_line(capfd.readouterr().err, "timemachine", "python-topics")
    record = json.loads(content_of(folder)[RECORD])
    assert record["text"]["asked"] == "timemachine"
    assert record["text"]["name"] == record["settings"]["text"] == "python-topics"
    assert record["text"]["source"].startswith("pydoc_data.topics of Python 3")
    assert main(["train", "--resume", "--epochs", "2", "--out", folder]) == 0


def test_sample_continues_a_prompt(train, capfd):
    _, folder, _, _ = train("--epochs", "1")
    sample = ["sample", "--checkpoint", folder, "--prompt", "The Time Ma", "--length", "100"]
    printed = []
    file = os.path.join(folder, checkpoint.FILE)
    for options in ([], [], ["--seed", "1"], ["--temperature", "2"], ["--checkpoint", file]):
        assert main(sample + options) == 0
        printed.append(capfd.readouterr().out)
        assert printed[-1].startswith("The Time Ma") and len(printed[-1]) == len("The Time Ma") + 100 + 1
    assert printed[0] == printed[1] == printed[4] and len(set(printed)) == 3
    for options, part in ((["--prompt", "Zebra"], "prompt: got 'Z', 'b', 'r', not among the 21 symbols"),
                          (["--prompt", ""], "prompt: got an empty text"),
                          (["--temperature", "0"], "temperature: got 0.0"),
                          (["--checkpoint", "nowhere"], "checkpoint: nowhere does not exist")):
        assert main(sample + options) == 2
        one_line(capfd.readouterr().err, part)


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar_and_ctrl_c_leaves_a_run_to_resume(start, book_file, tmp_path):
    folder = str(tmp_path / "out")
    command = ["train", "--text", book_file, *SMALL, "--epochs", "100000", "--out", folder]
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # 100 columns
    code = f"import sys; from rnn_ops_cli.main import main; sys.exit(main({command}))"
    process = start([sys.executable, "-c", code], cwd=str(tmp_path), stdin=terminal, stdout=terminal, stderr=terminal,
                    env={k: v for k, v in os.environ.items() if k != "COLUMNS"})
    os.close(terminal)
    shown = b""
    while b"epoch      3/" not in shown:
        shown += os.read(controller, 65536)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            shown += os.read(controller, 65536)
        except OSError:  # so Linux says that the other end is closed
            break
    os.close(controller)
    assert process.wait() == 130
    lines = shown.decode().replace("\r", "\n").splitlines()
    bar = r"epoch \d/100000 \|.*\| 0%, .* left, .*tokens/s, loss [\d.]+, perplexity [\d.]+"
    assert any(re.match(bar, line) for line in lines)
    samples = [line for line in lines if line.startswith("  The Time Ma")]
    assert samples and all(len(line) == 99 for line in samples)
    epoch = checkpoint.load(folder).settings["epoch"]
    assert epoch >= 3 and len(metrics_of(folder)) in (epoch, epoch + 1)
    said = (f"rnn-ops: interrupted: {folder} holds epoch {epoch}; to go on: {shlex.quote(sys.executable)} -m rnn_ops "
            f"train --resume --out {shlex.quote(folder)}")
    assert said in lines and "Traceback" not in shown.decode()
    assert main(["train", "--resume", "--out", folder, "--epochs", str(epoch + 1)]) == 0
    assert [line["epoch"] for line in metrics_of(folder)] == list(range(1, epoch + 2))


def test_samples_fit_the_screen():
    assert progress.shorten("a\nb\tc\x1b[1md", 7) == "a b c [" and progress.shorten("abc", 7) == "abc"
    assert progress.shorten("时间机器", 5) == "时间"


def test_help_needs_nothing():
    code = ("import sys; from rnn_ops_cli.main import main\n"
            "try: main(['train', '--help'])\n"
            "except SystemExit as end: assert not end.code\n"
            "assert not {'numpy', 'mxnet', 'rnn_ops'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert b"--resume" in result.stdout


@pytest.mark.parametrize("argv", [[], ["fly"], ["sample"], ["info", "--fast"], ["info", "--hidden", "0"],
                                  ["info", "--batch-size", "x"]])
def test_what_is_no_command_is_named(argv, capfd):
    assert main(argv) == 2
    one_line(capfd.readouterr().err, "--help says more")
