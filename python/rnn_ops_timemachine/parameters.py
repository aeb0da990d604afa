"""The parameters of the character model as NumPy arrays by name: shapes, first values, a check. Needs NumPy alone.

Shapes: H hidden units, V symbols in the vocabulary.
"""
from typing import Dict, Tuple

import numpy as np

NAMES = ("Wxh", "Whh", "bh", "Why", "by")


def shapes(vocabulary_size: int, hidden_size: int) -> Dict[str, Tuple[int, ...]]:
    """The shape of each parameter by its name, in the order of NAMES."""
    V, H = vocabulary_size, hidden_size
    return dict(zip(NAMES, ((V, H), (H, H), (H,), (H, V), (V,))))


def initialise(vocabulary_size: int, hidden_size: int, seed: int, dtype="float32") -> Dict[str, np.ndarray]:
    """Draw parameters from N(0, 0.01²), as the tutorial does.

    The numbers depend on the seed alone: float32 gets the rounded float64 ones, and no global generator is touched.
    """
    generator = np.random.default_rng(seed)
    return {name: (0.01 * generator.standard_normal(shape)).astype(dtype)
            for name, shape in shapes(vocabulary_size, hidden_size).items()}


def finite(arrays: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The arrays as they came; a FloatingPointError if one holds NaN or infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FloatingPointError(f"training has diverged: {name} is no longer finite")
    return arrays
