"""Compiled blocks compute the same, under the same names, and are compiled once for each of few shapes."""

import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.utils import counters

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.types import ConfigError
from tests.conftest import TINY, make_batch

# Blocks of one width everywhere: networks share what is compiled, and the test takes half as long.
SETTINGS = {
    "encoder": TINY,
    "levels": [{"cell": 1}],
    "predictor": {"embed_dim": TINY["embed_dim"], "depth": 2, "num_heads": TINY["num_heads"]},
}
CPU = torch.device("cpu")


@pytest.fixture
def compiler() -> None:
    """Skip where there is none."""
    try:
        compile_blocks([], CPU)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("compiler")
def test_it_computes_the_same_and_compiles_no_more_once_the_shapes_are_seen() -> None:
    plain, fused = HJEPALightningModule(**SETTINGS), HJEPALightningModule(**SETTINGS, compile=True)
    fused.load_state_dict(plain.state_dict())
    compile_blocks([fused.context_encoder, fused.target_encoder, fused.predictor], CPU)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert len(fused.masks.shapes) >= 3
    shapes, seen = [], []
    for step in range(24):
        batch = make_batch(step=step)
        shapes.append(fused.masks.shape_of(step))
        losses = [module.compute(batch)[0] for module in (plain, fused)]
        torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
        wanted, found = (
            torch.autograd.grad(loss, list(module.predictor.parameters()) + list(module.context_encoder.parameters()))
            for loss, module in zip(losses, (plain, fused), strict=True)
        )
        for have, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            fused.eval().encode(batch.views[0])
        fused.train()
        seen.append(counters["stats"]["unique_graphs"])
    assert seen[0] > 0  # something is compiled
    all_seen = max(shapes.index(shape) for shape in set(shapes))
    assert all_seen < 20
    assert seen[-1] == seen[all_seen]
    assert seen[-1] <= 12


@pytest.mark.usefixtures("compiler")
def test_the_key_reaches_the_blocks_of_a_run(tmp_path) -> None:
    found = []
    for how in (False, True):
        data = MultiDatasetDataModule(datasets=[{"name": "digits"}], batch_size=8, augmentation="none")
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        with torch.profiler.profile() as profile:
            trainer.fit(HJEPALightningModule(**SETTINGS, compile=how), data)
        found.append(sum(event.name.startswith("Torch-Compiled Region") for event in profile.events()))
    assert found[0] == 0
    # Forward: three blocks of either encoder, two of the predictor; and the function that shows there is a compiler.
    assert found[1] >= 9


def test_what_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(ConfigError, match="invalid `compile=reduce-overhead`: must be true or false"):
        HJEPALightningModule(**SETTINGS, compile="reduce-overhead")


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so(tmp_path) -> None:
    script = """
import torch
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.types import ConfigError
try:
    compile_blocks([], torch.device("cpu"))
except ConfigError as error:
    print(error)
"""
    surroundings = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=surroundings, capture_output=True, text=True, check=True)
    sentence = run.stdout.strip()
    assert sentence.startswith("invalid `compile=true`: does not work on device cpu here (")
    assert sentence.endswith("install what it asks for (on a CPU a C++ compiler), or set compile to false.")
