"""Are the CUDA kernels right on this GPU? ``rnn-ops check --device cuda`` asks this, and the benchmark before it times.

checks.py     every kernel against float64, on a GPU or a stand-in
run.py        each family of kernels in a process of its own, for the command
sanitizer.py  a small part of the checks under NVIDIA's compute-sanitizer
__main__.py   the process that compute-sanitizer watches

Needs CuPy and NumPy; MXNet is not imported.
"""
