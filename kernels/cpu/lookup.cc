// Rows of a table for tokens, and the gradient of the table. See lookup.h.
#include "lookup.h"

#include <string.h>

#include <algorithm>
#include <vector>

#include "threads.h"

namespace rnn {
namespace {

constexpr int64_t CACHE_LINE = 64;  // bytes of a cache line

// The positions of each distinct token in the batch.
struct Sorted {
  explicit Sorted(const Lookup& of) : order(of.N) {
    std::vector<int64_t> keys(of.N), room(of.N);
    for (int64_t n = 0; n < of.N; ++n) keys[n] = static_cast<int64_t>(of.tokens[n]) << 32 | n;
    // A radix sort by digits of 8 bits, which keeps equal tokens in order.
    for (int shift = 32; (of.V - 1) >> (shift - 32) > 0; shift += 8) {
      int64_t starts[257] = {};
      for (int64_t key : keys) ++starts[(key >> shift & 255) + 1];
      for (int digit = 0; digit < 256; ++digit) starts[digit + 1] += starts[digit];
      for (int64_t key : keys) room[starts[key >> shift & 255]++] = key;
      keys.swap(room);
    }
    for (int64_t n = 0; n < of.N; ++n) {
      const int64_t token = keys[n] >> 32;
      order[n] = keys[n] & 0xffffffff;
      if (tokens.empty() || tokens.back() != token) {
        tokens.push_back(token);
        starts.push_back(n);
      }
    }
    starts.push_back(of.N);
  }

  int64_t count() const { return tokens.size(); }

  std::vector<int64_t> order;   // positions in the batch, sorted by token, then by position
  std::vector<int64_t> tokens;  // the distinct ones, in rising order
  std::vector<int64_t> starts;  // the index in `order` of each distinct token's first position; and N
};

// sum [n] = the sum of the rows of distinct token u, columns [column, column + n).
template <class Real>
void sum_rows(const Sorted& sorted, int64_t u, const Real* rows, int64_t H, int64_t column, int64_t n, Real* sum) {
  memcpy(sum, rows + sorted.order[sorted.starts[u]] * H + column, n * sizeof(Real));
  for (int64_t k = sorted.starts[u] + 1; k < sorted.starts[u + 1]; ++k) {
    const Real* row = rows + sorted.order[k] * H + column;
    for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
  }
}

// Calls use(column, n, sum) for the sum of the rows of distinct token u, some columns at a time.
template <class Real, class Use>
void each_sum(const Sorted& sorted, int64_t u, const Real* rows, int64_t H, const Use& use) {
  constexpr int64_t COLUMNS = 256;
  Real sum[COLUMNS];
  for (int64_t h = 0; h < H; h += COLUMNS) {
    const int64_t n = std::min(COLUMNS, H - h);
    sum_rows(sorted, u, rows, H, h, n, sum);
    use(h, n, sum);
  }
}

template <class Real>
void add_by_symbol(const Lookup& of, const Sorted& sorted, const Real* rows, Real* gradient) {
  share_out_bytes(of.N * of.H * sizeof(Real), sorted.count(), [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      each_sum(sorted, u, rows, of.H, [&](int64_t h, int64_t n, const Real* sum) {
        Real* row = gradient + sorted.tokens[u] * of.H + h;
        for (int64_t i = 0; i < n; ++i) row[i] += sum[i];
      });
    }
  });
}

// sums [H,distinct tokens], one cache line of units at a time.
template <class Real>
void sum_by_unit(const Lookup& of, const Sorted& sorted, const Real* rows, Real* sums) {
  constexpr int64_t UNITS = CACHE_LINE / sizeof(Real), TOKENS = 16;
  const int64_t U = sorted.count();
  share_out_bytes(of.N * of.H * sizeof(Real), (U + TOKENS - 1) / TOKENS, [&](int64_t begin, int64_t end) {
    Real block[TOKENS][UNITS];
    for (int64_t first = begin * TOKENS; first < std::min(end * TOKENS, U); first += TOKENS) {
      const int64_t tokens = std::min(TOKENS, U - first);
      for (int64_t h = 0; h < of.H; h += UNITS) {
        const int64_t units = std::min(UNITS, of.H - h);
        for (int64_t u = 0; u < tokens; ++u) sum_rows(sorted, first + u, rows, of.H, h, units, block[u]);
        for (int64_t i = 0; i < units; ++i)
          for (int64_t u = 0; u < tokens; ++u) sums[(h + i) * U + first + u] = block[u][i];
      }
    }
  });
}

template <class Real>
void add_by_unit(const Lookup& of, const Sorted& sorted, const Real* sums, Real* gradient) {
  const int64_t U = sorted.count();
  share_out_bytes(U * of.H * sizeof(Real), of.H, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h)
      for (int64_t u = 0; u < U; ++u) gradient[h * of.V + sorted.tokens[u]] += sums[h * U + u];
  });
}

}  // namespace

