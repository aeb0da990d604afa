// Checks of a call: the options that the operator knows, and the types and shapes of arguments that fit one another.
#include "operator.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <map>

namespace rnn_ops {

const char* const NAMES[RNN_ARGUMENTS] = {"inputs", "state", "Wxh", "Whh", "bh"};
const char* const ACTIVATIONS[RNN_ACTIVATIONS] = {"tanh", "relu"};

void fail(const std::string& name, const std::string& got, const std::string& needs) {
  throw Error{name + ": got " + got + ", needs " + needs};
}

// Attributes ---------------------------------------------------------------------------------------------------------

namespace {

std::string quoted(const char* text) { return std::string("'") + text + "'"; }

bool same(const char* text, const char* other) { return !strcmp(text, other); }

bool flag(const char* name, const char* value) {
  if (!same(value, "0") && !same(value, "1")) fail(name, quoted(value), "0 or 1");
  return *value == '1';
}

// The number of an activation.
int32_t activation(const char* name) {
  std::string names;
  for (int32_t number = 0; number < RNN_ACTIVATIONS; ++number) {
    if (same(name, ACTIVATIONS[number])) return number;
    names += (number ? " or " : "") + quoted(ACTIVATIONS[number]);
  }
  fail("activation", quoted(name), names);
}

}  // namespace

// MXNet calls this some ten times for each call of the operator.
Options options(const Attributes& attributes) {
  Options found;
  for (int i = 0; i < attributes.count; ++i) {
    const char *name = attributes.names[i], *value = attributes.values[i];
    if (same(name, "activation")) {
      found.activation = activation(value);
    } else if (same(name, "step")) {
      found.step = flag(name, value);
    } else if (same(name, "row")) {
      found.row = flag(name, value);
    } else if (same(name, "rank")) {
      found.rank = flag(name, value);
    } else if (same(name, "wanted")) {
      if (strlen(value) != RNN_ARGUMENTS || strspn(value, "01.") != RNN_ARGUMENTS) {
        fail(name, quoted(value), "a 0 or 1 for each of the five arguments");
      }
      for (int argument = 0; argument < RNN_ARGUMENTS; ++argument) {
        found.wanted[argument] = value[argument] == '1';
        found.hidden[argument] = value[argument] == '.';
      }
    } else if (strncmp(name, "__", 2) != 0) {  // names with __ are notes on a node, by MXNet or by the user
      fail("attributes", quoted(name), "step, activation, wanted, row and rank only");
    }
  }
  return found;
}

// Types --------------------------------------------------------------------------------------------------------------

namespace {

bool is_float(int type) { return type == FLOAT32 || type == FLOAT64; }

std::string type_name(int type) {
  switch (type) {
    case FLOAT32: return "float32";
    case FLOAT64: return "float64";
    case FLOAT16: return "float16";
    case UINT8: return "uint8";
    case INT32: return "int32";
    case INT8: return "int8";
    case INT64: return "int64";
    case BOOL: return "bool";
    default: return "number " + std::to_string(type);
  }
}

}  // namespace

void infer_types(const Options& chosen, std::vector<int>* arguments, std::vector<int>* results) {
  if (chosen.rank) {
    *arguments = {INT64};
    *results = {FLOAT32};
    return;
  }
  const int inputs = (*arguments)[0];
  const bool tokens = inputs == INT32;
  if (inputs != UNKNOWN && !tokens && !is_float(inputs)) {
    fail("inputs", "dtype " + type_name(inputs),
         std::string("float32, float64 or int32 (tokens)") + (inputs == FLOAT16 ? "" : "; cast tokens to int32"));
  }
  int type = UNKNOWN, source = 0;
  for (int i = 1; i < RNN_ARGUMENTS; ++i) {
    const int got = (*arguments)[i];
    if (got == UNKNOWN) continue;
    if (!is_float(got)) fail(NAMES[i], "dtype " + type_name(got), "float32 or float64");
    if (type == UNKNOWN) {
      type = got;
      source = i;
    }
    if (got != type) {
      fail(NAMES[i], "dtype " + type_name(got), type_name(type) + ", the dtype of " + NAMES[source]);
    }
  }
  if (inputs != UNKNOWN && !tokens) {
    if (type == UNKNOWN) type = inputs;
    if (inputs != type) {
      fail("inputs", "dtype " + type_name(inputs), type_name(type) + ", the dtype of " + NAMES[source]);
    }
  }
  if (type == UNKNOWN && tokens) type = FLOAT32;  // MXNet's default
  for (int& each : *arguments) each = each == UNKNOWN ? type : each;
  for (int& each : *results) each = type;
}

// Shapes -------------------------------------------------------------------------------------------------------------

namespace {

template <class Items, class Text>
std::string brackets(const Items& items, Text text) {
  std::string joined;
  for (const auto& item : items) joined += (joined.empty() ? "" : ", ") + text(item);
  return "(" + joined + (items.size() == 1 ? ",)" : ")");
}

std::string shape_text(const Shape& shape) {
  return brackets(shape, [](int64_t size) { return std::to_string(size); });
}

std::string needed_inputs(bool step) {
  return step ? "(B, I) of floats or (B,) of int32 tokens" : "(T, B, I) of floats or (T, B) of int32 tokens";
}

[[noreturn]] void fail_unknown(const std::string& name, const std::string& needs) {
  fail(name, "a shape that is not known and does not follow from the other arguments", needs);
}

// The letter of each dimension of each argument.
std::vector<std::string> letters(const Shape& inputs, bool step) {
  const std::string dense = step ? "BI" : "TBI";
  if (!inputs.empty() && inputs.size() != dense.size() && inputs.size() != dense.size() - 1) {
    fail("inputs", "shape " + shape_text(inputs), needed_inputs(step));
  }
  return {dense.substr(0, inputs.size()), "BH", "IH", "HH", "H"};
}

struct Size {
  int64_t size = UNKNOWN;
  std::string source;  // the argument that has it
};
using Sizes = std::map<char, Size>;

[[noreturn]] void misfit(const std::string& name, const Shape& shape, const std::string& pattern, const Sizes& sizes) {
  std::string known, why;
  for (char letter : pattern) {
    const auto found = sizes.find(letter);
    const std::string word = std::string(1, letter) + " = ";
    if (found == sizes.end() || why.find(word) != std::string::npos) continue;
    why += (why.empty() ? " with " : " and ") + word + std::to_string(found->second.size) + " from " + found->second.source;
  }
  const std::string wanted = brackets(pattern, [](char letter) { return std::string(1, letter); });
  if (!why.empty()) {
    const auto size = [&](char letter) {
      const auto found = sizes.find(letter);
      return found == sizes.end() ? std::string(1, letter) : std::to_string(found->second.size);
    };
    known = brackets(pattern, size) + ", ";
  }
  bool transposed = !why.empty() && shape.size() == 2 && pattern.size() == 2;  // whether the transpose would fit
  for (size_t d = 0; transposed && d < 2; ++d) {
    const auto found = sizes.find(pattern[d]);
    transposed = found == sizes.end() || found->second.size == shape[1 - d];
  }
  fail(name, "shape " + shape_text(shape), known + wanted + why + (transposed ? ": " + name + ".T" : ""));
}

// The size of each letter, from the shapes that are known. An unknown shape is empty, an unknown dimension negative.
Sizes read_sizes(const std::vector<Shape>& shapes, const std::vector<std::string>& patterns) {
  Sizes sizes;
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    const Shape& shape = shapes[i];
    const std::string& pattern = patterns[i];
    if (shape.empty()) continue;
    const Sizes before = sizes;
    if (shape.size() != pattern.size()) misfit(NAMES[i], shape, pattern, before);
    for (size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] == 0) fail(NAMES[i], "shape " + shape_text(shape), "every dimension to be at least 1");
      if (shape[d] < 0) continue;
      Size& known = sizes[pattern[d]];
      if (known.size == UNKNOWN) known = {shape[d], NAMES[i]};
      if (known.size != shape[d]) misfit(NAMES[i], shape, pattern, before);
    }
  }
  return sizes;
}

