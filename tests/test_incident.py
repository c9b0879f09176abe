"""The incident's record, and its report rendered by Evidently in a process of its own."""

import sys
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest

from inference.errors import ActionError
from inference.event import Event
from inference.versions import Feature, Schema
from streaming.actions.incident import (
    incident_folder,
    list_incidents,
    open_incident,
    read_incident,
    read_window,
    update_incident,
)
from streaming.actions.outbox import Entry
from streaming.actions.worker import Worker
from streaming.core.verdict import Decision, Explanation, Finding, Moved, Place, Span, Verdict
from streaming.report import POLICY, RenderReport, report_payload
from streaming.testing import open_outbox, put, told_ends

SPAN = Span(0, 10, 19, 1_800_000_000.0, 1_800_000_009.0)
SCHEMA = Schema((Feature("petal", "numeric"), Feature("colour", "categorical")), "categorical", "species")


def decision(id_: str = "d1", *, action: Any = "retrain", incident: str = "inc-1", evidence: Any = None) -> Decision:
    findings = (Finding("drift", "petal", "ks", float("nan"), 0.05, False, "empty"),)
    verdict = Verdict("v1", "default/iris", "1", 3, 30, SPAN, findings, ("drift",))
    window = {"petal": (1.0, float("nan")), "colour": ("red", None)} if evidence is None else evidence
    return Decision(id_, action, f"because of {id_}", incident, "run-1" if action == "retrain" else "", verdict, SPAN, window)


def test_an_opened_incident_holds_the_decision_and_the_window(tmp_path: Path) -> None:
    folder = open_incident(tmp_path, decision(), Path("/repo/reference.parquet"), schema=SCHEMA, now=1_800_000_010.0)
    assert folder == tmp_path / "incidents" / "inc-1"
    record = read_incident(tmp_path, "inc-1")
    assert record is not None
    assert (record["id"], record["model"], record["version"], record["opened"]) == (
        "inc-1",
        "default/iris",
        "1",
        "2027-01-15T08:00:10.000000Z",
    )
    assert record["decision"]["id"] == "d1" and record["decision"]["verdict"]["findings"][0]["score"] is None
    assert (record["reference"], record["schema"]["features"][0]["name"]) == ("/repo/reference.parquet", "petal")
    assert record["run"] == {"id": "run-1", "state": "started"}
    assert [line["what"] for line in record["timeline"]] == ["retrain"]
    assert read_window(folder) == {"petal": [1.0, None], "colour": ["red", None]}


def test_the_timeline_keeps_what_each_decision_found(tmp_path: Path) -> None:
    what = Explanation(
        "drift", "petal", "ks", "", 1e-9, 0.05, "up", (Moved("mean", 1.2, 3.05),), Place(15, 1_800_000_005.0), 5, False, 0.61
    )
    later = replace(what, since=Place(10, 1_800_000_000.0), earlier=True, share=1.0)
    for id_, one in (("d1", what), ("d2", later)):
        open_incident(tmp_path, replace(decision(id_), explanation=(one,), unexplained=3), now=1.0)
    record = read_incident(tmp_path, "inc-1")
    assert record is not None
    assert [line["text"] for line in record["timeline"]] == [
        "because of d1; petal: mean 1.2 -> 3.05 (up), since 08:00:05Z, 61 %; and 3 more",
        "because of d2; petal: mean 1.2 -> 3.05 (up), since 08:00:00Z or before, 100 %; and 3 more",
    ]
    assert record["decision"]["ranking"] == [{"feature": "petal", "share": 1.0}]
    assert record["decision"]["explanation"][0]["before"] == 1.2


def test_the_same_decision_told_again_changes_nothing(tmp_path: Path) -> None:
    folder = open_incident(tmp_path, decision(), now=1.0)
    before = (folder / "incident.json").read_bytes()
    open_incident(tmp_path, decision(evidence={"petal": (9.0,)}), now=2.0)
    assert (folder / "incident.json").read_bytes() == before
    assert read_window(folder)["petal"] == [1.0, None]


def test_a_later_decision_of_the_incident_joins_it_and_keeps_the_evidence(tmp_path: Path) -> None:
    open_incident(tmp_path, decision("d1"), Path("/r"), schema=SCHEMA, now=1.0)
    folder = open_incident(tmp_path, decision("d2", action="hold", evidence={}), now=2.0)
    record = read_incident(tmp_path, "inc-1")
    assert record is not None
    assert [(line["what"], line["text"]) for line in record["timeline"]] == [("retrain", "because of d1"), ("hold", "because of d2")]
    assert (record["decision"]["id"], record["run"]["id"], record["reference"], record["opened"]) == (
        "d2",
        "run-1",
        "/r",
        "1970-01-01T00:00:01.000000Z",
    )
    assert record["schema"] is not None
    assert read_window(folder)["petal"] == [1.0, None]


