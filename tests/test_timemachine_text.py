"""Texts: where they are looked for, what is cut off, what is said when they cannot be had."""
import hashlib
import os
import subprocess
import sys

import pytest

from timemachine import text


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A port of this machine on which nothing listens, and an empty cache."""
    monkeypatch.setattr(text, "_URL", "http://127.0.0.1:9/{name}.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RNN_OPS_DATA", raising=False)


def test_the_book_is_the_tutorials(book):
    assert len(book.characters) == 179_533
    assert len(set(book.characters)) == 77
    assert book.characters.startswith("Project Gutenberg's The Time Machine, by H. G. (Herbert George) Wells\n")
    assert book.characters.rstrip().endswith("still lived on in the heart\nof man.")
    assert (book.name, book.notice) == ("timemachine", "")
    assert os.path.basename(book.source) == "timemachine.txt"


def test_shakespeare_is_whole(book):
    play = text.load("tinyshakespeare")
    assert len(play.characters) == 1_115_394 and len(set(play.characters)) == 65


def test_without_network_the_text_is_pythons_and_says_so(no_network):
    found = text.load("timemachine")
    assert found.name == text.FALLBACK
    assert "The Time Machine" not in found.characters and "statement" in found.characters
    assert len(found.notice.splitlines()) == 1 and "timemachine" in found.notice and "ConnectionError" in found.notice
    assert found._replace(notice="") == text.load(text.FALLBACK)
    code = f"from timemachine import text; text._URL = {text._URL!r}; assert text.load('timemachine').notice"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout
    assert said == b""  # pooch logs to the stderr of the time when it was imported


def test_a_text_in_the_cache_is_used(book, no_network, tmp_path):
    os.makedirs(tmp_path / "cache" / "rnn_ops")
    cached = tmp_path / "cache" / "rnn_ops" / "timemachine.txt"
    with open(book.source, "rb") as file:
        cached.write_bytes(file.read())
    found = text.load("timemachine")
    assert found == book._replace(source=str(cached))


def test_a_damaged_text_in_the_cache_is_not_used(no_network, tmp_path):
    os.makedirs(tmp_path / "cache" / "rnn_ops")
    (tmp_path / "cache" / "rnn_ops" / "timemachine.txt").write_text("not the book")
    assert text.load("timemachine").name == text.FALLBACK


def test_a_wrong_text_in_the_data_folder_is_an_error(no_network, monkeypatch, tmp_path):
    (tmp_path / "timemachine.txt").write_text("not the book")
    monkeypatch.setenv("RNN_OPS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="timemachine.txt is not timemachine: its sha256 is"):
        text.load("timemachine")


@pytest.mark.parametrize("content", ["été\n✓ 时间", "\ufeffété\r\n✓ 时间"], ids=["plain", "mark and CRLF"])
def test_any_utf8_file(tmp_path, content):
    path = tmp_path / "own.txt"
    path.write_bytes(content.encode())
    found = text.load(str(path))
    assert found == text.Text(str(path), "été\n✓ 时间", str(path), hashlib.sha256(content.encode()).hexdigest())


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="text: got 'timemachin', needs an existing file or one of time"):
        text.load("timemachin")
    (tmp_path / "latin").write_bytes(b"abc\xe9t\xe9")
    with pytest.raises(ValueError, match="latin is not UTF-8: byte 0xe9 at 3"):
        text.load(str(tmp_path / "latin"))
    with pytest.raises(OSError, match="directory"):
        text.load(str(tmp_path))
