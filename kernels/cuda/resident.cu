// resident: one block does everything for its rows of the batch, with all of the matrix in its registers and shared memory.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; launch (1, blocks) × TILE::THREADS. TILE::COLUMNS = TILE::K >= H.
//
//   registers       the matrix, but for what TILE leaves to shared memory
//   shared memory   those weights | states: 2 (this one, next one) × rows × K | partial sums: 2 × TILE::PARTIALS
//
// Cycles a step and row: K² / 128 multiply-adds (512 at K = 256; tile.cuh says what shared memory adds), and once a step about
// 150 for two barriers, the tree over the lanes and tanh.
#include "recurrence.cuh"

template <class Tile>
struct Resident {
  float* states;
  int owned;  // rows

  __device__ int first_column() const { return 0; }
  __device__ void put(int n, int row, int column, float value) const {
    states[((n & 1) * owned + row) * Tile::K + column] = value;
  }
  __device__ void meet(int) const { block_barrier(); }
  __device__ const float* rows(int n, int p, int) const { return states + ((n & 1) * owned + p * Tile::ROWS) * Tile::K; }
};

// Macros: PASS, TILE.
extern "C" __global__ void __launch_bounds__(TILE::THREADS, 1) resident(PASS pass, int rows) {
  static_assert(TILE::COLUMNS == TILE::K, "the block has all columns");
  float* weights = shared_memory();
  float* states = weights + TILE::SHARED_WEIGHTS;
  float* partials = states + 2 * rows * TILE::K;
  TILE tile;
  tile.load(pass, 0, weights);
  Resident<TILE> exchange = {states, rows};
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows, partials);
}
