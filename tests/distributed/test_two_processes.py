"""Two gloo processes with half the batch each do what one does with the whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import make_batch

SETTINGS = {
    "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 2},
    "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    "projector": {"hidden_dim": 32, "out_dim": 16},
}
CASES = {
    "sigreg": [{"kind": "sigreg"}],
    "vicreg": [{"kind": "vicreg", "weight": 0.04}],  # its factors are 25: gradients of size 1, as the others'
    "tokens": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "tokens"}, {"kind": "vicreg", "stream": "tokens"}],
}


class Step(torch.nn.Module):
    """The module's loss as a forward pass, which DDP can wrap."""

    def __init__(self, regularizers) -> None:
        super().__init__()
        from hjepa_pl import HJEPALightningModule

        torch.manual_seed(0)
        self.module = HJEPALightningModule(**SETTINGS, regularizers=regularizers).train()

    def forward(self, batch):
        return self.module.compute(batch)[0]


def gradients(step: Step) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for case, regularizers in CASES.items():
        step = Step(regularizers)
        wrapped = DistributedDataParallel(step)  # kept: its hooks go with it
        loss = wrapped(make_batch(images=8, first=8 * rank))
        loss.backward()
        found[case] = (loss.detach(), gradients(step), {n: b.clone() for n, b in step.named_buffers()})
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> list[dict]:
    """What each of two processes found, for every case (starting them takes longer than what they do)."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_two_halves_equal_those_of_the_whole(halves, case) -> None:
    whole = Step(CASES[case])
    loss = whole(make_batch(images=16))
    loss.backward()
    ranks = [found[case] for found in halves]
    torch.testing.assert_close(torch.stack([r[0] for r in ranks]).mean(), loss.detach(), atol=1e-5, rtol=1e-5)
    expected = gradients(whole)
    for _, found, buffers in ranks:
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, atol=1e-5, rtol=1e-4)


SCRIPT = """
import sys, torch, lightning.pytorch as pl
from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
torch.set_num_threads(1)
pl.seed_everything(0)
devices, batch = int(sys.argv[1]), int(sys.argv[2])
module = HJEPALightningModule(
    encoder=dict(embed_dim=24, depth=2, num_heads=2, img_size=8, patch_size=2, in_chans=1),
    predictor=dict(embed_dim=24, depth=1, num_heads=2), projector=dict(hidden_dim=32, out_dim=16))
data = MultiDatasetDataModule(datasets=[dict(name="digits")], batch_size=batch, views=2, epoch_size=192,
    augmentation=dict(gray=0.0, jitter=[0.4, 0.4, 0.0, 0.0]))
trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
    accumulate_grad_batches=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, use_distributed_sampler=False)
trainer.fit(module, data)
assert module.ema.updates == trainer.global_step == 3
if trainer.global_rank == 0:
    torch.save({k: v for k, v in module.state_dict().items()}, sys.argv[3])
else:
    torch.save({k: v for k, v in module.state_dict().items()}, sys.argv[3] + ".rank1")
"""


def test_a_ddp_run_draws_and_trains_as_one_process_and_moves_the_target_once_a_step(tmp_path, monkeypatch) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr("sys.argv", [str(script), "1", "32", str(tmp_path / "1.pt")])
    exec(compile(SCRIPT, str(script), "exec"), {"__name__": "__main__"})
    done = subprocess.run(
        [sys.executable, str(script), "2", "16", str(tmp_path / "2.pt")],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two, other = (torch.load(tmp_path / f) for f in ("1.pt", "2.pt", "2.pt.rank1"))
    for name in one:
        assert torch.equal(two[name], other[name]), name  # the ranks agree to the bit
        if two[name].is_floating_point():
            # AdamW divides by the gradient's size, which makes much of its rounding: near, not equal.
            torch.testing.assert_close(two[name], one[name], atol=2e-3, rtol=1e-2, msg=name)
