"""Several processes act as one: two on this machine, joined over its own network."""

import json
import os
import signal
import socket
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FAST
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

from benchmarks import processes
from create_jax import checkpoint, cluster, main, parallel, prepare
from create_jax.data import packing
from create_jax.errors import AgreedError, InputError
from create_jax.settings import flatten

ROOT = Path(__file__).parent.parent
# CREATE with warm-up, selection, refit and test, in seconds.
SETTINGS = [
    *("--config.compare=()", "--config.model.dim=16"),
    *("--config.split.validation=by_time", "--config.train.epochs=2"),
    *("--config.warmup.epochs=1", "--config.train.chunk=2", "--config.seq.blocks=1"),
    *("--config.seq.max_len=20", "--config.train.batch=700"),
    *("--config.graph.batch_size=14000", "--config.eval.batch=2048"),
    *("--config.eval.queries=1000", "--config.eval.targets=('last','successive')"),
    "--config.example=False",
]
# Less of it: one stage, and one joint epoch.
SHORT = ["--config.split.validation=none", "--config.train.epochs=1"]


# --- without other processes ----------------------------------------------------------


@pytest.fixture
def variables(monkeypatch):
    """Sets what the environment says of processes, and nothing else says."""
    for name in (*cluster.TASKS, *VARIABLES):
        monkeypatch.delenv(name, raising=False)

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


VARIABLES = (cluster.COORDINATOR, cluster.PROCESSES, cluster.PROCESS, cluster.WAIT)
OURS = dict(zip(VARIABLES[:3], ("localhost:1234", "2", "1"), strict=True))


def test_only_an_environment_of_several_processes_is_one(variables):
    assert not cluster.described()
    variables(SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="4")  # a job's script, one task
    assert not cluster.described()
    variables(SLURM_STEP_NUM_TASKS="2")
    assert cluster.described()
    variables(SLURM_STEP_NUM_TASKS="", OMPI_COMM_WORLD_SIZE="3")
    assert cluster.described()
    variables(OMPI_COMM_WORLD_SIZE="1", CREATE_JAX_PROCESS="0")
    assert cluster.described()


@pytest.mark.parametrize(
    "changes, found",
    [
        ({cluster.PROCESS: "2"}, "CREATE_JAX_PROCESS is 2 of CREATE_JAX_PROCESSES=2"),
        (
            {cluster.PROCESS: "-1"},
            "CREATE_JAX_PROCESS is '-1'; expected",
        ),
        ({cluster.PROCESSES: "two"}, "CREATE_JAX_PROCESSES is 'two'"),
        ({cluster.PROCESSES: "0"}, "CREATE_JAX_PROCESSES is '0'"),
        ({cluster.COORDINATOR: ""}, "CREATE_JAX_COORDINATOR not set; "),
        ({cluster.COORDINATOR: "here"}, "expected host:port"),
        ({cluster.WAIT: "long"}, "CREATE_JAX_WAIT is 'long'"),
    ],
    ids=str,
)
def test_what_the_environment_says_wrongly_is_named(variables, changes, found):
    variables(**OURS | changes)
    with pytest.raises(InputError, match=found):
        cluster.join()


def test_processes_with_more_devices_than_others_are_refused():
    cluster.check_devices([0, 0, 1, 1])
    with pytest.raises(AgreedError, match="have 1, 2, 3 devices; expected as many"):
        cluster.check_devices([0, 1, 1, 2, 2, 2])


def test_one_process_is_asked_for_nothing():
    assert cluster.gather({"a": 1}) == [{"a": 1}] and cluster.is_first()
    assert cluster.first(lambda: (1, 2)) == (1, 2)
    cluster.same("settings", {"a": 1})
    with pytest.raises(KeyError), cluster.together():
        raise KeyError


def test_a_checksum_is_put_together_from_its_parts():
    data = np.random.default_rng(0).bytes(1000)
    for at in (0, 1, 333, 1000):
        parts = zlib.crc32(data[:at]), zlib.crc32(data[at:]), 1000 - at
        assert checkpoint.combined(*parts) == zlib.crc32(data)


