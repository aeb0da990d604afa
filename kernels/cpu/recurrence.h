// The recurrence at one SIMD level, and the products around it.
//
// A step is a small product, `rows` × H times H × H, between an elementwise start and end:
//
//     forward     h_t = x·Wxh + bh      h_t += h_{t-1}·Whh       h_t = tanh(h_t)     or relu(h_t)
//     backward    da_t = dh_t           da_t += da_{t+1}·Whhᵀ    da_t *= 1 - h_t²    or (h_t > 0)
//
// The start belongs to the tile that computes the product, which adds it to the sums in its registers. The end is a pass of its
// own: right behind each tile it would make the next one wait for the long chain of a tanh.
//
// A thread computes a part of a step: some batch rows, some columns. Its rows (16 KB for 16 rows of 256) stay in the L1 cache,
// its columns of Whh in L2. split.cc says who computes which part, team.h how those meet who share rows.
//
// The products over all T·B rows run on the same tile: x·Wxh before the steps, da·Wxhᵀ and the weight gradients after.
//
// Every sum runs over k in ascending order, block by block, whatever the tile: the bits of a result depend neither on the
// number of threads nor on the parts nor on what is computed beside it, nor on the level, as long as that has fused
// multiply-adds.
//
// Included by isa_*.cc, which define
//     RNN_LEVEL        namespace of the level
//     RNN_SIMD_BYTES   bytes of a vector
//     RNN_MAX_ROWS     rows of the highest tile: its 2·RNN_MAX_ROWS accumulators, 2 vectors of Whh and a value of the
//                      state must fit into the registers
#include "kernels.h"
#include "peak.h"
#include "simd.h"
#include "tanh.h"

