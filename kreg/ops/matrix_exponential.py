"""The exponential of small matrices."""

from keras import ops

from kreg.ops.coordinates import COORDINATE_DTYPE
from kreg.ops.linear import small_product

#: Terms of the Taylor series of exp(A / 2^5): enough where the norm of A is up to about 16.
_TERMS = 8

#: Squarings of exp - 1, which keep what is small against 1, then squarings of exp, which keep
#: what is small against the largest: together the five that undo the division by 2^5.
_SQUARINGS = 3, 2


def matrix_exponential(matrix):
    """exp(A) = sum_k A^k / k!, by squaring exp(A / 2^5) five times.

    Relative errors stay below 1e-5 up to a norm of 16 and grow beyond it. exp(0) is the
    identity, to the last bit (Moler and Van Loan, SIAM Review 2003).

    Args:
        matrix: ``(..., n, n)``, n a few.

    Returns:
        ``(..., n, n)``, float32.

    Raises:
        ValueError: if the last two axes differ in length.
    """
    matrix = ops.cast(matrix, COORDINATE_DTYPE)
    if len(matrix.shape) < 2 or matrix.shape[-1] is None or matrix.shape[-2] != matrix.shape[-1]:
        raise ValueError(
            f"Expected square matrices, (..., n, n). Received: shape {tuple(matrix.shape)}."
        )
    one = ops.eye(matrix.shape[-1], dtype=COORDINATE_DTYPE)
    small = matrix / 2 ** sum(_SQUARINGS)
    series = one
    for k in range(_TERMS, 1, -1):
        series = one + small_product(small, series) / k
    excess = small_product(small, series)  # exp - 1
    for _ in range(_SQUARINGS[0]):
        excess = 2 * excess + small_product(excess, excess)
    power = one + excess
    for _ in range(_SQUARINGS[1]):
        power = small_product(power, power)
    return power
