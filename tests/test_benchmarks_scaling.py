"""What several workers cost: the arithmetic of the model, the tables of a stored result, and small real jobs. Nothing here
depends on how long anything takes."""
import json
import os
import types

import numpy as np
import pytest
from rnn_ops_benchmarks.scaling import __main__ as command
from rnn_ops_benchmarks.scaling import model, network, parts, report
from rnn_ops_benchmarks.scaling.network import Wire

from rnn_ops_timemachine.options import CommandError

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "benchmarks")
RESULT = os.path.join(BENCHMARKS, "results", "scaling.json")
GIGABIT = model.Network(1.25e8, 5e-5)
TINY = 3, 4, 5, 6


# --- the model ------------------------------------------------------------------------------------------------------

def test_bytes_by_hand():
    assert model.parameters(256, 77) == 105_293
    assert model.numbers(105_293, 2) == 105_293 + 2 * 72
    assert model.message(105_293, 2) == (4 * 105_437, 4 * 105_437, 2)  # float32: 0.42 MB each way
    assert model.message(105_293, 4) == (8 * 105_581, 8 * 105_581, 2)  # float64
    assert model.message(105_293, 2, compressed=True) == (4 * 6_590, 4 * 105_437, 4)  # 105,437 / 16 numbers, rounded up
    assert model.message(105_293, 4, compressed=True) == (4 * 6_599, 4 * 105_581, 4)


def test_model_counts_the_notes_of_the_exchange():
    from rnn_ops_timemachine import exchange
    assert model.NOTE == 1 + exchange.NOTE


def test_time_on_the_network_by_hand():
    sent = model.Message(1_250_000, 2_500_000, crossings=2)  # 10 and 20 ms at a Gbit/s
    assert model.on_the_network(sent, 2, 1, GIGABIT) == pytest.approx(2 * 0.03 + 1e-4)
    assert model.on_the_network(sent, 2, 2, GIGABIT) == pytest.approx(0.03 + 1e-4)
    assert model.on_the_network(sent, 2, 4, GIGABIT) == pytest.approx(0.03 + 1e-4)  # a worker's own link
    assert model.on_the_network(sent, 4, 1, GIGABIT._replace(latency=5e-3)) == pytest.approx(4 * 0.03 + 1e-2)


def test_step_by_hand():
    cost = model.Cost(1e-3, 2e-9)
    assert model.step(0.01, 256, 77, 1, 1, GIGABIT, 1e-8, cost) == 0.01
    sent = 4 * 105_437
    expected = 0.01 + 105_437e-8 + 1e-3 + 2e-9 * sent + 1e-4 + 2 * 2 * sent / 1.25e8
    assert model.step(0.01, 256, 77, 2, 1, GIGABIT, 1e-8, cost) == pytest.approx(expected)


def test_fit_finds_a_line():
    sizes = np.array([4e3, 4e4, 4e5, 4e6])
    assert model.fit(sizes, 5e-4 + 2e-9 * sizes) == pytest.approx((5e-4, 2e-9))


def test_fit_has_no_negative_latency():
    cost = model.fit([1e3, 1e6], [1e-6, 2e-3])  # the line through both has one
    assert cost.latency == 0 and 1e-9 < cost.per_byte < 2e-9


# --- the simulated network ------------------------------------------------------------------------------------------

def test_packets_follow_one_another():
    wire = Wire()
    wire.network = model.Network(1000, 0.5)
    for packet in (b"a" * 100, b"b" * 200):
        wire.put(packet, now=1.0)
    assert wire.due() == pytest.approx(1.6)
    assert list(wire.take(1.59)) == []
    assert list(wire.take(1.61)) == [b"a" * 100]
    assert wire.due() == pytest.approx(1.8)
    wire.put(b"c" * 100, now=5.0)  # the wire was free
    assert list(wire.take(9.0)) == [b"b" * 200, b"c" * 100] and wire.due() is None


def test_a_wire_without_limits_delivers_at_once():
    wire = Wire()
    wire.put(b"a", now=1.0)
    assert list(wire.take(1.0)) == [b"a"]


