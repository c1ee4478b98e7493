"""Two gloo processes with half the batch each do what one does with the whole."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from hjepa_pl.types import ViewBatch
from tests.conftest import make_batch, with_crops

SETTINGS = {
    "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 2},
    "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    "projector": {"hidden_dim": 32, "out_dim": 16},
}
CASES = {
    "sigreg": {"regularizers": [{"kind": "sigreg"}]},
    # Its factors are 25: with this weight the gradients have size 1, as the others'.
    "vicreg": {"regularizers": [{"kind": "vicreg", "weight": 0.04}]},
    "ntxent": {
        "levels": [{"cell": 1}, {"cell": "image", "compare": "none"}],
        "regularizers": [{"kind": "ntxent", "hard_negatives": 1.0}],
    },
    "tokens": {
        "regularizers": [
            {"kind": "sigreg"},
            {"kind": "sigreg", "stream": "tokens"},
            {"kind": "vicreg", "stream": "tokens"},
        ]
    },
    "layer norm": {"regularizers": [{"kind": "sigreg"}], "projector": {**SETTINGS["projector"], "norm": "layer"}},
    "crops": {
        "masks": {"strategy": "cross_crop_prediction"},
        "regularizers": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "last_c2"}],
    },
    "pairwise": {"levels": [{"cell": 1}, {"cell": "image", "compare": "pairwise", "masked_view": "add"}]},
    "kept patches": {"levels": [{"cell": 1}, {"cell": "image", "keep": 0.5}]},
    "no average": {"ema": None, "experimental": True},
    "batch targets": {"target_norm": "batch", "target_blocks": 2},
    "several masks": {
        "masks": {"per_image": 3},
        "levels": [{"cell": 1}, {"cell": "image", "masked_view": "replace"}],
        "regularizers": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "tokens"}],
    },
    "batch targets, no average": {"target_norm": "batch", "ema": None, "experimental": True},
}
TERMS = [
    {"kind": "sigreg"},
    {"kind": "sigreg", "stream": "tokens"},
    {"kind": "sigreg", "stream": "last_c1"},
    {"kind": "vicreg"},
    {"kind": "vicreg", "stream": "tokens"},
    {"kind": "vicreg", "stream": "last_c1"},
    {"kind": "ntxent"},
    {"kind": "ntxent", "hard_negatives": 1.0},
]
IMAGES, PLACES = 12, 10


def term_of(config: dict, images: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """A term's value over all ranks, and its gradient with respect to these images' embeddings."""
    from hjepa_pl.losses.regularize import read_regularizer, regularize
    from hjepa_pl.utils.distributed import gather_rows

    term = read_regularizer(config)
    generator = torch.Generator().manual_seed(3)
    embeddings = 0.5 * torch.randn(IMAGES, 7, 8, generator=generator) + 0.2
    # Blocks overlap: a level's places may repeat within an image, the context's do not.
    places = torch.rand(IMAGES, PLACES, generator=generator).argsort(dim=1)[:, :7]
    if term.stream == "last_c1":
        places = torch.randint(PLACES, (IMAGES, 7), generator=generator)
    leaf = embeddings[images].clone().requires_grad_(True)
    if term.stream == "image":  # (B, V, P), gathered before the projector by the module; one view is a local crop
        value = regularize(term, gather_rows(leaf[:, :3]).transpose(0, 1), None, 1, key=5, partial=1)
    else:
        value = regularize(term, leaf, places[images], PLACES, key=5)
    value.backward()
    return value.detach(), leaf.grad


class Step(torch.nn.Module):
    """The module's loss as a forward pass, which DDP can wrap."""

    def __init__(self, settings) -> None:
        super().__init__()
        from hjepa_pl import HJEPALightningModule

        torch.manual_seed(0)
        self.module = HJEPALightningModule(**(SETTINGS | settings)).train()

    def forward(self, batch):
        loss, record = self.module.compute(batch)
        self.shares = record.prediction_by_image()
        return loss


def batch_of(case: str, images: int, first: int = 0) -> ViewBatch:
    batch = make_batch(images=images, first=first)
    return with_crops(batch) if case == "crops" else batch


