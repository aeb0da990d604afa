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

// How often a panel of Whh has to be read for packing it to pay.
constexpr int64_t kReadsThatPayForPacking = 8;

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
  void* of_size(size_t size) {
    if (size > size_) {
      free(memory_);
      memory_ = nullptr;
      size_ = 0;
      if (posix_memalign(&memory_, 64, size) != 0) return memory_ = nullptr;
      size_ = size;
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};
thread_local Workspace workspace;

// Calls part(begin, end) on threads that share [0, count) in multiples of `grain`.
template <class Part>
void share_out(int threads, int64_t count, int64_t grain, int64_t work, const Part& part) {
  const int64_t grains = (count + grain - 1) / grain;
  int64_t n = work / kWorkPerThread + 1;
  if (n > threads) n = threads;
  if (n > grains) n = grains;
  struct Context {
    const Part& part;
    int64_t count, grain, grains;
  } context = {part, count, grain, grains};
  run_parallel(static_cast<int>(n), [](void* p, int i, int of) {
    const Context& c = *static_cast<Context*>(p);
    const int64_t begin = c.grains * i / of * c.grain, end = c.grains * (i + 1) / of * c.grain;
    c.part(begin, end < c.count ? end : c.count);
  }, &context);
}

// Whh ready for the micro-kernel, packed where it is read often enough; false where there is no memory for it.
template <class Real>
bool prepare(const Kernels<Real>& kernels, const Real* Whh, int64_t H, bool transpose, int64_t reads, int threads,
             Weights<Real>* weights) {
  const int64_t P = kernels.panel, panels = (H + P - 1) / P, whole = H / P;
  const bool in_place = !transpose && reads < kReadsThatPayForPacking;
  const int64_t first = in_place ? whole : 0;  // the tail is packed in any case: it needs its padding
  Real* packed = nullptr;
  if (first < panels) {
    packed = static_cast<Real*>(workspace.of_size((panels - first) * P * H * sizeof(Real)));
    if (!packed) return false;
    packed -= first * P * H;
    share_out(threads, panels - first, 1, (panels - first) * P * H, [&](int64_t begin, int64_t end) {
      kernels.pack(Whh, H, transpose, first + begin, first + end, packed);
    });
  }
  if (in_place) *weights = {Whh, P, H, packed + whole * P * H};
  else *weights = {packed, P * H, P, packed + whole * P * H};
  return true;
}

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

template <class Real>
int forward(const rnn_cpu_forward_args& args, const Level& level, int threads) {
  const Kernels<Real>& kernels = kernels_of<Real>(level);
  Weights<Real> Whh;
  if (!prepare(kernels, static_cast<const Real*>(args.Whh), args.H, false, args.T * args.B / 4, threads, &Whh))
    return RNN_NO_MEMORY;
  share_out(threads, args.B, 1, args.T * args.B * args.H * args.H, [&](int64_t begin, int64_t end) {
    kernels.forward(args, Whh, begin, end);
  });
  return RNN_OK;
}

template <class Real>
int backward(const rnn_cpu_backward_args& args, const Level& level, int threads) {
  const Kernels<Real>& kernels = kernels_of<Real>(level);
  Weights<Real> WhhT;
  if (!prepare(kernels, static_cast<const Real*>(args.Whh), args.H, true, args.T * args.B, threads, &WhhT))
    return RNN_NO_MEMORY;
  share_out(threads, args.B, 1, args.T * args.B * args.H * args.H, [&](int64_t begin, int64_t end) {
    kernels.backward(args, WhhT, begin, end);
  });
  if (args.dWxh || args.dbh) {
    const int64_t cache_line = 64 / sizeof(Real);  // which no two threads should write
    share_out(threads, args.H, cache_line, 4 * args.T * args.B * args.H, [&](int64_t begin, int64_t end) {
      kernels.sum(args, begin, end);
    });
  }
  return RNN_OK;
}

}  // namespace
}  // namespace rnn

int rnn_cpu_forward(rnn_cpu_forward_args* args) {
  int threads;
  const rnn::Level* level;
  if (const int status = rnn::check(args, &threads, &level)) return status;
  return args->dtype == RNN_FLOAT32 ? rnn::forward<float>(*args, *level, threads)
                                    : rnn::forward<double>(*args, *level, threads);
}

int rnn_cpu_backward(rnn_cpu_backward_args* args) {
  int threads;
  const rnn::Level* level;
  if (const int status = rnn::check(args, &threads, &level)) return status;
  return args->dtype == RNN_FLOAT32 ? rnn::backward<float>(*args, *level, threads)
                                    : rnn::backward<double>(*args, *level, threads);
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
