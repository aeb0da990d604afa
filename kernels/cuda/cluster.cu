// cluster (sm_90): the BLOCKS blocks of a thread-block cluster share rows of the batch, each with its columns of the matrix.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; launch (BLOCKS, clusters) × TILE::THREADS; block blockIdx.x has
// columns blockIdx.x·COLUMNS ..., BLOCKS·COLUMNS = K >= H. A warp finishes its columns of the new state and writes them into the
// shared memory of every block of the cluster. The EXCHANGE says how a block knows that a state is complete:
//
//   Async     data and signal make one trip: the writes count themselves at an mbarrier of the receiver, one for each tile of
//             rows and each of the two states. There is no barrier in the loop, and the blocks' warps need not be in step.
//   Barrier   one cluster barrier a step. It also waits for stores to global memory (MEMBAR). It is here for comparison only.
//
// Why two states are enough for Async without a barrier: a warp sends its part of state n + 1 only after it has read all of state
// n. State n + 2 overwrites n, and a warp sends it only after it has all of n + 1, hence after all warps have read n. The thread
// that arms the mbarrier of n for n + 2 has waited for n and has not yet sent its part of n + 1. A block ends when it has all of
// the last state that is sent, so nothing is on its way to it any more.
//
//   registers       the block's columns of the matrix, except for the weights that TILE leaves to shared memory
//   shared memory   mbarriers: 2 a tile of rows, 16 bytes | those weights | states: 2 (this one, next one) × rows × K
//
// Cycles a step: K·COLUMNS / 128 multiply-adds a row (128 at K = 256 and 4 blocks). For waiting times see benchmarks/NOTES.md.
#include "recurrence.cuh"

// The common part of both exchanges: the states, and sending 16 bytes to every block. Four lanes have four neighbouring columns,
// and REPLICAS - 1 other lanes have copies of each. All these lanes divide the blocks of the cluster among themselves.
template <class Tile>
struct Cluster {
  static constexpr bool FLIES = true;
  static constexpr int STRIDE = Tile::COLUMN_LANES * Tile::REPLICAS;  // lanes between two neighbouring columns
  static constexpr int SENDERS = 4 * Tile::REPLICAS;                  // lanes that have the same 16 bytes
  static constexpr int SENDS = (BLOCKS + SENDERS - 1) / SENDERS;
  static_assert(Tile::COUNT == 1 && Tile::K_WARPS == 1, "a lane finishes one element");
  static_assert(Tile::COLUMNS * BLOCKS == Tile::K, "the blocks have all columns");

  float* states;
  int owned;            // rows
  int from;             // the lane that has the first of the four columns
  int sender;           // this lane's number among the senders
  Remote state[SENDS];  // the four columns of state 0 in each block that this lane sends to

  __device__ Cluster(float* states, int rows) : states(states), owned(rows) {
    const int lane = threadIdx.x % 32, element = lane / STRIDE;
    from = kept(element / 4 * 4 * STRIDE + lane % Tile::COLUMN_LANES);
    sender = kept(element % 4 * Tile::REPLICAS + lane / Tile::COLUMN_LANES % Tile::REPLICAS);
    float* four = states + Tile::row(0) * Tile::K + first_column() + Tile::column(0) / 4 * 4;
#pragma unroll
    for (int i = 0; i < SENDS; i++) state[i] = remote(four, rank(i));
  }
  __device__ int first_column() const { return blockIdx.x * Tile::COLUMNS; }

 protected:
  // The block that send i goes to, if it is one of the cluster. Lanes begin with different blocks.
  __device__ int rank(int i) const { return (sender + i * SENDERS + blockIdx.x) % BLOCKS; }
  __device__ bool sends(int i) const { return sender + i * SENDERS < BLOCKS; }
  // Offset in floats from state 0.
  __device__ int place(int n, int r) const { return ((n & 1) * owned + r) * Tile::K; }
  __device__ float4 neighbours(const float* values) const {
    return {lane_value(values[0], from), lane_value(values[0], from + STRIDE), lane_value(values[0], from + 2 * STRIDE),
            lane_value(values[0], from + 3 * STRIDE)};
  }
};

