"""Stopping a run at a signal, without losing a step."""

import signal
import types


class Stopped(Exception):  # noqa: N818, it is no error
    """Raised where a run may stop, after a signal has asked it to."""


class Stopping:
    """Catches the signals that ask a run to stop, inside a `with` statement.

    Attributes:
        signal: The signal that was received; 0 if there was none.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Stopping":
        self._earlier = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a signal has asked the run to stop."""
        if self.signal:
            raise Stopped

    def _catch(self, number: int, _: types.FrameType | None) -> None:
        self.signal = number