def test_an_update_is_merged_and_told_once(tmp_path: Path) -> None:
    open_incident(tmp_path, decision(), now=1.0)
    for _ in range(2):
        update_incident(
            tmp_path,
            "inc-1",
            id_="f1",
            what="promoted",
            text="version 2",
            now=2.0,
            changes={"run": {"state": "succeeded"}, "report": "report.html"},
        )
    record = read_incident(tmp_path, "inc-1")
    assert record is not None
    assert record["run"] == {"id": "run-1", "state": "succeeded"}
    assert record["report"] == "report.html"
    assert [line["what"] for line in record["timeline"]] == ["retrain", "promoted"]


def test_an_update_of_an_unknown_incident_makes_none(tmp_path: Path) -> None:
    assert update_incident(tmp_path, "inc-9", id_="x", what="promoted", now=1.0) is None
    assert list_incidents(tmp_path) == []


def test_the_timeline_is_bounded_and_keeps_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.actions.incident.MAX_TIMELINE", 10)
    open_incident(tmp_path, decision(), now=1.0)
    for number in range(15):
        update_incident(tmp_path, "inc-1", id_=f"h{number}", what="hold", now=2.0)
    record = read_incident(tmp_path, "inc-1")
    assert record is not None
    assert (len(record["timeline"]), record["omitted"]) == (10, 6)
    assert (record["timeline"][0]["what"], record["timeline"][-1]["id"]) == ("retrain", "h14")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".", "", "a\0b", "a" * 129, "a\n"])
def test_an_id_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ActionError, match="no incident id") as caught:
        incident_folder(tmp_path, name)
    assert not caught.value.retry
    with pytest.raises(ActionError):
        open_incident(tmp_path, decision(incident=name), now=1.0)
    assert list(tmp_path.iterdir()) == []


def test_incidents_are_listed_newest_first_and_a_damaged_one_harms_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_incident(tmp_path, decision(incident="old"), now=1.0)
    open_incident(tmp_path, decision(incident="new"), now=2.0)
    open_incident(tmp_path, decision(incident="broken"), now=3.0)
    (tmp_path / "incidents" / "broken" / "incident.json").write_text("{")
    (tmp_path / "incidents" / "stray file").write_text("")
    assert [record["id"] for record in list_incidents(tmp_path)] == ["new", "old"]
    assert "broken/incident.json" in caplog.text
    with pytest.raises(ActionError, match="cannot be read"):
        read_incident(tmp_path, "broken")


def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ActionError, match="state folder must be writable"):
        open_incident(tmp_path / "file", decision(), now=1.0)


