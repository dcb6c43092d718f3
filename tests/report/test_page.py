"""The report as a browser reads it: whole, self-contained, and with nobody's markup but its own."""

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest

from mcsmoe.grouping.plan import Group
from mcsmoe.report.results import results_section, smallest_near
from mcsmoe.report.shrunk import shrunk_page
from mcsmoe.report.table import Result
from mcsmoe.report.use import groupings, use_rows
from tests.report import large
from tests.report.page import FREQUENCY, HOSTILE, MERGED, METRIC, NONE, RESULTS, page, plan, result
from tests.report.shrunk import large_shrunk

SECTIONS = ["results", "tradeoff", "use", "similarity", "stable-rank", "curves", "provenance"]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Elements with their attributes, the text, and ends that belong to no start."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.bold: list[str] = []
        self.text, self.open = "", list[str]()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "td" and "best" in (self.elements[-1][1].get("class") or ""):
            self.bold.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return page()


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    return Reader(html)


def test_every_section_is_there_and_every_element_closed(read: Reader):
    assert [values["id"] for tag, values in read.elements if tag == "section"] == SECTIONS
    assert [values["href"] for tag, values in read.elements if tag == "a"] == [f"#{name}" for name in SECTIONS]
    assert read.open == []


def test_nothing_is_loaded(html: str, read: Reader):
    loads = {values[name] for _, values in read.elements for name in ("src", "href", "xlink:href") if name in values}
    assert all(link and link.startswith(("#", "data:image/png;base64,")) for link in loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in read.elements}


def test_ids_are_unique_and_what_pictures_refer_to_is_there(html: str, read: Reader):
    ids = Counter(values["id"] for _, values in read.elements if "id" in values)
    assert [name for name, count in ids.items() if count > 1] == []
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_a_hostile_name_is_only_text(html: str, read: Reader):
    assert HOSTILE in read.text
    assert "<img" not in html
    assert not [values for _, values in read.elements if "onerror" in values]


def test_best_of_a_step_is_bold_among_smaller_models(read: Reader):
    """Once in the matrix and once in the table of costs; `none`, which is no smaller, is not."""
    assert read.bold == ["0.8000", "0.8950", "0.8500"] * 2


def test_the_same_bytes_each_time(html: str):
    assert page() == html


def test_a_merged_expert_takes_the_tokens_of_its_members():
    lost = plan("pruned", Group(1, (1, 2), (0.4, 0.2)), dropped=(0, 3))
    after = [row for row in use_rows(lost, FREQUENCY) if row["moment"] == "after" and row["layer"] == "encoder.1"]
    assert [(row["expert"], row["share"]) for row in after] == [(0, 0.6)]
    (grouping,) = groupings({"a": use_rows(lost, FREQUENCY), "b": use_rows(lost, FREQUENCY)})
    assert grouping.methods == ("a", "b")
    assert (grouping.layers[0].groups[0].experts, grouping.layers[0].dropped) == ([1, 2], ((3, 0.3), (0, 0.1)))


def test_methods_with_other_groups_stand_apart_and_nothing_merged_does_not_count():
    other = plan("other", Group(0, (0, 1), (0.1, 0.4)), Group(2, (2, 3), (0.2, 0.3)))
    found = groupings({p.method: use_rows(p, FREQUENCY) for p in (NONE, MERGED, other)})
    assert [grouping.methods for grouping in found] == [("m-smoe",), ("other",)]


def measured(step: str, method: str, score: float, size: int, half: float = 0.02) -> Result:
    known = result(step, method, score, size)
    return Result(step, method, known.scores | {"exact_match_low": score - half, "exact_match_high": score + half})


INTERVALS = [
    measured("full", "–", 0.9, 8_000_000),
    measured("merge", "a", 0.8, 4_000_000),
    measured("merge", "b", 0.77, 4_000_000),
    measured("merge", "c", 0.7, 2_000_000),
    measured("distill", "a", 0.95, 4_000_000),
    measured("distill", "c", 0.865, 2_000_000),
]
"""After merging, only `c` is worse than others; after distillation, `a` is better than the full model."""


def test_what_stands_first_is_small_and_inside_the_intervals():
    found = smallest_near(INTERVALS, METRIC)
    assert (found.step, found.method) == ("distill", "c")
    far = [RESULTS[0], result("merge", "a", 0.5, 1), result("merge", "b", 0.6, 2)]
    assert smallest_near(far, METRIC).method == "b"


def test_nothing_is_better_inside_the_intervals():
    read = Reader(results_section(INTERVALS, METRIC).body)
    assert read.bold == [
        "0.8000",
        "0.9500",
        "0.7700",
        "0.8000 (0.780–0.820)",
        "0.7700 (0.750–0.790)",
        "0.9500 (0.930–0.970)",
    ]
    assert [values.get("class") for tag, values in read.elements if tag == "small"] == [
        "worse", "better", "worse", "worse", None
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("drawn", [page, large.page, lambda: shrunk_page(large_shrunk())])
def test_a_browser_draws_it_narrow(drawn, tmp_path):
    """No part but those that scroll is wider than a phone: the page itself does not scroll sideways."""
    html = drawn().replace('<details class="layer">', '<details class="layer" open>')
    probe = "<script>const e = document.documentElement; document.title = e.scrollWidth - e.clientWidth</script></body>"
    (tmp_path / "page.html").write_text(html.replace("</body>", f"{probe}"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom"]
    done = subprocess.run(["chromium", *options, (tmp_path / "page.html").as_uri()], capture_output=True, text=True)
    assert re.findall(r"<title>(\d+)</title>", done.stdout) == ["0"]
