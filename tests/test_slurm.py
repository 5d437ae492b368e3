"""launch/slurm.sbatch in a Slurm of one node, brought up here: two tasks of two
simulated devices each; a job that is asked to stop ends with the bits of one that is
not.

Runs as root with Debian's slurm-wlm and munge where CREATE_JAX_SLURM_TEST=1 allows it
to start their daemons. It keeps all of its files to itself.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FAST

from create_jax import speed

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.services  # daemons and four starts of JAX: a minute
SETTINGS = [
    *("--config=quickstart", "--config.compare=()", "--config.example=False"),
    *("--config.model.dim=8", "--config.seq.blocks=1", "--config.seq.max_len=10"),
    *("--config.warmup.epochs=2", "--config.train.epochs=4", "--config.train.chunk=8"),
    *("--config.checkpoint.seconds=0", "--config.eval.targets=()"),
]


def missing() -> str:
    """Why there is no Slurm here; "" where one can be brought up."""
    if os.environ.get("CREATE_JAX_SLURM_TEST") != "1":
        return "CREATE_JAX_SLURM_TEST=1 is not set"
    if os.getuid() != 0:
        return "needs root"
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
    gone = [name for name in programs if shutil.which(name) is None]
    return f"no {', '.join(gone)}: apt-get install slurm-wlm munge" if gone else ""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster of this machine alone, for as long as the module."""
    if reason := missing():
        pytest.skip(reason)
    place, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (place / name).mkdir()
    key = place / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = {"key-file": key, "socket": place / "munge.socket"}
    munge |= {"pid-file": place / "munged.pid", "log-file": place / "munged.log"}
    munge["seed-file"] = place / "munge.seed"
    with socket.socket() as one, socket.socket() as other:
        one.bind(("", 0)), other.bind(("", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    # As on any cluster, but for what makes a requeued job wait for two minutes.
    settings = f"""
        ClusterName=one
        SlurmctldHost={host}
        AuthInfo=socket={munge["socket"]},cred_expire=5
        SchedulerParameters=sched_interval=2
        SlurmctldPort={ports[0]}
        SlurmdPort={ports[1]}
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SlurmUser=root
        StateSaveLocation={place}/state
        SlurmdSpoolDir={place}/spool
        SlurmctldPidFile={place}/slurmctld.pid
        SlurmdPidFile={place}/slurmd.pid
        SlurmctldLogFile={place}/slurmctld.log
        SlurmdLogFile={place}/slurmd.log
        ReturnToService=2
        JobRequeue=1
        NodeName={host} CPUs={max(2, os.cpu_count())} State=UNKNOWN
        PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
    """
    conf = place / "slurm.conf"
    conf.write_text(re.sub("^ +", "", settings, flags=re.M))
    environment = os.environ | {"SLURM_CONF": str(conf), "PYTHON": sys.executable}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=2 {FAST}"
    environment["JAX_COMPILATION_CACHE_DIR"] = str(place / "cache")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as conftest.py
    try:
        options = [f"--{name}={value}" for name, value in munge.items()]
        subprocess.run(["munged", "--force", *options], check=True)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon, "-f", conf], check=True, env=environment)
        yield environment
    finally:
        for command in (
            "scancel --full --signal=KILL --user=root",
            "scontrol shutdown",
        ):
            subprocess.run(command.split(), env=environment, capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            end(place / f"{name}.pid")


def end(file: Path) -> None:
    """A daemon that is to end by itself, or by a signal."""
    if file.exists():
        process = int(file.read_text())
        for attempt in range(100):
            try:
                os.kill(process, 15 if attempt in (0, 50) else 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


class Job:
    """launch/slurm.sbatch with two tasks, submitted."""

    def __init__(self, slurm, workdir: Path):
        self.slurm, self.workdir = slurm, workdir
        self.log = workdir.with_suffix(".log")
        options = ["--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none"]
        options += ["--parsable", "--time=10", f"--output={self.log}"]
        script = ROOT / "launch" / "slurm.sbatch"
        self.number = self.run(
            "sbatch", *options, script, *SETTINGS, f"--workdir={workdir}"
        ).strip()

    def run(self, *command) -> str:
        done = subprocess.run(
            command, env=self.slurm, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self) -> dict:
        shown = self.run("scontrol", "show", "job", self.number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def until(self, reached, seconds: float = 240.0) -> dict:
        """Waits for `reached(facts)`; the facts."""
        limit = time.monotonic() + seconds
        while not reached(facts := self.facts()):
            output = self.log.read_text() if self.log.exists() else "no output"
            assert time.monotonic() < limit, f"{facts}\n{output}"
            time.sleep(0.2)
        return facts

    def ends(self, facts) -> bool:
        under_way = "PENDING", "CONFIGURING", "RUNNING", "COMPLETING"
        return facts["JobState"] not in under_way

    def lines(self) -> list[dict]:
        """Of metrics.jsonl, without what a clock says."""
        path = self.workdir / "metrics.jsonl"
        texts = path.read_text().splitlines() if path.exists() else []
        lines = map(json.loads, texts)
        return [{k: v for k, v in x.items() if k not in speed.KEYS} for x in lines]

    def state(self) -> dict[str, np.ndarray]:
        """Parameters and Adam of the last checkpoint, of devices that are not here."""
        stage = self.workdir / "checkpoints" / "fixed"
        newest = max(int(p.name) for p in stage.iterdir() if p.name.isdigit())
        place, plain = stage / str(newest) / "state", ocp.RestoreArgs(np.ndarray)
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(place).item_metadata.tree
            asked = jax.tree.map(lambda _: plain, tree)
            found = reader.restore(place, restore_args=asked)
        return ocp.tree.to_flat_dict(found, sep=".")


@pytest.fixture(scope="module")
def uninterrupted(slurm, tmp_path_factory):
    job = Job(slurm, tmp_path_factory.mktemp("uninterrupted") / "run")
    facts = job.until(job.ends)
    return job, facts


def test_two_tasks_train_together(uninterrupted):
    job, facts = uninterrupted
    said = job.log.read_text()
    assert facts["JobState"] == "COMPLETED" and facts["ExitCode"] == "0:0", said
    result = json.loads((job.workdir / "result.json").read_text())
    assert result["device"] == "4 x cpu" and result["epochs"] == 6
    assert result["test"]["ndcg@10"] > 0
    assert said.count("movietweetings, test, percent") == 1  # one of them speaks


def test_a_job_that_is_asked_to_stop_goes_on_to_the_same_bits(
    slurm, uninterrupted, tmp_path
):
    reference, _ = uninterrupted
    job = Job(slurm, tmp_path / "run")
    job.until(lambda _: len(job.lines()) >= 3)  # in the joint phase
    job.run("scancel", "--signal=TERM", job.number)  # as Slurm before the time is up
    facts = job.until(job.ends)
    said = job.log.read_text()
    assert facts["JobState"] == "COMPLETED" and facts["ExitCode"] == "0:0", said
    assert facts["Restarts"] == "1" and "continuing in epoch" in said, said
    assert job.lines() == reference.lines()
    results = [
        json.loads((x.workdir / "result.json").read_text()) for x in (job, reference)
    ]
    assert results[0]["test_by_target"] == results[1]["test_by_target"]
    ranks = [np.load(x.workdir / "ranks.npz") for x in (job, reference)]
    assert all(np.array_equal(ranks[0][name], ranks[1][name]) for name in ranks[1])
    states = job.state(), reference.state()
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    for name, array in states[1].items():
        assert np.array_equal(states[0][name], array), name
