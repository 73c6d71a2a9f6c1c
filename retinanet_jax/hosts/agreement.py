"""The agreement of all hosts of a run on the point at which they stop."""

import threading
from collections.abc import Mapping

from retinanet_jax.hosts.store import Store

NOT_STARTED = -1  # the position of a host that has not started its first step
REQUEST = "request"


class StopAgreement:
    """Lets all hosts stop after the same program, as soon as one of them is asked to.

    Each host starts the same sequence of programs on the devices (training steps, and the batches
    of evaluations), and `launch` counts them. When a host requests a stop, a thread of each host
    writes how many programs its host has started, and `launch` lets it start no other one until all
    have written. Then all continue to the largest of these numbers, and stop there.

    No host waits for ever: in `launch` it waits only for the threads of the others, which wait for
    nothing. And up to the largest number, which one host has reached, all run what they would have
    run without a stop. A host may be further than the others by the programs that wait on its
    devices, and be inside C++ until the others have started them, too; the others do.

    If a host has not started its first step, no step can have been finished, because each needs all
    hosts: they stop where they are.

    Orbax's `reached_preemption` agrees on a step, too, but only at the end of a step, so that a
    stop has to wait for compilations and evaluations, which are minutes, and only after SIGTERM.

    Args:
        store: The store of the hosts.
        index: The index of this host.
        count: The number of hosts.

    Attributes:
        signal: The signal of the request; 0 if there is none.
        by: The index of the host that was asked to stop.
    """

    def __init__(self, store: Store, index: int, count: int) -> None:
        self.signal = self.by = 0
        self._store, self._index, self._count = store, index, count
        self._condition = threading.Condition()
        self._position = NOT_STARTED
        self._is_fixed = False  # whether the position is written
        self._target: int | None = None

    @property
    def has_nothing_to_save(self) -> bool:
        """Whether all hosts stop where they are, because one had not started."""
        return self._target == NOT_STARTED

    @property
    def is_reached(self) -> bool:
        """Whether this host is at the point at which all hosts stop."""
        return self._target is not None and self._position >= self._target

    def request(self, number: int) -> None:
        """Ask all hosts to stop, because of a signal."""
        self._store.set(f"news/{REQUEST}", f"{number} {self._index}")

    def begin(self) -> None:
        """Count the programs from now on; called before the first step."""
        with self._condition:
            self._condition.wait_for(self._may_launch)
            if not self.is_reached:
                self._position = 0

    def launch(self) -> bool:
        """Count a program that is about to be started; return False if the host stops instead."""
        with self._condition:
            self._condition.wait_for(self._may_launch)
            if self.is_reached:
                return False
            if self._position != NOT_STARTED:
                self._position += 1
            return True

    def update(self, news: Mapping[str, str]) -> None:
        """Take part in the agreement; called several times a second, in a thread.

        Args:
            news: The texts `news` of the store.
        """
        if REQUEST not in news or self._target is not None:
            return
        with self._condition:
            self.signal, self.by = map(int, news[REQUEST].split())
            self._is_fixed = True
        self._store.set(f"news/position-{self._index}", str(self._position))
        names = [f"position-{index}" for index in range(self._count)]
        positions = [int(news[name]) for name in names if name in news]
        if len(positions) == self._count:
            has_started = NOT_STARTED not in positions
            with self._condition:
                self._target = max(positions) if has_started else NOT_STARTED
                self._condition.notify_all()

    def _may_launch(self) -> bool:
        return not self._is_fixed or self._target is not None
