"""The loop that measures the processor's peak: it does as many multiply-adds as it counts, and nothing else."""
import shutil
import subprocess

import numpy as np
import pytest

from rnn_ops.backends import cpu

VECTORS = {"avx512": (64, 24), "avx2": (32, 12), "baseline": (16, 12)}  # bytes of one, chains; see peak.h


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("level", cpu.simd_levels())
def test_multiply_adds_are_counted_as_they_are_done(level, dtype, monkeypatch):
    size, chains = VECTORS[level]
    of_a_round = size // np.dtype(dtype).itemsize * chains
    assert cpu.multiply_adds(1, level=level, dtype=dtype) == of_a_round
    assert cpu.multiply_adds(12345, level=level, dtype=dtype) == 12345 * of_a_round
    assert cpu.multiply_adds(2 ** 24, level=level, dtype=dtype) == 2 ** 24 * of_a_round  # the last that float32 counts
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", "3")
    assert cpu.multiply_adds(1000, 3, level, dtype) == 3 * 1000 * of_a_round
    monkeypatch.setenv("RNN_OPS_SIMD", level)
    assert cpu.multiply_adds(5, dtype=dtype) == 5 * of_a_round


@pytest.mark.parametrize("arguments, message", [
    (dict(rounds=0), "rounds: got 0, needs a whole number from 1 to 16,777,216"),
    (dict(rounds=2 ** 24 + 1), "rounds: got 16777217, needs"), (dict(rounds=1.5), "rounds: got 1.5, needs"),
    (dict(threads=0), "threads: got 0, needs a whole number from 1 to 2"), (dict(threads=3), "threads: got 3, needs"),
    (dict(level="mmx"), "level: got 'mmx', needs one of "), (dict(level=""), "level: got '', needs one of "),
    (dict(dtype="int32"), "dtype: got 'int32', needs 'float32' or 'float64'")])
def test_what_is_refused(arguments, message, monkeypatch):
    monkeypatch.setenv("RNN_OPS_NUM_THREADS", "2")
    with pytest.raises(ValueError) as raised:
        cpu.multiply_adds(**dict(dict(rounds=1), **arguments))
    assert str(raised.value).startswith(message)


def test_an_invalid_setting_is_an_error(monkeypatch):
    for name in "RNN_OPS_NUM_THREADS", "RNN_OPS_SIMD":
        with monkeypatch.context() as patched:
            patched.setenv(name, "many")
            with pytest.raises(ValueError, match=f"{name}: got 'many', needs"):
                cpu.multiply_adds(1)


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.parametrize("level", [level for level in cpu.simd_levels() if level != "baseline"])
def test_the_loop_is_nothing_but_multiply_adds(level):
    """No product shared or left out, nothing from or to memory: else the rate is not the processor's."""
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", "-C", cpu.library_path()], stdout=subprocess.PIPE,
                          text=True, check=True).stdout
    body = code.split(f"<double rnn::{level}::multiply_adds<float>(long)>:")[1].split("\n\n")[0].splitlines()
    instructions = [line.split("\t")[1].split("#")[0].strip() for line in body if line.count("\t") == 1]
    products = [number for number, text in enumerate(instructions) if "fmadd" in text]
    loop = instructions[products[0]:products[-1] + 1]
    assert len(products) == VECTORS[level][1]
    assert {text.split()[0] for text in loop if "fmadd" not in text} <= {"add", "inc", "sub", "dec", "cmp"}, loop
    assert not any("(" in text for text in loop), loop
