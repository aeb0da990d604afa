// The C interface: chooses the SIMD level, packs the weights, divides the work among threads.
#include "rnn_cpu.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "dispatch.h"
#include "lookup.h"
#include "split.h"
#include "team.h"
#include "threads.h"

namespace rnn {
namespace {

// A thread is worth waking for about this many multiply-adds (some 10 µs).
constexpr int64_t WORK_PER_THREAD = 1 << 18;

// How many tiles of rows must use a packed copy of a matrix to make up for packing: tiles of few rows, which are limited by
// reading; other tiles; and tiles on a matrix so large that one pass over it misses the address translation of most of its pages.
constexpr int64_t TILES_OF_FEW_ROWS = 8, TILES = 32, TILES_OF_MANY_PAGES = 4;
constexpr int64_t FEW_ROWS = 3, MANY_PAGES = 8 << 20;  // rows of a tile, bytes of a matrix

const Level* supported_levels[3];
int supported_count = 0;
char supported_names[64];

const bool levels_found = [] {
#ifdef RNN_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) supported_levels[supported_count++] = &avx512_level;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) supported_levels[supported_count++] = &avx2_level;
#endif
  supported_levels[supported_count++] = &baseline_level;
  for (int i = 0; i < supported_count; ++i) {
    if (i) strcat(supported_names, " ");
    strcat(supported_names, supported_levels[i]->name);
  }
  return true;
}();

// The level of a name; the best one if the name is empty, null if it is unknown.
const Level* level_named(const char* wanted) {
  if (!wanted || !*wanted) return supported_levels[0];
  for (int i = 0; i < supported_count; ++i)
    if (strcmp(wanted, supported_levels[i]->name) == 0) return supported_levels[i];
  return nullptr;
}

const Level* level_in_use() { return level_named(getenv("RNN_OPS_SIMD")); }

template <class Real>
const Kernels<Real>& kernels_of(const Level& level);
template <>
const Kernels<float>& kernels_of(const Level& level) {
  return level.float32;
}
template <>
const Kernels<double>& kernels_of(const Level& level) {
  return level.float64;
}

// A call's memory. It is kept for the next call, since fresh pages cost as much time as the packing that fills them. The process
// keeps one piece, however many threads call, and none larger than MOST_KEPT bytes.
class Workspace {
 public:
  Workspace() : memory_(kept.exchange(nullptr)) {}
  ~Workspace() { free(size() <= MOST_KEPT ? kept.exchange(memory_) : memory_); }

  // Room for `count` values, with undefined content. Null if there is no memory.
  template <class Real>
  Real* room_for(int64_t count) {
    const size_t needed = HEADER + count * sizeof(Real);
    if (needed > size()) {
      free(memory_);
      if (posix_memalign(&memory_, HEADER, needed) != 0) {
        memory_ = nullptr;
        return nullptr;
      }
      *static_cast<size_t*>(memory_) = needed;
    }
    return reinterpret_cast<Real*>(static_cast<char*>(memory_) + HEADER);
  }

 private:
  static constexpr size_t HEADER = 64;  // holds the size; also the alignment of the values behind it
  static constexpr size_t MOST_KEPT = 64 << 20;

  size_t size() const { return memory_ ? *static_cast<size_t*>(memory_) : 0; }

  static std::atomic<void*> kept;
  void* memory_;
};
std::atomic<void*> Workspace::kept{nullptr};

// Into how many parts to divide `work` multiply-adds that come in `grains` indivisible pieces.
int parts_of(int64_t work, int64_t grains, int threads) {
  int64_t n = work / WORK_PER_THREAD + 1;
  if (n > threads) n = threads;
  if (n > grains) n = grains;
  return static_cast<int>(n);
}

// A matrix cut into rows × columns parts.
struct Grid {
  int rows, columns;
};

// One call at one SIMD level: divides the functions of dispatch.h among threads.
template <class Real>
class Call {
 public:
  Call(const Level& level, int threads) : kernels_(kernels_of<Real>(level)), threads_(threads) {}

