"""The recurrence as two PyTorch operators: ``rnn_ops::rnn_sequence`` and its gradient, ``rnn_ops::rnn_sequence_backward``.

Here are their schemas, their shapes without values (for torch.compile and torch.export), their gradients, and what they do under
autocast. `cpu` and `cuda` compute.

They are registered by `torch.library.Library`. `torch.library.custom_op` makes the same of it, but each of its calls takes 15 to
25 µs longer.
"""
import functools

import torch
from torch.autograd import forward_ad

from rnn_ops.torch import cpu, cuda
from rnn_ops.torch.arguments import check_backward, check_device, check_symbolic

_library = torch.library.Library("rnn_ops", "DEF")  # the operators live as long as it does
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define("rnn_sequence(Tensor inputs, Tensor state, Tensor Wxh, Tensor Whh, Tensor bh, str activation)"
                " -> (Tensor, Tensor)", tags=_TAGS)
# `wanted` is for dinputs, dstate, dWxh, dWhh, dbh. The result has the wanted ones only.
_library.define("rnn_sequence_backward(Tensor? doutputs, Tensor? dlast_state, Tensor inputs, Tensor state, Tensor Wxh, "
                "Tensor Whh, Tensor outputs, str activation, bool[5] wanted) -> Tensor[]", tags=_TAGS)
rnn_sequence = torch.ops.rnn_ops.rnn_sequence.default
rnn_sequence_backward = torch.ops.rnn_ops.rnn_sequence_backward.default

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_USUAL_KEYS = torch._C._dispatch_keys(torch.empty(0))
_settings = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set
_USUAL_SETTINGS = [get() for get in _settings]
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def call(*arguments):
    """``rnn_sequence``. Where the dispatcher would do nothing but call autograd and the CPU kernel, both are called without it.
    This saves 20 µs forward and backward."""
    if _are_usual(arguments[:5]):
        return _sequence(True, *arguments)
    return rnn_sequence(*arguments)


def _are_usual(tensors):
    """Whether tensors are on the CPU and nothing traces, wraps or counts operators: no mode, no profiler, no autocast, no forward
    mode, no torch.func. (PyTorch 2.4 cannot compare sets of keys. Nothing is usual there.)"""
    for get, usual in zip(_settings, _USUAL_SETTINGS):
        if get() != usual:
            return False
    if forward_ad._current_level >= 0 or torch._C._autograd._profiler_enabled():
        return False
    return all([torch._C._dispatch_keys(tensor) == _USUAL_KEYS for tensor in tensors])


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, usual, inputs, state, Wxh, Whh, bh, activation):
        outputs, last_state = _sequence_below(usual, inputs, state, Wxh, Whh, bh, activation)
        ctx.save_for_backward(inputs, state, Wxh, Whh, outputs)
        ctx.usual, ctx.activation = usual, activation
        ctx.set_materialize_grads(False)  # the kernels take None for zeros
        return outputs, last_state

    @staticmethod
    def backward(ctx, doutputs, dlast_state):
        wanted = ctx.needs_input_grad[1:6]
        arguments = doutputs, dlast_state, *ctx.saved_tensors, ctx.activation, wanted
        usual = (ctx.usual and not torch.is_grad_enabled()  # else a graph of the gradient is asked for
                 and _are_usual([tensor for tensor in arguments[:7] if tensor is not None]))
        found = iter(cpu.backward(*arguments) if usual else rnn_sequence_backward(*arguments))
        return (None, *[next(found) if each else None for each in wanted], None)


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        with _BelowAutograd():
            found = rnn_sequence_backward(*arguments)
        ctx.save_for_backward(*arguments[:7])
        ctx.others = arguments[7:]
        return tuple(found)

    @staticmethod
    def backward(ctx, *cotangents):
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that the graph that is made here ends at them, and goes on from them if it is kept.
            tensors = [None if tensor is None else tensor.view_as(tensor) if again else
                       tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, ctx.needs_input_grad)]
            needed = [tensor for tensor, need in zip(tensors, ctx.needs_input_grad) if need]
            # With relu some gradients depend on no tensor that needs one.
            used = [(gradient, cotangent) for gradient, cotangent in zip(_gradients(*tensors, *ctx.others), cotangents)
                    if gradient.requires_grad]
            found = iter(torch.autograd.grad([gradient for gradient, _ in used], needed, [cotangent for _, cotangent in used],
                                             create_graph=again, allow_unused=True) if used else [None] * len(needed))
        return (*[next(found) if need else None for need in ctx.needs_input_grad[:7]], None, None)


