"""Signals: every command ends with the status of its signal, and a run saves its steps before.

Python runs its own signal handlers in the main thread only, and not while that thread waits in C++,
for a device or for a file. Here a thread answers each signal at once.
"""

import collections
import contextlib
import io
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from retinanet_jax import hosts
from retinanet_jax.utils.ending import in_seconds, leave, print_message

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS_TO_CLEAN_UP = 10.0  # that a command without anything to save may take to end
# A signal that is delivered twice at once, to a process and to its group, is one signal.
SECONDS_OF_ONE_SIGNAL = 0.1
NOT_TO_SAVE = "there is nothing to save"


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread at a signal, if the command has nothing to save.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Stopped(Exception):  # noqa: N818, it is no error
    """Raised where a run may stop, after a signal has asked it to."""


class Stopping:
    """Answers the signals SIGTERM, SIGINT and SIGHUP, inside a `with` statement.

    At first a signal raises Interrupted in the main thread. From `begin` to `end` it raises
    Stopped, and only where a run may stop: in `check` and `launch`. A second signal ends the
    process at once. Outside the `with` statement nothing is raised.

    Args:
        joined: The hosts that stop together; None for this process only.

    Attributes:
        signal: The first signal, of any of the hosts; 0 if there was none.
        is_ending: Whether `end` was called.
        leaves_work: Whether the signal has ended anything that the next start has to do.
        launched: The number of programs of each name that were started since `begin`.
    """

    def __init__(self, joined: hosts.Hosts | None = None) -> None:
        self.signal = 0
        self._hosts = joined
        self.is_ending = self.leaves_work = False
        self.launched = collections.Counter[str]()
        self._lock = threading.Lock()  # a signal arrives either before a launch or after it
        self._received = 0.0  # the time of the first signal
        self._asked = 0.0  # when the wait for data has seen it
        self._progress: Callable[[], tuple[int, int]] | None = None
        self._is_repeated = False  # whether the next signal is not from outside
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python can catch signals in the main thread only
        self._wakeup, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        self._earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._earlier_hook, sys.unraisablehook = sys.unraisablehook, self._interrupt_again
        for number in SIGNALS:
            # nohup lets a program ignore SIGHUP, and a shell script SIGINT in the background.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._earlier[number] = signal.signal(number, self._interrupt)
        self._thread = threading.Thread(target=self._answer, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._earlier:
            return
        self._restore_handlers()
        # Packages turn an interruption into an error of their own, for example while they are
        # imported.
        is_error = isinstance(error, Exception) or isinstance(getattr(error, "code", None), str)
        if is_error and self.signal and self._progress is None and not self._hosts:
            raise Interrupted(self.signal) from None

    def _restore_handlers(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_fd)
        if sys.unraisablehook == self._interrupt_again:
            sys.unraisablehook = self._earlier_hook
        self._writer.send(b"\0")
        self._thread.join()
        self._wakeup.close()
        self._writer.close()

    def begin(self, progress: Callable[[], tuple[int, int]]) -> None:
        """Let signals stop the run where `check` or `launch` is called; there are steps to save.

        Args:
            progress: Returns the number of steps that are done, and that of the newest checkpoint.
                It is called in a thread.
        """
        self.launched.clear()
        if self._hosts:
            self._hosts.agreement.begin()
        self._progress = progress
        self.check()

    def end(self) -> None:
        """Let no signal stop the run any more, which is about to save its last state."""
        self.is_ending = True
        if self.leaves_work and self._hosts and self._hosts.is_first and self._progress:
            print_message(f"stopping after step {self._progress()[0]}, saving")

    def check(self) -> None:
        """End what the caller waits for, if a signal has asked the command to end.

        Raises:
            Stopped: Between `begin` and `end`.
            Interrupted: Before `begin`.
        """
        if self.is_asked and not self.is_ending:
            if self._hosts and not self._hosts.agreement.is_reached:
                return
            self.leaves_work = True
            raise Stopped if self._progress else Interrupted(self.signal)

    def check_data(self) -> None:
        """Do as `check` while the data of the next program is awaited.

        Raises:
            OSError: If other hosts have started that program and wait, and after a signal the data
                does not arrive for as long as a host may be silent.
        """
        self.check()
        if self.is_asked and self._hosts and not self.is_ending:
            self._asked = self._asked or time.monotonic()
            if time.monotonic() - self._asked > self._hosts.timeout:
                raise OSError(
                    "the data of the next step, which other hosts have started, has not arrived "
                    f"for {self._hosts.timeout:g} s after the signal; the steps after the newest "
                    "checkpoint are lost."
                )

    def launch(self, name: str) -> None:
        """Raise as `check` does, or count the program that the caller then starts on the devices.

        Args:
            name: Its name.
        """
        with self._lock:
            # A program that the agreement has counted must be started.
            if not (self._hosts and self._hosts.agreement.launch()):
                self.check()
            self.launched[name] += 1

    def drops_ap(self) -> bool:
        """Return whether an AP is left to the next start, because a signal asks the run to end."""
        self.leaves_work |= self.is_asked
        return self.is_asked

    @property
    def is_asked(self) -> bool:
        """Whether a signal, of any host, asks the command to end."""
        if self._hosts and not self.signal:
            self.signal = self._hosts.agreement.signal
        return bool(self.signal)

    def _interrupt(self, number: int, _: types.FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        if self._progress is None and not self._hosts:
            raise Interrupted(number)

    def _interrupt_again(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Interrupt the main thread again where Python drops exceptions, as in garbage collection.

        It does so in the callbacks of other packages, too.
        """
        if not isinstance(unraisable.exc_value, Interrupted):
            self._earlier_hook(unraisable)
            return
        number = unraisable.exc_value.signal

        def send() -> None:
            self._is_repeated = True
            os.kill(os.getpid(), number)

        in_seconds(SECONDS_OF_ONE_SIGNAL, send)

    def _answer(self) -> None:
        """Answer the signals, in a thread."""
        while number := self._wakeup.recv(1)[0]:
            if number in self._earlier:
                self._receive(signal.Signals(number))

    def _receive(self, received: signal.Signals) -> None:
        """Print what a signal does, and end the process at once if it is the second one."""
        if self._is_repeated:
            self._is_repeated = False
        elif not self.signal:
            with self._lock:
                self.signal, self._received = received, time.monotonic()
            print_message(f"received {received.name}: {self._consequence()}")
            if self._hosts:
                threading.Thread(target=self._hosts.agreement.request, args=[received]).start()
            if self._progress is None:
                in_seconds(SECONDS_TO_CLEAN_UP, lambda: leave(128 + received))
        # A terminal that closes, and some supervisors, send SIGHUP after SIGTERM.
        elif received != signal.SIGHUP and self._is_second():
            message = f"received a second signal, {received.name}: ended at once; {self._loss()}"
            print_message(message)
            if self._hosts:
                self._hosts.announce_failure(message)
            leave(128 + received)

    def _is_second(self) -> bool:
        return time.monotonic() - self._received > SECONDS_OF_ONE_SIGNAL

    def _consequence(self) -> str:
        if self._hosts:
            return "stopping all hosts after the same step"
        if self._progress is None:
            return f"stopping; {NOT_TO_SAVE}"
        return f"stopping after step {self._progress()[0]}, saving"

    def _loss(self) -> str:
        """Return which steps are lost if the process ends now."""
        if self._progress is None:
            return NOT_TO_SAVE
        step, saved = self._progress()
        return f"steps {saved + 1} to {step} are not saved" if step > saved else "all is saved"


class RunOutput(io.TextIOBase):
    """A text stream that turns the end of its reader into SIGHUP, so that a run saves its steps.

    Args:
        stream: The output of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if there is a reader."""
        with self._hanging_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if there is a reader."""
        with self._hanging_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _hanging_up(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Python would fail again when it flushes the stream at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            os.kill(os.getpid(), signal.SIGHUP)


def status_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit status of a program that a signal has ended: 128 + its number."""
    return 128 + getattr(interruption, "signal", signal.SIGINT)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run the main function of a program, and exit with the status that it returns or raises.

    Args:
        main: Returns the status. At one above 128, which is that of a signal, the process ends
            without waiting for its threads. If it has joined other hosts, all end together.
    """
    status: Any
    try:
        with Stopping():
            status = main()
    except KeyboardInterrupt as interruption:
        status = status_of(interruption)
    except SystemExit as ended:
        status = ended.code
    except Exception as error:
        if others := hosts.joined():
            others.fail(error)
        raise
    if others := hosts.joined():
        others.fail(status) if isinstance(status, str) else others.finish(status)
    if isinstance(status, int) and status > 128:
        leave(status)
    sys.exit(status)
