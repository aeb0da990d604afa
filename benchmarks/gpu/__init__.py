"""For a GPU host. ``python -m benchmarks.gpu``: are the CUDA kernels right, and how fast are they?

__main__.py    the command line
run.py         the parent: the parts one after the other, each a process with an end, and what came of each
parts.py       the parts in order of worth, what they are expected to take, what fits into the minutes
work.py        what each part does in its process
folder.py      the results: a JSON file for each part and each timed cell, written the moment it is known
cells.py       what is timed: shapes, and the floor of each by arithmetic
providers.py   who is timed: our variants, torch.nn.RNN (cuDNN), and FlashRNN where it is installed
jax_peer.py    jax.lax.scan, in a process of its own
timing.py      interleaved rounds over all providers of a shape, and their statistics
launches.py    what the launcher launches for a call, written down without a GPU
microbench.py, microbench.cu   what a step waits for, each thing alone: st.async, barriers, shared memory
training.py    the tutorial's whole training, checked and timed
mxnet_timing.py  the operators on MXNet's GPU arrays and mx.nd.RNN (cuDNN), timed
tables.py, picture.py   Markdown for the README, and the chart
sass.py, paths.py, schedule.py, machine_code.py, predict.py   the kernels' machine code, and what it predicts
rehearsal.py   all of a run but the launches, without a GPU
contract.py    what the run uses of CuPy, held against the CuPy that is installed

Needs CuPy and NumPy; MXNet is imported by mxnet_timing.py alone. PyTorch, JAX and matplotlib are used where they are.

The GPU (``rnn_ops.backends.cuda.cupy_gpu``), its stand-in (``numpy_gpu``) and the checks that come before the timing
(``rnn_ops.backends.cuda.selftest``) are rnn_ops's own; the training is that of ``rnn-ops train --step cuda``.
"""
