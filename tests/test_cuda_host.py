"""The emulator of tests/cuda_host: it computes as a GPU does, and notices each rule that a kernel breaks.

The kernels here have a few lines each, which replace the text of a real kernel.
"""
import ctypes
import re

import numpy as np
import pytest

from cuda_host import Emulator, KernelError
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launch
from rnn_ops.backends.cuda.sources import Kernel

H100 = variants.known_device(90, 8)
PRIMITIVES = '#include "primitives.cuh"\n#line 1 "kernel.cu"\n'


def launch(body, *arrays, grid=(1, 1, 1), block=64, shared=0, cluster=1, cooperative=False, seed=0,
           parameters=None, values=None, earlier=0):
    """Runs a kernel `body` whose parameters are float* a, b, ... for the arrays, after `earlier` launches of nothing."""
    parameters = parameters or ", ".join(f"float* {name}" for name, _ in zip("abc", arrays))
    texts = [f"{PRIMITIVES}__global__ void kernel({parameters}) {{\n{text}\n}}\n" for text in (body, "")]
    emulator = Emulator(H100, seed=seed, edit=lambda family, source: texts[len(emulator.launches) <= earlier])
    for _ in range(earlier):
        emulator.launch(Launch(Kernel("resident", "kernel", ()), grid, block, shared, cluster, cooperative),
                    values or [ctypes.c_void_p(emulator.address(array)) for array in arrays])
    emulator.launch(Launch(Kernel("resident", "kernel", ()), grid, block, shared, cluster, cooperative),
                values or [ctypes.c_void_p(emulator.address(array)) for array in arrays])


def refused(message, *args, seeds=3, **options):
    """The launch fails with the message, whatever the order of the threads. Returns the messages."""
    messages = []
    for seed in range(seeds):
        with pytest.raises(KernelError, match=message) as caught:
            launch(*args, seed=seed, **options)
        messages.append(str(caught.value))
    return messages


REVERSE = """
  float* s = shared_memory();
  s[threadIdx.x] = a[threadIdx.x];
  {}
  a[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];"""


def test_threads_meet_and_see_the_writes_of_others():
    a = np.arange(64, dtype="float32")
    launch(REVERSE.format("block_barrier();"), a, shared=256)
    assert a.tolist() == list(range(63, -1, -1))


def test_every_block_and_its_sizes():
    a = np.full((5, 3, 2, 64), -1, "float32")
    launch("a[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = "
           "100 * blockIdx.z + 10 * blockIdx.y + blockIdx.x;", a, grid=(2, 3, 5))
    z, y, x, _ = np.indices(a.shape)
    assert np.array_equal(a, 100 * z + 10 * y + x)