def _gradients(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    """`rnn_sequence_backward` in PyTorch's own operations, which can be differentiated. The formulas are those of
    `rnn_ops.backends.cpu.backward`."""
    slope = 1 - outputs * outputs if activation == "tanh" else (outputs > 0).to(outputs.dtype)
    dh = torch.zeros_like(state) if dlast_state is None else dlast_state
    steps = []
    for t in reversed(range(len(outputs))):
        da = (dh if doutputs is None else doutputs[t] + dh) * slope[t]
        dh = da @ Whh.T
        steps.insert(0, da)
    da = torch.stack(steps)
    rows = da.flatten(0, 1)
    found = {1: dh, 3: torch.cat([state[None], outputs[:-1]]).flatten(0, 1).T @ rows, 4: rows.sum(0)}
    if inputs.dim() == 2:
        found[2] = torch.zeros_like(Wxh).index_add(0, inputs.flatten(), rows)
    else:
        found[0], found[2] = da @ Wxh.T, inputs.flatten(0, 1).T @ rows
    return [found[index] for index, each in enumerate(wanted) if each]


def _sequence(usual, *arguments):
    """``rnn_sequence`` where autograd looks on."""
    _refuse_tangents(arguments[:5])
    if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in arguments[:5]]):
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError("rnn_sequence: got a transform of torch.func, needs torch.autograd, as every operator of "
                                      "torch.library does")
        return _Sequence.apply(usual, *arguments)
    return _sequence_below(usual, *arguments)


def _sequence_below(usual, *arguments):
    """``rnn_sequence`` without autograd."""
    if usual:
        return cpu.forward(*arguments)
    with _BelowAutograd():
        return rnn_sequence(*arguments)


def _sequence_backward(*arguments):
    """``rnn_sequence_backward`` where autograd looks on."""
    _refuse_tangents(arguments[:7])
    if torch.is_grad_enabled() and any([tensor is not None and tensor.requires_grad for tensor in arguments[:7]]):
        return list(_Gradients.apply(*arguments))
    with _BelowAutograd():
        return rnn_sequence_backward(*arguments)


def _refuse_tangents(tensors):
    """In forward mode PyTorch would take the tangents of the results for zeros, and say nothing."""
    if forward_ad._current_level >= 0 and any([tensor is not None and forward_ad.unpack_dual(tensor, level=0).tangent is not None
                                               for tensor in tensors]):
        raise NotImplementedError("rnn_sequence: got a tensor with a tangent (forward-mode differentiation), needs one without; "
                                  "the operator has gradients only")


def _in_float32(*arguments):
    """Autocast hands over floats of 16 bits. The kernels compute in 32."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return rnn_sequence(*[value.float() if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
                              else value for value in arguments])


def _shapes(inputs, state, Wxh, Whh, bh, activation):
    given = inputs, state, Wxh, Whh, bh
    check_device(given)
    T, B, _, H, *_ = check_symbolic(given, activation)
    return state.new_empty((T, B, H)), state.new_empty((B, H))


def _gradients_shapes(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    given = inputs, state, Wxh, Whh
    check_device(given)
    check_backward(check_symbolic(given, activation), outputs, doutputs, dlast_state, inputs.device, wanted)
    shapes = inputs.shape, state.shape, Wxh.shape, Whh.shape, Whh.shape[:1]
    return [state.new_empty(shape) for shape, each in zip(shapes, wanted) if each]


_library.impl("rnn_sequence", functools.partial(_sequence, False), "Autograd")
_library.impl("rnn_sequence_backward", _sequence_backward, "Autograd")
for _key, _device in ("CPU", cpu), ("CUDA", cuda):
    _library.impl("rnn_sequence", _device.forward, _key)
    _library.impl("rnn_sequence_backward", _device.backward, _key)
    _library.impl("rnn_sequence", _in_float32, f"Autocast{_key}")
torch.library.register_fake("rnn_ops::rnn_sequence", _shapes, lib=_library)
torch.library.register_fake("rnn_ops::rnn_sequence_backward", _gradients_shapes, lib=_library)
