// Runs the CPU kernels as a program of its own, which a sanitizer can watch from the first instruction.
//
// Every shape below, both dtypes, dense and token input, tanh and relu, forward and backward, against plain loops in
// double; then the same from four threads at once. Buffers have exactly the size that the contract asks for, so that an
// address sanitizer sees a stray read or write. Prints the worst relative error and a number that stands for the bits of all
// results, and exits with 1 when the error is too large.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "rnn_cpu.h"

namespace {

struct Shape {
  int64_t T, B, I, H;
};

// Ones, primes, and sizes around the tiles (6 and 12 rows; panels of 4 to 32 columns) and the blocks of k (256, 128).
const Shape SHAPES[] = {{1, 1, 1, 1},    {2, 3, 5, 7},   {3, 5, 2, 8},    {2, 6, 3, 9},    {2, 7, 3, 15},
                        {3, 12, 3, 16},  {2, 13, 3, 17}, {2, 2, 3, 31},   {1, 25, 7, 33},  {4, 1, 3, 64},
                        {2, 4, 5, 65},   {2, 3, 4, 127}, {2, 11, 3, 129}, {3, 8, 13, 257}, {2, 33, 77, 256},
                        {40, 2, 77, 40}, {2, 1, 3, 520}, {9, 1, 3, 300},  {4, 2, 5, 600},  {2, 10, 3, 512}};

template <class Real>
std::vector<Real> random_values(size_t n, double scale, unsigned* seed) {
  std::vector<Real> values(n);
  for (Real& value : values) value = static_cast<Real>(scale * (2.0 * rand_r(seed) / RAND_MAX - 1));
  return values;
}

// The larger of two errors. Not a number is the largest, and stays.
double larger(double a, double b) { return a != a || a > b ? a : b; }

template <class Real>
double error(const std::vector<Real>& got, const std::vector<double>& truth) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    worst = larger(worst, fabs(got[i] - truth[i]));
    largest = std::max(largest, fabs(truth[i]));
  }
  return largest > 0 ? worst / largest : worst;  // relu may leave no gradient at all
}

// FNV-1a of all results that the first two runs have given.
uint64_t bits = 14695981039346656037u;
bool count_bits = true;

template <class Real>
void add_bits(const std::vector<Real>& values) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; count_bits && i < values.size() * sizeof(Real); ++i) bits = (bits ^ bytes[i]) * 1099511628211u;
}

