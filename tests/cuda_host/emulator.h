// An emulator that runs CUDA kernels on a CPU and checks rules that a GPU does not check.
//
// Every thread is a fibre. Threads run one at a time, each until it waits or ends, in an order drawn from a seed. Blocks that
// need one another (in a cluster, in a cooperative launch) are alive together; other blocks run one after another. The data of
// st.async arrive some time later and in any order, also drawn from the seed.
//
// It reports these errors, each with its line in the source:
//   - two threads use one word of memory, at least one of them writes, and no barrier of both lies between;
//   - a read of shared memory that was never written, or that a copy from global memory is still on its way to;
//   - an access outside the arrays of the launch and the block's shared memory, or at an address that is not a multiple of its
//     size;
//   - a plain read of global memory that another block wrote (the L1 cache may hold older data);
//   - a barrier that not all threads reach, or that they reach at different lines of the source;
//   - a store into the shared memory of a block that may not have started, or may have ended;
//   - a read of data from st.async by a thread that has not waited for them; a delivery to memory that may still be read or
//     written; a delivery that could come in an earlier phase of its mbarrier;
//   - an mbarrier that is used before all threads know that it is initialised, is armed twice, or gets too many bytes.
// It finds them by the order that the program guarantees, not by the order that happens. So it finds most of them with any seed.
//
// The compiler reports every access to memory: kernels are compiled with -fsanitize=thread, and the emulator defines the
// functions that this option calls. With -fsanitize=address instead, the emulator runs without these checks and leaves the rest
// to ASan.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

struct Dim {
  unsigned x, y, z;
};

struct Location {
  const char* file;
  int line;
};

// threadIdx, blockIdx, blockDim and gridDim.
struct Indices {
  Dim thread, block, block_size, grid_size;
};
Indices here();

char* shared();  // the block's dynamic shared memory

void block_barrier(Location place);
void cluster_barrier(Location place);
void group_barrier(unsigned* counter, unsigned blocks, unsigned round, Location place);

// The value that the lane (own number ^ mask) brings to the same call; the lanes whose predicate holds.
float exchange_lanes(float value, int mask, Location place);
unsigned ballot(bool predicate, Location place);
float lane_value(float value, int lane, Location place);

void copy_start(void* shared, const void* global, int bytes);
void copy_close_batch();
void copy_wait(int open);

// An address in the shared memory of a block of the cluster.
struct Remote {
  int rank;
  int64_t byte;
};
Remote remote(const void* local, int rank);
void store_to_block(Remote to, const void* values);  // 16 bytes

void mbarrier_init(void* barrier);
void mbarrier_init_fence();
void mbarrier_expect(void* barrier, int bytes);
void mbarrier_wait(void* barrier, int parity, Location place);
void store_async(Remote to, Remote barrier, const void* values);  // 16 bytes

}  // namespace emulator

extern "C" {

struct emulator_launch {
  int32_t grid[3];
  int32_t block;        // threads
  int32_t cluster;      // blocks of a cluster, along x
  int32_t cooperative;  // all blocks run at once, and those of one blockIdx.y share a group barrier
  int64_t shared;       // bytes
  uint32_t seed;
  int32_t regions;  // arrays that the kernel may use
  const uint64_t* begins;
  const uint64_t* sizes;  // bytes
};

// Why a launch failed. `access` and `other_access` are addresses of code, or 0.
struct emulator_error {
  char message[1000];
  uint64_t access, other_access;
};

// 0, or 1 and *error. `kernel` unpacks the arguments and calls the kernel.
int emulator_run(void (*kernel)(void**), void** arguments, const emulator_launch* launch, emulator_error* error);
}