# --- where the time of a step goes -----------------------------------------------------------------------------------

def test_parts_of_known_moments():
    # begin, computed, message complete, sum there, spread, updated
    first, second = [0, 3, 4, 10, 12, 13], [0, 5, 7, 10, 11, 14]
    found = parts._parts([(None, [first]), (None, [second])])
    assert found == [[3, 1 + 2, 7 - 4, 10 - 7, 1], [5, 2 + 1, 0, 10 - 7, 3]]
    assert np.sum(found, axis=1).tolist() == [13, 14]


def test_parts_of_one_process():
    assert parts._parts([(None, [[0, 5], [5, 7]])]) == [[5, 0, 0, 0, 0], [2, 0, 0, 0, 0]]


def test_a_round_takes_as_long_as_the_slowest_worker():
    assert parts._slowest([(None, [1, 4]), (None, [2, 3])]) == [2, 4]


def job(name, losses, threshold=None):
    return types.SimpleNamespace(name=name, threshold=threshold, turn=lambda *_, **__: [(losses, [])])


def test_wrong_losses_are_not_timed():
    alone = job(parts.ALONE[0], [1.0, 2.0])
    good, compressed = job("good", [1.0, 2.00001]), job("2bit", [1.0, 2.5], threshold=0.1)
    assert parts._warm([alone, good, compressed], TINY, 2) == [(alone, 0), (good, pytest.approx(5e-6)), (compressed, None)]
    with pytest.raises(ValueError, match="^bad: wrong result: the losses differ from those of one process by 1.0e-03$"):
        parts._warm([alone, job("bad", [1.0, 2.002])], TINY, 2)


# --- the tables -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def stored():
    return report.read(RESULT)


def test_each_part_of_the_stored_result_has_its_table(stored):
    shown, found = report.markdown(stored), stored["parts"]
    assert found
    for head, needed in (("MB a training step", ()), ("ms a training step", ["steps"]), ("ms a round", ["kvstore"]),
                         ("ms a step of one process", ["computing"]), ("ms a step over a simulated network", ["network"]),
                         ("model: ms a round", ["kvstore"]),
                         ("model: times as fast, 32 rows together", ["steps", "kvstore", "computing"]),
                         ("model: times as fast, 32 rows for each worker", ["steps", "kvstore", "computing"])):
        assert shown.count(f"| {head}") == all(name in found for name in needed)
    for part in found.values():
        assert part["environment"]["commit"] and part["environment"]["versions"]["mxnet"] == "1.9.1"


def test_tables_of_the_pages_are_those_of_the_result(stored):
    """Every line of a table in the lab book's chapter is one of the stored result."""
    with open(os.path.join(BENCHMARKS, "NOTES.md"), encoding="utf-8") as file:
        chapter = file.read().split("# Several workers", 1)[1].split("\n# ", 1)[0]
    lines = [line for line in chapter.splitlines() if line.startswith("|")]
    assert len(lines) >= 6 + 10  # bytes and rounds at least
    assert set(lines) <= set(report.markdown(stored).splitlines())


def test_gain_by_hand():
    row = {"job": "2 workers", "workers": 2, "servers": 1, "threshold": None, "parts": {"flattening": 105_437e-8}}
    rounds = [dict(job="2 workers, 1 server", dtype="float32", size=size, median=1e-3 + 8e-9 * size) for size in (1000, 100_000)]
    computing = [dict(hidden=256, rows=rows, median=rows * 1e-3) for rows in (16, 32)]
    found = {"steps": {"rows": [row]}, "kvstore": {"rows": rounds}, "computing": {"rows": computing}}
    added = 105_437e-8 + 1e-3 + 8e-9 * 105_437 + 1e-4 + 2 * 2 * 4 * 105_437 / 1.25e8
    assert report.gain(found, 256, 2, 1, GIGABIT, weak=False) == pytest.approx(0.032 / (0.016 + added))
    assert report.gain(found, 256, 2, 1, GIGABIT, weak=True) == pytest.approx(2 * 0.032 / (0.032 + added))