  int forward(const rnn_cpu_forward_args& args) {
    const int64_t T = args.T, B = args.B, I = args.I, H = args.H;
    if (!args.tokens && !multiply(T * B, I, H, args.x, args.Wxh, false, args.h)) return RNN_NO_MEMORY;
    const bool done = run_steps(T, B, H, T, args.Whh, false, [&](int64_t t, const Weights<Real>& Whh, const Part& part) {
      kernels_.forward(args, Whh, t, part);
    });
    return done ? RNN_OK : RNN_NO_MEMORY;
  }

  int backward(const rnn_cpu_backward_args& args) {
    const int64_t T = args.T, B = args.B, I = args.I, H = args.H, steps = args.dh0 ? T + 1 : T;
    const Real* da = static_cast<const Real*>(args.da);
    const Real* h = static_cast<const Real*>(args.h);
    const bool done = run_steps(T, B, H, steps, args.Whh, true, [&](int64_t step, const Weights<Real>& WhhT, const Part& part) {
      kernels_.backward(args, WhhT, T - 1 - step, part);
    });
    if (!done) return RNN_NO_MEMORY;
    if (args.tokens && args.dWxh) zeros(args.dWxh, I * H);
    if (args.dbh || (args.tokens && args.dWxh)) {
      const int64_t line = 64 / sizeof(Real);  // a cache line, so that no two threads write to the same one
      const int64_t lines = ceil_div(H, line);
      rnn::share_out(parts_of(4 * T * B * H, lines, threads_), lines,
                     [&](int, int64_t begin, int64_t end) { kernels_.sum(args, begin * line, end * line < H ? end * line : H); });
    }
    if (args.dWhh) {
      Real* out = zeros(args.dWhh, H * H);
      if (!add_transposed_product(B, H, H, args.h0, da, out)) return RNN_NO_MEMORY;
      if (T > 1 && !add_transposed_product((T - 1) * B, H, H, h, da + B * H, out)) return RNN_NO_MEMORY;
    }
    if (args.dWxh && !args.tokens && !add_transposed_product(T * B, I, H, args.x, da, zeros(args.dWxh, I * H)))
      return RNN_NO_MEMORY;
    if (args.dx && !multiply(T * B, H, I, da, args.Wxh, true, args.dx)) return RNN_NO_MEMORY;
    return RNN_OK;
  }

 private:
  Real* zeros(void* out, int64_t count) const {
    fill_with_zeros(out, count * sizeof(Real), threads_);
    return static_cast<Real*>(out);
  }

  // Calls step(t, weights, part) for the parts of `steps` steps of the recurrence, in order. False if there is no memory.
  template <class Step>
  bool run_steps(int64_t T, int64_t B, int64_t H, int64_t steps, const void* Whh, bool transpose, const Step& step) {
    const int threads = parts_of(T * B * H * H, B * panels_of(H), threads_);
    const Split split = choose_split(B, H, kernels_.panel, sizeof(Real), threads, l1_bytes(), l2_bytes());
    const Grid grid = {split.row_groups, split.column_groups};
    Side side;
    if (!prepare(Whh, transpose, H, H, T, B, grid, &side)) return false;
    if (grid.columns == 1) {
      share_out(grid, B, H, [&](int i, const Part& part) {
        const Weights<Real> weights = pack(side, i, part);
        for (int64_t t = 0; t < steps; ++t) step(t, weights, part);
      });
      return true;
    }
    const Teams teams(grid.rows, grid.columns);
    if (!teams.ready()) return false;
    share_out(grid, B, H, [&](int i, const Part&) {
      const int team = i / grid.columns;
      teams.run(team, i % grid.columns, steps + 1, [&](int64_t t, int lane) {
        const int its = team * grid.columns + lane;
        const Part part = part_of(grid, its, B, H);
        if (t == 0) pack(side, its, part);
        else step(t - 1, weights_of(side, its, part), part);
      });
    });
    return true;
  }

  // A grid for `work` multiply-adds: cuts rows first, then columns if threads are left.
  Grid grid_for(int64_t work, int64_t row_grains, int64_t panels) const {
    const int n = parts_of(work, row_grains * panels, threads_);
    const int rows = static_cast<int>(row_grains < n ? row_grains : n);
    return {rows, static_cast<int>(panels < n / rows ? panels : n / rows)};
  }

  // Calls visit(i, part) for the parts of a matrix, side by side.
  template <class Visit>
  void share_out(const Grid& grid, int64_t rows, int64_t columns, const Visit& visit) const {
    const int n = grid.rows * grid.columns;
    rnn::share_out(n, n, [&](int i, int64_t, int64_t) { visit(i, part_of(grid, i, rows, columns)); });
  }

