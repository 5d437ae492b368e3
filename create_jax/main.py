"""python -m create_jax.main --config=beauty[:METHOD] [--mode=MODE] ..."""

import functools
import json
import re
import sys
import threading
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from create_jax import cluster, config_file, methods
from create_jax.errors import AgreedError, InputError, about_file, one_line


class ConfigParser(flags.ArgumentParser):
    """Of the flag --config: FILE or FILE:METHOD -> the config."""

    def parse(self, argument):
        """What the command line names may have settings, which it may set as well."""
        return config_file.make(argument, config_file.sections(sys.argv[1:]))

    def flag_type(self):
        return "config"


# Two or more words of letters, none of them a number: a,b or your.module,ndcg
WORDS = re.compile(r"[^\W\d][\w.]*(,[^\W\d][\w.]*)+")

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "NAME[:METHOD] or FILE.py[:METHOD]; change any setting with --config.x.y=value. "
    f"NAME: {', '.join(config_file.names())}. METHOD, create if none is named: "
    f"{', '.join(methods.METHODS)}.",
)
FLAGS["config"].parser = ConfigParser()  # finds packaged names, and says more
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "describe", "tune", "export"],
    "train: learn, select on validation, refit on train + validation, test once; "
    "evaluate: rank the test queries again with a finished run's parameters; "
    "describe: print the protocol and the counts of the data as JSON, train nothing; "
    "tune: choose the settings of config.tune.space on validation, write a config; "
    "export: write the model of a finished run into the file --out.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where a run lives; default runs/<config>-<method>-<seed>. -<method> and -<seed> "
    "are added to it where several run.",
)
_SAVE = flags.DEFINE_string(
    "save", None, "Of --mode=evaluate: where to keep the result for create_jax.report."
)
_OUT = flags.DEFINE_string(
    "out", None, "Of --mode=export: the file, as in --out=model.safetensors."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Join the other processes of a cluster that JAX detects (Kubernetes, TPU pods). "
    "Needless under Slurm and Open MPI and where CREATE_JAX_PROCESSES says how many "
    "there are; --nodistributed keeps to one process even there.",
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    None,
    "Of --mode=train: the epoch, from 1, of which two dispatches are traced into "
    "<workdir>/profile.",
    lower_bound=1,
)


def main(argv: list[str]) -> None:
    config = checked(argv)
    if FLAGS.verbosity < 0:
        logging.set_verbosity(logging.FATAL)  # orbax has much to say
    # JAX wakes only now: --help and mistakes in flags and values need not wait for it.
    from create_jax import (
        build,
        example,
        experiment,
        export,
        protocol,
        report,
        rundir,
        tune,
    )
    from create_jax.settings import flatten
    from create_jax.writers import say

    refuse_other_commands(config)
    build.check(config, selects=selects())
    if _MODE.value == "describe":
        log = protocol.load(config)
        facts = protocol.describe(config, log, protocol.make_split(config, log))
        rundir.warn_of_odd_times(config, facts["data"])
        say(json.dumps(facts, indent=2))
    elif _MODE.value == "evaluate":
        runs = runs_of([config.method])
        say_without_effect([flatten(c.to_dict()) for c in runs])
        again = experiment.evaluate_again
        results = [again(c, workdir(c), _apart(_SAVE.value, c)) for c in runs]
        if cluster.is_first():
            report.show(results)
    elif _MODE.value == "export":
        runs = runs_of([config.method])
        if len(runs) > 1:
            raise InputError(
                f"config.seeds is {tuple(config.seeds)}; one file holds one run: name "
                "it with --config.seed="
            )
        say_without_effect([flatten(runs[0].to_dict())])
        export.export(runs[0], workdir(runs[0]), _OUT.value)
    elif _MODE.value == "tune":
        say_without_effect(tune.variants(config, tune.check(config)))
        tune.tune(config, _WORKDIR.value or f"{workdir(config)}-tune")
    else:
        runs = runs_of([config.method, *config.compare])
        say_without_effect([flatten(c.to_dict()) for c in runs])
        profile, train = {0: profiled(runs[0])}, experiment.train_and_evaluate
        results = [train(c, workdir(c), profile.get(n, 0)) for n, c in enumerate(runs)]
        if cluster.is_first():
            report.show(results)
        if config.example:
            example.show(runs[0], workdir(runs[0]))


def checked(argv: list[str]):
    """The config of the command line; an InputError for mistakes that need no JAX."""
    if len(argv) > 1:
        raise InputError(
            f"unexpected argument {argv[1]!r}; every option starts with --"
        )
    if _CONFIG.value is None:
        raise InputError("--config is missing; for example --config=quickstart")
    if _SAVE.value and _MODE.value != "evaluate":
        raise InputError(
            f"--save goes with --mode=evaluate, found --mode={_MODE.value}; a trained "
            "run keeps its result in --workdir"
        )
    if _PROFILE.value and _MODE.value != "train":
        raise InputError(f"--profile goes with --mode=train, found {_MODE.value}")
    if bool(_OUT.value) != (_MODE.value == "export"):
        raise InputError(
            f"--out=FILE goes with --mode=export, found --mode={_MODE.value} and "
            f"--out={_OUT.value or ''}; as in --mode=export --out=model.safetensors"
        )
    from create_jax import settings

    config = config_for()
    settings.check(config, selects=selects())
    return config


