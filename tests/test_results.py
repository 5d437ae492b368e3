"""The numbers of results/ are those of its files."""

import ast
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gains
from create_jax import config_file, report, rundir, settings
from create_jax.configs import common
from create_jax.runs import find_runs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PLACES = "", "tuned/", "tuned/alignment/", "tuned/settings/", "longer/"
PAGES = [RESULTS / f"{place}README.md" for place in PLACES]
TEXTS = [*PAGES, RESULTS / "frequency/README.md"]
SCRIPTS = [("results", data) for data in ("beauty", "sports", "ml1m")]
SCRIPTS += [("results/tuned", data) for data in ("beauty", "sports")]
SCRIPTS += [("results/longer", "sports")]


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.parent.name)
def made_anew(request, tmp_path_factory):
    """(page, {original: copy} of what the command that it prints writes)."""
    page, out = request.param, tmp_path_factory.mktemp("results")
    command = re.search(r"^python -m create_jax\.report (.*)$", page.read_text(), re.M)
    arguments, copies = [], {}
    for word in shlex.split(command[1]):
        option, _, file = word.partition("=")
        if option == "--fill":
            copy = copies[ROOT / file] = out / file.replace("/", "-")
            copy.write_text((ROOT / file).read_text())
            arguments.append(f"--fill={copy}")
        elif option == "--out":
            assert ROOT / file == page.parent
            arguments.append(f"--out={out}")
        else:
            arguments.append(str(ROOT / word) if not word.startswith("-") else word)
    assert report.main(arguments) == 0
    for name in ("report.md", "report.csv", "differences.csv"):
        copies[page.parent / name] = out / name
    return page, copies


@pytest.mark.services  # all ranks are read
def test_tables_are_those_of_the_files(made_anew):
    page, copies = made_anew
    assert page in copies
    for original, copy in copies.items():
        assert copy.read_text() == original.read_text(), original


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.parent.name)
def test_the_text_has_only_numbers_of_the_tables(page):
    """Of those tables that the test above makes anew; of trials also in short."""
    blocks = r"<!-- report:\w+ -->.*?<!-- /report -->"
    text = re.sub(blocks, "", page.read_text(), flags=re.DOTALL)
    patterns = "report.md", "protocol*.md", "*/tables.md", "*/**/report.md"
    files = [path for pattern in patterns for path in RESULTS.glob(pattern)]
    tables = "".join(path.read_text() for path in files)
    for path in RESULTS.glob("tuned/*/*/trials.csv"):
        for value in map(float, re.findall(r"\d+\.\d+", path.read_text())):
            tables += f" {value:.2g} {value:.3g}"
    said, known = (set(re.findall(r"\d+\.\d{2,}", part)) for part in (text, tables))
    assert said and said <= known, said - known


def test_the_gains_are_those_of_the_reports(tmp_path):
    for file in (*RESULTS.glob("**/differences.csv"), RESULTS / "README.md"):
        copy = tmp_path / file.relative_to(RESULTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    assert gains.main([str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert page == (RESULTS / "README.md").read_text()
    assert page.count("| Sports, ") > 3 and (tmp_path / "gains.png").exists()
    picture = (tmp_path / "gains.png").read_bytes()
    assert picture[:4] == (RESULTS / "gains.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("lost", ["sports,last,recall@100,create,sasrec", "<!-- gains"])
def test_gains_that_no_report_has_are_named(lost, tmp_path, capsys):
    for file in (*RESULTS.glob("**/differences.csv"), RESULTS / "README.md"):
        copy = tmp_path / file.relative_to(RESULTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text().replace(lost, "lost"))
    assert gains.main([str(tmp_path)]) == 2
    told = (
        "make that report anew",
        "found no <!-- gains:NAME --> with a <!-- /gains -->",
    )[lost.startswith("<")]
    assert told in capsys.readouterr().err


def test_old_configs_have_every_setting_of_now():
    """Who adds or renames one that counts says what it was: settings.OLD_DEFAULTS."""
    free = settings.CHANGE_NO_NUMBER

    def counting(flat):
        return {key for key in flat if not settings.is_among(key, free)}

    now = counting(settings.flatten(common.get_config().to_dict()))
    for file in sorted(RESULTS.glob("**/config.json")):
        config = json.loads(file.read_text())["config"]
        assert counting(settings.of_run(config)) == now, file


def test_a_clone_is_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    whole = [path for path in files if path.name == "ranks.npz" and not packed(path)]
    assert not whole, f"python -m create_jax.ranks packs {whole}"


def packed(path):
    with np.load(path) as file:
        return "users" in file


@pytest.mark.parametrize("place, data", SCRIPTS)
def test_the_script_finds_all_its_runs_finished(place, data, tmp_path, monkeypatch):
    """What run.sh asks for is what the directories hold: a clone has nothing to do."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho $*\n")
    fake.chmod(0o755)
    monkeypatch.chdir(ROOT)
    done = subprocess.run(
        [f"{place}/run.sh", data],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    *commands, last = done.stdout.splitlines()
    assert last == f"-m create_jax.ranks {place}/{data}"
    asked = set()
    for command in commands:
        words = dict(word.split("=", 1) for word in command.split()[2:])
        source, workdir = words.pop("--config"), words.pop("--workdir")
        changes = {key[9:]: _value(text) for key, text in words.items()}
        config = config_file.make(source, changes)
        for seed in settings.seeds(config):
            config.seed = seed
            folder = Path(f"{workdir}-{seed}" if config.seeds else workdir)
            assert (folder / "result.json").exists(), folder
            free = rundir.FREE_TO_CHANGE
            rundir.refuse_other_config(folder, config, free)
            asked.add(folder)
    runs = set(find_runs([f"{place}/{data}"]))
    assert {run for run in runs if "history=train" not in str(run)} == asked


BEST = {"beauty": "tuned/beauty", "sports": "tuned/sports", "ml1m": "ml1m"}


@pytest.mark.parametrize("data", BEST)
def test_the_best_config_has_the_runs_of_the_best_validation(data):
    place = RESULTS / BEST[data]
    found = re.compile(r"validation (\S+) (\S+) after")
    studies = {
        path.parent.name: found.search(path.read_text()).groups()
        for path in place.glob("*-tune/best.py")
    }
    assert len({metric for metric, _ in studies.values()}) == 1 < len(studies)
    assert validated(place / "sasrec-tune") == validated(place / "create-tune")
    best = max(studies, key=lambda study: float(studies[study][1]))
    config = config_file.load(str(ROOT / f"configs/best/{data}.py"))
    # Nothing is selected: they are trained on all rows up to the test.
    free = (*rundir.FREE_TO_CHANGE, "eval.select_by", "eval.select_mean")
    assert config.split.validation == "none" and len(settings.seeds(config)) == 4
    for seed in settings.seeds(config):
        config.seed = seed
        run = place / best.removesuffix("-tune") / f"seed-{seed}"
        assert (run / "result.json").exists()
        rundir.refuse_other_config(run, config, free)


def validated(study):
    """The rules of its validation."""
    config = json.loads((study / "config.json").read_text())["config"]
    return config["split"], config["eval"]


def _value(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
