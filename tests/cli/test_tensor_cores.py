"""What is said of a 32-bit run on a GPU with tensor cores."""

import logging
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.accelerators.cuda import _check_cuda_matmul_precision

from hjepa_pl.cli.cli import HJEPACLI
from hjepa_pl.cli.main import _is_about_the_run
from hjepa_pl.cli.tensor_cores import tensor_core_advice


@pytest.fixture
def highest():
    """Restore PyTorch's setting."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(kept)


def test_advice_is_for_32_bit_runs_without_tensor_cores_only(highest) -> None:
    advice = tensor_core_advice("32-true", (9, 0))
    assert "trainer.precision=bf16-mixed" in advice
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1" in advice
    assert tensor_core_advice("bf16-mixed", (9, 0)) is None
    assert tensor_core_advice("32-true", (7, 5)) is None
    torch.set_float32_matmul_precision("high")
    assert tensor_core_advice("32-true", (9, 0)) is None


def test_the_environment_variable_that_is_named_allows_tf32() -> None:
    code = "import torch; print(torch.get_float32_matmul_precision())"
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "high\n"


def test_lightnings_own_message_is_dropped(highest, monkeypatch, caplog) -> None:
    """Lightning's real check, with a GPU as it would see one: the message has not changed its beginning."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "filters", [])
    with caplog.at_level(logging.INFO):
        _check_cuda_matmul_precision.__wrapped__(torch.device("cuda", 0))
        assert "Tensor Cores" in caplog.text
        caplog.clear()
        logger.addFilter(_is_about_the_run)  # as `start` does
        _check_cuda_matmul_precision.__wrapped__(torch.device("cuda", 0))
    assert not caplog.text


def test_the_command_line_warns_of_the_trainers_gpu(highest, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def advise(device: str, precision: str) -> None:
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)
        HJEPACLI._advise(SimpleNamespace(trainer=trainer))

    with pytest.warns(UserWarning, match="uses no tensor cores"):
        advise("cuda", "32-true")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advise("cuda", "bf16-mixed")
        advise("cpu", "32-true")
