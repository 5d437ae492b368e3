"""The numbers of results/ are those of its files."""

import json
import re
import shlex
from pathlib import Path

import pytest

from create_jax import report, settings
from create_jax.configs import common

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "results/README.md"


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory):
    """The command that results/README.md prints, run on copies of what it writes."""
    out = tmp_path_factory.mktemp("results")
    command = re.search(r"^python -m create_jax\.report (.*)$", PAGE.read_text(), re.M)
    arguments = []
    for word in shlex.split(command[1]):
        option, _, file = word.partition("=")
        if option == "--fill":
            copy = out / file.replace("/", "-")
            copy.write_text((ROOT / file).read_text())
            arguments.append(f"--fill={copy}")
        elif option == "--out":
            arguments.append(f"--out={out}")
        else:
            arguments.append(str(ROOT / word) if not word.startswith("-") else word)
    assert report.main(arguments) == 0
    return out


def test_tables_are_those_of_the_files(made_anew):
    for name, original in (
        ("report.md", ROOT / "results/report.md"),
        ("report.csv", ROOT / "results/report.csv"),
        ("differences.csv", ROOT / "results/differences.csv"),
        ("README.md", ROOT / "README.md"),
        ("results-README.md", PAGE),
    ):
        assert (made_anew / name).read_text() == original.read_text(), name


def test_the_text_has_only_numbers_of_the_tables(made_anew):
    blocks = r"<!-- report:\w+ -->.*?<!-- /report -->"
    text = re.sub(blocks, "", PAGE.read_text(), flags=re.DOTALL)
    tables = (made_anew / "report.md").read_text()
    tables += "".join(path.read_text() for path in PAGE.parent.glob("protocol*.md"))
    said, known = (set(re.findall(r"\d+\.\d{2,}", part)) for part in (text, tables))
    assert said and said <= known


def test_old_configs_have_every_setting_of_now():
    """Who adds or renames one that counts says what it was: settings.OLD_DEFAULTS."""
    free = settings.CHANGE_NO_NUMBER

    def counting(flat):
        return {key for key in flat if not settings.is_among(key, free)}

    now = counting(settings.flatten(common.get_config().to_dict()))
    for file in sorted((ROOT / "results").glob("**/config.json")):
        config = json.loads(file.read_text())["config"]
        assert counting(settings.of_run(config)) == now, file
