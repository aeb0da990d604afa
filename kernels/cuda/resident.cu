// resident: one block does everything for its rows of the batch, and has the whole matrix in its registers and shared memory.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; launch (1, blocks) × TILE::THREADS. TILE::COLUMNS = TILE::K >= H.
//
//   registers       the matrix, except for the weights that TILE leaves to shared memory
//   shared memory   those weights | states: 2 (this one, next one) × rows × K
//
// Cycles a step: K² / 128 multiply-adds a row. For waiting times see benchmarks/NOTES.md.
#include "recurrence.cuh"

template <class Tile>
struct Resident {
  float* states;
  int owned;  // rows

  static constexpr bool FLIES = false;

  __device__ int first_column() const { return 0; }
  template <class Pass>
  __device__ void start(const Pass& pass, const Tile&, int first_row, int left, int) const {
    put_start<Tile>(pass, states, owned, first_row, left);
  }
  __device__ const float* rows(int n, int r, int) const { return states + ((n & 1) * owned + r) * Tile::K; }
  __device__ void put(int n, int r, const Tile& tile, const float* values, bool) const {
    float* state = states + ((n & 1) * owned + r) * Tile::K;
#pragma unroll
    for (int i = 0; i < Tile::COUNT; i++)
      if (tile.owns(i)) state[tile.row(i) * Tile::K + tile.column(i)] = values[i];
  }
  __device__ void fetch(int, int r, int) const {
    if (r == 0) block_barrier();
  }
};

// Macros: NAME, PASS, TILE.
extern "C" __global__ void __launch_bounds__(TILE::THREADS, 1) NAME(PASS pass, int rows) {
  static_assert(TILE::COLUMNS == TILE::K && TILE::K_WARPS == 1, "the block has all columns, each warp all of k");
  float* weights = shared_memory();
  TILE tile;
  tile.load(pass, 0, weights);
  Resident<TILE> exchange = {weights + TILE::SHARED_WEIGHTS, rows};
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows);
}
