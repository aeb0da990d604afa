// The recurrence at one SIMD level, and the products around it.
//
// A step is a small product, `rows` × H times H × H, between two elementwise passes over the rows:
//
//     forward     h_t = x·Wxh + bh      h_t += h_{t-1}·Whh       h_t = tanh(h_t)     or relu(h_t)
//     backward    da_t = dh_t           da_t += da_{t+1}·Whhᵀ    da_t *= 1 - h_t²    or (h_t > 0)
//
// A thread owns some batch rows for all T steps and meets nobody. Its rows (16 KB for 16 rows of 256) and one panel of
// Whh (16 KB) stay in the L1 cache, all of Whh in L2, so the passes cost little beside the product.
//
// The products over all T·B rows run on the same tile: x·Wxh before the steps, da·Wxhᵀ and the weight gradients after.
//
// Every sum runs over k in ascending order, block by block, whatever the tile: the bits of a result depend neither on the
// number of threads nor on what is computed beside it, nor on the level, as long as that has fused multiply-adds.
//
// Included by isa_*.cc, which define
//     RNN_LEVEL        namespace of the level
//     RNN_SIMD_BYTES   bytes of a vector
//     RNN_MAX_ROWS     rows of the highest tile: its 2·RNN_MAX_ROWS accumulators, 2 vectors of Whh and a value of the
//                      state must fit into the registers
#include "kernels.h"
#include "simd.h"
#include "tanh.h"

namespace rnn {
namespace RNN_LEVEL {

constexpr int kVectors = 2;  // vectors in a panel

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

// A tile: out[r][v] += sum over k of a[r][k] · b[k][v] for ROWS rows and PANELS panels of columns.
template <class Real, int ROWS, int PANELS>
void tile(Left<Real> a, Right<Real> b, int64_t K, Real* out, int64_t out_stride) {
  constexpr int VECTORS = PANELS * kVectors, LANES = lanes<Real>();
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
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
      Real* p = out + r * out_stride + v * LANES;
      store(p, load(p) + sum[r][v]);
    }
  }
}

// Calls the tile of `height` rows, 1 <= height <= ROWS.
template <class Real, int PANELS, int ROWS>
void tile_of_height(int64_t height, Left<Real> a, Right<Real> b, int64_t K, Real* out, int64_t out_stride) {
  if (height == ROWS) tile<Real, ROWS, PANELS>(a, b, K, out, out_stride);
  else if constexpr (ROWS > 1) tile_of_height<Real, PANELS, ROWS - 1>(height, a, b, K, out, out_stride);
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

// One group of panels, all rows: out [rows,columns] += a · b. Fewer columns than the panels have (the last panel's
// padding) go by way of a padded copy of the output.
template <class Real, int PANELS, class LeftSide>
void tiles(int64_t rows, int64_t columns, const LeftSide& a, Right<Real> b, int64_t K, Real* out, int64_t out_stride) {
  constexpr int HIGHEST = RNN_MAX_ROWS / PANELS;
  constexpr int64_t WIDTH = PANELS * panel_width<Real>();
  for_each_tile<HIGHEST>(rows, [&](int64_t row, int64_t height) {
    Real* target = out + row * out_stride;
    if (columns == WIDTH) {
      tile_of_height<Real, PANELS, HIGHEST>(height, a.tile(row, height), b, K, target, out_stride);
      return;
    }
    Real padded[HIGHEST * WIDTH] = {};
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < columns; ++c) padded[r * WIDTH + c] = target[r * out_stride + c];
    tile_of_height<Real, PANELS, HIGHEST>(height, a.tile(row, height), b, K, padded, WIDTH);
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < columns; ++c) target[r * out_stride + c] = padded[r * WIDTH + c];
  });
}