def refuse_other_commands(config) -> None:
    """All processes of a cluster do the same; files may lie elsewhere in each."""
    from create_jax import settings

    flat = settings.flatten(config.to_dict())
    values = {f"--config.{key}": value for key, value in flat.items()}
    del values["--config.data.path"]
    own = {"--mode": _MODE.value, "--workdir": _WORKDIR.value, "--save": _SAVE.value}
    own["--profile"] = _PROFILE.value
    cluster.same("settings", values | own)


@functools.cache
def config_for(method: str | None = None):
    """The config of the command line for a method; None = for the one it names. Copy it
    before you change it."""
    flag = FLAGS["config"]
    source = config_flags.get_config_filename(flag)
    changes = config_flags.get_override_values(flag)
    return config_file.make(source, changes, method)


def runs_of(methods: list[str]) -> list:
    """A config for each method, with its own defaults, and seed."""
    from create_jax import build, settings

    runs = []
    for method in dict.fromkeys(methods):
        config = config_for(method)
        for seed in settings.seeds(config):
            runs.append(config.copy_and_resolve_references())
            runs[-1].seed = seed
            build.check(runs[-1], selects=selects())
    return runs


def selects() -> bool:
    """Whether validation may choose under this --mode; elsewhere it has."""
    return _MODE.value in ("train", "tune")


def profiled(config) -> int:
    """--profile, an epoch that a run of this config may have; 0 = none is traced."""
    from create_jax import build

    if not _PROFILE.value:
        return 0
    trains = methods.find(config.method).kind != "free"
    epochs = sum(phase.epochs for phase in build.make_phases(config)) if trains else 0
    if _PROFILE.value > epochs:
        raise InputError(
            f"--profile={_PROFILE.value}: {config.method} trains for {epochs} epochs "
            "at most, its warm-up among them; name one of these"
        )
    return _PROFILE.value


def say_without_effect(flats: list[dict]) -> None:
    """Names on stderr what the command line sets for nothing."""
    from create_jax.unread import without_effect
    from create_jax.writers import warn

    changed = list(config_flags.get_override_values(FLAGS["config"]))
    text = without_effect(changed, flats, _MODE.value)
    if text:
        warn(text)


def workdir(config) -> str:
    """--workdir, or a directory named after what runs; methods and seeds never share
    one."""
    if not _WORKDIR.value:
        file = config_flags.get_config_filename(FLAGS["config"]).split(":")[0]
        return f"runs/{Path(file).stem}-{config.method}-{config.seed}"
    return _apart(_WORKDIR.value, config)


def _apart(place: str | None, config) -> str:
    """A place named by a flag, its own for each of several methods and seeds; "" where
    none is named."""
    if not place:
        return ""
    method = "" if config.method == config_for().method else f"-{config.method}"
    seed = f"-{config.seed}" if config.seeds else ""
    return place.rstrip("/") + method + seed


def parse_flags(argv: list[str]) -> list[str]:
    """Flags, where a mistake is an InputError in one line."""
    try:
        return FLAGS([_quoted(option) for option in argv])
    except InputError:
        raise
    except Exception as error:  # config_flags raises many types for one kind of mistake
        text = " ".join(str(error).split())
        raise InputError(f"{text}; see python -m create_jax.main --help") from None


def _quoted(option: str) -> str:
    """--config.KEY=a,b with the quotes that a tuple of words has in Python."""
    name, _, value = option.partition("=")
    key = name.removeprefix("--config.")
    if not WORDS.fullmatch(value) or key not in config_file.TUPLES:
        return option
    return f"{name}={tuple(value.split(','))}"


def run() -> None:
    """The command: an InputError is one line on stderr and exit code 2."""
    _mute_background_threads()
    try:
        if any(flag in sys.argv[1:] for flag in ("--help", "-h", "--helpfull")):
            app.run(main)
        argv = begin()
        cluster.listen()
        main(argv)
        cluster.part()
    except AgreedError as error:
        cluster.end(f"error: {error}", 2)
    except InputError as error:
        cluster.stop(f"error: {error}", 2)
    except cluster.Leaving:
        cluster.end(
            "stopped by SIGTERM; the same command goes on from the checkpoint",
            cluster.SIGTERM_CODE,
        )
    except KeyboardInterrupt:
        text = "stopped; the same command continues from the last checkpoint"
        cluster.stop(text, 130)
    except Exception as error:
        if cluster.is_lost(error):
            cluster.stop(
                f"error: another process has ended ({one_line(error, 150)}); the same "
                "command continues from the last checkpoint",
                1,
            )
        if not isinstance(error, OSError):
            raise
        cluster.stop(f"error: {about_file(error)}", 2)


def begin() -> list[str]:
    """The arguments without flags, once this process has joined the others, if any, and
    none of them found a mistake on its command line."""
    argv, mistake = [], None
    try:
        argv = parse_flags(sys.argv)
        checked(argv)
    except InputError as error:
        mistake = error
    joins = _DISTRIBUTED.value if FLAGS.is_parsed() else None
    if cluster.described() if joins is None else joins:
        cluster.join()
        with cluster.together():
            if mistake:
                raise mistake
    elif mistake:
        raise mistake
    return argv


def _mute_background_threads() -> None:
    """Orbax raises again in this thread what its own threads meet; once is enough. What
    it drops unfinished, when a file is damaged, is said once as well."""

    def only_main(hook):
        def muted(*error):
            if threading.current_thread() is threading.main_thread():
                hook(*error)

        return muted

    sys.excepthook = only_main(sys.excepthook)
    sys.unraisablehook = lambda _: None
    threading.excepthook = only_main(threading.excepthook)


if __name__ == "__main__":
    run()