def test_threads_that_tell_at_once_lose_nothing_and_a_reader_always_sees_a_whole_record(tmp_path: Path) -> None:
    open_incident(tmp_path, decision(), now=1.0)

    def tell(who: int) -> None:
        for number in range(20):
            update_incident(tmp_path, "inc-1", id_=f"{who}-{number}", what="hold", now=2.0)

    threads = [threading.Thread(target=tell, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert read_incident(tmp_path, "inc-1") is not None
    record = read_incident(tmp_path, "inc-1")
    assert record is not None and len(record["timeline"]) == 81
    assert sorted(path.name for path in (tmp_path / "incidents" / "inc-1").iterdir()) == ["incident.json", "window.json"]


NASTY = "<script>alert(1)</script>&petal"
NASTY_COLOUR = "red</script><script>alert(2)</script><!--"
NASTY_SCHEMA = Schema(
    (
        Feature(NASTY, "numeric"),
        Feature("colour", "categorical"),
        Feature("gone", "numeric"),
        Feature("few", "numeric"),
        Feature("code", "categorical"),
    ),
    "categorical",
    "species",
)

NO_NETWORK = """
import socket

def refused(self, address):
    with open({log!r}, "a") as file:
        file.write(repr(address) + "\\n")
    raise OSError("no network in this test")

socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = lambda *address, **options: refused(None, address)
"""


class Scripts(HTMLParser):
    """What a browser would take for scripts and for tags."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.sources: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        self.scripts.extend([""] if self._inside else [])
        self.sources.extend(value or "" for name, value in attributes if name in ("src", "href"))

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, text: str) -> None:
        if self._inside:
            self.scripts[-1] += text


def tables(node: Any) -> list[dict[str, Any]]:
    """Every row of the page's drift table."""
    if isinstance(node, dict):
        return [node] if "column_name" in node else [row for value in node.values() for row in tables(value)]
    return [row for value in node for row in tables(value)] if isinstance(node, list) else []


def reference_file(folder: Path) -> Path:
    columns = {
        NASTY: [n / 10 for n in range(60)],
        "colour": ["red", "green", NASTY_COLOUR] * 20,
        "gone": [1.0] * 60,
        "few": [1.0, 2.0] * 30,
        "code": [f"c{n}" for n in range(60)],
        "prediction": [0, 1, 2] * 20,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "reference.parquet")
    return folder / "reference.parquet"


@pytest.mark.slow
def test_the_report_is_rendered_offline_names_the_features_and_runs_nothing_that_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_before = "evidently" in sys.modules
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(tmp_path / "connections")))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    window = {
        NASTY: (*(n / 5 for n in range(37)), None, 1e308, -1e308),
        "colour": (NASTY_COLOUR, "blue", None, 3) * 10,
        "gone": (None,) * 40,
        "few": (1, 2) * 20,
        "code": tuple(f"c{n}" for n in range(40)),
        "prediction": (2.0, 2.0, 1.0, 1.0) * 10,
    }
    folder = open_incident(tmp_path / "state", decision(evidence=window), now=1.0)
    told: list[Event] = []
    outbox = open_outbox(told)
    put(outbox, "d1:report", "report", report_payload("inc-1", reference_file(tmp_path), NASTY_SCHEMA), now=time.time())
    assert Worker(outbox, {"report": RenderReport(tmp_path / "state")}, policies={"report": POLICY}).run_due() == 1
    assert told_ends(told) == [{"key": "d1:report", "kind": "report", "end": "done", "note": str(folder / "report.html")}]

    page = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Scripts()
    parsed.feed(page)
    assert len(parsed.scripts) == 4
    assert not any(script.startswith("alert") for script in parsed.scripts)
    assert not any(source.startswith(("http:", "https:", "//")) for source in parsed.sources)
    data = orjson.loads(parsed.scripts[0].split(" = ", 1)[1].split(";\n", 1)[0])
    content = orjson.dumps(data).decode()
    for name in (NASTY, "colour", "prediction", NASTY_COLOUR):
        assert orjson.dumps(name).decode() in content
    rows = {row["column_name"]: row for row in tables(data)}
    kinds = {name: row["column_type"] for name, row in rows.items()}
    assert kinds == {NASTY: "num", "colour": "cat", "few": "num", "code": "cat", "prediction": "cat"}
    # 3 and "3", 2 and 2.0 are one category each; a category of the reference alone is shown with none.
    colours, predicted = (
        {name for name, count in zip(shown["x"], shown["y"], strict=True) if count}
        for shown in (rows["colour"]["current_distribution"], rows["prediction"]["current_distribution"])
    )
    assert colours == {"3", "blue", NASTY_COLOUR}
    assert predicted == {"1", "2"}
    assert not (tmp_path / "connections").exists()
    record = read_incident(tmp_path / "state", "inc-1")
    assert record is not None and record["report"] == "report.html"
    assert ("evidently" in sys.modules) is loaded_before


def entry(payload: dict[str, Any]) -> Entry:
    return Entry("k", "report", payload, "default/iris", 0, created=0.0, next_at=0.0)


def test_a_report_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    open_incident(tmp_path, decision(), now=1.0)
    began = time.monotonic()
    with pytest.raises(ActionError, match=r"not rendered within 0\.05 s"):
        RenderReport(tmp_path, timeout=0.05)(entry(report_payload("inc-1", reference_file(tmp_path), SCHEMA)))
    assert time.monotonic() - began < 5.0


def test_a_report_that_fails_tells_the_reason_of_the_other_process(tmp_path: Path) -> None:
    folder = open_incident(tmp_path, decision(), now=1.0)
    with pytest.raises(ActionError, match=r"ended with 1: FileNotFoundError: .*reference\.parquet"):
        RenderReport(tmp_path)(entry(report_payload("inc-1", tmp_path / "reference.parquet", SCHEMA)))
    with pytest.raises(ActionError, match="ended with 1: ActionError: not a model version's schema: KeyError"):
        RenderReport(tmp_path)(entry({"incident": "inc-1", "reference": "x", "schema": {}}))
    assert not (folder / "report.html").exists()


def test_an_environment_without_evidently_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['evidently'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    open_incident(tmp_path, decision(), now=1.0)
    with pytest.raises(ActionError, match=r"driftloop\[report\]") as caught:
        RenderReport(tmp_path)(entry(report_payload("inc-1", reference_file(tmp_path), SCHEMA)))
    assert not caught.value.retry


def test_a_report_of_no_incident_or_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    for name in ("inc-9", "../inc-1"):
        with pytest.raises(ActionError) as caught:
            RenderReport(tmp_path)(entry(report_payload(name, tmp_path / "reference.parquet", SCHEMA)))
        assert not caught.value.retry


def test_importing_the_report_and_the_actions_loads_neither_evidently_nor_pandas() -> None:
    import subprocess

    code = "import sys, streaming.report, streaming.actions.worker; sys.exit(bool({'evidently', 'pandas', 'plotly'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60).returncode == 0
