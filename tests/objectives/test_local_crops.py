"""Local crops at the image level, in the predictor's context, and as what is predicted."""

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.functional.boxes import places_in
from hjepa_pl.modules.check_run import check_batch
from hjepa_pl.types import ConfigError, ViewBatch
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch, with_crops

STRATEGIES = ("global_only", "global_with_local_context", "cross_crop_prediction")


def make(strategy: str = "global_only", **settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    defaults = {
        "encoder": TINY, "predictor": SMALL_PREDICTOR, "projector": SMALL_PROJECTOR,
        "levels": [{"cell": 1}, {"cell": 2}, {"cell": "image"}], "masks": {"strategy": strategy},
    }  # fmt: skip
    return HJEPALightningModule(**(defaults | settings)).train()


@pytest.mark.parametrize("masked_view", [None, "add", "replace"])
def test_crops_are_regressed_to_the_mean_of_the_full_views_which_they_have_no_share_in(masked_view) -> None:
    module = make(levels=[{"cell": 1}, {"cell": "image", "masked_view": masked_view}])
    batch = with_crops(make_batch())
    pooled = [module.context_encoder(crop)["last"].mean(1) for crop in batch.local_views]
    full = batch.views[1:] if masked_view == "replace" else batch.views
    pooled += [module.context_encoder(view)["last"].mean(1) for view in full]
    partial = 4
    if masked_view is not None:
        kept = module.masks(batch.counters).context
        pooled.insert(0, module.context_encoder(batch.views[0], kept)["last"].mean(1))
        partial = 5
    z = module.projector(torch.cat(pooled)).unflatten(0, (len(pooled), -1))
    expected = (z - z[partial:].mean(dim=0)).square().mean()
    terms = module.compute(batch)[1].terms
    torch.testing.assert_close(terms["image"], expected, rtol=1e-4, atol=1e-6)


def test_pairwise_compares_full_views_with_all_and_crops_with_full_ones_only() -> None:
    module = make(levels=[{"cell": "image", "compare": "pairwise"}], predictor={}, masks={})
    batch = with_crops(make_batch())
    views = [module.context_encoder(v)["last"].mean(1) for v in (*batch.local_views, *batch.views)]
    z = module.projector(torch.cat(views)).unflatten(0, (6, -1))
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6) if j >= 4]
    expected = torch.stack([(z[i] - z[j]).square().mean() for i, j in pairs]).mean()
    torch.testing.assert_close(module.compute(batch)[1].terms["image"], expected, rtol=1e-4, atol=1e-6)


def gradient_of_token_levels(module: HJEPALightningModule, batch: ViewBatch) -> list[torch.Tensor]:
    crops = tuple(c.clone().requires_grad_(True) for c in batch.local_views)
    terms = module.compute(batch._replace(local_views=crops))[1].terms
    loss = terms["last_c1"] + terms["last_c2"]
    found = torch.autograd.grad(loss, crops, allow_unused=True)
    return [torch.zeros_like(c) if g is None else g for c, g in zip(crops, found, strict=True)]


def test_the_token_levels_read_the_crops_that_the_strategy_says() -> None:
    batch = with_crops(make_batch())
    reads = {s: [bool(g.abs().sum() > 0) for g in gradient_of_token_levels(make(s), batch)] for s in STRATEGIES}
    assert reads["global_only"] == [False] * 4
    assert reads["global_with_local_context"] == [True] * 4
    assert reads["cross_crop_prediction"] == [True] * 4


