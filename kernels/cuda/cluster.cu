// cluster (sm_90): the BLOCKS blocks of a thread-block cluster share rows of the batch, each with its columns of the matrix.
//
// Computes pass (passes.cuh) for rows blockIdx.y·rows ...; launch (BLOCKS, clusters) × TILE::THREADS; block blockIdx.x has
// columns blockIdx.x·COLUMNS ..., BLOCKS·COLUMNS = K >= H. A block finishes its part of the new state and writes it into
// the shared memory of every block of the cluster; one cluster barrier a step.
//
//   registers       the block's columns of the matrix, but for what TILE leaves to shared memory
//   shared memory   those weights | states: 2 (this one, next one) × rows × K | partial sums: 2 × TILE::PARTIALS
//
// Cycles a step and row: K·COLUMNS / 128 multiply-adds (128 at K = 256 and 4 blocks), and once a step about 400 for the
// remote stores, the cluster barrier, the block barrier, the tree over the lanes and tanh.
#include "recurrence.cuh"

template <class Tile>
struct Cluster {
  float* states;
  int owned;  // rows

  __device__ int first_column() const { return blockIdx.x * Tile::COLUMNS; }
  __device__ void put(int n, int row, int column, float value) const {
    float* place = states + ((n & 1) * owned + row) * Tile::K + first_column() + column;
#pragma unroll
    for (int rank = 0; rank < BLOCKS; rank++) store_to_block(place, rank, value);
  }
  __device__ void meet(int) const { cluster_barrier(); }
  __device__ const float* rows(int n, int p, int) const { return states + ((n & 1) * owned + p * Tile::ROWS) * Tile::K; }
};

// Macros: PASS, TILE, BLOCKS.
extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(TILE::THREADS, 1) cluster(PASS pass, int rows) {
  static_assert(TILE::COLUMNS * BLOCKS == TILE::K, "the blocks have all columns");
  float* weights = shared_memory();
  float* states = weights + TILE::SHARED_WEIGHTS;
  float* partials = states + 2 * rows * TILE::K;
  TILE tile;
  tile.load(pass, blockIdx.x * TILE::COLUMNS, weights);
  Cluster<TILE> exchange = {states, rows};
  cluster_barrier();  // a block's shared memory may be written once the block has started
  recurrence(pass, tile, exchange, blockIdx.y * rows, rows, partials);
}
