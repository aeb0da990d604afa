"""Layers on PyTorch and their results, for tests; as a program, one process of a data-parallel training step."""
import os
import sys
import warnings

import torch
from torch.nn.utils.rnn import PackedSequence

from rnn_ops.torch import RNN


def pair(kind, *arguments, **options):
    """A `torch.nn.RNN` and a layer of ours with its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout in a single layer
        theirs, ours = torch.nn.RNN(*arguments, **options), kind(*arguments, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def results(layer, input, hx, seed=4, call=None):
    """The results of a layer, and the gradients of input, hx and parameters for random cotangents, by name."""
    data = input.data if isinstance(input, PackedSequence) else input
    data = data.detach().clone().requires_grad_(data.is_floating_point())
    hx = None if hx is None else hx.detach().clone().requires_grad_()
    layer.zero_grad()
    torch.manual_seed(seed)
    outputs, h_n = (layer if call is None else call)(input._replace(data=data) if isinstance(input, PackedSequence) else data, hx)
    found = dict(h_n=h_n)
    if isinstance(input, PackedSequence):
        for field in "batch_sizes", "sorted_indices", "unsorted_indices":
            mine, theirs = getattr(outputs, field), getattr(input, field)
            assert mine is theirs or torch.equal(mine, theirs)
        outputs = outputs.data
    found["outputs"] = outputs
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype) for value in (outputs, h_n)]
    torch.autograd.backward([outputs, h_n], cotangents)
    wanted = dict(layer.named_parameters(), input=data, hx=hx)
    found.update((name, value.grad) for name, value in wanted.items() if value is not None and value.grad is not None)
    return {name: value.detach() for name, value in found.items()}


def same(expected, found, bound=1e-12):
    """Assert that results agree up to the bound, relative to the largest number of each."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        error, largest = (found[name] - value).abs().max(), max(value.abs().max(), 1e-2)
        assert error <= bound * largest, (name, error, largest)


def ddp_worker(rank, folder):
    """The gradients of a layer by name: on one half of a batch, averaged over two processes, or (rank None) on the whole."""
    torch.manual_seed(5)
    layer = RNN(5, 7, 2, bidirectional=True, dtype=torch.float64)
    input, cotangents = torch.randn(6, 4, 5, dtype=torch.float64), torch.randn(6, 4, 14, dtype=torch.float64)
    if rank is None:
        (layer(input)[0] * cotangents).sum().backward()
    else:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        half = slice(2 * rank, 2 * rank + 2)
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        (2 * parallel(input[:, half])[0] * cotangents[:, half]).sum().backward()
        torch.distributed.destroy_process_group()
    return {name: parameter.grad for name, parameter in layer.named_parameters()}


if __name__ == "__main__":
    rank, folder = sys.argv[1:]
    torch.save(ddp_worker(int(rank), folder), os.path.join(folder, f"{rank}.pt"))
