// The model of the choice, in cycles of a core, for a part of r rows and c columns of a step:
//
//     multiply-adds    r · H · c / panel     a row of a panel is two vectors, one for each multiply-add unit
//     reading Whh      H · c · item / rate   from the nearest cache that holds the part's columns: 64, 32 or 16 bytes a cycle
//     tanh and others  r · c · 60 / panel
//     meeting          1000, and 100 for each member, if several threads have columns of the same rows
//
// The first two overlap, so the larger one counts. The rates hold to within a factor of two for the cores of the last ten years.
// It matters only that many rows are split by rows, and that columns are split if a thread would have few rows or a Whh too large
// for its caches.
#include "split.h"

#include <unistd.h>

namespace rnn {
namespace {

constexpr double ELEMENTWISE = 60, MEETING = 1000, MEMBER = 100;

double cycles(int64_t rows, int64_t H, int64_t panels, int64_t panel, int64_t item, int members, int64_t l1, int64_t l2) {
  const double bytes = double(H) * panels * panel * item;
  const double work = double(rows) * H * panels;
  // A quarter of L2 is left for other data.
  const double reading = bytes / (bytes <= l1 ? 64 : bytes <= l2 * 3 / 4 ? 32 : 16);
  const double meeting = members > 1 ? MEETING + MEMBER * members : 0;
  return (work > reading ? work : reading) + ELEMENTWISE * rows * panels + meeting;
}

int64_t cache(int name, int64_t otherwise) {
  const long found = name < 0 ? 0 : sysconf(name);
  return found > 0 ? found : otherwise;
}

}  // namespace

Split choose_split(int64_t B, int64_t H, int64_t panel, int64_t item, int threads, int64_t l1, int64_t l2) {
  const int64_t panels = ceil_div(H, panel);
  Split best = {1, 1};
  double fewest = cycles(B, H, panels, panel, item, 1, l1, l2);
  int64_t rows_before = 0, panels_before = 0;
  for (int row_groups = 1; row_groups <= threads && row_groups <= B; ++row_groups) {
    const int64_t rows = ceil_div(B, row_groups);
    if (rows == rows_before) continue;  // with more threads, but the largest part is not smaller
    rows_before = rows;
    panels_before = 0;
    for (int column_groups = 1; column_groups <= threads / row_groups && column_groups <= panels; ++column_groups) {
      const int64_t its_panels = ceil_div(panels, column_groups);
      if (its_panels == panels_before) continue;
      panels_before = its_panels;
      const double needed = cycles(rows, H, its_panels, panel, item, column_groups, l1, l2);
      if (needed < fewest) {
        fewest = needed;
        best = {row_groups, column_groups};
      }
    }
  }
  return best;
}

#ifdef _SC_LEVEL2_CACHE_SIZE
int64_t l1_bytes() { return cache(_SC_LEVEL1_DCACHE_SIZE, 32 << 10); }
int64_t l2_bytes() { return cache(_SC_LEVEL2_CACHE_SIZE, 1 << 20); }
#else
int64_t l1_bytes() { return cache(-1, 32 << 10); }
int64_t l2_bytes() { return cache(-1, 1 << 20); }
#endif

}  // namespace rnn
