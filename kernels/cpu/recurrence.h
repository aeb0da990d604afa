// The recurrence at one SIMD level.
//
// A step is a small product, `rows` × H times H × H, between two elementwise passes over the rows:
//
//     forward     h_t = x·Wxh + bh      h_t += h_{t-1}·Whh       h_t = tanh(h_t)
//     backward    da_t = dh_t           da_t += da_{t+1}·Whhᵀ    da_t *= 1 - h_t²
//
// A thread owns some batch rows for all T steps and meets nobody. Its rows (16 KB for 16 rows of 256) and one panel of
// Whh (16 KB) stay in the L1 cache, all of Whh in L2, so the passes cost little beside the product.
//
// Every sum runs over k in ascending order, in one register or resting in the output, whatever the tile: the bits of a
// row depend neither on the number of threads nor on the rows beside it.
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

// k is cut into blocks, so that a panel's block shares the L1 cache with the rows that it meets.
template <class Real>
constexpr int64_t k_block() {
  return 16384 / (panel_width<Real>() * sizeof(Real));
}

// A tile: out[r][v] += sum over k of a[r][k] · b[k][v] for ROWS rows and PANELS panels of columns.
template <class Real, int ROWS, int PANELS>
void tile(const Real* a, int64_t a_stride, const Real* b, int64_t panel_stride, int64_t row_stride, int64_t K,
          Real* out, int64_t out_stride) {
  constexpr int VECTORS = PANELS * kVectors, LANES = lanes<Real>();
  Vec<Real> sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(out + r * out_stride + v * LANES);
  for (int64_t k = 0; k < K; ++k) {
    const Real* row = b + k * row_stride;
    if (ROWS < VECTORS) {  // fewer values of the state than vectors of Whh: hold those, pass these
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        const Vec<Real> w = load(row + (v / kVectors) * panel_stride + (v % kVectors) * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) sum[r][v] += a[r * a_stride + k] * w;
      }
    } else {
      Vec<Real> w[VECTORS];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) w[v] = load(row + (v / kVectors) * panel_stride + (v % kVectors) * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Real s = a[r * a_stride + k];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += s * w[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) store(out + r * out_stride + v * LANES, sum[r][v]);
}

// Calls the tile of `height` rows, 1 <= height <= ROWS.
template <class Real, int PANELS, int ROWS>
void tile_of_height(int64_t height, const Real* a, int64_t a_stride, const Real* b, int64_t panel_stride,
                    int64_t row_stride, int64_t K, Real* out, int64_t out_stride) {
  if (height == ROWS) tile<Real, ROWS, PANELS>(a, a_stride, b, panel_stride, row_stride, K, out, out_stride);
  else if constexpr (ROWS > 1)
    tile_of_height<Real, PANELS, ROWS - 1>(height, a, a_stride, b, panel_stride, row_stride, K, out, out_stride);
}

// A panel group: `rows` rows, cut into tiles as equal in height as can be.
template <class Real, int PANELS>
void tiles(int64_t rows, const Real* a, int64_t a_stride, const Real* b, int64_t panel_stride, int64_t row_stride,
           int64_t K, Real* out, int64_t out_stride) {
  constexpr int HIGHEST = RNN_MAX_ROWS / PANELS;
  const int64_t count = (rows + HIGHEST - 1) / HIGHEST;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows * i / count, height = rows * (i + 1) / count - row;
    tile_of_height<Real, PANELS, HIGHEST>(height, a + row * a_stride, a_stride, b, panel_stride, row_stride, K,
                                          out + row * out_stride, out_stride);
  }
}

// The last columns, which fill no whole panel: by way of a padded copy of the output.
template <class Real>
void tail_tiles(int64_t rows, const Real* a, int64_t H, const Real* b, int64_t K, Real* out, int64_t columns) {
  constexpr int64_t P = panel_width<Real>();
  for (int64_t row = 0; row < rows; row += RNN_MAX_ROWS) {
    const int64_t height = rows - row < RNN_MAX_ROWS ? rows - row : RNN_MAX_ROWS;
    Real padded[RNN_MAX_ROWS * P] = {};
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < columns; ++c) padded[r * P + c] = out[(row + r) * H + c];
    tiles<Real, 1>(height, a + row * H, H, b, P, P, K, padded, P);
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < columns; ++c) out[(row + r) * H + c] = padded[r * P + c];
  }
}

