"""The live console in a real headless browser.

`make screenshots` sets `LAMBDA_PG_SCREENSHOTS` to a folder, where pictures of the page are left.
The tests of `page_and_seen` follow each other on one page: later ones look at what the storm left.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.faults.catalogue import FAULTS
from lambda_pg_cdk.local.paths import another_state_dir
from tests.support.browser import Seen, started
from tests.support.chromium import NAME, find_chromium

pytestmark = pytest.mark.alone  # its storms have to be answered in time


SCREENSHOTS = "LAMBDA_PG_SCREENSHOTS"
STORM_MS = 60_000
WIDTH = 1360
TEXTS = (
    "h1", "h1 span", "#cloud", "#api", ".tile h2", ".tile .value", ".tile .value small",
    ".tile .detail", ".note", "label", "select", "button.primary", "#load", "#faults button",
    ".chart h3", ".legend li", ".legend b", "#charts text", "#verdict", "th", "td", "td.good",
    "td.bad", "#log li", "#log time",
)  # fmt: skip
COLOURS = """(selector) => {
  const element = document.querySelector(selector);
  const style = getComputedStyle(element);
  const ground = (each) => getComputedStyle(each).backgroundColor;
  let under = element;
  while (ground(under) === "rgba(0, 0, 0, 0)") under = under.parentElement;
  return [element instanceof SVGElement ? style.fill : style.color, ground(under)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    with started() as chromium:
        yield chromium


@contextmanager
def console_of(folder: Path) -> Iterator[str]:
    """Start a console of the cloud in a folder, whether or not it has one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lambda_pg_cdk.console", str(folder)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        yield str(json.loads(process.stdout.readline())["url"])
        process.stdin.close()
        assert process.wait(10) == 0, "it ends with its standard input"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[tuple[Page, Seen]]:
    """Open the page in a separate window."""
    page, seen = browser.new_page(viewport={"width": WIDTH, "height": 900}), Seen()
    seen.follow(page)
    page.goto(url)
    yield page, seen
    page.close()


def press(page: Page, selector: str, key: str = "Enter") -> None:
    """Go to a control by Tab, from the beginning of the page, and press a key on it."""
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator(selector).first.evaluate("(each) => each === document.activeElement"):
            outline = page.locator(selector).first.evaluate(
                "(e) => getComputedStyle(e).outlineStyle"
            )
            assert outline == "solid", "the focus is to be seen"
            page.keyboard.press(key)
            return
    raise AssertionError(f"Tab does not get to {selector}")


def curve(page: Page, chart: str, colour: str) -> str:
    """Return the path of one series."""
    path = page.locator(f'#charts svg[aria-label^="{chart}"] path.{colour}').first
    return path.get_attribute("d") or ""


def cells(page: Page, row: int) -> list[str]:
    """Return what a row of the storms' table says, the latest storm first."""
    return page.locator("#results tbody tr").nth(row).locator("td").all_inner_texts()


def storm(page: Page, number: int) -> None:
    """Start a storm by the keyboard, and wait until so many are in the table."""
    press(page, "#storm button")
    expect(page.locator("#said")).to_contain_text("requests", timeout=10_000)
    expect(page.locator("#results tbody tr")).to_have_count(number, timeout=STORM_MS)


def contrast(first: str, second: str) -> float:
    """Return WCAG's contrast ratio of two colours in CSS's `rgb(…)`."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    numbers = [float(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in numbers
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def weak_texts(page: Page) -> dict[str, float]:
    """Return the texts whose contrast is below WCAG's 4.5 (AA), with it."""
    found = {each: contrast(*page.evaluate(COLOURS, each)) for each in TEXTS}
    return {each: round(ratio, 2) for each, ratio in found.items() if ratio < 4.5}


def picture(page: Page, name: str) -> None:
    """Leave a picture, when asked."""
    if folder := os.environ.get(SCREENSHOTS):
        page.wait_for_timeout(10_000)  # until the storm is in the middle
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def page_and_seen(cloud: LocalCloud, browser: Browser) -> Iterator[tuple[Page, Seen]]:
    """Open a console of the tests' cloud."""
    with console_of(cloud.folder) as url, opened(browser, url) as opened_page:
        yield opened_page
        cloud.end_environments("users")


def test_a_storm_by_the_keyboard_moves_the_curves_and_loses_nothing(
    page_and_seen: tuple[Page, Seen],
) -> None:
    """Steady load, the baseline's storm that must fail, lambda-pg's that must not; no error."""
    page, seen = page_and_seen
    expect(page.locator("#cloud")).to_have_text("Running")
    page.select_option("#window", "60")
    press(page, "#load")
    expect(page.locator("#load")).to_have_attribute("aria-pressed", "true", timeout=30_000)
    page.wait_for_timeout(3000)
    before = curve(page, "Requests per second", "teal")
    assert before.count("M") >= 2, "the steady load is to be seen"

    page.select_option("#target", "baseline")
    page.select_option("#count", "200")
    storm(page, 1)
    assert cells(page, 0)[1] == "baseline"
    assert int(cells(page, 0)[4]) > 0, "the control has to lose"
    assert curve(page, "Requests per second", "red"), "errors are to be seen"

    page.select_option("#target", "lambda-pg")
    page.select_option("#count", "100")
    storm(page, 2)
    assert cells(page, 0)[1:5] == ["lambda-pg", "100", "100", "0"]
    assert "100 served, 0 failed" in page.locator("#verdict").inner_text()
    assert curve(page, "Requests per second", "teal").count("M") > before.count("M")
    for chart, colour in (("Environments", "blue"), ("Connections to PostgreSQL", "violet")):
        heights = {point.split(" ")[-1] for point in curve(page, chart, colour).split("L")}
        assert len(heights) > 1, f"{chart} has not moved"
    assert page.locator("#charts rect.shade-storm").count() > 0
    assert not seen.errors
    page.wait_for_timeout(3000)
    picture(page, "console-light")


def test_a_fault_is_shown_while_it_runs_and_when_it_has_ended(
    cloud: LocalCloud, page_and_seen: tuple[Page, Seen]
) -> None:
    """Each has a button; its time is shaded."""
    page, seen = page_and_seen
    assert page.locator("#faults button").count() == len(FAULTS)
    press(page, "#faults button", "Space")
    button = page.locator("#faults button").first
    expect(button).to_contain_text("ended", timeout=60_000)
    expect(page.locator("#log li").first).to_contain_text(f"{FAULTS[0].title}: ended")
    assert page.locator("#charts rect.shade-fault").count() > 0
    assert not seen.errors
    cloud.reconcile()


def test_it_is_readable_in_light_and_dark(page_and_seen: tuple[Page, Seen]) -> None:
    """WCAG AA for every kind of text on the page."""
    page, _ = page_and_seen
    assert weak_texts(page) == {}
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    assert weak_texts(page) == {}
    picture(page, "console-dark")
    page.emulate_media(color_scheme="light")


def test_a_narrow_window_needs_no_horizontal_scroll(page_and_seen: tuple[Page, Seen]) -> None:
    """360 px, as a small telephone has."""
    page, _ = page_and_seen
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_timeout(700)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.set_viewport_size({"width": WIDTH, "height": 900})


def test_nothing_is_asked_for_outside(page_and_seen: tuple[Page, Seen]) -> None:
    """Every request went to the console itself, no secret came, and the load can be ended."""
    page, seen = page_and_seen
    press(page, "#load")
    expect(page.locator("#load")).to_have_attribute("aria-pressed", "false")
    assert len(seen.urls) > 8
    assert [url for url in seen.urls if not url.startswith(page.url)] == []
    assert seen.errors == []


def test_no_secret_leaves_the_console(cloud: LocalCloud, page_and_seen: tuple[Page, Seen]) -> None:
    """Neither a password nor an address with one, in what is sent or shown."""
    page, _ = page_and_seen
    with urllib.request.urlopen(f"{page.url}stream", timeout=10) as stream:  # noqa: S310 - http only
        said = b"".join(stream.readline() for _ in range(6)).decode()
    assert said.count("event: ") == 2
    passwords = (
        psycopg.conninfo.conninfo_to_dict(cloud.status()["postgres"]["dsn"])["password"],
        (cloud.folder / "postgres" / "superuser").read_text(),
    )
    for secret in ("postgresql://", *map(str, passwords)):
        assert secret not in said
        assert secret not in page.content()


def test_a_cloud_without_a_deployment_is_watched_until_it_has_gone(browser: Browser) -> None:
    """The daemon's own console says that nothing is deployed, and ends with the cloud.

    One that was started by hand before waits for a cloud in its folder, and outlives it.
    """
    folder, away = another_state_dir(), "The cloud does not answer"
    options = Options(bound=True, deploy=False, console=True)
    with console_of(folder) as by_hand, opened(browser, by_hand) as (waiting, _):
        expect(waiting.locator("#cloud")).to_have_text(away)
        with LocalCloud(folder, options) as empty:
            expect(waiting.locator("#cloud")).to_have_text("Running", timeout=20_000)
            url = str(empty.status()["console_url"])
            assert empty.state.console_url == url
            with opened(browser, url) as (page, seen):
                expect(page.locator("#hint")).to_be_visible(timeout=20_000)
                expect(page.locator("#hint")).to_contain_text("Nothing is deployed")
                backends = page.locator(".tile", has_text="PostgreSQL backends")
                expect(backends).to_contain_text("of 1")
                assert not seen.errors
                empty.stop()
                expect(page.locator("#cloud")).to_contain_text("retrying", timeout=20_000)
        expect(waiting.locator("#cloud")).to_have_text(away, timeout=20_000)


def test_a_missing_browser_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Never a silent skip."""
    with pytest.raises(FileNotFoundError, match="make setup"):
        find_chromium({"PATH": str(tmp_path)}, tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{NAME} is /nowhere"):
        find_chromium({NAME: "/nowhere"}, tmp_path)


def test_a_named_browser_is_taken(tmp_path: Path) -> None:
    """Before the one of `make setup`."""
    program = tmp_path / "chromium"
    program.touch()
    chosen: Any = find_chromium({NAME: str(program)})
    assert (chosen.program, chosen.variables) == (program, {})
