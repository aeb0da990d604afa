"""The README's examples run as they stand, and the commands it names exist."""
import os
import re
import shlex
import subprocess
import sys

import pytest

from timemachine import cli

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "README.md"), encoding="utf-8") as file:
    README = file.read()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.strip().splitlines()[0])
def test_examples_run(example, tmp_path):
    ran = subprocess.run([sys.executable, "-c", example], cwd=str(tmp_path), stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, universal_newlines=True)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"\d", ran.stdout), "prints no figure"


def test_there_is_an_example_for_each_use_and_a_command_for_each_job():
    assert len(EXAMPLES) == 5
    assert any("rnn-ops train" in command for command in COMMANDS) and any("pytest" in command for command in COMMANDS)


@pytest.mark.parametrize("words", [
    shlex.split(line.split("&&")[-1])[1:] for command in COMMANDS for line in command.splitlines() if "rnn-ops" in line])
def test_command_lines_are_understood(words):
    assert cli._parser().parse_args(words).run
