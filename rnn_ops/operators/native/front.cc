/* A call on NDArrays in one piece: what stands between the functions that users call and the operator, without Python.
 *
 * MXNet's own C functions do the work, by addresses that Python hands over (rnn_ops/operators/native/front.py), so nothing of
 * MXNet is linked. What fits is computed here. With anything else, arrays on a GPU too, the answer is that somebody has to look
 * closer, and the functions in Python say what is wrong as they always did.
 *
 * A call that autograd does not record and that takes less time than to wake another thread is computed in the thread that
 * makes it, once MXNet's engine says that nothing which writes its arguments is still to come. All others are MXNet's to run.
 *
 * A call that autograd records is guarded: see functions.py. The guards of the weights serve a whole chain of calls, each with
 * the state of the one before: no backward pass can take the graph of a call without that of the calls before it. Two calls
 * that share no state are never given the same guards, for their graphs may be freed one without the other.
 */
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

#include "operator.h"

namespace rnn_ops {
namespace {

using Handle = void*;

// MXNet's C functions by their names (_FUNCTIONS in front.py). All return 0, or -1 where MXGetLastError has a sentence.
struct Functions {
  int (*get_shape)(Handle, int* rank, const int** shape);
  int (*get_dtype)(Handle, int*);
  int (*get_context)(Handle, int* kind, int* number);
  int (*get_storage)(Handle, int*);
  int (*get_data)(Handle, void**);
  int (*wait_to_read)(Handle);
  int (*create)(const int64_t* shape, int rank, int kind, int number, int delay, int dtype, Handle*);
  int (*reshape)(Handle, int rank, const int64_t* shape, bool reverse, Handle*);
  int (*free)(Handle);
  int (*to_dlpack)(Handle, Handle*);
  int (*free_dlpack)(Handle);
  int (*is_recording)(bool*);
  int (*get_grad_state)(Handle, int*);
  int (*set_grad_state)(Handle, int);
  int (*get_symbol)(Handle, Handle*);
  int (*get_name)(Handle, const char**, int* found);
  int (*free_symbol)(Handle);
  int (*push)(void (*)(void*, void*), void* parameter, void* deleter, void* context, Handle* read, int reads, Handle* written,
              int writes, void* property, int priority, const char* name);
  int (*invoke)(Handle operation, int inputs, Handle*, int* outputs, Handle**, int count, const char** names,
                const char** values);
};
Functions mxnet;
Handle operation;

enum Answer { DONE, LOOK_CLOSER, MXNET_ERROR };
enum { CPU = 1, CPU_PINNED = 3, CPU_SHARED = 5 };  // MXNet's kinds of contexts that are memory of the CPU
enum { WEIGHTS = BH - WXH + 1 };

// The node of autograd's graph that an array comes from, as a number that no other node of this process has; 0: none is known.
uint64_t node_of(Handle array) {
  Handle symbol;
  if (mxnet.get_symbol(array, &symbol)) return 0;
  const char* name;  // MXNet counts its nodes: var7, node_8
  int found;
  uint64_t node = 0;
  if (!mxnet.get_name(symbol, &name, &found) && found) {
    const bool leaf = !strncmp(name, "var", 3);
    if (leaf || !strncmp(name, "node_", 5)) node = 2 * strtoull(name + (leaf ? 3 : 5), nullptr, 10) + leaf + 2;
  }
  mxnet.free_symbol(symbol);
  return node;
}

// Whether autograd knows an array: `has_history` of functions.py says how.
bool has_history(Handle array) {
  int fresh = 0;
  mxnet.get_grad_state(array, &fresh);
  return !mxnet.set_grad_state(array, fresh);
}

// An NDArray that is freed with this.
struct Owned {
  Handle handle = nullptr;
  Owned() = default;
  Owned(const Owned&) = delete;
  void operator=(const Owned&) = delete;
  ~Owned() { if (handle) mxnet.free(handle); }
  Handle release() {
    Handle released = handle;
    handle = nullptr;
    return released;
  }
  bool guard(Handle array) {
    const int64_t all = -2;  // dimensions, as they are
    return !mxnet.reshape(array, 1, &all, false, &handle);
  }
};

// The guards of the weights of a call, for those that follow it.
struct Weights {
  struct {
    Handle array;
    uint64_t node;
    Owned guard;  // none where autograd does not know the array
  } each[WEIGHTS];

  bool take(const Handle* arrays, const bool* wanted) {
    for (int i = 0; i < WEIGHTS; ++i) {
      each[i].array = arrays[i];
      each[i].node = wanted[i] ? node_of(arrays[i]) : 0;
      if (wanted[i] && !each[i].guard.guard(arrays[i])) return false;
    }
    return true;
  }

  // Whether these arrays are the same, and come from where they came from then.
  bool fit(const Handle* arrays, const bool* wanted) const {
    for (int i = 0; i < WEIGHTS; ++i) {
      const auto& of = each[i];
      if (arrays[i] != of.array || wanted[i] != !!of.guard.handle) return false;
      if (wanted[i] && (!of.node || node_of(arrays[i]) != of.node || !has_history(of.guard.handle))) return false;
    }
    return true;
  }
};

struct Given {
  Handle handles[ARGUMENTS];
  Array arrays[ARGUMENTS];
  int64_t shapes[ARGUMENTS][3];
  int device = 0;

