"""Fetch a small file within a time and a size, however slowly or endlessly a server sends."""
import threading

_DEADLINE = 30  # seconds for all of it; a timeout of a connection is only for each of its pieces
_POLL = 0.1


def fetch(url, most, on_wait):
    """The content of a URL.

    It is fetched by a thread of its own, which nobody waits for beyond the deadline: looking up a name and reading
    headers cannot be cut short otherwise. Until all of it is there it is in memory only.

    Parameters
    ----------
    url : str
    most : int
        Bytes.
    on_wait : callable
        Called again and again while it is fetched. What it raises comes through.

    Raises
    ------
    OSError
        No connection, an error of the server's; TimeoutError after 30 seconds.
    ValueError
        There are more bytes.
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
        except OSError as error:  # to be raised where somebody waits for it
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
