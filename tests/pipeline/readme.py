"""Commands and code of README and docs/, as a reader would copy them."""

import re
from pathlib import Path

from tests.pipeline.imports import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAMS = ("dvc ", "git ", "make ", "mcsmoe ", "pytest ", "python ", "python3 ", "pip ")


def pages() -> list[Path]:
    """README and what it links to."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[str]:
    """Contents of all fenced blocks of one kind."""
    return [body for page in pages() for found, body in FENCE.findall(page.read_text()) if found == kind]


def python_with(text: str) -> str:
    """The one fenced block of Python that contains `text`."""
    (found,) = (body for body in blocks("python") if text in body)
    return found


def commands() -> set[str]:
    """Lines of `sh` blocks, those after `$` of `console` blocks, and code in running text that starts a program."""
    lines = [line for body in blocks("sh") for line in body.splitlines()]
    lines += [line.removeprefix("$ ") for body in blocks("console") for line in body.splitlines() if line[:2] == "$ "]
    for page in pages():
        spans = re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))
        lines += [code for code in (" ".join(span.split()) for span in spans) if code.startswith(PROGRAMS)]
    return {re.sub(r"\s+# .*", "", line) for line in lines}
