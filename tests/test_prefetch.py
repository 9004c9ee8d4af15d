"""Iterating in a thread: the same items in order, errors where they belong, and no thread that stays behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairface_synth.prefetch import Prefetch


def _running() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def _until(condition: Callable[[], bool]) -> bool:
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


@given(st.lists(st.integers(), max_size=20), st.integers(1, 5))
def test_the_same_items_in_order(items: list[int], depth: int) -> None:
    assert list(Prefetch(iter(items), depth)) == items


def test_items_are_made_in_another_thread_and_no_more_than_depth_ahead() -> None:
    made: list[str] = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(threading.current_thread().name)
            yield i

    prefetch = Prefetch(items(), 3)
    for taken in range(4):
        assert _until(lambda taken=taken: len(made) == taken + 3)
        time.sleep(0.02)  # time to make one too many
        assert len(made) == taken + 3
        assert next(prefetch) == taken
    assert set(made) == {"prefetch"}
    prefetch.close()


def test_an_error_comes_where_its_item_would_have_and_stays() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyError("third")

    prefetch = Prefetch(items(), 5)
    assert [next(prefetch), next(prefetch)] == [1, 2]
    for _ in range(3):
        with pytest.raises(KeyError, match="third"):
            next(prefetch)


def test_the_end_stays() -> None:
    prefetch = Prefetch(iter([1]), 2)
    assert [*prefetch, *prefetch] == [1]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_the_thread_ends_with_close(taken: int) -> None:
    before = _running()
    prefetch = Prefetch(iter(range(10**9)), 2)
    assert [next(prefetch) for _ in range(taken)] == list(range(taken))
    assert _running() == before + 1
    prefetch.close()
    prefetch.close()
    assert _running() == before
    rest = list(prefetch)  # what was made before; then it ends and does not hang
    assert rest == list(range(taken, taken + len(rest)))
    assert len(rest) <= 2


def test_the_thread_ends_when_nobody_holds_it() -> None:
    before = _running()
    prefetch = Prefetch(iter(range(10**9)), 2)
    assert next(prefetch) == 0
    del prefetch
    gc.collect()
    assert _until(lambda: _running() == before)
