"""Which files of this project a file imports, however far, read from the source without running it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OURS = ("mcsmoe", "stages")

INFRASTRUCTURE = frozenset(
    map(
        Path,
        [
            "mcsmoe/__init__.py",
            "mcsmoe/command.py",
            "mcsmoe/distributed.py",
            "mcsmoe/errors.py",
            "mcsmoe/fields.py",
            "mcsmoe/interrupt.py",
            "mcsmoe/model_types.py",
            "mcsmoe/params.py",
            "mcsmoe/progress.py",
            "mcsmoe/reading.py",
            "mcsmoe/registry.py",
            "mcsmoe/warm.py",
            "mcsmoe/warm_process.py",
            "stages/__init__.py",
            "stages/common.py",
            "stages/handover.py",
            "stages/launch.py",
        ],
    )
)
"""How stages are started, refuse and tell: no stage depends on it, for it changes nothing of what they compute."""


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that `path` (relative to the root) imports, also inside functions and for types only."""
    package = path.parent.parts
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


@cache
def registered_packages(path: Path) -> frozenset[str]:
    """Packages whose modules a `Registry` made in `path` imports at its first look-up."""
    calls = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call))
    arguments = (call.args for call in calls if "Registry" in ast.unparse(call.func) and len(call.args) == 2)
    return frozenset(str(package.value) for _, package in arguments if isinstance(package, ast.Constant))


@cache
def files(path: Path) -> frozenset[Path]:
    """Our files that `path` imports directly, with whole registered packages; empty files do not count."""
    found = {file for name in imported(path) for file in _modules(name)}
    for package in registered_packages(path):
        directory = ROOT.joinpath(*package.split("."))
        found |= {file.relative_to(ROOT) for file in directory.rglob("*.py")}
    return frozenset(file for file in found if (ROOT / file).stat().st_size)


def dependencies(stage: Path) -> set[str]:
    """What `deps` of a stage must list: its own file, and packages, or files beside them, that it imports."""
    seen: set[Path] = set()
    todo = [stage]
    while todo:
        file = todo.pop()
        if file not in seen and file not in INFRASTRUCTURE:
            seen.add(file)
            todo += files(file)
    return {str(Path(*file.parts[:2])) for file in seen}


def _modules(name: str) -> list[Path]:
    """The files that importing `name` runs: the module, and the package files above it."""
    parts = name.split(".")
    if parts[0] not in OURS:
        return []
    inits = [Path(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    module = Path(*parts).with_suffix(".py")
    return [file for file in (*inits, module) if (ROOT / file).is_file()]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())