namespace rnn {
namespace RNN_LEVEL {

constexpr int kVectors = 2;  // vectors in a panel
constexpr int kMostPanels = 4;  // that a tile computes at once

template <class Real>
constexpr int64_t panel_width() {
  return kVectors * lanes<Real>();
}

// What a tile reads a value at a time: value (row, k) is at values[row * row_stride + k * k_stride].
template <class Real>
struct Left {
  const Real* values;
  int64_t row_stride, k_stride;
};

// Panels of columns, read a vector at a time. See Weights in kernels.h.
template <class Real>
struct Right {
  const Real* values;
  int64_t panel_stride, k_stride;
};

// What a product starts from: row r, column c of [rows,N] at values[r·stride + c], or zeros where there are no values. With
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
  constexpr int VECTORS = PANELS * kVectors, LANES = lanes<Real>();
  for (int r = 0; r < ROWS; ++r) {  // what the sums will meet comes from memory meanwhile
    for (int v = 0; v < VECTORS; ++v) {
      __builtin_prefetch(out + r * out_stride + v * LANES, 1);
      if (start.values) __builtin_prefetch(start.row(r) + v * LANES);
    }
  }
  Vec<Real> sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < K; ++k) {
    if (ROWS < VECTORS) {  // fewer values of the left side than vectors of the right: hold those, pass these
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<Real> w = load(b.values + (v / kVectors) * b.panel_stride + (v % kVectors) * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sum[r][v] += a.values[r * a.row_stride] * w;
      }
    } else {
      Vec<Real> w[VECTORS];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v)
        w[v] = load(b.values + (v / kVectors) * b.panel_stride + (v % kVectors) * LANES);
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

// The left side of a product, its tiles one after the other, each `depth` times its height values.
template <class Real>
struct PackedTiles {
  const Real* values;
  int64_t depth;

  Left<Real> tile(int64_t row, int64_t height) const { return {values + row * depth, 1, height}; }
};

// Calls visit(row, height) for tiles of at most HIGHEST rows, as equal in height as can be.
template <int HIGHEST, class Visit>
RNN_INLINE void for_each_tile(int64_t rows, const Visit& visit) {
  const int64_t count = (rows + HIGHEST - 1) / HIGHEST;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows * i / count;
    visit(row, rows * (i + 1) / count - row);
  }
}

// One group of panels, all rows: out [rows,columns] = start + a · b, at `column` of the whole. Fewer columns than
// the panels have (the last panel's padding) go by way of a padded copy of the sums.
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

// One block of k, the panels [panel, end): out [rows,N] = start + a · b for the rows k to k + K of b, `a` starting there. As many
// panels at once as the rows leave accumulators for: few rows need many sums to keep the multiply-add units busy.
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

// In the L1 cache addresses a multiple of this many bytes apart compete for one set, which holds eight lines or more.
constexpr int64_t kWay = 4096, kWays = 8;

// The same for rows of `a` that are a multiple of kWay apart. A tile reads one value of each row at a time, and of more rows than
// a set has lines none would stay in the cache. So this works on copies of the rows which are not so far apart.
template <class Real>
void add_spread_block(int64_t rows, int64_t panel, int64_t end, int64_t k, int64_t K, int64_t N, const Real* a, int64_t a_stride,
                      const Weights<Real>& b, const Start<Real>& start, Real* out) {
  constexpr int64_t STRIDE = kDepth + 64 / sizeof(Real), ROWS = 4 * RNN_MAX_ROWS;
  Real copy[ROWS * STRIDE];
  for_each_tile<ROWS>(rows, [&](int64_t row, int64_t height) {
    for (int64_t r = 0; r < height; ++r) __builtin_memcpy(copy + r * STRIDE, a + (row + r) * a_stride, K * sizeof(Real));
    add_block<Real, kMostPanels>(height, panel, end, k, K, N, Rows<Real>{copy, STRIDE}, b, start.at(row, 0), out + row * N, N);
  });
}

// The panels [panel, end) of out [rows,N] = start + a [rows,K] · b [K,N]. Many rows meet all panels a block of k at a time, which
// the L1 cache holds of them. Few rows meet a few panels at a time; from the last panel on where `turn` is odd, so that a step
// begins with what the step before has left in the L2 cache of a Whh that is larger.
template <class Real>
void product(int64_t rows, int64_t panel, int64_t end, int64_t K, int64_t N, const Real* a, const Weights<Real>& b,
             const Start<Real>& start, Real* out, int64_t turn = 0) {
  const int64_t at_once = rows <= RNN_MAX_ROWS / kMostPanels ? kMostPanels : end - panel;
  const int64_t groups = (end - panel + at_once - 1) / at_once;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = panel + at_once * (turn % 2 ? groups - 1 - g : g);
    const int64_t last = first + at_once < end ? first + at_once : end;
    for (int64_t k = 0; k < K; k += kDepth) {
      const int64_t depth = K - k < kDepth ? K - k : kDepth;
      const Start<Real> from = k ? Start<Real>{out, N, nullptr, nullptr} : start;
      if (rows > kWays && K * sizeof(Real) % kWay == 0) {
        add_spread_block(rows, first, last, k, depth, N, a + k, K, b, from, out);
      } else {
        add_block<Real, kMostPanels>(rows, first, last, k, depth, N, Rows<Real>{a + k, K}, b, from, out, N);
      }
    }
  }
}

template <class Real, int ACTIVATION>
RNN_INLINE Vec<Real> activation(Vec<Real> a) {
  if constexpr (ACTIVATION == RNN_TANH) return tanh<Real>(a);
  else return a < Vec<Real>{} ? Vec<Real>{} : a;  // this way round, so that NaN stays NaN
}

// y may be x.
template <class Real, int ACTIVATION>
void activate(int64_t n, const Real* x, Real* y) {
  int64_t i = 0;
  for (; i + lanes<Real>() <= n; i += lanes<Real>()) store(y + i, activation<Real, ACTIVATION>(load(x + i)));
  if (i < n) store(y + i, activation<Real, ACTIVATION>(load(x + i, n - i)), n - i);
}

// da times the activation's derivative, of which its result h tells all.
template <class Real, int ACTIVATION>
void multiply_by_derivative(int64_t n, const Real* h, Real* da) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (ACTIVATION == RNN_TANH) da[i] *= 1 - h[i] * h[i];
    else da[i] = h[i] > 0 ? da[i] : 0;
  }
}

// Calls visit(first, n) for the pieces of a part's rows, H values each, in which its columns lie one after the other.
template <class Real, class Visit>
void for_each_piece(const Part& part, int64_t H, const Visit& visit) {
  constexpr int64_t P = panel_width<Real>();
  const int64_t rows = part.rows_end - part.row, column = part.panel * P;
  const int64_t columns = (part.panels_end * P < H ? part.panels_end * P : H) - column;
  if (columns == H) return visit(0, rows * H);
  for (int64_t r = 0; r < rows; ++r) visit(r * H + column, columns);
}

