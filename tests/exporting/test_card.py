"""Model cards in which every name, and every text of a model, is an attempt to say something else."""

import shlex

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mcsmoe.exporting.card import Card, Figure, Measured, Origin, code
from mcsmoe.families import FAMILIES
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.report.shrunk import Continuation

HOSTILE = [
    "a`b``c```d",
    "x\n```\n# Heading\n```",
    "---\nlibrary_name: other\n---",
    "x](http://bad) ![i](http://bad/i.png) <img src=http://bad> <!-- ",
    "a | b | c\n|---|---|",
    "> quote\n\n# Heading\n\n- list\n===\n",
    "http://bad $x$ ~~gone~~ **bold** &copy; \\`",
]


def card(text: str) -> Card:
    """A card with `text` wherever a plan, a recipe, a model, a task or a path can put one."""
    plan = Plan(text, text, text, text, {text: LayerPlan((Group(0, (0, 1), (0.5, 0.5)),), merged=True)})
    return Card(
        family=FAMILIES["mixtral"],
        model_type=text,
        experts=2,
        kept=[1],
        path=text,
        remote_code=False,
        origin=Origin(text, text, text, f"fine-tuned on {code(text)}"),
        calibration=f"8 rows of {code(text)}",
        plan=plan,
        recipe=None,
        groups={text: [[0, 1]]},
        router=text,
        agreement={text: 0.5},
        measured=Measured([Figure(text, 1.0, 2.0, worse=True)], f"the test split of {code(text)}", itself=True),
        command=shlex.join(["mcsmoe", "evaluate", text]),
        continuations=[Continuation(text, text, text)],
    )


def tokens(markdown: str) -> list[Token]:
    parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    return [inner for token in parsed for inner in [token, *(token.children or ())]]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_card_is_markdown_but_its_own(text: str):
    front, _, body = card(text).markdown().removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front) == yaml.safe_load(card("plain").front) | {"base_model": text}
    found, plain = tokens(body), tokens(card("plain").markdown().split("\n---\n")[1])

    def shape(each: list[Token]) -> list[tuple[str, str]]:
        """Everything but lines of text; a quote has as many of these as the text has lines."""
        kinds = [(token.type, token.tag) for token in each if token.type not in ("text", "softbreak", "text_special")]
        return [kind for kind in kinds if kind[0] not in ("paragraph_open", "paragraph_close", "inline")]

    assert shape(found) == shape(plain)
    (command,) = (token.content for token in found if token.type == "fence" and not token.info)
    assert shlex.split(command) == ["mcsmoe", "evaluate", text]