@pytest.mark.slow
def test_lanes_exchange_and_vote():
    a, b = np.arange(64, dtype="float32"), np.zeros(64, "float32")
    launch("float v = a[threadIdx.x];\n v += exchange_lanes(v, 4);\n v += exchange_lanes(v, 1);\n a[threadIdx.x] = v;\n"
           "b[threadIdx.x] = __ffs(ballot(threadIdx.x % 32 >= 5));\n"
           "b[threadIdx.x] += 100 * lane_value(threadIdx.x, threadIdx.x / 2 % 16 + 3);", a, b)
    i = np.arange(64)
    assert np.array_equal(a, i + (i ^ 4) + (i ^ 1) + (i ^ 5))
    assert np.array_equal(b, 6 + 100 * (i // 32 * 32 + i // 2 % 16 + 3))
    refused("lane 32, needs one from 0 to 31, at kernel.cu:2", "lane_value(0, 32);")


def test_a_missing_barrier():
    # What was not written yet is found first in some orders, the race in others.
    refused(r"never written|no barrier between(.|\n)*at .*:\d", REVERSE.format(""), np.zeros(64, "float32"), shared=256)
    # Written before the barrier and after it: a race in every order.
    refused("no barrier between", "float* s = shared_memory(); s[threadIdx.x] = 1; block_barrier();\n"
            "a[threadIdx.x] = s[63 - threadIdx.x];\ns[threadIdx.x] = 2;", np.zeros(64, "float32"), shared=256)


def test_a_race_in_global_memory():
    refused("no barrier between(.|\n)*at .*:2", "a[0] = 1;", np.zeros(1, "float32"))
    refused("no barrier between", "if (threadIdx.x == 0) a[0] = blockIdx.x;", np.zeros(1, "float32"), grid=(2, 1, 1))
    # A barrier of the block orders nothing between blocks.
    refused("no barrier between|through L1", "if (blockIdx.x == 0) a[threadIdx.x] = 1; block_barrier();\n"
            "if (blockIdx.x == 1) b[threadIdx.x] = a[threadIdx.x];", np.zeros(64, "float32"), np.zeros(64, "float32"),
            grid=(2, 1, 1), cooperative=True)


@pytest.mark.slow
def test_threads_at_different_barriers():
    refused("others at kernel.cu:[23]", "if (threadIdx.x < 32) block_barrier();\n else block_barrier();")
    refused("others at kernel.cu:[23]", "if (threadIdx.x % 2) exchange_lanes(1, 1);\n else exchange_lanes(1, 1);")
    refused("wait forever; .*32 wait for the block at kernel.cu:2", "if (threadIdx.x < 32) block_barrier();")
    refused("wait forever", "if (threadIdx.x < 16) exchange_lanes(1, 1);")
    refused("wait forever", "if (threadIdx.x < 32) block_barrier(); else cluster_barrier();")


def test_shared_memory_that_was_not_written():
    refused("never written", "a[threadIdx.x] = shared_memory()[threadIdx.x];", np.zeros(64, "float32"), shared=256)


@pytest.mark.slow
def test_outside_of_arrays():
    refused(r"outside the arrays(.|\n)*at .*:2", "a[threadIdx.x + 1] = 0;", np.zeros(64, "float32"))
    refused("outside the arrays", "b[threadIdx.x] = a[threadIdx.x - 1];", np.zeros(64, "float32"), np.zeros(64, "float32"))
    refused("byte 256 of the block's 256", "shared_memory()[threadIdx.x + 1] = 0;", shared=256)


COPY = """
  float4* s = reinterpret_cast<float4*>(shared_memory());
  const float4* from = reinterpret_cast<const float4*>(a);
  copy_start(s + threadIdx.x, from + threadIdx.x);
  copy_close_batch();
  copy_start(s + 64 + threadIdx.x, from + 64 + threadIdx.x);
  copy_close_batch();
  {}
  reinterpret_cast<float4*>(b)[threadIdx.x] = s[{}];"""


@pytest.mark.slow
def test_copies_in_the_background():
    a, b = np.arange(512, dtype="float32"), np.zeros(256, "float32")
    launch(COPY.format("copy_wait<1>();", "threadIdx.x") + "copy_wait<0>();", a, b, shared=2048)
    assert np.array_equal(b, a[:256])
    launch(COPY.format("copy_wait<0>(); block_barrier();", "127 - threadIdx.x"), a, b, shared=2048)
    assert np.array_equal(b.reshape(64, 4), a.reshape(128, 4)[64:][::-1])


@pytest.mark.slow
def test_copies_not_waited_for():
    arrays = np.zeros(512, "float32"), np.zeros(256, "float32")
    refused("on its way", COPY.format("", "threadIdx.x"), *arrays, shared=2048)
    refused("on its way", COPY.format("copy_wait<1>();", "64 + threadIdx.x"), *arrays, shared=2048)
    refused("no barrier between|on its way|never written", COPY.format("copy_wait<0>();", "127 - threadIdx.x"), *arrays,
            shared=2048)
    refused("ended with copies on their way", "copy_start(reinterpret_cast<float4*>(shared_memory()) + threadIdx.x,\n"
            "reinterpret_cast<const float4*>(a) + threadIdx.x);", arrays[0], shared=2048)


CLUSTER = """
  float* s = shared_memory();
  {}
  const float v = 100 * blockIdx.x + threadIdx.x;
  for (int rank = 0; rank < 4; rank++)
    if (threadIdx.x < 4)
      store_to_block(remote(s, rank) + 16 * (blockIdx.x % 4 * 4 + threadIdx.x), {{v, v + .25f, v + .5f, v}});
  {}
  a[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];"""
OF_FOUR = dict(grid=(8, 1, 1), shared=256, cluster=4)


def test_blocks_of_a_cluster():
    a = np.zeros((8, 64), "float32")
    launch(CLUSTER.format("cluster_barrier();", "cluster_barrier();"), a, **OF_FOUR)
    for block in range(8):
        first = block // 4 * 4
        expected = [100 * (first + rank) + i + part for rank in range(4) for i in range(4) for part in (0, .25, .5, 0)]
        assert a[block].tolist() == expected


@pytest.mark.slow
def test_blocks_that_may_not_have_started_or_may_have_ended():
    a = np.zeros((8, 64), "float32")
    refused("may not have started", CLUSTER.format("", "cluster_barrier();"), a, **OF_FOUR)
    refused("no barrier between|never written", CLUSTER.format("cluster_barrier();", "block_barrier();"), a, **OF_FOUR)
    refused("may have ended", "cluster_barrier();\n if (blockIdx.x == 0 && threadIdx.x == 0) "
            "store_to_block(remote(shared_memory(), 3), {1, 1, 1, 1});", **OF_FOUR)


@pytest.mark.parametrize("message, old, new", [
    ("16 bytes at an address that is not a multiple", "remote(s,", "remote(s + 1,"),
    ("into block 4 of a cluster of 4", "rank < 4", "rank < 5"), ("memory that is not shared", "remote(s,", "remote(a,"),
    (r"stores at byte \d+ of a block's 256", "* 4 + threadIdx.x)", "* 4 + threadIdx.x + 16)")])
@pytest.mark.slow
def test_addresses_in_other_blocks(message, old, new):
    text = CLUSTER.format("cluster_barrier();", "cluster_barrier();").replace(old, new)
    refused(message, text, np.zeros((8, 64), "float32"), **OF_FOUR)


def test_other_blocks_are_those_of_the_cluster():
    refused("asks for a block of its cluster and has none", "remote(shared_memory(), 0);", shared=256)


# ---- mbarriers and their deliveries

# Two blocks of two warps. A state is made of all of the state before it; every thread makes 4 values and sends them to both.
SIZE, STEPS = 512, 5
PING_PONG = """
  float* states = shared_memory();
  Mbarrier* barriers = reinterpret_cast<Mbarrier*>(states + 2 * 512);
  const int t = threadIdx.x, rank = blockIdx.x % 2;
  if (t == 0) {
    mbarrier_init(barriers);
    mbarrier_init(barriers + 1);
    mbarrier_init_fence();
    mbarrier_expect(barriers, 2048);
    mbarrier_expect(barriers + 1, 2048);
  }
  for (int i = t; i < 512; i += 64) states[i] = i % 7;
  cluster_barrier();
  for (int n = 0; n < 5; n++) {
    if (n > 0) {
      mbarrier_wait(barriers + (n & 1), (n - 1) / 2 & 1);
      if (t == 0 && n + 2 <= 5) mbarrier_expect(barriers + (n & 1), 2048);
    }
    float sum = 0;
    for (int i = t % 32; i < 512; i += 32) sum += states[(n & 1) * 512 + i];
    for (int mask = 1; mask < 32; mask *= 2) sum += exchange_lanes(sum, mask);
    sum /= 512;
    const float4 values = {sum, sum + t, sum - rank, 1};
    const int place = (n + 1 & 1) * 512 + rank * 256 + t * 4;
    for (int to = 0; to < 2; to++) store_async(true, remote(states + place, to), remote(barriers + (n + 1 & 1), to), values);
  }
  mbarrier_wait(barriers + 1, 0);
  for (int i = t; i < 512; i += 64) a[blockIdx.x * 512 + i] = states[512 + i];"""
TWO = dict(grid=(2, 1, 1), cluster=2, shared=4 * 2 * SIZE + 16)


def ping_pong(*edits):
    text = PING_PONG
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.slow
def test_blocks_that_send_to_one_another():
    state = np.arange(SIZE) % 7.
    for _ in range(STEPS):
        mean = state.mean()
        state = np.stack(np.broadcast_arrays(mean, mean + np.arange(64), mean - [[0], [1]], 1), -1).ravel()
    first = None
    for seed in range(50):
        a = np.full((2, SIZE), np.nan, "float32")
        launch(PING_PONG, a, seed=seed, **TWO)
        first = a if first is None else first
        assert np.array_equal(a, first)
    assert np.array_equal(a[0], a[1])
    np.testing.assert_allclose(a[0], state, rtol=1e-5)


WAIT = "mbarrier_wait(barriers + (n & 1), (n - 1) / 2 & 1);"
LAST_WAIT = "mbarrier_wait(barriers + 1, 0);"
ARM = "mbarrier_expect(barriers, 2048);"
ARM_AGAIN = "if (t == 0 && n + 2 <= 5) mbarrier_expect(barriers + (n & 1), 2048);"
INIT, FENCE, MEET = "mbarrier_init(barriers + 1);", "mbarrier_init_fence();", "cluster_barrier();"
UNORDERED = "overwrites data that thread .* reads, nothing orders them"
TOO_EARLY = f"has brought, and has not waited for phase|has not yet brought|never written|{UNORDERED}"
ARMED_TWICE = "arms the mbarrier .* nothing orders that after the end of phase"
OTHER_PHASE = "nothing orders its sending after the end of phase"

FAULTS = {
    "no wait": (TOO_EARLY, [(WAIT, "")]),
    "wrong parity": (TOO_EARLY, [("(n - 1) / 2 & 1", "(n + 1) / 2 & 1")]),
    "the parity stays": (f"{TOO_EARLY}|{ARMED_TWICE}", [("(n - 1) / 2 & 1", "0")]),
    "wrong parity at last": (TOO_EARLY, [(LAST_WAIT, "mbarrier_wait(barriers + 1, 1);")]),
    "armed once": ("wait forever.*is not armed and got 2048 bytes", [(ARM_AGAIN, "")]),
    "not armed": ("wait forever.*is not armed", [(ARM, "")]),
    "armed twice": (ARMED_TWICE, [(ARM, ARM + ARM)]),
    "armed again, twice": (ARMED_TWICE, [(ARM_AGAIN, ARM_AGAIN + ARM_AGAIN)]),
    "one buffer for two": (UNORDERED, [("(n & 1) * 512", "0"), ("(n + 1 & 1) * 512", "0")]),
    "one mbarrier for two": (f"{OTHER_PHASE}|{TOO_EARLY}", [  # in which a state may overtake the one before
        ("barriers + (n & 1), (n - 1) / 2 & 1", "barriers, n - 1 & 1"), ("barriers + (n & 1)", "barriers"),
        ("barriers + (n + 1 & 1)", "barriers"), ("n + 2", "n + 1"), (LAST_WAIT, "mbarrier_wait(barriers, 0);")]),
    "ends before what is sent to it": ("may have ended before a delivery from thread",
                                       [(LAST_WAIT, ""), ("states[512 + i]", "0")]),
    "no fence": ("without mbarrier_init_fence", [(FENCE, "")]),
    "a fence too early": ("without mbarrier_init_fence", [(FENCE, ""), (INIT, FENCE + INIT)]),
    "a fence too late": ("without mbarrier_init_fence", [(FENCE, ""), (MEET, MEET + "if (t == 0)" + FENCE)]),
    "the cluster has not met": ("has not met since it was initialised|may not have started", [(MEET, "block_barrier();")]),
    "the cluster has met before": ("has not met since it was initialised",
                                   [(MEET, "block_barrier();"), ("if (t == 0) {", MEET + "if (t == 0) {")]),
    "too many bytes": ("wait forever.*lacks 16 bytes", [("2048", "2064")]),
    "too few bytes": (f"16 bytes more than it expects|{OTHER_PHASE}|{TOO_EARLY}", [("2048", "2032")]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_sending_breaks_a_rule(fault):
    message, edits = FAULTS[fault]
    refused(message, ping_pong(*edits), np.zeros(2 * SIZE, "float32"), seeds=20, **TWO)


def test_any_thread_that_has_waited_may_arm():
    launch(ping_pong((ARM_AGAIN, ARM_AGAIN.replace("t == 0", "t == 40"))), np.zeros(2 * SIZE, "float32"), **TWO)


# Two blocks of one warp, 32 float4s each, and an mbarrier behind them.
PAIR = """
  float4* s = reinterpret_cast<float4*>(shared_memory());
  float* floats = shared_memory();
  Mbarrier* barrier = reinterpret_cast<Mbarrier*>(s + 32);
  const int t = threadIdx.x, rank = blockIdx.x;
  if (t == 0) { mbarrier_init(barrier); mbarrier_init(barrier + 1); mbarrier_init_fence(); }
  s[t] = {1, 2, 3, 4};
  cluster_barrier();
"""
OF_ONE_WARP = dict(block=32, grid=(2, 1, 1), cluster=2, shared=528)
SEND = "store_async(rank == 0 && t == 0, remote(s + 8, 1), remote(barrier, 1), {5, 6, 7, 8});\n"
EXPECT = "if (rank == 1 && t == 0) mbarrier_expect(barrier, 16);\n"
RECEIVE = "if (rank == 1) { mbarrier_wait(barrier, 0); a[t] = s[8].x; }\n"


def test_one_delivery():
    for body in SEND + EXPECT + RECEIVE, EXPECT + SEND + RECEIVE:
        a = np.zeros(32, "float32")
        launch(PAIR + body, a, **OF_ONE_WARP)
        assert a.tolist() == [5] * 32


UNORDERED_WRITE = "overwrites data that thread .* writes, nothing orders them|overwrites data that a delivery from .* has brought"
TO_ITSELF = """if (rank == 0 && t == 0) {
  mbarrier_expect(barrier, 16);
  store_async(true, remote(s, 0), remote(barrier, 0), {});
  floats[0] = 1;
  mbarrier_wait(barrier, 0);
}"""

# Lane 0 of block 1 waits for both phases, and answers the first; then the others wait for the second one alone.
LEFT_OUT = """
  if (rank == 0 && t == 0) {
    store_async(true, remote(s + 8, 1), remote(barrier, 1), {});
    mbarrier_expect(barrier, 16);
    mbarrier_wait(barrier, 0);
    store_async(true, remote(s + 9, 1), remote(barrier, 1), {});
  }
  if (rank == 1 && t == 0) {
    mbarrier_expect(barrier, 16);
    mbarrier_wait(barrier, 0);
    mbarrier_expect(barrier, 16);
    store_async(true, remote(s + 8, 0), remote(barrier, 0), {});
    mbarrier_wait(barrier, 1);
  }
  ballot(true);
  if (rank == 1) {
    mbarrier_wait(barrier, 1);
    a[t] = s[9].x;
  }"""

MISUSES = {
    "wait uninitialised": ("has not been initialised", "mbarrier_wait(barrier + 2, 0);"),
    "expect uninitialised": ("has not been initialised", "mbarrier_expect(barrier + 2, 0);"),
    "send uninitialised": ("an mbarrier at byte 528 of block 1 of the cluster, which has not met",
                           SEND.replace("barrier, 1", "barrier + 2, 1")),
    "initialised by another": ("initialised, with no barrier between",
                               "if (t == 0) mbarrier_init(barrier + 2);\n ballot(t); if (t) mbarrier_wait(barrier + 2, 1);"),
    "initialised twice": ("initialises the mbarrier at byte 512 of block .*, which is one",
                          "if (t == 1) mbarrier_init(barrier);"),
    "mbarrier at byte 4": ("needs a multiple of 8", "if (t == 1) mbarrier_init(reinterpret_cast<Mbarrier*>(floats + 1));"),
    "mbarrier outside": ("initialises an mbarrier at byte 544 of 544", "if (t == 1) mbarrier_init(barrier + 4);"),
    "mbarrier where others write": ("no barrier between|writes the bytes of an mbarrier",
                                    "floats[t] = 1; if (t == 31) mbarrier_init(reinterpret_cast<Mbarrier*>(s));"),
    "mbarrier written": ("writes the bytes of an mbarrier", "floats[129] = 0;"),
    "mbarrier read": ("reads the bytes of an mbarrier", "a[0] = floats[128];"),
    "mbarrier sent to": ("delivery .* overwrites an mbarrier", SEND.replace("s + 8", "s + 32")),
    "parity 2": ("parity 2, needs 0 or 1", "mbarrier_wait(barrier, 2);"),
    "negative bytes": ("expects -16 bytes", "mbarrier_expect(barrier, -16);"),
    "bytes beyond the count": ("counts 1048576 bytes, can count 1048575", "if (t == 0) mbarrier_expect(barrier, 1 << 20);"),
    "sent to byte 4": ("not a multiple of that", SEND.replace("s + 8", "floats + 1")),
    "sent outside": ("at byte 544 of a block's 544", SEND.replace("s + 8", "s + 34")),
    "sent to no block": ("into block 2 of a cluster of 2", SEND.replace(", 1)", ", 2)")),
    "sent to one, counted by another": ("to block 1 of the cluster with an mbarrier of block 0",
                                        SEND.replace("barrier, 1", "barrier, 0")),
    "sent twice to one place": ("overwrites data that thread .* has sent, nothing orders",
                                EXPECT.replace("16", "32") + SEND + SEND + RECEIVE),
    "more bytes than expected": ("gets 16 bytes more than it expects in phase 0|comes in phase 1",
                                 EXPECT + SEND + SEND.replace("s + 8", "s + 9") + RECEIVE),
    "nobody waits": ("may have ended before a delivery", EXPECT + SEND),
    "nobody expects": ("may have ended before a delivery", SEND),
    "the sender writes": (UNORDERED_WRITE, TO_ITSELF),
    "the sender reads": (TOO_EARLY, TO_ITSELF.replace("floats[0] = 1", "a[0] = floats[0]")),
    "the receiver writes": (UNORDERED_WRITE, "if (rank == 1 && t == 0) floats[32] = 1;\n" + EXPECT + SEND + RECEIVE),
    "the receiver copies": ("delivery .* overwrites memory that a copy of .* is on its way to",
                            "if (rank == 1 && t == 0) copy_start(s + 8, reinterpret_cast<float4*>(a));\n"
                            "cluster_barrier();\n" + EXPECT + SEND + RECEIVE + "copy_wait<0>();"),
    "a phase left out": ("has brought, and has not waited for phase 1", LEFT_OUT),  # although it has ended, as it happens
    "one lane waits": (TOO_EARLY, EXPECT + SEND + "if (rank == 1 && t == 0) mbarrier_wait(barrier, 0);\n"
                       "lane_value(0, 0);\n if (rank == 1) a[t] = s[8].x;"),  # a shuffle orders no memory
    # What the sender wrote before is not released by its send.
    "another store of the sender": ("no barrier between",
                                    "if (rank == 0 && t == 0) store_to_block(remote(s + 9, 1), {});\n" + SEND + EXPECT +
                                    RECEIVE + "if (rank == 1) a[t] = s[9].x;"),
    "global memory": ("no barrier between|through L1", "if (rank == 0 && t == 0) a[0] = 1;\n" + SEND + EXPECT +
                      "if (rank == 1) { mbarrier_wait(barrier, 0); a[t] = a[0]; }"),
}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.slow
def test_an_mbarrier_or_a_delivery_breaks_a_rule(misuse):
    message, body = MISUSES[misuse]
    refused(message, PAIR + body, np.zeros(128, "float32"), seeds=10, **dict(OF_ONE_WARP, shared=544))


def test_a_thread_that_has_waited_releases_its_block():
    one = "if (rank == 1 && t == 0) mbarrier_wait(barrier, 0); block_barrier(); if (rank == 1) a[t] = s[8].x;"
    launch(PAIR + EXPECT + SEND + one, np.zeros(32, "float32"), **OF_ONE_WARP)


def answered(use, meet=""):
    """Block 1 answers lane 0 of block 0, into memory that all lanes of block 0 have used."""
    return PAIR + f"""
  float value = 1;
  if (rank == 0) {{ {use} }}
  {meet}
  if (t == 0) mbarrier_expect(barrier, rank ? 16 : 512);
  store_async(rank == 0 && t == 0, remote(s, 1), remote(barrier, 1), {{value, 0, 0, 0}});
  if (rank == 1) mbarrier_wait(barrier, 0);
  store_async(rank == 1, remote(s + t, 0), remote(barrier, 0), {{5, 6, 7, 8}});
  if (rank == 0) {{ mbarrier_wait(barrier, 0); a[t] = s[t].x; }}"""


@pytest.mark.parametrize("meet", ["value = lane_value(value, 3);", "value += exchange_lanes(1, 1);", "ballot(value > 0);",
                                  "block_barrier();", "cluster_barrier();", ""])
@pytest.mark.slow
def test_an_answer_overwrites_used_memory(meet):
    for use, ordered in ("value = s[t].w;", meet), ("s[t] = {9, 9, 9, 9};", "barrier" in meet):  # a shuffle orders no memory
        if ordered:
            for seed in range(5):
                a = np.zeros(32, "float32")
                launch(answered(use, meet), a, seed=seed, **OF_ONE_WARP)
                assert a.tolist() == [5] * 32
        else:
            refused("overwrites data that thread .* (reads|writes), nothing orders them|has not waited for phase|"
                    "overwrites data that a delivery", answered(use, meet), np.zeros(32, "float32"), seeds=10, **OF_ONE_WARP)


@pytest.mark.slow
def test_a_lane_does_not_know_the_reads_of_others():
    """Lane 0 reads last, mostly: before, it sends something to itself and waits for it."""
    use = """
    if (t == 0) {
      mbarrier_expect(barrier + 1, 16);
      store_async(true, remote(s + 33, 0), remote(barrier + 1, 0), {});
      mbarrier_wait(barrier + 1, 0);
    }
    value = s[5].w;"""
    refused(f"{UNORDERED}|has not waited", answered(use), np.zeros(32, "float32"), seeds=20, **dict(OF_ONE_WARP, shared=544))


@pytest.mark.slow
def test_deliveries_come_late_and_in_any_order():
    """Of two that a thread sends, the second one may come first, whichever the receiver waits for."""
    both = SEND + SEND.replace("s + 8", "s + 9").replace("barrier, 1", "barrier + 1, 1")
    for waits, reads in (1, 8), (0, 9):
        read = (f"if (rank == 1) {{ if (t == 0) mbarrier_expect(barrier + {waits}, 16);\n"
                f"mbarrier_wait(barrier + {waits}, 0); a[t] = s[{reads}].x; }}")
        messages = refused(TOO_EARLY, PAIR + both + read, np.zeros(32, "float32"), seeds=40, **OF_ONE_WARP)
        came = ["has brought" in message for message in messages]
        assert any(came) and not all(came)


@pytest.mark.slow
def test_a_launch_that_fails_can_be_repeated():
    body, a = PAIR + EXPECT + SEND + "if (rank == 1) a[t] = s[8].x;", np.zeros(32, "float32")
    messages = set()
    for seed in range(10):
        message = refused(TOO_EARLY, body, a, seeds=1, earlier=seed, **OF_ONE_WARP)[0]
        messages.add(message)
        again = int(re.search(r"again: the first launch of Emulator\(\.\.\., seed=(\d+)\)", message).group(1))
        assert again == seed
        with pytest.raises(KernelError) as caught:
            launch(body, a, seed=again, **OF_ONE_WARP)
        assert str(caught.value) == message
    assert len(messages) > 3  # other seeds, other orders


GROUP = """
  a[(blockIdx.y * 2 + blockIdx.x) * 64 + threadIdx.x] = blockIdx.x + 1;
  group_barrier(counters + {}, gridDim.x, {});
  float4* s = reinterpret_cast<float4*>(shared_memory());
  const float* from = a + (blockIdx.y * 2 + 1 - blockIdx.x) * 64;
  if (threadIdx.x < 16) {}
  copy_close_batch(); copy_wait<0>(); block_barrier();
  a[512 + (blockIdx.y * 2 + blockIdx.x) * 64 + threadIdx.x] = shared_memory()[threadIdx.x];"""
COPIED = "copy_start(s + threadIdx.x, reinterpret_cast<const float4*>(from) + threadIdx.x);"
READ = "s[threadIdx.x] = reinterpret_cast<const float4*>(from)[threadIdx.x];"


def launch_groups(counter="blockIdx.y", round="1", read=COPIED, first=0, **options):
    a, counters = np.zeros(1024, "float32"), np.full(2, first, "uint32")
    text = GROUP.format(counter, round, read)
    host_options = dict(grid=(2, 2, 1), shared=256, cooperative=True, parameters="float* a, unsigned* counters")
    launch(text, a, counters, **host_options, **options)
    return a


def test_groups_of_blocks():
    a = launch_groups()
    assert np.array_equal(a[512:768].reshape(4, 64), np.repeat([[2], [1], [2], [1]], 64, 1))


@pytest.mark.parametrize("fault, message", [
    (dict(counter="0"), "two groups with one counter"), (dict(round="2"), "where 2 blocks meet for the 1. time"),
    (dict(first=1), "it was not 0 at first"), (dict(read=READ), "reads through L1")])
@pytest.mark.slow
def test_a_group_barrier_breaks_a_rule(fault, message):
    for seed in range(3):
        with pytest.raises(KernelError, match=message):
            launch_groups(seed=seed, **fault)


def test_launches_that_the_device_cannot_make():
    for fault in (dict(block=2048), dict(block=48), dict(shared=H100.shared_memory + 16),
                  dict(grid=(9, 1, 1), cooperative=True), dict(grid=(3, 1, 1), cluster=2), dict(grid=(32, 1, 1), cluster=32),
                  dict(grid=(1, 65536, 1)), dict(grid=(0, 1, 1))):
        with pytest.raises(KernelError, match="cannot launch|blocks at once|no such cluster"):
            launch("", **fault)
    with pytest.raises(KernelError, match=r"arguments of \[4\] bytes, needs \[8\]"):
        launch("", parameters="long long n", values=[ctypes.c_int32(1)])
