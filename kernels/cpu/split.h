// How the threads of a call share each step of the recurrence: a pure choice, so that it can be tested.
#pragma once

#include <stdint.h>

namespace rnn {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows are cut into `row_groups`, which never wait for one another. The columns of each are cut into `column_groups`, which
// wait for one another at every step.
struct Split {
  int row_groups, column_groups;
};

// The split that takes the fewest cycles a step of B rows and H columns, by the model in split.cc. At least 1 × 1, at most
// `threads` groups in all. `panel`: columns that a tile computes at once; `item`: bytes of a value; `l1`, `l2`: bytes of a core's
// own caches.
Split choose_split(int64_t B, int64_t H, int64_t panel, int64_t item, int threads, int64_t l1, int64_t l2);

// The caches of this machine; common sizes if the system does not say.
int64_t l1_bytes();
int64_t l2_bytes();

}  // namespace rnn
