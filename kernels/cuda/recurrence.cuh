// The loop that the resident, cluster and grid families share: one block's rows and columns through all steps.
//
// The block owns `rows` rows of the batch from first_row on (in tiles of ROWS), and COLUMNS columns of the state from
// first_column on. A step is, for each tile of rows:
//   1. every thread multiplies (tile.cuh) and leaves its partial sums in shared memory;
//   2. after a barrier, THREADS / COLUMNS threads a column add them up, finish the elements of the new state (passes.cuh)
//      and put them where all blocks that own the same rows will look for them;
// then these blocks meet. Where they put and how they meet is the family's Exchange:
//   first_column()                 this block's
//   put(n, row, column, value)     an element of state n, row and column counted from this block's first
//   meet(n)                        all elements of state n have been put, and all see them
//   rows(n, tile, tiles)           tile's ROWS rows of state n, (ROWS, K) in shared memory, after a meeting
//
// What a step needs from global memory is asked for one step ahead, tokens two. A state is written to global memory while the
// next one is computed, so that no barrier has to wait for it.
//
// A block has a multiprocessor to itself. The kernels' __launch_bounds__ say so (..., 1): without it, the compiler would rather
// spill a few registers here and there than take more than half of them.
#pragma once

#include "passes.cuh"
#include "tile.cuh"

// partials: 2·Tile::PARTIALS floats of shared memory.
template <class Pass, class Tile, class Exchange>
__device__ void recurrence(const Pass& pass, const Tile& tile, Exchange& exchange, int first_row, int rows, float* partials) {
  constexpr int ROWS = Tile::ROWS, COLUMNS = Tile::COLUMNS;
  constexpr int ABREAST = Tile::THREADS / COLUMNS;  // elements of one column that are finished at a time
  constexpr int ROUNDS = (ROWS + ABREAST - 1) / ABREAST;
  const int column = threadIdx.x % COLUMNS, first = threadIdx.x / COLUMNS;
  const int j = exchange.first_column() + column;
  const int steps = pass.T;
  const int left = pass.B - first_row;  // rows of the batch from here on
  const int tiles = ((left < rows ? left : rows) + ROWS - 1) / ROWS;
  const float bias = j < pass.H ? pass.bias(j) : 0;

  // Element of this thread: row of the block, in a tile and a round; whether it is one of the arrays'.
  auto row = [&](int p, int round) { return p * ROWS + first + round * ABREAST; };
  auto mine = [&](int round) { return first + round * ABREAST < ROWS; };
  auto real = [&](int p, int round) { return mine(round) && row(p, round) < left && j < pass.H; };

  for (int p = 0; p < tiles; p++)
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
      if (mine(round))
        exchange.put(0, row(p, round), column, real(p, round) ? pass.start(first_row + row(p, round), j) : 0);
  exchange.meet(0);

  // (n, p) of the next tile of rows, and of the one after.
  auto advance = [&](int& n, int& p) {
    if (++p == tiles) p = 0, n++;
  };
  typename Pass::Index ahead[ROUNDS];
  typename Pass::Term term[ROUNDS], next[ROUNDS];
  auto fetch_index = [&](int n, int p) {
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
      if (n < steps && real(p, round)) ahead[round] = pass.index(n, first_row + row(p, round));
  };
  auto fetch_term = [&](int n, int p) {
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
      next[round] = {};
      if (n < steps && real(p, round)) next[round] = pass.term(ahead[round], n, first_row + row(p, round), j);
    }
  };
  int n1 = 0, p1 = 0, n2 = 0, p2 = 0;
  fetch_index(n1, p1);
  fetch_term(n1, p1);
  advance(n2, p2);
  fetch_index(n2, p2);

  bool odd = false;
  for (int n = 0; n < steps; n++) {
    for (int p = 0; p < tiles; p++, odd = !odd) {
#pragma unroll
      for (int round = 0; round < ROUNDS; round++) term[round] = next[round];
      n1 = n2, p1 = p2;
      fetch_term(n1, p1);
      advance(n2, p2);
      fetch_index(n2, p2);

      const float* state = exchange.rows(n, p, tiles);
#pragma unroll
      for (int round = 0; round < ROUNDS; round++)
        if (real(p, round))
          pass.store(n, first_row + row(p, round), j, state[(first + round * ABREAST) * Tile::K + j]);
      float* sums = partials + odd * Tile::PARTIALS;  // the other half may still be read
      tile.multiply(state, sums);
      block_barrier();
#pragma unroll
      for (int round = 0; round < ROUNDS; round++) {
        if (!mine(round)) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < Tile::K_WARPS; w++) sum += sums[(w * ROWS + first + round * ABREAST) * COLUMNS + column];
        const float value = j < pass.H ? pass.finish(n, sum, term[round], bias) : 0;
        if (n + 1 < steps)
          exchange.put(n + 1, row(p, round), column, value);
        else if (real(p, round))
          pass.store(steps, first_row + row(p, round), j, value);
      }
    }
    if (n + 1 < steps) exchange.meet(n + 1);
  }
}
