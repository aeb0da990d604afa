"""What the README and the folders' READMEs say is true: examples and commands run as they stand, in a clone where they leave the
reader; names, options, links and figures are those of the code and of the results."""
import contextlib
import glob
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv

import numpy as np
import pytest
from rnn_ops_benchmarks import problems, rungs, worker

import rnn_ops
from rnn_ops_cli.main import main as rnn_ops_command

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "kernels/README.md", "rnn_ops/README.md", "python/README.md",
         "benchmarks/README.md", "benchmarks/NOTES.md")


def read(page):
    with open(os.path.join(ROOT, *page.split("/")), encoding="utf-8") as file:
        return file.read()


def blocks(language, *pages):
    """The code blocks of a language, each without its fences."""
    return [block for page in pages for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
            if kind == language]


README = read("README.md")
TEXT = {page: re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL) for page in PAGES}
EXAMPLES = blocks("python", *PAGES)
COMMANDS = [command.strip() for block in blocks("bash", "README.md")
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
    environment.update(PYTHONUTF8="1", CXX=str(compiler), PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0",
                       PIP_DISABLE_PIP_VERSION_CHECK="1")

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
                            text=True).stdout.strip()
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
    if "import torch" in example:
        pytest.importorskip("torch")
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
    assert len(EXAMPLES) == 8
    assert any("rnn-ops train" in command for command in COMMANDS) and any("pytest" in command for command in COMMANDS)


def test_every_installation_is_of_the_clone_and_in_an_environment_of_its_own():
    installs = [re.fullmatch(r"(\S+)/bin/pip install -e '\.\[(\S+)\]'", command) for command in COMMANDS if "pip" in command]
    assert all(installs) and len(installs) == 4
    extras = {}
    for install in installs:
        assert extras.setdefault(*install.groups()) == install.group(2)
    made = [command.split()[-1] for command in COMMANDS if "venv" in command.split()]
    assert made == [install.group(1) for install in installs] and len(extras) == 3
    assert not re.search(r"pip install '?\.", README)


# --- names, options, links ------------------------------------------------------------------------------------------

COMMAND_NAMES = ("train", "launch", "sample", "check", "bench", "info")
OTHERS = {"--benchmark-compare"}  # options of other programs that the pages name by themselves


def help_of(*words):
    with io.StringIO() as shown, contextlib.redirect_stdout(shown):
        assert rnn_ops_command([*words, "--help"]) == 0
        return shown.getvalue()


def options_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", text))


@pytest.fixture(scope="module")
def options():
    """{command: its options}"""
    return {name: options_in(help_of(name)) for name in COMMAND_NAMES}


