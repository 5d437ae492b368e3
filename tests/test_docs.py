"""What the documents cite exists, and what they say of defaults and counts is so."""

import ast
import io
import json
import re
import sys
import tokenize
from functools import cache, reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from create_jax import config_file, methods
from create_jax.configs import common

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "BUILD.md", "launch/README.md")),
    *DOCS,
]
CODE = [
    path
    for name in ("create_jax", "configs", "tests", "benchmarks")
    for path in (ROOT / name).rglob("*.py")
]
TEXTS = [
    *PAGES,
    *(ROOT / "results").glob("*.*"),
    *(ROOT / "benchmarks").rglob("*.md"),
    *(path for path in CODE if path.name != "test_docs.py"),
    ROOT / "pyproject.toml",
]
TEXTS = [path for path in TEXTS if path.suffix in (".md", ".py", ".sh", ".toml")]
CHOICES, MODELS, PROTOCOL = (
    ROOT / f"docs/{name}.md" for name in ("choices", "models", "protocol")
)
WRITTEN = ("report.md",)  # by a command, wherever it is told to
FOLDERS = "create_jax|configs|benchmarks|tests|docs|results|launch"
DEFAULT = r"`config\.([\w.]+)=([^`]*)`"


def by_name(paths):
    return {str(path.relative_to(ROOT)): path for path in paths}


def each(paths):
    names = by_name(paths)
    return pytest.mark.parametrize("path", names.values(), ids=names.keys())


@cache
def read(path: Path) -> str:
    return path.read_text()


@cache
def anchors(path: Path) -> list[str]:
    """What a link may follow # with, as GitHub makes it of headings."""
    code = re.sub(r"^```.*?^```", "", read(path), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.*)$", code, re.M)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return [heading.replace(" ", "-") for heading in kept]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@cache
def choices() -> dict[int, str]:
    """Number of an open choice -> its row without `\\|`."""
    lines = re.findall(r"^\| (\d+) \|(.*)$", read(CHOICES), re.M)
    assert len(dict(lines)) == len(lines), "a number is given twice"
    return {int(number): row for number, row in lines}


@cache
def default_config(method: str | None = None):
    return common.get_config(method)


def setting(config, key: str):
    """The setting or section of a dotted name; KeyError, where there is none."""
    return reduce(lambda node, part: node[part], key.split("."), config)


def exists(key: str) -> bool:
    try:
        setting(default_config(), key)
    except (KeyError, TypeError, AttributeError):
        return False
    return True


def value_of(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def wrong_defaults(text: str, method: str | None = None) -> list[str]:
    config, wrong = default_config(method), []
    for key, value in re.findall(DEFAULT, text):
        found = setting(config, key) if exists(key) else "no setting"
        if found != value_of(value):
            wrong.append(f"{key}={value}, and it is {found}")
    return wrong


# --- references -----------------------------------------------------------------------


def missing_references(path: Path) -> list[str]:
    """Documents, and sections of them, that a text cites and that are not there."""
    text, links, found = read(path), [], []
    if path.suffix == ".md":
        links = re.findall(r"\]\(([^)\s]+)\)", text)
        text = re.sub(r"\]\([^)\s]+\)", "]", text)
    # Not in quotes: a name that a program gives to a file.
    cited = re.findall(r"(?<![\w\"'/.*{}<-])(?:[\w.-]+/)*[\w-]+\.md(?:#[\w-]+)?", text)
    for target in [*links, *cited]:
        name, _, anchor = target.partition("#")
        if name.startswith("http") or name in WRITTEN:
            continue
        places = [path.parent / name if name else path]
        places += [ROOT / name] if target not in links else []
        there = [place for place in places if place.exists()]
        if not there or (anchor and anchor not in anchors(there[0])):
            found.append(target)
    return found


def missing_choices(path: Path) -> set[str]:
    """Numbers of choices that a text cites and that are not there."""
    text = re.sub(r"\s+(# )?", " ", re.sub(r"`[^`]*`", "", read(path)))
    cited = re.findall(r"choices\.md\)?,? (\d+(?:, \d+)*)", text)
    if path == MODELS:
        cited += re.findall(r"\((\d+(?:, \d+)*)\)", text)
    cited += re.findall(r"(choices? \d+)", text)  # docs/choices.md N is what to say
    numbers = {number for some in cited for number in some.split(", ")}
    return numbers - {str(number) for number in choices()}


def test_cited_documents_and_their_sections_exist():
    missing = {str(path): missing_references(path) for path in TEXTS}
    assert {path: names for path, names in missing.items() if names} == {}


def test_cited_choices_exist():
    missing = {str(path): missing_choices(path) for path in TEXTS}
    assert {path: names for path, names in missing.items() if names} == {}


def test_what_is_missing_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md), docs/models.md#sasrec, docs/models.md#none, [c](#d)\n")
    assert missing_references(page) == ["b.md", "#d", "docs/models.md#none"]
    page = tmp_path / "other.md"
    page.write_text("docs/choices.md 3, 99 and choice 4\n")
    assert missing_choices(page) == {"99", "choice 4"}


