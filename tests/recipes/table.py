"""The table of recipes in docs/methods.md.

python -m tests.recipes.table     prints it
"""

from pathlib import Path

import mcsmoe.recipes


def table() -> str:
    """Markdown: each recipe's name and what its first line says of it."""
    files = sorted(Path(mcsmoe.recipes.__path__[0]).glob("*.yaml"))
    rows = [f"| `{file.stem}` | {file.read_text().splitlines()[0].removeprefix('# ')} |" for file in files]
    return "\n".join(["| recipe | what it is |", "|---|---|", *rows])


if __name__ == "__main__":
    print(table())