def code_of(page):
    """Every piece of code on a page: lines of its shell blocks and plain blocks, and what stands in backticks."""
    shell = [line for language in ("bash", "") for block in blocks(language, page) for line in block.splitlines()]
    return shell + [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", TEXT[page])]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page, options):
    seen = 0
    for code in code_of(page):
        commands = re.findall(r"\brnn-ops ([a-z]+)(.*?)(?=\S*rnn-ops |$)", code)  # two with launch
        for name, more in commands:
            assert name in options, code
            assert options_in(more) <= options[name], code
        if not commands and code.startswith("--"):
            assert any(options_in(code) <= known for known in (*options.values(), OTHERS)), code
        seen += len(commands)
    assert seen or page not in ("README.md", "benchmarks/README.md")


@pytest.mark.parametrize("command", [command for command in COMMANDS if "rnn-ops" in command])
def test_command_lines_are_understood(command):
    words, ours = [], shlex.split(command)
    for word in (*ours[1:], ".venv/bin/rnn-ops"):
        if word.endswith("rnn-ops"):
            assert help_of(*words)  # a wrong value is an error before the help is shown
            words = []
        else:
            words.append(word)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", TEXT[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = os.path.dirname(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(folder, path)) if path else page
        assert os.path.exists(os.path.join(ROOT, target)), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_of_ours_exist(page):
    """Paths are those of the clone or of the page's folder, {a,b} being both; dotted names can be imported."""
    if page == "CHANGELOG.md":  # names what there was
        return
    for code in re.findall(r"`([^`\s]+)`", TEXT[page]):
        path = re.fullmatch(r"\.?[\w./{},*-]+(/|\.(?:cc|cuh?|h|py|md|json|jsonl|toml|png|yaml))", code)
        if path and ("/" in code or code.endswith((".cc", ".cuh", ".cu", ".h", ".py"))):
            for one in alternatives(code):
                assert found(one, os.path.dirname(page)), code
        elif code.startswith("rnn_ops.torch") and not importlib.util.find_spec("torch"):
            continue  # looked up where PyTorch is installed
        elif re.fullmatch(r"rnn_ops\w*(\.\w+)+(\(.*\))?", code):
            assert resolves(code.split("(")[0]), code
    for test in re.findall(r"\btests/\w+\.py", read(page)):
        assert found(test, ""), test
    for name in re.findall(r"\bRNN_OPS_\w+", read(page)):
        assert name in settings_in_the_code(), name


def alternatives(path):
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
    return [match.group(1) + one + match.group(3) for one in match.group(2).split(",")] if match else [path]


def found(path, folder):
    return any(glob.glob(os.path.join(ROOT, *place, path)) for place in [
        (), (folder,), ("rnn_ops", "backends", "cuda"), ("rnn_ops", "operators"), ("kernels", "cpu"), ("kernels", "cuda")])


def resolves(name):
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        return all((value := getattr(value, part, None)) is not None for part in parts[i:])
    return False


def settings_in_the_code():
    texts = [open(path, encoding="utf-8").read() for folder in ("rnn_ops", "python") for path in glob.glob(
        os.path.join(ROOT, folder, "**", "*.py"), recursive=True)]
    return set(re.findall(r"RNN_OPS_\w+", " ".join(texts)))


# --- figures --------------------------------------------------------------------------------------------------------

def rows_of(result, direction):
    rows = json.loads(read(f"benchmarks/results/{result}.json"))["rows"]
    return [row for row in rows if row["direction"] == direction and row["status"] == "ok" and row["shape"]]


def medians(direction):
    return {row["provider"]: row["median"] for row in rows_of("cpu", direction)
            if row["shape"] == [64, 32, 77, 256] and row["input"] == "tokens"}


def test_the_first_lines_are_measured():
    both, step = medians("forward+backward"), medians("training step")
    first = " ".join(README.split("\n\n")[1].split())
    peers = [name for name in both if name.startswith(("mx.", "torch", "jax", "NumPy"))]
    assert f"**{both['mx.gluon.rnn.RNN'] / both['native']:.1f} times as fast as `mx.gluon.rnn.RNN` and `torch.nn.RNN`**" in first
    assert f"{both['torch.nn.RNN'] / both['native']:.1f}" == f"{both['mx.gluon.rnn.RNN'] / both['native']:.1f}"
    assert f"{min(both[name] for name in peers) / both['native']:.1f} times as fast as the best peer" in first
    assert f"**{step['ndarray loop'] / step['native']:.1f} times as fast**" in first
    shown = " ".join(README.split())
    for name in "native", "torch.nn.RNN", "mx.gluon.rnn.RNN", "ndarray loop":
        assert f" {float(f'{1e3 * step[name]:.3g}'):g} " in shown, name


def test_what_to_expect_is_what_the_grid_measured():
    table = {}
    for row in rows_of("grid", "forward+backward"):
        T, B, I, H = row["shape"]
        if row["provider"] == "rnn_sequence" and (T, I) == (64, 77):
            table.setdefault(H, {}).setdefault(B, {})[row["input"]] = row["ahead"]
    assert len(table) == 5
    for H, by_rows in table.items():
        line = next(line for line in README.splitlines() if line.startswith(f"| {H} |")).replace("**", "")
        cells = [f"{by_rows[B]['dense']:.2f} / {by_rows[B]['tokens']:.2f}" for B in sorted(by_rows)]
        assert line == f"| {H} | {' | '.join(cells)} |"
    slower = [ratio for by_rows in table.values() for inputs in by_rows.values() for ratio in inputs.values() if ratio < 1]
    assert len(slower) == 3 and "We are slower at three" in README


def test_the_range_against_mxnet_is_what_the_grid_measured():
    shown = " ".join(README.split())
    for direction, sentence in (("forward+backward", "it is {} to {} times as fast"), ("forward", "and {} to {} forward")):
        best = {(tuple(row["shape"]), row["input"], row["provider"]): row["best"] for row in rows_of("grid", direction)}
        ratios = [best[shape, kind, "mx.gluon.rnn.RNN"] / time for (shape, kind, name), time in best.items()
                  if name == "rnn_sequence"]
        assert len(ratios) == 48 and sentence.format(f"{min(ratios):.1f}", f"{max(ratios):.1f}") in shown


def test_the_means_are_those_of_the_grid():
    shown = read("benchmarks/README.md")
    for provider, name in (("kernel", "kernel"), ("rnn_sequence", "operator")):
        for kind in "dense", "tokens":
            cells = []
            for direction in "forward", "forward+backward":
                ahead = [row["ahead"] for row in rows_of("grid", direction)
                         if (row["provider"], row["input"]) == (provider, kind)]
                mean = math.exp(np.log(ahead).mean())
                cells.append(f"{mean:.2f} ({sum(ratio >= 1 for ratio in ahead)} of {len(ahead)})")
            assert f"| {name}, {kind} | {' | '.join(cells)} |" in shown


# --- what else is shown ---------------------------------------------------------------------------------------------

def test_nothing_is_left_to_be_filled_in():
    assert not [page for page in PAGES if "@@" in read(page)]  # what stands where a measured figure is to come


def test_the_edits_are_the_code_that_is_tested_and_timed():
    code = {line.strip() for line in inspect.getsource(rungs).splitlines()}
    diffs = blocks("diff", *PAGES)
    assert len(diffs) == 5
    for diff in diffs:
        assert {line[1:].strip() for line in diff.splitlines()} <= code


def test_the_provider_that_is_shown_is_verified():
    text, = [block for block in blocks("py", "benchmarks/README.md") if "class Mine" in block]
    module = {}
    exec(text, module)
    problem = problems.Sequence(problems.Shape(3, 2, 5, 4, tokens=True))
    provider, known = worker.prepare(module["Mine"], problem)
    assert known["errors"]["forward"] < 1e-6 and set(provider.lacks) | set(known["errors"]) == set(problem.directions)
