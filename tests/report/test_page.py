"""The page in a browser: it opens, filters, walks, marks, and complains of nothing."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest

from tests.report.browser import Browser
from tests.report.test_report import HOSTILE
from weaktr.report.gather import report_of
from weaktr.report.page import page_of, write_report

CARDS = "document.querySelectorAll('#grid .card').length"
NAMED = "document.getElementById('viewer-name').textContent"
FOCUSED = "document.activeElement.dataset.name"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.fixture(scope="module")
def values(run):
    return report_of(run)


@pytest.fixture
def opened(browser, values, tmp_path):
    """The page of the run, anew."""
    return show(browser, values, tmp_path / "page.html")


def show(browser, values, file):
    file.write_bytes(page_of(values))
    browser.complaints.clear()
    browser.requests.clear()
    browser.size(1280)
    browser.open(file)
    browser.eval("localStorage.clear()")
    browser.open(file)
    return browser


def pick(browser, field, value):
    browser.eval(
        f"{{const e = document.getElementById('{field}'); e.value = '{value}';"
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))}"
    )


def test_it_opens_without_complaints_and_asks_for_nothing(opened):
    assert opened.eval("document.querySelector('h1').textContent") == "tiny"
    assert opened.eval(CARDS) == 8
    assert opened.eval("document.querySelectorAll('figure svg polyline').length") >= 4
    opened.until("[...document.querySelectorAll('.card img')].every((i) => i.naturalWidth === 32)")
    assert opened.complaints == []
    assert [a for a in opened.requests if not a.startswith(("data:", "file:"))] == []


def test_filters_leave_what_they_say(opened, values):
    photos = [photo for photo in values["photographs"] if photo["maker"] == "label"]
    pick(opened, "class", 2)
    green = [photo for photo in photos if 2 in photo["given"]]
    assert 0 < opened.eval(CARDS) == len(green) < 8
    assert opened.eval("document.getElementById('count').textContent") == (
        f"{len(green)} of 8 photographs"
    )
    pick(opened, "class", 0)
    sure = sorted(photo["confidence"] for photo in photos)
    middle = round(100 * sure[4])
    pick(opened, "low", middle)
    assert opened.eval(CARDS) == sum(one >= middle / 100 for one in sure)
    pick(opened, "low", 0)
    pick(opened, "which", "missing")
    assert opened.eval(CARDS) == sum(bool(photo["missing"]) for photo in photos)


def test_classes_and_kinds_of_masks_choose(opened):
    opened.eval("document.querySelector('#classes .tabs button:last-child').click()")
    assert opened.eval(
        "document.querySelector('#photographs .tabs [aria-pressed=true]').innerText"
    ).startswith("Predictions")
    opened.eval("document.querySelector('.class-name').click()")
    assert opened.eval("document.getElementById('class').value") != "0"
    assert opened.eval("document.querySelectorAll('tr.chosen').length") == 1


def test_orders(opened, values):
    photos = [photo for photo in values["photographs"] if photo["maker"] == "label"]
    first = "document.querySelector('#grid .card').dataset.name"
    hidden = "document.getElementById('why').hidden"
    assert opened.eval(hidden) is False
    pick(opened, "order", "unsure")
    assert opened.eval(hidden) is True
    assert opened.eval(first) == min(photos, key=lambda photo: photo["confidence"])["name"]
    pick(opened, "order", "iou")
    assert opened.eval(first) == min(photos, key=lambda photo: photo["iou"])["name"]


def test_the_keyboard_walks_marks_and_switches(opened):
    names = opened.eval("[...document.querySelectorAll('#grid .card')].map((c) => c.dataset.name)")
    opened.eval("document.querySelector('#grid .card').focus()")
    opened.press("ArrowRight")
    assert opened.eval(FOCUSED) == names[1]
    opened.press("Enter")
    assert opened.eval("document.getElementById('viewer').open")
    assert opened.eval(NAMED) == names[1]
    opened.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert opened.eval(NAMED) == names[2]
    opened.press("m")
    assert opened.eval("document.getElementById('marked-list').value") == names[2]
    pressed = "document.getElementById('show-{}').getAttribute('aria-pressed')"
    assert opened.eval(pressed.format("mask")) == "true"
    opened.press("2", "1")
    assert opened.eval(pressed.format("mask")) == "false"
    assert opened.eval(pressed.format("cam")) == "true"
    assert opened.eval("document.getElementById('mask').hidden")
    opened.until("document.getElementById('cam').width <= 44")
    for _ in range(15):  # the focus stays in the dialog, or goes to the browser's own bar
        opened.press("Tab")
        assert opened.eval("document.activeElement.matches('#viewer *, body')")
    opened.press("Escape")
    assert not opened.eval("document.getElementById('viewer').open")
    opened.until(f"{FOCUSED} === '{names[2]}'")  # a task after the dialog has closed
    assert opened.complaints == []


def test_marks_stay_for_the_next_visit(opened, tmp_path):
    opened.eval("document.querySelector('#grid .card').focus()")
    opened.press("m")
    name = opened.eval("document.getElementById('marked-list').value")
    assert name
    opened.open(tmp_path / "page.html")
    assert opened.eval("document.getElementById('marked-list').value") == name
    pick(opened, "which", "marked")
    assert opened.eval(CARDS) == 1
    opened.eval("document.getElementById('unmark').click()")
    assert opened.eval("document.getElementById('marked-list').value") == ""


def test_slider_and_outline(opened):
    opened.eval("document.querySelector('#grid .card').click()")
    pick(opened, "opacity", 20)
    assert opened.eval("document.getElementById('mask').style.opacity") == "0.2"
    opened.until("document.getElementById('outline').width > 300")
    drawn = (
        "(() => {const c = document.getElementById('outline');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)})()"
    )
    several = opened.eval("document.querySelectorAll('#legend .dot').length") > 1
    opened.until(f"{drawn} === {str(several).lower()}")


def test_dark_and_light(opened):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.eval(colour)
    opened.size(1280, dark=True)
    dark = opened.eval(colour)
    assert dark != light
    opened.eval("document.getElementById('theme').click()")
    assert opened.eval(colour) == light


def test_sections_stand_in_order_and_links_are_called_as_they_are(opened, values, tmp_path):
    titles = (
        "[...document.querySelectorAll('main > section:not([hidden]) h2')]"
        ".map((t) => t.innerText.replace(/ \\(.*/, ''))"
    )
    links = "[...document.querySelectorAll('#links a')].map((link) => link.textContent)"
    order = ["In short", "Scores", "Classes", "Photographs", "Marked", "Curves", "How it was made"]
    assert opened.eval(titles) == opened.eval(links) == order
    places = (
        "[...document.querySelectorAll('#links a')]"
        ".map((a) => document.querySelector(a.hash).offsetTop)"
    )
    assert opened.eval(places) == sorted(opened.eval(places))
    show(opened, {**values, "scores": []}, tmp_path / "page.html")
    assert opened.eval(titles) == opened.eval(links)
    assert opened.eval(links)[1] == "Agreement"


def test_the_words_are_shown_with_code(browser, values, tmp_path):
    said = {"what": ["Masks <b>of</b> `weaktr --names x`."], "good": [], "helps": ["More."]}
    show(browser, {**values, "words": said}, tmp_path / "page.html")
    assert browser.eval("document.getElementById('what').innerText") == (
        "Masks <b>of</b> weaktr --names x."
    )
    assert browser.eval("document.querySelector('#what code').textContent") == "weaktr --names x"
    shown = "[...document.querySelectorAll('#short h3')].filter((t) => t.offsetHeight).length"
    assert browser.eval(shown) == 2


def with_doubts(values):
    """One mask without background, one of background alone, and one with a trace of a class."""
    hard = copy.deepcopy(values)
    full, empty, trace = hard["photographs"][:3]
    full |= {"doubt": "full", "place": -1, "confidence": 0.99, "missing": [], "extra": []}
    empty |= {"doubt": "empty", "given": None, "missing": [], "extra": []}
    trace |= {"labels": [[1, 0.4, 0.8], [2, 0.0009, 0.83], [0, 0.5991, 0.9]], "missing": [2]}
    return hard


def test_suspicious_masks_say_so_and_are_found(browser, values, tmp_path):
    show(browser, with_doubts(values), tmp_path / "page.html")
    first = "document.querySelector('#grid .card')"
    assert browser.eval(f"{first}.querySelector('.why.bad').textContent") == "hardly any background"
    assert "hardly any background" in browser.eval(f"{first}.title")
    for kind, words in (("full", "hardly any background"), ("empty", "nothing found")):
        pick(browser, "which", kind)
        assert browser.eval(CARDS) == 1
        assert browser.eval(f"{first}.querySelector('.why.bad').textContent") == words
        browser.eval(f"{first}.click()")
        assert browser.eval("document.getElementById('viewer-doubt').textContent") == words
        browser.press("Escape")


def test_the_least_background_comes_first(browser, values, tmp_path):
    hard = copy.deepcopy(values)
    shares = [0.5, 0.2, 0.9, 0.4, 0.05, 0.6, 0.7, 0.8]
    for photo, share in zip(hard["photographs"], shares, strict=False):
        photo["labels"] = [[1, 1 - share, 0.5], [0, share, 0.5]]
    hard["photographs"][2]["labels"] = [[1, 0.09, 0.5], [0, 0.01, 0.5], [255, 0.9, None]]
    show(browser, hard, tmp_path / "page.html")
    pick(browser, "order", "full")
    names = browser.eval("[...document.querySelectorAll('#grid .card')].map((c) => c.dataset.name)")
    decided = [0.1 if share == 0.9 else share for share in shares]
    wanted = sorted(zip(decided, (p["name"] for p in hard["photographs"]), strict=False))
    assert names == [name for _, name in wanted]


def test_traces_stand_apart_in_the_viewer(browser, values, tmp_path):
    show(browser, with_doubts(values), tmp_path / "page.html")
    name = values["photographs"][2]["name"]
    browser.eval(f"document.querySelector('#grid [data-name=\"{name}\"]').click()")
    lines = browser.eval("[...document.querySelectorAll('#legend li')].map((l) => l.innerText)")
    lines = [line.replace("\n", " ").strip() for line in lines]
    assert lines == [
        "label area · confidence", "red 40 % · 80 %", "background 60 % · 90 %", "green missing",
        "traces below 0.1 %: not counted", "green 0.09 %",
    ]  # fmt: skip
    opacity = "getComputedStyle(document.querySelector('.trace')).opacity"
    assert browser.eval(opacity) == "0.6"
    assert "0.1 %" in browser.eval("document.getElementById('class-rule').textContent")


def test_long_captions_take_two_lines(browser, values, tmp_path):
    hard = copy.deepcopy(values)
    hard["labels"][1:4] = ["dining table", "potted plant", "traffic light"]
    hard["photographs"][0] |= {"missing": [1, 2, 3], "place": -1}
    show(browser, hard, tmp_path / "page.html")
    why = "document.querySelector('#grid .why.bad')"
    told = "missing dining table, potted plant, traffic light"
    assert browser.eval(f"{why}.title") == told and told in browser.eval(f"{why}.innerText")
    assert browser.eval(f"{why}.scrollHeight <= {why}.clientHeight")
    assert 30 < browser.eval(f"{why}.clientHeight") < 45


def test_a_class_with_one_photograph_has_no_worst(browser, values, tmp_path):
    one = copy.deepcopy(values)
    for row in one["sets"][0]["classes"]:
        row["strips"] = {"worst": [0], "typical": [], "best": []}
    show(browser, one, tmp_path / "page.html")
    assert browser.eval("document.querySelectorAll('#strips .card').length") == 1
    assert browser.eval("document.querySelectorAll('#strips p').length") == 0
    one["sets"][0]["classes"][0]["strips"]["best"] = [1]
    show(browser, one, tmp_path / "page.html")
    label = one["sets"][0]["classes"][0]["label"]
    pick(browser, "class", label)
    assert browser.eval("[...document.querySelectorAll('#strips p')].map((p) => p.innerText)") == [
        "Worst", "Best",
    ]  # fmt: skip


def test_curves_say_what_to_look_for(opened, values):
    for place, is_minor in (("curves-body", False), ("curves-minor", True)):
        found = f"[...document.querySelectorAll('#{place} .hint')].map((h) => h.textContent)"
        hints = opened.eval(found)
        wanted = [one["hint"] for one in values["curves"] if one["is_minor"] == is_minor]
        assert hints == [hint for hint in wanted if hint] != []
    assert not opened.eval("document.getElementById('curves-more').open")


@pytest.mark.parametrize("has_scores", [True, False])
@pytest.mark.parametrize("width", [390, 320, 1280])
def test_nothing_is_wider_than_the_window(width, has_scores, browser, values, tmp_path):
    hard = copy.deepcopy(values)
    hard["scores"] = hard["scores"] if has_scores else []
    hard["words"]["helps"].append(f"`weaktr label {'/a' * 60}{'b' * 90} PHOTOS`")
    hard["labels"][1:4] = ["a" * 90, "一" * 60, "two words"]
    hard["name"] = "run_" * 30
    for photo in hard["photographs"]:
        photo["name"] = f"a/{'b' * 80}/{photo['name']}"
    show(browser, hard, tmp_path / "page.html")
    browser.size(width)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert browser.eval(wide)
    inner = "[...document.querySelectorAll('.scroll, #scores-body, .stacked')]"
    wider = ".filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.innerText.slice(0, 60))"
    assert browser.eval(inner + wider) == []
    browser.eval("document.querySelector('#grid .card').click()")
    assert browser.eval("document.getElementById('viewer').scrollWidth <= innerWidth")


def test_names_of_others_are_text(browser, values, tmp_path):
    hard = copy.deepcopy(values)
    hard["labels"] = ["background", *HOSTILE, *(f"class {index}" for index in range(7, 255))]
    hard["name"] = HOSTILE[0]
    table = hard["sets"][0]["classes"]
    table[:] = [{**table[0], "label": label} for label in range(1, 255)]
    for index, photo in enumerate(hard["photographs"]):
        photo["name"] = HOSTILE[index % len(HOSTILE)]
        photo["missing"] = [*range(1, 200)]
    show(browser, hard, tmp_path / "page.html")
    assert browser.eval("document.querySelector('h1').textContent") == HOSTILE[0]
    assert browser.eval("document.querySelectorAll('img[onerror], [src=x]').length") == 0
    names = browser.eval("[...document.getElementById('class').options].map((o) => o.textContent)")
    assert {*HOSTILE} <= {*names} and len(names) == 255
    browser.eval("document.querySelector('#grid .card').click()")
    assert browser.complaints == []


def test_2000_photographs_are_drawn_a_page_at_a_time(browser, values, tmp_path):
    many = copy.deepcopy(values)
    photo = many["photographs"][0]
    more = [{**photo, "name": f"more {index}"} for index in range(2000)]
    many["photographs"] += more
    show(browser, many, tmp_path / "page.html")
    assert browser.eval(CARDS) == 48
    browser.eval("scrollTo(0, document.body.scrollHeight)")
    browser.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.eval(CARDS) == 48  # so that what stands below can be reached
    button = "document.getElementById('show-more')"
    assert browser.eval(f"{button}.textContent") == "Show 48 more of 1,960"
    browser.eval(f"{button}.focus()")
    browser.press("Enter")
    assert browser.eval(CARDS) == 96
    assert browser.eval(f"{FOCUSED} === document.querySelectorAll('.grid .card')[48].dataset.name")
    browser.eval("document.getElementById('show-all').click()")
    assert browser.eval(CARDS) == 2008
    assert browser.eval("document.getElementById('more').hidden")
    assert browser.eval("document.getElementById('count').textContent") == (
        "2,008 of 2,008 photographs"
    )


def test_larger_pictures_are_shown_from_beside_the_page(browser, run, tmp_path):
    own = Path(shutil.copytree(run, tmp_path / "own"))
    file = write_report(own, full=True)
    browser.complaints.clear()
    browser.open(file)
    browser.eval("document.querySelector('#grid .card').click()")
    browser.until("document.getElementById('picture').src.startsWith('file:')")
    browser.until("document.getElementById('picture').naturalWidth === 32")
    browser.until("document.getElementById('outline').width > 300")
    assert browser.complaints == []
    shutil.rmtree(own / "report_files")  # then the small ones are shown
    browser.press("Escape")
    browser.eval("document.querySelectorAll('#grid .card')[1].click()")
    browser.until("document.getElementById('picture').src.startsWith('data:')")


def test_a_run_that_has_only_begun_shows_what_it_has(browser, values, tmp_path):
    words = {"what": [], "good": [], "helps": []}
    empty = {**values, "sets": [], "photographs": [], "scores": [], "words": words}
    show(browser, empty, tmp_path / "page.html")
    hidden = "[...document.querySelectorAll('main > section[hidden]')].map((s) => s.id)"
    assert browser.eval(hidden) == [
        "short", "scores", "classes", "photographs", "marked",
    ]  # fmt: skip
    assert browser.complaints == []