template <class Tile>
struct Async : Cluster<Tile> {
  using Base = Cluster<Tile>;
  Mbarrier* barriers;           // [tile of rows][1 if the state's number is odd]
  Remote barrier[Base::SENDS];  // the first one in each block that this lane sends to

  __device__ Async(Mbarrier* barriers, float* states, int rows) : Base(states, rows), barriers(barriers) {
#pragma unroll
    for (int i = 0; i < Base::SENDS; i++) barrier[i] = remote(barriers, this->rank(i));
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < 2 * (rows / Tile::ROWS); i++) mbarrier_init(barriers + i);
      mbarrier_init_fence();
#pragma unroll 1
      for (int r = 0; r < rows; r += Tile::ROWS) {
        mbarrier_expect(of(0, r), 0);  // each block computes state 0 itself
        mbarrier_expect(of(1, r), SIZE);
      }
    }
    cluster_barrier();  // no block writes to another one's shared memory before that block has started
  }
  template <class Pass>
  __device__ void start(const Pass& pass, const Tile&, int first_row, int left, int) const {
    put_start<Tile>(pass, this->states, this->owned, first_row, left);
    block_barrier();
  }
  __device__ void fetch(int, int, int) const {}
  __device__ const float* rows(int n, int r, int) const {
    const int place = kept(this->place(n, r));
    mbarrier_wait(of(n, r), n >> 1 & 1);
    return this->states + place;
  }
  __device__ void put(int n, int r, const Tile&, const float* values, bool wanted) const {
    Remote to[Base::SENDS], signal[Base::SENDS];  // computed before the values are known
#pragma unroll
    for (int i = 0; i < Base::SENDS; i++)
      to[i] = kept(this->state[i] + 4 * this->place(n, r)), signal[i] = kept(barrier[i] + 8 * number(n, r));
    const float4 four = this->neighbours(values);
    if (wanted && threadIdx.x == 0) mbarrier_expect(of(n + 1, r), SIZE);
#pragma unroll
    for (int i = 0; i < Base::SENDS; i++) store_async(wanted && this->sends(i), to[i], signal[i], four);
  }

 private:
  static constexpr int SIZE = 4 * Tile::ROWS * Tile::K;  // bytes of a tile's state
  __device__ static int number(int n, int r) { return 2 * (r / Tile::ROWS) + (n & 1); }
  __device__ Mbarrier* of(int n, int r) const { return barriers + number(n, r); }
};

template <class Tile>
struct Barrier : Cluster<Tile> {
  using Base = Cluster<Tile>;

  __device__ Barrier(Mbarrier*, float* states, int rows) : Base(states, rows) {}
  template <class Pass>
  __device__ void start(const Pass& pass, const Tile&, int first_row, int left, int) const {
    put_start<Tile>(pass, this->states, this->owned, first_row, left);
  }
  __device__ void fetch(int, int r, int) const {
    if (r == 0) cluster_barrier();
  }
  __device__ const float* rows(int n, int r, int) const { return this->states + this->place(n, r); }
  __device__ void put(int n, int r, const Tile&, const float* values, bool wanted) const {
    const float4 four = this->neighbours(values);
#pragma unroll
    for (int i = 0; i < Base::SENDS; i++)
      if (wanted && this->sends(i)) store_to_block(this->state[i] + 4 * this->place(n, r), four);
  }
};

// Macros: NAME, PASS, TILE, BLOCKS, EXCHANGE.
extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(TILE::THREADS, 1) NAME(PASS pass, int rows) {
  Mbarrier* barriers = reinterpret_cast<Mbarrier*>(shared_memory());
  float* weights = shared_memory() + 4 * (rows / TILE::ROWS);
  TILE tile;
  tile.load(pass, blockIdx.x * TILE::COLUMNS, weights);
  EXCHANGE<TILE> exchange(barriers, weights + TILE::SHARED_WEIGHTS, rows);
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows);
}