template <class Real, int ACTIVATION>
void forward_step(const rnn_cpu_forward_args& args, const Weights<Real>& Whh, int64_t t, const Part& part) {
  const int64_t B = args.B, H = args.H, first = t * B + part.row;
  Real* h = static_cast<Real*>(args.h) + first * H;
  const Real* previous = t ? h - B * H : static_cast<const Real*>(args.h0) + part.row * H;
  Start<Real> start = {h, H, nullptr, static_cast<const Real*>(args.bh)};  // dense: x·Wxh is there already
  if (args.tokens) start = {static_cast<const Real*>(args.Wxh), H, args.tokens + first, start.bias};
  product(part.rows_end - part.row, part.panel, part.panels_end, H, H, previous, Whh, start, h, t);
  for_each_piece<Real>(part, H, [&](int64_t at, int64_t n) { activate<Real, ACTIVATION>(n, h + at, h + at); });
}

template <class Real, int ACTIVATION>
void backward_step(const rnn_cpu_backward_args& args, const Weights<Real>& WhhT, int64_t t, const Part& part) {
  const int64_t B = args.B, H = args.H, rows = part.rows_end - part.row, first = (t * B + part.row) * H;
  const Real* next = static_cast<const Real*>(args.da) + first + B * H;  // da of the step after
  if (t < 0) {
    product(rows, part.panel, part.panels_end, H, H, next, WhhT, Start<Real>(), static_cast<Real*>(args.dh0) + part.row * H);
    return;
  }
  const Real* h = static_cast<const Real*>(args.h) + first;
  const Real* dh = args.dh ? static_cast<const Real*>(args.dh) + first : nullptr;
  Real* da = static_cast<Real*>(args.da) + first;
  if (t < args.T - 1) {
    product(rows, part.panel, part.panels_end, H, H, next, WhhT, Start<Real>{dh, H, nullptr, nullptr}, da, t);
  } else {
    const Real* dh_last = args.dh_last ? static_cast<const Real*>(args.dh_last) + part.row * H : nullptr;
    for_each_piece<Real>(part, H, [&](int64_t at, int64_t n) {
      if (dh) __builtin_memcpy(da + at, dh + at, n * sizeof(Real));
      else __builtin_memset(da + at, 0, n * sizeof(Real));
      for (int64_t i = 0; dh_last && i < n; ++i) da[at + i] += dh_last[at + i];
    });
  }
  for_each_piece<Real>(part, H, [&](int64_t at, int64_t n) { multiply_by_derivative<Real, ACTIVATION>(n, h + at, da + at); });
}

template <class Real>
void forward(const rnn_cpu_forward_args& args, const Weights<Real>& Whh, int64_t t, const Part& part) {
  if (args.activation == RNN_TANH) forward_step<Real, RNN_TANH>(args, Whh, t, part);
  else forward_step<Real, RNN_RELU>(args, Whh, t, part);
}

template <class Real>
void backward(const rnn_cpu_backward_args& args, const Weights<Real>& WhhT, int64_t t, const Part& part) {
  if (args.activation == RNN_TANH) backward_step<Real, RNN_TANH>(args, WhhT, t, part);
  else backward_step<Real, RNN_RELU>(args, WhhT, t, part);
}

