// The rows of a table that a batch of tokens needs, and the gradient of the table from that of the rows.
//
// A table of V symbols and H units is [V,H], or [H,V] where it is kept by units, as Gluon keeps it. Nothing here takes time in
// proportion to V but to write a result of that size: a gradient, once, past the caches where it is larger than they are.
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

// rows [N,H]: of each token the table's.
template <class Real>
void look_up(const Lookup& of, const Real* table, Real* rows);

// gradient, of the table: its own rows' sums where a token names them, 0 elsewhere. `add`: those sums are added to what is there.
template <class Real>
void look_up_gradient(const Lookup& of, const Real* rows, Real* gradient, bool add);

// out [columns,rows] = in [rows,columns] transposed, or is added to.
template <class Real>
void transpose(int64_t rows, int64_t columns, const Real* in, Real* out, bool add);

}  // namespace rnn
