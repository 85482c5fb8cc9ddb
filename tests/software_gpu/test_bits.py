"""Instructions on bits, each against its definition in Python's integers."""

import numpy as np
import pytest
from support.software_numbers import evaluate

_random = np.random.default_rng(1)
WORDS = [_random.integers(0, 2**32, 512, np.uint32) for _ in range(3)]
LONG = [_random.integers(0, 2**64, 512, np.uint64) for _ in range(2)]
SMALL = [_random.integers(0, 70, 512, np.uint32) for _ in range(2)]


def test_prmt_picks_bytes_and_their_signs() -> None:
    found = evaluate("prmt.b32", *WORDS)
    for a, b, selector, result in zip(*WORDS, found, strict=True):
        source = int(a).to_bytes(4, "little") + int(b).to_bytes(4, "little")
        picked = [int(selector) >> (4 * place) & 15 for place in range(4)]
        wanted = [(255 if source[at & 7] > 127 else 0) if at & 8 else source[at & 7] for at in picked]
        assert int(result).to_bytes(4, "little") == bytes(wanted)


@pytest.mark.parametrize("table", [0xC0, 0xEA, 0x96, 0x0C, 0xE4])
def test_lop3_looks_each_bit_up(table: int) -> None:
    found = evaluate("lop3.b32", *WORDS, np.full(512, table, np.uint32))
    bits = [np.unpackbits(word.view(np.uint8)) for word in (*WORDS, found)]
    np.testing.assert_array_equal(table >> (4 * bits[0] + 2 * bits[1] + bits[2]) & 1, bits[3])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfe_extracts_a_field_with_its_sign(kind: str) -> None:
    bits, values = int(kind[1:]), WORDS[0] if kind.endswith("32") else LONG[0]
    found = evaluate(f"bfe.{kind}", values, *SMALL)
    for value, start, length, result in zip(values, *SMALL, found, strict=True):
        start, length = int(start), int(length)
        sign = int(value) >> min(start + length - 1, bits - 1) & 1 if kind[0] == "s" and length else 0
        field = [int(value) >> at & 1 if at < bits else sign for at in range(start, start + length)]
        wanted = sum(bit << at for at, bit in enumerate((field + [sign] * bits)[:bits]))
        assert int(result) == wanted, (hex(value), start, length)


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_bfi_inserts_a_field(kind: str) -> None:
    bits, values = int(kind[1:]), WORDS if kind == "b32" else LONG
    found = evaluate(f"bfi.{kind}", values[0], values[1], *SMALL)
    for field, value, start, length, result in zip(values[0], values[1], *SMALL, found, strict=True):
        places = range(int(start), min(int(start) + int(length), bits))
        wanted = int(value)
        for at in places:
            wanted = wanted & ~(1 << at) | (int(field) >> (at - int(start)) & 1) << at
        assert int(result) == wanted


def test_funnel_shifts() -> None:
    low, high, _ = WORDS
    for way, mode in (("l", "wrap"), ("l", "clamp"), ("r", "wrap"), ("r", "clamp")):
        found = evaluate(f"shf.{way}.{mode}.b32", low, high, SMALL[0])
        for a, b, count, result in zip(low, high, SMALL[0], found, strict=True):
            by = int(count) % 32 if mode == "wrap" else min(int(count), 32)
            both = int(a) | int(b) << 32
            assert int(result) == ((both << by >> 32 if way == "l" else both >> by) & 0xFFFFFFFF)


def test_counts_of_bits() -> None:
    values = np.concatenate([WORDS[0] >> SMALL[0] % 32, np.array([0, 1, 2**31, 2**32 - 1], np.uint32)])
    texts = [f"{value:032b}" for value in values]
    np.testing.assert_array_equal(evaluate("popc.b32", values), [text.count("1") for text in texts])
    np.testing.assert_array_equal(evaluate("clz.b32", values), [32 - len(text.lstrip("0")) for text in texts])
    np.testing.assert_array_equal(evaluate("brev.b32", values), [int(text[::-1], 2) for text in texts])
    highest = [int(value).bit_length() - 1 & 0xFFFFFFFF for value in values]
    np.testing.assert_array_equal(evaluate("bfind.u32", values), highest)


def test_dp4a() -> None:
    signs = {"s32": np.int8, "u32": np.uint8}
    for first, a in signs.items():
        for second, b in signs.items():
            found = evaluate(f"dp4a.{first}.{second}", *WORDS)
            left, right = (
                word.view(kind).reshape(-1, 4).astype(np.int64) for word, kind in zip(WORDS[:2], (a, b), strict=True)
            )
            wanted = WORDS[2] + (left * right).sum(1)
            np.testing.assert_array_equal(found, wanted.astype(np.uint32))