Shape sized(const std::string& pattern, const Sizes& sizes) {
  Shape shape;
  for (char letter : pattern) shape.push_back(sizes.at(letter).size);
  return shape;
}

// The shapes of the results, if all shapes of the arguments are known and fit; else false. Every call comes here, so it is quick.
bool infer_results(const Options& chosen, const std::vector<Shape>& arguments, std::vector<Shape>* results) {
  const Shape &inputs = arguments[RNN_INPUTS], &state = arguments[RNN_STATE], &Wxh = arguments[RNN_WXH],
              &Whh = arguments[RNN_WHH];
  const Shape& bh = arguments[RNN_BH];
  const size_t steps = chosen.step ? 0 : 1;
  if (state.size() != 2 || Wxh.size() != 2 || Whh.size() != 2 || bh.size() != 1) return false;
  if (inputs.size() != steps + 1 && inputs.size() != steps + 2) return false;
  const int64_t B = state[0], I = Wxh[0], H = state[1];
  if (inputs[0] < 1 || B < 1 || I < 1 || H < 1 || inputs[steps] != B || (inputs.size() == steps + 2 && inputs.back() != I) ||
      Wxh[1] != H || Whh[0] != H || Whh[1] != H || bh[0] != H) {
    return false;
  }
  results->back() = state;
  if (steps) (*results)[0] = {inputs[0], B, H};
  return true;
}

}  // namespace

