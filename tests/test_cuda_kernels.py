"""The CUDA kernels, executed on the emulator of tests/cuda_host through the launcher that launches them on a GPU.

The emulator also finds errors that a result does not show: races, missing barriers, memory that was never written, accesses
outside of arrays.
"""
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_host import Emulator, KernelError, compile_kernels, text_of
from recurrence_cases import check, random_case, run
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher

HERE = os.path.dirname(os.path.abspath(__file__))

# (family, architecture, multiprocessors) and shapes T, B, I, H: 1s, primes, and sizes around the tiles' 32, 128 and 256
# columns. Few multiprocessors make a block own many rows.
SHAPES = [
    ("resident", 70, 2, (1, 1, 1, 1)), ("resident", 75, 1, (4, 2, 5, 31)), ("resident", 80, 2, (3, 7, 2, 32)),
    ("resident", 86, 3, (2, 13, 3, 33)), ("resident", 89, 4, (5, 3, 7, 127)), ("resident", 90, 2, (3, 19, 7, 129)),
    ("resident", 80, 4, (3, 4, 1, 255)), ("resident", 70, 1, (2, 3, 5, 256)), ("resident", 90, 132, (7, 11, 3, 2)),
    ("cluster", 90, 132, (1, 1, 1, 1)), ("cluster", 90, 4, (3, 17, 5, 127)), ("cluster", 90, 16, (2, 2, 3, 128)),
    ("cluster", 90, 8, (4, 5, 7, 129)), ("cluster", 90, 4, (3, 11, 2, 257)), ("cluster", 90, 132, (2, 7, 3, 256)),
    ("cluster", 90, 16, (2, 3, 3, 509)), ("cluster", 90, 16, (2, 1, 3, 1021)),
    ("grid", 70, 80, (1, 1, 1, 1)), ("grid", 75, 16, (3, 17, 5, 127)), ("grid", 80, 4, (2, 7, 3, 129)),
    ("grid", 86, 16, (4, 5, 7, 255)), ("grid", 89, 9, (3, 11, 2, 257)), ("grid", 90, 132, (2, 2, 3, 256)),
    ("stepwise", 70, 80, (1, 1, 1, 1)), ("stepwise", 80, 4, (5, 3, 7, 129)), ("stepwise", 90, 132, (3, 17, 2, 64)),
]


def on(architecture, multiprocessors, **options):
    return Launcher(Emulator(variants.known_device(architecture, multiprocessors), **options))


KINDS = [(False, "tanh"), (True, "tanh"), (True, "relu")]
kinds = pytest.mark.parametrize("tokens, activation", KINDS, ids=["dense", "tokens", "tokens-relu"])


@kinds
@pytest.mark.parametrize("family, architecture, multiprocessors, shape", SHAPES,
                         ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value))
@pytest.mark.slow
def test_forward_and_backward(family, architecture, multiprocessors, shape, tokens, activation):
    check(on(architecture, multiprocessors), shape, "float32", tokens, activation=activation, variant=family)


@kinds
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 3, 7, 129), (3, 17, 2, 64)], ids=lambda shape: "x".join(map(str, shape)))
def test_double_precision(shape, tokens, activation):
    check(on(70, 80), shape, "float64", tokens, activation=activation)


@settings(max_examples=40)
@given(T=st.integers(1, 5), B=st.integers(1, 21), I=st.integers(1, 40), H=st.integers(1, 140), kind=st.sampled_from(KINDS),
       family=st.sampled_from((None,) + variants.FAMILIES), architecture=st.sampled_from((75, 90)),
       multiprocessors=st.sampled_from((9, 16)), seed=st.integers(0, 2 ** 31))
@pytest.mark.slow
def test_any_shape(T, B, I, H, kind, family, architecture, multiprocessors, seed):
    if family == "cluster" and architecture < 90:
        family = None
    tokens, activation = kind
    check(on(architecture, multiprocessors, seed=seed % 1000), (T, B, I, H), "float32", tokens, seed, activation, variant=family)


