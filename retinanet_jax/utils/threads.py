"""Work done ahead by threads, with its results in order."""

import collections
import os
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
NUM_THREADS = min(16, os.cpu_count() or 1)  # decoding and resizing release Python's lock


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_ahead: int = NUM_THREADS,
    num_threads: int = NUM_THREADS,
) -> Generator[R, None, None]:
    """Yield `function(item)` for each item, in order, computed ahead by threads.

    An exception of `function` is raised in its item's place. The items are taken one by one in the
    caller's thread, and so may be endless. The threads end with the iterator.

    Args:
        function: Called in a thread.
        items: The arguments of the calls.
        num_ahead: For how many items the function is computed while the caller uses a result.
        num_threads: The number of threads.
    """
    with futures.ThreadPoolExecutor(num_threads) as workers:
        begun: collections.deque[futures.Future[R]] = collections.deque()
        try:
            for item in items:
                begun.append(workers.submit(function, item))
                if len(begun) > num_ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)


def grouped(
    items: Iterable[T], key: Callable[[T], Hashable], *, size: int, patience: int
) -> Iterator[list[tuple[int, T]]]:
    """Yield lists of `size` items of equal key, each item with its index in `items`.

    Args:
        items: May be endless.
        key: Returns what the items of one list have in common.
        size: The length of the lists. Shorter at the end, and where `patience` runs out.
        patience: After how many later items, counted from its first one, a list is yielded as it
            is.
    """
    waiting: dict[Hashable, list[tuple[int, T]]] = {}
    for index, item in enumerate(items):
        item_key = key(item)
        waiting.setdefault(item_key, []).append((index, item))
        if len(waiting[item_key]) == size:
            yield waiting.pop(item_key)
        oldest = next(iter(waiting), None)  # a dict keeps the order in which its keys were added
        if oldest in waiting and index - waiting[oldest][0][0] >= patience:
            yield waiting.pop(oldest)
    yield from waiting.values()


def in_order(groups: Iterable[list[tuple[int, T]]]) -> Iterator[T]:
    """Yield the items of all groups in the order of their indices, which count from 0."""
    waiting: dict[int, T] = {}
    next_index = 0
    for group in groups:
        waiting.update(group)
        while next_index in waiting:
            yield waiting.pop(next_index)
            next_index += 1


def one_in_flight(started: Iterable[T]) -> Iterator[T]:
    """Yield each item only after the next one has been taken from `started`.

    Taking an item starts its computation on the device, without waiting for the result. So the
    device computes the next item while the caller reads the result of the current one.
    """
    waiting: collections.deque[T] = collections.deque()
    for item in started:
        yield from waiting
        waiting.clear()
        waiting.append(item)
    yield from waiting
