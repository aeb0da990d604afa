"""Who is faster, by how much, and how close to the floor: ``rnn-ops bench``.

problems.py   what is computed: shapes, random inputs, the float64 truth
floor.py      how many floating-point operations that takes at least
providers.py  who computes the recurrence: our kernel and operators, MXNet, PyTorch, JAX, onnxruntime, NumPy; and the yardsticks
jax_scan.py, onnx_rnn.py, numpy_reference.py       how three of them are written
trainers.py   who computes the whole training step
rungs.py      the training step from the tutorial's loop to ours, edit by edit; ladder.py times them
worker.py     one provider in a process of its own; memory.py: what its calls need
measure.py    interleaved rounds over all workers, and their statistics
report.py, chart.py, grid.py, heatmap.py      tables, files and the picture; the same of a grid of shapes
environment.py, cli.py                        where it ran, the command line
bench_recurrence.py                           the same providers under pytest-benchmark
"""