@pytest.mark.parametrize("family, multiprocessors", [("resident", 2), ("cluster", 8), ("grid", 6)])
@pytest.mark.slow
def test_a_matrix_at_any_address(family, multiprocessors):
    """Of 4 columns each, its rows could be read 16 bytes at a time if they began at multiples of 16."""
    (inputs, state, Wxh, Whh, bh), doutputs, dlast_state = random_case((3, 5, 3, 64), "float32", tokens=True)
    moved = np.empty(64 * 64 + 1, "float32")[1:].reshape(64, 64)
    moved[...] = Whh
    assert moved.ctypes.data % 16 and not Whh.ctypes.data % 16
    results = [run(on(90, multiprocessors), (inputs, state, Wxh, matrix, bh), doutputs, dlast_state, variant=family)
               for matrix in (Whh, moved)]
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


TILES = [(family, *tile) for family in ("resident", "cluster", "grid") for tile in variants.tiles(family, 90)]


@pytest.fixture(scope="module")
def tiles_compiled():
    compile_kernels([variants.Variant(family, tile, blocks or 1).kernel(direction)
                     for family, tile, blocks in TILES for direction in ("Forward", "Backward")])


@pytest.mark.parametrize("family, tile, blocks", TILES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.slow
def test_every_tile_that_can_be_chosen(tiles_compiled, family, tile, blocks):
    H = tile.k - 1
    blocks = blocks or -(-H // tile.columns)
    rows = 2 * tile.rows  # a group works on two tiles of rows in turn; its last row is not there
    variant = variants.Variant(family, tile, blocks, groups=1, rows=rows)
    check(on(90, blocks), (2 if tile.k > 1000 else 3, rows - 1 or 1, 3, H), "float32", tokens=True, variant=variant)


@pytest.mark.parametrize("family, multiprocessors", [("resident", 2), ("cluster", 8), ("grid", 6), ("stepwise", 4)])
@pytest.mark.slow
def test_the_order_of_threads_changes_no_bit(family, multiprocessors):
    case = random_case((4, 9, 5, 130), "float32", tokens=True)
    results = [run(on(90, multiprocessors, seed=seed), *case, variant=family) for seed in (0, 1000, 2000)]
    for other in results[1:]:
        assert all(np.array_equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("family, multiprocessors", [("resident", 2), ("cluster", 8), ("grid", 6), ("stepwise", 4)])
@pytest.mark.parametrize("token", [-1, 5, 2 ** 31 - 1, -2 ** 31])
def test_a_token_outside_the_table_makes_nan_of_its_row_alone(family, multiprocessors, token):
    (inputs, *floats), _, _ = random_case((4, 5, 5, 40), "float32", tokens=True)
    good = np.full((4, 5, 40), np.inf, "float32")
    on(90, multiprocessors).forward(inputs, *floats, good, variant=family)
    inputs[1, 2] = token
    outputs = np.full((4, 5, 40), np.inf, "float32")
    on(90, multiprocessors).forward(inputs, *floats, outputs, variant=family)
    others = np.arange(5) != 2
    assert np.isnan(outputs[1:, 2]).all()
    assert np.array_equal(outputs[0], good[0]) and np.array_equal(outputs[:, others], good[:, others])


@pytest.mark.parametrize("family, multiprocessors", [("resident", 2), ("cluster", 8), ("grid", 6), ("stepwise", 4)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_nan_stays_nan(family, multiprocessors, activation):
    (inputs, state, *weights), _, _ = random_case((3, 3, 5, 40), "float32", tokens=True)
    state[1, 7] = np.nan
    outputs = np.zeros((3, 3, 40), "float32")
    on(90, multiprocessors).forward(inputs, state, *weights, outputs, activation=activation, variant=family)
    assert np.isnan(outputs[:, 1]).all() and np.isfinite(outputs[:, [0, 2]]).all()


@pytest.mark.parametrize("tokens", [False, True], ids=["dense", "tokens"])
def test_each_gradient_alone_and_gradients_left_out(tokens):
    case = random_case((4, 5, 6, 20), "float32", tokens)
    (inputs, state, Wxh, Whh, bh), doutputs, dlast_state = case
    launcher = on(80, 4)
    everything = run(launcher, *case)
    for name, array in {"dstate": state, "dWxh": Wxh, "dWhh": Whh, "dbh": bh, "dinputs": inputs}.items():
        if name in everything:
            alone = np.full(array.shape, np.nan, "float32")
            launcher.backward(inputs, state, Wxh, Whh, everything["outputs"], doutputs, dlast_state, **{name: alone})
            assert np.array_equal(alone, everything[name])
    before = len(launcher._runtime.launches)
    launcher.backward(inputs, state, Wxh, Whh, everything["outputs"], doutputs, dlast_state)
    assert len(launcher._runtime.launches) == before


@pytest.mark.parametrize("family, multiprocessors", [("resident", 2), ("cluster", 8), ("grid", 6), ("stepwise", 4)])
def test_no_gradient_means_zeros(family, multiprocessors):
    arrays, doutputs, dlast_state = random_case((3, 5, 6, 40), "float32", tokens=True)
    launcher = on(90, multiprocessors)
    outputs = run(launcher, arrays, doutputs, dlast_state, variant=family)["outputs"]
    for given_ in (None, dlast_state), (doutputs, None), (None, None):
        zeros = [np.zeros_like(like) if array is None else array for array, like in zip(given_, (doutputs, dlast_state))]
        pair = [np.full((5, 40), np.nan, "float32") for _ in range(2)]
        for gradients, dstate in zip((given_, zeros), pair):
            launcher.backward(*arrays[:4], outputs, *gradients, dstate=dstate, variant=family)
        assert np.array_equal(*pair)


@pytest.mark.parametrize("shape, expected", [((7, 31, 3, 129), "chunks"), ((1, 1, 1, 1), "one"), ((2, 16, 4096, 3), "one"),
                                             ((3, 32, 2, 128), "chunks")])
@pytest.mark.slow
def test_sums_by_token_in_one_piece_and_in_chunks(shape, expected):
    launcher = on(80, 4)
    check(launcher, shape, "float32", tokens=True)
    assert any(launch.kernel.name == "rnn_sum_chunks" for launch in launcher._runtime.launches) == (expected == "chunks")


def test_sums_of_tokens_that_do_not_occur_are_zero():
    arrays, doutputs, dlast_state = random_case((3, 8, 50, 4), "float32", tokens=True)
    arrays[0][...] = 7
    dWxh = run(on(80, 4), arrays, doutputs, dlast_state)["dWxh"]
    assert (np.delete(dWxh, 7, 0) == 0).all() and (dWxh[7] != 0).all()


@pytest.mark.slow
def test_memory_is_allocated_before_anything_is_launched():
    class Full(Emulator):
        def empty(self, shape, dtype):
            self.room -= 1
            if self.room < 0:
                raise MemoryError
            return super().empty(shape, dtype)

        def zeros(self, shape, dtype):
            array = self.empty(shape, dtype)
            array[...] = 0
            return array

    arrays, doutputs, dlast_state = random_case((3, 64, 6, 40), "float32", tokens=True)
    outputs = run(on(80, 4), arrays, doutputs, dlast_state)["outputs"]
    gradients = {"d" + name: np.empty_like(array) for name, array in
                 zip(("state", "Wxh", "Whh", "bh"), arrays[1:])}
    for family in "grid", "stepwise":
        emulator = Full(variants.known_device(80, 4))
        for room in range(10):
            emulator.room = room
            try:
                Launcher(emulator).backward(*arrays[:4], outputs, doutputs, dlast_state, **gradients, variant=family)
                break
            except MemoryError:
                assert emulator.launches == []
        assert room == 4  # da, workspace, two partial sums


# ---- under AddressSanitizer and UBSan, in a Python that has their libraries

SANITIZED = """
import sys
from cuda_host import Emulator
from recurrence_cases import check
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launcher

def edit(family, text):
    if "spoil" in sys.argv:
        text = text.replace("element(column.h, line, H), value", "element(column.h, line + B, H), value")
    return text

for family, multiprocessors, shape in [
        ("resident", 2, (3, 7, 2, 33)), ("resident", 4, (2, 3, 1, 223)), ("cluster", 4, (3, 11, 5, 127)),
        ("cluster", 8, (2, 3, 3, 257)), ("grid", 6, (3, 9, 5, 129)), ("stepwise", 4, (3, 5, 7, 37))]:
    for tokens in False, True:
        emulator = Emulator(variants.known_device(90, multiprocessors), edit=edit, sanitize=True)
        check(Launcher(emulator), shape, "float32", tokens, variant=family)
check(Launcher(Emulator(variants.known_device(80, 4), edit=edit, sanitize=True)), (2, 3, 4, 5), "float64", True)
print("all of them")
"""


def run_sanitized(*arguments):
    libraries = [subprocess.run(["g++", f"-print-file-name={name}"], stdout=subprocess.PIPE, text=True).stdout.strip()
                 for name in ("libasan.so", "libubsan.so")]
    # Only the memory of the kernels and of the emulator counts. Python leaks at exit, and NumPy may allocate 0 bytes.
    environment = dict(os.environ, LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0",
                       PYTHONPATH=os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")])))
    return subprocess.run([sys.executable, "-c", SANITIZED, *arguments], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_sanitizers():
    ran = run_sanitized()
    assert ran.returncode == 0 and "all of them" in ran.stdout, ran.stdout


@pytest.mark.slow
def test_sanitizers_notice_a_stray_store():
    ran = run_sanitized("spoil")
    assert ran.returncode != 0 and "ERROR: AddressSanitizer: heap-" in ran.stdout, ran.stdout


# ---- each barrier is needed, and the emulator sees when it is gone

# In the kernels' own text. The twin's text has PLACE or TWIN there.
BARRIER = re.compile(r"(?:(?<![:\w] )|(?<=else ))(?<![:\w])(block_barrier\(\)|cluster_barrier\(\)|copy_wait<\d>\(\)"
                     r"|group_barrier\([^;{]*\)|mbarrier_wait\([^;{]*\)|mbarrier_expect\([^;{]*\)|mbarrier_init_fence\(\)"
                     r"|mbarrier_init\([^;{]*\));")
BUFFERS = re.compile(r"n & 1|r / Tile::ROWS % 2")  # which of two is this step's
# Several warps; where the family allows it, several blocks and several warps along k.
VARIANTS = {
    "resident": [variants.Variant("resident", variants.Tile(64, 64, 8, 1, 2, 0), 1)],
    "cluster": [variants.Variant("cluster", variants.Tile(128, 64, 16, 1, 2, 0), 2, exchange=exchange)
                for exchange in variants.EXCHANGES],
    "grid": [variants.Variant("grid", variants.Tile(256, 64, 8, 2, 1, 0), 4)],
}


def places(pattern):
    """(family, number) of each place in each family's text."""
    for family in VARIANTS:
        for number, match in enumerate(pattern.finditer(text_of(family))):
            yield pytest.param(family, number, id=f"{family}-{number}-{match.group()}")


def execute(family, edit=None, exchanges=variants.EXCHANGES):
    """With one tile of rows, where only a meeting lies between two steps, and with two, where steps overlap."""
    for variant in VARIANTS[family]:
        for tiles in (1, 2) if variant.exchange in exchanges else ():
            rows = tiles * variant.tile.rows
            check(on(90, variant.blocks, edit=edit), (5, rows, 3, variant.tile.k - 3), "float32", tokens=True,
                  variant=variant._replace(rows=rows))


def changed(family, pattern, number, new):
    """An edit that puts `new` in one place of a family's text."""
    def edit(name, text):
        if name != family:
            return text
        match = list(pattern.finditer(text))[number]
        return text[:match.start()] + new + text[match.end():]
    return edit


@pytest.mark.parametrize("family, barriers", [("resident", 2), ("cluster", 10), ("grid", 5)])
@pytest.mark.slow
def test_with_all_barriers_the_kernels_pass(family, barriers):
    execute(family)
    assert len(BARRIER.findall(text_of(family))) == barriers


# This barrier is in a header, and these families do not use it: only the grid's warps share the k's.
NOT_THEIRS = {("resident", 0), ("cluster", 0)}


@pytest.mark.parametrize("family, number", [place for place in places(BARRIER) if place.values not in NOT_THEIRS])
@pytest.mark.slow
def test_with_a_barrier_deleted_the_kernels_fail(family, number):
    with pytest.raises(KernelError):
        execute(family, changed(family, BARRIER, number, ";"))


@pytest.mark.parametrize("family, number", list(places(BUFFERS)))
@pytest.mark.slow
def test_with_a_single_buffer_the_kernels_fail(family, number):
    with pytest.raises((KernelError, AssertionError)):  # a state is overwritten too early, or the wrong one is read
        execute(family, changed(family, BUFFERS, number, "0"))


# Further faults of st.async and its mbarrier: a text in cluster.cu or recurrence.cuh, and its replacement.
FAULTS = {
    "the other parity": ("n >> 1 & 1)", "~(n >> 1) & 1)"),
    "the same parity for ever": ("n >> 1 & 1)", "0)"),
    "a parity that changes with every state": ("n >> 1 & 1)", "n & 1)"),
    "fewer bytes are expected than come": ("SIZE = 4 * Tile::ROWS * Tile::K;", "SIZE = 4 * Tile::ROWS * Tile::K - 16;"),
    "more bytes are expected than come": ("SIZE = 4 * Tile::ROWS * Tile::K;", "SIZE = 4 * Tile::ROWS * Tile::K + 16;"),
    "every thread arms": ("if (wanted && threadIdx.x == 0) mbarrier_expect", "if (wanted) mbarrier_expect"),
    "the last state is sent, and nobody waits for it": ("tile, values, at.n + 1 < steps);", "tile, values, true);"),
    "one lane does not send": ("store_async(wanted && this->sends(i)",
                               "store_async(wanted && this->sends(i) && threadIdx.x != 32"),
    "a lane sends twice": ("store_async(wanted && this->sends(i), to[i], signal[i], four);",
                           "store_async(wanted && this->sends(i), to[i], signal[i], four),"
                           " store_async(wanted && threadIdx.x == 5, to[i], signal[i], four);"),
    "the neighbour's mbarrier is told": ("barrier[i] = remote(barriers, this->rank(i))",
                                         "barrier[i] = remote(barriers, (this->rank(i) + 1) % BLOCKS)"),
    "the state before is overwritten": ("to[i] = kept(this->state[i] + 4 * this->place(n, r))",
                                        "to[i] = kept(this->state[i] + 4 * this->place(n + 1, r))"),
    "a tile's rows are waited for at another's mbarrier": ("mbarrier_wait(of(n, r),", "mbarrier_wait(of(n, 0),"),
}


@pytest.mark.parametrize("right, wrong", list(FAULTS.values()), ids=list(FAULTS))
@pytest.mark.slow
def test_a_fault_between_blocks_is_noticed(right, wrong):
    def edit(family, text):
        assert family != "cluster" or text.count(right) == 1
        return text.replace(right, wrong) if family == "cluster" else text

    with pytest.raises(KernelError):
        execute("cluster", edit, exchanges=("async",))
