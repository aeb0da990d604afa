// Matrix products at one SIMD level: a tile of rows and columns, and the loops around it.
//
// The step of the recurrence and the products before and after it (x·Wxh, da·Wxhᵀ, the weight gradients) all run on this tile.
// A step is a small product between an elementwise start and end. The start belongs to the tile, which adds it to the sums in its
// registers; the end is recurrence.h's.
//
// Every sum runs over k in ascending order, block by block, whatever the tile. So the bits of a result depend neither on the
// number of threads nor on the parts nor on the other parts of the same product. They do not depend on the level either, as long
// as the level has fused multiply-adds.
//
// Included by recurrence.h, once for each level.
#pragma once

#include "dispatch.h"
#include "simd.h"

namespace rnn {
namespace RNN_LEVEL {

constexpr int PANEL_VECTORS = 2;  // vectors in a panel
constexpr int MOST_PANELS = 4;    // that a tile computes at once

template <class Real>
constexpr int64_t panel_width() {
  return PANEL_VECTORS * lanes<Real>();
}

// The side that a tile reads one value at a time. Value (row, k) is at values[row * row_stride + k * k_stride].
template <class Real>
struct Left {
  const Real* values;
  int64_t row_stride, k_stride;
};

// The side that a tile reads one vector at a time, in panels. See Weights in dispatch.h.
template <class Real>
struct Right {
  const Real* values;
  int64_t panel_stride, k_stride;
};

// The values that a product is added to: row r, column c of [rows,N] is values[r·stride + c], or 0 if `values` is null. With
// tokens, row r is row tokens[r] of the values. `bias` [N] is added to every row.
template <class Real>
struct Start {
  const Real* values;
  int64_t stride;
  const int32_t* tokens;
  const Real* bias;

  Start at(int64_t row, int64_t column) const {
    return {!values ? nullptr : values + column + (tokens ? 0 : row * stride), stride, tokens ? tokens + row : nullptr,
            bias ? bias + column : nullptr};
  }
  const Real* row(int64_t r) const { return values + (tokens ? tokens[r] : r) * stride; }
};

// A tile: out[r][v] = start[r][v] + sum over k of a[r][k] · b[k][v] for ROWS rows and PANELS panels of columns.
template <class Real, int ROWS, int PANELS>
void tile(Left<Real> a, Right<Real> b, int64_t K, const Start<Real>& start, Real* out, int64_t out_stride) {
  constexpr int VECTORS = PANELS * PANEL_VECTORS, LANES = lanes<Real>();
  for (int r = 0; r < ROWS; ++r) {  // fetched from memory while the sums are computed
    for (int v = 0; v < VECTORS; ++v) {
      __builtin_prefetch(out + r * out_stride + v * LANES, 1);
      if (start.values) __builtin_prefetch(start.row(r) + v * LANES);
    }
  }
  Vec<Real> sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < K; ++k) {
    if (ROWS < VECTORS) {  // the left side has fewer values: keep them in registers and stream the vectors
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<Real> w = load(b.values + (v / PANEL_VECTORS) * b.panel_stride + (v % PANEL_VECTORS) * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sum[r][v] += a.values[r * a.row_stride] * w;
      }
    } else {
      Vec<Real> w[VECTORS];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v)
        w[v] = load(b.values + (v / PANEL_VECTORS) * b.panel_stride + (v % PANEL_VECTORS) * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Real s = a.values[r * a.row_stride];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += s * w[v];
      }
    }
    a.values += a.k_stride;
    b.values += b.k_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const Real* from = start.values ? start.row(r) : nullptr;
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
      Vec<Real> first = from ? load(from + v * LANES) : Vec<Real>{};
      if (start.bias) first += load(start.bias + v * LANES);
      store(out + r * out_stride + v * LANES, first + sum[r][v]);
    }
  }
}

// Calls the tile of `height` rows, 1 <= height <= ROWS.
template <class Real, int PANELS, int ROWS>
void tile_of_height(int64_t height, Left<Real> a, Right<Real> b, int64_t K, const Start<Real>& start, Real* out,
                    int64_t out_stride) {
  if (height == ROWS) tile<Real, ROWS, PANELS>(a, b, K, start, out, out_stride);
  else if constexpr (ROWS > 1) tile_of_height<Real, PANELS, ROWS - 1>(height, a, b, K, start, out, out_stride);
}

// The left side of a product, a row-major matrix.
template <class Real>
struct Rows {
  const Real* values;
  int64_t stride;

  Left<Real> tile(int64_t row, int64_t /*height*/) const { return {values + row * stride, stride, 1}; }
};

// The left side of a product, packed tile after tile. A tile has `depth` times its height values.
template <class Real>
struct PackedTiles {
  const Real* values;
  int64_t depth;

  Left<Real> tile(int64_t row, int64_t height) const { return {values + row * depth, 1, height}; }
};

// Calls visit(row, height) for tiles of at most HIGHEST rows and of nearly equal heights.
template <int HIGHEST, class Visit>
RNN_INLINE void for_each_tile(int64_t rows, const Visit& visit) {
  const int64_t count = (rows + HIGHEST - 1) / HIGHEST;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows * i / count;
    visit(row, rows * (i + 1) / count - row);
  }
}

