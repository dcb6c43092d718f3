"""The table of recipes in docs/methods.md.

python -m tests.methods.table     prints it
"""

from mcsmoe.methods.recipe import DIRECTORIES


def table() -> str:
    """Markdown: each recipe's name and what its first line says of it."""
    files = sorted(DIRECTORIES[1].glob("*.yaml"))
    rows = [f"| `{file.stem}` | {file.read_text().splitlines()[0].removeprefix('# ')} |" for file in files]
    return "\n".join(["| recipe | what it is |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
