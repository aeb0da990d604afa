// How threads meet: every barrier, cluster, shuffle and access to memory that other threads or blocks write. Also everything else
// that needs PTX: predicated loads and stores, a wide product, a value pinned in its register.
//
// No other file of the kernels contains PTX or depends on the hardware's rules. tests/cuda_host has a twin of this file that runs
// on a CPU and checks that kernels keep the rules. This file includes nothing: NVRTC has the CUDA functions built in.
#pragma once

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline float* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}

// The same value, pinned in a register: the compiler cannot see through this, so it cannot compute the value a second time.
__device__ inline int kept(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <class Value>
__device__ inline Value* kept(Value* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// value = *from (in global memory) if `when`, without a branch. Nothing waits for the load before the value is used.
template <class Value>
__device__ inline void load_when(bool when, const Value* from, Value& value) {
  if (when) value = *from;
}
__device__ inline void load_when(bool when, const float* from, float& value) {
  asm volatile("{\n\t.reg .pred when;\n\tsetp.ne.u32 when, %2, 0;\n\t@when ld.global.f32 %0, [%1];\n\t}"
               : "+f"(value)
               : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(when)));
}
__device__ inline void load_when(bool when, const int* from, int& value) {
  asm volatile("{\n\t.reg .pred when;\n\tsetp.ne.u32 when, %2, 0;\n\t@when ld.global.s32 %0, [%1];\n\t}"
               : "+r"(value)
               : "l"(__cvta_generic_to_global(from)), "r"(static_cast<unsigned>(when)));
}

// *to = value (in global memory) if `when`, without a branch.
template <class Value>
__device__ inline void store_when(bool when, Value* to, Value value) {
  if (when) *to = value;
}
__device__ inline void store_when(bool when, float* to, float value) {
  asm volatile("{\n\t.reg .pred when;\n\tsetp.ne.u32 when, %2, 0;\n\t@when st.global.f32 [%0], %1;\n\t}" ::"l"(
                   __cvta_generic_to_global(to)),
               "f"(value), "r"(static_cast<unsigned>(when))
               : "memory");
}

// a · b in one instruction.
__device__ inline long long wide_product(int a, int b) {
  long long product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}
__device__ inline long long wide_product(long long a, int b) { return a * b; }

// ---- a warp

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes call it together.
__device__ inline float exchange_lanes(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The value of lane `lane`. All 32 lanes call it together.
__device__ inline float lane_value(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// One bit for each lane, set if the lane's `predicate` holds. All 32 lanes call it together.
__device__ inline unsigned ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// ---- a block

// All threads of the block wait for one another. Everything written before it is visible to all of them after it.
__device__ inline void block_barrier() { __syncthreads(); }

// Copies 16 bytes from global to shared memory in the background, past the L1 cache, which may be older than another block's
// writes. Both addresses are multiples of 16. Before sm_80 the copy is immediate.
__device__ inline void copy_start(float4* shared, const float4* global) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  *shared = __ldcg(global);
#endif
}

// Closes a batch: the copies that this thread has started since the last one.
__device__ inline void copy_close_batch() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// This thread waits until at most OPEN of its batches are unfinished. Other threads see its copies after a barrier.
template <int OPEN>
__device__ inline void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

// ---- a cluster of blocks (sm_90): the blocks of one blockIdx.y, numbered by blockIdx.x

// All threads of all blocks of the cluster wait for one another. Everything written before it is visible to all of them after it.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// An address in the shared memory of a block of the cluster.
struct Remote {
  unsigned address;
};
__device__ inline Remote operator+(Remote place, int bytes) { return {place.address + bytes}; }
__device__ inline Remote kept(Remote place) { return {static_cast<unsigned>(kept(static_cast<int>(place.address)))}; }

__device__ inline unsigned shared_address(const void* local) { return static_cast<unsigned>(__cvta_generic_to_shared(local)); }

// The address in block `rank` that corresponds to `local` in this block. It is valid from that block's start to its end.
__device__ inline Remote remote(const void* local, int rank) {
  Remote place = {};
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place.address) : "r"(shared_address(local)), "r"(rank));
#endif
  return place;
}

// Writes 16 bytes. Other threads see them after a cluster_barrier.
__device__ inline void store_to_block(Remote to, float4 values) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to.address), "f"(values.x), "f"(values.y), "f"(values.z),
               "f"(values.w)
               : "memory");
#endif
}

// An mbarrier in shared memory. It has phases: a phase ends when as many bytes have been stored as mbarrier_expect has announced.
using Mbarrier = unsigned long long;

// By one thread. mbarrier_init_fence and then a cluster_barrier let other threads and blocks use it.
__device__ inline void mbarrier_init(Mbarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
#endif
}

__device__ inline void mbarrier_init_fence() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// The phase ends when `bytes` have been stored. By one thread, once a phase.
__device__ inline void mbarrier_expect(Mbarrier* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// Waits until the phase with this parity has ended; phases count from 0. Its stores are then visible. (Acquiring for the scope of
// the cluster would invalidate L1 at every step. Shared memory does not need that.)
__device__ inline void mbarrier_wait(Mbarrier* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .pred ended;\n\tagain:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n\t@!ended bra again;\n\t}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// If `when`, stores 16 bytes some time later and counts them at an mbarrier of the same block, in one trip. Several stores may
// arrive in any order.
__device__ inline void store_async(bool when, Remote to, Remote barrier, float4 values) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .pred when;\n\tsetp.ne.u32 when, %6, 0;\n\t"
      "@when st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, [%1];\n\t}" ::"r"(to.address),
      "r"(barrier.address), "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(static_cast<unsigned>(when))
      : "memory");
#endif
}

// ---- a group of blocks of a cooperative launch

// All threads of the `blocks` blocks that share `counter` wait for one another. Everything written before it is visible to all of
// them after it, except through L1 (see copy_start). `counter` is 0 before the launch; `round` counts the calls from 1.
__device__ inline void group_barrier(unsigned* counter, unsigned blocks, unsigned round) {
  block_barrier();
  if (threadIdx.x == 0) {
    unsigned arrived;
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
    } while (static_cast<int>(arrived - blocks * round) < 0);  // a difference, so that the counter may overflow
  }
  block_barrier();
}
