"""Config files: found by path or by name, and made for any method."""

import importlib
import inspect
import json
import pkgutil
import re
import textwrap
import traceback
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from create_jax import configs, named, settings
from create_jax.configs import common
from create_jax.errors import InputError

# Settings that are tuples of words, which the command line may write as a,b.
TUPLES = ("compare", "eval.targets", "eval.metrics")


def names() -> list[str]:
    """The packaged configs, which `--config=NAME` finds from anywhere."""
    found = (module.name for module in pkgutil.iter_modules(configs.__path__))
    return [name for name in found if name != "common"]


def make(source: str, changes: dict, method: str | None = None) -> ConfigDict:
    """The config of a file for a method, with the method's defaults, then changes.

    Args:
      source: FILE or FILE:METHOD, as in --config. FILE is a path or one of `names()`.
      changes: settings of the command line, by dotted names.
      method: of the config; None = that of `changes`, or else that of `source`.

    Raises:
      InputError: the file cannot be loaded, or has no config of that method.
    """
    file, _, suffix = source.partition(":")
    method = method or changes.get("method") or suffix or None
    config = load(file, method)
    names = {key: value for key, value in changes.items() if key in named.SECTIONS}
    with config.unlocked():
        config.update_from_flattened_dict(names | {"method": config.method})
        named.add_settings(config)
    config.update_from_flattened_dict(changes | {"method": config.method})
    return config


def sections(options: Iterable[str]) -> dict:
    """Of options --config.x.y=VALUE those that name what may bring settings of its own.
    `make` takes them first, to know these settings."""
    pairs = (option.removeprefix("--config.").partition("=") for option in options)
    found = {key: value for key, is_, value in pairs if is_ and key in named.SECTIONS}
    if "eval.metrics" in found:
        found["eval.metrics"] = tuple(re.findall(r"[\w.]+", found["eval.metrics"]))
    return found


def load(file: str, method: str | None = None) -> ConfigDict:
    """What the `get_config` of a file returns for a method, locked. Without a method
    the file chooses one. Settings that the file does not have get their defaults."""
    try:
        get_config = _import(file).get_config
        takes_method = bool(inspect.signature(get_config).parameters)
        config = get_config(method) if method and takes_method else get_config()
        if not isinstance(config, ConfigDict) or "method" not in config:
            raise TypeError(f"get_config returned {type(config).__name__}, no config")
        with config.unlocked():
            _fill(config, common.get_config(config.method))
    except InputError:
        raise
    except Exception as error:  # a user's file may raise anything
        raise InputError(_describe(file, error)) from None
    if method and config.method != method:
        reason = "its get_config takes no method"
        if takes_method:
            reason = "its get_config does not pass the method to common.get_config"
        instead = f"run {method} with a config of its own"
        if method in config.compare:
            instead += ", and this one with --config.compare=()"
        raise InputError(
            f"{file} is a config of {config.method} and has none of {method} "
            f"({reason}); {instead}"
        )
    return config.lock()


def of_study(best: str, chosen: dict) -> ConfigDict:
    """The config of a study, changed by the settings that its best.py names. What it
    does not have because it is older has the value of then.

    Args:
      best: path of that best.py; the study's config.json stands beside it.
      chosen: settings by their dotted names.

    Raises:
      InputError: there is no config.json beside it.
    """
    path = Path(best).with_name("config.json")
    if not path.exists():
        raise InputError(
            f"{path} is not here; best.py is what was chosen on top of it: keep both "
            "files of a study together"
        )
    saved = json.loads(path.read_text())["config"]
    has, later = settings.flatten(saved), settings.OLD_DEFAULTS.items()
    changes = {key: value for key, value in later if key not in has} | chosen
    config = ConfigDict(_tuples(saved))
    config.update_from_flattened_dict(_tuples(changes) | {"compare": ()})
    return config


def _tuples(value):
    """Turns the lists of JSON into the tuples of a config."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return value


def _import(file: str) -> ModuleType:
    if file in names():
        return importlib.import_module(f"create_jax.configs.{file}")
    # No bytecode: Python's cache knows a file by its second and size, and a sweep
    # may write two configs within one second.
    loader = SourceFileLoader("config_file", file)
    module = ModuleType(loader.name)
    module.__file__ = file
    exec(loader.source_to_code(loader.get_data(file), file), module.__dict__)
    return module


def _describe(file: str, error: Exception) -> str:
    """One line: where in the file the error is, and what it is."""
    if isinstance(error, OSError) and error.filename == file:
        return (
            f"{file}: no config file here ({error.strerror}); expected one of "
            f"{', '.join(names())}, or the path of a file"
        )
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f"{file}:{lines[-1]}" if lines else file
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        hint = "; write `from create_jax.configs import common`"
    text = textwrap.shorten(str(error), 300, placeholder=" ...")
    return f"{where}: {type(error).__name__}: {text}{hint}"


def _fill(config: ConfigDict, defaults: ConfigDict) -> None:
    """Adds settings that are newer than the file."""
    for key, value in defaults.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict) and isinstance(config[key], ConfigDict):
            _fill(config[key], value)
