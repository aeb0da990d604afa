// The time steps of the recurrence at one SIMD level.
//
// A step is a small product, `rows` × H times H × H, between an elementwise start and end:
//
//     forward     h_t = x·Wxh + bh      h_t += h_{t-1}·Whh       h_t = tanh(h_t)     or relu(h_t)
//     backward    da_t = dh_t           da_t += da_{t+1}·Whhᵀ    da_t *= 1 - h_t²    or (h_t > 0)
//
// The tile of gemm.h computes the product and adds the start to the sums in its registers. The end is a pass of its own: right
// behind each tile it would make the next tile wait for the long chain of a tanh.
//
// A thread computes a part of a step: some batch rows, some columns. Its rows (16 KB for 16 rows of 256) stay in the L1 cache,
// its columns of Whh in L2. split.cc chooses the parts. Threads that share rows meet in team.h.
//
// Included by isa_*.cc, which define
//     RNN_LEVEL        namespace of the level
//     RNN_SIMD_BYTES   bytes of a vector
//     RNN_MAX_ROWS     rows of the highest tile: its 2·RNN_MAX_ROWS accumulators, 2 vectors of Whh and a value of the
//                      state must fit into the registers
#pragma once

#include "dispatch.h"
#include "gemm.h"
#include "peak.h"
#include "simd.h"
#include "tanh.h"

namespace rnn {
namespace RNN_LEVEL {

template <class Real, int ACTIVATION>
RNN_INLINE Vec<Real> activation(Vec<Real> a) {
  if constexpr (ACTIVATION == RNN_TANH) return tanh<Real>(a);
  else return a < Vec<Real>{} ? Vec<Real>{} : a;  // in this order, so that NaN stays NaN
}

// y may be x.
template <class Real, int ACTIVATION>
void activate(int64_t n, const Real* x, Real* y) {
  int64_t i = 0;
  for (; i + lanes<Real>() <= n; i += lanes<Real>()) store(y + i, activation<Real, ACTIVATION>(load(x + i)));
  if (i < n) store(y + i, activation<Real, ACTIVATION>(load(x + i, n - i)), n - i);
}

// da times the activation's derivative, which follows from its result h.
template <class Real, int ACTIVATION>
void multiply_by_derivative(int64_t n, const Real* h, Real* da) {
  for (int64_t i = 0; i < n; ++i) {
    // With a fused multiply-add 1 - h² rounds once and loses nothing. (Baseline x86-64 has none: near ±1 it loses digits there.)
    // CUDA (passes.cuh) computes (1 - h)(1 + h), which loses nothing either way. Both stay as they are, so that no bit changes.
    if constexpr (ACTIVATION == RNN_TANH) da[i] *= 1 - h[i] * h[i];
    else da[i] = h[i] > 0 ? da[i] : 0;
  }
}

// Calls visit(first, n) for each contiguous piece of a part: n values from index `first` on. Rows have H values.
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
  Start<Real> start = {h, H, nullptr, static_cast<const Real*>(args.bh)};  // dense input: h holds x·Wxh
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

// `sum` for VECTORS vectors of columns from `column` on. With VECTORS = 0, for `rest` columns, fewer than a vector has.
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
    Vec<Real> of_step[COUNT] = {};  // one sum a step: sums of sums lose less than one long sum
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

template <class Real>
constexpr Kernels<Real> kernels() {
  return {panel_width<Real>(),
          RNN_MAX_ROWS,
          pack<Real>,
          multiply<Real>,
          forward<Real>,
          backward<Real>,
          sum<Real>,
          add_transposed_product<Real>,
          activate<Real, RNN_TANH>,
          multiply_adds<Real>};
}

}  // namespace RNN_LEVEL
}  // namespace rnn