// `sum` for VECTORS vectors of columns from `column` on, or where VECTORS is 0 for `rest` columns, fewer than a vector's.
template <class Real, int VECTORS>
void sum_columns(const rnn_cpu_backward_args& args, int64_t column, int64_t rest) {
  constexpr int COUNT = VECTORS ? VECTORS : 1, LANES = lanes<Real>();
  const auto get = [&](const Real* p) { return VECTORS ? load(p) : load(p, rest); };
  const auto put = [&](Real* p, Vec<Real> v) { VECTORS ? store(p, v) : store(p, v, rest); };
  const int64_t B = args.B, H = args.H;
  const Real* da = static_cast<const Real*>(args.da) + column;
  Real* dWxh = args.tokens && args.dWxh ? static_cast<Real*>(args.dWxh) + column : nullptr;  // dense: a product
  Vec<Real> all[COUNT] = {};
  for (int64_t t = 0; t < args.T; ++t) {
    Vec<Real> of_step[COUNT] = {};  // a step's sum first: sums of sums lose less than one long sum
    for (int64_t i = t * B; i < (t + 1) * B; ++i) {
      Real* row = dWxh ? dWxh + args.tokens[i] * H : nullptr;
#pragma GCC unroll 4
      for (int v = 0; v < COUNT; ++v) {
        const Vec<Real> value = get(da + i * H + v * LANES);
        of_step[v] += value;
        if (row) put(row + v * LANES, get(row + v * LANES) + value);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < COUNT; ++v) all[v] += of_step[v];
  }
  if (!args.dbh) return;
  Real* dbh = static_cast<Real*>(args.dbh) + column;
#pragma GCC unroll 4
  for (int v = 0; v < COUNT; ++v) put(dbh + v * LANES, all[v]);
}

template <class Real>
void sum(const rnn_cpu_backward_args& args, int64_t begin, int64_t end) {
  constexpr int64_t LANES = lanes<Real>();
  for (; begin + 4 * LANES <= end; begin += 4 * LANES) sum_columns<Real, 4>(args, begin, 0);
  for (; begin + LANES <= end; begin += LANES) sum_columns<Real, 1>(args, begin, 0);
  if (begin < end) sum_columns<Real, 0>(args, begin, end - begin);
}

// Rows of W become the columns of a panel, n of them.
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
void pack(const Real* W, int64_t stride, bool transpose, int64_t K, int64_t N, int64_t begin, int64_t end,
          Real* packed) {
  constexpr int64_t P = panel_width<Real>();
  for (int64_t p = begin; p < end; ++p) {
    Real* panel = packed + p * K * P;
    const int64_t n = N - p * P < P ? N - p * P : P;
    if (n < P) __builtin_memset(panel, 0, K * P * sizeof(Real));
    if (transpose) {
      pack_transposed(W + p * P * stride, stride, K, n, panel);
    } else if (n == P) {  // a size the compiler knows is a few instructions, not a call
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, P * sizeof(Real));
    } else {
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, n * sizeof(Real));
    }
  }
}

// Rows at a time, so that they stay in L2 while all panels pass by.
template <class Real>
void multiply(int64_t K, int64_t N, const Real* a, const Weights<Real>& b, Real* out, const Part& part) {
  constexpr int64_t ROWS = 10 * RNN_MAX_ROWS;
  for (int64_t row = part.row; row < part.rows_end; row += ROWS) {
    const int64_t rows = part.rows_end - row < ROWS ? part.rows_end - row : ROWS;
    product(rows, part.panel, part.panels_end, K, N, a + row * K, b, Start<Real>(), out + row * N);
  }
}

// `depth` pieces of `height` values, `stride` apart, one after the other. A height the compiler knows is a few
// instructions a piece, not a loop: 4 to 10 % of the whole backward pass.
template <class Real, int HIGHEST>
void gather(int64_t height, int64_t depth, const Real* from, int64_t stride, Real* to) {
  if (height == HIGHEST) {
    for (int64_t k = 0; k < depth; ++k) __builtin_memcpy(to + k * HIGHEST, from + k * stride, HIGHEST * sizeof(Real));
  } else if constexpr (HIGHEST > 1) {
    gather<Real, HIGHEST - 1>(height, depth, from, stride, to);
  }
}

// Both sides are packed, a block at a time that the L2 cache holds.
template <class Real>
void add_transposed_product(int64_t R, int64_t M, int64_t N, const Real* a, const Real* b, Real* out, const Part& part,
                            Real* packed) {
  constexpr int64_t P = panel_width<Real>(), MB = kGradientRows, RB = kGradientDepth;
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

template <class Real>
constexpr Kernels<Real> kernels() {
  return {panel_width<Real>(), RNN_MAX_ROWS, pack<Real>, multiply<Real>, forward<Real>, backward<Real>, sum<Real>,
          add_transposed_product<Real>, activate<Real, RNN_TANH>, multiply_adds<Real>};
}

}  // namespace RNN_LEVEL
}  // namespace rnn
