"""What a model is trained and scored on: examples, how they become token ids, how answers are scored.

    from mcsmoe.tasks.task import TASKS

    task = TASKS["sst2"]
    examples = task.examples(settings, "test")
    rows = task.encode(tokenizer, examples, settings, seed=0)

Data sets of a kind share a file: `classification`, `choice`, `extraction`, `passages`; `own_figures` are
scored each in its own way, and `skills` are made up. `TASKS.register("mine")(Mine())` adds one.
"""
