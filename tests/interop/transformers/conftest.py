"""Keeps the code of model folders, which transformers copies before it runs it, inside the test."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def remote_code_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code from model folders is put below the test's own folder, and nothing is asked of the network."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
