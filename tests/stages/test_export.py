"""permute → collect → merge → export on a small random model, and what users get wrong at the end."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import SwitchTransformersForConditionalGeneration

from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import CheckpointError, UnknownNameError, UserError
from mcsmoe.exporting import write
from mcsmoe.exporting.card import TAGS
from mcsmoe.exporting.pipeline_card import METRICS
from mcsmoe.grouping.plan import PLAN
from stages import collect, export, merge, permute
from tests.checkpoint.damage import change
from tests.models import EXPERTS
from tests.stages.workplace import enter, write_params

ROOT = Path(__file__).parent.parent.parent
MERGED = Path("artifacts/merge/m-smoe-uniform")
STOCK = Path("stock")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place where a model was merged to two experts in every layer, and to two on average."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        enter(directory, patch)
        permute.main()
        collect.main()
        merge.main("m-smoe-uniform")
        merge.main("m-smoe")
    return directory


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def files(directory: Path = Path()) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def test_a_stock_checkpoint_loads_without_this_package(place: Path, capsys: pytest.CaptureFixture[str]):
    before = files()
    export.main(checkpoint=MERGED, output=STOCK)
    assert {path.parent for path in files() - before} == {STOCK}
    model, report = SwitchTransformersForConditionalGeneration.from_pretrained(STOCK, output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_experts == 2
    assert load_tokenizer(STOCK)("copy 1 2")["input_ids"]
    assert (STOCK / "generation_config.json").is_file()
    assert not list(STOCK.glob("*.py"))
    card = (STOCK / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(block, loaded)
    assert loaded["model"].num_parameters() == model.num_parameters()
    assert loaded["tokenizer"]("copy 1 2")["input_ids"] == load_tokenizer(STOCK)("copy 1 2")["input_ids"]
    assert "Not measured yet" in card
    written = json.loads((STOCK / write.REPORT).read_text())
    assert (written["router"], written["experts"]) == ("dominant", 2)
    assert set(written["agreement"]) == {"encoder.1", "encoder.3", "decoder.1", "decoder.3"}
    out = capsys.readouterr().out.splitlines()
    assert (
        out[0] == f"encoder.1: {written['agreement']['encoder.1']:.2%} of the gates go to the same experts as by all "
        f"{EXPERTS} router rows"
    )
    assert out[-1] == f"stock: 2 experts a layer, {Checkpoint(STOCK).size_bytes:,} bytes"


@pytest.mark.parametrize("router", ["ridge", "cross-entropy"])
def test_other_rows_give_the_same_bytes_again(place: Path, router: str):
    written = []
    for how in ("dominant", router, router):
        export.main(checkpoint=MERGED, output=STOCK, router=how)
        written.append({path.name: path.read_bytes() for path in files(STOCK)})
    assert written[1] == written[2]
    assert written[0][WEIGHTS] != written[1][WEIGHTS]
    assert json.loads(written[1][write.REPORT])["router"] == router


def test_the_card_tells_what_was_measured_of_this_very_checkpoint(place: Path):
    figures = {"exact_match": 0.5, "exact_match_copy": 0.25, "parameters": 10, "bytes": Checkpoint(MERGED).size_bytes}
    write_json(METRICS / "full.json", figures | {"exact_match": 0.9, "bytes": 10**9})
    write_json(METRICS / "merge-m-smoe-uniform.json", figures)
    export.main(checkpoint=MERGED, output=STOCK)
    card = ModelCard((STOCK / "README.md").read_text())
    assert card.data.to_dict() == {"library_name": "transformers", "tags": TAGS}
    assert "| exact match | 0.9000 | 0.5000 | -0.4000 |" in card.text
    assert "Worse than the full model: exact match.\n" in card.text
    for line in (line for line in card.text.splitlines() if line.startswith("| `")):
        assert sorted(int(e) for e in re.findall(r"\d+", line.split("|")[3])) == list(range(EXPERTS))
    write_json(METRICS / "merge-m-smoe-uniform.json", figures | {"bytes": 1})
    export.main(checkpoint=MERGED, output=STOCK)
    assert "Not measured yet" in (STOCK / "README.md").read_text()


def test_a_distilled_model_has_its_plan_elsewhere(place: Path):
    distilled = Path("artifacts/distill/m-smoe-uniform")
    shutil.copytree(MERGED, distilled)
    (distilled / PLAN).unlink()
    with pytest.raises(CheckpointError, match=r"distill/m-smoe-uniform: no plan\.json; say --plan artifacts/merge"):
        export.main(checkpoint=distilled, output=STOCK)
    assert not STOCK.exists()
    export.main(checkpoint=distilled, output=STOCK, plan=MERGED)
    assert Checkpoint(STOCK).config["num_experts"] == 2


def test_a_model_that_does_not_run_is_not_declared_a_success(place: Path):
    change(
        MERGED, lambda tensors: tensors["decoder.final_layer_norm.weight"].fill_(1e38)
    )  # finite; its products are not
    before = files()
    with pytest.raises(CheckpointError, match="logits in a fresh process are not finite"):
        export.main(checkpoint=MERGED, output=STOCK)
    assert files() == before


def test_what_is_there_and_is_no_export_stays(place: Path):
    before = {path: path.stat().st_mtime_ns for path in files()}
    for output in (Path("artifacts"), MERGED, Path("params.yaml")):
        with pytest.raises(UserError, match=f"{output}: (exists and is no earlier export|is no directory)"):
            export.main(checkpoint=MERGED, output=output)
    assert {path: path.stat().st_mtime_ns for path in files()} == before


def test_mistakes_show_before_any_work(place: Path):
    write_params(task={"data": "nowhere", "name": "copa"})
    with pytest.raises(UnknownNameError, match="known: cross-entropy, dominant, ridge"):
        export.main(checkpoint=MERGED, output=STOCK, router="mean")
    with pytest.raises(CheckpointError, match="m-smoe: layers keep 1 to 3 experts"):
        export.main(checkpoint=Path("artifacts/merge/m-smoe"), output=STOCK)
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        export.main(checkpoint=MERGED, output=STOCK, source=Path("nowhere"))
    assert not STOCK.exists()


def test_one_line_and_exit_code_two(place: Path):
    ran = subprocess.run(
        [sys.executable, "-m", "stages.export", "--checkpoint", "artifacts/permute", "--output", "stock"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr == "error: artifacts/permute: not a merged checkpoint, as merge and distill write them\n"
