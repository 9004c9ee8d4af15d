"""Iterating in a thread of its own, ahead of whoever consumes the items."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class Prefetch(Iterator[_T]):
    """The items of an iterator, in its order, at most `depth` of them made before they are asked for.

    An error is raised where its item would have come, as often as it is asked for. `close` ends the thread, and so does
    dropping this object.
    """

    def __init__(self, items: Iterator[_T], depth: int, name: str = "prefetch") -> None:
        self._ready: queue.SimpleQueue[_T | _Raised] = queue.SimpleQueue()
        self._room, stop = threading.Semaphore(depth), threading.Event()
        # The thread knows nothing of this object, so that dropping it ends the thread; so does the interpreter's exit,
        # before which a daemon thread must be out of torch.
        work = (items, self._ready, self._room, stop)
        thread = threading.Thread(target=_work, args=work, name=name, daemon=True)
        self._end = weakref.finalize(self, _join, thread, self._room, stop)
        thread.start()

    def __next__(self) -> _T:
        item = self._ready.get()
        if isinstance(item, _Raised):
            self._ready.put(item)
            raise item.error
        self._room.release()
        return item

    def close(self) -> None:
        """End the thread, after the item it is at; what was made already is still handed out."""
        self._end()
        self._ready.put(_Raised(StopIteration()))


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _work(
    items: Iterator[_T],
    ready: queue.SimpleQueue[_T | _Raised],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    while room.acquire() and not stop.is_set():
        try:
            ready.put(next(items))
        except BaseException as error:  # whatever it is, the end too, it belongs to whoever waits for the item
            ready.put(_Raised(error))
            return


def _join(thread: threading.Thread, room: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    room.release()
    if thread is not threading.current_thread():  # garbage may be collected in any thread
        thread.join()
