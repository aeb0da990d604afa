// `rnn_ops_lookup`: the rows of a table that a batch needs. A custom operator of MXNet (op_type of `Custom`) in C++.
//
//     layout=VH or HV: inputs, table (V, H) or (H, V) -> inputs, Wxh, tokens
//         If there are fewer tokens (T, B) than symbols V, the tokens become 0 to T·B - 1, and Wxh has one row for each,
//         (T·B, H). If there are more, or if inputs are floats (T, B, I), inputs stay as they are, and Wxh is a copy of the table
//         as (V, H). With step=1 there is no T. The third result is for the backward pass alone: the original tokens, if they
//         were changed.
//     symbols=V: tokens -> the same tokens, after a check that they are in [0, V)
//     neither: tokens, table (H, V) -> rows (T·B, H), as in graphs that earlier versions saved
//
// It is a custom operator because MXNet tells only a custom operator what to do with a gradient: nothing, write it, or add it.
// (The library's other operator is not told: bug 4 in rnn_ops/_mxnet_bugs.py.) So a table's gradient is written once, to its
// final place. On a GPU, an operator in Python does the work (rnn_ops/operators/lookup.py).
//
// The types and numbers below are those of MXNet's c_api.h.
#include "lookup.h"

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "operator.h"

// MXNet catches this exception in the thread that runs an operator, and throws it again in a thread that waits for the results.
namespace dmlc {
struct __attribute__((visibility("default"))) Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};
}  // namespace dmlc

namespace {

using namespace rnn_ops;

struct Callbacks {  // MXCallbackList
  int count;
  void** functions;
  void** states;
};
using Creator = int (*)(const char*, int, const char**, const char**, Callbacks*);
using CreateOperator = int (*)(const char*, int, unsigned**, const int*, const int*, Callbacks*, void*);
using Delete = int (*)(void*);
enum { DELETE, FORWARD, BACKWARD, OPERATOR_CALLBACKS };
enum { LIST_ARGUMENTS = 1, LIST_OUTPUTS, LIST_AUXILIARY, INFER_SHAPE, BACKWARD_DEPENDENCY, CREATE, INFER_TYPE, CALLBACKS };
enum { NOTHING, WRITE, WRITE_IN_PLACE, ADD };  // what to do with a result

const char NAME[] = "rnn_ops_lookup";

// MXNet's functions, found in the library that has loaded this one.
struct MXNet {
  int (*get_data)(void*, void**);
  int (*get_shape)(void*, int*, const int**);
  int (*get_dtype)(void*, int*);
  int (*free)(void*);
  int (*register_custom)(const char*, Creator);
  bool found;

  MXNet() {
    void* library = dlopen("libmxnet.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) library = RTLD_DEFAULT;
    found = find(library, "MXNDArrayGetData", &get_data) && find(library, "MXNDArrayGetShapeEx", &get_shape) &&
            find(library, "MXNDArrayGetDType", &get_dtype) && find(library, "MXNDArrayFree", &free) &&
            find(library, "MXCustomOpRegister", &register_custom);
  }

  template <class Function>
  static bool find(void* library, const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library, name));
    return *function != nullptr;
  }
};
const MXNet& mxnet() {
  static const MXNet functions;
  return functions;
}

Creator gpu_creator = nullptr;

struct LookupOptions {
  enum { TABLE, CHECK, ROWS } kind = ROWS;
  bool by_unit = true;
  int tokens_rank = 2;
  int64_t symbols = 0;
  int arguments() const { return kind == CHECK ? 1 : 2; }
  int results() const { return kind == TABLE ? 3 : 1; }
  int Wxh() const { return kind == TABLE ? 1 : 0; }  // its index among the results
};

LookupOptions parse(int count, const char** names, const char** values) {
  LookupOptions found;
  for (int i = 0; i < count; ++i) {
    const std::string name = names[i], value = values[i];
    if (name == "layout") {
      if (value != "VH" && value != "HV") fail(name, "'" + value + "'", "VH or HV");
      found.kind = LookupOptions::TABLE;
      found.by_unit = value == "HV";
    } else if (name == "step") {
      if (value != "0" && value != "1") fail(name, "'" + value + "'", "0 or 1");
      found.tokens_rank = value == "1" ? 1 : 2;
    } else if (name == "symbols") {
      char* end;
      found.kind = LookupOptions::CHECK;
      errno = 0;
      found.symbols = strtoll(value.c_str(), &end, 10);
      if (found.symbols < 1 || *end || errno) fail(name, "'" + value + "'", "a number of symbols, 1 or more");
    } else if (name.compare(0, 2, "__") != 0) {  // names with __ are notes on a node, by MXNet or by the user
      fail("attributes", "'" + name + "'", "layout, step and symbols only");
    }
  }
  return found;
}

