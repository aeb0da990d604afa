// A short way into the operator for NDArrays of the CPU: everything between rnn_step or rnn_sequence and the operator, without
// Python.
//
// It calls MXNet's C functions by addresses that Python passes (rnn_ops/operators/native/front.py), so MXNet is not linked. If
// anything about a call is unusual (an array on a GPU, a shape that does not fit), the answer is LOOK_CLOSER. Then the functions
// in Python take over and make the error, if it is one.
//
// A short call that autograd does not record is computed in the calling thread, once MXNet's engine says that no write to its
// arguments is pending. Waking another thread would take longer than the work. MXNet runs all other calls.
//
// A call that autograd records gets guards (rnn_ops/operators/native/guard.py), but only for arguments whose gradient MXNet might
// add up. Arrays with grad_req "write" or "null" need none, nor do results of this operator.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>

#include "operator.h"

namespace rnn_ops {
namespace {

using Handle = void*;

// MXNet's C functions, in the order of _FUNCTIONS in front.py, which has their full names. They return 0, or -1 and an error
// for MXGetLastError.
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
  int (*call_dlpack_deleter)(Handle);
  int (*is_recording)(bool*);
  int (*get_grad)(Handle, Handle*);
  int (*get_grad_state)(Handle, int*);
  int (*set_grad_state)(Handle, int);
  int (*get_symbol)(Handle, Handle*);
  int (*symbol_free)(Handle);
  int (*mark)(unsigned count, Handle*, unsigned* requests, Handle* gradients);
  int (*push)(void (*)(void*, void*), void* parameter, void* deleter, void* context, Handle* read, int reads, Handle* written,
              int writes, void* property, int priority, const char* name);
  int (*invoke)(Handle operation, int inputs, Handle*, int* outputs, Handle**, int count, const char** names,
                const char** values);
  const char* info_type;  // marks autograd's notes in a dmlc::any; null if this MXNet has no such variable
};
Functions mxnet;
Handle operation;

enum Answer { DONE, LOOK_CLOSER, MXNET_ERROR };
enum { CPU = 1, CPU_PINNED = 3, CPU_SHARED = 5 };  // MXNet's kinds of context in the CPU's memory
enum { DENSE = 0 };                                // MXNet's kind of storage

// An NDArray that is freed with this.
struct Owned {
  Handle handle = nullptr;
  Owned() = default;
  Owned(const Owned&) = delete;
  void operator=(const Owned&) = delete;
  ~Owned() {
    if (handle) mxnet.free(handle);
  }
  Handle release() {
    Handle released = handle;
    handle = nullptr;
    return released;
  }
  bool guard(Handle array) {
    const int64_t all = -2;  // copies all dimensions
    return !mxnet.reshape(array, 1, &all, false, &handle);
  }
};

// Autograd's notes on arrays, read from MXNet's objects in memory. MXNet has no C function for an array's grad_req, and asking
// whether autograd knows an array throws an exception inside MXNet if it does not, which is slow. The constructor finds the
// places of the notes by means of one array for each grad_req. If it does not find them, nothing is read and every gradient gets
// its guard.
class Notes {
 public:
  Notes() {
    const unsigned requests[] = {NOTHING, OVERWRITE, ADD};
    const char *arrays[3], *nodes[3];
    Owned made[3], gradients[3];
    for (int i = 0; i < 3; ++i) {
      const int64_t one = 1;
      for (Owned* each : {&made[i], &gradients[i]}) {
        if (mxnet.create(&one, 1, CPU, 0, true, FLOAT32, &each->handle)) return;
      }
      unsigned request = requests[i];
      if (!mxnet.info_type || mxnet.mark(1, &made[i].handle, &request, &gradients[i].handle)) return;
      arrays[i] = static_cast<char*>(made[i].handle);
      nodes[i] = node_by_symbol(made[i].handle);
      if (!nodes[i] || maker_of(nodes[i])) return;
    }
    const auto find = [](size_t most, size_t step, auto is_there) {
      size_t at = 0;
      while (at < most && !(is_there(0, at) && is_there(1, at) && is_there(2, at))) at += step;
      return at < most ? at : NOWHERE;
    };
    node_ = find(192, sizeof(void*), [&](int i, size_t at) { return word(arrays[i] + at) == nodes[i]; });
    info_ = find(224, sizeof(void*), [&](int i, size_t at) { return word(nodes[i] + at) == mxnet.info_type; });
    if (node_ == NOWHERE || info_ == NOWHERE) return;
    request_ = find(32, sizeof(int), [&](int i, size_t at) { return number(info_of(nodes[i]) + at) == requests[i]; });
    readable_ = request_ != NOWHERE;
  }

