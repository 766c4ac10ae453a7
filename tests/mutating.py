"""Bytes that are nearly the original: hypothesis strategies for whoever reads what strangers send."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to four slices replaced."""
    data = original
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 4) | st.integers(0, len(data)))
        data = data[:start] + draw(st.binary(max_size=8) | st.binary(max_size=100)) + data[start + removed :]
    return data


@st.composite
def bit_flips(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with one to three bits flipped."""
    data = bytearray(original)
    for bit in draw(st.sets(st.integers(0, len(data) * 8 - 1), min_size=1, max_size=3)):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)
