"""Work done by threads, in order."""

import collections
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
WORKERS = min(16, os.cpu_count() or 1)  # threads; decoding and resizing leave Python's lock


def ahead(function: Callable[[T], R], items: Iterable[T], *, count: int = WORKERS) -> Iterator[R]:
    """`function` of each item, in order, made by threads for up to `count` items ahead.

    The items themselves are taken one by one, in the thread of who asks.
    """
    with futures.ThreadPoolExecutor(WORKERS) as workers:
        begun: collections.deque[futures.Future[R]] = collections.deque()
        try:
            for item in items:
                begun.append(workers.submit(function, item))
                if len(begun) > count:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            workers.shutdown(cancel_futures=True)


def grouped(
    items: Iterable[T], kind: Callable[[T], Hashable], *, size: int, patience: int
) -> Iterator[list[tuple[int, T]]]:
    """Lists of `size` items of one kind, each with its number in `items`.

    Shorter where `patience` others have come since the list's first, and at the end.
    """
    waiting: dict[Hashable, list[tuple[int, T]]] = {}
    for number, item in enumerate(items):
        own = kind(item)
        waiting.setdefault(own, []).append((number, item))
        if len(waiting[own]) == size:
            yield waiting.pop(own)
        oldest = next(iter(waiting), None)  # a dict keeps the order in which its keys came
        if oldest in waiting and number - waiting[oldest][0][0] >= patience:
            yield waiting.pop(oldest)
    yield from waiting.values()


def in_order(groups: Iterable[list[tuple[int, T]]]) -> Iterator[T]:
    """What the groups hold, by its numbers, which count from 0."""
    held: dict[int, T] = {}
    following = 0
    for group in groups:
        held.update(group)
        while following in held:
            yield held.pop(following)
            following += 1