  Part part_of(const Grid& grid, int i, int64_t rows, int64_t columns) const {
    const int64_t row = i / grid.columns, column = i % grid.columns, panels = panels_of(columns);
    return {rows * row / grid.rows, rows * (row + 1) / grid.rows, panels * column / grid.columns,
            panels * (column + 1) / grid.columns};
  }

  int64_t panels_of(int64_t columns) const { return ceil_div(columns, kernels_.panel); }

  // The right side of a product, K × N, as the parts of a grid read it. Either the matrix itself (in_place), or one packed copy
  // that all parts share, or a packed copy of its own columns for each part, which stays in that core's cache if it is small
  // enough.
  struct Side {
    const Real* W;
    bool transpose;  // W is N × K
    int64_t K, N;
    bool in_place, shared;
    Real* packed;
    int64_t room;  // values from a part's copy to the next
  };

  bool packing_pays(int64_t times, int64_t rows, int64_t bytes) const {
    const int64_t tiles = times * ceil_div(rows, kernels_.rows);
    return tiles >= (bytes > MANY_PAGES ? TILES_OF_MANY_PAGES : rows <= FEW_ROWS ? TILES_OF_FEW_ROWS : TILES);
  }

  // Chooses how the parts read a matrix that `rows` rows are multiplied with, `times` times. False if there is no memory.
  bool prepare(const void* matrix, bool transpose, int64_t K, int64_t N, int64_t times, int64_t rows, const Grid& grid,
               Side* side) {
    const int64_t P = kernels_.panel, panels = panels_of(N), most = ceil_div(panels, grid.columns);
    *side = {static_cast<const Real*>(matrix), transpose, K, N, false, false, nullptr, 0};
    side->in_place = !transpose && !packing_pays(times, ceil_div(rows, grid.rows), K * N * int64_t(sizeof(Real)));
    side->shared = !side->in_place && grid.rows > 1 && most * P * K * int64_t(sizeof(Real)) > l2_bytes() * 3 / 4;
    if (side->in_place) side->room = N % P ? P * K : 0;  // the last panel needs its padding
    else if (!side->shared) side->room = most * P * K;
    const int64_t count = side->shared ? panels * P * K : side->room * grid.rows * grid.columns;
    if (count == 0) return true;
    side->packed = workspace_.room_for<Real>(count);
    if (!side->packed) return false;
    if (side->shared) {
      rnn::share_out(parts_of(count, panels, threads_), panels, [&](int, int64_t begin, int64_t end) {
        kernels_.pack(side->W, transpose ? K : N, transpose, K, N, begin, end, side->packed);
      });
    }
    return true;
  }

  // The weights that part i reads.
  Weights<Real> weights_of(const Side& side, int i, const Part& part) const {
    const int64_t P = kernels_.panel, size = P * side.K, whole = side.N / P;
    if (side.in_place) return {side.W, P, side.N, side.packed + i * side.room};
    const Real* panels = side.packed + (side.shared ? 0 : i * side.room - part.panel * size);
    return {panels, size, P, panels + whole * size};
  }

  // Makes part i's copy, if it has one, and returns its weights.
  Weights<Real> pack(const Side& side, int i, const Part& part) const {
    const int64_t P = kernels_.panel, size = P * side.K, whole = side.N / P;
    const int64_t first = side.in_place && part.panel < whole ? whole : part.panel;
    if (!side.shared && first < part.panels_end) {
      kernels_.pack(side.W, side.transpose ? side.K : side.N, side.transpose, side.K, side.N, first, part.panels_end,
                    side.packed + i * side.room - (side.in_place ? whole : part.panel) * size);
    }
    return weights_of(side, i, part);
  }

  // out [rows,N] = a [rows,K] · b [K,N], or bᵀ of b [N,K]. False if there is no memory.
  bool multiply(int64_t rows, int64_t K, int64_t N, const void* a, const void* b, bool transpose, void* out) {
    const Grid grid = grid_for(rows * K * N, rows, panels_of(N));
    Side side;
    if (!prepare(b, transpose, K, N, 1, rows, grid, &side)) return false;
    share_out(grid, rows, N, [&](int i, const Part& part) {
      kernels_.multiply(K, N, static_cast<const Real*>(a), pack(side, i, part), static_cast<Real*>(out), part);
    });
    return true;
  }

