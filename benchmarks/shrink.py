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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.fields import size_in_bytes
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TEXT = ROOT / "docs"
VOCABULARY = 8_000
SAMPLES = 16
POSITIONS = 256
"""The longest text a model takes, which keeps the runs short."""
SHARD = "700MB"
UNDISTURBED, KILLED = "result-undisturbed", "result-killed"
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "eos_token_id": 1, "pad_token_id": 0}


@dataclass(frozen=True)
class Layout:
    """A model type with small sizes, how many experts to keep of its layers, and the form of the result."""

    model_type: str
    config: dict[str, Any]
    kept: int
    form: str
    limit: str


LAYOUTS = (
    Layout(
        "qwen3_moe",
        {
            "hidden_size": 1024,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 32,
            "num_experts_per_tok": 4,
        },
        kept=16,
        form="stock",
        limit="1GB",
    ),
    Layout(
        "mixtral",
        {
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        kept=4,
        form="stock",
        limit="1GB",
    ),
    Layout(
        "deepseek_v3",
        {
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "first_k_dense_replace": 2,
            "n_routed_experts": 32,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 256,
            "kv_lora_rank": 128,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
        },
        kept=16,
        form="mapped",
        limit="1GB",
    ),
    Layout(
        "gpt_oss",
        {
            "hidden_size": 1024,
            "intermediate_size": 1024,
            "num_hidden_layers": 20,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_local_experts": 16,
            "num_experts_per_tok": 4,
        },
        kept=8,
        form="stock",
        limit="1GB",
    ),
)


ALL = ",".join(each.model_type for each in LAYOUTS)


def make(layout: Layout, directory: Path) -> None:
    """Write a random model in this layout, in shards, with a tokenizer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(layout.model_type, **COMMON, **layout.config, dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=SHARD)
    texts = (path.read_text() for path in sorted(TEXT.glob("*.md")))
    settings = TokenizerSection(kind="bpe", vocab_size=VOCABULARY)
    train_tokenizer(texts, settings, causal=True).save_pretrained(directory)


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


def measure(layout: Layout, scratch: Path) -> dict[str, Any]:
    """Run the command on one layout: undisturbed, then killed in every phase."""
    model = scratch / layout.model_type
    make(layout, model)
    whole = run(command(layout, model, scratch / UNDISTURBED), scratch / "log")
    text = (scratch / "log").read_text()
    if whole["code"] != 0:
        raise RuntimeError(f"{layout.model_type}: {text[-2000:]}")
    promised = re.search(r"time\s+about (.*?) \(", text)
    phases = list(dict.fromkeys(PHASE.findall(text)))
    kills = []
    for phase in phases:
        done = run(command(layout, model, scratch / KILLED), scratch / "log", until=phase)
        kills.append({"phase": phase, "killed": done["killed"]})
        print(f"{layout.model_type}: killed in {phase}: {done['killed']}", flush=True)
    last = run(command(layout, model, scratch / KILLED), scratch / "log")
    expected, again = contents(scratch / UNDISTURBED), contents(scratch / KILLED)
    differing = sorted(name for name in expected.keys() | again if expected.get(name) != again.get(name))
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
        "kills": kills,
        "differing": differing if last["code"] == 0 else ["all: the last run failed"],
    }
    for name in (layout.model_type, UNDISTURBED, KILLED):
        shutil.rmtree(scratch / name, ignore_errors=True)
    return found


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
    scratch: Annotated[Path | None, typer.Option(help="Directory for the models; by default a temporary one.")] = None,
) -> None:
    """Measure the layouts and write the results, beside those of layouts that are not measured now."""
    file = RESULTS / "shrink.json"
    known = {row["model_type"]: row for row in json.loads(file.read_text())} if file.is_file() else {}
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        for layout in LAYOUTS:
            if layout.model_type in layouts.split(","):
                known[layout.model_type] = measure(layout, Path(directory))
                print(json.dumps(known[layout.model_type]), flush=True)
    rows = [known[each.model_type] for each in LAYOUTS if each.model_type in known]
    write_json(file, rows)
    (RESULTS / "shrink.md").write_text(f"{__doc__.splitlines()[0]}\n\n{table(rows)}")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
