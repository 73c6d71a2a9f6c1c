"""Computing results ahead of time, by threads or on the device, and yielding them in order."""

import collections
import contextlib
import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
NUM_THREADS = min(16, os.cpu_count() or 1)
POLL_SECONDS = 0.1
CLOSE_SECONDS = 2.0  # how long the end of a pool waits for calls that are running


class DaemonThreads:
    """Threads that call functions, as a ThreadPoolExecutor does, but never keep a program running.

    A call may last for ever, as the read of a file on a server that is gone. Then its thread is
    left behind, and ends with the program.

    Args:
        num_threads: The number of threads.
    """

    def __init__(self, num_threads: int) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., R], *arguments: Any) -> futures.Future[R]:
        """Call a function in one of the threads, and return its result as a future."""
        future: futures.Future[R] = futures.Future()
        self._calls.put(functools.partial(call_into, future, function, *arguments))
        return future

    def close(self, last: Callable[[], object] = lambda: None) -> None:
        """Drop the calls that have not begun, and wait up to CLOSE_SECONDS for the others.

        Args:
            last: Called in one of the threads before they end.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        self.submit(last)
        deadline = time.monotonic() + CLOSE_SECONDS
        for _ in self._threads:
            self._calls.put(None)
        # The garbage collector closes an abandoned generator in any thread, also in one of these.
        for thread in set(self._threads) - {threading.current_thread()}:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while call := self._calls.get():
            call()
            del call  # and with it the result, while the thread waits for the next call


def in_daemon_thread(function: Callable[[], R]) -> futures.Future[R]:
    """Call a function in a thread of its own, which never keeps a program running."""
    future: futures.Future[R] = futures.Future()
    threading.Thread(target=call_into, args=(future, function), daemon=True).start()
    return future


def call_into(future: futures.Future[R], function: Callable[..., R], *arguments: Any) -> None:
    """Call a function, and give its result or its error to a future."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)


def wait_for(awaited: Iterable[futures.Future[Any]], while_waiting: Callable[[], None]) -> None:
    """Wait for all futures.

    Args:
        awaited: The futures.
        while_waiting: Called several times a second until they are done; it may raise to end the
            wait.
    """
    awaited = list(awaited)
    while futures.wait(awaited, POLL_SECONDS).not_done:
        while_waiting()


def in_background(
    items: Generator[T, None, None], while_waiting: Callable[[], None]
) -> Generator[T, None, None]:
    """Yield the items, each taken by a thread while the caller uses the item before it.

    So the wait for an item can be ended, whatever the computation of the item waits for.

    Args:
        items: A generator, which runs and is closed in the thread.
        while_waiting: As in `wait_for`, while the caller waits for an item.
    """

    def take() -> list[T]:
        return list(itertools.islice(items, 1))

    thread = DaemonThreads(1)
    try:
        taken = thread.submit(take)
        while True:
            wait_for([taken], while_waiting)
            if not (item := taken.result()):
                return
            taken = thread.submit(take)
            yield from item
    finally:
        thread.close(last=items.close)


def newest(
    items: Generator[T, None, None], size: int, while_waiting: Callable[[], None]
) -> Generator[T, None, None]:
    """Yield the items that a thread takes as they come, of which the oldest are dropped if need be.

    So a camera's images are taken at its own speed, however slow the caller is.

    Args:
        items: A generator, which runs and is closed in the thread.
        size: The number of items that are kept while the caller uses one.
        while_waiting: As in `wait_for`, while the caller waits for an item.
    """
    recent: collections.deque[T] = collections.deque(maxlen=size)
    arrived, closed = threading.Event(), threading.Event()

    def take() -> None:
        with contextlib.closing(items):
            for item in items:
                recent.append(item)
                arrived.set()
                if closed.is_set():
                    return

    taken = in_daemon_thread(take)
    taken.add_done_callback(lambda _: arrived.set())
    try:
        while recent or not taken.done():
            arrived.clear()
            while recent:
                yield recent.popleft()
            while not (recent or taken.done() or arrived.wait(POLL_SECONDS)):
                while_waiting()
        yield from recent
        taken.result()
    finally:
        closed.set()


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
    workers = DaemonThreads(num_threads)
    pending: collections.deque[futures.Future[R]] = collections.deque()
    try:
        for item in items:
            pending.append(workers.submit(function, item))
            if len(pending) > num_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        workers.close()


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
