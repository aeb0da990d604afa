// The C interface: chooses the SIMD level, packs the weights, shares the work out to threads.
#include "rnn_cpu.h"

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

namespace rnn {
namespace {

// A thread is worth waking for about this many multiply-adds (some 10 µs).
constexpr int64_t kWorkPerThread = 1 << 18;

// How many rows a matrix has to meet for packing it to pay.
constexpr int64_t kRowsThatPayForPacking = 32;

const Level* supported_levels[3];
int supported_count = 0;
char supported_names[64];

const bool levels_found = [] {
#ifdef RNN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma"))
    supported_levels[supported_count++] = &avx512_level;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    supported_levels[supported_count++] = &avx2_level;
#endif
  supported_levels[supported_count++] = &baseline_level;
  for (int i = 0; i < supported_count; ++i) {
    if (i) strcat(supported_names, " ");
    strcat(supported_names, supported_levels[i]->name);
  }
  return true;
}();

const Level* level_in_use() {
  const char* wanted = getenv("RNN_OPS_SIMD");
  if (!wanted || !*wanted) return supported_levels[0];
  for (int i = 0; i < supported_count; ++i)
    if (strcmp(wanted, supported_levels[i]->name) == 0) return supported_levels[i];
  return nullptr;
}

template <class Real>
const Kernels<Real>& kernels_of(const Level& level);
template <>
const Kernels<float>& kernels_of(const Level& level) { return level.float32; }
template <>
const Kernels<double>& kernels_of(const Level& level) { return level.float64; }

// Memory that a calling thread keeps for its next call: fresh pages cost as much as the packing that fills them.
class Workspace {
 public:
  ~Workspace() { free(memory_); }

  // Room for `count` values; what was there is lost. Null where there is no memory.
  template <class Real>
  Real* room_for(int64_t count) {
    const size_t size = count * sizeof(Real);
    if (size > size_) {
      free(memory_);
      size_ = size;
      if (posix_memalign(&memory_, 64, size) != 0) {
        memory_ = nullptr;
        size_ = 0;
      }
    }
    return static_cast<Real*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};
thread_local Workspace workspace;

// Into how many parts `work` multiply-adds that come in `grains` are worth sharing out.
int parts_of(int64_t work, int64_t grains, int threads) {
  int64_t n = work / kWorkPerThread + 1;
  if (n > threads) n = threads;
  if (n > grains) n = grains;
  return static_cast<int>(n);
}

// Calls part(i, begin, end) for n shares of [0, count), side by side.
template <class Part>
void share_out(int n, int64_t count, const Part& part) {
  struct Context {
    const Part& part;
    int64_t count;
  } context = {part, count};
  run_parallel(n, [](void* p, int i, int of) {
    const Context& c = *static_cast<Context*>(p);
    c.part(i, c.count * i / of, c.count * (i + 1) / of);
  }, &context);
}

// One call at one SIMD level: the products and passes of kernels.h, shared out to threads.
template <class Real>
class Call {
 public:
  Call(const Level& level, int threads) : kernels_(kernels_of<Real>(level)), threads_(threads) {}

  int forward(const rnn_cpu_forward_args& args) const {
    const int64_t T = args.T, B = args.B, I = args.I, H = args.H;
    Weights<Real> weights;
    if (!args.tokens) {
      if (!prepare(args.Wxh, false, I, H, T * B, &weights)) return RNN_NO_MEMORY;
      multiply(T * B, I, H, args.x, weights, args.h);
    }
    if (!prepare(args.Whh, false, H, H, T * B, &weights)) return RNN_NO_MEMORY;
    share_out(parts_of(T * B * H * H, B, threads_), B, [&](int, int64_t begin, int64_t end) {
      kernels_.forward(args, weights, begin, end);
    });
    return RNN_OK;
  }

  int backward(const rnn_cpu_backward_args& args) const {
    const int64_t T = args.T, B = args.B, I = args.I, H = args.H;
    const Real* da = static_cast<const Real*>(args.da);
    const Real* h = static_cast<const Real*>(args.h);
    Weights<Real> weights;
    if (!prepare(args.Whh, true, H, H, T * B, &weights)) return RNN_NO_MEMORY;
    share_out(parts_of(T * B * H * H, B, threads_), B, [&](int, int64_t begin, int64_t end) {
      kernels_.backward(args, weights, begin, end);
    });
    if (args.dbh || (args.dWxh && args.tokens)) {
      const int64_t line = 64 / sizeof(Real);  // a cache line, which no two threads should write
      const int64_t lines = (H + line - 1) / line;
      share_out(parts_of(4 * T * B * H, lines, threads_), lines, [&](int, int64_t begin, int64_t end) {
        kernels_.sum(args, begin * line, end * line < H ? end * line : H);
      });
    }
    if (args.dWhh) {
      Real* out = zeros(args.dWhh, H * H);
      if (!add_transposed_product(B, H, H, args.h0, da, out)) return RNN_NO_MEMORY;
      if (T > 1 && !add_transposed_product((T - 1) * B, H, H, h, da + B * H, out)) return RNN_NO_MEMORY;
    }
    if (args.dWxh && !args.tokens && !add_transposed_product(T * B, I, H, args.x, da, zeros(args.dWxh, I * H)))
      return RNN_NO_MEMORY;
    if (args.dx) {
      if (!prepare(args.Wxh, true, H, I, T * B, &weights)) return RNN_NO_MEMORY;
      multiply(T * B, H, I, da, weights, args.dx);
    }
    return RNN_OK;
  }

