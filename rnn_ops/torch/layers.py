"""Layers that stand in for `torch.nn.RNN`: ``RNN``, and ``TokenRNN``, which takes tokens.

They replace the computation. Parameters, their names and their layouts, checks, copying and saving are those of PyTorch's base
class of all its recurrent layers. Where `torch.nn.RNN` raises an error, so do these, of the same type and mostly in its words.
"""
import functools
import itertools
from typing import Any, Optional, Tuple, Union

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnn_ops.torch.arguments import dtype_name
from rnn_ops.torch.functions import rnn_sequence

__all__ = ["RNN", "TokenRNN"]

# From so many symbols on, and from twice as many as the batch has tokens, `TokenRNN` takes the batch's columns out of the table
# on a CPU. A layer on 64×32 tokens with 256 hidden units, both ways, on two cores: with 4,000 symbols that takes as long as
# with a transpose of the whole table and of its gradient (7 ms), with 10,000 it takes 10 ms and not 13, with 50,000 30, not 114.
MANY = 2048
# About so many steps of a row cost as much as another call of the recurrence, which lays out the weights anew. Of 32 and 128,
# which were measured, 128 is faster with many rows (128 of 256 hidden units) and 32 with wide states (1,024 units).
SPARE = 64


class RNN(torch.nn.RNNBase):
    """An Elman RNN of one or more layers, h_t = act(x_t·W_ihᵀ + b_ih + h_{t-1}·W_hhᵀ + b_hh): `torch.nn.RNN` on our kernels.

    A network needs nothing but another import. ``state_dict`` of one layer loads into the other.

    Parameters
    ----------
    input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype
        As in `torch.nn.RNN`, in its order and with its defaults. ``dtype`` is float32 or float64.

    Inputs
    ------
    input : tensor (T, B, input_size), (B, T, input_size) with ``batch_first``, (T, input_size), or a PackedSequence
    hx : tensor (num_layers · directions, B, hidden_size), without B if the input has no B, or None for zeros

    Outputs
    -------
    output : (T, B, hidden_size · directions), laid out as the input; a PackedSequence if the input is one
    h_n : shaped as ``hx``, the state of each layer and direction after its last step

    Notes
    -----
    It is a `torch.nn.RNNBase`, but no `torch.nn.RNN`: `torch.compile` breaks its graph at every instance of that, and refuses it
    with ``fullgraph=True``. At a PackedSequence it breaks the graph here too.

    Under `torch.autocast` it computes in float32, as `rnn_ops.torch.rnn_sequence`. `torch.jit.script` cannot compile it;
    `torch.export` and `torch.compile` can.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", *args: Any,
                 **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__("RNN_" + nonlinearity.upper(), input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity

    def forward(self, input: Union[torch.Tensor, PackedSequence],
                hx: Optional[torch.Tensor] = None) -> Tuple[Union[torch.Tensor, PackedSequence], torch.Tensor]:
        weights = self._weights()
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
            self._check(data, hx, weights, batch_sizes)
            packing = _Packing(batch_sizes, len(data), SPARE if self.nonlinearity == "tanh" else 0)
            outputs, h_n = self._layers(data, hx, weights, packing)
            return (PackedSequence(outputs, batch_sizes, sorted_indices, unsorted_indices),
                    self.permute_hidden(h_n, unsorted_indices))
        batch_dim = 0 if self.batch_first else 1
        batched = self._is_batched(input)
        if hx is not None and hx.dim() != 2 + batched:
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {2 + batched}-D but got {hx.dim()}-D tensor")
        if not batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else hx.unsqueeze(1)
        self._check(input, hx, weights, None)
        if 0 in input.shape:
            return self._empty(input, hx, weights)
        outputs, h_n = self._layers(input.transpose(0, 1) if self.batch_first else input, hx, weights)
        if self.batch_first:
            outputs = outputs.transpose(0, 1)
        return (outputs, h_n) if batched else (outputs.squeeze(batch_dim), h_n.squeeze(1))

    def __prepare_scriptable__(self):  # torch.jit.script calls it before it compiles
        raise RuntimeError(f"torch.jit.script: got a rnn_ops.torch.{type(self).__name__}, needs a layer in TorchScript; "
                           "torch.export, torch.compile and torch.jit.trace take this one, and torch.nn.RNN loads its state_dict")

    def _is_batched(self, input):
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        return input.dim() == 3

    def _weights(self):
        """The parameters in PyTorch's order, or what stands in their places, as with `torch.func.functional_call`."""
        if torch.compiler.is_compiling():  # PyTorch's list must not change then
            return [getattr(self, name) for name in self._flat_weights_names]
        self._update_flat_weights()
        return self._flat_weights

    def _check(self, input, hx, weights, batch_sizes):
        if hx is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, hx, batch_sizes)
        for name, tensor in ("hidden", hx), ("parameter", weights[0]):
            if tensor is not None and tensor.device != input.device:
                raise RuntimeError(f"Input and {name} tensors are not at the same device, found input tensor at {input.device} "
                                   f"and {name} tensor at {tensor.device}")
        dtype = weights[0].dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{type(self).__name__}: got parameters of {dtype_name(dtype)}, needs float32 or float64")
        if hx is not None and hx.dtype not in (dtype, torch.float16, torch.bfloat16):  # autocast may hand over 16 bits
            raise RuntimeError(f"hx: got dtype {dtype_name(hx.dtype)}, needs {dtype_name(dtype)}, the dtype of the parameters")

    def _empty(self, input, hx, weights):
        """What PyTorch makes of an empty input: empty outputs of an empty batch, an error if there are no steps."""
        if hx is None:
            hx = weights[0].new_zeros(self.get_expected_hidden_size(input, None))
        return getattr(torch, "rnn_" + self.nonlinearity)(input, hx, weights, self.bias, self.num_layers, self.dropout,
                                                          self.training, self.bidirectional, self.batch_first)

    def _layers(self, sequence, hx, weights, packing=None):
        """All layers on time-major data, or on packed data with its `_Packing` → outputs, laid out alike, and h_n."""
        weights, states = iter(weights), []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0 and self.training:
                sequence = torch.nn.functional.dropout(sequence, self.dropout)
            sides = []
            for backwards in (False, True)[:1 + self.bidirectional]:
                weight_ih, weight_hh = next(weights), next(weights)
                bh = next(weights) + next(weights) if self.bias else weight_hh.new_zeros(self.hidden_size)
                state = None if hx is None else hx[len(states)]
                side, state = self._direction(sequence, state, weight_ih, weight_hh, bh, packing, backwards)
                sides.append(side)
                states.append(state)
            sequence = torch.cat(sides, -1) if self.bidirectional else sides[0]
        return sequence, torch.stack(states) if len(states) > 1 else states[0].unsqueeze(0)

    def _direction(self, sequence, state, weight_ih, weight_hh, bh, packing, backwards):
        """One direction of one layer."""
        # Copied once for all blocks, and for the backward pass.
        Wxh, Whh = weight_ih.t().contiguous(), weight_hh.t().contiguous()
        if backwards:
            sequence = _reversed(sequence, packing)
        if state is None:
            state = bh.new_zeros(sequence.shape[1] if packing is None else packing.rows, self.hidden_size)

        def step_through(sequence, state):
            return rnn_sequence(sequence, state, Wxh, Whh, bh, self.nonlinearity)

        if packing is None:
            outputs, state = step_through(sequence.contiguous(), state)
        else:
            outputs, state = packing.through(step_through, sequence.contiguous(), state)
        return _reversed(outputs, packing) if backwards else outputs, state


