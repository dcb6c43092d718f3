"""WikiText-2 (Merity et al., 2017): articles of Wikipedia, as running text."""

from mcsmoe.tasks.lm import LanguageModelling
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class WikiText2(LanguageModelling):
    """Perplexity per token of the test set, in blocks of `max_source_length` tokens."""

    source = Source(("text",), "Salesforce/wikitext", "wikitext-2-raw-v1", splits={"train": "train", "test": "test"})


TASKS.register("wikitext2")(WikiText2())