// out [rows,N] += a [rows,K] · b [K,N] for the rows k to k + K of b, `a` starting there.
template <class Real, int PANELS, class LeftSide>
void add_block(int64_t rows, int64_t k, int64_t K, int64_t N, const LeftSide& a, const Weights<Real>& b, Real* out,
               int64_t out_stride) {
  constexpr int64_t P = panel_width<Real>();
  const int64_t whole = N / P;
  Right<Real> right = {b.panels + k * b.k_stride, b.panel_stride, b.k_stride};
  int64_t p = 0;
  for (; p + PANELS <= whole; p += PANELS, right.values += PANELS * b.panel_stride)
    tiles<Real, PANELS>(rows, PANELS * P, a, right, K, out + p * P, out_stride);
  for (; p < whole; ++p, right.values += b.panel_stride)
    tiles<Real, 1>(rows, P, a, right, K, out + p * P, out_stride);
  if (p * P < N) tiles<Real, 1>(rows, N - p * P, a, Right<Real>{b.tail + k * P, 0, P}, K, out + p * P, out_stride);
}

// out [rows,N] += a [rows,K] · b [K,N]
template <class Real>
void add_product(int64_t rows, int64_t K, int64_t N, const Real* a, const Weights<Real>& b, Real* out) {
  for (int64_t k = 0; k < K; k += kDepth) {
    const int64_t n = K - k < kDepth ? K - k : kDepth;
    const Rows<Real> left = {a + k, K};
    // Few rows take several panels at once: 8 independent sums keep two multiply-add units busy.
    if (rows == 1) add_block<Real, 4>(rows, k, n, N, left, b, out, N);
    else if (rows <= 3) add_block<Real, 2>(rows, k, n, N, left, b, out, N);
    else add_block<Real, 1>(rows, k, n, N, left, b, out, N);
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

template <class Real>
void forward(const rnn_cpu_forward_args& args, const Weights<Real>& Whh, int64_t begin, int64_t end) {
  const int64_t B = args.B, H = args.H, rows = end - begin;
  const Real* Wxh = static_cast<const Real*>(args.Wxh);
  const Real* bh = static_cast<const Real*>(args.bh);
  const Real* previous = static_cast<const Real*>(args.h0) + begin * H;
  for (int64_t t = 0; t < args.T; ++t) {
    Real* h = static_cast<Real*>(args.h) + (t * B + begin) * H;
    for (int64_t b = 0; b < rows; ++b) {
      Real* out = h + b * H;
      const Real* x = args.tokens ? Wxh + args.tokens[t * B + begin + b] * H : out;  // dense: x·Wxh is there already
      for (int64_t i = 0; i < H; ++i) out[i] = x[i] + bh[i];
    }
    add_product(rows, H, H, previous, Whh, h);
    if (args.activation == RNN_TANH) activate<Real, RNN_TANH>(rows * H, h, h);
    else activate<Real, RNN_RELU>(rows * H, h, h);
    previous = h;
  }
}

template <class Real>
void backward(const rnn_cpu_backward_args& args, const Weights<Real>& WhhT, int64_t begin, int64_t end) {
  const int64_t H = args.H, n = (end - begin) * H;
  const Real* next = nullptr;  // da of the step after
  for (int64_t t = args.T - 1; t >= 0; --t) {
    const int64_t at = (t * args.B + begin) * H;
    const Real* h = static_cast<const Real*>(args.h) + at;
    Real* da = static_cast<Real*>(args.da) + at;
    if (!args.dh) __builtin_memset(da, 0, n * sizeof(Real));
    else __builtin_memcpy(da, static_cast<const Real*>(args.dh) + at, n * sizeof(Real));
    if (next) {
      add_product(end - begin, H, H, next, WhhT, da);
    } else if (args.dh_last) {
      const Real* dh_last = static_cast<const Real*>(args.dh_last) + begin * H;
      for (int64_t i = 0; i < n; ++i) da[i] += dh_last[i];
    }
    if (args.activation == RNN_TANH) multiply_by_derivative<Real, RNN_TANH>(n, h, da);
    else multiply_by_derivative<Real, RNN_RELU>(n, h, da);
    next = da;
  }
  if (args.dh0) {
    Real* dh0 = static_cast<Real*>(args.dh0) + begin * H;
    __builtin_memset(dh0, 0, n * sizeof(Real));
    add_product(end - begin, H, H, next, WhhT, dh0);
  }
}

template <class Real>
void sum(const rnn_cpu_backward_args& args, int64_t begin, int64_t end) {
  const int64_t B = args.B, H = args.H;
  Real* dWxh = args.tokens ? static_cast<Real*>(args.dWxh) : nullptr;  // dense: a product, see the dispatcher
  Real* dbh = static_cast<Real*>(args.dbh);
  if (dWxh)
    for (int64_t i = 0; i < args.I; ++i) __builtin_memset(dWxh + i * H + begin, 0, (end - begin) * sizeof(Real));
  if (dbh) __builtin_memset(dbh + begin, 0, (end - begin) * sizeof(Real));
  constexpr int64_t BLOCK = 64;
  for (int64_t t = 0; t < args.T; ++t) {
    for (int64_t c = begin; c < end; c += BLOCK) {
      const int64_t n = end - c < BLOCK ? end - c : BLOCK;
      const Real* da = static_cast<const Real*>(args.da) + t * B * H + c;
      Real of_step[BLOCK] = {};  // a step's sum first: sums of sums lose less than one long sum
      for (int64_t b = 0; b < B; ++b) {
        for (int64_t i = 0; i < n; ++i) of_step[i] += da[b * H + i];
        if (dWxh) {
          Real* row = dWxh + args.tokens[t * B + b] * H + c;
          for (int64_t i = 0; i < n; ++i) row[i] += da[b * H + i];
        }
      }
      if (dbh)
        for (int64_t i = 0; i < n; ++i) dbh[c + i] += of_step[i];
    }
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
      for (int64_t c = 0; c < n; ++c)
        for (int64_t k = 0; k < K; ++k) panel[k * P + c] = W[(p * P + c) * stride + k];
    } else if (n == P) {  // a size the compiler knows is a few instructions, not a call
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, P * sizeof(Real));
    } else {
      for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * P, W + k * stride + p * P, n * sizeof(Real));
    }
  }
}

