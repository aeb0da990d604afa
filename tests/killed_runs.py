"""Kill training at every one of its writes, take it up again, and hold what is left against a run that never stopped.

`python killed_runs.py FOLDER`, started by test_timemachine_killed.py. Every run is a fork of this process, which has
imported everything and computed nothing: MXNet may be forked then.
"""
import contextlib
import io
import os
import shutil
import signal
import sys

from rnn_ops import operators, reference  # noqa: F401, so that no fork has to import them
from rnn_ops_cli.main import main
from rnn_ops_timemachine import checkpoint, network, opening, plot, progress, training  # noqa: F401
from timemachine_cases import SMALL, assert_same_run

TEXT = "The Time Machine is a machine of time.\nSo it ticks, and it tocks, and it stops.\n" * 8
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(number):
    """From here on this process is killed before its ``number``-th change to a file; a write is done by half."""
    left = [number]

    def watch(name):
        do = getattr(os, name)

        def watched(*arguments, **keywords):
            if name != "open" or arguments[1] & WRITING:
                left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    do(arguments[0], arguments[1][:len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return do(*arguments, **keywords)

        setattr(os, name, watched)

    for name in "open", "write", "fsync", "ftruncate", "replace", "rename", "remove", "mkdir":
        watch(name)


def trained(*command, kill=0):
    """Run `rnn-ops train` in a fork → its exit status, or minus the signal that ended it."""
    process = os.fork()
    if not process:
        if kill:
            kill_at(kill)
        with contextlib.redirect_stdout(io.StringIO()):
            os._exit(main(["train", *command]))
    status = os.waitpid(process, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def assert_whole(folder):
    assert_same_run("whole", folder)
    assert sorted(os.listdir(folder)) == sorted(os.listdir("whole")), os.listdir(folder)


def kill_everywhere():
    start = ["--text", "book", *SMALL, "--validation", "0.2", "--epochs", "2"]
    assert trained(*start, "--out", "whole") == 0
    kills = 0
    while True:
        status = trained(*start, "--out", "killed", kill=kills + 1)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        kills += 1
        resume = os.path.exists(os.path.join("killed", checkpoint.FILE))
        assert trained(*(["--resume"] if resume else start), "--out", "killed") == 0, kills
        assert_whole("killed")
        shutil.rmtree("killed")
    assert_whole("killed")

    # The same for taking up a run that was killed behind its last metrics.
    assert trained(*start, "--epochs", "1", "--out", "crashed") == 0
    for name in "metrics.jsonl", "samples.txt":
        with open(os.path.join("crashed", name), "a") as file:
            file.write("what the next epoch had written down\n")
    resumed = 0
    while True:
        shutil.rmtree("killed")
        shutil.copytree("crashed", "killed")
        status = trained("--resume", "--epochs", "2", "--out", "killed", kill=resumed + 1)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        resumed += 1
        assert trained("--resume", "--epochs", "2", "--out", "killed") == 0, resumed
        assert_whole("killed")
        if resumed == 18:  # from here on it is an epoch's writes again
            break
    print(f"{kills} and {resumed} kills")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    # What takes time and changes nothing: a kill costs nothing that the kernel has got, and drawing is not writing.
    os.fsync = lambda descriptor: None
    plot.draw = lambda file, *_: file.write(b"a drawing")
    with open("book", "w") as file:
        file.write(TEXT)
    kill_everywhere()
