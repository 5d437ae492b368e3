"""The files of launch/: what they start, with which variables, and what they do when it
ends."""

import inspect
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.fixture
def script(tmp_path):
    """Makes an executable of a name and a shell program, in a directory to go first."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def start(name: str, *options: str, **variables):
    """A script of launch/ under way."""
    return subprocess.Popen(
        [LAUNCH / name, *options],
        start_new_session=True,
        env=os.environ | {key: str(value) for key, value in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def codes(several) -> list[int]:
    """How each of the scripts under way ended."""
    try:
        for one in several:
            one.communicate(timeout=30)
    finally:
        for one in several:
            one.kill()
    return [one.returncode for one in several]


# --- local.sh -------------------------------------------------------------------------

# Stands in for Python: says who it is; ends with 7 if it is to fail, else after NAP s,
# or with 143 when it is asked to.
PYTHON = """
rank=${CREATE_JAX_PROCESS:-alone}
sleep "${NAP:-0}" > /dev/null 2>&1 &
trap 'echo "$rank asked"; kill $!; exit 143' TERM
echo "$rank/${CREATE_JAX_PROCESSES:-} ${CREATE_JAX_COORDINATOR:-} $XLA_FLAGS: $*"
[ "${FAILS:-}" != "$rank" ] || exit 7
wait $!
"""


def test_local_starts_one_process_or_several(script):
    python = script("python", PYTHON)
    alone = start("local.sh", "--config=a b", PYTHON=python, XLA_FLAGS="--x")
    said, _ = alone.communicate(timeout=30)
    assert alone.returncode == 0
    assert said == "alone/  --x: -m create_jax.main --config=a b\n"
    variables = dict(PYTHON=python, PROCESSES=3, DEVICES=4, PORT=7, XLA_FLAGS="--x")
    several = start("local.sh", "--config=a b", **variables)
    said, _ = several.communicate(timeout=30)
    assert several.returncode == 0
    flags = "--xla_force_host_platform_device_count=4 --x"
    assert sorted(said.splitlines()) == [
        f"{rank}/3 localhost:7 {flags}: -m create_jax.main --config=a b"
        for rank in range(3)
    ]


def test_local_ends_with_the_first_that_fails(script):
    """Also on a busy machine, where it may have ended before anybody waits for it."""
    python = script("python", PYTHON)
    began = time.monotonic()
    about = dict(PYTHON=python, PROCESSES=3, FAILS=1, NAP=60)
    several = [start("local.sh", **about, PORT=7 + n) for n in range(20)]
    assert codes(several) == [7] * 20
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_on_that_it_shall_end(script, sent, to_all):
    """Once: a second signal would end a process before it has saved. A terminal and
    timeout(1) send it to the whole process group."""
    python = script("python", PYTHON)
    several = start("local.sh", PYTHON=python, PROCESSES=2, NAP=60)
    said = [several.stdout.readline(), several.stdout.readline()]  # both have begun
    (os.killpg if to_all else os.kill)(several.pid, sent)
    rest, _ = several.communicate(timeout=30)
    assert several.returncode == 143, said
    assert sorted(rest.splitlines()) == ["0 asked", "1 asked"]  # once


def test_local_passes_on_what_came_while_it_started(script):
    """To the process that began last too: the first asks for it as soon as it runs."""
    python = script("python", '[ "$CREATE_JAX_PROCESS" != 0 ] || kill $PPID\n' + PYTHON)
    several = [start("local.sh", PYTHON=python, PROCESSES=4, NAP=60) for _ in range(20)]
    assert codes(several) == [143] * 20


# --- tpu_vm.sh ------------------------------------------------------------------------

# Stand in for gcloud, whose n-th ssh ends with the n-th of $CODES and, if with 255,
# takes the slice away; and for Python, which makes a wheel.
GCLOUD = """
echo "$4" "${@:5}" >> calls
case $4 in
  describe) cat state 2>/dev/null ;;
  create)
    if [ -n "${TROUBLE:-}" ] && [ ! -e told ]; then
      touch told && echo "$TROUBLE" >&2 && exit 1
    fi
    echo READY > state ;;
  delete) rm state ;;
  ssh)
    code=$(cut -d ' ' -f "$(grep -c ^ssh calls)" <<< "$CODES")
    [ "$code" != 255 ] || echo PREEMPTED > state
    exit "$code" ;;
