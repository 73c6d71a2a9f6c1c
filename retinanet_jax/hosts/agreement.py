"""The agreement of all hosts of a run on the point at which they stop."""

import collections
import json
import threading
from collections.abc import Mapping
from typing import NamedTuple

from retinanet_jax.hosts.store import Store

REQUEST = "request"


class Position(NamedTuple):
    """What a host has done when it takes part in the agreement."""

    launched: dict[str, int] | None  # programs started, by name; None before the first step
    error: str  # the error of its data that ends the run; "" if there is none


class StopAgreement:
    """Lets all hosts stop after the same program, as soon as one of them asks for it.

    Each host starts the same sequence of programs on the devices (training steps, and the batches
    of evaluations), and `launch` counts them. When a host requests a stop, a thread of each host
    writes how many programs its host has started, and `launch` lets it start no other one. When all
    have written, they stop after the last program that all of them have started.

    The programs that only some hosts have started are void. No device can have finished one,
    because each needs all hosts; but the devices of these hosts wait for the others, and so may
    their main threads, inside C++. The others therefore start them, too (`num_missing`), without
    waiting for their data, and all hosts drop the results.

    No host waits for ever: it waits only for the threads of the others, which wait for nothing.

    If a host has not started its first step, no step can have been finished. All stop where they
    are.

    Orbax's `reached_preemption` agrees on a step, too, but only at the end of a step, so that a
    stop has to wait for data, compilations and evaluations, and only after SIGTERM.

    Args:
        store: The store of the hosts.
        index: The index of this host.
        count: The number of hosts.

    Attributes:
        launched: The number of programs of each name that this host has started since `begin`.
        signal: The signal of the request; 0 if there is none.
        error: The error of the data that ends the run; "" if there is none.
        by: The index of the host that has the error or, if there is none, has got the signal.
    """

    def __init__(self, store: Store, index: int, count: int) -> None:
        self.launched = collections.Counter[str]()
        self.signal = self.by = 0
        self.error = ""
        self._store, self._index, self._count = store, index, count
        self._condition = threading.Condition()
        self._has_begun = self._is_fixed = False  # fixed: the position is written
        self._own_error = ""
        self._positions: list[Position] = []  # of all hosts, when all are known

    @property
    def is_agreed(self) -> bool:
        """Whether the point is known at which all hosts stop."""
        return bool(self._positions)

    @property
    def has_nothing_to_save(self) -> bool:
        """Whether all hosts stop where they are, because one had not started."""
        return any(position.launched is None for position in self._positions)

    def request(self, number: int, error: str = "") -> None:
        """Ask all hosts to stop, unless that is being agreed already.

        Args:
            number: The signal that this host has got; 0 if there is none.
            error: The error of this host's data, in one line, if there is one.
        """
        with self._condition:
            if self._is_fixed:
                return
            self._own_error = self._own_error or error
        self._store.set(f"news/{REQUEST}", f"{number} {self._index}")

    def begin(self) -> None:
        """Count the programs from now on; called before the first step."""
        with self._condition:
            self._condition.wait_for(self._is_decided)
            self._has_begun = True
            self.launched.clear()

    def launch(self, name: str) -> bool:
        """Count a program that is about to be started; return False if the host stops instead.

        Args:
            name: Its name.
        """
        with self._condition:
            self._condition.wait_for(self._is_decided)
            if self.is_agreed:
                return False
            self.launched[name] += 1
            return True

    def wait(self) -> None:
        """Wait until the point is known at which all hosts stop; one of them has requested it."""
        with self._condition:
            self._condition.wait_for(lambda: self.is_agreed)

    def settle(self) -> None:
        """Do as `wait`, if this host has written its position."""
        with self._condition:
            self._condition.wait_for(self._is_decided)

    def num_valid(self, name: str) -> int:
        """Return how many programs of a name are not void."""
        return min(self._started(name))

    def num_missing(self, name: str) -> int:
        """Return how many programs of a name other hosts have started, and this one has not."""
        return max(self._started(name)) - self.launched[name]

    def update(self, news: Mapping[str, str]) -> None:
        """Take part in the agreement; called several times a second, in a thread.

        Args:
            news: The texts `news` of the store.
        """
        if REQUEST not in news or self.is_agreed:
            return
        with self._condition:
            self.signal, self.by = map(int, news[REQUEST].split())
            self._is_fixed = True
        own = Position(dict(self.launched) if self._has_begun else None, self._own_error)
        self._store.set(f"news/position-{self._index}", json.dumps(own))
        names = [f"position-{index}" for index in range(self._count)]
        positions = [Position(*json.loads(news[name])) for name in names if name in news]
        if len(positions) == self._count:
            errors = {index: x.error for index, x in enumerate(positions) if x.error}
            with self._condition:
                self.by, self.error = next(iter(errors.items()), (self.by, ""))
                self._positions = positions
                self._condition.notify_all()

    def _started(self, name: str) -> list[int]:
        """Return the number of programs of a name that each host has started when all stop."""
        counts = [position.launched or {} for position in self._positions]
        return [count.get(name, 0) for count in counts] or [self.launched[name]]

    def _is_decided(self) -> bool:
        return not self._is_fixed or self.is_agreed
