"""Find the text to train on: a named one (in a folder, in the cache, from the network) or a file of the user's.

``load`` answers with the characters and with where they really came from.
"""
import hashlib
import os
from typing import NamedTuple

_URL = "https://raw.githubusercontent.com/zackchase/mxnet-the-straight-dope/master/data/nlp/{name}.txt"
_SHA256 = {
    "timemachine": "d8b212a688e074a31191e6d2db2c5a4728696bb09cefd90ac769552b048d4d2b",
    "tinyshakespeare": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}
_LICENCE = {"timemachine": 38083}  # characters at the end that are Project Gutenberg's and not the book's

FALLBACK = "python-topics"
NAMES = tuple(_SHA256) + (FALLBACK,)
_TIMEOUT = 5  # seconds that a server may take to answer


class Text(NamedTuple):
    """``characters`` to train on, called ``name``, read from ``source``; ``sha256`` is of the bytes read there.

    ``notice`` is empty, or one line that says why this is another text than the one asked for.
    """
    name: str
    characters: str
    source: str
    sha256: str
    notice: str = ""


def load(text):
    """Load a text.

    Parameters
    ----------
    text : str
        ``timemachine``, ``tinyshakespeare``, ``python-topics`` (the English texts on Python's topics that come with
        Python itself) or the path of a UTF-8 file. The first two are looked for in the folder that the environment
        variable RNN_OPS_DATA names, then in the user's cache, then fetched into it; where that fails the answer is
        ``python-topics``, with a notice.

    Returns
    -------
    Text

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is not UTF-8, or a file in RNN_OPS_DATA is not the text that its name says.
    """
    if text == FALLBACK:
        return _python_topics()
    if text not in _SHA256:
        return _read(name_of(text), _read_file(text))
    path = os.path.join(os.environ.get("RNN_OPS_DATA", ""), f"{text}.txt")
    if os.environ.get("RNN_OPS_DATA") and os.path.exists(path):
        return _read_known(text, path)
    try:
        path = _fetch(text)
    except (OSError, ValueError, ImportError) as error:  # no network, page or place for the cache; another file; no pooch
        reason = "another file came back" if isinstance(error, ValueError) else type(error).__name__
        return _python_topics(f"{text} is neither in RNN_OPS_DATA nor cached, and fetching {_URL.format(name=text)} "
                              f"failed ({reason}): using {FALLBACK}, the English text that comes with Python, instead")
    return _read_known(text, path)


def name_of(text):
    """The name that the text asked for by ``text`` gets: itself if it is a named one, else the file's absolute path."""
    return text if text in NAMES else os.path.abspath(text)


def _fetch(name):
    """The path of the cached file, fetched if it is not there yet or not what it was."""
    import pooch  # which nothing else needs
    pooch.get_logger().setLevel("WARNING")
    return pooch.retrieve(_URL.format(name=name), known_hash=f"sha256:{_SHA256[name]}", fname=f"{name}.txt",
                          path=pooch.os_cache("rnn_ops"), downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))


def _read_file(path):
    if not os.path.exists(path):
        raise FileNotFoundError(f"text: got {path!r}, needs an existing file or one of {', '.join(NAMES)}")
    with open(path, "rb") as file:
        return file.read()


def _read_known(name, path):
    read = _read(path, _read_file(path))
    if read.sha256 != _SHA256[name]:
        raise ValueError(f"text: {path} is not {name}: its sha256 is {read.sha256}, not {_SHA256[name]}")
    characters = read.characters[:len(read.characters) - _LICENCE.get(name, 0)]
    return read._replace(name=name, characters=characters)


def _read(path, content):
    try:
        characters = content.decode("utf-8-sig")  # with or without a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {path} is not UTF-8: byte {content[error.start]:#04x} at {error.start}") from None
    return Text(path, characters.replace("\r\n", "\n"), path, hashlib.sha256(content).hexdigest())


def _python_topics(notice=""):
    import platform
    from pydoc_data import topics
    characters = "\n\n".join(topics.topics[topic] for topic in sorted(topics.topics))
    return Text(FALLBACK, characters, f"pydoc_data.topics of Python {platform.python_version()}",
                hashlib.sha256(characters.encode()).hexdigest(), notice)
