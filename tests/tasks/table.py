"""The tables of tasks in README and docs/tasks.md.

python -m tests.tasks.table     prints them
"""

from mcsmoe.tasks.task import TASKS


def table() -> str:
    """Markdown: each task's name, its data set on the hub, what is quality, and how it is measured."""
    rows = []
    for name in TASKS:
        task = TASKS[name]
        source = task.source
        hub = f"`{source.hub}`" if source and source.hub else "built in" if source is None else "your text"
        subset = f" `{source.subset}`" if source and source.subset else ""
        measured = (type(task).__doc__ or "").split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `{name}` | {hub}{subset} | {task.metric.replace('_', ' ')} | {measured} |")
    return "\n".join(["| task | data set | quality | how it is measured |", "|---|---|---|---|", *rows])


def short() -> str:
    """Markdown: names of tasks by what is measured on them."""
    kinds: dict[str, list[str]] = {}
    for name in TASKS:
        task = TASKS[name]
        kind = {(True, True): "both", (True, False): "generated text", (False, True): "likelihood of each choice"}.get(
            (task.generates, task.chooses), "likelihood of each token"
        )
        kinds.setdefault(kind, []).append(f"`{name}`")
    rows = [f"| {kind} | {', '.join(names)} |" for kind, names in kinds.items()]
    return "\n".join(["| what is scored | tasks |", "|---|---|", *rows])


if __name__ == "__main__":
    print(short(), table(), sep="\n\n")
