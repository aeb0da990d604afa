"""Fetch a small file, with limits on time and size even if a server sends slowly or endlessly."""
import threading
from typing import Callable

_DEADLINE = 30  # seconds for the whole file; a connection's own timeout is for each piece alone
_POLL = 0.1


def fetch(url: str, most: int, on_wait: Callable[[], None]) -> bytes:
    """The content of a URL.

    A thread of its own fetches it and is left alone after the deadline: there is no other way to cut short looking up a name
    and reading headers. The content is in memory only until it is complete.

    Parameters
    ----------
    url : str
    most : int
        Bytes.
    on_wait : callable
        Called again and again while it is fetched. Its exceptions are passed on.

    Raises
    ------
    OSError
        No connection, an error of the server's; TimeoutError after 30 seconds.
    ValueError
        The file has more bytes.
    """
    import requests
    content, failed = bytearray(), []

    def work():
        try:
            with requests.get(url, stream=True, timeout=_DEADLINE, headers={"Accept-Encoding": "identity"}) as response:
                response.raise_for_status()
                for part in response.raw.stream(1 << 16, decode_content=False):
                    content.extend(part)
                    if len(content) > most or gone.is_set():
                        return
        except OSError as error:  # raised by the thread that waits
            failed.append(error)
        except Exception as error:  # urllib3's own, of a connection that breaks off
            failed.append(ConnectionError(f"{url}: {error}"))

    gone = threading.Event()
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        for _ in range(int(_DEADLINE / _POLL)):
            on_wait()
            worker.join(_POLL)
            if not worker.is_alive():
                break
        else:
            raise TimeoutError(f"{url} took longer than {_DEADLINE} s")
    finally:
        gone.set()
    if failed:
        raise failed[0]
    if len(content) > most:
        raise ValueError(f"{url} has more than {most:,} bytes")
    return bytes(content)
