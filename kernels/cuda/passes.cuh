// The two directions of the recurrence as the same loop: a state s_0, s_1, ... of (B, H), each the last one times a matrix,
// then a function of one element. Everything here concerns one element; the families move whole rows of them.
//
// Forward:   s_0 = h0,       s_{n+1}[b,j] = f(Σ_k s_n[b,k]·Whh[k,j] + x_n·Wxh[:,j] + bh[j])               = h_n
// Backward:  s_0 = da_{T-1}, s_{n+1}[b,j] = (Σ_k s_n[b,k]·Whh[j,k] + dh_t[b,j])·f'                        = da_t,  t = T-2-n,
//            and at the end  s_T[b,j]     =  Σ_k s_n[b,k]·Whh[j,k]                                        = dh0
//
// f is tanh, f' = 1 - h_t², or relu, f' = 1 where h_t > 0, else 0. Which one is an argument and no template: all threads take
// the same way, and one kernel serves both.
//
// All arrays are C-contiguous; T steps, B rows, H hidden units, V symbols. Both directions take T steps, n = 0 ... T-1.
// A pass offers:
//   weight(k, j)           the matrix, and weights4 with which of its two indices is contiguous
//   start(b, j)            s_0
//   index(n, b), term(...) what step n adds to the sum, in two loads, the second of which needs the first
//   finish(...)            s_{n+1} from the sum and the term
//   store(n, b, j, value)  where s_n goes in global memory
#pragma once

enum Activation { TANH = 0, RELU = 1 };

// Inputs: tokens (T, B) with table Wxh (V, H), or, where tokens is null, x·Wxh already in h, where each element is read before
// its state is written over it. A token outside [0, V) makes NaN; nothing outside the table is read.
template <class Real>
struct Forward {
  const int* tokens;
  const Real* Wxh;
  const Real* Whh;   // (H, H)
  const Real* bh;    // (H)
  const Real* h0;    // (B, H)
  Real* h;           // (T, B, H)
  int T, B, V, H;
  int activation;

  using Index = int;
  using Term = Real;
  static constexpr bool COLUMNS_CONTIGUOUS = true;  // weight(k, j) and weight(k, j + 1) are neighbours

  __device__ const Real* weight(int k, int j) const { return Whh + static_cast<long long>(k) * H + j; }
  __device__ Real bias(int j) const { return bh[j]; }
  __device__ Real start(int b, int j) const { return h0[static_cast<long long>(b) * H + j]; }
  __device__ Index index(int n, int b) const { return tokens ? tokens[static_cast<long long>(n) * B + b] : 0; }
  __device__ Term term(Index token, int n, int b, int j) const {
    if (!tokens) return h[at(n, b, j)];
    if (static_cast<unsigned>(token) >= static_cast<unsigned>(V)) return static_cast<Real>(0) / static_cast<Real>(0);
    return Wxh[static_cast<long long>(token) * H + j];
  }
  __device__ Real finish(int, Real sum, Term term, Real bias) const {
    const Real a = sum + (term + bias);
    if (activation == TANH) return tanh(a);
    return a < 0 ? 0 : a;  // NaN stays NaN
  }
  __device__ void store(int n, int b, int j, Real value) const {
    if (n > 0) h[at(n - 1, b, j)] = value;
  }

 private:
  __device__ long long at(int t, int b, int j) const { return (static_cast<long long>(t) * B + b) * H + j; }
};

// dh: the gradient that arrives at every state, dlast: the one at the last state besides; either may be null.
// dh0 may be null. h and dh are read once, da, the gradient of f's argument, written once.
template <class Real>
struct Backward {
  const Real* Whh;    // (H, H)
  const Real* h;      // (T, B, H)
  const Real* dh;     // (T, B, H)
  const Real* dlast;  // (B, H)
  Real* da;           // (T, B, H)
  Real* dh0;          // (B, H)
  int T, B, H;
  int activation;

  struct Index {};
  struct Term {
    Real h, dh;
  };
  static constexpr bool COLUMNS_CONTIGUOUS = false;  // weight(k, j) and weight(k + 1, j) are

  __device__ const Real* weight(int k, int j) const { return Whh + static_cast<long long>(j) * H + k; }
  __device__ Real bias(int) const { return 0; }
  __device__ Real start(int b, int j) const {
    const Real sum = dlast ? dlast[static_cast<long long>(b) * H + j] : static_cast<Real>(0);
    return derivative(sum, term_at(T - 1, b, j));
  }
  __device__ Index index(int, int) const { return {}; }
  __device__ Term term(Index, int n, int b, int j) const { return n < T - 1 ? term_at(T - 2 - n, b, j) : Term{0, 0}; }
  __device__ Real finish(int n, Real sum, Term term, Real) const { return n < T - 1 ? derivative(sum, term) : sum; }
  __device__ void store(int n, int b, int j, Real value) const {
    if (n < T) {
      da[at(T - 1 - n, b, j)] = value;
    } else if (dh0) {
      dh0[static_cast<long long>(b) * H + j] = value;
    }
  }

 private:
  __device__ Term term_at(int t, int b, int j) const {
    const long long i = at(t, b, j);
    return {h[i], dh ? dh[i] : static_cast<Real>(0)};
  }
  __device__ Real derivative(Real sum, Term term) const {
    const Real gradient = sum + term.dh;
    // (1 - h)(1 + h), not 1 - h²: near ±1, where 1 - h² is small, it keeps every bit that h has.
    if (activation == TANH) return gradient * ((1 - term.h) * (1 + term.h));
    return term.h > 0 ? gradient : 0;
  }
  __device__ long long at(int t, int b, int j) const { return (static_cast<long long>(t) * B + b) * H + j; }
};
