"""A scheduler is asked for what a run needs, and Slurm runs it."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import has_plugin
from conftest import Command, edit

from scripts.project import Project
from scripts.runs import schedule
from scripts.runs.state import SECONDS_LIMIT, state

SLURM = schedule.PROFILES / "slurm"


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def lacking_for_slurm() -> list[str]:
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if program(name) is None]
    return lacking if has_plugin("executor_plugin_slurm") else [*lacking, "snakemake-executor-plugin-slurm"]


needs_slurm_plugin = pytest.mark.skipif(
    not has_plugin("executor_plugin_slurm"),
    reason="no snakemake-executor-plugin-slurm here, so no profile for Slurm was tested",
)
needs_slurm = pytest.mark.skipif(
    bool(lacking_for_slurm()),
    reason=f"nothing ran on Slurm, {', '.join(lacking_for_slurm())} not here: apt-get install slurm-wlm munge",
)


# What a scheduler is asked for


def test_a_run_on_a_gpu_asks_for_one_and_a_run_on_a_cpu_for_none() -> None:
    assert schedule.gpus_asked("full-cuda-0123456789ab") == 1
    assert schedule.gpus_asked("quick-cpu-0123456789ab") is None


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_a_scheduler_is_asked_for_more_minutes_than_a_run_may_take(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{preset}-cpu-0123456789ab"
    assert schedule.minutes_asked(key) * 60 - SECONDS_LIMIT[preset] == schedule.MINUTES_AROUND * 60
    monkeypatch.setenv("EXAMPLE_SECONDS_LIMIT", "61")
    assert schedule.minutes_asked(key) == 2 + schedule.MINUTES_AROUND


def test_an_unknown_profile_is_named_with_those_there_are(command: Command) -> None:
    done = command("run", "--profile", "nowhere")
    assert done.returncode == 1
    assert done.stderr == "no profile nowhere; there are kubernetes, slurm, or a folder with a config.yaml\n"


def test_a_profile_is_found_by_its_name_and_by_its_folder(tmp_path: Path) -> None:
    assert schedule.profile_folder("slurm") == SLURM
    assert schedule.profile_folder(str(quick_profile(tmp_path / "slurm"))) == tmp_path / "slurm"


def test_a_profile_names_the_environment_variable_that_it_lacks(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RUN_CACHE", "RUN_VOLUME", "RUN_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    done = command("run", "--profile", "kubernetes")
    assert done.returncode == 1
    assert done.stderr == (
        "the profile kubernetes needs the environment variable RUN_IMAGE; see docs/about/cluster.md\n"
    )


def quick_profile(folder: Path) -> Path:
    """The profile for Slurm, which asks more often, and without accounting."""
    folder.mkdir()
    added = ["status-command: squeue", "init-seconds-before-status-checks: 2"]
    lines = [(SLURM / "config.yaml").read_text("utf-8"), *(f"slurm-{line}\n" for line in added)]
    (folder / "config.yaml").write_text("".join(lines) + "seconds-between-status-checks: 2\n")
    return folder


STUB = '#!/bin/sh\necho "$@" >> "$CALLS/$(basename "$0")"\n'


@pytest.mark.slow
@needs_slurm_plugin
@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_slurm_is_asked_for_memory_minutes_and_a_gpu_only_by_a_run_on_a_gpu(
    device: str, gpus: int, tiny: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("sbatch", "sinfo", "sacct", "sacctmgr", "squeue", "scontrol", "sshare", "scancel"):
        (stubs / name).write_text(STUB + ("exit 1\n" if name == "sbatch" else ""))
        (stubs / name).chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path))
    monkeypatch.setenv("PATH", f"{stubs}{os.pathsep}{os.environ['PATH']}")
    profile = quick_profile(tmp_path / "slurm")
    done = command("run", "alpha", "--preset", "quick", "--device", device, "--profile", str(profile))
    assert done.returncode == 1
    first, second = (tmp_path / "sbatch").read_text().splitlines()  # it is tried twice
    asked = first.split(" --wrap")[0].split()
    assert [option for option in asked if "gpu" in option] == ["--gpus=1"] * gpus
    assert asked[asked.index("--mem") + 1] == "8000"
    assert asked[asked.index("-t") + 1] == str(SECONDS_LIMIT["quick"] // 60 + schedule.MINUTES_AROUND)
    assert "--mem 16000" in second
    assert "-p" not in asked


# A cluster of one node

SETTINGS = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=40000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Slurm with one node, whose GPU is /dev/null, and without accounting."""

    profile: Path
    """The profile of this project, with what such a cluster needs added."""

    def jobs(self) -> list[dict[str, str]]:
        """What Slurm knows of its jobs, the finished ones among them."""
        lines = slurm("scontrol", "show", "job", "--oneliner").splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if "JobId=" in line]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def write_settings(folder: Path, host: str) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    control_port, node_port = free_ports(2)
    settings = SETTINGS.format(
        folder=folder, host=host, user=getpass.getuser(), control_port=control_port, node_port=node_port
    )
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    srun = folder / "bin/srun"  # the plugin takes SLURM_CONF away from it
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {program("srun")} "$@"\n')
    srun.chmod(0o755)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: the path of a socket has a limit
    folder.chmod(0o755)  # munged wants its socket to be reached by all
    host = socket.gethostname().partition(".")[0]
    write_settings(folder, host)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(daemon(folder, "munged", "--foreground", *munge))
        wait_until(lambda: (folder / "munge.socket").exists())
        stack.enter_context(daemon(folder, "slurmctld", "-D"))
        stack.enter_context(daemon(folder, "slurmd", "-D", "-N", host))
        wait_until(lambda: slurm("sinfo", "--noheader", "--format=%T").strip() == "idle")
        yield Cluster(quick_profile(folder / "slurm"))
        slurm("scancel", "--user", getpass.getuser(), "--signal=KILL")


