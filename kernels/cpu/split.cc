// The model behind the choice. In cycles of a core, for a part of r rows and c columns of a step:
//
//     multiply-adds    r · H · c / panel     a row of a panel is two vectors, one for each multiply-add unit
//     reading Whh      H · c · item / rate   from the nearest cache that holds the part's columns: 64, 32 or 16 bytes a cycle
//     tanh and such    r · c · 60 / panel
//     meeting          1000, and 100 for each member, where columns are shared
//
// The first two overlap, so the larger counts. The rates are those of cores of the last ten years to within a factor of two; what
// matters is that rows are split while there are many of them, and columns where a thread would have few rows or a Whh that its
// caches do not hold.
#include "split.h"

#include <unistd.h>

namespace rnn {
namespace {

constexpr double ELEMENTWISE = 60, MEETING = 1000, MEMBER = 100;

double cycles(int64_t rows, int64_t H, int64_t panels, int64_t panel, int64_t item, int members, int64_t l1, int64_t l2) {
  const double bytes = double(H) * panels * panel * item;
  const double work = double(rows) * H * panels;
  // A quarter of L2 is for what else is there.
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
    if (rows == rows_before) continue;  // more threads, and the largest part is no smaller
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