// No exception may leave a callback, since MXNet calls it as C. MXNet reports only that something has failed, so the error is
// printed, as MXNet does for operators in Python.
template <class Body>
int guarded(Body body, std::string* sentence) {
  try {
    body();
    return 1;
  } catch (const Error& error) {
    *sentence = error.sentence;
  } catch (const std::exception& error) {
    *sentence = error.what();
  }
  printf("Error in %s: %s\n", NAME, sentence->c_str());
  fflush(stdout);
  return 0;
}

// An array that MXNet lends for a call.
class Lent {
 public:
  explicit Lent(void* handle) : handle_(handle) {}
  void look() {
    const int* shape;
    if (mxnet().get_data(handle_, &data) || mxnet().get_shape(handle_, &rank, &shape) || mxnet().get_dtype(handle_, &dtype))
      throw Error{"MXNet has no memory for an array of this call"};
    sizes.assign(shape, shape + std::max(rank, 0));
    for (int64_t each : sizes) size *= each;
  }
  ~Lent() { mxnet().free(handle_); }
  Lent(const Lent&) = delete;

  template <class Item>
  Item* as() const {
    return static_cast<Item*>(data);
  }

  void* data;
  int rank, dtype;
  Shape sizes;
  int64_t size = 1;

 private:
  void* handle_;
};

std::vector<std::unique_ptr<Lent>> lent(int count, void** handles) {
  std::vector<std::unique_ptr<Lent>> found;
  for (int i = 0; i < count; ++i) found.emplace_back(new Lent(handles[i]));  // all first, so that all are freed
  for (const auto& each : found) each->look();
  return found;
}

// to = from, or to += from.
template <class Item>
void deliver(const Item* from, int64_t count, Item* to, int req) {
  if (req == ADD) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  } else if (req != NOTHING) {
    memcpy(to, from, count * sizeof(Item));
  }
}

void deliver(const Lent& from, const Lent& to, int req) {
  if (to.dtype == INT32) deliver(from.as<int32_t>(), to.size, to.as<int32_t>(), req);
  else if (to.dtype == FLOAT64) deliver(from.as<double>(), to.size, to.as<double>(), req);
  else deliver(from.as<float>(), to.size, to.as<float>(), req);
}

rnn::Lookup problem(const LookupOptions& options, const Lent& inputs, const Lent& table) {
  if (table.rank != 2 || (table.dtype != FLOAT32 && table.dtype != FLOAT64))
    fail("Wxh", "an array that is no table", "two dimensions of float32 or float64");
  if (inputs.size < 1) fail("inputs", "an empty array", "every dimension to be at least 1");
  if (table.size < 1) fail("Wxh", "an empty array", "every dimension to be at least 1");
  return {inputs.size, table.sizes[options.by_unit], table.sizes[!options.by_unit], options.by_unit, inputs.as<int32_t>()};
}

// A caller may pass other memory than MXNet has inferred (out=, args_grad=): bug 7 in rnn_ops/_mxnet_bugs.py.
void check_room(const char* name, const Lent& array, int64_t size, int dtype) {
  if (array.size == size && array.dtype == dtype) return;
  fail(name, "memory for " + std::to_string(array.size) + " values", std::to_string(size) + " of the right type");
}

// Whether each token of a batch gets a row of its own, or the whole table is passed on.
bool by_row(const LookupOptions& options, int rank, int64_t tokens, int64_t symbols) {
  return options.kind == LookupOptions::ROWS || (rank == options.tokens_rank && tokens < symbols);
}