def test_choices_are_numbered_without_gaps():
    assert sorted(choices()) == list(range(1, len(choices()) + 1))


def test_the_config_cites_each_choice_where_it_is_made():
    text = read(ROOT / "configs/common.py")
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    (made,) = [c for c in calls if getattr(c.func, "id", "") == "ConfigDict"]

    def places(tree, prefix=""):
        for key, value in zip(tree.keys, tree.values, strict=True):
            yield prefix + key.value, key.lineno
            if isinstance(value, ast.Dict):
                yield from places(value, f"{prefix}{key.value}.")

    line_of = dict(places(made.args[0]))
    cited = {}  # line -> numbers
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            found = re.findall(r"\((\d+(?:, \d+)*)[;)]", token.string)
            numbers = {int(n) for some in found for n in some.split(",")}
            cited.setdefault(token.start[0], set()).update(numbers)
    made_by = {
        n: [k for k, _ in re.findall(DEFAULT, row)] for n, row in choices().items()
    }
    for number, keys in made_by.items():
        for key in keys:
            parts = key.split(".")
            around = [".".join(parts[: end + 1]) for end in range(len(parts))]
            lines = {line_of[name] for name in around}
            assert any(number in cited.get(line, ()) for line in lines), (number, key)
    for line, numbers in cited.items():
        here = [key for key, at in line_of.items() if at == line]
        for number in numbers:
            keys = made_by[number]
            assert any(k.startswith(tuple(here)) for k in keys), (line, number)


# --- defaults and counts --------------------------------------------------------------


@each([CHOICES, PROTOCOL])
def test_a_stated_default_is_the_config_s(path):
    assert re.search(DEFAULT, read(path)) and wrong_defaults(read(path)) == []


def test_a_stated_default_of_a_method_is_its_own():
    wrong = []
    for section in re.split(r"^## ", read(MODELS), flags=re.M)[1:]:
        method = re.search(r"^\*\*Method\*\* `(\w+)`", section, re.M)
        wrong += wrong_defaults(section, method[1] if method else None)
    assert wrong == []


def test_what_a_method_sets_differently_is_stated():
    missing = {}
    for section in re.split(r"^## ", read(MODELS), flags=re.M)[1:]:
        heads = re.findall(r"^\*\*Methods?\*\* (.*)", section, re.M)
        named = set(re.findall(r"`(\w+)`", " ".join(heads)))
        for name in named & methods.METHODS.keys():
            own = methods.METHODS[name].defaults.keys() - {"tune.space"}
            missing[name] = own - {key for key, _ in re.findall(DEFAULT, section)}
    assert len(missing) > 14
    assert {name: keys for name, keys in missing.items() if keys} == {}


def test_every_method_has_its_place():
    missing = [m for m in methods.METHODS if f"`{m}`" not in read(MODELS)]
    assert missing == []


def test_a_wrong_default_is_found():
    assert wrong_defaults("`config.loss.w_bt=0.3`, `config.loss.w_bt=0.2`") == [
        "loss.w_bt=0.3, and it is 0.2"
    ]
    assert wrong_defaults("`config.loss.weight=1`") != []


def test_the_ranges_of_a_study_are_those_that_it_searches():
    searched = {name: (low, high) for name, _, low, high in methods.SEARCH_JOINT[:4]}
    found = {}
    for row in choices().values():
        if stated := re.search(r"a study searches ([\d.]+\d) to ([\d.]*\d)", row):
            ((name, _),) = re.findall(DEFAULT, row)
            found[name] = tuple(map(float, stated.groups()))
    assert len(found) == 2
    assert {name: searched[name] for name in found} == found


def test_what_a_data_set_changes_is_what_its_config_has():
    table = read(CHOICES).split("data sets change most:")[1].strip().splitlines()
    keys = cells(table[0])[1:]
    rows = {row[0].strip("`"): row[1:] for row in map(cells, table[2:])}
    assert sorted(rows) == sorted(config_file.names())
    for name, values in rows.items():
        config = config_file.load(name, None)
        assert [value_of(v) for v in values] == [setting(config, k) for k in keys], name


def test_counts_of_the_data_are_those_of_configs_and_results():
    rows = [cells(line) for line in read(PROTOCOL).splitlines() if line[:3] == "| `"]
    rows = [row for row in rows if len(row) == 8]
    names = [row[0].strip("`") for row in rows]
    assert sorted([*names, "table"]) == sorted(config_file.names())
    for name, row in zip(names, rows, strict=True):
        counts = config_file.load(name, None).data.counts
        assert row[2:5] == [f"{count:,}" for count in counts], name
        kept = sorted((ROOT / f"results/{name}").rglob("result.json"))
        if kept:
            data = json.loads(kept[0].read_text())["data"]
            keys = "train_interactions", "test_queries", "unseen_items"
            assert row[5:] == [f"{data[key]:,}" for key in keys], name


def test_what_a_result_holds_is_explained():
    kept = json.loads(next((ROOT / "results/beauty").rglob("result.json")).read_text())
    table = section(PROTOCOL, "result.json")
    assert [key for key in kept if f"`{key}`" not in table] == []


