"""The watch that each host of a run keeps over the others: errors, lost hosts, stops, the end."""

import socket
import threading
import time
import traceback
from collections.abc import Mapping
from signal import Signals
from typing import NoReturn

from retinanet_jax.hosts.agreement import StopAgreement
from retinanet_jax.hosts.store import Store
from retinanet_jax.utils.ending import in_seconds, leave, print_message
from retinanet_jax.utils.progress import one_line

POLL_SECONDS = 0.5  # between two looks at what the other hosts have written
MAX_BEAT_SECONDS = 2.0  # between two signs of life
LAST_SECONDS = 5.0  # that process 0, which holds the store, waits at its end for the others
MAX_LENGTH = 500  # characters of the error of another host


class Hosts:
    """All hosts of a run, as one of them sees them.

    A thread looks at what the others write, and ends this process if one of them has failed or is
    lost, whatever the main thread waits for. Process 0, which holds the store, ends last.

    Args:
        store: The store of the hosts.
        index: The index of this host.
        count: The number of hosts.
        timeout: A host of which nothing was heard for this many seconds is lost.

    Attributes:
        agreement: The point at which all hosts stop after a signal or an error of the data.
        is_first: Whether this is process 0, which prints for all.
        ends_together: Whether all hosts have saved, and end because of the error of one of them.
    """

    def __init__(self, store: Store, index: int, count: int, timeout: float) -> None:
        self.agreement = StopAgreement(store, index, count)
        self.is_first = index == 0
        self.ends_together = False
        self._store, self._index, self._count, self._timeout = store, index, count, timeout
        self._names = {index: socket.gethostname()}
        self._beats: dict[int, tuple[str, float]] = {}  # the latest sign of life, and when it came
        self._contact = time.monotonic()  # when the store has answered
        self._is_ending = threading.Event()  # what the others do no longer matters

    def start(self) -> None:
        """Start to watch the other hosts."""
        threading.Thread(target=self._watch, name="hosts", daemon=True).start()
        if not self.is_first:
            threading.Thread(target=self._watch_store, name="store", daemon=True).start()

    def name(self, index: int) -> str:
        """Return the index and the name of a host, for messages."""
        return f"host {index} ({self._names.get(index, 'unknown')})"

    def failure(self) -> OSError | None:
        """Return the error of the data of a host that ends the run on all, if there is one."""
        name, error = self.name(self.agreement.by), self.agreement.error
        return OSError(f"{name} failed: {error}") if error else None

    def fail(self, error: Exception | str) -> NoReturn:
        """Print why this host fails, write it for the others, and end this process.

        If another host has failed first, its error ends this process instead. If all hosts end
        together, each has a line of its own, and nothing is written.

        Args:
            error: An exception, which is printed with its traceback, or a line.
        """
        if self.ends_together:
            report(error)
            self.finish(1)
        # The devices of all hosts fail if one is lost, which is known after the timeout.
        is_of_devices = type(error).__name__ == "JaxRuntimeError"
        time.sleep(self._timeout + MAX_BEAT_SECONDS if is_of_devices else 2 * POLL_SECONDS)
        self._is_ending.set()
        self.announce_failure(report(error))
        self._leave(1, others=self._count - 1)

    def announce_failure(self, message: str) -> None:
        """Write why this host fails, which ends the others.

        Args:
            message: The error, in one line.
        """
        self._is_ending.set()
        in_seconds(LAST_SECONDS, lambda: leave(1))  # if the store does not answer
        self._store.set(f"news/failed-{self._index}", f"failed: {message[:MAX_LENGTH]}")

    def finish(self, status: int) -> NoReturn:
        """Wait until all hosts have done their work, then end this process.

        Args:
            status: The exit status of this host. All end with the highest.
        """
        self._store.set(f"news/done-{self._index}", str(status))
        while len(done := self._news_of("done")) < self._count:
            time.sleep(POLL_SECONDS)
        self._leave(max(map(int, done)), others=self._count - 1)

    def lose_store(self) -> None:
        """End this process, because the connection to process 0 has ended; called in a thread."""
        self._end_because(0, "has ended, or the connection to it")

    def _leave(self, status: int, others: int) -> NoReturn:
        """End this process; process 0 ends after the `others`, because it holds the store."""
        self._is_ending.set()
        in_seconds(LAST_SECONDS, lambda: leave(status))
        self._store.set(f"news/left-{self._index}", "")
        while self.is_first and len(self._news_of("left")) < 1 + others:
            time.sleep(POLL_SECONDS / 5)
        leave(status)

    def _news_of(self, topic: str) -> list[str]:
        """Return the texts that the hosts have written about a topic."""
        news = self._store.read("news")
        return [text for key, text in news.items() if key.startswith(f"{topic}-")]

    def _watch(self) -> None:
        """Look at what the others write, in a thread."""
        beat, next_beat = 0, 0.0
        try:
            while not self._is_ending.is_set():
                if time.monotonic() > next_beat:
                    beat, next_beat = beat + 1, time.monotonic() + self._beat_seconds
                    self._store.set(f"alive/{self._index}", f"{beat} {self._names[self._index]}")
                    self._find_lost(self._store.read("alive"))
                self._read(self._store.read("news"))
                self._contact = time.monotonic()
                self._is_ending.wait(POLL_SECONDS)
        except RuntimeError:  # of the connection
            self.lose_store()

    @property
    def _beat_seconds(self) -> float:
        return min(MAX_BEAT_SECONDS, self._timeout / 5)

    def _watch_store(self) -> None:
        """Notice that process 0 does not answer, in a thread."""
        while not self._is_ending.wait(POLL_SECONDS):
            if time.monotonic() - self._contact > self._timeout:
                self._end_because(0, self._silence)

    @property
    def _silence(self) -> str:
        return f"is lost: it has not answered for {self._timeout:g} s (--host_timeout)"

    def _find_lost(self, alive: Mapping[str, str]) -> None:
        """End this process if a host has given no sign of life for too long."""
        now = time.monotonic()
        for index, text in ((int(key), text) for key, text in alive.items()):
            self._names[index] = text.partition(" ")[2]
            if self._beats.get(index, ("", 0))[0] != text:
                self._beats[index] = text, now
            elif now - self._beats[index][1] > self._timeout:
                self._store.set(f"news/failed-{index}", self._silence)
                self._end_because(index, self._silence)

    def _read(self, news: Mapping[str, str]) -> None:
        """Act on the news of all hosts."""
        for key, text in news.items():
            topic, _, index = key.partition("-")
            if topic == "failed" and index != str(self._index):
                self._end_because(int(index), text)
        was_asked = self.agreement.signal
        self.agreement.update(news)
        if self.agreement.signal and not was_asked and self.is_first and self.agreement.by:
            sender, name = self.name(self.agreement.by), Signals(self.agreement.signal).name
            print_message(f"{sender} received {name}: stopping all hosts after the same step")
        if self.agreement.has_nothing_to_save:
            if not self.agreement.error:
                self._leave(128 + self.agreement.signal, others=self._count - 1)
            elif self.agreement.by != self._index:
                self._end_because(self.agreement.by, f"failed: {self.agreement.error}")

    def _end_because(self, index: int, text: str) -> None:
        """End this process, because of another host."""
        if not self._is_ending.is_set():
            print_message(f"error: {self.name(index)} {text}")
            if index == 0:
                leave(1)  # the store may not answer
            self._leave(1, others=self._count - 2)


def report(error: Exception | str) -> str:
    """Print an error, an exception with its traceback, and return it in one line."""
    if isinstance(error, Exception):
        traceback.print_exception(error)
        error = f"{type(error).__name__}: {error}"
    else:
        print_message(error)
    return one_line(error).removeprefix("error: ")
