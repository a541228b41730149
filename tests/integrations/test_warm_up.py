from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_hpo.integrations.warm_up import warm_up


def test_the_warm_up_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    generator, threads = torch.get_rng_state(), torch.get_num_threads()

    warm_up()

    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not torch.cuda.is_initialized()