// One group of panels, all rows: out [rows,columns] = start + a · b, from `column` on. If there are fewer columns than the panels
// have, because the last panel is padded, the sums go through a padded copy.
template <class Real, int PANELS, class LeftSide>
void tiles(int64_t rows, int64_t column, int64_t columns, const LeftSide& a, Right<Real> b, int64_t K, const Start<Real>& start,
           Real* out, int64_t out_stride) {
  constexpr int HIGHEST = RNN_MAX_ROWS / PANELS;
  constexpr int64_t WIDTH = PANELS * panel_width<Real>();
  for_each_tile<HIGHEST>(rows, [&](int64_t row, int64_t height) {
    const Start<Real> from = start.at(row, column);
    Real* target = out + row * out_stride + column;
    if (columns == WIDTH) {
      tile_of_height<Real, PANELS, HIGHEST>(height, a.tile(row, height), b, K, from, target, out_stride);
    } else {
      Real sums[HIGHEST * WIDTH];
      tile_of_height<Real, PANELS, HIGHEST>(height, a.tile(row, height), b, K, Start<Real>(), sums, WIDTH);
      for (int64_t r = 0; r < height; ++r) {
        const Real* first = from.values ? from.row(r) : nullptr;
        for (int64_t c = 0; c < columns; ++c)
          target[r * out_stride + c] = (first ? first[c] : 0) + (from.bias ? from.bias[c] : 0) + sums[r * WIDTH + c];
      }
    }
  });
}

// One block of k, the panels [panel, end): out [rows,N] = start + a · b for the rows k to k + K of b; `a` starts at k. Takes as
// many panels at once as accumulators allow, since with few rows it takes many sums to keep the multiply-add units busy.
template <class Real, int PANELS, class LeftSide>
void add_block(int64_t rows, int64_t panel, int64_t end, int64_t k, int64_t K, int64_t N, const LeftSide& a,
               const Weights<Real>& b, const Start<Real>& start, Real* out, int64_t out_stride) {
  constexpr int64_t P = panel_width<Real>();
  const int64_t whole = N / P < end ? N / P : end;
  if (PANELS == 1 || rows <= RNN_MAX_ROWS / PANELS) {
    for (; panel + PANELS <= whole; panel += PANELS) {
      const Right<Real> right = {b.panels + panel * b.panel_stride + k * b.k_stride, b.panel_stride, b.k_stride};
      tiles<Real, PANELS>(rows, panel * P, PANELS * P, a, right, K, start, out, out_stride);
    }
  }
  if constexpr (PANELS > 1) {
    add_block<Real, PANELS / 2>(rows, panel, end, k, K, N, a, b, start, out, out_stride);
  } else if (panel < end) {
    const Right<Real> right = {b.tail + k * P, 0, P};
    tiles<Real, 1>(rows, panel * P, N - panel * P, a, right, K, start, out, out_stride);
  }
}

// Addresses that are a multiple of WAY bytes apart share one set of the L1 cache, which holds WAYS lines or more.
constexpr int64_t WAY = 4096, WAYS = 8;

// As add_block, for rows of `a` that are a multiple of WAY bytes apart. A tile reads one value of each row in turn. If there are
// more rows than WAYS, none of them would stay in the cache. So this works on copies of the rows that are less far apart.
template <class Real>
void add_spread_block(int64_t rows, int64_t panel, int64_t end, int64_t k, int64_t K, int64_t N, const Real* a, int64_t a_stride,
                      const Weights<Real>& b, const Start<Real>& start, Real* out) {
  constexpr int64_t STRIDE = DEPTH + 64 / sizeof(Real), ROWS = 4 * RNN_MAX_ROWS;
  Real copy[ROWS * STRIDE];
  for_each_tile<ROWS>(rows, [&](int64_t row, int64_t height) {
    for (int64_t r = 0; r < height; ++r) __builtin_memcpy(copy + r * STRIDE, a + (row + r) * a_stride, K * sizeof(Real));
    add_block<Real, MOST_PANELS>(height, panel, end, k, K, N, Rows<Real>{copy, STRIDE}, b, start.at(row, 0), out + row * N, N);
  });
}

// The panels [panel, end) of out [rows,N] = start + a [rows,K] · b [K,N]. Many rows are multiplied with all panels, one block of
// k at a time, which the L1 cache holds. Few rows are multiplied with a few panels at a time. If `turn` is odd, the last panels
// come first: if Whh is larger than the L2 cache, a step thus begins with the panels that the step before has left there.
template <class Real>
void product(int64_t rows, int64_t panel, int64_t end, int64_t K, int64_t N, const Real* a, const Weights<Real>& b,
             const Start<Real>& start, Real* out, int64_t turn = 0) {
  const int64_t at_once = rows <= RNN_MAX_ROWS / MOST_PANELS ? MOST_PANELS : end - panel;
  const int64_t groups = (end - panel + at_once - 1) / at_once;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = panel + at_once * (turn % 2 ? groups - 1 - g : g);
    const int64_t last = first + at_once < end ? first + at_once : end;
    for (int64_t k = 0; k < K; k += DEPTH) {
      const int64_t depth = K - k < DEPTH ? K - k : DEPTH;
      const Start<Real> from = k ? Start<Real>{out, N, nullptr, nullptr} : start;
      if (rows > WAYS && K * sizeof(Real) % WAY == 0) {
        add_spread_block(rows, first, last, k, depth, N, a + k, K, b, from, out);
      } else {
        add_block<Real, MOST_PANELS>(rows, first, last, k, depth, N, Rows<Real>{a + k, K}, b, from, out, N);
      }
    }
  }
}