void check_tokens(const Lent& tokens, int64_t symbols) {
  if (tokens.dtype != INT32) fail("inputs", "an array that is not of int32", "tokens; cast them to int32");
  int64_t at = rnn::bad_token(tokens.as<int32_t>(), tokens.size, symbols);
  if (at < 0) return;
  const std::string token = std::to_string(tokens.as<int32_t>()[at]), bound = std::to_string(symbols);
  std::string where;
  for (int d = tokens.rank - 1; d >= 0; --d) {
    where = std::to_string(at % tokens.sizes[d]) + (where.empty() ? "" : ", ") + where;
    at /= tokens.sizes[d];
  }
  fail("inputs", "token " + token + " at [" + where + "]", "0 <= token < " + bound + ", I = " + bound + " from Wxh");
}

template <class Real>
void forward_table(const LookupOptions& options, const rnn::Lookup& of, bool by_row, const Lent& table, const Lent& result,
                   int req) {
  if (req == NOTHING) return;
  std::vector<Real> room(req == ADD ? result.size : 0);
  Real* to = req == ADD ? room.data() : result.as<Real>();
  if (by_row) rnn::look_up(of, table.as<Real>(), to);
  else if (options.by_unit) rnn::transpose(of.H, of.V, table.as<Real>(), to, false);
  else memcpy(to, table.data, result.size * sizeof(Real));
  if (req == ADD) deliver(to, result.size, result.as<Real>(), req);
}

template <class Real>
void backward_table(const LookupOptions& options, const rnn::Lookup& of, bool by_row, const Lent& arrived, const Lent& gradient,
                    int req) {
  if (req == NOTHING) return;
  if (by_row) rnn::look_up_gradient(of, arrived.as<Real>(), gradient.as<Real>(), req == ADD);
  else if (options.by_unit) rnn::transpose(of.V, of.H, arrived.as<Real>(), gradient.as<Real>(), req == ADD);
  else deliver(arrived, gradient, req);
}

// arrays: the arguments, the results.
void forward(const LookupOptions& options, const std::vector<std::unique_ptr<Lent>>& arrays, const int* req) {
  const Lent& inputs = *arrays[0];
  if (options.kind == LookupOptions::CHECK) {
    check_tokens(inputs, options.symbols);
    check_room("result inputs", *arrays[1], inputs.size, inputs.dtype);
    return deliver(inputs, *arrays[1], req[0]);
  }
  const Lent& table = *arrays[1];
  const rnn::Lookup of = problem(options, inputs, table);
  const bool rows = by_row(options, inputs.rank, of.N, of.V);
  if (rows) check_tokens(inputs, of.V);
  const Lent& Wxh = *arrays[2 + options.Wxh()];
  check_room("result Wxh", Wxh, (rows ? of.N : of.V) * of.H, table.dtype);
  if (options.kind == LookupOptions::TABLE) {
    check_room("result inputs", *arrays[2], inputs.size, inputs.dtype);
    std::vector<int32_t> own(rows ? of.N : 0);
    for (int64_t n = 0; n < static_cast<int64_t>(own.size()); ++n) own[n] = static_cast<int32_t>(n);
    if (rows) deliver(own.data(), of.N, arrays[2]->as<int32_t>(), req[0]);
    else deliver(inputs, *arrays[2], req[0]);
    const Lent& kept = *arrays[4];
    check_room("result tokens", kept, rows ? of.N : 1, INT32);
    if (rows) memcpy(kept.data, inputs.data, of.N * sizeof(int32_t));
    else memset(kept.data, 0, sizeof(int32_t));
  }
  const auto pass = table.dtype == FLOAT64 ? forward_table<double> : forward_table<float>;
  pass(options, of, rows, table, Wxh, req[options.Wxh()]);
}

