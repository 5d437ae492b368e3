"""Objects that a config names: entries of a table, or dotted paths to import.

A table of the package is next to the functions that it names (`losses.NEXT_ITEM`,
`splits.SPLITS` ...). A name with dots is a module, or `module.name`. A named object may
have settings: the `SETTINGS` of a module, or the keyword-only arguments of a function.
In a config the settings are a section named after the last part of the path. The
settings of `align.kind=mine.cosine` are `align.cosine.*`.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType

from ml_collections import ConfigDict

from create_jax.errors import InputError, bad_setting

# Settings that name an object -> the section with the settings of that object. A
# setting with several names has a section for each.
SECTIONS = {
    "method": "",
    "data.loader": "data",
    "split.kind": "split",
    "eval.metrics": "eval",
    "seq.encoder": "seq",
    "graph.encoder": "graph",
    "align.kind": "align",
    "loss.local": "loss",
}
# Arguments of functions that are no settings: the package fills them in.
GIVEN = ("axis_name", "n_items", "k_core", "drop_repeats", "counts")


def find(key: str, name: str, ours: Mapping, what: str = "function"):
    """The object that the setting `key` names: `ours[name]`, or the object at a dotted
    path. A text in `ours` is a dotted path too.

    Raises:
      InputError: no object has that name.
    """
    reason = ""
    try:
        if name in ours:
            found = ours[name]
            return load(found) if isinstance(found, str) else found
        if "." in name:
            return load(name)
    except Exception as error:  # a user's module may raise anything
        reason = f" ({type(error).__name__}: {error})"
    some = f"one of {', '.join(ours)}, or " if ours else ""
    expected = f"{some}the dotted path of a {what}{reason}"
    raise bad_setting(key, name, expected)


@functools.cache
def load(path: str):
    """A module, or the attribute of a module that is the last part of the path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        module, _, name = path.rpartition(".")
        if error.name != path or not module:
            raise
        return getattr(importlib.import_module(module), name)


def last(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def own_settings(thing) -> dict:
    """The defaults of the settings of an object."""
    if isinstance(thing, ModuleType):
        return dict(getattr(thing, "SETTINGS", {}))
    return {
        p.name: p.default
        for p in inspect.signature(thing).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name not in GIVEN
    }


def check_call(key: str, name: str, thing, n_arguments: int, **given) -> None:
    """Raises InputError before training if a function does not take so many arrays and
    the arguments that the package passes by name."""
    try:
        signature = inspect.signature(thing)
        signature.bind(*[None] * n_arguments, **own_settings(thing), **given)
    except TypeError as error:
        expected = " and ".join([f"a function of {n_arguments} arrays", *given])
        raise bad_setting(key, name, f"{expected} ({error})") from None


def section_of(section: Mapping, name: str) -> Mapping:
    """The settings of an object in a section of a config."""
    own = section.get(last(name))
    return own if isinstance(own, Mapping | ConfigDict) else {}


def arguments(section: Mapping, name: str, thing, renamed: Mapping = {}) -> dict:
    """The keyword-only arguments that a config has for a function.

    Args:
      section: of the config; an argument is `section[last(name)][argument]`, or else
        `section[argument]`.
      renamed: arguments whose setting has another (dotted) name in the section.
    """
    own, found = section_of(section, name), {}
    for p in inspect.signature(thing).parameters.values():
        if p.kind is not p.KEYWORD_ONLY or p.name in GIVEN:
            continue
        if p.name in renamed:
            part, _, setting = renamed[p.name].rpartition(".")
            found[p.name] = (section[part] if part else section)[setting]
        elif p.name in own:
            found[p.name] = own[p.name]
        elif p.name in section:
            found[p.name] = section[p.name]
    return found


def add_settings(config: ConfigDict) -> None:
    """Adds to an unlocked config the settings of objects named by a dotted path.

    Raises:
      InputError: nothing of that name can be imported, or its settings would take the
        name of another.
    """
    for key, place in SECTIONS.items():
        *parts, setting = key.split(".")
        node = config[parts[0]] if parts else config
        names = node.get(setting) or ()
        for name in (names,) if isinstance(names, str) else names:
            if "." not in str(name):
                continue
            defaults = own_settings(find(key, name, {}, "module or function"))
            if not defaults:
                continue
            section = config[place] if place else config
            there = section.get(last(name))
            if there is not None and not isinstance(there, ConfigDict):
                raise InputError(
                    f"config.{key} is {name!r}, whose settings would stand at "
                    f"{key.split('.')[0]}.{last(name)}, which is a setting; give it "
                    "another name"
                )
            section[last(name)] = defaults | (there.to_dict() if there else {})
