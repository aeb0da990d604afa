// The rows of a table that a batch of tokens needs, and the table's gradient from the gradient of these rows.
//
// A table of V symbols and H units is [V,H], or [H,V] as Gluon keeps it (by_unit). Time does not grow with V, except for writing
// a gradient of that size: once, and past the caches if it is larger than they are.
//
// Each sum runs in the order of the batch, so the bits do not depend on the number of threads.
#pragma once

#include <stdint.h>

namespace rnn {

struct Lookup {
  int64_t N, V, H;        // tokens in the batch, symbols and units of the table
  bool by_unit;           // the table is [H,V], else [V,H]
  const int32_t* tokens;  // [N], each in [0, V)
};

// The position of the first token outside [0, V), or -1.
int64_t bad_token(const int32_t* tokens, int64_t N, int64_t V);

// rows [N,H]: the table's row of each token.
template <class Real>
void look_up(const Lookup& of, const Real* table, Real* rows);

// The table's gradient: for each symbol the sum of the rows of its tokens, or 0. `add`: gradient += these sums.
template <class Real>
void look_up_gradient(const Lookup& of, const Real* rows, Real* gradient, bool add);

// out [columns,rows] = the transpose of in [rows,columns]. `add`: out += it.
template <class Real>
void transpose(int64_t rows, int64_t columns, const Real* in, Real* out, bool add);

}  // namespace rnn
