"""The kernels' machine code: a model that predicts how many cycles a step takes. It times nothing and needs no GPU.

sass.py        from a cubin to instructions, by nvdisasm
paths.py       the loop over the steps, and the path that a warp takes through it
schedule.py    that path through a simulated scheduler: cycles
report.py      all of it together; ``python -m benchmarks.machine_code`` prints it
tools.py       the commands' parser, which sees that nvdisasm and NVRTC are there
predict.py     writes rnn_ops/backends/cuda/predictions.json, by which a kernel is chosen
"""
