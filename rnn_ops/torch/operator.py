"""The recurrence as two PyTorch operators: ``rnn_ops::rnn_sequence`` and its gradient, ``rnn_ops::rnn_sequence_backward``.

Here are their schemas, their shapes without values (for torch.compile and torch.export), their gradients, and what they do under
autocast. `cpu` and `cuda` compute.

They are registered by `torch.library.Library`. `torch.library.custom_op` makes the same of it, but each of its calls takes 15 to
25 µs longer.
"""
import torch

from rnn_ops.torch import cpu, cuda
from rnn_ops.torch.arguments import check_symbolic

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
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, state, Wxh, Whh, bh, activation):
        with _BelowAutograd():
            outputs, last_state = rnn_sequence(inputs, state, Wxh, Whh, bh, activation)
        ctx.save_for_backward(inputs, state, Wxh, Whh, outputs)
        ctx.activation = activation
        ctx.set_materialize_grads(False)  # the kernels take None for zeros
        return outputs, last_state

    @staticmethod
    def backward(ctx, doutputs, dlast_state):
        wanted = ctx.needs_input_grad[:5]
        arguments = doutputs, dlast_state, *ctx.saved_tensors, ctx.activation, wanted
        if torch.is_grad_enabled():  # a graph of the gradient is asked for
            found = iter(rnn_sequence_backward(*arguments))
        else:
            with _BelowAutograd():
                found = iter(rnn_sequence_backward(*arguments))
        return (*[next(found) if each else None for each in wanted], None)


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
            found = iter(torch.autograd.grad(_gradients(*tensors, *ctx.others), needed, cotangents, create_graph=again,
                                             allow_unused=True))
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


def _differentiable(function, operator):
    """An operator's implementation where autograd looks on."""
    def call(*arguments):
        if torch.is_grad_enabled() and any(isinstance(value, torch.Tensor) and value.requires_grad for value in arguments):
            return function(*arguments)
        with _BelowAutograd():
            return operator(*arguments)
    return call


def _in_float32(*arguments):
    """Autocast hands over floats of 16 bits. The kernels compute in 32."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return rnn_sequence(*[value.float() if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
                              else value for value in arguments])


def _shapes(inputs, state, Wxh, Whh, bh, activation):
    T, B, _, H, *_ = check_symbolic(inputs, state, Wxh, Whh, bh, activation)
    return state.new_empty((T, B, H)), state.new_empty((B, H))


def _gradients_shapes(doutputs, dlast_state, inputs, state, Wxh, Whh, outputs, activation, wanted):
    shapes = inputs.shape, state.shape, Wxh.shape, Whh.shape, Whh.shape[:1]
    return [state.new_empty(shape) for shape, each in zip(shapes, wanted) if each]


_library.impl("rnn_sequence", _differentiable(_Sequence.apply, rnn_sequence), "Autograd")
_library.impl("rnn_sequence_backward", _differentiable(lambda *arguments: list(_Gradients.apply(*arguments)),
                                                       rnn_sequence_backward), "Autograd")
for _key, _device in ("CPU", cpu), ("CUDA", cuda):
    _library.impl("rnn_sequence", _device.forward, _key)
    _library.impl("rnn_sequence_backward", _device.backward, _key)
    _library.impl("rnn_sequence", _in_float32, f"Autocast{_key}")
torch.library.register_fake("rnn_ops::rnn_sequence", _shapes, lib=_library)
torch.library.register_fake("rnn_ops::rnn_sequence_backward", _gradients_shapes, lib=_library)
