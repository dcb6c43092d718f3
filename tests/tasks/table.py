"""README's table of tasks.

python -m tests.tasks.table     prints it
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


if __name__ == "__main__":
    print(table())