def gradients(step: Step) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for case, settings in CASES.items():
        step = Step(settings)
        wrapped = DistributedDataParallel(step)  # kept: its hooks go with it
        loss = wrapped(batch_of(case, 8, 8 * rank))
        loss.backward()
        found[case] = (loss.detach(), gradients(step), {n: b.clone() for n, b in step.named_buffers()}, step.shares)
    half = IMAGES // 2
    found["terms"] = [term_of(config, slice(half * rank, half * (rank + 1))) for config in TERMS]
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
    loss = whole(batch_of(case, 16))
    loss.backward()
    ranks = [found[case] for found in halves]
    torch.testing.assert_close(torch.stack([r[0] for r in ranks]).mean(), loss.detach(), atol=1e-5, rtol=1e-5)
    expected = gradients(whole)
    torch.testing.assert_close(torch.cat([r[3] for r in ranks]), whole.shares, atol=1e-5, rtol=1e-5)
    for _, found, buffers, _ in ranks:
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("number", range(len(TERMS)), ids=lambda n: "-".join(map(str, TERMS[n].values())))
def test_a_terms_value_and_gradient_over_two_halves_are_those_of_the_whole(halves, number) -> None:
    value, grad = term_of(TERMS[number], slice(0, IMAGES))
    ranks = [found["terms"][number] for found in halves]
    for other, _ in ranks:
        torch.testing.assert_close(other, value, atol=1e-6, rtol=1e-5)
    # A rank's gradient is the sum over ranks, which DDP divides by their number.
    both = torch.cat([g for _, g in ranks]) / 2
    assert grad.any()
    torch.testing.assert_close(both, grad, atol=1e-6, rtol=1e-4)


SCRIPT = """
import sys, torch, lightning.pytorch as pl
from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks.metrics_csv import MetricsCSV
from hjepa_pl.modules import clock
torch.set_num_threads(1)
pl.seed_everything(0)
devices, batch = int(sys.argv[1]), int(sys.argv[2])
module = HJEPALightningModule(
    encoder=dict(embed_dim=24, depth=2, num_heads=2, img_size=8, patch_size=2, in_chans=1),
    predictor=dict(embed_dim=24, depth=1, num_heads=2), projector=dict(hidden_dim=32, out_dim=16))
data = MultiDatasetDataModule(batch_size=batch, views=2, epoch_size=192,
    datasets=[dict(name="digits"), dict(name="digits_canvas", augmentation="jepa")],
    augmentation=dict(gray=0.0, jitter=[0.4, 0.4, 0.0, 0.0]))
trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1,
    accumulate_grad_batches=2, logger=MetricsCSV(sys.argv[3] + ".csv"), log_every_n_steps=1, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
trainer.fit(module, data)
assert module.ema.updates == trainer.global_step == 3
if trainer.global_rank == 0:
    torch.save({k: v for k, v in module.state_dict().items()}, sys.argv[3])
else:
    torch.save({k: v for k, v in module.state_dict().items()}, sys.argv[3] + ".rank1")
if devices > 1:
    # A budget, and a second rank whose own clock is a minute ahead: it counts rank zero's steps, or waits for ever.
    module.clock.budget, module.clock.origin = 4.0, dict(spent=60.0 * trainer.global_rank)
    again = pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp", max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False)
    calls, told = [], clock.from_rank_zero
    clock.from_rank_zero = lambda *args: (calls.append(again.global_step), told(*args))[1]
    again.fit(module, MultiDatasetDataModule(batch_size=batch, views=2, epoch_size=6400,
        datasets=[dict(name="digits")], augmentation=dict(gray=0.0, jitter=[0.4, 0.4, 0.0, 0.0])))
    assert again.global_step > 3
    # Ranks wait for rank zero's clock once in up to 20 steps, near the end more often.
    assert calls[:2] == [0, 1]
    assert again.global_step < 20 or len(calls) < again.global_step / 2 + 3, (again.global_step, calls)
    assert again.optimizers[0].param_groups[0]["lr"] == module.optimizer_config.floor(module.optimizer_config.lr)
    torch.save((again.global_step, module.state_dict()), sys.argv[3] + f".budget{again.global_rank}")
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
    tables = [list(csv.DictReader((tmp_path / f"{n}.pt.csv/metrics.csv").open())) for n in (1, 2)]
    for one, two in zip(*tables, strict=True):  # the first step is before any difference in rounding
        for name in ("digits", "digits_canvas"):
            key = f"train/prediction/{name}"
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-5 if one["step"] == "0" else 1e-2)
    one, two, other = (torch.load(tmp_path / f) for f in ("1.pt", "2.pt", "2.pt.rank1"))
    for name in one:
        assert torch.equal(two[name], other[name]), name  # the ranks agree to the bit
        if two[name].is_floating_point():
            # AdamW divides by the gradient's size, which makes much of its rounding: near, not equal.
            torch.testing.assert_close(two[name], one[name], atol=2e-3, rtol=1e-2, msg=name)
    (steps, mine), (others, theirs) = (torch.load(tmp_path / f"2.pt.budget{rank}") for rank in range(2))
    assert steps == others
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