// n rows of W become the columns of a panel.
template <class Real>
void pack_transposed(const Real* W, int64_t stride, int64_t K, int64_t n, Real* panel) {
  constexpr int64_t P = panel_width<Real>();
  constexpr int LANES = lanes<Real>();
  for (int64_t c = 0; c < n; c += LANES) {
    int64_t k = 0;
    for (; c + LANES <= n && k + LANES <= K; k += LANES) {
      Vec<Real> square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = load(W + (c + i) * stride + k);
      transpose<Real>(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store(panel + (k + i) * P + c, square[i]);
    }
    for (int64_t i = c; i < n && i < c + LANES; ++i)
      for (int64_t rest = k; rest < K; ++rest) panel[rest * P + i] = W[i * stride + rest];
  }
}

template <class Real>
void pack(const Real* W, int64_t stride, bool transpose, int64_t K, int64_t N, int64_t begin, int64_t end, Real* packed) {
  constexpr int64_t P = panel_width<Real>();
  for (int64_t p = begin; p < end; ++p) {
    Real* panel = packed + p * K * P;
    const int64_t n = N - p * P < P ? N - p * P : P;
    if (n < P) __builtin_memset(panel, 0, K * P * sizeof(Real));
    if (transpose) {
      pack_transposed(W + p * P * stride, stride, K, n, panel);
    } else if (n == P) {  // with a size that the compiler knows, memcpy is a few instructions and no call
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, P * sizeof(Real));
    } else {
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, n * sizeof(Real));
    }
  }
}

// ROWS rows at a time, so that they stay in the L2 cache while they are multiplied with all panels.
template <class Real>
void multiply(int64_t K, int64_t N, const Real* a, const Weights<Real>& b, Real* out, const Part& part) {
  constexpr int64_t ROWS = 10 * RNN_MAX_ROWS;
  for (int64_t row = part.row; row < part.rows_end; row += ROWS) {
    const int64_t rows = part.rows_end - row < ROWS ? part.rows_end - row : ROWS;
    product(rows, part.panel, part.panels_end, K, N, a + row * K, b, Start<Real>(), out + row * N);
  }
}

// Copies `depth` pieces of `height` values, `stride` apart, one behind the other. With a height that the compiler knows, a piece
// is a few instructions instead of a loop, which saves 4 to 10 % of the whole backward pass.
template <class Real, int HIGHEST>
void gather(int64_t height, int64_t depth, const Real* from, int64_t stride, Real* to) {
  if (height == HIGHEST) {
    for (int64_t k = 0; k < depth; ++k) __builtin_memcpy(to + k * HIGHEST, from + k * stride, HIGHEST * sizeof(Real));
  } else if constexpr (HIGHEST > 1) {
    gather<Real, HIGHEST - 1>(height, depth, from, stride, to);
  }
}

// Packs both sides, one block at a time that fits the L2 cache.
template <class Real>
void add_transposed_product(int64_t R, int64_t M, int64_t N, const Real* a, const Real* b, Real* out, const Part& part,
                            Real* packed) {
  constexpr int64_t P = panel_width<Real>(), MB = GRADIENT_ROWS, RB = GRADIENT_DEPTH;
  const int64_t column = part.panel * P, panels = part.panels_end - part.panel;
  const int64_t columns = (part.panels_end * P < N ? part.panels_end * P : N) - column;
  Real* left = packed;
  Real* right = packed + MB * RB;
  for (int64_t m = part.row; m < part.rows_end; m += MB) {
    const int64_t rows = part.rows_end - m < MB ? part.rows_end - m : MB;
    Real* block = out + m * N + column;
    for (int64_t r = 0; r < R; r += RB) {
      const int64_t depth = R - r < RB ? R - r : RB;
      for_each_tile<RNN_MAX_ROWS>(rows, [&](int64_t row, int64_t height) {
        gather<Real, RNN_MAX_ROWS>(height, depth, a + r * M + m + row, M, left + row * depth);
      });
      pack(b + r * N + column, N, false, depth, columns, 0, panels, right);
      const Weights<Real> side = {right, P * depth, P, right + columns / P * P * depth};
      add_block<Real, 1>(rows, 0, panels, 0, depth, columns, PackedTiles<Real>{left, depth}, side,
                         Start<Real>{block, N, nullptr, nullptr}, block, N);
    }
  }
}

}  // namespace RNN_LEVEL
}  // namespace rnn