@pytest.mark.parametrize("own", [[0], [2, 3], [0, 3]])
def test_rows_of_some_shards_are_those_of_the_whole_batch(own):
    lengths = np.random.default_rng(0).integers(1, 9, 200)
    begin = np.cumsum(lengths) - lengths
    log = np.arange(1, lengths.sum() + 2, dtype=np.int32)
    numbers = np.arange(200, dtype=np.int32)
    sequences = packing.Sequences(numbers, log, begin, begin + lengths)
    rules = dict(batch=50, row_length=10, shards=4, chunk=2)
    layout = packing.make_layout(lengths, **rules)._replace(ends=10)
    plan = packing.plan_epoch(lengths, layout, 0, 0)
    whole, part = (
        packing.fill(packing.steps_of(plan, 1, 3, some), sequences, layout, shift=True)
        for some in (None, np.array(own))
    )
    for mine, all_ in zip(part, whole, strict=True):
        of_shards = all_.reshape(2, 4, -1, *all_.shape[2:])
        expected = of_shards[:, own].reshape(mine.shape)
        np.testing.assert_array_equal(mine, expected)


def test_wishes_lie_on_every_device():
    wish = parallel.wishes(parallel.make_mesh())
    assert np.array_equal(wish(cluster.LEAVE), [cluster.LEAVE] * 8)
    assert wish(1) is wish(1)


def wait(file):
    """Listens, and works where Python's own handlers do not run."""
    cluster.listen()
    file.touch()

    @jax.jit
    def turn(x):
        return lax.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, x)

    turn(0).block_until_ready()


def test_a_second_sigterm_ends_a_process_at_once(fork, tmp_path, cache):
    output, ready = tmp_path / "output", tmp_path / "ready"
    given = output, {}, 1, tmp_path, cache, wait, (ready,)
    process = fork(target=in_child, args=given, daemon=True)
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    process.terminate()
    process.join(1)
    assert process.exitcode is None  # it was asked to leave, no more
    process.terminate()
    process.join(60)
    assert process.exitcode == 143
    assert output.read_text() == "ended at once by a second SIGTERM\n"


# --- with others ----------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def in_child(output, variables, devices, folder, cache, target, arguments):
    """A process of a cluster, with its output in a file."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(folder)
    os.environ |= variables
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{count} {FAST}"
    os.environ["NPROC"] = "8"  # threads of XLA: their number cuts long sums in parts
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    target(*arguments)


def command(arguments):
    sys.argv = ["main", *arguments]
    main.run()


def over_the_network(arguments):
    """One process whose sums go over the network as those of several do, and are
    therefore added in the same order."""
    jax.distributed.initialize(f"localhost:{free_port()}", 1, 0)
    command(arguments)


def measured_command(arguments):
    sys.argv = ["main", *arguments]
    processes.measured()


class Cluster:
    """Processes under way; every list has one entry for each."""

    def __init__(self, fork, cache, target, arguments, folders, devices=4, **changes):
        variables = {cluster.COORDINATOR: f"localhost:{free_port()}"}
        variables |= {cluster.PROCESSES: str(len(folders)), cluster.WAIT: "60"}
        self.outputs, self.processes = [], []
        for rank, (own, folder) in enumerate(zip(arguments, folders, strict=True)):
            ranks = variables | {cluster.PROCESS: str(rank)} | changes
            ranks = ranks if len(folders) > 1 or changes else {}
            self.outputs.append(cache / f"output-{time.monotonic_ns()}-{rank}")
            given = self.outputs[-1], ranks, devices, folder, cache, target, own
            self.processes.append(fork(target=in_child, args=given, daemon=True))
            self.processes[-1].start()

    def join(self, seconds=900):
        """Exit codes of all."""
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]

    def texts(self):
        """What they printed, without what the transport says of itself."""
        every = [output.read_text().splitlines() for output in self.outputs]
        return ["\n".join(x for x in lines if "peer rank" not in x) for lines in every]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs compiled by any process, and what all print."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def begin(fork, cache):
    """(workdir, number, devices, options) -> the command's Cluster."""

    def start(workdir, n=2, devices=4, options=(), target=command, method="create"):
        settings = f"--config=quickstart:{method}", *SETTINGS, f"--workdir={workdir}"
        arguments = [([*settings, *options],)] * n
        return Cluster(fork, cache, target, arguments, [ROOT] * n, devices)

    return start


