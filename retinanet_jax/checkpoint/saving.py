"""The state of a checkpoint between the start of its save and its digests."""

import threading
from concurrent import futures


class Saving:
    """A checkpoint that is being saved, and whether it is known to be good.

    Attributes:
        step: Its step.
        awaits_ap: Whether its AP is being computed.
        num_bytes: The size of its arrays.
        outcome: The `Future` of the thread that completes it.
    """

    def __init__(self, step: int, awaits_ap: bool, num_bytes: int) -> None:
        self.step, self.awaits_ap, self.num_bytes = step, awaits_ap, num_bytes
        self.outcome: futures.Future[None] = futures.Future()
        self._is_good = False
        self._decided = threading.Event()

    def decide(self, is_good: bool) -> None:
        """Set whether the checkpoint is good; only the first decision counts."""
        if not self._decided.is_set():
            self._is_good = is_good
            self._decided.set()

    def is_decided(self) -> bool:
        """Return whether there is a decision."""
        return self._decided.is_set()

    def is_good(self) -> bool:
        """Wait for the decision, and return it."""
        self._decided.wait()
        return self._is_good