  // out [M,N] += aᵀ·b, a [R,M], b [R,N]. A thread packs its rows of aᵀ and its columns of b. The rows take longer.
  bool add_transposed_product(int64_t R, int64_t M, int64_t N, const void* a, const Real* b, Real* out) {
    const int64_t grain = 16;  // rows: enough for a tile
    const Grid grid = grid_for(R * M * N, ceil_div(M, grain), panels_of(N));
    const int64_t room = (GRADIENT_ROWS + (panels_of(N) / grid.columns + 1) * kernels_.panel) * GRADIENT_DEPTH;
    Real* packed = workspace_.room_for<Real>(grid.rows * grid.columns * room);
    if (!packed) return false;
    share_out(grid, M, N, [&](int i, const Part& part) {
      kernels_.add_transposed_product(R, M, N, static_cast<const Real*>(a), b, out, part, packed + i * room);
    });
    return true;
  }

  const Kernels<Real>& kernels_;
  const int threads_;
  Workspace workspace_;
};

// The checks of both directions, before anything is written.
template <class Args>
int check(Args* args, int* threads, const Level** level) {
  *threads = thread_limit(args->threads);
  if (*threads == 0) return RNN_BAD_THREADS;
  *level = level_in_use();
  if (!*level) return RNN_BAD_SIMD;
  const int64_t bad = args->tokens ? bad_token(args->tokens, args->T * args->B, args->I) : -1;
  if (bad < 0) return RNN_OK;
  args->bad_token = bad;
  return RNN_BAD_TOKEN;
}

}  // namespace
}  // namespace rnn

int rnn_cpu_forward(rnn_cpu_forward_args* args) {
  const rnn::WithOpenMP with(reinterpret_cast<rnn::OpenMP>(args->openmp));
  int threads;
  const rnn::Level* level;
  if (const int status = rnn::check(args, &threads, &level)) return status;
  return args->dtype == RNN_FLOAT32 ? rnn::Call<float>(*level, threads).forward(*args)
                                    : rnn::Call<double>(*level, threads).forward(*args);
}

int rnn_cpu_backward(rnn_cpu_backward_args* args) {
  const rnn::WithOpenMP with(reinterpret_cast<rnn::OpenMP>(args->openmp));
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

int rnn_cpu_multiply_adds(const char* simd, int32_t dtype, int32_t threads, int64_t rounds, double* count) {
  const rnn::Level* level = simd ? rnn::level_named(simd) : rnn::level_in_use();
  if (!level) return RNN_BAD_SIMD;
  std::atomic<int64_t> sum{0};
  std::atomic<int> arrived{0};
  rnn::share_out(threads, threads, [&](int, int64_t, int64_t) {
    // All threads must run side by side, so each waits until all are awake, for a few milliseconds at most.
    ++arrived;
    for (int spins = 0; arrived < threads && spins < 100 * rnn::SPINS; ++spins) rnn::pause();
    const auto multiply_adds = dtype == RNN_FLOAT32 ? level->float32.multiply_adds : level->float64.multiply_adds;
    sum += static_cast<int64_t>(multiply_adds(rounds));
  });
  *count = static_cast<double>(sum);
  return RNN_OK;
}

int rnn_cpu_threads(void) { return rnn::thread_limit(); }

void rnn_cpu_split(int64_t B, int64_t H, int32_t dtype, int threads, int64_t l1, int64_t l2, int* rows, int* columns) {
  const rnn::Level* level = rnn::level_in_use();
  if (!level) return;
  const bool single = dtype == RNN_FLOAT32;
  const rnn::Split split =
      rnn::choose_split(B, H, single ? level->float32.panel : level->float64.panel, single ? sizeof(float) : sizeof(double),
                        threads, l1 ? l1 : rnn::l1_bytes(), l2 ? l2 : rnn::l2_bytes());
  *rows = split.row_groups;
  *columns = split.column_groups;
}

const char* rnn_cpu_simd_levels(void) { return rnn::supported_names; }

const char* rnn_cpu_simd(void) {
  const rnn::Level* level = rnn::level_in_use();
  return level ? level->name : nullptr;
}
