"""A profile of some steps of a run, by JAX's profiler."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from retinanet_jax.utils.remote import local_folder

FOLDER = "profile"  # in a run's working directory, or in the user's cache if that is remote


def parse_profile(text: str | None) -> range | None:
    """Return the steps of --profile=FIRST:LAST, both included; None without the flag.

    Raises:
        ValueError: If the text is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(
            f"--profile={text}: give the numbers of the first and the last step to profile, such "
            "as --profile=100:104."
        )
    return range(int(match[1]), int(match[2]) + 1)


def check_profile(profile: range | None, start_step: int, total_steps: int) -> None:
    """Raise ValueError if a run does not train all the steps to be profiled.

    Args:
        profile: The steps; None if there are none.
        start_step: Number of steps done before the run.
        total_steps: Number of steps done after it.
    """
    if profile and not start_step < profile.start <= profile[-1] <= total_steps:
        raise ValueError(
            f"--profile={profile.start}:{profile[-1]}: the run trains the steps {start_step + 1} "
            f"to {total_steps}; give two of them."
        )


class Profiler:
    """Records what the devices and the host do in some steps of a run.

    Args:
        workdir: The run's working directory.
        steps: The numbers of steps done after the steps to record; None to record nothing.
    """

    def __init__(self, workdir: pathlib.Path, steps: range | None) -> None:
        self._folder, self._steps = local_folder(workdir, FOLDER), steps or range(0)
        self._is_recording = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Name, in the profile, what happens inside a `with` statement after the step's number."""
        if step in self._steps and not self._is_recording:
            jax.profiler.start_trace(str(self._folder))
            self._is_recording = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def finish_step(self, step: int, result: jax.Array) -> None:
        """Write the profile if this step is its last one, after waiting for the step's end.

        Args:
            step: Number of steps done.
            result: A result of the step.
        """
        if self._is_recording and step == self._steps[-1]:
            result.block_until_ready()
            self.close()

    def close(self) -> None:
        """Write the profile, if it is being recorded: of the steps until now."""
        if not self._is_recording:
            return
        self._is_recording = False
        jax.profiler.stop_trace()
        traces = self._folder.glob("plugins/profile/*/*.trace.json.gz")
        newest = max(traces, key=lambda file: file.stat().st_mtime, default=None)
        print(
            f"profile: {newest}; open it at https://ui.perfetto.dev, or pip install xprof and run "
            f"xprof --logdir={self._folder}",
            flush=True,
        )
