// resident: one block does everything for its rows of the batch, with all of the matrix in its registers and shared memory.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; launch (1, blocks) × Tile::THREADS. Tile::COLUMNS = Tile::K >= H.
//
//   registers       the matrix, but for what Tile leaves to shared memory
//   shared memory   those weights | states: 2 (this one, next one) × rows × K | partial sums: 2 × Tile::PARTIALS
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

template <class Pass, class Tile>
__global__ void __launch_bounds__(Tile::THREADS) resident(Pass pass, int rows) {
  static_assert(Tile::COLUMNS == Tile::K, "the block has all columns");
  float* weights = shared_memory();
  float* states = weights + Tile::SHARED_WEIGHTS;
  float* partials = states + 2 * rows * Tile::K;
  Tile tile;
  tile.load(pass, 0, weights);
  Resident<Tile> exchange = {states, rows};
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows, partials);
}
