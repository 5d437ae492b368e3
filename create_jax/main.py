"""python -m create_jax.main --config=beauty[:METHOD] [--mode=MODE] ..."""

import functools
import json
import os
import re
import sys
import threading
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from create_jax import config_file, methods, named
from create_jax.errors import InputError


class ConfigParser(flags.ArgumentParser):
    """Of the flag --config: FILE or FILE:METHOD -> the config."""

    def parse(self, argument):
        """What the command line names may have settings, which it may set as well."""
        changes = {}
        for option in sys.argv[1:]:
            key, _, value = option.removeprefix("--config.").partition("=")
            if key in named.SECTIONS and option != key:
                changes[key] = value
        if "eval.metrics" in changes:
            names = re.findall(r"[\w.]+", changes["eval.metrics"])
            changes["eval.metrics"] = tuple(names)
        return config_file.make(argument, changes)

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
    "workdir", None, "Where a run lives; default runs/<config>-<method>-<seed>."
)
_SAVE = flags.DEFINE_string(
    "save", None, "Of --mode=evaluate: where to keep the result for create_jax.report."
)
_OUT = flags.DEFINE_string(
    "out", None, "Of --mode=export: the file, as in --out=model.safetensors."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a cluster (jax.distributed)."
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    None,
    "Of --mode=train: the epoch, from 1, of which two dispatches are traced into "
    "<workdir>/profile.",
    lower_bound=1,
)


def main(argv: list[str]) -> None:
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
    if FLAGS.verbosity < 0:
        logging.set_verbosity(logging.FATAL)  # orbax has much to say
    from create_jax import settings

    config = config_for()
    settings.check(config)
    # JAX wakes only now: --help and mistakes in flags and values need not wait for it.
    import jax

    if _DISTRIBUTED.value:
        jax.distributed.initialize()
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

    build.check(config)
    if _MODE.value == "describe":
        log = protocol.load(config)
        facts = protocol.describe(config, log, protocol.make_split(config, log))
        rundir.warn_of_odd_times(config, facts["data"])
        print(json.dumps(facts, indent=2))
    elif _MODE.value == "evaluate":
        runs = runs_of([config.method])
        say_without_effect([settings.flatten(c.to_dict()) for c in runs])
        again = experiment.evaluate_again
        report.show([again(c, workdir(c), _apart(_SAVE.value, c)) for c in runs])
    elif _MODE.value == "export":
        runs = runs_of([config.method])
        if len(runs) > 1:
            raise InputError(
                f"config.seeds is {tuple(config.seeds)}; one file holds one run: name "
                "it with --config.seed="
            )
        say_without_effect([settings.flatten(runs[0].to_dict())])
        export.export(runs[0], workdir(runs[0]), _OUT.value)
    elif _MODE.value == "tune":
        say_without_effect(tune.variants(config, tune.check(config)))
        tune.tune(config, _WORKDIR.value or f"{workdir(config)}-tune")
    else:
        runs = runs_of([config.method, *config.compare])
        say_without_effect([settings.flatten(c.to_dict()) for c in runs])
        profile, train = {0: profiled(runs[0])}, experiment.train_and_evaluate
        results = [train(c, workdir(c), profile.get(n, 0)) for n, c in enumerate(runs)]
        report.show(results)
        if config.example:
            example.show(runs[0], workdir(runs[0]))


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
            build.check(runs[-1])
    return runs


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
    import jax

    from create_jax.unread import without_effect

    changed = list(config_flags.get_override_values(FLAGS["config"]))
    text = without_effect(changed, flats, _MODE.value)
    if text and jax.process_index() == 0:
        print(text, file=sys.stderr)


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
    return place + method + seed


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
        main(parse_flags(sys.argv))
    except InputError as error:
        _stop(f"error: {error}", 2)
    except OSError as error:
        reason = f"{error.filename or 'a file'}: {error.strerror or error}"
        _stop(f"error: {reason}; put that right and run again", 2)
    except KeyboardInterrupt:
        _stop("stopped; the same command continues from the last checkpoint", 130)


def _stop(message: str, code: int) -> None:
    """Says why, and leaves at once: a failed save must not speak after the message."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
