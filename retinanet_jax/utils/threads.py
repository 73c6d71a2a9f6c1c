"""Computing results ahead of time, by threads or on the device, and yielding them in order."""

import collections
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
NUM_THREADS = min(16, os.cpu_count() or 1)


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_ahead: int = NUM_THREADS,
    num_threads: int = NUM_THREADS,
) -> Generator[R, None, None]:
    """Yield `function(item)` for each item, in order, computed ahead by threads.

    An exception of `function` is raised when its result would be yielded. The threads end with the
    iterator.

    Args:
        function: Called in a thread. It should release Python's lock, as decoding and resizing do.
        items: The arguments of the calls. There may be infinitely many: they are taken one at a
            time, in the caller's thread.
        num_ahead: The number of results that are computed ahead while the caller uses one.
        num_threads: The number of threads.
    """
    with futures.ThreadPoolExecutor(num_threads) as workers:
        pending: collections.deque[futures.Future[R]] = collections.deque()
        try:
            for item in items:
                pending.append(workers.submit(function, item))
                if len(pending) > num_ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)


def grouped(
    items: Iterable[T], key: Callable[[T], Hashable], *, size: int, patience: int
) -> Iterator[list[tuple[int, T]]]:
    """Group items of equal key into lists, each item with its index in `items`.

    Args:
        items: The items; there may be infinitely many.
        key: Returns the key of an item.
        size: The length of a complete list.
        patience: An incomplete list is yielded when this many items have followed its first item.

    Yields:
        Lists of (index, item), with indices in ascending order. Incomplete lists also remain at the
        end of `items`.
    """
    waiting: dict[Hashable, list[tuple[int, T]]] = {}
    for index, item in enumerate(items):
        item_key = key(item)
        waiting.setdefault(item_key, []).append((index, item))
        if len(waiting[item_key]) == size:
            yield waiting.pop(item_key)
        oldest = next(iter(waiting), None)  # a dict has the order in which its keys were added
        if oldest in waiting and index - waiting[oldest][0][0] >= patience:
            yield waiting.pop(oldest)
    yield from waiting.values()


def in_order(groups: Iterable[list[tuple[int, T]]]) -> Iterator[T]:
    """Yield the items of all groups in the order of their indices, which start from 0."""
    waiting: dict[int, T] = {}
    next_index = 0
    for group in groups:
        waiting.update(group)
        while next_index in waiting:
            yield waiting.pop(next_index)
            next_index += 1


def one_in_flight(started: Iterable[T]) -> Iterator[T]:
    """Yield each item only after the next one has been taken from `started`.

    Taking an item starts its computation on the device without waiting for the result. The device
    thus computes the next item while the caller reads the result of the current item.
    """
    waiting: collections.deque[T] = collections.deque()
    for item in started:
        yield from waiting
        waiting.clear()
        waiting.append(item)
    yield from waiting
