"""How wide a window is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.handling.windows import (
    AHEAD,
    LONGEST_PATIENCE,
    MOST_BYTES,
    PATIENCE,
    TOO_LONG,
    WIDEST,
    Window,
)

LOOKS = st.lists(
    st.fixed_dictionaries(
        {
            "rate": st.floats(0, 1e6),
            "was_full": st.booleans(),
            "bytes_each": st.floats(0, 1e9),
            "longest_wait": st.floats(0, 2),
        }
    ),
    min_size=1,
    max_size=30,
)
QUICK: dict[str, Any] = {"rate": 4000.0, "was_full": True, "bytes_each": 100.0, "longest_wait": 0.0}
HUNG = QUICK | {"rate": 0.0, "longest_wait": TOO_LONG + 0.01}


def seen(window: Window, now: float, look: dict[str, Any]) -> int:
    window.size = window.after(now, **look)
    return window.size


@given(st.integers(1, 3000), LOOKS)
def test_it_is_never_below_what_it_began_with_nor_beyond_what_was_measured(
    narrowest: int, looks: list[dict[str, Any]]
) -> None:
    window = Window(narrowest)
    allowed = 0.0
    for number, look in enumerate(looks):
        before = window.size
        size = seen(window, 0.05 * number, look)
        assert narrowest <= size <= max(narrowest, WIDEST)
        if size > before:
            assert look["was_full"]
            allowed = min(look["rate"] * AHEAD, MOST_BYTES / look["bytes_each"] if look["bytes_each"] else WIDEST)
            assert size - narrowest <= allowed
        if look["longest_wait"] > TOO_LONG:
            assert size == narrowest


def test_large_bodies_keep_it_narrow() -> None:
    assert Window(50).after(0, **QUICK | {"bytes_each": float(MOST_BYTES // 100)}) == 150
    assert Window(50).after(0, **QUICK | {"bytes_each": float(MOST_BYTES)}) == 50


def test_after_something_waited_too_long_it_grows_again_with_patience_longer_each_time() -> None:
    window, now, patience = Window(50), 0.0, PATIENCE
    for _ in range(10):
        assert seen(window, now, QUICK) == 850
        assert seen(window, now, HUNG) == 50
        assert seen(window, now + patience - 0.1, QUICK) == 50
        now += patience
        patience = min(2 * patience, LONGEST_PATIENCE)
    assert patience == LONGEST_PATIENCE


def test_what_waits_in_a_window_that_was_never_wider_costs_no_patience() -> None:
    window = Window(50)
    assert seen(window, 0, HUNG) == 50
    assert seen(window, 0.05, QUICK) == 850