  enum Note { UNKNOWN, NOT_ASKED, WRITE, GUARD };

  // UNKNOWN: autograd does not know the array, so it can have no gradient. NOT_ASKED: autograd knows it, and it still can have
  // none (grad_req "null"). WRITE: the operator may write the gradient straight to its place. GUARD: it may have to be added
  // there.
  Note on(Handle array) const {
    if (!readable_) return is_known(array) ? GUARD : UNKNOWN;
    const char* node = word(static_cast<char*>(array) + node_);
    if (!node || word(node + info_) != mxnet.info_type) return UNKNOWN;
    if (const void* maker = maker_of(node)) return maker == operation ? WRITE : GUARD;
    const unsigned request = number(info_of(node) + request_);
    if (request == NOTHING) return NOT_ASKED;
    if (request != OVERWRITE) return GUARD;
    Owned gradient;
    int storage;
    const bool dense = !mxnet.get_grad(array, &gradient.handle) && gradient.handle &&
                       !mxnet.get_storage(gradient.handle, &storage) && storage == DENSE;
    return dense ? WRITE : GUARD;
  }

 private:
  enum : unsigned { NOTHING = 0, OVERWRITE = 1, ADD = 3 };  // mxnet::OpReqType
  static const size_t NOWHERE = -1;

  static const char* word(const char* at) { return *reinterpret_cast<const char* const*>(at); }
  static unsigned number(const char* at) { return *reinterpret_cast<const unsigned*>(at); }

  // An nnvm::Symbol is a vector of entries, 24 bytes each; this one has one entry. An entry begins with its node.
  static const char* node_by_symbol(Handle array) {
    Handle symbol;
    if (mxnet.get_symbol(array, &symbol)) return nullptr;
    const char *entries = word(static_cast<char*>(symbol)), *end = word(static_cast<char*>(symbol) + sizeof(void*));
    const char* node = entries && end == entries + 24 ? word(entries) : nullptr;
    mxnet.symbol_free(symbol);
    return node;
  }

  // The operator that makes a node's array; null for a variable.
  static const void* maker_of(const char* node) { return word(node); }

  // As `has_history` in guard.py.
  static bool is_known(Handle array) {
    int fresh = 0;
    mxnet.get_grad_state(array, &fresh);
    return !mxnet.set_grad_state(array, fresh);
  }

  // A dmlc::any holds the type of its value, then the value's address.
  const char* info_of(const char* node) const { return word(node + info_ + sizeof(void*)); }

  size_t node_ = NOWHERE, info_ = NOWHERE, request_ = NOWHERE;  // in mxnet::NDArray, nnvm::Node, mxnet::Imperative::AGInfo
  bool readable_ = false;
};

std::atomic<const Notes*> found_notes{nullptr};  // made by the first call, so that importing rnn_ops makes no arrays

const Notes& notes() {
  const Notes* found = found_notes;
  if (found) return *found;
  std::unique_ptr<const Notes> fresh(new Notes);
  return found_notes.compare_exchange_strong(found, fresh.get()) ? *fresh.release() : *found;
}

// With this many symbols, a guard of Wxh costs too much, as it copies the whole gradient. lookup.py needs none (MANY_IN_ARRAYS).
constexpr int64_t MANY_SYMBOLS = 10000;

// The five arguments.
struct Given {
  Handle handles[RNN_ARGUMENTS];
  Array arrays[RNN_ARGUMENTS];
  int64_t shapes[RNN_ARGUMENTS][3];
  int device = 0;