class TokenRNN(RNN):
    """`RNN` on tokens. A token stands for its one-hot row, and that row is never made.

    The parameters are those of an `RNN` whose input is the one-hot rows: ``state_dict`` loads from and into one, or a
    `torch.nn.RNN`. Gradients are dense.

    Parameters
    ----------
    input_size : int
        The number of different tokens.
    Others
        As in `RNN`.

    Inputs
    ------
    input : int32 or int64 tensor (T, B), (B, T) with ``batch_first``, (T,), or a PackedSequence of tokens
        0 <= token < input_size.
    hx
        As in `RNN`; outputs too.
    """

    def _is_batched(self, input):
        if input.dim() not in (1, 2):
            raise ValueError(f"input: got shape {tuple(input.shape)}, needs one or two dimensions, as tokens have")
        return input.dim() == 2

    def check_input(self, input: torch.Tensor, batch_sizes: Optional[torch.Tensor]) -> None:
        if input.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"input: got dtype {dtype_name(input.dtype)}, needs int32 or int64, since it has tokens")
        if input.dim() != (2 if batch_sizes is None else 1):
            raise RuntimeError(f"input: got shape {tuple(input.shape)} in a PackedSequence, needs one dimension, as tokens have")

    def _empty(self, input, hx, weights):
        return super()._empty(torch.nn.functional.one_hot(input.long(), self.input_size).to(weights[0].dtype), hx, weights)

    def _direction(self, sequence, first_state, weight_ih, *others):
        if sequence.dtype in (torch.int32, torch.int64):
            sequence, weight_ih = self._small(sequence, weight_ih)
        return super()._direction(sequence, first_state, weight_ih, *others)

    def _small(self, tokens, weight_ih):
        """Tokens and weights that give the same results: if the table is large, with the columns that the batch needs."""
        count = tokens.numel()
        if torch.compiler.is_compiling() or self.input_size < max(MANY, 2 * count) or tokens.device.type != "cpu":
            return tokens, weight_ih
        try:
            columns = weight_ih.index_select(1, tokens.flatten())
        except (IndexError, RuntimeError):  # the recurrence says which token
            return tokens, weight_ih
        return torch.arange(count, dtype=torch.int32, device="cpu").view(tokens.shape), columns


