"""How far a result may be from the truth: the error of a tensor and what float32 is allowed. Needs NumPy alone."""
import math

import numpy as np

# float32 rounds differently in every order of summation, so nothing can be held to less than what float32 costs another
# evaluation of the same arguments: three times that, and a floor for where the other is right by luck. The floor: 4 ulp in
# a tanh near 1 are 2 eps, thus 4 eps in the derivative 1 - h², a relative 16 eps where that is 1/4; and once more for the
# sums.
FLOAT32_FACTOR = 3
FLOAT32_FLOOR = 32 * float(np.finfo(np.float32).eps)


def relative_error(a, b):
    """max|a - b| / max|b|, b the truth: relative to its largest element, so that those near zero do not count for more
    than they weigh. Where b is all zero, 0 if a is too, else infinite. Infinite where either has what is not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    difference, scale = np.abs(a - b).max(), np.abs(b).max()
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / scale)
