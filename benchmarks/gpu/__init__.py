"""For a GPU host. ``python -m benchmarks.gpu``: are the CUDA kernels right, and how fast are they?

__main__.py    the command line
run.py         the parent: the parts one after the other, each a process with an end, and what came of each
parts.py       the parts in order of worth, what they are expected to take, what fits into the minutes
work.py        what each part does in its process
folder.py      the results: a JSON file for each part and each timed cell, written the moment it is known
machine.py     the GPU: its facts, arrays, waiting, timing by events; imports CuPy
numpy_machine.py  NumPy in its place, for the rehearsal and the tests
checks.py      every kernel against float64, on a GPU or on whatever else can run the kernels
sanitizer.py   a small part of the checks under NVIDIA's compute-sanitizer
cells.py       what is timed: shapes, and the floor of each by arithmetic
providers.py   who is timed: our variants, torch.nn.RNN (cuDNN), and FlashRNN where it is installed
jax_peer.py    jax.lax.scan, in a process of its own
timing.py      interleaved rounds over all providers of a shape, and their statistics
launches.py    what the launcher launches for a call, written down without a GPU
microbench.py, microbench.cu   what a step waits for, each thing alone: st.async, barriers, shared memory
training.py    the tutorial's whole training, checked and timed
tables.py, picture.py   Markdown for the README, and the chart
sass.py, paths.py, schedule.py, machine_code.py, predict.py   the kernels' machine code, and what it predicts
rehearsal.py   all of a run but the launches, without a GPU
contract.py    what the run uses of CuPy, held against the CuPy that is installed

Needs CuPy and NumPy; MXNet is not imported. PyTorch, JAX and matplotlib are used where they are.

``python -m benchmarks.gpu.mxnet_gpu``, where mxnet-cu112 is installed: the operators on MXNet's own GPU arrays.

mxnet_gpu.py     the command: a process for each check
mxnet_checks.py  values, gradients, order, memory and cost of the operators, mx.nd.RNN (cuDNN) beside them
"""
