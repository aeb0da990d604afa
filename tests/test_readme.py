"""The README's examples and commands run as they stand, in a clone where they leave the reader."""
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv

import pytest

import rnn_ops
from rnn_ops_benchmarks import rungs
from rnn_ops_cli import main as cli

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
    README = file.read()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [command.strip() for block in re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
            for line in block.splitlines() for command in line.split("&&")]
OURS = ("rnn_ops", "__editable__")  # what begins so is in site-packages by our installation

# A compiler that takes no time: its libraries are those of the installed package. That they can be built is tested elsewhere.
COMPILER = """#!/bin/sh
while [ $# -gt 1 ]; do shift; [ "$1" = -o ] && made=$2; done
case $made in *.so) cp "$(find {installed} -name "$(basename "$made")")" "$made";; *) touch "$made";; esac
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A function that runs a command of a shell in a clone → what it printed. The README's first install is done."""
    folder = tmp_path_factory.mktemp("reader") / "clone"
    shutil.copytree(ROOT, str(folder), ignore=shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "*.so", "__pycache__", "runs", "tests"))
    compiler = folder / ".." / "c++"
    compiler.write_text(COMPILER.format(installed=shlex.quote(os.path.dirname(rnn_ops.__file__))))
    compiler.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # Nothing is fetched: the environment has what the extra brings.
    environment.update(PYTHONUTF8="1", CXX=str(compiler), PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1")

    def run(command):
        ran = subprocess.run(command.encode(), shell=True, cwd=str(folder),
                             env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    make, install = COMMANDS[:2]
    assert make == "python3 -m venv .venv" and install == ".venv/bin/pip install -e '.[cpu]'"
    make_environment(str(folder / ".venv"))
    run(install)
    return run


def make_environment(folder):
    """An environment that has every package of this one, and of ours none."""
    venv.create(folder, with_pip=False)
    ours = sysconfig.get_paths()["purelib"]
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    theirs = subprocess.run([os.path.join(folder, "bin", "python"), "-c", where], stdout=subprocess.PIPE, check=True,
                            universal_newlines=True).stdout.strip()
    for name in os.listdir(ours):
        if not name.startswith(OURS):
            os.symlink(os.path.join(ours, name), os.path.join(theirs, name))
    pip = os.path.join(folder, "bin", "pip")
    with open(pip, "w") as file:
        file.write(f"#!/bin/sh\nexec {shlex.quote(os.path.join(folder, 'bin', 'python'))} -m pip \"$@\"\n")
    os.chmod(pip, 0o755)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.strip().splitlines()[0])
def test_examples_run_in_the_clone(example, clone):
    assert re.search(r"\d", clone(f".venv/bin/python -c {shlex.quote(example)}")), "prints no figure"


@pytest.mark.slow
def test_commands_run_in_the_clone(clone):
    """As they are printed, but for fewer epochs; so does what the first one tells to do next."""
    train, sample = (next(command for command in COMMANDS if f"/rnn-ops {name}" in command) for name in ("train", "sample"))
    elsewhere = "" if os.environ.get("RNN_OPS_DATA") else "--text python-topics"  # and not from the network
    hint = clone(f"{train} --epochs 1 {elsewhere}").split("to continue a text:\n")[1]
    assert hint.startswith(".venv/bin/rnn-ops sample --checkpoint runs/") and len(clone(hint)) > 500
    folder = re.search(r"--checkpoint (\S+)", hint).group(1)
    assert clone(sample.replace("DIR", folder)).startswith("The Time Traveller")
    assert "CPU kernels" in clone(".venv/bin/python -m rnn_ops info")
    assert clone("cd .. && clone/.venv/bin/python -c 'import rnn_ops; print(rnn_ops.rnn_step)'").startswith("<function rnn_step")


def test_there_is_an_example_for_each_use_and_a_command_for_each_job():
    assert len(EXAMPLES) == 5
    assert any("rnn-ops train" in command for command in COMMANDS) and any("pytest" in command for command in COMMANDS)


def test_every_installation_is_of_the_clone_and_in_an_environment_of_its_own():
    installs = [re.fullmatch(r"(\S+)/bin/pip install -e '\.\[(\S+)\]'", command) for command in COMMANDS if "pip" in command]
    assert all(installs) and len(installs) == 3
    assert len({install.group(1) for install in installs}) == 3
    made = [command.split()[-1] for command in COMMANDS if "venv" in command.split()]
    assert made == [install.group(1) for install in installs]
    assert not re.search(r"pip install '?\.", README)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "rnn-ops" in command])
def test_command_lines_are_understood(command):
    assert cli._parser().parse_args(shlex.split(command)[1:]).run


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README  # what stands where a measured table is to come


def test_the_rungs_are_the_code_that_is_tested_and_timed():
    code = {line.strip() for line in inspect.getsource(rungs).splitlines()}
    diffs = re.findall(r"^```diff\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(diffs) == 4
    for diff in diffs:
        assert {line[1:].strip() for line in diff.splitlines()} <= code
