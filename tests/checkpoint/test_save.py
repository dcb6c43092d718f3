import shutil
from types import SimpleNamespace

import pytest

from mcsmoe.checkpoint.companions import copy_own_code
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.save import save_model
from mcsmoe.errors import DiskFullError
from tests.models import tiny_switch


def test_equal_models_give_equal_bytes(model, tokenizer, saved, tmp_path):
    again = tmp_path / "again"
    save_model(load_model(saved), tokenizer, again)
    files = sorted(path.name for path in saved.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert "training_args.bin" not in files
    for name in files:
        assert (saved / name).read_bytes() == (again / name).read_bytes()
        assert str(tmp_path).encode() not in (saved / name).read_bytes()


def test_remote_code_alone_is_what_saving_a_model_brings(model, saved, tmp_path):
    copy_own_code(model.config.to_dict(), tmp_path)
    code = sorted(path.name for path in saved.glob("*.py"))
    assert code == sorted(path.name for path in tmp_path.glob("*.py"))
    assert bool(code) == (model.config.model_type == "mcsmoe_switch")
    assert all((saved / name).read_bytes() == (tmp_path / name).read_bytes() for name in code)


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(DiskFullError, match=r"bytes needed, 10 free .*make room"):
        save_model(tiny_switch(), None, tmp_path)
    assert not list(tmp_path.iterdir())
