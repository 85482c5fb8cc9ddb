"""The first and the last key that a query can see, read off a mask formula, so that kernels skip whole blocks of keys.

Conjuncts that are understood are `k <= q + c` and `q - k < w`; any other only costs the skipping, not the result.
"""

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class MaskBounds:
    """What is known of the keys that the query at position q sees, in any head."""

    before: tuple[int, ...]
    """For each of these, no key before q - it."""
    after: tuple[int, ...]
    """For each of these, no key after q + it."""
    exact: bool
    """Whether every key within all bounds is seen."""


def mask_bounds(mask: str) -> MaskBounds:
    """The bounds of a predicate, in the order of its conjuncts."""
    before: list[int] = []
    after: list[int] = []
    conjuncts = [part for part in _conjuncts(mask) if ast.unparse(part) != "True"]
    for part in conjuncts:
        if not (isinstance(part, ast.Compare) and len(part.ops) == 1):
            continue
        left, right = ast.unparse(part.left), ast.unparse(part.comparators[0])
        if left == "k" and isinstance(part.ops[0], ast.LtE) and right == "q":
            after.append(0)
        elif left == "k" and isinstance(part.ops[0], ast.LtE) and right.startswith("q ") and right[4:].isdecimal():
            after.append(int(right[2] + right[4:]))
        elif left == "q - k" and isinstance(part.ops[0], ast.Lt) and right.isdecimal():
            before.append(int(right) - 1)
    return MaskBounds(tuple(before), tuple(after), len(before) + len(after) == len(conjuncts))


def _conjuncts(mask: str) -> list[ast.expr]:
    stack, found = [ast.parse(mask, mode="eval").body], []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
            stack += [node.right, node.left]
        else:
            found.append(node)
    return found
