"""The whole report as one file that needs nothing else: no script, no font, no picture from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from mcsmoe.evaluation.table import Metric, Result
from mcsmoe.report.results import smallest_near
from mcsmoe.report.section import Section, render


def report_page(task: str, results: Sequence[Result], metric: Metric, sections: Sequence[Section]) -> str:
    """HTML: what matters first, then the sections. `results` starts with the full model."""
    css = Markup(Path(__file__).with_suffix(".css").read_text())
    small = smallest_near(results, metric)
    full = results[0]
    page = render("page.html", css=css, task=task, metric=metric, full=full, small=small, sections=sections)
    return f"{page.rstrip()}\n"