// arrays: the gradients of the results, the arguments, the results, the gradients of the arguments.
void backward(const LookupOptions& options, const std::vector<std::unique_ptr<Lent>>& arrays, const int* req) {
  const int results = options.results(), arguments = options.arguments();
  const Lent& inputs = *arrays[results];
  const std::unique_ptr<Lent>* gradients = &arrays[2 * results + arguments];
  check_room("gradient of inputs", *gradients[0], inputs.size, inputs.dtype);
  if (inputs.dtype != INT32) check_room("gradient of result inputs", *arrays[0], inputs.size, inputs.dtype);
  if (inputs.dtype != INT32) deliver(*arrays[0], *gradients[0], req[0]);
  else if (req[0] == WRITE || req[0] == WRITE_IN_PLACE) memset(gradients[0]->data, 0, gradients[0]->size * sizeof(int32_t));
  if (options.kind == LookupOptions::CHECK) return;
  const Lent& table = *arrays[results + 1];
  rnn::Lookup of = problem(options, inputs, table);
  const bool rows = by_row(options, inputs.rank, of.N, of.V);
  if (rows) {
    const Lent& tokens = options.kind == LookupOptions::TABLE ? *arrays[results + arguments + 2] : inputs;
    check_room("result tokens", tokens, of.N, INT32);
    check_tokens(tokens, of.V);  // in an old graph somebody may have written to them since
    of.tokens = tokens.as<int32_t>();
  }
  const Lent& arrived = *arrays[options.Wxh()];
  check_room("gradient of Wxh", *gradients[1], table.size, table.dtype);
  check_room("gradient of result Wxh", arrived, (rows ? of.N : of.V) * of.H, table.dtype);
  const auto pass = table.dtype == FLOAT64 ? backward_table<double> : backward_table<float>;
  pass(options, of, rows, arrived, *gradients[1], req[1]);
}

// MXNet's callbacks --------------------------------------------------------------------------------------------------

// The state of the callbacks: a node's options. MXNet wants one state for each callback of a list, and deletes the first.
struct State {
  explicit State(const LookupOptions& given) : options(given) { std::fill(states, states + CALLBACKS, this); }
  LookupOptions options;
  std::string fault;  // of the attributes
  void* states[CALLBACKS];
};

const LookupOptions& options_of(void* state) { return static_cast<State*>(state)->options; }

int delete_state(void* state) {
  delete static_cast<State*>(state);
  return 1;
}

// The exception reaches the thread that waits for the results.
template <class Pass>
int run(Pass pass, int count, void** handles, const int* req, void* state) {
  std::string sentence;
  if (!guarded([&] { pass(options_of(state), lent(count, handles), req); }, &sentence)) throw dmlc::Error(sentence);
  return 1;
}

int call_forward(int count, void** handles, int*, const int* req, int, void* state) {
  return run(forward, count, handles, req, state);
}

int call_backward(int count, void** handles, int*, const int* req, int, void* state) {
  return run(backward, count, handles, req, state);
}

int list_arguments(const char*** names, void* state) {
  static const char* all[] = {"inputs", "table", nullptr};
  static const char* tokens[] = {"inputs", nullptr};
  *names = options_of(state).kind == LookupOptions::CHECK ? tokens : all;
  const std::string& fault = static_cast<State*>(state)->fault;
  std::string sentence;
  return guarded(
      [&] {
        if (!fault.empty()) throw Error{fault};
      },
      &sentence);
}

int list_outputs(const char*** names, void* state) {
  static const char* all[] = {"inputs", "Wxh", "tokens", nullptr};
  static const char* rows[] = {"rows", nullptr};
  static const char* tokens[] = {"inputs", nullptr};
  const auto kind = options_of(state).kind;
  *names = kind == LookupOptions::CHECK ? tokens : kind == LookupOptions::ROWS ? rows : all;
  return 1;
}

int list_auxiliary(const char*** names, void*) {
  static const char* none[] = {nullptr};
  *names = none;
  return 1;
}

// An unknown shape has -1 dimensions on the way in and 0 on the way out.
int infer_shape(int, int* ranks, int** shapes, void* state) {
  const LookupOptions& options = options_of(state);
  static thread_local int found[2], one = 1;
  const int arguments = options.arguments();
  for (int i = 0; i < arguments; ++i) ranks[i] = std::max(ranks[i], 0);
  if (options.kind != LookupOptions::ROWS) {
    ranks[arguments] = ranks[0];
    shapes[arguments] = shapes[0];
    if (options.kind == LookupOptions::CHECK) return 1;
    ranks[arguments + 2] = 0;
  }
  const int Wxh = arguments + options.Wxh();
  found[0] = found[1] = -1;
  ranks[Wxh] = 2;
  shapes[Wxh] = found;
  if (ranks[1] != 2) return 1;
  const int symbols = shapes[1][options.by_unit];
  found[1] = shapes[1][!options.by_unit];
  if (ranks[0] < 1 || symbols < 1) return 1;
  int64_t tokens = 1;
  for (int d = 0; d < ranks[0]; ++d) {
    if (shapes[0][d] < 1) return 1;
    tokens *= shapes[0][d];
  }
  const bool rows = by_row(options, ranks[0], tokens, symbols);
  found[0] = rows ? static_cast<int>(tokens) : symbols;
  if (options.kind == LookupOptions::TABLE) {
    ranks[arguments + 2] = rows ? ranks[0] : 1;
    shapes[arguments + 2] = rows ? shapes[0] : &one;
  }
  return 1;
}

