// How threads meet: every barrier, cluster, shuffle and access to memory that other threads or blocks write.
//
// The only file of the kernels that knows PTX and the hardware's rules; tests/cuda_host has a twin of it that runs on a CPU
// and checks that the rules are kept. No header is included: NVRTC has what is needed built in.
#pragma once

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline float* shared_memory() {
  extern __shared__ float4 memory[];
  return reinterpret_cast<float*>(memory);
}

// ---- a warp

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes call it together.
__device__ inline float exchange_lanes(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// One bit a lane: those whose `predicate` holds. All 32 lanes call it together.
__device__ inline unsigned ballot(bool predicate) {
  return __ballot_sync(0xffffffffu, predicate);
}

// ---- a block

// All threads of the block wait for one another; what each wrote before, all see after.
__device__ inline void block_barrier() {
  __syncthreads();
}

// Copies 16 bytes from global to shared memory in the background, past the L1 cache, which may hold an old copy of what other
// blocks have written since. Both addresses are multiples of 16. Before sm_80 the copy is made at once.
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

// This thread waits until no more than OPEN of its batches are on their way. Other threads see its copies after a barrier.
template <int OPEN>
__device__ inline void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

// ---- a cluster of blocks (sm_90): the blocks of one blockIdx.y, numbered by blockIdx.x

// All threads of all blocks of the cluster wait for one another; what each wrote before, all see after.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Writes into the shared memory of block `rank` of the cluster, at the place that `local` has in this block's own. The block
// must have started and not ended: barriers at both ends.
__device__ inline void store_to_block(float* local, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(local));
  unsigned remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(value) : "memory");
#endif
}

// ---- a group of blocks of a cooperative launch

// All threads of the `blocks` blocks that share `counter` wait for one another; what each wrote before, all see after (what is
// read through L1 may be old: see copy_start). `counter` is 0 before the launch; `round` counts the calls from 1.
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
