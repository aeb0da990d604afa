"""run.json: the text and settings of a run, where its model began, and a session for each start and resumption."""
import json
import platform
import time
from typing import List, Optional

import numpy as np

import rnn_ops
from rnn_ops_timemachine import files, learners
from rnn_ops_timemachine.settings import MAY_CHANGE, is_integer

FILE = "run.json"
_LARGEST = 16 << 20  # bytes; a session has some 300


def read(path: str) -> dict:
    """``asked``, ``init_from`` and ``sessions``, as `write` takes them: a resumed run finds them nowhere else.

    Raises
    ------
    FileNotFoundError
    ValueError
        It is not the record of a run.
    """
    record = files.parsed(files.read(path, _LARGEST))
    text = record.get("text") if type(record) is dict else None
    if type(text) is not dict or type(text.get("asked")) is not str:
        raise ValueError("does not say which text was asked for")
    init_from, sessions = record.get("init_from"), record.get("sessions")
    if type(init_from) not in (dict, type(None)):
        raise ValueError("does not say what the run began with")
    if type(sessions) is not list or not all(
            type(session) is dict and is_integer(session.get("first_epoch"), 1) for session in sessions):
        raise ValueError("does not say when the run was started and resumed")
    return dict(asked=text["asked"], init_from=init_from, sessions=sessions)


def write(path: str, run, asked: str, init_from: Optional[dict], sessions: List[dict]) -> None:
    """Write the record of a `run.Run` that begins or goes on. ``sessions``: the earlier ones."""
    batches, T, B = run.inputs.shape
    if not run.finished:
        sessions = sessions + [dict(
            first_epoch=run.epoch + 1, started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **{name: getattr(run.settings, name) for name in MAY_CHANGE},
            **({} if run.exchange is None else run.exchange.about()),
            versions=dict(python=platform.python_version(), numpy=np.__version__, **learners.versions(run.settings.step),
                          rnn_ops=rnn_ops.__version__))]
    record = dict(
        text=dict(asked=asked, name=run.text.name, source=run.text.source, sha256=run.text.sha256,
                  characters=len(run.text.characters), symbols=len(run.vocabulary), notice=run.text.notice),
        settings=run.settings._asdict(), batches_per_epoch=batches, tokens_per_epoch=batches * T * B,
        parameters=run.parameter_count, prompts=run.prompts, init_from=init_from, sessions=sessions)
    with files.replacing(path) as file:
        # A file name that is not UTF-8 has surrogates, which "backslashreplace" writes as JSON does.
        file.write(json.dumps(record, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