void infer_shapes(const Options& chosen, std::vector<Shape>* arguments, std::vector<Shape>* results) {
  if (chosen.rank) {
    const Shape& shape = (*arguments)[0];
    if (shape.size() != 1 || shape[0] < 0) fail_unknown("inputs", needed_inputs(chosen.step));
    *results = {{1}};
    return;
  }
  if (infer_results(chosen, *arguments, results)) return;
  Shape& bh = (*arguments)[RNN_BH];
  const bool row = chosen.row && bh.size() == 2 && bh[0] == 1;
  if (row) bh.erase(bh.begin());
  const auto patterns = letters((*arguments)[RNN_INPUTS], chosen.step);
  const Sizes sizes = read_sizes(*arguments, patterns);
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    bool known = i != RNN_INPUTS || !(*arguments)[RNN_INPUTS].empty();
    for (char letter : patterns[i]) known = known && sizes.count(letter);
    if (!known) {
      const std::string wanted = i == RNN_INPUTS ? needed_inputs(chosen.step)
                                                 : brackets(patterns[i], [](char letter) { return std::string(1, letter); });
      fail_unknown(NAMES[i], wanted);
    }
  }
  for (int i = 0; i < RNN_ARGUMENTS; ++i) (*arguments)[i] = sized(patterns[i], sizes);
  if (row) bh.insert(bh.begin(), 1);
  (*results)[0] = sized(chosen.step ? "BH" : "TBH", sizes);
  if (!chosen.step) (*results)[1] = sized("BH", sizes);
}

// A call -------------------------------------------------------------------------------------------------------------

int64_t Array::size() const {
  int64_t product = 1;
  for (int d = 0; d < rank; ++d) product *= shape[d];
  return product;
}

bool overlap(const Array& a, const Array& b, size_t item) {
  const auto bytes = [&](const Array& array) { return array.size() * (array.dtype == INT32 ? sizeof(int32_t) : item); };
  const char *begin = static_cast<char*>(a.data), *other = static_cast<char*>(b.data);
  return begin < other + bytes(b) && other < begin + bytes(a);
}

namespace {

bool is(const Array& array, int type, std::initializer_list<int64_t> shape) {
  return array.dtype == type && array.rank == static_cast<int>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), array.shape);
}

bool bh_is(const Options& chosen, const Array& array, int type, int64_t H) {
  return is(array, type, {H}) || (chosen.row && is(array, type, {1, H}));
}

bool arguments_are(const Options& chosen, const Problem& of, const Array* arrays) {
  const int type = of.type();
  const int64_t T = of.T, B = of.B, I = of.I, H = of.H;
  const Array& inputs = arrays[RNN_INPUTS];
  const bool of_step = of.tokens ? is(inputs, INT32, {B}) : is(inputs, type, {B, I});
  const bool of_sequence = of.tokens ? is(inputs, INT32, {T, B}) : is(inputs, type, {T, B, I});
  return (chosen.step ? of_step : of_sequence) && is(arrays[RNN_STATE], type, {B, H}) && is(arrays[RNN_WXH], type, {I, H}) &&
         is(arrays[RNN_WHH], type, {H, H}) && bh_is(chosen, arrays[RNN_BH], type, H);
}

bool results_are(const Options& chosen, const Problem& of, const Array* arrays) {
  const int type = of.type();
  if (chosen.step) return is(arrays[0], type, {of.B, of.H});
  return is(arrays[0], type, {of.T, of.B, of.H}) && is(arrays[1], type, {of.B, of.H});
}

// Whether each array of a call has the right shape and type. Every call comes here, so it is quick. `explain` makes the error.
bool all_fit(const Call& call, Problem* of) {
  const Options& chosen = call.chosen;
  return arguments_fit(chosen, call.arguments, of) && results_are(chosen, *of, call.results) &&
         (!call.cotangents || results_are(chosen, *of, call.cotangents)) &&
         (!call.gradients || arguments_are(chosen, *of, call.gradients));
}

