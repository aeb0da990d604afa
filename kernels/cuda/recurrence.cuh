// The loop that the resident, cluster and grid families share: one block's rows and columns through all steps.
//
// The block owns `rows` rows of the batch from first_row on (in tiles of ROWS), and COLUMNS columns of the state from
// first_column on. For each tile of rows, a step waits for the tile's state, multiplies (tile.cuh), finishes the thread's
// elements of the new state (passes.cuh) and puts them where all blocks that own the same rows will read them. The family's
// Exchange says where that is and how the blocks wait. It counts rows from the block's first one, r = 0, ROWS, 2·ROWS ...:
//   first_column()             of this block
//   start(pass, ...)           puts the elements of state 0
//   fetch(n, r, end)           announces rows(n, r, end); with r = 0, all of state n has been put, and the blocks meet
//   rows(n, r, end)            waits for ROWS rows of state n from r on and returns them, (ROWS, K) in shared memory
//   put(n, r, tile, values, wanted)    puts the thread's elements of these rows of state n, as Tile numbers them. The last state
//                              is not wanted: no block reads it.
//
//   FLIES                      whether time passes between the last put and the arrival of a state
//
// The time of a step lies between the arrival of a state and the last put: the multiply-adds, the tree and f. The rest
// (`prepare`) happens while the new state is on its way or, if nothing flies, in the gaps between multiply-adds: it stores a
// state to global memory and computes the addresses of the next terms. A term is read one tile ahead and a token two tiles ahead,
// so that no thread waits for them. Values that do not change from step to step are pinned in registers (`kept`), since the
// compiler would otherwise compute them anew at every step.
#pragma once

#include "passes.cuh"
#include "tile.cuh"

// A tile of rows of a step, in the order of the loop: m = n · B.
struct Position {
  int n, m, r;
  __device__ void advance(int rows, int end, int B) {
    r += rows;
    if (r >= end) r = 0, m += B, n++;
  }
};

// Writes state 0 of all columns into shared memory, (owned, K). Each block does it for itself.
template <class Tile, class Pass>
__device__ void put_start(const Pass& pass, float* state, int owned, int first_row, int left) {
  for (int i = threadIdx.x; i < owned * Tile::K; i += Tile::THREADS) {
    const int row = i / Tile::K, j = i % Tile::K;
    state[i] = row < left && j < pass.H ? pass.start(first_row + row, j) : 0;
  }
}

template <class Pass, class Tile, class Exchange>
__device__ void recurrence(const Pass& pass, const Tile& tile, Exchange& exchange, int first_row, int rows) {
  constexpr int ROWS = Tile::ROWS, COUNT = Tile::COUNT;
  const int left = pass.B - first_row < rows ? pass.B - first_row : rows;  // rows of the batch that the block has
  const int steps = kept(pass.T), B = kept(pass.B), end = kept((left + ROWS - 1) / ROWS * ROWS);

  // The thread's elements: row of the batch in the first tile, column, and the r below which the element is the thread's own.
  // Elsewhere the state is 0: beyond H, where it has to be, and in rows that do not exist.
  int row[COUNT], below[COUNT];
  typename Pass::Column column[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int j = exchange.first_column() + tile.column(i);
    row[i] = kept(first_row + tile.row(i));
    below[i] = kept(j < pass.H && tile.owns(i) ? left - tile.row(i) : 0);
    if (j < pass.H) column[i] = pass.column(j).kept_in_registers();
  }
  auto line = [&](const Position& at, int i) { return pass.line(at.m, at.r + row[i]); };

  int token[COUNT] = {};
  typename Pass::Term term[COUNT] = {};
  typename Pass::Addend addend[COUNT] = {};
  // Reads at the start of the next tile: the address of the term of the tile after it, and of the token of the tile after that.
  typename Pass::Place place[COUNT] = {};
  const int* token_place[COUNT] = {};
  bool read_term[COUNT] = {}, read_token[COUNT] = {};
  Position of_token = {0, 0, 0}, of_term = {0, 0, 0}, at = {0, 0, 0};
  auto find_token = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      token_place[i] = pass.token(line(of_token, i));
      read_token[i] = token_place[i] && of_token.n < steps && of_token.r < below[i];
    }
    of_token.advance(ROWS, end, B);
  };
  auto find_term = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      place[i] = pass.place(column[i], token[i], line(of_term, i));
      read_term[i] = of_term.n < steps && of_term.r < below[i];
    }
    of_term.advance(ROWS, end, B);
  };
  auto read = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      pass.read(read_term[i], place[i], term[i]), load_when(read_token[i], token_place[i], token[i]);
  };
  auto make_addend = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++) addend[i] = pass.addend(column[i], term[i]);
  };
  auto store = [&](const Position& at, const float* values) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) pass.store(at.r < below[i], column[i], line(at, i), values[i]);
  };
  auto prepare = [&](const Position& done, const float* values) {
    store(done, values);
    make_addend();
    find_term();
    find_token();
  };
  find_token(), read();
  find_term(), find_token(), read();

  if constexpr (Pass::STARTS_STORED)
    for (int r = 0; r < end; r += ROWS) {
      float values[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        values[i] = r < below[i] ? pass.start(r + row[i], exchange.first_column() + tile.column(i)) : 0;
      store({-1, -B, r}, values);
    }
  exchange.start(pass, tile, first_row, left, end);
  exchange.fetch(0, 0, end);

  float values[COUNT] = {};
  Position done = {0, 0, end};  // no tile
  if constexpr (Exchange::FLIES) prepare(done, values);
#pragma unroll 1
  while (at.n < steps) {
    const float* state = exchange.rows(at.n, at.r, end);
    if constexpr (!Exchange::FLIES) prepare(done, values);
    read();
    tile.multiply(state, values);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      values[i] = pass.finish(values[i], addend[i]);
      if (at.r >= below[i]) values[i] = 0;
    }
    exchange.put(at.n + 1, at.r, tile, values, at.n + 1 < steps);
    done = at;
    at.advance(ROWS, end, B);
    if (at.n < steps) exchange.fetch(at.n, at.r, end);
    if constexpr (Exchange::FLIES) prepare(done, values);
  }
  if constexpr (!Exchange::FLIES) store(done, values);
}
