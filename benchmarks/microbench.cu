// Each thing that a step of the recurrence waits for, alone, in cycles of the multiprocessor's clock.
//
// Every kernel writes to out[0] the cycles of ROUNDS rounds in one block; -1 if it gave up waiting for another block. Rounds
// depend on one another, so that what is measured is latency, but in `load_rate_*`, where loads overlap. `sink` takes what
// would otherwise be left out as useless; scratch is global memory, zero before each launch.
constexpr int ROUNDS = 1024;
constexpr int MOST_TRIES = 1 << 18;  // of a wait; far more than any that ends

__device__ inline unsigned shared_address(const void* place) { return static_cast<unsigned>(__cvta_generic_to_shared(place)); }

// ---- within a warp

extern "C" __global__ void shared_load_32(long long* out, unsigned* sink) {
  __shared__ unsigned next[64];
  for (int i = 0; i < 64; i++) next[i] = shared_address(next + (i + 1) % 64);
  unsigned place = shared_address(next);
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(place)::"memory");
  out[0] = clock64() - start;
  *sink = place;
}

extern "C" __global__ void shared_load_128(long long* out, unsigned* sink) {
  __shared__ uint4 next[64];
  for (int i = 0; i < 64; i++) next[i] = make_uint4(shared_address(next + (i + 1) % 64), 0, 0, 0);
  unsigned place = shared_address(next), rest = 0;
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) {
    unsigned y, z, w;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%0];" : "+r"(place), "=r"(y), "=r"(z), "=r"(w)::"memory");
    rest += y + z + w;
  }
  out[0] = clock64() - start;
  *sink = place + rest;
}

extern "C" __global__ void shuffle(long long* out, unsigned* sink) {
  unsigned value = threadIdx.x;
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) value = __shfl_xor_sync(0xffffffffu, value, 1);
  const long long end = clock64();
  if (threadIdx.x == 0) out[0] = end - start;
  sink[threadIdx.x] = value;
}

// As the kernels compute it: one way for all arguments.
extern "C" __global__ void tanh_chain(long long* out, unsigned* sink) {
  float value = 0.5f;
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) value = tanhf(value);
  out[0] = clock64() - start;
  *sink = __float_as_uint(value);
}

// ---- a block's loads of 16 bytes a lane, all warps together; 8 addresses a warp, each of four lanes, or 32

template <int SHIFT, int MASK>
__device__ inline void load_rate(long long* out, unsigned* sink) {
  __shared__ float4 state[64];
  if (threadIdx.x < 64) state[threadIdx.x] = make_float4(0, 0, 0, 0);
  const unsigned place = shared_address(state + (threadIdx.x % 32 >> SHIFT & MASK));
  float even = 0, odd = 0;
  __syncthreads();
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) {
    float x, y, z, w;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x), "=f"(y), "=f"(z), "=f"(w) : "r"(place + n % 16 * 32));
    even += x * y;  // all four, or the compiler loads less
    odd += z * w;
  }
  __syncthreads();
  const long long end = clock64();
  if (threadIdx.x == 0) out[0] = end - start;
  sink[threadIdx.x] = __float_as_uint(even + odd);
}

extern "C" __global__ void load_rate_eight_apart(long long* out, unsigned* sink) { load_rate<0, 7>(out, sink); }
extern "C" __global__ void load_rate_neighbours(long long* out, unsigned* sink) { load_rate<2, 7>(out, sink); }
extern "C" __global__ void load_rate_all_different(long long* out, unsigned* sink) { load_rate<0, 31>(out, sink); }

extern "C" __global__ void block_barrier(long long* out, unsigned*) {
  __syncthreads();
  const long long start = clock64();
#pragma unroll 16
  for (int n = 0; n < ROUNDS; n++) __syncthreads();
  const long long end = clock64();
  if (threadIdx.x == 0) out[0] = end - start;
}

// ---- a cluster of blocks

#if __CUDA_ARCH__ >= 900

__device__ inline unsigned remote(unsigned address, unsigned rank) {
  unsigned found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(address), "r"(rank));
  return found;
}

__device__ inline void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

// Two mbarriers, one for even rounds and one for odd ones; a phase ends when `bytes` have come.
struct Mailbox {
  unsigned barriers;
  int bytes;

  __device__ void init() const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers) : "memory");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barriers + 8) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    expect(0);
    expect(1);
  }
  __device__ unsigned of(int n) const { return barriers + 8 * (n & 1); }
  __device__ void expect(int n) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(of(n)), "r"(bytes) : "memory");
  }
  __device__ bool wait(int n) const {
    unsigned done = 0;
    for (int tries = 0; !done && tries < MOST_TRIES; tries++)
      asm volatile(
          "{\n\t.reg .pred done;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, done;\n\t}"
          : "=r"(done)
          : "r"(of(n)), "r"(n >> 1 & 1)
          : "memory");
    return done;
  }
};

template <int BYTES>
__device__ inline void store_async(unsigned place, unsigned barrier, unsigned value) {
  if (BYTES == 4)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(place), "r"(value),
                 "r"(barrier)
                 : "memory");
  else
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %1, %1, %1}, [%2];" ::"r"(place),
                 "r"(value), "r"(barrier)
                 : "memory");
}