  // True if all are dense arrays of one to three dimensions in the CPU's memory. Their data stays unknown.
  bool look() {
    for (int i = 0; i < RNN_ARGUMENTS; ++i) {
      int rank, dtype, kind, number, storage;
      const int* shape;
      if (!handles[i] || mxnet.get_storage(handles[i], &storage) || storage != DENSE ||
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

// Computing in the calling thread ---------------------------------------------------------------------------------------

// MXNet runs a function that is pushed as kAsync at once and in the calling thread, if no write to its arrays is pending.
// Otherwise it runs the function later in a thread of its own. By then it is too late, and the function does nothing.
struct Turn {
  const Call* call;  // null: only see whether the function runs at once
  const Handle* handles;
  Array* arguments;
  bool done;
};
thread_local Turn* turn;
thread_local uintptr_t ticket;
std::atomic<uintptr_t> tickets{0};

// Meanwhile nothing can write to the arguments or move them. DLPack gives an address without waiting for the array or writing to
// it. MXNDArrayGetData does both if the array has MKL-DNN's layout.
bool compute(const Turn& mine) {
  Handle managed[RNN_ARGUMENTS];
  int count = 0;
  while (count < RNN_ARGUMENTS && !mxnet.to_dlpack(mine.handles[count], &managed[count])) {
    mine.arguments[count].data = *static_cast<void**>(managed[count]);  // the first field of a DLManagedTensor
    ++count;
  }
  bool done = count == RNN_ARGUMENTS;
  if (done) {
    try {
      cpu_forward(*mine.call);
    } catch (const Error&) {
      done = false;
    } catch (const std::exception&) {
      done = false;
    }
  }
  while (count) mxnet.call_dlpack_deleter(managed[--count]);
  return done;
}

void take_turn(void*, void* of) {
  if (turn && reinterpret_cast<uintptr_t>(of) == ticket) turn->done = !turn->call || compute(*turn);
}

bool run_at_once(Turn* mine, int device) {
  int32_t context[] = {CPU, device};  // mxnet::Context
  int async = 4;                      // mxnet::FnProperty::kAsync
  Handle read[RNN_ARGUMENTS];
  memcpy(read, mine->handles, sizeof read);
  mine->done = false;
  turn = mine;
  ticket = ++tickets;
  const int failed = mxnet.push(take_turn, reinterpret_cast<void*>(ticket), nullptr, context, read, RNN_ARGUMENTS, nullptr, 0,
                                &async, 0, mine->call ? "rnn_ops_native" : "rnn_ops_ready");
  turn = nullptr;
  return !failed && mine->done;
}

// Whether the work, in multiply-adds, takes less time than waking another thread and coming back. A step has a cost of its own
// too.
bool is_short(const Problem& of) {
  const double step = of.B * of.H * (of.H + (of.tokens ? 0 : of.I)) * (of.dtype == RNN_FLOAT64 ? 2. : 1.) + 2e4;
  return of.T * step < 4e6;
}

// False if the call cannot be computed here.
bool compute_here(const Options& chosen, const Problem& of, Given* given, Handle* results) {
  Turn mine = {nullptr, given->handles, given->arrays, false};
  if (!run_at_once(&mine, given->device)) return false;
  void* data;  // this call brings an array with MKL-DNN's layout into the usual one
  for (Handle handle : given->handles) {
    if (mxnet.get_data(handle, &data)) return false;
  }
  const int dtype = of.type();
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

// Calling MXNet ---------------------------------------------------------------------------------------------------------

Answer invoke(const Options& chosen, Handle* inputs, Handle* results) {
  const char *names[3], *values[3];
  int count = 0;
  const auto attribute = [&](const char* name, const char* value) {
    names[count] = name;
    values[count++] = value;
  };
  char wanted[RNN_ARGUMENTS + 1] = "";
  for (int i = 0; i < RNN_ARGUMENTS; ++i) wanted[i] = chosen.wanted[i] ? '1' : '.';
  if (chosen.step) attribute("step", "1");
  if (chosen.activation) attribute("activation", ACTIVATIONS[chosen.activation]);
  if (strchr(wanted, '.')) attribute("wanted", wanted);
  int made = 0;
  Handle* arrays = nullptr;
  if (mxnet.invoke(operation, RNN_ARGUMENTS, inputs, &made, &arrays, count, names, values)) return MXNET_ERROR;
  memcpy(results, arrays, made * sizeof(Handle));
  return DONE;
}

// Waits for the tokens. DONE: all are in [0, I).
Answer check_tokens(const Given& given, const Problem& of) {
  void* data;
  if (mxnet.wait_to_read(given.handles[RNN_INPUTS]) || mxnet.get_data(given.handles[RNN_INPUTS], &data)) return MXNET_ERROR;
  const int32_t* tokens = static_cast<int32_t*>(data);
  const int32_t last = static_cast<int32_t>(std::min<int64_t>(of.I - 1, INT32_MAX));
  bool fit = true;
  for (int64_t i = 0; i < of.T * of.B; ++i) fit &= (tokens[i] >= 0) & (tokens[i] <= last);
  return fit ? DONE : LOOK_CLOSER;
}

Answer invoke_guarded(const Options& all_wanted, const Given& given, const Notes::Note* notes, Handle* results) {
  Options chosen = all_wanted;
  Handle inputs[RNN_ARGUMENTS];
  Owned guards[RNN_ARGUMENTS];
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    inputs[i] = given.handles[i];
    chosen.wanted[i] = notes[i] == Notes::WRITE || notes[i] == Notes::GUARD;
    if (notes[i] != Notes::GUARD) continue;
    if (!guards[i].guard(inputs[i])) return MXNET_ERROR;
    inputs[i] = guards[i].handle;
  }
  return invoke(chosen, inputs, results);
}

Answer answer(const Handle* handles, bool step, int32_t activation, bool look_at_tokens, Handle* results) {
  Given given;
  memcpy(given.handles, handles, sizeof given.handles);
  Options chosen;
  chosen.step = step;
  chosen.activation = activation;
  Problem of;
  if (!given.look() || !arguments_fit(chosen, given.arrays, &of)) return LOOK_CLOSER;
  bool recording, known = false;
  if (mxnet.is_recording(&recording)) return MXNET_ERROR;
  Notes::Note noted[RNN_ARGUMENTS];
  for (int i = 0; recording && i < RNN_ARGUMENTS; ++i) known |= (noted[i] = notes().on(handles[i])) != Notes::UNKNOWN;
  if (known && of.tokens && of.I >= MANY_SYMBOLS && noted[RNN_WXH] == Notes::GUARD) return LOOK_CLOSER;
  if (!known && is_short(of) && compute_here(chosen, of, &given, results)) return DONE;
  if (look_at_tokens && of.tokens) {
    if (const Answer trouble = check_tokens(given, of)) return trouble;
  }
  return known ? invoke_guarded(chosen, given, noted, results) : invoke(chosen, given.handles, results);
}

}  // namespace
}  // namespace rnn_ops

RNN_OPS_EXPORT void rnn_ops_native_use_mxnet(const rnn_ops::Functions* functions, void* operation) {
  rnn_ops::mxnet = *functions;
  rnn_ops::operation = operation;
  rnn_ops::found_notes = nullptr;
}

// Returns an Answer. With DONE, `results` holds one or two NDArrays, which the caller frees.
RNN_OPS_EXPORT int rnn_ops_native_call(void* inputs, void* state, void* Wxh, void* Whh, void* bh, int step, int activation,
                                       int look_at_tokens, void** results) {
  void* const handles[] = {inputs, state, Wxh, Whh, bh};
  return rnn_ops::answer(handles, step, activation, look_at_tokens, results);
}
