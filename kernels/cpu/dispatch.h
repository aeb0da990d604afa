// The table of functions that each SIMD level provides. Each function does one thread's share of the work.
//
// isa_*.cc compile recurrence.h once per level and fill these tables. This header has no code on purpose: the linker keeps one
// copy of an inline function. That could be the AVX-512 version, and it would then run on a processor without AVX-512.
#pragma once

#include <stdint.h>

#include "rnn_cpu.h"

namespace rnn {

// The right side of a product, K × N, as the micro-kernel reads it: panels of `Kernels::panel` columns, and in each panel row
// after row of k. Packed panels are contiguous. Unpacked panels are the matrix itself with its own row stride. If the last
// columns fill no whole panel, they are always packed and padded with zeros.
template <class Real>
struct Weights {
  const Real* panels;    // first whole panel
  int64_t panel_stride;  // from a panel to the next
  int64_t k_stride;      // from k to k + 1 within a whole panel
  const Real* tail;      // the padded panel, its rows `Kernels::panel` apart; unused when N is a multiple of panel
};

// A sum over k is cut into blocks of this length. Sums of sums lose less than one long sum, and a panel's block fits the L1 cache
// together with the rows that it is multiplied with. The length is the same for all levels, so that they give the same bits. A
// length for each level (16 KB of a panel) gains nothing.
constexpr int64_t DEPTH = 256;

// Weight gradients are summed in blocks of the left side: this many rows of the gradient, and this depth.
constexpr int64_t GRADIENT_ROWS = 256, GRADIENT_DEPTH = 128;

// One thread's share of a result: the rows [row, rows_end) and the panels of columns [panel, panels_end).
struct Part {
  int64_t row, rows_end, panel, panels_end;
};

template <class Real>
struct Kernels {
  int64_t panel;  // columns of a panel
  int64_t rows;   // rows of the highest tile

  // Packs panels [begin, end) of the K × N matrix W, rows `stride` apart, or of the transpose of the N × K matrix W
  // (panel p goes to packed + p·K·panel).
  void (*pack)(const Real* W, int64_t stride, bool transpose, int64_t K, int64_t N, int64_t begin, int64_t end, Real* packed);

  // A part of out [..,N] = a [..,K] · b [K,N].
  void (*multiply)(int64_t K, int64_t N, const Real* a, const Weights<Real>& b, Real* out, const Part& part);

  // A part of step t. It needs all columns of the step before in the same rows. With dense input, h holds x·Wxh on entry.
  // Backward starts with t = T - 1, and t = -1 is the gradient of the first state.
  void (*forward)(const rnn_cpu_forward_args& args, const Weights<Real>& Whh, int64_t t, const Part& part);
  void (*backward)(const rnn_cpu_backward_args& args, const Weights<Real>& WhhT, int64_t t, const Part& part);

  // Columns [begin, end) of dbh, the sum of da. With tokens, also adds da to the columns of dWxh. In the order of t, then b.
  void (*sum)(const rnn_cpu_backward_args& args, int64_t begin, int64_t end);

  // A part of out [M,N] += aᵀ·b, a [R,M], b [R,N]. `packed` has room for (GRADIENT_ROWS + the part's columns)·GRADIENT_DEPTH
  // values.
  void (*add_transposed_product)(int64_t R, int64_t M, int64_t N, const Real* a, const Real* b, Real* out, const Part& part,
                                 Real* packed);

  void (*tanh)(int64_t n, const Real* x, Real* y);

  // Does `rounds` rounds of multiply-adds in registers and returns their number. See peak.h.
  double (*multiply_adds)(int64_t rounds);
};

struct Level {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
};

extern const Level baseline_level;
#ifdef RNN_X86
extern const Level avx2_level;
extern const Level avx512_level;
#endif

}  // namespace rnn