// There and back between the first block of the cluster and the last. One warp a block; the first LANES lanes send.
template <int BLOCKS, int BYTES, int LANES>
__device__ inline void ping_pong(long long* out) {
  __shared__ float4 received[2][32];
  __shared__ unsigned long long barriers[2];
  const int rank = blockIdx.x % BLOCKS, lane = threadIdx.x;
  const Mailbox mailbox = {shared_address(barriers), BYTES * LANES};
  if (lane == 0) mailbox.init();
  cluster_barrier();
  const unsigned other = rank == 0 ? BLOCKS - 1 : 0;
  const unsigned place = remote(shared_address(received), other) + lane * BYTES, barrier = remote(mailbox.barriers, other);
  bool good = true;
  if (rank == 0 || rank == BLOCKS - 1) {
    const long long start = clock64();
    for (int n = 0; n < ROUNDS && good; n++) {
      if (rank != 0) good = mailbox.wait(n);
      if (lane < LANES) store_async<BYTES>(place + (n & 1) * 512, barrier + 8 * (n & 1), n);
      if (rank == 0) good = mailbox.wait(n);
      if (lane == 0) mailbox.expect(n);
    }
    const long long end = clock64();
    good = __all_sync(0xffffffffu, good);
    if (rank == 0 && lane == 0) out[0] = good ? end - start : -1;
  }
  cluster_barrier();
}

// What the cluster family does each step, without the arithmetic: each block's warp sends 512 bytes to every block, itself
// included, and waits for what all send to it.
template <int BLOCKS>
__device__ inline void exchange(long long* out) {
  __shared__ float4 received[2][BLOCKS][32];
  __shared__ unsigned long long barriers[2];
  const int rank = blockIdx.x % BLOCKS, lane = threadIdx.x;
  const Mailbox mailbox = {shared_address(barriers), 512 * BLOCKS};
  if (lane == 0) mailbox.init();
  cluster_barrier();
  unsigned places[BLOCKS], others[BLOCKS];
#pragma unroll
  for (int i = 0; i < BLOCKS; i++) {
    places[i] = remote(shared_address(&received[0][rank][lane]), (rank + i) % BLOCKS);
    others[i] = remote(mailbox.barriers, (rank + i) % BLOCKS);
  }
  bool good = true;
  const long long start = clock64();
  for (int n = 0; n < ROUNDS && good; n++) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) store_async<16>(places[i] + (n & 1) * (512 * BLOCKS), others[i] + 8 * (n & 1), n);
    good = mailbox.wait(n);
    if (lane == 0) mailbox.expect(n);
  }
  const long long end = clock64();
  good = __all_sync(0xffffffffu, good);
  if (rank == 0 && lane == 0) out[0] = good ? end - start : -1;
  cluster_barrier();
}

enum Arrival { BARE, RELAXED, AFTER_STORES, RELAXED_AFTER_STORES };

// The cluster's barrier. 128 threads a block; AFTER_STORES: each has just written to global memory.
template <Arrival ARRIVAL>
__device__ inline void barrier_rounds(long long* out, float* scratch) {
  float* mine = scratch + blockIdx.x * blockDim.x + threadIdx.x;
  cluster_barrier();
  const long long start = clock64();
#pragma unroll 1
  for (int n = 0; n < ROUNDS; n++) {
    if (ARRIVAL >= AFTER_STORES)
      asm volatile("st.global.f32 [%0], %1;" ::"l"(mine + (n & 15) * (16 * 128)), "f"(static_cast<float>(n)) : "memory");
    if (ARRIVAL == BARE || ARRIVAL == AFTER_STORES) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    else asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  const long long end = clock64();
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = end - start;
}

#define KERNEL(BLOCKS, NAME) extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) NAME##_##BLOCKS
#define OF_CLUSTER(BLOCKS)                                                                                                  \
  KERNEL(BLOCKS, send_4_one_lane)(long long* out, unsigned*) { ping_pong<BLOCKS, 4, 1>(out); }                              \
  KERNEL(BLOCKS, send_16_one_lane)(long long* out, unsigned*) { ping_pong<BLOCKS, 16, 1>(out); }                            \
  KERNEL(BLOCKS, send_4_warp)(long long* out, unsigned*) { ping_pong<BLOCKS, 4, 32>(out); }                                 \
  KERNEL(BLOCKS, send_16_warp)(long long* out, unsigned*) { ping_pong<BLOCKS, 16, 32>(out); }                               \
  KERNEL(BLOCKS, exchange)(long long* out, unsigned*) { exchange<BLOCKS>(out); }                                            \
  KERNEL(BLOCKS, barrier)(long long* out, unsigned*, float* scratch) { barrier_rounds<BARE>(out, scratch); }                \
  KERNEL(BLOCKS, barrier_relaxed)(long long* out, unsigned*, float* scratch) { barrier_rounds<RELAXED>(out, scratch); }     \
  KERNEL(BLOCKS, barrier_stores)(long long* out, unsigned*, float* scratch) { barrier_rounds<AFTER_STORES>(out, scratch); } \
  KERNEL(BLOCKS, barrier_relaxed_stores)(long long* out, unsigned*, float* scratch) {                                       \
    barrier_rounds<RELAXED_AFTER_STORES>(out, scratch);                                                                     \
  }
OF_CLUSTER(2)
OF_CLUSTER(4)
OF_CLUSTER(8)
OF_CLUSTER(16)

#endif

// ---- the blocks of a grid, launched cooperatively: the barrier of the grid family

extern "C" __global__ void grid_barrier(long long* out, unsigned*, unsigned* counter) {
  bool good = true;
  const long long start = clock64();
  for (int n = 1; n <= ROUNDS; n++) {
    __syncthreads();
    if (threadIdx.x == 0 && good) {
      unsigned arrived;
      int tries = 0;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
      } while (static_cast<int>(arrived - gridDim.x * n) < 0 && ++tries < MOST_TRIES);
      good = tries < MOST_TRIES;
    }
    __syncthreads();
  }
  const long long end = clock64();
  if (blockIdx.x == 0 && threadIdx.x == 0) out[0] = good ? end - start : -1;
}