Shape shape_of(const Array& array) { return Shape(array.shape, array.shape + std::max(array.rank, 0)); }

// An error if a result or a gradient has another shape or type than it should.
void check_same(const char* kind, const char* name, const Array& array, const Shape& shape, int type) {
  if (shape_of(array) == shape && array.dtype == type) return;
  fail(std::string(kind) + name, type_name(array.dtype) + " of shape " + shape_text(shape_of(array)),
       type_name(type) + " of shape " + shape_text(shape));
}

// The error of the first array of a call that does not fit.
[[noreturn]] void explain(const Call& call) {
  const Options& chosen = call.chosen;
  std::vector<Shape> shapes, results(chosen.results());
  std::vector<int> types, result_types(chosen.results());
  for (int i = 0; i < RNN_ARGUMENTS; ++i) {
    shapes.push_back(shape_of(call.arguments[i]));
    types.push_back(call.arguments[i].dtype);
  }
  const bool tokens = types[RNN_INPUTS] == INT32;
  if (static_cast<int>(shapes[RNN_INPUTS].size()) + chosen.step != (tokens ? 2 : 3)) {
    fail("inputs", type_name(types[RNN_INPUTS]) + " of shape " + shape_text(shapes[RNN_INPUTS]),
         needed_inputs(chosen.step) + (tokens ? "" : "; cast tokens to int32"));
  }
  for (int i = RNN_STATE; i < RNN_ARGUMENTS; ++i) {  // infer_shapes would take it for unknown
    if (shapes[i].empty()) misfit(NAMES[i], shapes[i], letters(shapes[RNN_INPUTS], chosen.step)[i], Sizes());
  }
  infer_shapes(chosen, &shapes, &results);
  infer_types(chosen, &types, &result_types);
  const char* result_names[] = {chosen.step ? "state" : "outputs", "state"};
  for (int i = 0; i < chosen.results(); ++i) {
    check_same("result ", result_names[i], call.results[i], results[i], result_types[i]);
    if (call.cotangents) check_same("gradient of result ", result_names[i], call.cotangents[i], results[i], result_types[i]);
  }
  for (int i = 0; call.gradients && i < RNN_ARGUMENTS; ++i) {
    check_same("gradient of ", NAMES[i], call.gradients[i], shapes[i], types[i]);
  }
  throw Error{"the arrays of this call do not fit one another"};
}

// An error if a result shares memory with another array, as out= allows. Every call comes here, so it is quick.
void check_results_apart(const Call& call, size_t item) {
  const auto overlap = [&](const Array& a, const Array& b) { return rnn_ops::overlap(a, b, item); };
  const char* names[] = {call.chosen.step ? "state" : "outputs", "state"};
  for (int result = 0; result < call.chosen.results(); ++result) {
    for (int i = 0; i < RNN_ARGUMENTS; ++i) {
      if (overlap(call.results[result], call.arguments[i])) {
        fail(std::string("result ") + names[result], std::string("memory that overlaps ") + NAMES[i], "memory of its own");
      }
    }
  }
  if (!call.chosen.step && overlap(call.results[0], call.results[1])) {
    fail("result outputs", "memory that overlaps result state", "memory of its own");
  }
}

}  // namespace

bool arguments_fit(const Options& chosen, const Array* arguments, Problem* of) {
  const Array &inputs = arguments[RNN_INPUTS], &state = arguments[RNN_STATE], &Wxh = arguments[RNN_WXH];
  if (inputs.rank < 1 || state.rank != 2 || Wxh.rank != 2) return false;
  const int64_t T = chosen.step ? 1 : inputs.shape[0];
  const int32_t dtype = state.dtype == FLOAT64 ? RNN_FLOAT64 : RNN_FLOAT32;
  *of = {T, state.shape[0], Wxh.shape[0], Wxh.shape[1], inputs.dtype == INT32, dtype};
  return of->T > 0 && of->B > 0 && of->I > 0 && of->H > 0 && arguments_are(chosen, *of, arguments);
}

Problem problem(const Call& call) {
  Problem of = {};
  if (!all_fit(call, &of)) explain(call);
  if (!call.gradients) check_results_apart(call, of.item());
  return of;
}

rnn_fill fill_of_gradient(const Options& chosen, const Problem& of, int argument) {
  if (argument == RNN_INPUTS && of.tokens) return RNN_ZEROS;
  return chosen.wanted[argument] ? RNN_COMPUTE : RNN_NANS;
}

}  // namespace rnn_ops
