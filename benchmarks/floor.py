"""The floor: the fewest floating-point operations that give the results. Divided by the processor's measured peak, its rate of
multiply-adds in registers, they give the time that nobody can beat.

A multiply-add counts as two. Tokens need no product with Wxh, forward (a row of Wxh) or backward (a sum of rows);
additions, tanh and the softmax are left out, so the floor is never too high.
"""

FORMULA = ("2·T·B·H·(H [+ I if dense]) forward, 3 times that forward+backward; in a training step 3·2·T·B·H·V more for "
           "the output layer")


def forward(shape):
    """Products h·Whh and, for dense input, x·Wxh."""
    return 2 * shape.T * shape.B * shape.H * (shape.H + (0 if shape.tokens else shape.I))


def forward_backward(shape):
    """The same twice more: the gradients of h (and x), and those of Whh (and Wxh)."""
    return 3 * forward(shape)


def training_step(shape):
    """The recurrence and the output layer (H, V) with V = I, both ways."""
    return forward_backward(shape) + 3 * 2 * shape.T * shape.B * shape.H * shape.I


def multiply_adds(count):
    """So many in registers."""
    return 2 * count


def gemm(n):
    """One n×n by n×n product."""
    return 2 * n ** 3
