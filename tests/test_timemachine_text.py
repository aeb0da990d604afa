"""Texts: where they are looked for, what is cut off, what is said when they cannot be had."""
import hashlib
import http.server
import os
import socketserver
import subprocess
import sys
import threading
import time

import pytest

from rnn_ops_timemachine import download, text


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
    code = f"from rnn_ops_timemachine import text; text._URL = {text._URL!r}; assert text.load('timemachine').notice"
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


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_what_would_never_end_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a directory, pipe or device, needs to be a plain file"):
        text.load(os.path.join(str(tmp_path), name))


def test_a_text_is_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    content = "\ufeffa\r\nb\rc\r\r\n\ufeffé✓😀\n".encode()
    (tmp_path / "own.txt").write_bytes(content)
    for size in range(1, len(content) + 1):
        monkeypatch.setattr(text, "_BLOCK", size)
        found = text.load(str(tmp_path / "own.txt"))
        assert found.characters == "a\nb\rc\r\n\ufeffé✓😀\n" and found.sha256 == hashlib.sha256(content).hexdigest()
        (tmp_path / "cut.txt").write_bytes(content[:-2])
        with pytest.raises(ValueError, match=f"cut.txt is not UTF-8: byte 0xf0 at {len(content) - 5}"):
            text.load(str(tmp_path / "cut.txt"))


def test_a_large_text_says_so_and_takes_little_memory(tmp_path):
    """What the tokens of a text take beside it, and that the user hears of it at once. int32 would take four times as much."""
    (tmp_path / "large.txt").write_text("The Time Machine, 1895.\n" * (1 << 20))
    code = """
import resource, sys
from rnn_ops_timemachine import opening, text
from rnn_ops_timemachine.settings import Settings

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

said, before = [], peak()
run = opening.start(Settings(text="large.txt", hidden=8), "out", on_wait=said.append)
used = (peak() - before) / len(run.text.characters)
assert said[0].startswith("reading ") and said[0].endswith("large.txt: 0% of 25 MB") and len(said) == 7, said
assert run.inputs.dtype == "uint8" and run.inputs.size > 0.99 * len(run.text.characters)
assert used < 4, used
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(tmp_path))


class Server(http.server.BaseHTTPRequestHandler):
    """Sends something at every path: what is there, or what never ends."""
    def do_GET(self):
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()
        try:
            while "slow" in self.path:
                self.wfile.write(b".")
                time.sleep(0.05)
            while "endless" in self.path:
                self.wfile.write(bytes(1 << 16))
            self.wfile.write(b"another text")
        except OSError:  # nobody reads on
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """The address of a server of this machine."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as serving:
        serving.daemon_threads = True
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("path, reason", [
    ("slow", "TimeoutError"), ("endless", "another file came back"), ("wrong", "another file came back"),
    ("missing", "HTTPError")])
def test_a_fetch_ends(no_network, server, monkeypatch, tmp_path, path, reason):
    monkeypatch.setattr(text, "_URL", f"{server}/{path}/{{name}}.txt")
    monkeypatch.setattr(download, "_DEADLINE", 0.5 if path == "slow" else 30)
    said = []
    found = text.load("timemachine", said.append)
    assert found.name == text.FALLBACK and f"failed ({reason})" in found.notice
    assert said[0] == f"fetching {server}/{path}/timemachine.txt"
    assert os.listdir(tmp_path / "cache" / "rnn_ops") == []


def test_a_fetched_text_is_verified_and_kept(book, no_network, server, monkeypatch, tmp_path):
    with open(book.source, "rb") as file:
        content = file.read()
    monkeypatch.setattr(Server, "do_GET", lambda self: (self.send_response(200), self.end_headers(), self.wfile.write(content)))
    monkeypatch.setattr(text, "_URL", f"{server}/{{name}}.txt")
    cached = tmp_path / "cache" / "rnn_ops" / "timemachine.txt"
    assert text.load("timemachine") == book._replace(source=str(cached)) and cached.read_bytes() == content
    monkeypatch.setattr(text, "_URL", "http://127.0.0.1:9/{name}.txt")
    assert text.load("timemachine").source == str(cached)


def test_a_folder_that_lacks_the_text_is_named(book, no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("RNN_OPS_DATA", str(tmp_path / "data"))
    missing = f"timemachine.txt is not in {tmp_path / 'data'}, which RNN_OPS_DATA names"
    found = text.load("timemachine")
    assert found.name == text.FALLBACK and found.notice.startswith(f"{missing}, timemachine is not in the cache, and fetching")
    cached = tmp_path / "cache" / "rnn_ops" / "timemachine.txt"
    with open(book.source, "rb") as file:
        cached.write_bytes(file.read())
    assert text.load("timemachine") == book._replace(source=str(cached), notice=f"{missing}: using {cached}")
