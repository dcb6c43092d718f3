"""Tasks that models are trained and scored on: their examples, token ids and scores.

    from mcsmoe.tasks.task import TASKS

    task = TASKS["sst2"]
    examples = task.examples(settings, "test")
    rows = task.encode(tokenizer, examples, settings, seed=0)

Data sets of one kind share a file: `classification`, `choice`, `extraction`, `passages`. Each of those in
`own_figures` has its own way of scoring; `skills` is generated. `TASKS.register("mine")(Mine())` adds a task.
"""
