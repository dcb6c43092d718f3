"""Which files of this project a file imports, however far, read from the source without running it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OURS = ("mcsmoe", "stages")

CHECKS = Path("stages/check.py")
"""Refuses bad params before work starts and never changes what a stage computes: no stage depends on it."""


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
        found |= set(package_files(Path(*package.split("."))))
    return frozenset(file for file in found if (ROOT / file).stat().st_size)


def closure(path: Path) -> set[Path]:
    """`path` and all our files that it imports, however far."""
    seen: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file not in seen and file != CHECKS:
            seen.add(file)
            todo += files(file)
    return seen


def companions(path: Path) -> set[Path]:
    """Files of the same name as a module that are no code: markup or style that it fills and writes."""
    return {file.relative_to(ROOT) for file in (ROOT / path).parent.glob(f"{path.stem}.*") if file.suffix != ".py"}


def package_files(directory: Path) -> list[Path]:
    """The non-empty Python files of a package and of the packages in it."""
    found = sorted((ROOT / directory).rglob("*.py"))
    return [file.relative_to(ROOT) for file in found if file.stat().st_size]


def dependencies(stage: str) -> list[str]:
    """What `deps` of a stage must list: its files, as a directory where all files of a package are needed.

    A registered package is always a directory, so that a new file in it counts.
    """
    needed = closure(Path(f"stages/{stage}.py"))
    beside = {file for path in needed if path.parts[0] == "mcsmoe" for file in companions(path)}
    whole = {
        directory
        for directory in {file.parent for file in needed}
        if len(directory.parts) == 2 and set(package_files(directory)) <= needed and _data(directory) <= beside
    }
    singles = {file for file in needed | beside if file.parent not in whole}
    return sorted(str(path) for path in whole | singles)


def _data(directory: Path) -> set[Path]:
    """Files that are no code, such as recipes: a dependency on the directory would count them, too."""
    files = (path for path in (ROOT / directory).iterdir() if path.is_file() and path.suffix != ".py")
    return {path.relative_to(ROOT) for path in files}


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
