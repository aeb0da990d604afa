// The two directions of the recurrence as one loop over states s_0, s_1, ... of shape (B, H). Each state is the state before
// times a matrix, followed by a function of each element. This file computes single elements; the families move whole rows of
// them.
//
// Forward:   s_0 = h0,       s_{n+1}[b,j] = f(Σ_k s_n[b,k]·Whh[k,j] + x_n·Wxh[:,j] + bh[j])               = h_n
// Backward:  s_0 = da_{T-1}, s_{n+1}[b,j] = (Σ_k s_n[b,k]·Whh[j,k] + dh_t[b,j])·f'                        = da_t,  t = T-2-n,
//            and at last     s_T[b,j]     =  Σ_k s_{T-1}[b,k]·Whh[j,k]                                    = dh0
//
// f is tanh with f' = 1 - h_t², or relu with f' = 1 if h_t > 0, else 0. The activation is an argument and not a template
// parameter: all threads take the same branch, and one kernel serves both.
//
// All arrays are C-contiguous; T steps, B rows, I input width, H hidden units. Both directions take T steps, n = 0 ... T-1. A
// step reads and writes row b in one row of a (T·B, H) array, its line. A pass has these members, in the order in which a step
// uses them. Most are called long before the sum is known.
//   weight(k, j)            the address of the matrix's element
//   weights(k, j, four)     four[c]: its elements (k ... k + 3, j + c), 0 beyond H; float32 only
//   start(b, j)             s_0; STARTS_STORED: whether it is stored like the other states
//   column(j)               the addresses where a column begins in each array, and its bias
//   line(m, b)              the line of row b of step n, m = n·B; of step -1 for s_0
//   token(line)             the address of the token, null with dense input
//   place(column, token, line)    the address of the term, the value that the step adds to the sum
//   read(when, place, term)       reads the term if `when`
//   addend(column, term)          the term after all computation that does not need the sum
//   finish(sum, addend)           s_{n+1}
//   store(when, column, line, value)    stores it if `when`
#pragma once

#include "../codes.h"
#include "primitives.cuh"

// The address of an element of a (lines, H) array, from its line and the address where its column begins. It may be invalid.
template <class Real, class Line>
__device__ inline Real* element(Real* column, Line line, int H) {
  const long long bytes = wide_product(line, static_cast<int>(H * sizeof(Real)));
  return reinterpret_cast<Real*>(reinterpret_cast<unsigned long long>(column) + bytes);
}