int64_t bad_token(const int32_t* tokens, int64_t N, int64_t V) {
  for (int64_t n = 0; n < N; ++n)
    if (tokens[n] < 0 || tokens[n] >= V) return n;
  return -1;
}

template <class Real>
void look_up(const Lookup& of, const Real* table, Real* rows) {
  const int64_t V = of.V, H = of.H, bytes = of.N * H * sizeof(Real);
  if (!of.by_unit) {
    share_out_bytes(bytes, of.N, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) memcpy(rows + n * H, table + of.tokens[n] * H, H * sizeof(Real));
    });
    return;
  }
  // Each value comes from a cache line of its own. UNITS units at a time fill a line of the result, and taking the tokens in
  // order visits each page of the table once for these units.
  constexpr int64_t UNITS = CACHE_LINE / sizeof(Real);
  const Sorted sorted(of);
  share_out_bytes(bytes, of.N, [&](int64_t begin, int64_t end) {
    for (int64_t h = 0; h < H; h += UNITS) {
      const int64_t units = std::min(UNITS, H - h);
      for (int64_t k = begin; k < end; ++k) {
        const int64_t n = sorted.order[k];
        const Real* from = table + h * V + of.tokens[n];
        Real* row = rows + n * H + h;
        if (units == UNITS) {
          for (int64_t i = 0; i < UNITS; ++i) row[i] = from[i * V];
        } else {
          for (int64_t i = 0; i < units; ++i) row[i] = from[i * V];
        }
      }
    }
  });
}

template <class Real>
void look_up_gradient(const Lookup& of, const Real* rows, Real* gradient, bool add) {
  const Sorted sorted(of);
  if (!add) fill_with_zeros(gradient, of.V * of.H * sizeof(Real));
  if (!of.by_unit) return add_by_symbol(of, sorted, rows, gradient);
  std::vector<Real> sums(sorted.count() * of.H);
  sum_by_unit(of, sorted, rows, sums.data());
  add_by_unit(of, sorted, sums.data(), gradient);
}

template <class Real>
void transpose(int64_t rows, int64_t columns, const Real* in, Real* out, bool add) {
  constexpr int64_t TILE = CACHE_LINE / sizeof(Real);
  share_out_bytes(rows * columns * sizeof(Real), (columns + TILE - 1) / TILE, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * TILE; c < std::min(end * TILE, columns); c += TILE) {
      const int64_t width = std::min(TILE, columns - c);
      for (int64_t r = 0; r < rows; r += TILE) {
        const int64_t height = std::min(TILE, rows - r);
        Real tile[TILE][TILE];
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) tile[j][i] = in[(r + i) * columns + c + j];
        for (int64_t j = 0; j < width; ++j) {
          Real* to = out + (c + j) * rows + r;
          if (add)
            for (int64_t i = 0; i < height; ++i) to[i] += tile[j][i];
          else memcpy(to, tile[j], height * sizeof(Real));
        }
      }
    }
  });
}

#define RNN_LOOKUP_OF(Real)                                                \
  template void look_up(const Lookup&, const Real*, Real*);                \
  template void look_up_gradient(const Lookup&, const Real*, Real*, bool); \
  template void transpose(int64_t, int64_t, const Real*, Real*, bool);
RNN_LOOKUP_OF(float)
RNN_LOOKUP_OF(double)
#undef RNN_LOOKUP_OF

}  // namespace rnn