class _Packing:
    """How the rows of packed data end, and the recurrence over them in blocks of steps.

    A block has one number of rows. Where a few rows end inside it, they are computed to its end, on zeros, if that costs less
    than a block of its own; relu, which may overflow there, gets a block for each number of rows.
    """

    def __init__(self, batch_sizes, rows_of_data, most_spare):
        counts = batch_sizes.tolist()
        if counts != sorted(counts, reverse=True) or counts[-1:] < [1] or sum(counts) != rows_of_data:
            raise ValueError(f"batch_sizes: got {counts}, needs numbers of rows, 1 or more, none of them larger than the one "
                             f"before, that add up to the {rows_of_data} rows of data")
        self.batch_sizes = batch_sizes
        self.rows = counts[0]
        self._blocks = []  # (first step, last step + 1, whether all rows have all steps)
        step = first = 0
        for B, equal in itertools.groupby(counts):
            end = step + len(list(equal))
            if self._blocks and (end - step) * (first - B) <= most_spare:
                self._blocks[-1] = self._blocks[-1][0], end, False
            else:
                self._blocks.append((step, end, True))
                first = B
            step = end

    def through(self, step_through, data, state):
        """Packed data and the first state of each row → packed outputs and the last state of each row.

        step_through: the recurrence, (T, B, ...) and (B, H) → (T, B, H) and (B, H)"""
        counts = [self.batch_sizes[begin:end] for begin, end, _ in self._blocks]
        found, ended = [], []
        for (_, _, full), sizes, rows in zip(self._blocks, counts, data.split([int(each.sum()) for each in counts])):
            B = int(sizes[0])
            if B < state.shape[0]:
                ended.append(state[B:])
                state = state[:B]
            if full:
                outputs, state = step_through(rows.unflatten(0, (len(sizes), B)), state)
                found.append(outputs.flatten(0, 1))
            else:
                sequence, lengths = pad_packed_sequence(PackedSequence(rows, sizes))
                outputs, _ = step_through(sequence, state)
                state = outputs[(lengths - 1).to(outputs.device), torch.arange(B, device=outputs.device)]
                found.append(pack_padded_sequence(outputs, lengths).data)
        return torch.cat(found), torch.cat([state] + ended[::-1]) if ended else state

    @functools.cached_property
    def backwards(self):
        """The places of packed data, each row from its end to its beginning."""
        steps = torch.arange(len(self.batch_sizes), device="cpu")
        lengths = (self.batch_sizes[:, None] > torch.arange(self.rows, device="cpu")).sum(0)
        offsets = self.batch_sizes.cumsum(0) - self.batch_sizes
        step = steps.repeat_interleave(self.batch_sizes)
        row = torch.arange(len(step), device="cpu") - offsets[step]
        return offsets[lengths[row] - 1 - step] + row


def _reversed(sequence, packing):
    return sequence.flip(0) if packing is None else sequence.index_select(0, packing.backwards.to(sequence.device))
