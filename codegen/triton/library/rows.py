"""What row kernels do with tiles [groups, columns]: norms, reductions and rankings along the columns.

Places beyond the end of a row hold the neutral element: 0 for norms, minus infinity for the softmaxes and maxima,
infinity for minima. Sums of a row have one order, which its length and the kernel's warps fix.
"""

import triton
import triton.language as tl

from llmc.codegen.triton.library.ranking import rank, ranked_index, ranked_value


@triton.jit
def normalised(x, SIZE: tl.constexpr, EPS: tl.constexpr):
    """x over the square root of its mean square plus EPS; rows have SIZE elements."""
    squares = tl.sum(x * x, axis=1, keep_dims=True)
    return x * tl.rsqrt(squares / SIZE + EPS)


@triton.jit
def standardised(x, live, SIZE: tl.constexpr, EPS: tl.constexpr):
    """x less its mean, over the square root of its variance plus EPS; `live` says which places are elements."""
    mean = tl.sum(x, axis=1, keep_dims=True) / SIZE
    centred = tl.where(live, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / SIZE
    return centred * tl.rsqrt(variance + EPS)


@triton.jit
def amax(x):
    """The greatest element, NaN if any is: [groups, 1]."""
    broken = tl.max((x != x).to(tl.int32), axis=1, keep_dims=True)
    return tl.where(broken != 0, float("nan"), tl.max(x, axis=1, keep_dims=True))


@triton.jit
def amin(x):
    """The least element, NaN if any is: [groups, 1]."""
    broken = tl.max((x != x).to(tl.int32), axis=1, keep_dims=True)
    return tl.where(broken != 0, float("nan"), tl.min(x, axis=1, keep_dims=True))


@triton.jit
def softmax(x):
    """e^x over its sum."""
    power = tl.exp(x - amax(x))
    return power / tl.sum(power, axis=1, keep_dims=True)


@triton.jit
def log_softmax(x):
    """x less the logarithm of the sum of e^x."""
    shifted = x - amax(x)
    return shifted - tl.log(tl.sum(tl.exp(shifted), axis=1, keep_dims=True))


@triton.jit
def ranks(x, live):
    """Their ranks in their rows, for places that are elements; others get the least."""
    column = tl.arange(0, x.shape[1])[None, :]
    return tl.where(live, rank(x, column), -0x8000000000000000)


@triton.jit
def store_largest(ranked, values, columns, STEP: tl.constexpr, live, K: tl.constexpr):
    """Store the K elements of the greatest ranks in descending order, STEP apart, and their columns.

    values, columns: pointers [groups, 1]; live: which groups are stored.
    """
    for place in tl.static_range(K):
        best = tl.max(ranked, axis=1, keep_dims=True)
        tl.store(values + place * STEP, ranked_value(best), mask=live)
        tl.store(columns + place * STEP, ranked_index(best), mask=live)
        ranked = tl.where(ranked == best, -0x8000000000000000, ranked)