// The worst error of one shape, each result relative to its largest value.
template <class Real>
double run(const Shape& s, bool tokens, int32_t activation, unsigned seed) {
  const int64_t T = s.T, B = s.B, I = s.I, H = s.H;
  std::vector<int32_t> token(T * B);
  for (int32_t& t : token) t = rand_r(&seed) % I;
  const double scale = 1 / sqrt(double(H));
  const auto x = random_values<Real>(T * B * I, 1 / sqrt(double(I)), &seed);
  const auto h0 = random_values<Real>(B * H, 1, &seed), Wxh = random_values<Real>(I * H, 1, &seed);
  const auto Whh = random_values<Real>(H * H, scale, &seed), bh = random_values<Real>(H, 1, &seed);
  const auto dh = random_values<Real>(T * B * H, 1, &seed), dh_last = random_values<Real>(B * H, 1, &seed);
  std::vector<Real> h(T * B * H), da(T * B * H), dx(T * B * I), dh0(B * H), dWxh(I * H), dWhh(H * H), dbh(H);

  rnn_cpu_forward_args f = {};
  f.T = T, f.B = B, f.I = I, f.H = H, f.dtype = sizeof(Real) == 4 ? RNN_FLOAT32 : RNN_FLOAT64;
  f.activation = activation;
  if (tokens) f.tokens = token.data();
  else f.x = x.data();
  f.h0 = h0.data(), f.Wxh = Wxh.data(), f.Whh = Whh.data(), f.bh = bh.data(), f.h = h.data();
  rnn_cpu_backward_args b = {};
  b.T = T, b.B = B, b.I = I, b.H = H, b.dtype = f.dtype, b.activation = activation, b.tokens = f.tokens, b.x = f.x;
  b.h0 = f.h0, b.Wxh = f.Wxh, b.Whh = f.Whh, b.h = h.data(), b.dh = dh.data(), b.dh_last = dh_last.data(), b.da = da.data();
  b.dh0 = dh0.data(), b.dWxh = dWxh.data(), b.dWhh = dWhh.data(), b.dbh = dbh.data();
  if (!tokens) b.dx = dx.data();
  if (rnn_cpu_forward(&f) != RNN_OK || rnn_cpu_backward(&b) != RNN_OK) return NAN;
  for (const auto& values : {h, da, dx, dh0, dWxh, dWhh, dbh}) add_bits(values);

  std::vector<double> one_hot(x.begin(), x.end());
  for (int64_t i = 0; tokens && i < T * B * I; ++i) one_hot[i] = token[i / I] == i % I;
  std::vector<double> th(T * B * H), tda(T * B * H), tdx(T * B * I), tdh0(B * H), tdWxh(I * H), tdWhh(H * H), tdbh(H);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t r = 0; r < B; ++r)
      for (int64_t j = 0; j < H; ++j) {
        double sum = bh[j];
        for (int64_t i = 0; i < I; ++i) sum += one_hot[(t * B + r) * I + i] * Wxh[i * H + j];
        for (int64_t k = 0; k < H; ++k) sum += (t ? th[((t - 1) * B + r) * H + k] : h0[r * H + k]) * Whh[k * H + j];
        th[(t * B + r) * H + j] = activation == RNN_TANH ? tanh(sum) : fmax(sum, 0);
      }
  for (int64_t t = T - 1; t >= -1; --t)  // t = -1 is the initial state
    for (int64_t r = 0; r < B; ++r)
      for (int64_t j = 0; j < H; ++j) {
        double sum = t < 0 ? 0 : dh[(t * B + r) * H + j] + (t == T - 1 ? dh_last[r * H + j] : 0);
        for (int64_t k = 0; t < T - 1 && k < H; ++k) sum += tda[((t + 1) * B + r) * H + k] * Whh[j * H + k];
        if (t < 0) {
          tdh0[r * H + j] = sum;
          continue;
        }
        const int64_t at = (t * B + r) * H + j;
        tda[at] = sum * (activation == RNN_TANH ? 1 - th[at] * th[at] : h[at] > 0);  // relu: on the side where h is
        tdbh[j] += tda[at];
        for (int64_t i = 0; i < I; ++i) {
          tdWxh[i * H + j] += one_hot[(t * B + r) * I + i] * tda[at];
          tdx[(t * B + r) * I + i] += tda[at] * Wxh[i * H + j];
        }
        for (int64_t k = 0; k < H; ++k) tdWhh[k * H + j] += (t ? th[((t - 1) * B + r) * H + k] : h0[r * H + k]) * tda[at];
      }
  double worst = error(h, th);
  for (double e : {error(da, tda), error(dh0, tdh0), error(dWxh, tdWxh), error(dWhh, tdWhh), error(dbh, tdbh),
                   tokens ? 0.0 : error(dx, tdx)})
    worst = larger(worst, e);
  return worst;
}

// The worst error of all shapes.
template <class Real>
double run_all(unsigned seed) {
  double worst = 0;
  for (const Shape& shape : SHAPES)
    for (bool tokens : {false, true})
      for (int32_t activation : {RNN_TANH, RNN_RELU}) worst = larger(worst, run<Real>(shape, tokens, activation, seed++));
  return worst;
}

}  // namespace

int main() {
  double worst32 = run_all<float>(1), worst64 = run_all<double>(2);
  count_bits = false;
  double errors[4];
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([i, &errors] { errors[i] = i % 2 ? run_all<float>(3 + i) : run_all<double>(3 + i) * 1e8; });
  for (std::thread& caller : callers) caller.join();
  for (double e : errors) worst32 = larger(worst32, e);
  printf("%s, %d threads: float32 %.1e, float64 %.1e, bits %016llx\n", rnn_cpu_simd(), rnn_cpu_threads(), worst32, worst64,
         static_cast<unsigned long long>(bits));
  // Some 600 terms, 40 steps; the tests against NumPy hold the tight bounds.
  return worst32 <= 2e-5 && worst64 <= 2e-13 ? 0 : 1;
}
