"""The files of docs/cluster/ start training on many hosts, and start it again after a stop."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Any

import pytest
import yaml

from retinanet_jax import checkpoint
from retinanet_jax.cli.common import run_command
from retinanet_jax.cli.train import COMMAND

ROOT = pathlib.Path(__file__).parent.parent
CLUSTER = ROOT / "docs" / "cluster"
# Like Slurm's, it starts a process for each task with the variables that jax reads, passes SIGTERM
# to them, and ends with the highest of their exit statuses.
SRUN = """
import os, signal, subprocess, sys

tasks = []
for task in "01":
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    environment = os.environ | step | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
    tasks.append(subprocess.Popen(sys.argv[2:], env=environment, start_new_session=True))
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""


def write_program(folder: pathlib.Path, name: str, text: str) -> None:
    """Write a program in the language of `text`: Python, if it imports anything, or sh."""
    interpreter = sys.executable if "import" in text else "/bin/sh"
    (folder / name).write_text(f"#!{interpreter}\n{text}")
    (folder / name).chmod(0o755)


def environment(programs: pathlib.Path, **variables: str) -> dict[str, str]:
    path = f"{programs}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "12", "SLURM_CPUS_PER_TASK": "1"}
    return {**os.environ, **slurm, **variables, "PATH": path}


def parse_train(arguments: list[str]) -> dict[str, Any]:
    """Return the flags of a `train` command, after parsing them as the program does."""
    parsed = {}
    command = COMMAND._replace(run=lambda values, _: parsed.update(values.flag_values_dict()))
    assert run_command(command, ["retinanet-jax train", *arguments]) == 0
    return parsed


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (143, "RUNNING", True),
        (143, "COMPLETING", False),
    ],
)
def test_slurm_job_is_requeued_only_if_it_was_stopped(tmp_path, status, state, requeued):
    """After scancel the job is completing: it must not start again."""
    write_program(tmp_path, "srun", f"exit {status}")
    write_program(tmp_path, "squeue", f"echo {state}")
    write_program(tmp_path, "scontrol", f"echo $* > {tmp_path}/scontrol.txt")
    done = subprocess.run([CLUSTER / "slurm.sh"], env=environment(tmp_path))
    assert done.returncode == status
    calls = tmp_path / "scontrol.txt"
    assert calls.exists() == requeued
    assert not requeued or calls.read_text() == "requeue 12\n"


@pytest.mark.slow
def test_slurm_job_of_two_processes_saves_at_sigterm_and_finishes(program, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    program.use_shared_cache(workdir)
    write_program(tmp_path, "srun", SRUN)
    write_program(tmp_path, "squeue", "echo RUNNING")
    write_program(tmp_path, "scontrol", f"echo $* > {tmp_path}/scontrol.txt")
    write_program(tmp_path, "retinanet-jax", f'exec {sys.executable} -m retinanet_jax "$@"')
    variables = environment(
        tmp_path,
        **program.environment(),
        XLA_FLAGS="",  # one device in each process
        JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        SLURM_JOB_ID=str(os.getpid()),  # jax computes a port from it
    )
    command = [
        CLUSTER / "slurm.sh",
        "--config=configs/shapes.py:tiny",
        "--config.total_steps=20",
        "--config.checkpoint_every=20",
        "--config.evaluate_every=20",
        f"--workdir={workdir}",
    ]
    # Slurm sends SIGTERM to the tasks, and in some cases to the script, too.
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        assert job.stdout
        next(line for line in job.stdout if line.startswith("step 2/"))
        os.killpg(job.pid, signal.SIGTERM)
        printed = job.stdout.read()
    assert job.returncode == 143, printed
    assert (tmp_path / "scontrol.txt").read_text() == f"requeue {os.getpid()}\n"
    step = checkpoint.newest_step(workdir)
    assert 2 <= step < 20

    again = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "2 x 1 devices" in again.stdout
    assert f"training from step {step} to 20" in again.stdout
    assert checkpoint.newest_step(workdir) == 20


def test_jobset_starts_train_on_every_host_of_the_slice():
    jobset = yaml.safe_load((CLUSTER / "gke.yaml").read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    program, name, *arguments = container["command"]
    assert (program, name) == ("retinanet-jax", "train")
    flags = parse_train(arguments)
    assert flags["distributed"]
    assert flags["workdir"].startswith("gs://")

    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == int(rows) * int(columns)
    assert job["completions"] == job["parallelism"]
    assert flags["config"].data.batch_size % (int(rows) * int(columns)) == 0


def test_jobset_starts_again_as_often_as_it_was_stopped_but_not_as_often_as_it_failed():
    """Status 143 ends a host's job with the reason that the JobSet does not count."""
    spec = yaml.safe_load((CLUSTER / "gke.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    name = job["template"]["spec"]["containers"][0]["name"]
    assert rule["onExitCodes"] == {"containerName": name, "operator": "In", "values": [143]}
    assert rule["action"] == "FailJob"
    # Kubernetes accepts a pod failure policy only with this.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    (counted,) = spec["failurePolicy"]["rules"]
    assert counted["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert counted["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_cloud_tpu_script_copies_the_project_and_runs_the_command_on_all_hosts(tmp_path):
    log = tmp_path / "gcloud.txt"
    program = (
        f"import json, sys\njson.dump(sys.argv[1:], f := open({str(log)!r}, 'a')); print(file=f)"
    )
    write_program(tmp_path, "gcloud", program)
    given = [
        "--config=configs/tpu_640.py",
        "--config.data.short_sides=(320, 640)",
        "--workdir=gs://b/r",
    ]
    subprocess.run(
        [CLUSTER / "cloud_tpu.sh", "my-tpu", "zone-a", *given],
        env=environment(tmp_path),
        cwd=tmp_path,
        check=True,
    )
    copy, _, train = calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"--worker=all", "--zone=zone-a"} <= set(call) for call in calls)
    sources = copy[copy.index("--recurse") + 1 : copy.index("my-tpu:")]
    assert {"retinanet_jax", "configs", "setup.cfg"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    command = train[-1].removeprefix("--command=")
    words = shlex.split(command.partition(" > ")[0])
    assert words[:4] == ["nohup", ".venv/bin/retinanet-jax", "train", "--distributed"]
    assert words[4:] == given
    assert parse_train(words[3:])["workdir"] == "gs://b/r"
