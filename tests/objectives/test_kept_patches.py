"""The image level encodes a fraction of each full view's patches (`levels.keep`)."""

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.types import ConfigError, Counters
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch, with_crops


def make(keep: float = 0.3, tokens: bool = False, masked_view: str | None = None, **settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    image = {"cell": "image", "keep": keep, "masked_view": masked_view}
    own = {"predictor": SMALL_PREDICTOR, "levels": [{"cell": 1}, image]} if tokens else {"levels": [image]}
    return HJEPALightningModule(**{"encoder": TINY, "projector": SMALL_PROJECTOR, **own, **settings}).train()


def drawn(module: HJEPALightningModule, counters: Counters, views: int = 2, patches: int = 64) -> torch.Tensor:
    return module.images._draw_kept(counters, views, patches).unflatten(0, (views, -1))


def test_each_image_and_view_keeps_patches_of_its_own_as_a_function_of_seed_epoch_and_position() -> None:
    counters = Counters(0, 3, torch.arange(1000))
    kept = drawn(make(), counters)
    assert kept.shape == (2, 1000, 19)  # 0.3 of 64 are 19.2
    assert all(len(set(row.tolist())) == 19 for row in kept.flatten(0, 1))
    rows = kept.flatten(0, 1).sort(dim=1).values
    assert len(rows.unique(dim=0)) == 2000
    # Independent between the views: of 19 patches 19 / 64 are expected in the other view, with a deviation of 0.1.
    first, second = (torch.zeros(1000, 64).scatter_(1, k, 1.0) for k in kept)
    assert float((first * second).sum(1).mean()) == pytest.approx(19 * 19 / 64, abs=0.3)
    share = torch.cat([first, second]).mean(dim=0)
    assert float((share - 19 / 64).abs().max()) < 0.05  # every patch equally often: 5 deviations
    # Neither the step nor the other images of the batch matter; epoch and seed do.
    part = drawn(make(), Counters(0, 9, torch.arange(500, 510)))
    assert torch.equal(part.sort(-1).values, kept[:, 500:510].sort(-1).values)
    for other in (drawn(make(), counters._replace(epoch=1)), drawn(make(seed=1), counters)):
        assert float((other.sort(-1).values == kept.sort(-1).values).float().mean()) < 0.2


@pytest.mark.parametrize("masked_view", [None, "add", "replace"])
def test_the_loss_is_that_of_the_kept_patches_written_out(masked_view) -> None:
    module, batch = make(tokens=True, masked_view=masked_view), with_crops(make_batch())
    full = batch.views[1:] if masked_view == "replace" else batch.views
    kept = drawn(module, batch.counters, len(full))
    pooled = [module.context_encoder(crop)["last"].mean(1) for crop in batch.local_views]
    if masked_view is not None:
        visible = module.masks(batch.counters).context
        pooled.insert(0, module.context_encoder(batch.views[0], visible)["last"].mean(1))
    partial = len(pooled)
    pooled += [module.context_encoder(v, k)["last"].mean(1) for v, k in zip(full, kept, strict=True)]
    z = module.projector(torch.cat(pooled)).unflatten(0, (len(pooled), -1))
    expected = (z - z[partial:].mean(dim=0)).square().mean()
    terms = module.compute(batch)[1].terms
    torch.testing.assert_close(terms["image"], expected, rtol=1e-4, atol=1e-6)
    whole = make(keep=1.0, tokens=True, masked_view=masked_view).compute(batch)[1].terms
    assert float((whole["image"] - terms["image"]).detach().abs()) > 1e-4


def test_the_loss_depends_on_the_kept_patches_only() -> None:
    module, batch = make(), make_batch()
    views = tuple(v.requires_grad_(True) for v in batch.views)
    module.compute(batch._replace(views=views))[0].backward()
    for view, kept in zip(views, drawn(module, batch.counters), strict=True):
        patches = view.grad.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum(dim=(1, 4, 5)).flatten(1)
        assert torch.equal(patches > 0, torch.zeros(8, 64).scatter_(1, kept, 1.0).bool())


def test_a_regularizer_of_the_tokens_gets_the_kept_positions() -> None:
    module, batch = make(regularizers=[{"kind": "sigreg"}, {"kind": "sigreg", "stream": "tokens"}]), make_batch()
    stream = module.compute(batch)[1].streams["tokens"]
    assert stream.positions == 64
    assert torch.equal(stream.position, drawn(module, batch.counters)[0])
    expected = module.context_encoder(batch.views[0])["last"]
    assert stream.embedding.shape == (8, 19, 48)
    # One patch kept: its token is that of an image of this patch alone, at its position.
    one = make(keep=1 / 64)
    stream = one.compute(batch)[1].streams["tokens"]
    alone = one.context_encoder(batch.views[0], stream.position)["last"]
    torch.testing.assert_close(stream.embedding, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[:, 0], expected[torch.arange(8), stream.position[:, 0]], atol=1e-3)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (0.001, r"invalid `levels.keep=0.001`: keeps none of the 64 patches; use 0.0156 to 0.9843, or 1 for all."),
        (0.999, r"invalid `levels.keep=0.999`: keeps 64 of the 64 patches; use 0.0156 to 0.9843, or 1 for all."),
        (0, r"invalid `levels.keep=0`: must be a number in \(0, 1\]."),
        (1.5, r"invalid `levels.keep=1.5`: must be a number in \(0, 1\]."),
    ],
)
def test_a_fraction_that_keeps_nothing_or_changes_nothing_is_rejected(keep, says) -> None:
    with pytest.raises(ConfigError, match=says):
        make(keep=keep)


def test_keep_is_rejected_on_a_token_level() -> None:
    with pytest.raises(ConfigError, match=r"invalid `levels.keep=0.5`: has no effect with levels.cell=1; set it on"):
        HJEPALightningModule(encoder=TINY, levels=[{"cell": 1, "keep": 0.5}])


class _Lengths(pl.Callback):
    """Notes the number of tokens of every forward pass of the encoder in training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_fit_start(self, trainer: pl.Trainer, module: HJEPALightningModule) -> None:
        hook = lambda net, args, out: self.seen.append(tuple(out["last"].shape[:2]))  # noqa: E731
        module.context_encoder.register_forward_hook(hook)


def test_a_run_encodes_that_many_patches_and_resumes_to_equal_weights(tmp_path) -> None:
    def run(epochs: int, **fit) -> HJEPALightningModule:
        model = make(keep=0.5, encoder={**TINY, "drop_path_rate": 0.2}, optimizer={"warmup_epochs": 1})
        data = MultiDatasetDataModule(datasets="fake", batch_size=16, views=2, epoch_size=48)
        lengths = _Lengths()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, limit_train_batches=3, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[lengths, _StopAfter(epochs)],
        )  # fmt: skip
        trainer.fit(model, data, **fit)
        assert set(lengths.seen) == {(32, 32)}
        if epochs < 3:
            trainer.save_checkpoint(tmp_path / "some.ckpt")
        return model

    run(1)
    resumed, whole = run(3, ckpt_path=tmp_path / "some.ckpt"), run(3)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


class _StopAfter(pl.Callback):
    """Ends the fit after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, module: HJEPALightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs
