"""Find the text to train on: a named one (in a folder, in the cache, from the network) or a file of the user's.

``load`` gives the characters and says where they came from.
"""
import codecs
import hashlib
import os
from typing import Callable, NamedTuple

from rnn_ops_timemachine import download, files

_URL = "https://raw.githubusercontent.com/zackchase/mxnet-the-straight-dope/master/data/nlp/{name}.txt"
_SHA256 = {
    "timemachine": "d8b212a688e074a31191e6d2db2c5a4728696bb09cefd90ac769552b048d4d2b",
    "tinyshakespeare": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}
_LICENCE = {"timemachine": 38083}  # characters of Project Gutenberg's licence at the end

FALLBACK = "python-topics"
NAMES = tuple(_SHA256) + (FALLBACK,)
_LARGEST = 4 << 20  # bytes of a fetched text; the larger one has 1.1 million
_BLOCK = 4 << 20  # bytes that are read at once


class Text(NamedTuple):
    """``characters`` to train on, called ``name``, read from ``source``; ``sha256`` is of the bytes read there.

    ``notice`` is empty, or one line that says why this is not the text, or not the file, that the user named.
    """
    name: str
    characters: str
    source: str
    sha256: str
    notice: str = ""


def load(text: str, on_wait: Callable[[str], None] = lambda doing: None) -> Text:
    """Load a text.

    Parameters
    ----------
    text : str
        ``timemachine``, ``tinyshakespeare``, ``python-topics`` (the English texts on Python's topics that come with
        Python itself) or the path of a UTF-8 file. The first two are looked for in the folder that the environment
        variable RNN_OPS_DATA names, then in the user's cache, then fetched into it. If that fails, ``python-topics`` is
        taken, with a notice.
    on_wait : callable
        Called with a text for the user, again and again while a large file is read or one is fetched. Its exceptions end
        the loading.

    Returns
    -------
    Text

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is not UTF-8 or empty, or a file in RNN_OPS_DATA is not the text that its name says.
    """
    if text == FALLBACK:
        return _python_topics()
    if text not in _SHA256:
        return _read(name_of(text), text, on_wait)
    folder = os.environ.get("RNN_OPS_DATA")
    if folder and os.path.exists(os.path.join(folder, f"{text}.txt")):
        return _read_known(text, os.path.join(folder, f"{text}.txt"), on_wait)
    not_there = f"{text}.txt is not in {folder}, which RNN_OPS_DATA names" if folder else "RNN_OPS_DATA is not set"
    try:
        path = _fetch(text, on_wait)
    except (OSError, ValueError, ImportError) as error:  # no network, no page, no room for the cache; another file; no pooch
        reason = "another file came back" if isinstance(error, ValueError) else type(error).__name__
        return _python_topics(f"{not_there}, {text} is not in the cache, and fetching {_URL.format(name=text)} "
                              f"failed ({reason}): using {FALLBACK}, the English text that comes with Python, instead")
    return _read_known(text, path, on_wait)._replace(notice=f"{not_there}: using {path}" if folder else "")


def name_of(text: str) -> str:
    """The name of a text: ``text`` itself if it is a named one, else the file's absolute path."""
    return text if text in NAMES else os.path.abspath(text)


def _fetch(name, on_wait):
    """The path of the cached file, which is fetched if it is missing or has changed."""
    import pooch  # only this function needs it
    pooch.get_logger().setLevel("WARNING")

    def fetch(url, path, _):
        content = download.fetch(url, _LARGEST, lambda: on_wait(f"fetching {url}"))
        with open(path, "wb") as file:
            file.write(content)

    return pooch.retrieve(_URL.format(name=name), known_hash=f"sha256:{_SHA256[name]}", fname=f"{name}.txt",
                          path=pooch.os_cache("rnn_ops"), downloader=fetch)


def _read_known(name, path, on_wait):
    read = _read(path, path, on_wait)
    if read.sha256 != _SHA256[name]:
        raise ValueError(f"text: {path} is not {name}: its sha256 is {read.sha256}, not {_SHA256[name]}")
    characters = read.characters[:len(read.characters) - _LICENCE.get(name, 0)]
    return read._replace(name=name, characters=characters)


def _read(name, path, on_wait):
    """A UTF-8 file, with or without a byte-order mark, its line ends made LF. Read, decoded and put together in blocks:
    the bytes of a large one are never all in memory."""
    try:
        descriptor = files.open_plain(path, follow=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"text: got {path!r}, needs an existing file or one of {', '.join(NAMES)}") from None
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    parts, begun, held = [], False, ""
    with open(descriptor, "rb", buffering=0) as file:
        size, done, block = os.fstat(file.fileno()).st_size, 0, True
        while block:
            if size > _BLOCK:
                on_wait(f"reading {path}: {done / size:.0%} of {size / 1e6:,.0f} MB")
            block = file.read(_BLOCK)
            digest.update(block)
            undecoded = len(decoder.getstate()[0])
            try:
                part = held + decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(f"text: {path} is not UTF-8: byte {error.object[error.start]:#04x} "
                                 f"at {done - undecoded + error.start}") from None
            if part and not begun:
                begun, part = True, part[part.startswith("\ufeff"):]
            done += len(block)
            held = "\r" if block and part.endswith("\r") else ""  # its LF may be in the next block
            parts.append(part[:len(part) - len(held)].replace("\r\n", "\n"))
    if not any(parts):
        raise ValueError(f"text: {path} is empty, needs at least one character")
    return Text(name, "".join(parts), name, digest.hexdigest())


def _python_topics(notice=""):
    import platform
    from pydoc_data import topics
    characters = "\n\n".join(topics.topics[topic] for topic in sorted(topics.topics))
    return Text(FALLBACK, characters, f"pydoc_data.topics of Python {platform.python_version()}",
                hashlib.sha256(characters.encode()).hexdigest(), notice)
