// grid: groups of blocks, together the whole chip, share rows of the batch, each block with its columns of the matrix.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; cooperative launch (blocks a group, groups) × TILE::THREADS, so that
// all blocks run at once; block blockIdx.x has columns blockIdx.x·COLUMNS ..., gridDim.x·COLUMNS >= H. A block writes its part of
// the new state to global memory (which stays in L2) and the blocks of the group meet. Then each block copies whole rows to its
// own shared memory, the next tile of rows while it works on this one.
//
//   states          global, zero before the launch: 2 (this one, next one) × gridDim.y·rows × K
//   counters        global, zero before the launch: one a group, 32 apart
//   registers       the block's columns of the matrix, except for the weights that TILE leaves to shared memory
//   shared memory   those weights | partial sums: TILE::PARTIALS | two tiles of rows: 2 × ROWS × K
//
// Cycles a step: K·COLUMNS / 128 multiply-adds a row, or the copy of 4·K bytes a row from L2 at some 64 bytes a cycle, whichever
// is more. For the way through L2 (stores, counter, poll, first copy) see benchmarks/NOTES.md.
#include "recurrence.cuh"

template <class Tile>
struct Grid {
  static constexpr bool FLIES = true;  // from L2

  float *even, *odd;  // the group's two states
  unsigned* counter;
  float* staged;
  int offset[Tile::COUNT];  // of the thread's elements, in a tile of a state
  bool owns[Tile::COUNT];

  __device__ Grid(const Tile& tile, float* even, float* odd, unsigned* counter, float* staged)
      : even(kept(even)), odd(kept(odd)), counter(kept(counter)), staged(staged) {
#pragma unroll
    for (int i = 0; i < Tile::COUNT; i++) {
      offset[i] = kept(tile.row(i) * Tile::K + first_column() + tile.column(i));
      owns[i] = kept(static_cast<int>(tile.owns(i)));
    }
  }
  __device__ int first_column() const { return blockIdx.x * Tile::COLUMNS; }
  template <class Pass>
  __device__ void start(const Pass& pass, const Tile& tile, int first_row, int left, int end) const {
    for (int r = 0; r < end; r += Tile::ROWS) {
      float values[Tile::COUNT];
#pragma unroll
      for (int i = 0; i < Tile::COUNT; i++) {
        const int row = r + tile.row(i), j = first_column() + tile.column(i);
        values[i] = tile.owns(i) && row < left && j < pass.H ? pass.start(first_row + row, j) : 0;
      }
      put(0, r, tile, values, true);
    }
  }
  __device__ void fetch(int n, int r, int end) const {
    const float* from = kept((n & 1 ? odd : even) + static_cast<long long>(r) * Tile::K);
    if (r == 0) {
      group_barrier(counter, gridDim.x, n + 1);
      copy(from, r);
    }
    // This overwrites rows that all warps have read: they have met since, for their partial sums.
    if (r + Tile::ROWS < end) copy(from + Tile::ROWS * Tile::K, r + Tile::ROWS);
  }
  __device__ const float* rows(int n, int r, int end) const {
    if (r + Tile::ROWS < end) copy_wait<1>();
    else copy_wait<0>();
    block_barrier();
    return staged + r / Tile::ROWS % 2 * Tile::ROWS * Tile::K;
  }
  __device__ void put(int n, int r, const Tile&, const float* values, bool) const {
    float* state = (n & 1 ? odd : even) + static_cast<long long>(r) * Tile::K;
#pragma unroll
    for (int i = 0; i < Tile::COUNT; i++) store_when(owns[i], state + offset[i], values[i]);
  }

 private:
  __device__ void copy(const float* from, int r) const {
    constexpr int SIZE = Tile::ROWS * Tile::K, AT_ONCE = 4 * Tile::THREADS;
    float* to = staged + r / Tile::ROWS % 2 * SIZE;
#pragma unroll
    for (int i = 0; i < SIZE; i += AT_ONCE) {
      const int k = i + 4 * threadIdx.x;
      if (i + AT_ONCE <= SIZE || k < SIZE)
        copy_start(reinterpret_cast<float4*>(to + k), reinterpret_cast<const float4*>(from + k));
    }
    copy_close_batch();
  }
};

// Macros: NAME, PASS, TILE.
extern "C" __global__ void __launch_bounds__(TILE::THREADS, 1) NAME(PASS pass, int rows, float* states, unsigned* counters) {
  float* weights = shared_memory();
  TILE tile;
  tile.load(pass, blockIdx.x * TILE::COLUMNS, weights);
  float* even = states + static_cast<long long>(blockIdx.y) * rows * TILE::K;
  float* odd = even + static_cast<long long>(gridDim.y) * rows * TILE::K;
  Grid<TILE> exchange(tile, even, odd, counters + 32 * blockIdx.y, weights + TILE::SHARED_WEIGHTS + TILE::PARTIALS);
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows);
}
