"""The report of a replay in a real browser: it draws without errors, its numbers are the JSON's, and no text of the data becomes markup."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import page_results
import pytest

from inference.errors import SettingsError
from streaming.backtest import page as page_module
from streaming.backtest.page import check_page, embedded, write_page
from streaming.cli import main

pytest.importorskip("plotly", reason="the report needs Plotly (extra 'report')")

QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900"),
]
WAIT = 30.0


# The file


def facts(path: Path) -> dict[str, Any]:
    """What stands in the page's JSON."""
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def rounded(result: dict[str, Any]) -> dict[str, Any]:
    """The result as its page holds it: scores and limits along the way have five digits."""

    def five(values: list[float | None]) -> list[float | None]:
        return [None if value is None else float(f"{value:.5g}") for value in values]

    for group in (group for parts in result["timeline"].values() for group in parts.values()):
        group["features"] = [{**one, "score": five(one["score"]), "limit": five(one["limit"])} for one in group["features"]]
    return result


def test_the_page_holds_the_whole_result_and_asks_for_nothing_else(tmp_path: Path) -> None:
    result = page_results.large(models=2, features=4, points=50, alarms=5, tries=4)
    write_page(result, tmp_path / "report.html")
    held = facts(tmp_path / "report.html")["result"]
    for group in (group for parts in held["timeline"].values() for group in parts.values()):
        for one in group["features"]:
            assert one["limit"] == {"same": one["limit"]["same"]}, "a limit that is the same everywhere is told once"
            one["limit"] = [one["limit"]["same"]] * len(one["score"])
    assert held == json.loads(json.dumps(rounded(result)))
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", (tmp_path / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:,)[^"']*""", markup) == []


def test_no_sign_that_could_end_a_script_is_in_the_json() -> None:
    text = embedded({page_results.ATTACK: [page_results.ATTACK, "<!--", "\ud800"]})
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == {page_results.ATTACK: [page_results.ATTACK, "<!--", "\ud800"]}


def test_a_page_has_bounded_scores_and_none_of_the_highest_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = page_results.large(models=2, features=4, points=400, alarms=2, tries=1)
    group = result["timeline"]["shop/model-1"][""]
    group["features"][0]["score"][123] = 77.0
    group["features"][2]["score"][301] = 1e-30
    group["features"][1]["limit"][:200] = [0.2] * 200
    group["over"] = [place == 123 for place in range(400)]
    monkeypatch.setattr(page_module, "SCORES", 1000)
    write_page(result, tmp_path / "report.html")
    held = facts(tmp_path / "report.html")["result"]["timeline"]
    series = [one for parts in held.values() for part in parts.values() for one in part["features"]]
    assert sum(len(one["score"]) for one in series) <= 1000
    thin = held["shop/model-1"][""]
    assert max(thin["features"][0]["score"]) == 77.0
    assert min(thin["features"][2]["score"]) == 1e-30, "of p-values the smallest is the furthest"
    assert sum(thin["over"]) == 1
    assert len(thin["time"]) == len(thin["event"]) == len(thin["features"][0]["score"])
    assert thin["event"][-1] == group["event"][-1]
    assert isinstance(thin["features"][1]["limit"], list), "a limit that changes is told at every point"


def test_a_large_page_stays_below_8_mb(large: tuple[dict[str, Any], Path]) -> None:
    assert large[1].stat().st_size < 8_000_000


def test_what_cannot_be_written_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--report .*nowhere/report\.html: there is no folder .*nowhere"):
        check_page(tmp_path / "nowhere" / "report.html")
    with pytest.raises(SettingsError, match="it is a folder; name a file"):
        check_page(tmp_path)
    with pytest.raises(SettingsError, match=r"--report .*nowhere/report\.html: cannot be written: No such file"):
        write_page(page_results.empty(), tmp_path / "nowhere" / "report.html")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "kept").write_text("here")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_page(page_results.empty(), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "kept").read_text() == "here"
    check_page(tmp_path / "report.html")


def test_without_plotly_it_is_told_before_the_replay_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(SettingsError, match=r"--report needs plotly; pip install 'driftloop\[report\]'"):
        check_page(tmp_path / "report.html")


def test_plotly_is_imported_only_for_a_page() -> None:
    script = "import sys, streaming.backtest.page; sys.exit('plotly' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-P", "-c", script], check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The browser


