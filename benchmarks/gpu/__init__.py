"""For a GPU host. ``python -m benchmarks.gpu``: are the CUDA kernels right, and how fast are they?

__main__.py    the command line and the order of things
machine.py     the GPU: its facts, arrays, waiting, timing by events; imports CuPy
checks.py      every kernel against float64, on a GPU or on whatever else can run the kernels
sanitizer.py   a small part of the checks under NVIDIA's compute-sanitizer
cells.py       what is timed: shapes, and the floor of each by arithmetic
providers.py   who is timed: our variants, torch.nn.RNN (cuDNN), and FlashRNN where it is installed
timing.py      interleaved rounds over all providers of a shape, and their statistics
training.py    the tutorial's whole training, checked and timed
tables.py, picture.py   Markdown for the README, and the chart

Needs CuPy and NumPy; MXNet is not imported. PyTorch and matplotlib are used where they are.

``python -m benchmarks.gpu.mxnet_gpu``, where mxnet-cu112 is installed: the operators on MXNet's own GPU arrays.

mxnet_gpu.py     the command: a process for each check
mxnet_checks.py  values, gradients, order, memory and cost of the operators, mx.nd.RNN (cuDNN) beside them
"""