int infer_type(int, int* types, void* state) {
  const LookupOptions& options = options_of(state);
  if (options.by_unit && types[0] == UNKNOWN) types[0] = INT32;
  if (options.kind == LookupOptions::CHECK) {
    types[1] = types[0];
    return 1;
  }
  if (types[1] == UNKNOWN) types[1] = types[0] == INT32 ? FLOAT32 : types[0];
  if (options.kind == LookupOptions::TABLE) {
    types[2] = types[0];
    types[4] = INT32;
  }
  types[2 + options.Wxh()] = types[1];
  return 1;
}

// All of them: for those left out, MXNet passes arrays without memory.
int backward_dependency(const int*, const int*, const int*, int* count, int** dependencies, void* state) {
  static int all[] = {0, 1, 2, 3, 4, 5, 6, 7};
  *count = 2 * options_of(state).results() + options_of(state).arguments();
  *dependencies = all;
  return 1;
}

int create_gpu_operator(const char* context, int count, unsigned** shapes, const int* ranks, const int* types, Callbacks* created,
                        const LookupOptions& options) {
  if (!gpu_creator)
    fail("inputs", std::string("an array on ") + context, "one on cpu(), or a process in which Python has imported rnn_ops");
  const std::string symbols = std::to_string(options.symbols), rank = std::to_string(options.tokens_rank);
  const char* names[] = {"symbols", "tokens_rank", "layout"};
  const char* values[] = {symbols.c_str(), rank.c_str(), options.by_unit ? "HV" : "VH"};
  Callbacks property;
  if (!gpu_creator("rnn_ops_lookup_gpu", options.kind == LookupOptions::TABLE ? 3 : 2, names, values, &property)) return 0;
  const int done = reinterpret_cast<CreateOperator>(property.functions[CREATE])(context, count, shapes, ranks, types, created,
                                                                                property.states[CREATE]);
  reinterpret_cast<Delete>(property.functions[DELETE])(property.states[DELETE]);  // Python keeps what the operator needs
  return done;
}

template <class Function>
void* callback(Function function) {
  return reinterpret_cast<void*>(function);
}

int create_operator(const char* context, int count, unsigned** shapes, const int* ranks, const int* types, Callbacks* created,
                    void* state) {
  static void* functions[] = {callback(delete_state), callback(call_forward), callback(call_backward)};
  if (!strncmp(context, "gpu", 3)) {
    int done = 0;
    std::string sentence;
    guarded([&] { done = create_gpu_operator(context, count, shapes, ranks, types, created, options_of(state)); }, &sentence);
    return done;
  }
  *created = {OPERATOR_CALLBACKS, functions, (new State(options_of(state)))->states};
  return 1;
}

}  // namespace

// The operator's creator, for MXCustomOpRegister.
RNN_OPS_EXPORT int rnn_ops_lookup(const char*, int count, const char** names, const char** values, Callbacks* created) {
  static void* functions[] = {callback(delete_state),    callback(list_arguments), callback(list_outputs),
                              callback(list_auxiliary),  callback(infer_shape),    callback(backward_dependency),
                              callback(create_operator), callback(infer_type)};
  State* state = new State(LookupOptions());
  *created = {CALLBACKS, functions, state->states};
  try {
    state->options = parse(count, names, values);
  } catch (const Error& error) {  // MXNet would crash if this failed, so list_arguments reports it
    state->fault = error.sentence;
  }
  return 1;
}

// Registers the operator with MXNet. Returns 0 if there is no MXNet or it has no custom operators.
RNN_OPS_EXPORT int rnn_ops_register_lookup() {
  static const bool done = mxnet().found && mxnet().register_custom(NAME, rnn_ops_lookup) == 0;  // once, or MXNet warns
  return done;
}

// Sets the creator of the operator for arrays on a GPU, which MXNet has got for an operator in Python; or null.
RNN_OPS_EXPORT void rnn_ops_lookup_use_gpu(Creator creator) { gpu_creator = creator; }
