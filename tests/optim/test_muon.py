"""Muon beside AdamW: against PyTorch's two optimizers, float64 formulas and real Trainer runs."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.optim.groups import muon_groups
from hjepa_pl.optim.muon import MuonAdamW, muon_updates, orthogonalized
from hjepa_pl.types import ConfigError
from tests.modules.test_training import make_data, make_module, make_trainer

MUON = {"kind": "muon", "lr": 2e-3}
SHAPES = ((24, 24), (24, 24), (96, 24), (24, 96))


def parameters(shapes=SHAPES, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def group(params, parts: int, weight_decay: float = 0.1) -> dict:
    return {"params": list(params), "parts": parts, "weight_decay": weight_decay, "decays": True}


def set_gradients(params, seed: int) -> None:
    for p, g in zip(params, parameters([p.shape for p in params], seed), strict=True):
        p.grad = g.detach()


def test_a_step_is_that_of_pytorchs_muon_and_adamw() -> None:
    ours, theirs = parameters(), parameters()
    mine = MuonAdamW([group(ours[:3], 1), group(ours[3:], 0)], lr=0.02, betas=(0.9, 0.95))
    muon = torch.optim.Muon(
        theirs[:3], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(theirs[3:], lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(1, 6):
        for params in (ours, theirs):
            set_gradients(params, step)
        for optimizer in (mine, muon, adamw):
            optimizer.step()
    for a, b, start in zip(ours, theirs, parameters(), strict=True):
        moved = (b - start).norm()
        assert moved > 0.1
        assert (a - b).norm() < 0.02 * moved  # products of bfloat16, in another order
    assert torch.equal(ours[3], theirs[3])
    assert torch.equal(mine.state[ours[0]]["momentum_buffer"], muon.state[theirs[0]]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(24, 24), (24, 96)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalized(1e-3 * matrices).double()
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    inner = left.mT @ found @ right.mT  # the found singular values on the diagonal
    diagonal = inner.diagonal(dim1=1, dim2=2)
    large = values > 0.05 * values[:, :1]
    assert diagonal[large].min() > 0.6
    assert diagonal.max() < 1.3
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_queries_keys_and_values_are_orthogonalized_each_by_itself() -> None:
    q, k, v = (scale * torch.randn(24, 24, generator=torch.Generator().manual_seed(i))
               for i, scale in enumerate((1.0, 1.0, 100.0)))  # fmt: skip
    (found,) = muon_updates([torch.cat([q, k, v])], parts=3)
    for part, alone in zip(found.chunk(3), muon_updates([q, k, v], parts=1), strict=True):
        assert torch.allclose(part, alone, atol=1e-2 * float(alone.abs().max()))
        assert 0.15 < part.square().mean().sqrt() < 0.22  # AdamW's root mean square, at learning rate 1
    (whole,) = muon_updates([torch.cat([q, k, v])], parts=1)
    assert (whole - found).norm() > 0.3 * found.norm()


def test_a_step_that_is_not_finite_is_skipped_on_the_device_and_scaled_gradients_are_unscaled() -> None:
    params, reference = parameters(), parameters()
    optimizers = [MuonAdamW([group(ps[:3], 1), group(ps[3:], 0)], 0.02, (0.9, 0.95)) for ps in (params, reference)]
    for step in (1, 2):
        for ps, optimizer in zip((params, reference), optimizers, strict=True):
            set_gradients(ps, step)
            optimizer.step()
    for p in params:
        p.grad.fill_(torch.nan)
    optimizers[0].found_inf = torch.tensor(1.0)
    optimizers[0].step()
    assert all(map(torch.equal, params, reference))
    set_gradients(params, 3)
    set_gradients(reference, 3)
    for p in params:
        p.grad *= 8.0
    optimizers[0].found_inf, optimizers[0].grad_scale = torch.tensor(0.0), torch.tensor(8.0)
    for optimizer in optimizers:
        optimizer.step()
    for a, b in zip(params, reference, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    module = make_module(optimizer=MUON, predictor={"embed_dim": 24, "depth": 2, "num_heads": 2})
    optimizer = module.configure_optimizers()
    names = {p: n for n, p in module.named_parameters()}
    parts = {names[p]: g["parts"] for g in optimizer.param_groups for p in g["params"]}
    trained = [n for n, p in module.named_parameters() if p.requires_grad and not n.startswith("target")]
    assert sorted(parts) == sorted(trained)
    hidden = {n for n, found in parts.items() if found}
    assert hidden == {
        n for n in trained if ".blocks." in n and n.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
    }
    assert {n for n in hidden if n.startswith("predictor")}
    assert all((parts[n] == 3) == n.endswith("qkv.weight") for n in hidden)
    adamw = make_module(predictor={"embed_dim": 24, "depth": 2, "num_heads": 2})
    decays = {n for n, p in adamw.named_parameters() if any(p is q for q in adamw.parameter_groups()[0]["params"])}
    assert {names[p] for g in optimizer.param_groups if g["decays"] for p in g["params"]} == decays


def test_keys_and_values_of_cross_attention_are_two_matrices() -> None:
    module = make_module(optimizer=MUON, predictor={"embed_dim": 24, "depth": 2, "num_heads": 2, "attention": "cross"})
    names = {p: n for n, p in module.named_parameters()}
    double = [names[p] for g in module.parameter_groups() if g["parts"] == 2 for p in g["params"]]
    assert double == [f"predictor.blocks.{i}.attn.key_value.weight" for i in range(2)]


def test_networks_without_blocks_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"`optimizer.kind=muon`: has no effect on the encoder: it has no matrices"):
        muon_groups([nn.Sequential(nn.Linear(4, 4))], 0.1)

    class Plain(PretrainModule):
        def __init__(self) -> None:
            super().__init__(OptimizerConfig(kind="muon"), None)
            self.net = nn.Linear(4, 4)

        def trained_modules(self):
            return [self.net]

    class Unread(pl.LightningDataModule):
        def prepare_data(self) -> None:
            raise AssertionError("data was read")

    with pytest.raises(ConfigError, match=r"optimizer\.kind=muon"):
        make_trainer("/nowhere").fit(Plain(), Unread())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_resumes_to_the_same_bits_from_a_checkpoint_of_plain_values(tmp_path, precision) -> None:
    keys = {"precision": precision, "gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
    whole = make_module(optimizer=MUON)
    trainer = make_trainer(tmp_path, max_epochs=3, **keys, callbacks=[Save(tmp_path / "part.ckpt")])
    trainer.fit(whole, make_data())
    state = torch.load(tmp_path / "part.ckpt", weights_only=True)["optimizer_states"]
    assert {"momentum_buffer", "exp_avg"} <= {k for of_weight in state[0]["state"].values() for k in of_weight}
    resumed = make_module(optimizer=MUON)
    again = make_trainer(tmp_path, max_epochs=3, **keys)
    again.fit(resumed, make_data(), ckpt_path=tmp_path / "part.ckpt", weights_only=True)
    assert (again.global_step, trainer.global_step) == (12, 12)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    plain = make_module()
    make_trainer(tmp_path, max_epochs=3, **keys).fit(plain, make_data())
    assert not torch.equal(
        plain.context_encoder.vit.blocks[0].mlp.fc1.weight, whole.context_encoder.vit.blocks[0].mlp.fc1.weight
    )
    with pytest.raises(
        ConfigError, match=r"invalid `optimizer.kind=adamw`: the checkpoint has the state of muon; set kind"
    ):
        make_trainer(tmp_path, max_epochs=3, **keys).fit(
            make_module(), make_data(), ckpt_path=tmp_path / "part.ckpt", weights_only=True
        )


class Save(pl.Callback):
    """Writes a checkpoint in the middle of the second epoch."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 6 and batch_idx == 3:
            trainer.save_checkpoint(self.path)