def final_state(workdir):
    stages, reader = (workdir / "checkpoints").iterdir(), ocp.StandardCheckpointer()
    (stage,) = (one for one in stages if one.name != "select")
    newest = max(int(p.name) for p in stage.iterdir() if p.name.isdigit())
    place = stage / str(newest) / "state"
    here = SingleDeviceSharding(jax.devices()[0])  # it may be of other devices

    def like(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    tree = reader.metadata(place).item_metadata.tree
    return reader.restore(place, jax.tree.map(like, tree))


def result(workdir):
    found = json.loads((workdir / "result.json").read_text())
    return {key: found[key] for key in ("valid", "test", "test_by_target", "epochs")}


def finished(run):
    assert run.join() == [0] * len(run.processes), "\n".join(run.texts())


@pytest.fixture(scope="module")
def pair(begin, tmp_path_factory):
    """The workdir of a run of two processes with four devices each, and its texts."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    options = ["--config.example=True"]
    run = begin(workdir, options=options, target=measured_command)
    finished(run)
    return workdir, run.texts()


def ranks_of(workdir):
    with np.load(workdir / "ranks.npz") as found:
        assert {"last", "successive"} < set(found.files)
        return dict(found)


def are_equal(workdir, other):
    """Parameters, moments, metrics and ranks, to the bit."""
    states = final_state(workdir), final_state(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))
    assert result(workdir) == result(other)
    some, others = ranks_of(workdir), ranks_of(other)
    assert some.keys() == others.keys()
    for name in some:
        np.testing.assert_array_equal(some[name], others[name])


@pytest.mark.services
def test_two_processes_are_one_with_as_many_devices(pair, begin, tmp_path):
    workdir, texts = pair
    # Process 0 speaks for both.
    assert "ndcg@10" in texts[0] and "The model's top ten" in texts[0]
    assert texts[1].startswith(processes.MARK)
    one = dict(n=1, devices=8)
    finished(begin(tmp_path / "one", **one, target=over_the_network))
    are_equal(workdir, tmp_path / "one")
    # Without a network sums are added in another order: the same to rounding.
    finished(begin(tmp_path / "alone", **one))
    states = final_state(workdir), final_state(tmp_path / "alone")
    close = dict(rtol=0, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), *states)
    both = result(workdir), result(tmp_path / "alone")
    assert flatten(both[0]) == pytest.approx(flatten(both[1]), rel=1e-4)


@pytest.mark.services
def test_two_processes_split_tables_as_one(begin, tmp_path):
    """Half of each table lies in each process."""
    own = dict(options=[*SHORT, "--config.mesh.model=2"])
    finished(begin(tmp_path / "two", devices=1, **own))
    finished(begin(tmp_path / "one", 1, 2, **own, target=over_the_network))
    are_equal(tmp_path / "two", tmp_path / "one")


@pytest.mark.services
def test_two_processes_read_a_prepared_log_as_one_reads_the_log(begin, tmp_path):
    """Each keeps it on the disk and fills its own rows."""
    folder, own = tmp_path / "log", dict(method="sasrec")
    assert prepare.main(["--config=quickstart:sasrec", f"--out={folder}"]) == 0
    options = [*SHORT, f"--config.data.path={folder}"]
    finished(begin(tmp_path / "two", devices=1, options=options, **own))
    own |= dict(options=SHORT, target=over_the_network)
    finished(begin(tmp_path / "one", 1, 2, **own))
    are_equal(tmp_path / "two", tmp_path / "one")


@pytest.mark.services
def test_agreeing_takes_no_time(pair):
    """Whether to save, and broadcasts, beside the epochs. The barriers of saves are
    only printed: here each of the short epochs is the best so far and saved."""
    for text in pair[1]:
        found = processes.read(text)
        print(found, f"{processes.share(found):.1%} with the barriers of saves")
        spent = found["seconds"]
        assert spent["agreeing"] + spent["whether to save"] <= 0.05 * spent["epochs"]


def epochs_done(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def when(run, workdir, epochs, signal_, rank):
    """Sends a signal to one process once so many epochs are done."""
    process = run.processes[rank]
    while epochs_done(workdir) < epochs and process.exitcode is None:
        time.sleep(0.01)
    os.kill(process.pid, signal_)


@pytest.mark.services
def test_sigterm_to_one_of_two_ends_both_and_the_same_command_goes_on(
    pair, begin, tmp_path
):
    workdir = tmp_path / "run"
    run = begin(workdir)
    when(run, workdir, 2, signal.SIGTERM, rank=1)
    assert run.join() == [143, 143], "\n".join(run.texts())
    texts = run.texts()
    assert "stopped by SIGTERM; the same command goes on" in texts[0] and not texts[1]
    again = begin(workdir)
    finished(again)
    assert "continuing in epoch" in again.texts()[0]
    are_equal(workdir, pair[0])


@pytest.mark.services
def test_killed_processes_go_on_as_one_and_as_two(pair, begin, tmp_path):
    """kill -9 of each process in turn, and another number of them every time."""
    workdir = tmp_path / "run"
    options = ["--config.checkpoint.seconds=0", "--config.eval.targets=()"]
    run = begin(workdir, options=options)
    when(run, workdir, 1, signal.SIGKILL, rank=1)
    codes = run.join()
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
    run = begin(workdir, n=1, devices=8, options=options)
    when(run, workdir, 3, signal.SIGKILL, rank=0)
    assert run.join() == [-signal.SIGKILL]
    assert "continuing in epoch" in run.texts()[0]
    run = begin(workdir, options=options)
    when(run, workdir, 5, signal.SIGKILL, rank=0)
    codes = run.join()
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, None)
    assert "continuing in epoch" in run.texts()[0]
    run = begin(workdir, options=options)
    finished(run)
    states, close = (final_state(workdir), final_state(pair[0])), dict(atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), *states)


# --- what one process sees otherwise --------------------------------------------------


def talk(folder):
    """What two processes say to each other, and a checkpoint whose rows lie in both."""
    cluster.join()
    rank, mesh = jax.process_index(), parallel.make_mesh()
    assert cluster.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert cluster.first(lambda: [rank, "a"]) == [0, "a"]
    alone = pytest.raises(AgreedError, match="^process 1: no such file$")
    with alone, cluster.together():
        if rank:
            raise InputError("no such file")
    with pytest.raises(AgreedError, match="^only here$"):
        cluster.first(lambda: (_ for _ in ()).throw(InputError("only here")))
    unforeseen = pytest.raises(ZeroDivisionError if rank else AgreedError)
    with unforeseen, cluster.together():
        1 / (1 - rank)
    with pytest.raises(AgreedError, match="different data: b is [12], in process 0"):
        cluster.same("data", {"a": 1, "b": 1 + rank})
    cluster.same("data", {"a": 1})

    # Rows of each process's own shards, as if it had made no others.
    table = np.arange(48.0, dtype=np.float32).reshape(8, 6)
    own = table.reshape(4, 2, 6)[parallel.own_shards(mesh)].reshape(4, 6)

    def fetch(x):
        return jax.device_get(parallel.whole(mesh, x))

    split = parallel.place_own(mesh, own, P(parallel.DATA))
    np.testing.assert_array_equal(fetch(split), table)
    assert fetch(parallel.wishes(mesh)(rank)).tolist() == [0, 0, 1, 1]

    checkpoints = checkpoint.Checkpoints(folder / "stage")
    for step in (1, 2):
        state = {"step": parallel.place(mesh, np.int32(step)), "table": split * step}
        checkpoints.save(step, state, {"epoch": step, "best_step": 0})
    checkpoints.wait()
    if rank == 0:
        os.truncate(folder / "stage" / "2" / "progress" / "metadata", 3)
    cluster.gather(None)
    found, about = checkpoints.restore_latest(state)
    assert about == {"epoch": 1, "best_step": 0}
    np.testing.assert_array_equal(fetch(found["table"]), table)
    checkpoints.close()
    cluster.end("", 0)


def test_two_processes_agree(fork, cache, tmp_path):
    arguments, folders = [(tmp_path,)] * 2, [ROOT] * 2
    run = Cluster(fork, cache, talk, arguments, folders, devices=2)
    assert run.join() == [0, 0], "\n".join(run.texts())
    warned = f"checkpoint {tmp_path / 'stage' / '2'} is damaged"
    assert warned in run.texts()[0] and not run.texts()[1]
    assert (tmp_path / "stage" / "2.damaged-1").is_dir()
    # One process reads what two wrote, and finds the same checksum.
    checkpoints = checkpoint.Checkpoints(tmp_path / "stage", read_only=True)
    like = {"step": np.int32(0), "table": np.zeros((8, 6), np.float32)}
    found, _ = checkpoints.restore(1, jax.tree.map(jnp.asarray, like))
    np.testing.assert_array_equal(found["table"], np.arange(48).reshape(8, 6))
    checkpoints.close()


# --- bad input ------------------------------------------------------------------------


@pytest.fixture
def differing(fork, cache, tmp_path):
    """What two processes say and how they end: (options of each) -> codes, texts."""

    def run(*own, config="--config=quickstart:mostpop"):
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        both = config, "--config.compare=()"
        arguments = [([*both, *options],) for options in own]
        found = Cluster(fork, cache, command, arguments, folders, 2)
        return found.join(60), found.texts()

    return run


def ended_in_one_line(found, expected):
    codes, texts = found
    assert codes == [2, 2], "\n".join(texts)
    assert expected in texts[0] and texts[0].count("\n") == 0 and not texts[1], texts
    assert len(texts[0]) < 500


def test_separate_disks_are_found_out_at_the_start(differing, tmp_path):
    own = ["--workdir=run"]
    ended_in_one_line(differing(own, own), "run is not that of process 0 but on a disk")
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.services
def test_other_settings_in_one_process_are_named(differing, tmp_path):
    own = [f"--workdir={tmp_path / 'run'}"]
    found = differing(own, [*own, "--config.seq.dropout=0.5"])
    ended_in_one_line(found, "process 1: the processes have different settings: ")
    assert "--config.seq.dropout is 0.5, in process 0 it is" in found[1][0]


@pytest.mark.services
def test_a_mistake_in_one_process_ends_both(differing, tmp_path):
    own = [f"--workdir={tmp_path / 'run'}"]
    found = differing(own, [*own, "--config.train.batch=0"])
    ended_in_one_line(found, "process 1: config.train.batch is 0")


@pytest.mark.services
def test_other_data_in_one_process_are_named(differing, tmp_path):
    own = [f"--workdir={tmp_path / 'run'}"]
    rows = [f"{u},{i},{100 * i + u}" for u in range(20) for i in range(5)]
    paths = []
    for name, some in (("all", rows), ("less", rows[:-1])):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["user,item,time", *some]))
        paths.append(f"--config.data.path={path}")
    each = [*own, paths[0]], [*own, paths[1]]
    found = differing(*each, config="--config=table:mostpop")
    ended_in_one_line(found, "process 1: the processes have different data: the finger")


@pytest.mark.services
@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_waited_for_as_long_as_said(fork, cache, tmp_path, rank):
    own = (["--config=quickstart", *SETTINGS, f"--workdir={tmp_path / 'run'}"],)
    there = {cluster.PROCESSES: "2", cluster.PROCESS: str(rank), cluster.WAIT: "3"}
    run = Cluster(fork, cache, command, [own], [ROOT], **there)
    assert run.join(60) == [2]
    (text,) = run.texts()
    assert text.startswith(f"error: process {rank} of 2 waited 3 s for the others: ")
    assert ("no coordinator answers" if rank else "not all others came") in text
    assert text.count("\n") == 0