esac
"""
WHEEL = """
for option; do [ "${option%=*}" != --wheel-dir ] || touch "${option#*=}/a.whl"; done
"""


@pytest.mark.parametrize(
    "codes, ends, made",
    [
        ("0", 0, 1),
        ("255 0", 0, 2),  # taken away: made anew
        ("143 0", 0, 1),  # it was asked to stop, and goes on on the same slice
        ("2", 2, 1),  # a mistake: another slice would not help
    ],
)
def test_a_slice_is_made_anew_until_the_run_has_ended(
    script, tmp_path, codes, ends, made
):
    gcloud = script("gcloud", f"cd {tmp_path}\n" + GCLOUD)
    variables = dict(TPU="t", ZONE="z", TYPE="v6e-16", VERSION="v", PAUSE="0.01")
    variables |= {"PATH": f"{gcloud.parent}:{os.environ['PATH']}", "CODES": codes}
    python = script("python", WHEEL)
    run = start("tpu_vm.sh", "--config=a b", PYTHON=python, **variables)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == ends, said
    calls = (tmp_path / "calls").read_text()
    assert len(re.findall("^create t .*--spot", calls, re.M)) == made
    assert len(re.findall("^delete t ", calls, re.M)) == made - 1
    ssh = re.findall("^ssh .*", calls, re.M)
    assert len(ssh) == len(codes.split())
    for call in ssh:  # on all hosts
        assert "--worker=all" in call and "--distributed --config=a\\ b" in call


@pytest.mark.parametrize(
    "trouble, ends",
    [
        ("There is no more capacity in the zone", 0),  # there may be some later
        ("Permission denied on resource project", 1),
        ("Invalid choice: 'v6f-16'", 1),
    ],
)
def test_a_slice_that_cannot_be_made_is_asked_for_again_or_not(
    trouble, ends, script, tmp_path
):
    gcloud = script("gcloud", f"cd {tmp_path}\n" + GCLOUD)
    python = script("python", WHEEL)
    variables = dict(TPU="t", ZONE="z", TYPE="v6e-16", VERSION="v", PAUSE="0.1")
    variables |= {"PATH": f"{gcloud.parent}:{os.environ['PATH']}", "CODES": "0"}
    run = start("tpu_vm.sh", PYTHON=python, TROUBLE=trouble, **variables)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == ends and trouble in said, said
    calls = (tmp_path / "calls").read_text()
    assert len(re.findall("^create t ", calls, re.M)) == 2 - ends


# --- slurm.sbatch ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 2, 143])
def test_a_job_that_was_asked_to_stop_goes_back_into_the_queue(script, tmp_path, code):
    srun = script("srun", f'env > {tmp_path}/seen; echo "$@"; exit {code}')
    script("scontrol", 'echo "$@"')
    variables = {"PATH": f"{srun.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}
    variables |= {"https_proxy": "there", "HOME": str(tmp_path), "PYTHON": "py"}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--config=a b"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    command = "--kill-on-bad-exit=1 py -m create_jax.main --config=a b\n"
    assert done.stdout == command + ("requeue 5\n" if code == 143 else "")
    assert done.returncode == code
    seen = (tmp_path / "seen").read_text()
    assert "_proxy" not in seen.lower()
    assert f"JAX_COMPILATION_CACHE_DIR={tmp_path}/.cache/create_jax\n" in seen


def test_what_a_job_asks_slurm_for():
    asked = re.findall("^#SBATCH (.*)", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    needed = {"--signal=TERM@120", "--requeue", "--open-mode=append"}
    assert needed <= set(asked)
    tasks, gpus = (
        next(re.search(r"\d+$", line)[0] for line in asked if line.startswith(option))
        for option in ("--ntasks-per-node", "--gres=gpu")
    )
    assert tasks == gpus  # one process a GPU
    assert not any("per-task" in line and "gpu" in line for line in asked)


# --- jobset.yaml ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds():
    yaml = pytest.importorskip("yaml", reason="of the extra dev")
    parts = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    return {part["kind"]: part for part in parts}


def test_the_service_account_may_do_what_jax_asks_for(kinds):
    from jax._src.clusters import k8s_cluster

    source = inspect.getsource(k8s_cluster.K8sCluster)
    calls = re.findall(r"_api\.(list|read)_namespaced_(\w+)\(", source)
    verbs = {"list": "list", "read": "get"}
    asked = {(f"{what}s", verbs[verb]) for verb, what in calls}
    allowed = {
        (resource, verb)
        for rule in kinds["Role"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert asked == {("pods", "list"), ("jobs", "get"), ("services", "list")}
    assert asked <= allowed
    groups = {r["resources"][0]: r["apiGroups"] for r in kinds["Role"]["rules"]}
    assert groups == {"pods": [""], "services": [""], "jobs": ["batch"]}
    account = kinds["ServiceAccount"]["metadata"]["name"]
    assert kinds["RoleBinding"]["subjects"][0]["name"] == account
    assert kinds["RoleBinding"]["roleRef"]["name"] == kinds["Role"]["metadata"]["name"]


def test_the_job_is_one_that_jax_finds_and_that_goes_on(kinds):
    jobset = kinds["JobSet"]["spec"]
    (group,) = jobset["replicatedJobs"]
    job, account = group["template"]["spec"], kinds["ServiceAccount"]["metadata"]
    pod = job["template"]["spec"]
    assert group["replicas"] == 1 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] > 1
    assert pod["serviceAccountName"] == account["name"]
    # One that leaves ends the job, and JobSet begins all of it again.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    (codes,) = (r["onExitCodes"] for r in job["podFailurePolicy"]["rules"][1:])
    (container,) = pod["containers"]
    assert codes["values"] == [143] and codes["containerName"] == container["name"]
    (rule,) = jobset["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    # SIGTERM reaches Python, which has time to save.
    assert container["command"][0] == "python" and "-c" not in container["command"]
    assert pod["terminationGracePeriodSeconds"] >= 120
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