  // Dense arrays of three dimensions at most in the memory of one CPU; their data is not known yet.
  bool look() {
    for (int i = 0; i < ARGUMENTS; ++i) {
      int rank, dtype, kind, number, storage;
      const int* shape;
      if (!handles[i] || mxnet.get_storage(handles[i], &storage) || storage != 0 ||
          mxnet.get_shape(handles[i], &rank, &shape) || rank < 1 || rank > 3) {
        return false;
      }
      for (int d = 0; d < rank; ++d) shapes[i][d] = shape[d];
      if (mxnet.get_dtype(handles[i], &dtype) || mxnet.get_context(handles[i], &kind, &number)) return false;
      if ((kind != CPU && kind != CPU_PINNED && kind != CPU_SHARED) || (i && number != device)) return false;
      device = number;
      arrays[i] = {nullptr, shapes[i], rank, dtype};
    }
    return true;
  }
};

// In the thread that calls, now or never --------------------------------------------------------------------------------

// MXNet runs a function that it is given as kAsync at once, in the thread that gives it, if nothing writes what it reads; else
// later, in one of its own. Then it is too late, and the function does nothing.
struct Turn {
  const Call* call;  // null: only to see whether it is run at once
  const Handle* handles;
  Array* arguments;
  bool done;
};
thread_local Turn* turn;
thread_local uintptr_t ticket;
std::atomic<uintptr_t> tickets{0};

// Meanwhile nothing can write the arguments or move them. DLPack's way to an address neither waits for an array nor writes it,
// as MXNDArrayGetData does if its layout is MKL-DNN's.
bool compute(const Turn& mine) {
  Handle managed[ARGUMENTS];
  int count = 0;
  while (count < ARGUMENTS && !mxnet.to_dlpack(mine.handles[count], &managed[count])) {
    mine.arguments[count].data = *static_cast<void**>(managed[count]);  // DLManagedTensor begins with it
    ++count;
  }
  bool done = count == ARGUMENTS;
  if (done) {
    try {
      cpu_forward(*mine.call);
    } catch (const Error&) {
      done = false;
    } catch (const std::exception&) {
      done = false;
    }
  }
  while (count) mxnet.free_dlpack(managed[--count]);
  return done;
}

void take_turn(void*, void* of) {
  if (turn && reinterpret_cast<uintptr_t>(of) == ticket) turn->done = !turn->call || compute(*turn);
}

bool run_at_once(Turn* mine, int device) {
  struct { int32_t kind, number; } context = {CPU, device};  // mxnet::Context
  int async = 4;                                            // mxnet::FnProperty::kAsync
  Handle read[ARGUMENTS];
  memcpy(read, mine->handles, sizeof read);
  mine->done = false;
  turn = mine;
  ticket = ++tickets;
  const int failed = mxnet.push(take_turn, reinterpret_cast<void*>(ticket), nullptr, &context, read, ARGUMENTS, nullptr, 0,
                                &async, 0, "rnn_ops_native");
  turn = nullptr;
  return !failed && mine->done;
}

// Multiply-adds, and what a step costs besides.
bool is_short(const Problem& of) {
  const double step = of.B * of.H * (of.H + (of.tokens ? 0 : of.I)) * (of.wide ? 2. : 1.) + 2e4;
  return of.T * step < 4e6;
}

bool compute_here(const Options& chosen, const Problem& of, Given* given, Handle* results) {
  Turn mine = {nullptr, given->handles, given->arrays, false};
  if (!run_at_once(&mine, given->device)) return false;
  void* data;  // another layout than the usual one becomes that
  for (Handle handle : given->handles) {
    if (mxnet.get_data(handle, &data)) return false;
  }
  const int dtype = of.wide ? FLOAT64 : FLOAT32;
  const int64_t sizes[] = {of.T, of.B, of.H};
  Owned made[2];
  Array arrays[2];
  for (int i = 0; i < chosen.results(); ++i) {
    const int rank = i == 0 && !chosen.step ? 3 : 2;
    arrays[i] = {nullptr, sizes + 3 - rank, rank, dtype};
    if (mxnet.create(arrays[i].shape, rank, CPU, given->device, 0, dtype, &made[i].handle) ||
        mxnet.get_data(made[i].handle, &arrays[i].data)) {
      return false;
    }
  }
  const Call call = {chosen, given->arrays, arrays, nullptr, nullptr, nullptr, nullptr, given->device, nullptr};
  mine.call = &call;
  if (!run_at_once(&mine, given->device)) return false;
  for (int i = 0; i < chosen.results(); ++i) results[i] = made[i].release();
  return true;
}

// By MXNet -------------------------------------------------------------------------------------------------------------

Answer invoke(const Options& chosen, Handle* inputs, Handle* results) {
  const char *names[3], *values[3];
  int count = 0;
  const auto attribute = [&](const char* name, const char* value) {
    names[count] = name;
    values[count++] = value;
  };
  char wanted[ARGUMENTS + 1] = "";
  for (int i = 0; i < ARGUMENTS; ++i) wanted[i] = chosen.wanted[i] ? '1' : '0';
  if (chosen.step) attribute("step", "1");
  if (chosen.activation) attribute("activation", "relu");
  if (strchr(wanted, '0')) attribute("wanted", wanted);
  int made = 0;
  Handle* arrays = nullptr;
  if (mxnet.invoke(operation, ARGUMENTS, inputs, &made, &arrays, count, names, values)) return MXNET_ERROR;
  memcpy(results, arrays, made * sizeof(Handle));
  return DONE;
}

}  // namespace

// What a call takes and gives (_Call in front.py).
struct FrontCall {
  int32_t step, activation;
  int32_t check_tokens;  // wait for them and look at each, before MXNet has them
  uint64_t node;         // that the state came from when it was the result of a call; then that of the results
  Weights* weights;      // of that call; then of this one. Null where there are none
  Handle results[2];
};

namespace {

Answer check_tokens(const Given& given, const Problem& of) {
  void* data;
  if (mxnet.wait_to_read(given.handles[INPUTS]) || mxnet.get_data(given.handles[INPUTS], &data)) return MXNET_ERROR;
  const int32_t* tokens = static_cast<int32_t*>(data);
  const int32_t last = static_cast<int32_t>(std::min<int64_t>(of.I - 1, INT32_MAX));
  bool fit = true;
  for (int64_t i = 0; i < of.T * of.B; ++i) fit &= (tokens[i] >= 0) & (tokens[i] <= last);
  return fit ? DONE : LOOK_CLOSER;
}

Answer invoke_guarded(const Options& chosen, const Given& given, FrontCall* call) {
  const Handle* arguments = given.handles;
  Handle inputs[ARGUMENTS];
  memcpy(inputs, arguments, sizeof inputs);
  // What comes from the operator itself needs no guard: the gradient goes to the operator, which takes it as it is.
  const bool follows = chosen.wanted[STATE] && call->node && node_of(arguments[STATE]) == call->node;
  Owned guards[WXH];
  for (int i : {INPUTS, STATE}) {
    if (!chosen.wanted[i] || (i == STATE && follows)) continue;
    if (!guards[i].guard(arguments[i])) return MXNET_ERROR;
    inputs[i] = guards[i].handle;
  }
  Weights* weights = call->weights;
  std::unique_ptr<Weights> fresh;
  if (!follows || !weights || !weights->fit(arguments + WXH, chosen.wanted + WXH)) {
    fresh.reset(weights = new Weights);
    if (!weights->take(arguments + WXH, chosen.wanted + WXH)) return MXNET_ERROR;
  }
  for (int i = WXH; i < ARGUMENTS; ++i) {
    if (chosen.wanted[i]) inputs[i] = weights->each[i - WXH].guard.handle;
  }
  if (invoke(chosen, inputs, call->results)) return MXNET_ERROR;
  fresh.release();
  call->weights = weights;
  call->node = node_of(call->results[0]);
  return DONE;
}

Answer answer(const Handle* handles, FrontCall* call) {
  Given given;
  memcpy(given.handles, handles, sizeof given.handles);
  Options chosen;
  chosen.step = call->step;
  chosen.activation = call->activation;
  Problem of;
  if (!given.look() || !arguments_fit(chosen, given.arrays, &of)) return LOOK_CLOSER;
  bool recording;
  if (mxnet.is_recording(&recording)) return MXNET_ERROR;
  bool known = false, wanted[ARGUMENTS];
  for (int i = 0; i < ARGUMENTS; ++i) known |= wanted[i] = recording && has_history(handles[i]);
  if (!known && is_short(of) && compute_here(chosen, of, &given, call->results)) return DONE;
  if (call->check_tokens && of.tokens) {
    if (const Answer trouble = check_tokens(given, of)) return trouble;
  }
  if (!known) return invoke(chosen, given.handles, call->results);
  memcpy(chosen.wanted, wanted, sizeof wanted);
  return invoke_guarded(chosen, given, call);
}

}  // namespace
}  // namespace rnn_ops

RNN_OPS_EXPORT void rnn_ops_native_use_mxnet(const rnn_ops::Functions* functions, void* operation) {
  rnn_ops::mxnet = *functions;
  rnn_ops::operation = operation;
}

// An Answer. Results and weights are the caller's to free.
RNN_OPS_EXPORT int rnn_ops_native_call(void* inputs, void* state, void* Wxh, void* Whh, void* bh, rnn_ops::FrontCall* call) {
  void* const handles[] = {inputs, state, Wxh, Whh, bh};
  return rnn_ops::answer(handles, call);
}

RNN_OPS_EXPORT void rnn_ops_native_free_weights(rnn_ops::Weights* weights) { delete weights; }
