"""Signals: every command ends with the status of its signal, and a run saves its steps before.

Python runs its own signal handlers in the main thread only, and not while that thread waits in C++,
for a device or for a file. Here a thread answers each signal at once.
"""

import collections
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from signal import Signals
from typing import Any, NoReturn

from retinanet_jax import hosts
from retinanet_jax.utils.ending import discard, in_seconds, leave, print_message
from retinanet_jax.utils.huge_pages import restart_with_huge_pages
from retinanet_jax.utils.progress import one_line

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
    """Raised where a run may stop: after a signal, or when it ends early."""


class Stopping:
    """Answers the signals SIGTERM, SIGINT and SIGHUP, inside a `with` statement.

    At first a signal raises Interrupted in the main thread. From `begin` to `end` it raises
    Stopped, and only where a run may stop: in `check`, `launch` and `check_void`. A second signal
    ends the process at once. Outside the `with` statement nothing is raised. An error of the data
    stops a run, too.

    Args:
        joined: The hosts that stop together; None for this process only.
        unit: What messages call a step.

    Attributes:
        is_ending: Whether `end` was called.
        leaves_work: Whether the stop has ended anything that the next start has to do.
        launched: The number of programs of each name that were started since `begin`.
    """

    def __init__(self, joined: hosts.Hosts | None = None, unit: str = "step") -> None:
        self._hosts, self._unit, self._own_signal = joined, unit, 0
        self.is_ending = self.leaves_work = False
        self.launched = joined.agreement.launched if joined else collections.Counter[str]()
        self._error: Exception | None = None  # of this host's data
        self._lock = threading.Lock()  # a signal arrives either before a launch or after it
        self._received = 0.0  # the time of the first signal
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
        self.launched.clear()  # of what was run only to measure the memory
        if self._hosts:
            self._hosts.agreement.begin()
        self._progress = progress
        self.check()

    def end(self) -> None:
        """Let no signal stop the run any more, which is about to save its last state."""
        self.is_ending = True
        prints = self.signal and self._hosts and self._hosts.is_first
        if prints and self.leaves_work and self._progress:
            print_message(f"stopping after {self._unit} {self._progress()[0]}, saving")

    def check(self) -> None:
        """End what the caller waits for, if the command is to end.

        Raises:
            Stopped: Between `begin` and `end`.
            Interrupted: Before `begin`.
        """
        is_asked = self._hosts.agreement.is_agreed if self._hosts else self.is_asked
        if is_asked and not self.is_ending:
            self._stop()

    def launch(self, name: str) -> None:
        """Raise as `check` does, or count the program that the caller then starts on the devices.

        Args:
            name: Its name.
        """
        if self.is_ending:
            return
        with self._lock:
            if not self._hosts:
                self.check()
                self.launched[name] += 1
            # A program that the agreement has counted must be started.
            elif not self._hosts.agreement.launch(name):
                self.check()

    def check_void(self, name: str, number: int) -> None:
        """Raise Stopped if a program that was started is void, as in `StopAgreement`.

        Args:
            name: Its name.
            number: Its number among those of this name since `begin`, from 1.
        """
        if self._hosts and not self.is_ending:
            self._hosts.agreement.settle()
            if number > self.num_valid(name):
                self._stop()

    def num_missing(self, name: str) -> int:
        """Return how many programs of a name other hosts have started, and this one has not."""
        return self._hosts.agreement.num_missing(name) if self._hosts else 0

    def num_valid(self, name: str) -> int:
        """Return how many programs of a name were started since `begin` and are not void."""
        return self._hosts.agreement.num_valid(name) if self._hosts else self.launched[name]

    def fail(self, error: Exception) -> NoReturn:
        """Stop the run, all hosts after the same step, because this host's data has an error.

        Args:
            error: The error.

        Raises:
            Stopped: Between `begin` and `end`; `error` is then the attribute `error`.
            Exception: The error itself, if there is nothing to save.
        """
        if self._progress is None:
            raise error
        if self._hosts:
            self._hosts.agreement.request(0, one_line(error))
            self._hosts.agreement.wait()
            if self._hosts.agreement.has_nothing_to_save:
                raise error
        self._error = error
        self._stop()

    @property
    def error(self) -> Exception | None:
        """The error of the data that ends the run; that of another host has the host's name."""
        return self._error or (self._hosts.failure() if self._hosts else None)

    def raise_error(self) -> None:
        """Raise `error`, if there is one, when all is saved."""
        if self._hosts:
            self._hosts.ends_together = bool(self.error)
        if self.error:
            raise self.error

    def drops_ap(self) -> bool:
        """Return whether an AP is left to the next start, because the run is asked to end."""
        self.leaves_work |= self.is_asked
        return self.is_asked

    @property
    def is_asked(self) -> bool:
        """Whether a signal or an error, of any host, asks the command to end."""
        return bool(self.signal or self.error)

    @property
    def signal(self) -> int:
        """The first signal, of any of the hosts; 0 if there was none."""
        return self._own_signal or (self._hosts.agreement.signal if self._hosts else 0)

    def _stop(self) -> NoReturn:
        """Raise what ends the command, or what it waits for."""
        self.leaves_work = True
        if self._progress is None:
            raise self.error or Interrupted(self.signal)
        raise Stopped

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        if self._progress is None and not self._hosts:
            if is_importing(frame):  # packages in C++ would abort the process at an exception
                self._send_again(number)
            else:
                raise Interrupted(number)

    def _interrupt_again(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Interrupt the main thread again where Python drops exceptions, as in garbage collection.

        It does so in the callbacks of other packages, too.
        """
        if isinstance(unraisable.exc_value, Interrupted):
            self._send_again(unraisable.exc_value.signal)
        else:
            self._earlier_hook(unraisable)

    def _send_again(self, number: int) -> None:
        """Send a signal to this process again, a moment later."""

        def send() -> None:
            self._is_repeated = True
            os.kill(os.getpid(), number)

        in_seconds(SECONDS_OF_ONE_SIGNAL, send)

    def _answer(self) -> None:
        """Answer the signals, in a thread."""
        while number := self._wakeup.recv(1)[0]:
            if number in self._earlier:
                self._receive(Signals(number))

    def _receive(self, received: Signals) -> None:
        """Print what a signal does, and end the process at once if it is the second one."""
        if self._is_repeated:
            self._is_repeated = False
        elif not self._own_signal:
            with self._lock:
                self._own_signal, self._received = received, time.monotonic()
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
        return f"stopping after {self._unit} {self._progress()[0]}, saving"

    def _loss(self) -> str:
        """Return which steps are lost if the process ends now."""
        if self._progress is None:
            return NOT_TO_SAVE
        step, saved = self._progress()
        lost = f"{self._unit}s {saved + 1} to {step} are not saved"
        return lost if step > saved else "all is saved"


def is_importing(frame: types.FrameType | None) -> bool:
    """Return whether a frame is inside the import of a module."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def status_of(interruption: KeyboardInterrupt) -> int:
    """Return the exit status of a program that a signal has ended: 128 + its number."""
    return 128 + getattr(interruption, "signal", signal.SIGINT)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run the main function of a program, and exit with the status that it returns or raises.

    The process may start again before that: see `utils.huge_pages`.

    Args:
        main: Returns the status. At one above 128, which is that of a signal, the process ends
            without waiting for its threads. If it has joined other hosts, all end together.
    """
    restart_with_huge_pages()
    status: Any
    try:
        with Stopping():
            status = main()
            print(end="", flush=True)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        discard(sys.stdout)
        status = 0
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