// Rows at a time, so that they stay in L2 while all panels pass by.
template <class Real>
void multiply(int64_t K, int64_t N, const Real* a, const Weights<Real>& b, Real* out, int64_t begin, int64_t end) {
  constexpr int64_t ROWS = 10 * RNN_MAX_ROWS;
  for (int64_t row = begin; row < end; row += ROWS) {
    const int64_t rows = end - row < ROWS ? end - row : ROWS;
    __builtin_memset(out + row * N, 0, rows * N * sizeof(Real));
    add_product(rows, K, N, a + row * K, b, out + row * N);
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
void add_transposed_product(int64_t R, int64_t M, int64_t N, const Real* a, const Real* b, Real* out, int64_t begin,
                            int64_t end, Real* packed) {
  constexpr int64_t P = panel_width<Real>(), MB = kGradientRows, RB = kGradientDepth;
  const int64_t column = begin * P, columns = (end * P < N ? end * P : N) - column;
  Real* left = packed;
  Real* right = packed + MB * RB;
  for (int64_t m = 0; m < M; m += MB) {
    const int64_t rows = M - m < MB ? M - m : MB;
    for (int64_t r = 0; r < R; r += RB) {
      const int64_t depth = R - r < RB ? R - r : RB;
      for_each_tile<RNN_MAX_ROWS>(rows, [&](int64_t row, int64_t height) {
        gather<Real, RNN_MAX_ROWS>(height, depth, a + r * M + m + row, M, left + row * depth);
      });
      pack(b + r * N + column, N, false, depth, columns, 0, end - begin, right);
      const Weights<Real> panels = {right, P * depth, P, right + columns / P * P * depth};
      add_block<Real, 1>(rows, 0, depth, columns, PackedTiles<Real>{left, depth}, panels, out + m * N + column, N);
    }
  }
}

template <class Real>
constexpr Kernels<Real> kernels() {
  return {panel_width<Real>(), pack<Real>,     multiply<Real>, forward<Real>,
          backward<Real>,      sum<Real>,      add_transposed_product<Real>, activate<Real, RNN_TANH>};
}

}  // namespace RNN_LEVEL
}  // namespace rnn
