"""How fast, against whom, and how close to the floor: ``rnn-ops bench --device cpu|cuda``.

The problem
problems.py     shapes, random inputs, the float64 truth
floor.py        how many floating-point operations that takes at least; gpu_floor.py: how many cycles on a GPU

The providers
providers.py    of the recurrence: our kernel and operators, MXNet, PyTorch, JAX, onnxruntime, NumPy; and the yardsticks
trainers.py     of the whole training step
gpu_providers.py  on a GPU: our variants, torch.nn.RNN (cuDNN)
jax_scan.py, onnx_rnn.py       how two of them are written
gpu_mxnet.py, gpu_training.py  on a GPU: MXNet's arrays; the tutorial's 2,000 epochs

The clock
clock.py        by the wall, and by a GPU's events
measure.py      interleaved rounds over worker processes (worker.py: one for each library; memory.py: the memory of its calls)
gpu_measure.py  interleaved rounds on a GPU, in a part's process

The result
report.py       its format, tables and files; grid.py: those of a grid of shapes; gpu_report.py: those of a GPU
chart.py, heatmap.py  its pictures
environment.py  where it ran

A run on a GPU, in parts with a process and an end each
gpu_run.py      the parent; gpu_parts.py: the parts in order of worth; gpu_work.py: their work; folder.py: their results
launches.py     the launches of a call, written down without a GPU
microbench.py, microbench.cu   each thing that a step waits for, alone: st.async, barriers, shared memory
rehearsal.py    all of a run but the launches, without a GPU; contract.py: the names that it uses of CuPy

call_cost.py    the time that a call adds to the kernel
rungs.py, ladder.py, profile.py  the training step from the tutorial's loop to ours, edit by edit, and where its time goes
machine_code/   a model that predicts cycles; it times nothing
cli.py, __main__.py, bench_recurrence.py  the command; the same providers under pytest-benchmark

A run on a GPU needs CuPy and NumPy. PyTorch, JAX, MXNet and matplotlib are used if they are installed.
"""
