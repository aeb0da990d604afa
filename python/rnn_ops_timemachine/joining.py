"""How the workers of a job begin one run: worker 0 opens it, and the others get it from there.

Each says what it is and what is wrong with it, if anything, so that all of them begin or none does. Worker 0's run travels as
its checkpoint. So the others need neither its folder nor its files, but for the text.
"""
import json
from typing import Any, Callable, Dict, Optional

import rnn_ops
from rnn_ops_timemachine import checkpoint as checkpoints
from rnn_ops_timemachine import opening
from rnn_ops_timemachine.roles import Left
from rnn_ops_timemachine.run import Run

_LONGEST = 600  # characters of a reason; a message has room for them in any language


def together(exchange, begin: Callable[[], Run], given: Dict[str, Any], init_from: Optional[str],
             on_wait: Callable[[str], None]) -> Run:
    """The run that all workers train.

    Parameters
    ----------
    exchange : exchange.Workers
    begin : callable
        Worker 0's `opening.start` or `opening.resume`.
    given : dict
        The settings that this worker was given. They must be those of the run.
    init_from : str
        The model that this worker was to begin with.
    on_wait : callable
        As that of `text.load`.

    Raises
    ------
    roles.Left
        Another worker cannot begin.
    OSError, ValueError, ImportError
        This one cannot.
    """
    run, error = None, exchange.wrong
    try:
        run = begin() if exchange.rank == 0 and not error else None
    except BaseException as found:  # a signal, too: the others must not wait
        error = found
    try:
        content = checkpoints.to_bytes(run.checkpoint()) if run else b""
        mine = dict(rnn_ops=rnn_ops.__version__, contexts=len(exchange.contexts),
                    gradient_compression=exchange.about()["gradient_compression"])
        said = _agree(exchange, error, dict(mine, size=len(content)))
        for rank, other in enumerate(said):
            for name in mine:
                if other.get(name) != said[0].get(name):
                    exchange.told = True
                    raise ValueError(f"worker {rank} has {name} {other.get(name)}, worker 0 has {said[0].get(name)}")
        content = exchange.broadcast(content, said[0]["size"])
        if exchange.rank:
            try:
                run = opening.follow(content, given, init_from, on_wait, exchange)
            except BaseException as found:
                error = found
        _agree(exchange, error)
    except BaseException:
        if run and exchange.rank == 0:
            run.take_back()
        raise
    return run


def _agree(exchange, error, facts=()):
    """Every worker's facts by rank, if none has an error; else that is raised, where it is and as a `Left` in the others."""
    said = []
    reason = error if error is None else (str(error) or type(error).__name__)[:_LONGEST]
    for content in exchange.gather(json.dumps(dict(facts, error=reason, signal=getattr(error, "number", 0)),
                                              ensure_ascii=False).encode("utf-8", "replace")):
        try:
            said.append(json.loads(content))
        except ValueError:  # another version, which says other things
            said.append({})
    failed = [rank for rank, other in enumerate(said) if other.get("error")]
    if failed:
        exchange.told = True
        raise error or Left(failed[0], said[failed[0]]["error"], said[failed[0]].get("signal", 0))
    return said
