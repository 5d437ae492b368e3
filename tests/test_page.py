"""The page of `create_jax.serve` in a real browser, as somebody would use it.

    PAGE_OF=movies.safetensors PICTURES=docs python -m pytest -m services -n0 \\
        tests/test_page.py

asks another artifact, which should have films, and keeps the pictures.
"""

import os
from contextlib import contextmanager
from pathlib import Path

import browser
import pytest
from test_serve import made, made_of_users, running_program

from create_jax import artifact
from create_jax.artifact import Texts

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not browser.find(), reason="there is no chromium here"),
]
SCRIPT = "<img src=x onerror=\"document.title='run'\">"
FILMS = ["The Matrix (1999)", "Inception (2010)", "Forrest Gump (1994)", SCRIPT]
LISTED = "[...document.querySelectorAll('#list > li')].map(x => x.dataset.id)"
TITLES = "[...document.querySelectorAll('#list .title')].map(x => x.textContent)"
MINE = "[...document.querySelectorAll('#history .title')].map(x => x.textContent)"
IDLE = "document.querySelector('#list')?.classList.contains('busy') === false"
ENTER, DOWN, UP, TAB, ESCAPE = (
    ("Enter", 13),
    ("ArrowDown", 40),
    ("ArrowUp", 38),
    ("Tab", 9),
    ("Escape", 27),
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = os.environ.get("PAGE_OF")
    if path is None:
        path = tmp_path_factory.mktemp("page") / "a.safetensors"
        titles = ["", *FILMS, *(f"Film {n} ({1900 + n % 100})" for n in range(296))]
        artifact.write(path, made(titles=Texts.of(titles)))
    with running_program(path) as (_, found):
        yield found


@contextmanager
def shown(address, profile):
    opened = browser.Browser(profile)
    opened.resize(1280, 860)
    opened.send("Page.navigate", url=address)
    try:
        yield opened
    finally:
        opened.close()
    # Of the script, or of the policy that the page is under.
    assert opened.problems == []


@pytest.fixture
def page(address, tmp_path):
    with shown(address, tmp_path) as opened:
        yield opened


def keep(page, name):
    """A picture, where it is wanted; always one that is not all of one colour."""
    folder = Path(os.environ.get("PICTURES", "/nonexistent"))
    picture = page.picture()
    assert len(picture) > 20_000
    if folder.is_dir():
        (folder / name).write_bytes(picture)


def listed(page, other_than=None):
    """The ids of the list, once it is another one."""
    page.wait(f"{IDLE} && {LISTED}.length && {LISTED}.join() != '{other_than}'")
    return page.run(LISTED)


def choose(page, text):
    page.click("#search")
    page.type(text)
    page.press(*ENTER)
    page.wait(f"{MINE}.at(-1)?.toLowerCase().includes({text!r})")


def test_somebody_types_clicks_and_sees_the_list_change(page):
    popular = listed(page)
    assert len(popular) == 20
    assert page.run("document.querySelector('#next').textContent") == "Most popular"
    assert page.run("document.querySelectorAll('#popular button').length") == 6

    page.click("#search")
    page.type("matr")
    options = "[...document.querySelectorAll('#options [role=option] .title')]"
    page.wait(f"{options}.map(x => x.textContent).includes('The Matrix (1999)')")
    place = page.run(f"{options}.findIndex(x => x.textContent == 'The Matrix (1999)')")
    page.click(f"#option-{place}")
    page.wait(f"{MINE}.join() == 'The Matrix (1999)'")
    one = listed(page, ",".join(popular))
    assert page.run("document.querySelector('#next').textContent") == "Recommended"
    choose(page, "inception")
    two = listed(page, ",".join(one))
    assert page.run(f"{TITLES}.every(x => !{MINE}.includes(x))")

    page.click("#list li:nth-child(2) .does button:nth-child(1)")  # Why?
    page.wait("document.querySelectorAll('#list .more td').length == 6")
    reasons = page.run("document.querySelector('#list .more table').textContent")
    assert "place 2 →" in reasons and "Inception" in reasons
    page.run("document.activeElement.blur()")
    page.run("window.scrollTo(0, 0)")
    keep(page, "page.png")
    page.click("#list li:nth-child(3) .does button:nth-child(2)")  # Similar
    page.wait("document.querySelectorAll('#list .more .chip').length == 8")
    page.click("#list .more .chip")
    page.wait(f"{MINE}.length == 3")
    three = listed(page, ",".join(two))

    page.click("#history li:nth-child(3) .gone")
    page.wait(f"{MINE}.length == 2")
    assert listed(page, ",".join(three)) == two
    page.run("window.before = true")
    page.send("Page.reload")  # the address keeps the history
    page.wait(f"!window.before && {MINE}.length == 2")
    assert listed(page, ",".join(popular)) == two
    page.click("#clear")
    assert listed(page, ",".join(two)) == popular


def test_it_is_usable_by_keyboard_alone(page):
    popular = listed(page)
    page.press(*TAB)
    assert page.run("document.activeElement.id") == "search"
    page.type("forest gmp")  # misspelt
    page.wait("!document.querySelector('#options').hidden")
    assert page.run("document.querySelector('#search').ariaExpanded") == "true"
    page.press(*DOWN)
    page.press(*UP)
    chosen = "document.querySelector('#options [aria-selected=true]')"
    assert page.run(f"{chosen}.id == {chosen}.parentNode.previousElementSibling"
                    ".getAttribute('aria-activedescendant')")  # fmt: skip
    page.press(*ESCAPE)
    assert page.run("document.querySelector('#options').hidden")
    page.press(*ENTER)
    page.wait(f"{MINE}.join() == 'Forrest Gump (1994)'")
    listed(page, ",".join(popular))
    focused = "document.activeElement.getAttribute('aria-label')"
    for _ in range(9):
        page.press(*TAB)
        if (page.run(focused) or "").startswith("Why"):
            break
    page.press(*ENTER)
    page.wait("document.querySelectorAll('#list .more td').length == 3")
    page.press(*TAB)
    page.press(*TAB)
    assert page.run(focused).startswith("Add ")
    page.press(*ENTER)
    page.wait(f"{MINE}.length == 2")
    said = page.run("document.querySelector('#said').textContent")
    assert "added." in said and "20 items listed" in said


def test_it_fits_a_phone(page):
    page.resize(390, 844, scale=2, phone=True)
    popular = listed(page)
    choose(page, "matrix")
    choose(page, "inception")
    listed(page, ",".join(popular))
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.run(wide)
    small = (
        "[...document.querySelectorAll('button')].filter(x => x.offsetParent && "
        "Math.min(x.offsetWidth, x.offsetHeight) < 32).map(x => x.textContent)"
    )
    assert page.run(small) == []
    page.dark(True)
    page.run("document.activeElement.blur()")
    page.run("window.scrollTo(0, 0)")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.run(paper) == "rgb(16, 17, 24)"
    keep(page, "page-phone.png")


@pytest.mark.skipif("PAGE_OF" in os.environ, reason="needs a title that is markup")
def test_a_title_is_text_whatever_it_says(page):
    listed(page)
    choose(page, "<img src=x")
    page.wait(f"{MINE}.join() == {SCRIPT!r}")
    page.wait(f"{LISTED}.length == 20")
    page.wait("document.querySelectorAll('.because b').length")
    assert page.run("document.querySelectorAll('img').length") == 0
    assert "create_jax" in page.run("document.title")


def test_a_model_of_users_is_asked_by_their_ids(tmp_path):
    artifact.write(tmp_path / "a.safetensors", made_of_users())
    with (
        running_program(tmp_path / "a.safetensors") as (_, address),
        shown(address, tmp_path / "profile") as page,
    ):
        popular = listed(page)
        page.click("#search")
        page.type("u1")
        page.press(*ENTER)
        first = listed(page, ",".join(popular))
        assert page.run("document.querySelector('#next').textContent") == "Recommended"
        page.run("document.querySelector('#search').select()")
        page.type("u3")
        page.press(*ENTER)
        status = "document.querySelector('#status').textContent"
        assert "no user 'u3'" in page.wait(status)
        assert page.run(LISTED) == first