 private:
  static Real* zeros(void* out, int64_t count) {
    return static_cast<Real*>(memset(out, 0, count * sizeof(Real)));
  }

  // Makes the K × N matrix W (transpose: the N × K matrix) ready for the micro-kernel. It is packed where it meets
  // enough `rows`; the tail always, since it needs its padding. False where there is no memory for that.
  bool prepare(const void* matrix, bool transpose, int64_t K, int64_t N, int64_t rows, Weights<Real>* weights) const {
    const Real* W = static_cast<const Real*>(matrix);
    const int64_t P = kernels_.panel, panels = (N + P - 1) / P, whole = N / P;
    const bool in_place = !transpose && rows < kRowsThatPayForPacking;
    const int64_t first = in_place ? whole : 0, count = panels - first;
    Real* packed = nullptr;
    if (count > 0) {
      packed = workspace.room_for<Real>(count * P * K);
      if (!packed) return false;
      packed -= first * P * K;
      share_out(parts_of(count * P * K, count, threads_), count, [&](int, int64_t begin, int64_t end) {
        kernels_.pack(W, transpose ? K : N, transpose, K, N, first + begin, first + end, packed);
      });
    }
    if (in_place) *weights = {W, P, N, packed + whole * P * K};
    else *weights = {packed, P * K, P, packed + whole * P * K};
    return true;
  }

  void multiply(int64_t rows, int64_t K, int64_t N, const void* a, const Weights<Real>& b, void* out) const {
    share_out(parts_of(rows * K * N, rows, threads_), rows, [&](int, int64_t begin, int64_t end) {
      kernels_.multiply(K, N, static_cast<const Real*>(a), b, static_cast<Real*>(out), begin, end);
    });
  }

  bool add_transposed_product(int64_t R, int64_t M, int64_t N, const void* a, const Real* b, Real* out) const {
    const int64_t P = kernels_.panel, panels = (N + P - 1) / P;
    const int n = parts_of(R * M * N, panels, threads_);
    const int64_t room = (kGradientRows + (panels / n + 1) * P) * kGradientDepth;
    Real* packed = workspace.room_for<Real>(n * room);
    if (!packed) return false;
    share_out(n, panels, [&](int i, int64_t begin, int64_t end) {
      kernels_.add_transposed_product(R, M, N, static_cast<const Real*>(a), b, out, begin, end, packed + i * room);
    });
    return true;
  }

  const Kernels<Real>& kernels_;
  const int threads_;
};

bool token_in_range(const int32_t* tokens, int64_t n, int64_t I, int64_t* bad) {
  for (int64_t i = 0; i < n; ++i) {
    if (tokens[i] < 0 || tokens[i] >= I) {
      *bad = i;
      return false;
    }
  }
  return true;
}

// What both directions check before they write.
template <class Args>
int check(Args* args, int* threads, const Level** level) {
  *threads = thread_limit();
  if (*threads == 0) return RNN_BAD_THREADS;
  *level = level_in_use();
  if (!*level) return RNN_BAD_SIMD;
  if (args->tokens && !token_in_range(args->tokens, args->T * args->B, args->I, &args->bad_token))
    return RNN_BAD_TOKEN;
  return RNN_OK;
}

}  // namespace
}  // namespace rnn

int rnn_cpu_forward(rnn_cpu_forward_args* args) {
  int threads;
  const rnn::Level* level;
  if (const int status = rnn::check(args, &threads, &level)) return status;
  return args->dtype == RNN_FLOAT32 ? rnn::Call<float>(*level, threads).forward(*args)
                                    : rnn::Call<double>(*level, threads).forward(*args);
}

int rnn_cpu_backward(rnn_cpu_backward_args* args) {
  int threads;
  const rnn::Level* level;
  if (const int status = rnn::check(args, &threads, &level)) return status;
  return args->dtype == RNN_FLOAT32 ? rnn::Call<float>(*level, threads).backward(*args)
                                    : rnn::Call<double>(*level, threads).backward(*args);
}

int rnn_cpu_tanh(int32_t dtype, int64_t n, const void* x, void* y) {
  const rnn::Level* level = rnn::level_in_use();
  if (!level) return RNN_BAD_SIMD;
  if (dtype == RNN_FLOAT32) level->float32.tanh(n, static_cast<const float*>(x), static_cast<float*>(y));
  else level->float64.tanh(n, static_cast<const double*>(x), static_cast<double*>(y));
  return RNN_OK;
}

int rnn_cpu_threads(void) { return rnn::thread_limit(); }

const char* rnn_cpu_simd_levels(void) { return rnn::supported_names; }

const char* rnn_cpu_simd(void) {
  const rnn::Level* level = rnn::level_in_use();
  return level ? level->name : nullptr;
}
