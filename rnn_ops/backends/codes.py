"""The numbers that Python and the compiled code agree on. They are written down in kernels/codes.h.

tests/test_codes.py compares these with the header, and the layouts of all structures that cross the border.
"""
import numpy as np

DTYPES = {np.dtype("float32"): 0, np.dtype("float64"): 1}
ACTIVATIONS = {"tanh": 0, "relu": 1}
FORWARD, BACKWARD = range(2)
OK, BAD_TOKEN, NO_MEMORY, BAD_THREADS, BAD_SIMD = range(5)
REGIONS = ("inputs", "state", "Wxh", "Whh", "bh", "outputs", "last_state", "doutputs", "dlast_state",
          "dinputs", "dstate", "dWxh", "dWhh", "dbh", "workspace")
ARGUMENTS = REGIONS[:5]
GRADIENTS = REGIONS[9:14]  # of the arguments
COMPUTE, ZEROS, NANS = -1, 0, 0xff
