"""The machine of tests/cuda_host: it computes what a GPU would, and sees each rule that a kernel breaks.

The kernels here are a few lines each, put in the place of a real one's text.
"""
import ctypes

import numpy as np
import pytest

from cuda_host import Host, KernelError
from rnn_ops.backends.cuda import variants
from rnn_ops.backends.cuda.launcher import Launch
from rnn_ops.backends.cuda.sources import Kernel

H100 = variants.known_device(90, 8)
PRIMITIVES = '#include "primitives.cuh"\n#line 1 "kernel.cu"\n'


def launch(body, *arrays, grid=(1, 1, 1), block=64, shared=0, cluster=1, cooperative=False, seed=0,
           parameters=None, values=None):
    """Runs a kernel `body` whose parameters are float* a, b, ... for the arrays."""
    parameters = parameters or ", ".join(f"float* {name}" for name, _ in zip("abc", arrays))
    text = f"{PRIMITIVES}__global__ void kernel({parameters}) {{\n{body}\n}}\n"
    host = Host(H100, seed=seed, edit=lambda family, source: text)
    host.launch(Launch(Kernel("resident", "kernel", ()), grid, block, shared, cluster, cooperative),
                values or [ctypes.c_void_p(host.address(array)) for array in arrays])


def refused(message, *args, **options):
    """The launch fails with the message, whatever the order of the threads."""
    for seed in range(3):
        with pytest.raises(KernelError, match=message):
            launch(*args, seed=seed, **options)


REVERSE = """
  float* s = shared_memory();
  s[threadIdx.x] = a[threadIdx.x];
  {}
  a[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];"""


def test_threads_meet_and_see_what_others_wrote():
    a = np.arange(64, dtype="float32")
    launch(REVERSE.format("block_barrier();"), a, shared=256)
    assert a.tolist() == list(range(63, -1, -1))


def test_every_block_and_its_sizes():
    a = np.full((5, 3, 2, 64), -1, "float32")
    launch("a[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = "
           "100 * blockIdx.z + 10 * blockIdx.y + blockIdx.x;", a, grid=(2, 3, 5))
    z, y, x, _ = np.indices(a.shape)
    assert np.array_equal(a, 100 * z + 10 * y + x)


def test_lanes_exchange_and_vote():
    a, b = np.arange(64, dtype="float32"), np.zeros(64, "float32")
    launch("float v = a[threadIdx.x];\n v += exchange_lanes(v, 4);\n v += exchange_lanes(v, 1);\n a[threadIdx.x] = v;\n"
           "b[threadIdx.x] = __ffs(ballot(threadIdx.x % 32 >= 5));", a, b)
    i = np.arange(64)
    assert np.array_equal(a, i + (i ^ 4) + (i ^ 1) + (i ^ 5))
    assert np.array_equal(b, np.full(64, 6))


def test_a_missing_barrier():
    # What was not written yet is found first in some orders, the race in others.
    refused(r"nobody wrote|no barrier between(.|\n)*at .*:\d", REVERSE.format(""), np.zeros(64, "float32"), shared=256)
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


def test_threads_at_different_barriers():
    refused("others at kernel.cu:[23]", "if (threadIdx.x < 32) block_barrier();\n else block_barrier();")
    refused("others at kernel.cu:[23]", "if (threadIdx.x % 2) exchange_lanes(1, 1);\n else exchange_lanes(1, 1);")
    refused("wait for ever; .*32 wait for the block at kernel.cu:2", "if (threadIdx.x < 32) block_barrier();")
    refused("wait for ever", "if (threadIdx.x < 16) exchange_lanes(1, 1);")
    refused("wait for ever", "if (threadIdx.x < 32) block_barrier(); else cluster_barrier();")


def test_shared_memory_nobody_wrote():
    refused("nobody wrote", "a[threadIdx.x] = shared_memory()[threadIdx.x];", np.zeros(64, "float32"), shared=256)


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


def test_copies_in_the_background():
    a, b = np.arange(512, dtype="float32"), np.zeros(256, "float32")
    launch(COPY.format("copy_wait<1>();", "threadIdx.x") + "copy_wait<0>();", a, b, shared=2048)
    assert np.array_equal(b, a[:256])
    launch(COPY.format("copy_wait<0>(); block_barrier();", "127 - threadIdx.x"), a, b, shared=2048)
    assert np.array_equal(b.reshape(64, 4), a.reshape(128, 4)[64:][::-1])


def test_copies_not_waited_for():
    arrays = np.zeros(512, "float32"), np.zeros(256, "float32")
    refused("on its way", COPY.format("", "threadIdx.x"), *arrays, shared=2048)
    refused("on its way", COPY.format("copy_wait<1>();", "64 + threadIdx.x"), *arrays, shared=2048)
    refused("no barrier between|on its way|nobody wrote", COPY.format("copy_wait<0>();", "127 - threadIdx.x"), *arrays, shared=2048)
    refused("ended with copies on their way", "copy_start(reinterpret_cast<float4*>(shared_memory()) + threadIdx.x,\n"
            "reinterpret_cast<const float4*>(a) + threadIdx.x);", arrays[0], shared=2048)


CLUSTER = """
  float* s = shared_memory();
  {}
  for (int rank = 0; rank < 4; rank++)
    if (threadIdx.x < 16) store_to_block(s + blockIdx.x % 4 * 16 + threadIdx.x, rank, 100 * blockIdx.x + threadIdx.x);
  {}
  a[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];"""


def test_blocks_of_a_cluster():
    a = np.zeros((8, 64), "float32")
    launch(CLUSTER.format("cluster_barrier();", "cluster_barrier();"), a, grid=(8, 1, 1), shared=256, cluster=4)
    for block in range(8):
        expected = [100 * (block // 4 * 4 + rank) + i for rank in range(4) for i in range(16)]
        assert a[block].tolist() == expected


def test_blocks_that_may_not_have_started_or_may_have_ended():
    a = np.zeros((4, 64), "float32")
    shape = dict(grid=(4, 1, 1), shared=256, cluster=4)
    refused("may not have started", CLUSTER.format("", "cluster_barrier();"), a, **shape)
    refused("no barrier between|nobody wrote", CLUSTER.format("cluster_barrier();", "block_barrier();"), a, **shape)
    refused("may have ended", "cluster_barrier();\n if (blockIdx.x == 0 && threadIdx.x == 0) "
            "store_to_block(shared_memory(), 3, 1);", **shape)


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
def test_what_a_group_barrier_needs(fault, message):
    for seed in range(3):
        with pytest.raises(KernelError, match=message):
            launch_groups(seed=seed, **fault)


def test_what_cannot_be_launched():
    for fault in (dict(block=2048), dict(block=48), dict(shared=H100.shared_memory + 16), dict(grid=(9, 1, 1), cooperative=True),
                  dict(grid=(3, 1, 1), cluster=2), dict(grid=(32, 1, 1), cluster=32), dict(grid=(1, 65536, 1)), dict(grid=(0, 1, 1))):
        with pytest.raises(KernelError, match="cannot launch|blocks at once|no such cluster"):
            launch("", **fault)
    with pytest.raises(KernelError, match=r"arguments of \[4\] bytes, needs \[8\]"):
        launch("", parameters="long long n", values=[ctypes.c_int32(1)])