// out += a · weights; a and out are [rows,H].
template <class Real, int PANELS>
void add_product(int64_t rows, int64_t H, const Real* a, const Weights<Real>& weights, Real* out) {
  const int64_t P = panel_width<Real>(), whole = H / P;
  for (int64_t k = 0; k < H; k += k_block<Real>()) {
    const int64_t K = H - k < k_block<Real>() ? H - k : k_block<Real>();
    const Real* panel = weights.panels + k * weights.row_stride;
    int64_t p = 0;
    for (; p + PANELS <= whole; p += PANELS, panel += PANELS * weights.panel_stride)
      tiles<Real, PANELS>(rows, a + k, H, panel, weights.panel_stride, weights.row_stride, K, out + p * P, H);
    for (; p < whole; ++p, panel += weights.panel_stride)
      tiles<Real, 1>(rows, a + k, H, panel, weights.panel_stride, weights.row_stride, K, out + p * P, H);
    if (p * P < H) tail_tiles(rows, a + k, H, weights.tail + k * P, K, out + p * P, H - p * P);
  }
}

template <class Real>
void add_product(int64_t rows, int64_t H, const Real* a, const Weights<Real>& weights, Real* out) {
  // Few rows take several panels at once: 8 independent sums keep two multiply-add units busy.
  if (rows == 1) add_product<Real, 4>(rows, H, a, weights, out);
  else if (rows <= 3) add_product<Real, 2>(rows, H, a, weights, out);
  else add_product<Real, 1>(rows, H, a, weights, out);
}

template <class Real>
void tanh_of_array(int64_t n, const Real* x, Real* y) {
  int64_t i = 0;
  for (; i + lanes<Real>() <= n; i += lanes<Real>()) store(y + i, tanh<Real>(load(x + i)));
  if (i < n) store(y + i, tanh<Real>(load(x + i, n - i)), n - i);
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
      const Real* x = args.tokens ? Wxh + args.tokens[t * B + begin + b] * H : out;
      for (int64_t i = 0; i < H; ++i) out[i] = x[i] + bh[i];
    }
    add_product(rows, H, previous, Whh, h);
    tanh_of_array(rows * H, h, h);
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
    else if (args.dh != args.da) __builtin_memcpy(da, static_cast<const Real*>(args.dh) + at, n * sizeof(Real));
    if (next) {
      add_product(end - begin, H, next, WhhT, da);
    } else if (args.dh_last) {
      const Real* dh_last = static_cast<const Real*>(args.dh_last) + begin * H;
      for (int64_t i = 0; i < n; ++i) da[i] += dh_last[i];
    }
    for (int64_t i = 0; i < n; ++i) da[i] *= 1 - h[i] * h[i];
    next = da;
  }
  if (args.dh0) {
    Real* dh0 = static_cast<Real*>(args.dh0) + begin * H;
    __builtin_memset(dh0, 0, n * sizeof(Real));
    add_product(end - begin, H, next, WhhT, dh0);
  }
}

template <class Real>
void sum(const rnn_cpu_backward_args& args, int64_t begin, int64_t end) {
  const int64_t B = args.B, H = args.H;
  Real* dWxh = static_cast<Real*>(args.dWxh);
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
void pack(const Real* W, int64_t H, bool transpose, int64_t begin, int64_t end, Real* packed) {
  constexpr int64_t P = panel_width<Real>();
  for (int64_t p = begin; p < end; ++p) {
    Real* panel = packed + p * H * P;
    const int64_t n = H - p * P < P ? H - p * P : P;
    if (n < P) __builtin_memset(panel, 0, H * P * sizeof(Real));
    if (transpose) {
      for (int64_t c = 0; c < n; ++c)
        for (int64_t k = 0; k < H; ++k) panel[k * P + c] = W[(p * P + c) * H + k];
    } else {
      for (int64_t k = 0; k < H; ++k)
        for (int64_t c = 0; c < n; ++c) panel[k * P + c] = W[k * H + p * P + c];
    }
  }
}

template <class Real>
constexpr Kernels<Real> kernels() {
  return {panel_width<Real>(), pack<Real>, forward<Real>, backward<Real>, sum<Real>, tanh_of_array<Real>};
}

}  // namespace RNN_LEVEL
}  // namespace rnn