class Browser:
    """A headless Chromium that saves files into `folder`."""

    def __init__(self, profile: Path, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
        options = webdriver.ChromeOptions()
        options.binary_location = chromium or ""
        for flag in [*QUIET, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.folder = folder
        self.shown: tuple[Path, int] | None = None
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})

    def open(self, path: Path, *, width: int = 1280, fresh: bool = False) -> None:
        """A page as it is at first, in light colours; one that is still so is not read again, since that takes a second."""
        if not fresh and self.shown == (path, width):
            return
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())
        self.shown = (path, width)

    def touched(self) -> None:
        """The page is no longer as it was at first."""
        self.shown = None

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent.trim())", selector)

    def text(self, selector: str) -> str:
        (text,) = self.texts(selector)
        return text

    def click(self, selector: str) -> None:
        """By keyboard, as everything can be."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.touched()
        self.driver.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.ENTER)

    def choose(self, selector: str, value: str) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import Select

        self.touched()
        Select(self.driver.find_element(By.CSS_SELECTOR, selector)).select_by_value(value)

    def said(self) -> list[str]:
        """What the console was told since it was last asked."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def saved(self, selector: str, name: str) -> str:
        path = self.folder / name
        path.unlink(missing_ok=True)
        self.click(selector)
        until = time.monotonic() + WAIT
        while not path.exists():
            assert time.monotonic() < until, f"{name} was not saved"
            time.sleep(0.05)
        return path.read_bytes().decode("utf-8")

    def traces(self, selector: str) -> int:
        """Lines, dots and bars that stand in a chart's SVG."""
        return self.run(
            "return document.querySelectorAll(`${arguments[0]} .scatterlayer .trace path, ${arguments[0]} .barlayer .trace path`).length",
            selector,
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from conftest import missing

    if not all(shutil.which(name) for name in ("chromium", "chromedriver")):
        missing("Chromium", "chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    pytest.importorskip("selenium", reason="needs the extra 'test' (selenium)")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "saved").mkdir()
    opened = Browser(folder / "profile", folder / "saved")
    yield opened
    opened.driver.quit()


def drawn(folder: Path, result: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    path = folder / "report.html"
    write_page(result, path)
    return result, path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return drawn(tmp_path_factory.mktemp("large"), page_results.large())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return drawn(tmp_path_factory.mktemp("small"), page_results.large(models=2, features=14, points=120, alarms=6, tries=6))


def test_a_large_page_draws_every_chart_without_a_word_on_the_console(browser: Browser, large: tuple[dict[str, Any], Path]) -> None:
    browser.said()
    browser.open(large[1], fresh=True)
    assert browser.said() == []
    names = ["#timeline-chart", "#accuracy-chart", "#tried-chart", "#alarm-detail .chart"]
    assert [name for name in names if not browser.traces(name)] == []
    assert browser.run("return performance.getEntriesByType('resource').map((one) => one.name)") == []
    # On a machine without other work it is there within two seconds; half of that is Plotly's own script.
    assert browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd") < 1000 * WAIT


def test_the_answers_numbers_are_those_of_the_json(browser: Browser, large: tuple[dict[str, Any], Path]) -> None:
    result = large[0]
    browser.open(large[1])

    def value(name: str) -> float:
        return float(browser.run(f"return document.querySelector('#tile-{name} data').value"))

    found = [drift for drift in result["known_drifts"] if drift["found"]]
    assert value("alarms") == len(result["alarms"])
    assert value("false-alarms") == result["false_alarms"]["per_30d"]
    assert value("found") == len(found) == len(result["known_drifts"]) - result["missed"]
    assert value("delay") == sorted(drift["delay_events"] for drift in found)[len(found) // 2]
    assert value("started") == result["decisions"]["retrain"]
    assert value("events") == result["events"]
    held = sum(result["decisions"]["hold"].values())
    count = result["false_alarms"]["count"]
    started = result["decisions"]["retrain"]
    assert browser.text("#sentence") == (
        f"20 alarms in 1,000,000 events, {count} of them false. "
        f"3 of 4 known drifts found, half of them within {value('delay'):,.0f} events. "
        f"{started} retrainings would have been started; {held} decisions held back."
    )
    assert browser.text("#proposal code") == result["proposal"]["yaml"].strip()
    assert browser.text("#interrupted").startswith("Interrupted.")
    assert result["injected"][0] in browser.text("#injected")
    assert browser.text("#unreadable").startswith("3 records could not be read")


def test_model_part_axis_and_features_can_be_chosen(browser: Browser, large: tuple[dict[str, Any], Path]) -> None:
    browser.said()
    browser.open(large[1], fresh=True)
    lines = "return document.getElementById('timeline-chart').data.filter((one) => one.meta?.length === 3 && one.mode === 'lines').length"
    assert browser.run(lines) == 6, "the furthest are on, the others are not"
    assert len(browser.texts("#timeline-series li")) == 50
    furthest = browser.run("return seen.series.map((one) => one.worst)")
    assert browser.run("return seen.series.map((one) => one.feature)") == [
        text.split()[0] for text in browser.texts("#timeline-series .name")
    ]
    assert furthest == sorted(furthest, reverse=True)
    browser.click("#timeline-series .row button:nth-child(2)")
    assert browser.run(lines) == 50
    browser.click("#timeline-series .row button:nth-child(3)")
    assert browser.run(lines) == 0
    browser.run("document.querySelector('#timeline-series li input').click()")
    assert browser.run(lines) == 1
    browser.choose("#timeline-model", "shop/model-1")
    assert browser.texts("#timeline-part option") == ["all rows", "country=NO"]
    browser.choose("#timeline-part", "country=NO")
    assert len(browser.texts("#timeline-series li")) == 4
    assert browser.run("return document.getElementById('timeline-chart').layout.xaxis.type") == "date"
    browser.choose("#timeline-axis", "event")
    assert browser.run("return document.getElementById('timeline-chart').layout.xaxis.type") == "linear"
    browser.run("document.getElementById('timeline-log').click()")
    assert browser.run("return [seen.log, document.getElementById('timeline-chart').layout.yaxis.type]") in (
        [True, "log"],
        [False, "linear"],
    )
    assert browser.said() == []


def test_an_alarm_can_be_chosen_and_shows_what_moved(browser: Browser, large: tuple[dict[str, Any], Path]) -> None:
    result = large[0]
    browser.open(large[1])
    assert browser.text("#alarm-detail h3").startswith("Alarm 1, ")
    browser.click("#alarm-after")
    assert browser.text("#alarm-detail h3").startswith("Alarm 2, ")
    browser.choose("#alarm-choice", "8")
    alarm = result["alarms"][8]
    assert f"event {alarm['event']:,}" in browser.text("#alarm-detail h3")
    told = browser.texts(".findings li")
    assert len(told) == len(alarm["findings"]) == 9
    first = alarm["findings"][0]
    assert told[0].startswith(f"{first['feature']} {first['what']} ")
    assert f"({first['direction']}); since event {first['since']:,}" in told[0]
    assert browser.texts("#alarm-detail figure h4") == [one["feature"] for one in result["evidence"][8]["features"]]
    pictures = browser.run(
        "return [...document.querySelectorAll('#alarm-detail .chart')].map((one) => one.data.map((trace) => trace.name).sort())"
    )
    assert pictures == [["reference", "window"]] * 6
    browser.click("#alarms-body tbody tr:nth-child(4) button")
    assert browser.text("#alarm-detail h3").startswith("Alarm 4, ")
    assert browser.run("return document.activeElement.id") == "chosen-alarm"


def test_the_tables_numbers_are_those_of_the_json(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    result = small[0]
    browser.open(small[1])
    rows_of = "[...document.querySelectorAll(arguments[0])]"
    cells = f"return {rows_of}.map((row) => [...row.querySelectorAll('data')].map((one) => Number(one.value)))"
    assert browser.run(cells, "#alarms-body tbody tr") == [[alarm["event"]] for alarm in result["alarms"]]
    wanted = [
        [one["false_alarms"]["per_30d"], one["found"], one["missed"], one["median_delay_events"], one["alarms"]] for one in result["tried"]
    ]
    assert browser.run(cells, "#tried-table tbody tr") == [[value for value in row if value is not None] for row in wanted]
    tags = browser.run("return [...document.querySelectorAll('#tried-table tbody tr')].map((row) => row.textContent.includes('Pareto'))")
    assert tags == [one["pareto"] for one in result["tried"]]
    held = {"retrain": result["decisions"]["retrain"], "alert": result["decisions"]["alert"], **result["decisions"]["hold"]}
    counts = f"return {rows_of}.map((row) => [row.querySelector('code').textContent, Number(row.querySelector('data').value)])"
    rows = browser.run(counts, "#decisions-body > div:first-child tbody tr")
    assert dict(rows) == held
    models = browser.run(cells, "#replayed-body > div tbody tr")
    assert models[0] == [result["models"][0][name] for name in ("predictions", "labels", "verdicts", "breached")]


def test_the_charts_points_are_those_of_the_json(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    result = rounded(json.loads(json.dumps(small[0])))
    browser.open(small[1])
    browser.choose("#timeline-model", "shop/model-1")
    name, points = browser.run("const one = document.getElementById('timeline-chart').data[0]; return [one.meta, one.customdata]")
    group = result["timeline"]["shop/model-1"][""]
    (series,) = [one for one in group["features"] if one["feature"] == name[0] and one["test"] == name[1]]
    assert [point[0] for point in points] == series["score"]
    assert [point[1] for point in points] == series["limit"]
    marks = browser.run(
        "return document.getElementById('timeline-chart').data.find((one) => one.name === 'alarms').customdata.map((one) => one[0])"
    )
    assert marks == [place for place, alarm in enumerate(result["alarms"]) if alarm["model"] == "shop/model-1"]
    chart = browser.run("return document.getElementById('accuracy-chart').data[0].y")
    assert chart == [point["accuracy"] for point in result["accuracy"]["shop/model-1"]]


def test_a_series_of_p_values_is_drawn_by_their_logarithms(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    browser.open(small[1])
    ratios = browser.run(
        "return [ratio('ks', 0.0001, 0.01), ratio('ks', 1, 0.01), ratio('wasserstein', 0.3, 0.1), ratio('ks', null, 0.1), ratio('x', 1, 0)]"
    )
    assert ratios == [pytest.approx(2.0), 0, pytest.approx(3.0), None, None]


def test_a_drawn_distribution_is_the_evidences(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    browser.open(small[1])
    (evidence,) = [one for one in small[0]["evidence"] if one["alarm"] == 0]
    numeric = [place for place, one in enumerate(evidence["features"]) if one["kind"] == "numeric"]
    for place in numeric:
        shares = browser.run("return document.querySelectorAll('#alarm-detail .chart')[arguments[0]].data[0].y", place)
        assert shares[1:-2] == evidence["features"][place]["reference"]["share"]
    assert numeric or evidence["features"]


def test_everything_that_can_be_used_or_seen_has_a_name(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    browser.open(small[1])
    browser.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    asked = {"button", "checkbox", "combobox", "searchbox", "image", "link", "region", "table", "navigation"}
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert {role for role, _ in told} >= asked
    assert [one for one in told if one[0] in asked and not one[1]] == []
    levels = [int(level) for level in browser.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map((one) => one.tagName[1])")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, small: tuple[dict[str, Any], Path], width: int) -> None:
    browser.open(small[1], width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_a_table_sorts_by_keyboard_and_says_so(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    browser.open(small[1])
    numbers = (
        "return [...document.querySelectorAll('#tried-table tbody tr')].map((row) => Number(row.children[4].querySelector('data').value))"
    )
    order = "return document.querySelector('#tried-table th:nth-child(5)').getAttribute('aria-sort')"
    rates = [one["false_alarms"]["per_30d"] for one in small[0]["tried"]]
    assert browser.run(order) is None
    browser.click("#tried-table th:nth-child(5) button")
    assert (browser.run(numbers), browser.run(order)) == (sorted(rates), "ascending")
    browser.click("#tried-table th:nth-child(5) button")
    assert (browser.run(numbers), browser.run(order)) == (sorted(rates, reverse=True), "descending")
    browser.click("#tried-table th:nth-child(8) button")
    last = browser.run("return document.querySelector('#tried-table tbody tr:last-child').children[7].textContent")
    assert last == "\u2013", "what has no delay comes last"


def test_the_files_hold_the_numbers(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    result = rounded(json.loads(json.dumps(small[0])))
    browser.open(small[1])
    assert json.loads(browser.saved("#save-json", "driftloop-replay.json")) == result

    def sheet(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(browser.saved(f"#save-{name}", f"driftloop-{name.replace('_', '-')}.csv"))))

    alarms = sheet("alarms")
    assert len(alarms) == sum(len(alarm["findings"]) for alarm in result["alarms"])
    assert float(alarms[0]["finding_score"]) == result["alarms"][0]["findings"][0]["score"]
    timeline = sheet("timeline")
    count = sum(len(one["score"]) for parts in result["timeline"].values() for group in parts.values() for one in group["features"])
    assert len(timeline) == count
    last = result["timeline"]["shop/model-2"][""]["features"][-1]
    assert [timeline[-1]["feature"], float(timeline[-1]["score"]), float(timeline[-1]["limit"])] == [
        last["feature"],
        last["score"][-1],
        last["limit"][-1],
    ]
    settings = sheet("settings")
    assert [json.loads(row["settings"]) for row in settings] == [one["settings"] for one in result["tried"]]
    assert [row["name"] for row in sheet("known_drifts")] == [drift["name"] for drift in result["known_drifts"]]


def test_colours_follow_dark_light_and_paper(browser: Browser, small: tuple[dict[str, Any], Path]) -> None:
    colours = "return [getComputedStyle(document.body).color, getComputedStyle(document.querySelector('#timeline-chart .xtick text')).fill]"
    browser.open(small[1])
    light = browser.run(colours)
    assert light == ["rgb(27, 36, 48)"] * 2
    browser.touched()
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    # Its own listeners draw anew before the next answer.
    browser.run("return new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    assert browser.run(colours) == ["rgb(228, 233, 239)"] * 2
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(colours) == light
    assert browser.run("return document.getElementById('timeline-chart').layout.width") == 680
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(colours) == ["rgb(228, 233, 239)"] * 2
    assert browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"].startswith("JVBERi")


def test_an_empty_result_says_so_and_draws_nothing(browser: Browser, tmp_path: Path) -> None:
    _, path = drawn(tmp_path, page_results.empty())
    browser.said()
    browser.open(path, fresh=True)
    assert browser.said() == []
    assert browser.text("#sentence") == "No alarm in 120 events. No retraining would have been started."
    assert browser.run("return document.querySelectorAll('.chart, .banner').length") == 0
    for name in ("timeline", "alarms", "known", "accuracy", "tried"):
        assert browser.text(f"#{name}-body").startswith(("No ", "There w"))
    assert browser.run("return [...document.querySelectorAll('#downloads button:not([disabled])')].map((one) => one.id)") == [
        "save-json",
        "save-decisions",
    ]


def test_no_text_of_the_data_becomes_markup_or_code(browser: Browser, tmp_path: Path) -> None:
    result, path = drawn(tmp_path, page_results.hostile())
    browser.said()
    browser.open(path, fresh=True)
    for place in range(4):
        browser.choose("#alarm-choice", str(place))
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    # What a chart tells under the mouse is made at that moment.
    browser.run("document.getElementById('timeline').scrollIntoView()")
    ActionChains(browser.driver).move_to_element(browser.driver.find_element(By.CSS_SELECTOR, "#timeline-chart .nsewdrag")).perform()
    browser.run("Plotly.Fx.hover(document.getElementById('timeline-chart'), [{curveNumber: 0, pointNumber: 5}])")
    hover = " ".join(browser.texts("#timeline-chart .hoverlayer"))
    assert "</script><img src=x onerror=" in hover
    assert "<b>%{x}" in hover
    alone = "return getComputedStyle(document.getElementById('timeline-model').parentNode).display"
    assert browser.run(alone) == "none", "of a single model there is nothing to choose"
    assert browser.said() == []
    assert browser.run("return window.hit ?? null") is None
    assert browser.run("return document.querySelectorAll('main img, main b, header img, main script').length") == 0
    seen = re.sub(r"\s", "", browser.text("body"))
    for text in (
        result["source"],
        result["alarms"][0]["findings"][0]["feature"],
        result["alarms"][0]["known_drift"] or "",
        page_results.ATTACK,
    ):
        assert re.sub(r"\s", "", text) in seen
    rows = list(csv.reader(io.StringIO(browser.saved("#save-known_drifts", "driftloop-known-drifts.csv"))))
    assert rows[1][0] == f"'=HYPERLINK(1){page_results.ATTACK}", "a spreadsheet takes it for a text"


def test_a_script_that_came_in_by_another_way_would_not_run(browser: Browser, tmp_path: Path) -> None:
    _, path = drawn(tmp_path, page_results.empty())
    text = path.read_text(encoding="utf-8").replace(
        "<main>", "<main><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>", 1
    )
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert browser.run("return window.hit ?? null") is None
    assert any("Content Security Policy" in line for line in browser.said())


def test_replay_writes_the_page_that_its_json_tells(browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(3)

    def rows(count: int) -> pd.DataFrame:
        return pd.DataFrame({"x": rng.normal(size=count), "kind": rng.choice(["a", "b"], count)})

    rows(1000).to_csv(tmp_path / "reference.csv", index=False)
    events = rows(2500)
    events.loc[1500:, "x"] += 2.0
    events.to_csv(tmp_path / "events.csv", index=False)
    command = ["replay", "--table", tmp_path / "events.csv", "--reference", tmp_path / "reference.csv", "--json"]
    assert main([*map(str, command), "--report", str(tmp_path / "report.html")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["alarms"]) == 1
    browser.said()
    browser.open(tmp_path / "report.html", fresh=True)
    assert browser.said() == []
    assert float(browser.run("return document.querySelector('#alarms-body tbody data').value")) == result["alarms"][0]["event"]
    assert browser.text(".findings li strong") == "x"
    assert browser.traces("#timeline-chart")
    assert json.loads(browser.saved("#save-json", "driftloop-replay.json"))["alarms"] == result["alarms"]
