"""The list of MXNet's bugs (rnn_ops/_mxnet_bugs.py) is complete, and leads to the workarounds. The workarounds have tests of
their own."""
import os
import re

import pytest

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "rnn_ops")
with open(os.path.join(FOLDER, "_mxnet_bugs.py"), encoding="utf-8") as file:
    LIST = file.read()
BUGS = {int(number): text for number, text in re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^\S|\Z)", LIST, re.MULTILINE | re.DOTALL)}


def sources():
    """The text of each source file of the package but the list, by its path from the project's folder."""
    found = {}
    for where, _, names in os.walk(FOLDER):
        for name in names:
            if name.endswith((".py", ".cc", ".h")) and name != "_mxnet_bugs.py":
                with open(os.path.join(where, name), encoding="utf-8") as file:
                    found[os.path.join("rnn_ops", os.path.relpath(file.name, FOLDER))] = file.read()
    return found


def test_they_are_numbered():
    assert list(BUGS) == list(range(1, len(BUGS) + 1)) and len(BUGS) > 20


@pytest.mark.parametrize("number", BUGS)
def test_the_workaround_is_where_the_list_says(number):
    workarounds = re.findall(r"(rnn_ops/[\w/.]+): ([\w, ]+)", re.sub(r"\s+", " ", BUGS[number].split("→")[1]))
    assert workarounds
    for path, names in workarounds:
        for name in names.split(", "):
            assert re.search(rf"\b{name.strip()}\b", sources()[path]), (path, name)


def test_comments_refer_to_bugs_of_the_list():
    references = {int(number) for text in sources().values() for number in re.findall(r"\bbug (\d+)", text)}
    assert references and references <= set(BUGS)