MUNGE = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


@contextlib.contextmanager
def daemon(folder: Path, name: str, *options: str) -> Iterator[None]:
    """A daemon that ends with the test, however that ends."""
    with (folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen([str(program(name)), *options], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(ready: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.2)


@needs_slurm
def test_examples_run_on_slurm_and_leave_their_records(tiny: Project, command: Command, cluster: Cluster) -> None:
    where = ("--preset", "smoke", "--device", "cuda", "--profile", str(cluster.profile))
    edit(tiny.examples / "beta.py", "record.write", "print(f\"job {os.environ['SLURM_JOB_ID']}\"); record.write")
    edit(tiny.examples / "beta.py", "from lab", "import os\n\nfrom lab")
    done = command("run", *where)
    assert done.returncode == 0, done.stderr
    assert "2 examples, 2 to run, by the profile slurm" in done.stdout
    targets = schedule.wanted_targets(tiny, ["alpha", "beta"], "smoke", "cuda")
    assert [state(tiny, wanted).status for wanted in targets] == ["ok", "ok"]
    jobs = cluster.jobs()
    assert [(job["JobState"], job["TresPerJob"]) for job in jobs] == [("COMPLETED", "gres:gpu:1")] * 2
    assert (tiny.build / "logs/beta.log").read_text().strip() in {f"job {job['JobId']}" for job in jobs}
    assert command("run", *where).stdout == "2 examples, all up to date\n"


@needs_slurm
def test_an_example_that_fails_on_slurm_is_told_and_the_others_run(
    tiny: Project, command: Command, cluster: Cluster
) -> None:
    edit(tiny.examples / "alpha.py", "    write(", '    raise RuntimeError("the oven is cold")\n    write(')
    done = command("run", "--preset", "smoke", "--device", "cpu", "--profile", str(cluster.profile), "--jobs", "2")
    assert done.returncode == 1
    assert "failed: alpha, see build/logs/alpha.log" in done.stderr
    alpha, beta = schedule.wanted_targets(tiny, ["alpha", "beta"], "smoke", "cpu")
    assert "RuntimeError: the oven is cold" in state(tiny, alpha).error
    assert state(tiny, beta).status == "ok"
    jobs = cluster.jobs()
    assert sorted(job["JobState"] for job in jobs) == ["COMPLETED", "FAILED", "FAILED"]
    assert not any("TresPerJob" in job for job in jobs)