def test_what_is_hidden_of_a_crop_is_predicted_and_not_seen() -> None:
    module = make("cross_crop_prediction")
    batch = with_crops(make_batch())
    gradients = gradient_of_token_levels(module, batch)
    masks = module.crop_masks((4, 4))
    for number, gradient in enumerate(gradients[:2]):
        shifted = batch.counters._replace(position=batch.counters.position + ((number + 1) << 32))
        kept = masks(shifted).context
        seen = torch.zeros(len(kept), 16).scatter_(1, kept, 1.0).bool()
        patches = gradient.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum(dim=(1, 4, 5)).flatten(1)
        assert torch.equal(patches > 0, seen)
    # What the target encoder makes of the hidden patches is what the loss asks for.
    before = module.compute(batch)[1].terms["last_c1"]
    changed = batch.local_views[0].clone()
    hidden = (~seen_of(module, batch)).float().reshape(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    changed += hidden
    after = module.compute(batch._replace(local_views=(changed, *batch.local_views[1:])))[1].terms["last_c1"]
    assert abs(float(after - before)) > 1e-5


def seen_of(module: HJEPALightningModule, batch: ViewBatch) -> torch.Tensor:
    shifted = batch.counters._replace(position=batch.counters.position + (1 << 32))
    kept = module.crop_masks((4, 4))(shifted).context
    return torch.zeros(len(kept), 16).scatter_(1, kept, 1.0).bool()


def test_the_loss_is_the_mean_over_the_cells_of_the_view_and_of_the_crops() -> None:
    module = make("cross_crop_prediction", level_scale="raw", prediction="mse").eval()
    batch = with_crops(make_batch())
    record = module.compute(batch)[1]
    state, crops = record.levels["last_c2"], module.encode_crops(batch)
    masks = module.masks(batch.counters)
    found = module.context_encoder(batch.views[0], masks.context)
    said = module.predictor(found["last"], masks.context, masks.targets, crops.beside)[1]
    target = torch.cat([state.target, crops.targets[1]], dim=1)
    assert crops.targets[1].shape[1] == crops.beside.asked[1].rows.shape[1] > 0
    torch.testing.assert_close(record.terms["last_c2"], (said - target).square().mean(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_a_crop_that_is_the_view_itself_lies_where_the_view_lies(position) -> None:
    module = make("global_with_local_context", predictor=SMALL_PREDICTOR | {"embed_dim": 32, "position": position})
    box = torch.tensor([[0.1, 0.2, 0.9, 0.7]])
    places = places_in(box[None], (8, 8), box, (8, 8))
    table = module.predictor.get_buffer("patch_places")
    torch.testing.assert_close(module.predictor._at(places)[0], table, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("attention", ["self", "cross"])
@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_predictions_depend_on_where_the_crops_lie(strategy, attention, position) -> None:
    predictor = SMALL_PREDICTOR | {"embed_dim": 32, "attention": attention, "position": position}
    module = make(strategy, predictor=predictor)
    with torch.no_grad():  # at the small initialisation positions hardly matter
        for p in module.predictor.parameters():
            p.mul_(4)
    batch = with_crops(make_batch())
    moved = batch._replace(boxes=torch.cat([batch.boxes[:2], batch.boxes[2:] * 0.5]))
    one, other = (module.compute(b)[1].levels["last_c1"].prediction for b in (batch, moved))
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_halves_of_a_batch_are_masked_as_the_whole(strategy) -> None:
    module = make(strategy, regularizers=[{"kind": "sigreg"}], level_scale="raw").eval()
    whole = with_crops(make_batch(images=16))
    halves = [with_crops(make_batch(images=8, first=first)) for first in (0, 8)]
    value = module.compute(whole)[1].terms["last_c1"]
    parts = [module.compute(half)[1].terms["last_c1"] for half in halves]
    torch.testing.assert_close(torch.stack(parts).mean(), value, rtol=1e-5, atol=1e-7)


def test_the_fused_context_takes_crops_too() -> None:
    levels = [{"block": 1, "cell": 1}, {"cell": 2}, {"cell": "image"}]
    module = make("cross_crop_prediction", levels=levels, predictor=SMALL_PREDICTOR | {"context": "fused"})
    module.compute(with_crops(make_batch()))[0].backward()
    assert float(module.predictor.crop_embed.weight.grad.abs().sum()) > 0


def digits(**settings) -> MultiDatasetDataModule:
    defaults = {
        "datasets": [{"name": "digits"}], "batch_size": 16, "views": 2, "epoch_size": 64,
        "augmentation": {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]}, "multicrop": {"local_views": 4},
    }  # fmt: skip
    return MultiDatasetDataModule(**(defaults | settings))


def fit(module: HJEPALightningModule, data: MultiDatasetDataModule, steps: int = 3) -> None:
    pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trainer_trains_with_the_data_modules_crops(strategy) -> None:
    module = make(strategy, encoder=TINY | {"in_chans": 1})
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    fit(module, digits())
    still = [n for n, p in module.named_parameters() if torch.equal(p, before[n])]
    assert not still


CROSSING = {"masks": {"strategy": "cross_crop_prediction"}}
PARTS = {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]}
REFUSED = [
    ({}, {"views": 1, "multicrop": None}, r"data\.views 1 is too few"),
    (
        {},
        {"views": 1, "multicrop": {"min_local_views": 0, "warmup_epochs": 1}},
        r"data\.views 1 beside data\.multicrop\.min_local_views 0 is too few",
    ),
    ({"levels": [{"cell": 1}], "projector": {}}, {"views": 1}, r"data\.multicrop does nothing without an image level"),
    ({"levels": "three", "projector": SMALL_PROJECTOR}, {"views": 1}, r"'replace' leaves none of data\.views 1 whole"),
    (CROSSING, {"multicrop": None}, r"data\.multicrop\.local_views 0 is too few for masks\.strategy"),
    (CROSSING, {"multicrop": {"local_views": 1}}, r"local_views 1 is too few .* uses 2 local crops"),
    (CROSSING, {"multicrop": {"min_local_views": 1, "warmup_epochs": 1}}, r"min_local_views 1 is too few"),
    ({"masks": {"strategy": "global_with_local_context"}}, {"multicrop": None}, "uses 1 local crops or more"),
    (CROSSING, {"multicrop": {"local_size": 6}}, "3 x 3 patches"),
    (CROSSING, {"augmentation": PARTS | {"rotate": 10.0}}, r"`augmentation\.rotate=10`: moves the content of crops"),
    (CROSSING, {"augmentation": PARTS | {"rand_augment": 2}}, r"`augmentation\.rand_augment=2`: moves the content"),
    (CROSSING, {"augmentation": PARTS | {"mixup": 0.8}}, r"`augmentation\.mixup=0.8`: moves the content of crops"),
    (
        {
            "levels": [{"cell": "image", "compare": "none"}], "regularizers": [{"kind": "ntxent"}],
            "predictor": {}, "masks": {},
        },
        {"augmentation": PARTS | {"cutmix": 1.0}},
        "which regularizers 'ntxent_image' pushes apart",
    ),
    ({}, {"multicrop": {"local_size": 7}}, r"multicrop\.local_size=7"),
    ({}, {"multicrop": {"min_local_views": 2, "warmup_epochs": 1000}}, r"multicrop\.warmup_epochs 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "data", "message"), REFUSED)
def test_crops_that_do_not_go_with_the_model_are_refused_before_training(model, data, message) -> None:
    module = make(**({"encoder": TINY | {"in_chans": 1}} | model))
    with pytest.raises(ConfigError, match=message):
        fit(module, digits(**data))
    assert module.trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0


def test_a_batch_of_ones_own_with_too_few_crops_is_refused() -> None:
    module = make("cross_crop_prediction")
    with pytest.raises(ConfigError, match="the batch's number of local crops 0 is too few"):
        check_batch(make_batch(), module, processes=1)


def test_a_batch_of_ones_own_with_one_image_is_refused() -> None:
    module = make(levels=[{"cell": "image"}], predictor={}, masks={})
    with pytest.raises(ConfigError, match="the batch of 1 images is too small for regularizers 'sigreg_image'"):
        check_batch(make_batch(images=1), module, processes=1)
    check_batch(make_batch(images=1), module, processes=2)


def test_one_full_view_and_crops_are_views_enough() -> None:
    fit(make(encoder=TINY | {"in_chans": 1}), digits(views=1), steps=1)


def test_crops_without_boxes_are_refused_where_places_matter() -> None:
    batch = with_crops(make_batch())._replace(boxes=None)
    make().compute(batch)
    with pytest.raises(ConfigError, match="the batch has no boxes"):
        make("global_with_local_context").compute(batch)


def test_separate_targets_do_not_go_with_crops_in_the_context() -> None:
    with pytest.raises(ConfigError, match=r"predictor\.targets 'separate' cannot"):
        make("global_with_local_context", predictor=SMALL_PREDICTOR | {"targets": "separate"})
