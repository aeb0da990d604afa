// An emulator that runs CUDA kernels on a CPU and sees that they keep the rules that a GPU does not check.
//
// Every thread is a fibre. Threads run one at a time, each until it waits or ends, in an order drawn from a seed. The blocks
// that need one another (of a cluster, of a cooperative launch) are alive together, others one after another. What st.async
// sends comes some time later, no matter what was sent before it: this too is drawn from the seed.
//
// Errors, each with its place in the source:
//   - two threads use one word of memory, one of them writing, with no barrier between that both take part in;
//   - a read of shared memory that nobody wrote, or whose copy from global memory has not been waited for;
//   - an access outside the arrays of the launch and the block's shared memory, or at an address that is no multiple of its
//     size;
//   - a plain read of global memory that another block wrote (its L1 cache may hold what was there before);
//   - a barrier that not all threads reach, or that they reach at different places of the source;
//   - a store into the shared memory of a block that may not have started, or may have ended;
//   - a read of what st.async brings by a thread that has not waited for it, a delivery onto what may still be read or
//     written, or one that may come in an earlier phase of its mbarrier than it does;
//   - an mbarrier that is used before all know that it is initialised, is armed twice or gets more bytes than it expects.
// They are found by what the program orders, not by what happens to come first: most of them in every order of the threads.
//
// The compiler reports every access to memory: kernels are compiled with -fsanitize=thread, whose functions this emulator
// defines. Built with -fsanitize=address instead, the emulator runs them without those checks and leaves the rest to ASan.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

struct Dim {
  unsigned x, y, z;
};

struct Place {
  const char* file;
  int line;
};

// What threadIdx, blockIdx, blockDim and gridDim are.
struct Indices {
  Dim thread, block, block_size, grid_size;
};
Indices here();

char* shared();  // the block's dynamic shared memory

void block_barrier(Place place);
void cluster_barrier(Place place);
void group_barrier(unsigned* counter, unsigned blocks, unsigned round, Place place);

// The value that lane (this one's number ^ mask) brings to the same place; the lanes whose predicate holds.
float exchange_lanes(float value, int mask, Place place);
unsigned ballot(bool predicate, Place place);
float lane_value(float value, int lane, Place place);

void copy_start(void* shared, const void* global, int bytes);
void copy_close_batch();
void copy_wait(int open);

// A place in the shared memory of a block of the cluster.
struct Remote {
  int rank;
  int64_t byte;
};
Remote remote(const void* local, int rank);
void store_to_block(Remote to, const void* values);  // 16 bytes

void mbarrier_init(void* barrier);
void mbarrier_init_fence();
void mbarrier_expect(void* barrier, int bytes);
void mbarrier_wait(void* barrier, int parity, Place place);
void store_async(Remote to, Remote barrier, const void* values);  // 16 bytes

}  // namespace emulator

extern "C" {

struct emulator_launch {
  int32_t grid[3];
  int32_t block;        // threads
  int32_t cluster;      // blocks along x that are a cluster
  int32_t cooperative;  // all blocks run at once, those of one blockIdx.y share a group barrier
  int64_t shared;       // bytes
  uint32_t seed;
  int32_t regions;      // arrays the kernel may use
  const uint64_t* begins;
  const uint64_t* sizes;  // bytes
};

// Where a launch went wrong. The places of accesses are addresses of code, 0 where there is none.
struct emulator_error {
  char message[1000];
  uint64_t access, other_access;
};

// 0, or 1 and *error. `kernel` unpacks the arguments and calls the kernel.
int emulator_run(void (*kernel)(void**), void** arguments, const emulator_launch* launch, emulator_error* error);
}