# --- commands, modules, settings ------------------------------------------------------


@each(PAGES)
def test_what_a_page_names_exists(path):
    text = read(path)
    for module in re.findall(r"python -m ([\w.]+)", text):
        place = ROOT / module.replace(".", "/")
        known = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
        assert known or module == "pytest", module
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for file, names in re.findall(
        r"`(create_jax/[\w/]+\.py)`:?\s\(?((?:`\w+`,?\s?)+)", text
    ):
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(def|class) {name}\b", read(ROOT / file), re.M), name
    for key in re.findall(r"--config\.([\w.]*\w)", text):
        assert exists(key) or key in ("x.y", "eval", "graph.gated.layers"), key
    for span in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`", text):
        group, last = span.split(".")[0], span.split(".")[-1]
        if group in default_config() and last not in ("py", "md", "json"):
            assert exists(span), span
    for name, method in re.findall(r"--config=(\w+)(?::(\w+))?(?![\w/.])", text):
        assert name in (*config_file.names(), "NAME", "FILE"), name
        assert method in (*methods.METHODS, "METHOD", ""), method


@each(PAGES)
def test_a_flag_that_a_page_names_is_one(path):
    programs = "".join(map(read, CODE))
    for name in re.findall(r"(?<![\w-])--(?!xla_)([a-z_]+)=", read(path)):
        assert f'"{name}"' in programs or f'"--{name}"' in programs, name
    for mode in re.findall(r"--mode=([a-z]+)", read(path)):
        assert f'"{mode}"' in read(ROOT / "create_jax/main.py"), mode


def section(page: Path, heading: str) -> str:
    return read(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


def test_the_readme_is_short_and_has_only_numbers_of_the_results():
    page = ROOT / "README.md"
    assert len(read(page).splitlines()) <= 170
    found = section(page, "What we found")
    assert numbers(found) and numbers(found) <= numbers(
        "".join(map(read, (ROOT / "results").glob("**/report.md")))
    )
    fast = section(page, "Speed")
    assert numbers(fast) and numbers(fast) <= numbers(
        read(ROOT / "benchmarks/speed/RESULTS.md")
        + read(ROOT / "benchmarks/ACCELERATOR.md")
    )


@pytest.fixture(scope="module")
def house() -> list[str]:
    """The modules as README's map has them, from the top."""
    listed = []
    for line in section(ROOT / "README.md", "The house").split("```")[1].splitlines():
        names = line.split("#")[0].split()
        folder = names.pop(0) if names and names[0].endswith("/") else ""
        listed += [folder + name for name in names]
    return listed


def test_the_map_of_the_house_has_every_module_once(house):
    package = ROOT / "create_jax"
    paths = [path for path in package.rglob("*.py") if path.stem != "__init__"]
    modules = [path.relative_to(package).with_suffix("") for path in paths]
    assert sorted(house) == sorted(map(str, modules))


def test_a_module_imports_from_those_after_it_only(house):
    """Also inside functions."""
    for number, name in enumerate(house):
        tree = ast.parse((ROOT / f"create_jax/{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and "create_jax" in (node.module or ""):
                inside = node.module.replace(".", "/").removeprefix("create_jax")
                found = [inside, *(f"{inside}/{one.name}" for one in node.names)]
                above = {one.strip("/") for one in found} & set(house[: number + 1])
                assert not above, f"{name} imports {above}"


def test_the_example_of_extending_runs_as_printed():
    code = re.search(
        r"^```python\n(.*?)^```", read(ROOT / "docs/extending.md"), re.M | re.S
    )
    module = {"__name__": "decay"}
    exec(code[1], module)
    x, inside = jnp.zeros((2, 4, 8)), jnp.zeros((2, 4), int)
    encoder = module["Encoder"](2, 1, 0.1, 4, 1)
    start = jax.random.key(0), x, inside, inside, False
    states = jax.eval_shape(encoder.init_with_output, *start)[0]
    assert states.shape == x.shape and module["OBJECTIVE"] == "next"


def test_who_only_asks_installs_all_that_is_imported():
    """Imports inside functions too: nothing else says what a user will come to."""
    seen, outside = set(), set()
    todo = ["create_jax.recommend", "create_jax.serve"]
    while todo:
        path = ROOT / (todo.pop().replace(".", "/") + ".py")
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(read(path))):
            names = [getattr(node, "module", None) or ""]
            if isinstance(node, ast.Import | ast.ImportFrom):
                names += [f"{names[0]}.{one.name}".strip(".") for one in node.names]
                todo += [name for name in names if name.startswith("create_jax")]
                outside.update(name.split(".")[0] for name in names if name)
    told = read(ROOT / "BUILD.md").split("Who only asks")[1].split("Any run")[0]
    asked = " ".join(re.findall(r"^pip install (.*?)(?: +#.*)?$", told, re.M))
    brought = {"numpy", "pydantic", "pydantic_core", "starlette"}  # by jax, fastapi
    outside -= sys.stdlib_module_names | brought | {"create_jax"}
    assert outside and outside <= set(asked.replace("-", "_").split())