def test_busy_processors_are_said(stored):
    busy = json.loads(json.dumps(stored))
    busy["parts"]["kvstore"]["environment"]["others"] = 0.42
    assert "other programs took 42% of the processors' time" in report.markdown(busy)


# --- the command ----------------------------------------------------------------------------------------------------

def test_command_shows_a_result(capsys, stored):
    assert command.main([RESULT]) == 0
    assert capsys.readouterr().out == report.markdown(stored)


def test_command_refuses_other_files(tmp_path):
    with pytest.raises(CommandError, match="FILE: cannot read .*none.json: No such file"):
        command.main([str(tmp_path / "none.json")])
    for content in ("[]", "{}", "no JSON", '{"format": 2, "kind": "grid"}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(CommandError, match="FILE: .*other.json: ") as error:
            command.main([str(tmp_path / "other.json"), "--measure", "steps"])
        assert error.value.status == 2 and len(str(error.value).splitlines()) == 1
        assert (tmp_path / "other.json").read_text() == content


def test_command_keeps_other_parts(tmp_path, monkeypatch, capsys, stored):
    monkeypatch.setitem(command._PARTS, "computing", lambda rounds: [dict(hidden=8, rows=1, median=0.5 * rounds)])
    file = tmp_path / "result.json"
    file.write_text(json.dumps(dict(stored, parts={"kvstore": stored["parts"]["kvstore"]})))
    assert command.main([str(file), "--measure", "computing", "--rounds", "2"]) == 0
    written = report.read(str(file))
    assert written["parts"]["kvstore"] == stored["parts"]["kvstore"]
    assert written["parts"]["computing"]["rows"] == [dict(hidden=8, rows=1, median=1.0)]
    assert "| H = 8 | 1,000 |" in capsys.readouterr().out


# --- real jobs ------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_steps_of_real_jobs():
    jobs = [parts.ALONE, ("2 workers", 2, 1, None), ("2 workers, 2bit", 2, 1, 0.25)]
    alone, two, compressed = parts.measure_steps(1, TINY, jobs)
    assert alone["error"] == 0 and two["error"] < 1e-6 and compressed["error"] is None
    for row in two, compressed:
        assert row["calls"] == parts.STEPS - 1 and row["best"] > 0
        assert row["parts"]["KVStore"] > 0 and row["parts"]["flattening"] > 0 and row["parts"]["waiting for the slowest"] >= 0
    assert alone["parts"]["computing"] > 0 and alone["parts"]["KVStore"] == 0


@pytest.mark.slow
def test_rounds_of_a_real_kvstore():
    rows = parts.measure_kvstore(1, sizes=[100, 10_000], stores=[("2 workers, 2 servers", 2, 2, None)])
    assert [(row["size"], row["dtype"]) for row in rows] == [
        (size, dtype) for size in (100, 10_000) for dtype in ("float32", "float64")]
    assert all(row["calls"] == 40 and row["best"] > 0 for row in rows)


@pytest.mark.slow
def test_steps_over_a_simulated_network():
    reason = network.why_not()
    if reason:
        pytest.skip(reason)
    slow = model.Network(1e7, 1e-2)
    unlimited, limited = parts.measure_network(1, [slow], TINY, [("2 workers", 2, 1, None)])
    assert (unlimited["bandwidth"], limited["bandwidth"], limited["latency"]) == (None, 1e7, 1e-2)
    assert unlimited["error"] < 1e-6 and limited["error"] < 1e-6
    assert limited["best"] >= 2e-2  # nothing is faster than there and back
    bandwidth, latency = limited["probed"]
    assert bandwidth < 1.1e7 and latency >= 1e-2


@pytest.mark.slow
def test_a_job_whose_worker_ends_is_an_error():
    with parts.Job("2 workers", 2) as job:
        job.turn("steps", shape=TINY, count=2)
        with pytest.raises(RuntimeError, match="^2 workers: a worker has ended$"):
            job.turn("no such turn")
