// The loop that the resident, cluster and grid families share: one block's rows and columns through all steps.
//
// The block owns `rows` rows of the batch from first_row on (in tiles of ROWS), and COLUMNS columns of the state from
// first_column on. A step is, for each tile of rows: wait for the tile's state, multiply (tile.cuh), finish the thread's elements
// of the new state (passes.cuh) and put them where all blocks that own the same rows will look for them. Where that is and how
// they wait is the family's Exchange:
//   first_column()             this block's
//   start(pass, ...)           all elements of state 0 are put, and all see them
//   rows(n, p, tiles)          tile p's ROWS rows of state n, (ROWS, K) in shared memory, once they are there
//   put(n, p, tile, values, wanted)    the thread's elements of tile p of state n, as Tile numbers them; nobody will look for the
//                              last state, which is not wanted
//   meet(n)                    after all tiles of state n have been put
//
// What lies between the arrival of a state and the last put is what a step takes: it holds the multiply-adds, the tree, f and
// nothing else. All the rest comes after the put, while the new state is on its way: storing it to global memory, and reading
// what the next tiles add to their sums. That is asked for two tiles ahead, tokens three, so that nobody waits for it.
#pragma once

#include "passes.cuh"
#include "tile.cuh"

// A tile of rows of a step, in the order of the loop: m = step · B.
struct Position {
  int m, p;
  __device__ void advance(int tiles, int B) {
    if (++p == tiles) p = 0, m += B;
  }
};

// State 0 of all columns into shared memory, (owned, K), by the block for itself.
template <class Tile, class Pass>
__device__ void put_start(const Pass& pass, float* state, int owned, int first_row, int left) {
  for (int i = threadIdx.x; i < owned * Tile::K; i += Tile::THREADS) {
    const int row = i / Tile::K, j = i % Tile::K;
    state[i] = row < left && j < pass.H ? pass.start(first_row + row, j) : 0;
  }
  block_barrier();
}

template <class Pass, class Tile, class Exchange>
__device__ void recurrence(const Pass& pass, const Tile& tile, Exchange& exchange, int first_row, int rows) {
  constexpr int ROWS = Tile::ROWS, COUNT = Tile::COUNT;
  const int steps = pass.T;
  const int left = pass.B - first_row < rows ? pass.B - first_row : rows;  // rows of the batch that the block has
  const int tiles = (left + ROWS - 1) / ROWS;

  // The thread's elements: row in a tile, column, and whether it is the one that reads and stores them.
  int row[COUNT], j[COUNT];
  bool inside[COUNT];
  float bias[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    row[i] = kept(tile.row(i)), j[i] = kept(exchange.first_column() + tile.column(i));
    inside[i] = j[i] < pass.H;
    bias[i] = inside[i] ? pass.bias(j[i]) : 0;
  }
  auto mine = [&](int p, int i) { return inside[i] && tile.owns(i) && p * ROWS + row[i] < left; };
  auto line = [&](const Position& at, int i) { return pass.line(at.m, first_row + at.p * ROWS + row[i]); };

  const int end = steps * pass.B;
  typename Pass::Index index[COUNT] = {};
  typename Pass::Term term[COUNT] = {};
  typename Pass::Addend addend[COUNT] = {};
  Position of_index = {0, 0}, of_term = {0, 0};
  auto read_index = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (of_index.m < end && mine(of_index.p, i)) index[i] = pass.index(line(of_index, i));
    of_index.advance(tiles, pass.B);
  };
  auto read_term = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (of_term.m < end && mine(of_term.p, i)) term[i] = pass.term(index[i], line(of_term, i), j[i]);
    of_term.advance(tiles, pass.B);
  };
  auto make_addend = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++) addend[i] = pass.addend(term[i], bias[i]);
  };
  auto store = [&](const Position& at, const float* values) {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (mine(at.p, i)) pass.store(line(at, i), j[i], values[i]);
  };
  read_index(), read_term(), make_addend();
  read_index(), read_term();
  read_index();

  if constexpr (Pass::STARTS_STORED)
    for (int p = 0; p < tiles; p++) {
      float values[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        values[i] = mine(p, i) ? pass.start(first_row + p * ROWS + row[i], j[i]) : 0;
      store({-pass.B, p}, values);
    }
  exchange.start(pass, tile, first_row, left, tiles);

  Position at = {0, 0};
#pragma unroll 1
  for (int n = 0; n < steps; n++) {
#pragma unroll 1
    for (int p = 0; p < tiles; p++) {
      float values[COUNT];
      tile.multiply(exchange.rows(n, p, tiles), values);
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        values[i] = pass.finish(values[i], addend[i]);
        if (!inside[i]) values[i] = 0;
      }
      exchange.put(n + 1, p, tile, values, n + 1 < steps);
      store(at, values);
      at.advance(tiles, pass.B);
      make_addend();
      read_term();
      read_index();
    }
    if (n + 1 < steps) exchange.meet(n + 1);
  }
}