// four[c]: weights (k ... k + 3, j + c) of a pass; 0 beyond H. TRANSPOSED: neighbours in memory differ in k, otherwise in j.
// Reads 16 bytes at a time if all rows of Whh begin at a multiple of 16.
template <bool TRANSPOSED, class Pass>
__device__ inline void load_square(const Pass& pass, int k, int j, float4* four) {
  const int H = pass.H;
  const bool aligned = H % 4 == 0 && reinterpret_cast<unsigned long long>(pass.Whh) % 16 == 0;
  float square[4][4];  // neighbours in memory last
#pragma unroll
  for (int a = 0; a < 4; a++) {
    const int ka = TRANSPOSED ? k : k + a, ja = TRANSPOSED ? j + a : j;
    if (aligned) {
      float4 values = {0, 0, 0, 0};
      if (ka < H && ja < H) values = *reinterpret_cast<const float4*>(pass.weight(ka, ja));
      square[a][0] = values.x, square[a][1] = values.y, square[a][2] = values.z, square[a][3] = values.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int ki = TRANSPOSED ? ka + i : ka, ji = TRANSPOSED ? ja : ja + i;
        square[a][i] = ki < H && ji < H ? *pass.weight(ki, ji) : 0;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 4; c++)
    four[c] = TRANSPOSED ? float4{square[c][0], square[c][1], square[c][2], square[c][3]}
                         : float4{square[0][c], square[1][c], square[2][c], square[3][c]};
}

// With tokens (T, B), the term is a row of the table Wxh (I, H). A token outside [0, I) gives NaN, and nothing outside is read.
// Without tokens, h holds x·Wxh on entry: a table with a row for each line. Each element is read before its state overwrites it.
template <class Real>
struct Forward {
  const int* tokens;
  const Real* Wxh;
  const Real* Whh;  // (H, H)
  const Real* bh;   // (H)
  const Real* h0;   // (B, H)
  Real* h;          // (T, B, H)
  int T, B, I, H;
  int activation;

  using Term = Real;
  using Addend = Real;
  static constexpr bool STARTS_STORED = false;

  __device__ const Real* weight(int k, int j) const { return Whh + static_cast<long long>(k) * H + j; }
  __device__ void weights(int k, int j, float4* four) const { load_square<false>(*this, k, j, four); }
  __device__ Real start(int b, int j) const { return h0[static_cast<long long>(b) * H + j]; }
  struct Column {
    const Real* table;
    Real* h;
    Real bias;
    __device__ Column kept_in_registers() const { return {kept(table), kept(h), bias}; }
  };
  __device__ Column column(int j) const { return {(tokens ? Wxh : h) + j, h + j, bh[j]}; }
  template <class Line>
  __device__ Line line(Line m, int b) const {
    return m + b;
  }
  template <class Line>
  __device__ const int* token(Line line) const {
    return tokens ? tokens + line : tokens;
  }
  struct Place {
    bool known;
    const Real* term;
  };
  template <class Line>
  __device__ Place place(const Column& column, int token, Line line) const {
    const bool known = !tokens || static_cast<unsigned>(token) < static_cast<unsigned>(I);
    return {known, element(column.table, tokens ? token : line, H)};
  }
  __device__ void read(bool when, const Place& place, Term& term) const {
    if (!place.known) term = static_cast<Real>(nanf(""));  // not 0 / 0, which would be a division
    load_when(when && place.known, place.term, term);
  }
  __device__ Addend addend(const Column& column, Term term) const { return term + column.bias; }
  __device__ Real finish(Real sum, Addend addend) const {
    const Real a = sum + addend, positive = a < 0 ? 0 : a;  // NaN stays NaN
    // tanh also for relu: a branch would cost more at every step.
    const Real bounded = tanh(a);
    return activation == RNN_TANH ? bounded : positive;
  }
  template <class Line>
  __device__ void store(bool when, const Column& column, Line line, Real value) const {
    store_when(when, element(column.h, line, H), value);
  }
};

// dh: the gradient of every state, dh_last: the additional gradient of the last state. Each may be null, and so may dh0. h and dh
// are read once; da, the gradient of f's argument, is written once.
template <class Real>
struct Backward {
  const Real* Whh;      // (H, H)
  const Real* h;        // (T, B, H)
  const Real* dh;       // (T, B, H)
  const Real* dh_last;  // (B, H)
  Real* da;             // (T, B, H)
  Real* dh0;            // (B, H)
  int T, B, H;
  int activation;

  struct Term {
    Real h, dh;
  };
  struct Addend {
    Real dh, derivative;
  };
  static constexpr bool STARTS_STORED = true;

  __device__ const Real* weight(int k, int j) const { return Whh + static_cast<long long>(j) * H + k; }
  __device__ void weights(int k, int j, float4* four) const { load_square<true>(*this, k, j, four); }
  __device__ Real start(int b, int j) const {
    const Real sum = dh_last ? dh_last[static_cast<long long>(b) * H + j] : static_cast<Real>(0);
    const Column all = column(j);
    const long long last = line(-static_cast<long long>(B), b);
    Term found = {0, 0};
    read(true, place(all, 0, last), found);
    return finish(sum, addend(all, found));
  }
  struct Column {
    const Real *h, *dh;
    Real *da, *dh0;
    int lowest;  // the lowest line that is stored
    __device__ Column kept_in_registers() const { return {kept(h), kept(dh), kept(da), kept(dh0), kept(lowest)}; }
  };
  __device__ Column column(int j) const {
    // Lines below 0 belong to dh0.
    return {h + j, dh ? dh + j : dh, da + j, element(dh0, static_cast<long long>(B), H) + j, dh0 ? -B : 0};
  }
  // The line of da_{T-2-n}; below 0 for dh0.
  template <class Line>
  __device__ Line line(Line m, int b) const {
    return static_cast<Line>(T - 2) * B - m + b;
  }
  template <class Line>
  __device__ const int* token(Line) const {
    return nullptr;
  }
  struct Place {
    bool inside, given;
    const Real *h, *dh;
  };
  template <class Line>
  __device__ Place place(const Column& column, int, Line line) const {
    return {line >= 0, line >= 0 && column.dh, element(column.h, line, H), element(column.dh, line, H)};
  }
  __device__ void read(bool when, const Place& place, Term& term) const {
    if (!place.inside) term.h = activation == RNN_RELU, term.dh = 0;  // dh0: f' = 1
    load_when(when && place.inside, place.h, term.h);
    load_when(when && place.given, place.dh, term.dh);
  }
  __device__ Addend addend(const Column&, Term term) const {
    if (activation == RNN_RELU) return {term.dh, static_cast<Real>(term.h > 0)};
    // (1 - h)(1 + h), not 1 - h²: near ±1, where 1 - h² is small, it keeps every bit that h has. The CPU has 1 - h² (recurrence.h
    // says why there are two).
    return {term.dh, (1 - term.h) * (1 + term.h)};
  }
  __device__ Real finish(Real sum, Addend addend) const {
    const Real gradient = (sum + addend.dh) * addend.derivative;
    return activation == RNN_RELU && addend.derivative == 0 ? 0 : gradient;  // 0 even if the gradient is not finite
  }
  template <class Line>
  __device__ void store(bool when, const Column& column, Line line, Real value) const {
    store_when(when && line >= column.lowest, element(line < 0 ? column.dh0 : column.da, line, H), value);
  }
};
