"""`mcsmoe shrink` as a new user runs it, on models larger than its memory limit: peak memory, time, and kill -9.

    python -m benchmarks.shrink

Makes random models in the layouts of Qwen3-MoE, Mixtral, DeepSeek-V3 and gpt-oss (bfloat16, in shards, at least 2 GB
each), and runs the command on each with a limit far below the model. Then runs it again and kills it with SIGKILL once
in every phase; what the last run writes must be the same, byte for byte. Memory is that of the command and of the
processes that it starts, anonymous pages only, sampled every 20 ms: cached pages of files belong to the system.
Takes about 40 minutes and 15 GB of disk on two cores. Writes benchmarks/results/shrink.json and .md.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.shrink_layouts import ALL, LAYOUTS, ROOT, TEXT, Layout, make
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.fields import size_in_bytes

RESULTS = Path(__file__).parent / "results"
UNDISTURBED, KILLED = "result-undisturbed", "result-killed"
SAMPLES = 16


def command(layout: Layout, model: Path, output: Path) -> list[str]:
    """The command of a user with this model."""
    options = {
        "--experts": layout.kept,
        "--format": layout.form,
        "--output": output,
        "--text": TEXT,
        "--samples": SAMPLES,
        "--memory-limit": layout.limit,
    }
    pairs = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "mcsmoe.cli", "shrink", str(model), *pairs, "--yes", "--json"]


PHASE = re.compile(r"\d+ % ([a-z ]+),")


def run(line: list[str], log: Path, until: str | None = None) -> dict[str, Any]:
    """Run a command; kill it with SIGKILL as soon as its phase `until` has begun and some time has passed in it.

    Returns the exit code, seconds, and peak bytes of anonymous memory of the command and of its children.
    """
    started, peaks, killed = time.monotonic(), {"command": 0, "child": 0}, False
    with log.open("w") as stream:
        process = subprocess.Popen(line, stdout=stream, stderr=stream, cwd=ROOT, start_new_session=True)
        entered: float | None = None
        while process.poll() is None:
            for pid in family(process.pid):
                kind = "command" if pid == process.pid else "child"
                peaks[kind] = max(peaks[kind], anonymous(pid))
            if until and entered is None and until in PHASE.findall(log.read_text()):
                entered = time.monotonic()
            if entered is not None and time.monotonic() - entered > 1.5:
                os.killpg(process.pid, signal.SIGKILL)
                killed = True
            time.sleep(0.02)
    return {"code": process.returncode, "seconds": time.monotonic() - started, "peaks": peaks, "killed": killed}


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants that are alive."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 once it is gone."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def measure(layout: Layout, scratch: Path, kills: bool) -> dict[str, Any]:
    """Run the command on one layout: undisturbed, and with `kills` then killed in every phase."""
    model = scratch / layout.model_type
    make(layout, model)
    whole = run(command(layout, model, scratch / UNDISTURBED), scratch / "log")
    text = (scratch / "log").read_text()
    if whole["code"] != 0:
        raise RuntimeError(f"{layout.model_type}: {text[-2000:]}")
    promised = re.search(r"time\s+about (.*?) \(", text)
    found = {
        "model_type": layout.model_type,
        "form": layout.form,
        "model_bytes": Checkpoint(model).size_bytes,
        "result_bytes": Checkpoint(scratch / UNDISTURBED).size_bytes,
        "limit": size_in_bytes(layout.limit),
        "peak_command": whole["peaks"]["command"],
        "peak_child": whole["peaks"]["child"],
        "seconds": round(whole["seconds"]),
        "promised": promised[1] if promised else None,
    }
    if kills:
        found |= killed_everywhere(layout, scratch, list(dict.fromkeys(PHASE.findall(text))))
    for name in (layout.model_type, UNDISTURBED, KILLED):
        shutil.rmtree(scratch / name, ignore_errors=True)
    return found


def killed_everywhere(layout: Layout, scratch: Path, phases: list[str]) -> dict[str, Any]:
    """Kill the command once in each phase, then let it end: which phases those were, and which files differ."""
    line, log = command(layout, scratch / layout.model_type, scratch / KILLED), scratch / "log"
    kills = []
    for phase in phases:
        done = run(line, log, until=phase)
        kills.append({"phase": phase, "killed": done["killed"]})
        print(f"{layout.model_type}: killed in {phase}: {done['killed']}", flush=True)
    last = run(line, log)
    expected, again = contents(scratch / UNDISTURBED), contents(scratch / KILLED)
    differing = sorted(name for name in expected.keys() | again if expected.get(name) != again.get(name))
    return {"kills": kills, "differing": differing if last["code"] == 0 else ["all: the last run failed"]}


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a result by name; the path of its directory, which the card tells, does not count."""
    path = str(directory).encode()
    return {file.name: file.read_bytes().replace(path, b"OUTPUT") for file in directory.iterdir()}


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    head = [
        "layout",
        "result",
        "model",
        "limit",
        "peak",
        "peak of the fresh process",
        "time",
        "promised",
        "killed in",
        "same bytes",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        sizes = [f"{row[key] / 1e9:.2f} GB" for key in ("model_bytes", "limit", "peak_command", "peak_child")]
        killed = ", ".join(each["phase"] for each in row["kills"] if each["killed"])
        same = ", ".join(row["differing"]) or "yes"
        lines.append(
            [row["model_type"], row["form"], *sizes, f"{row['seconds']} s", str(row["promised"]), killed, same]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(
    layouts: Annotated[str, typer.Option(help="Model types to measure, separated by commas.")] = ALL,
    kills: Annotated[
        bool, typer.Option(help="Also kill the command in every phase; else keep what is known of that.")
    ] = True,
    scratch: Annotated[Path | None, typer.Option(help="Directory for the models; by default a temporary one.")] = None,
) -> None:
    """Measure the layouts and write the results, beside those of layouts that are not measured now."""
    file = RESULTS / "shrink.json"
    known = {row["model_type"]: row for row in json.loads(file.read_text())} if file.is_file() else {}
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        for layout in LAYOUTS:
            if layout.model_type in layouts.split(","):
                found = measure(layout, Path(directory), kills)
                known[layout.model_type] = known.get(layout.model_type, {"kills": [], "differing": []}) | found
                print(json.dumps(known[layout.model_type]), flush=True)
    rows = [known[each.model_type] for each in LAYOUTS if each.model_type in known]
    write_json(file, rows)
    (RESULTS / "shrink.md").write_text(f"{__doc__.splitlines()[0]}\n\n{table(rows)}")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
