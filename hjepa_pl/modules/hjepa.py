"""The hierarchical JEPA."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.distributed import gather_rows
from hjepa_pl.functional.settings import from_plain, from_plain_list, to_plain
from hjepa_pl.functional.tokens import gather_tokens, plain_norm, pool_cells
from hjepa_pl.losses.prediction import position_baseline, prediction_loss
from hjepa_pl.losses.settings import LevelScale, PredictionKind, RegularizerConfig
from hjepa_pl.losses.streams import regularize
from hjepa_pl.losses.views import view_loss
from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.models.attention import refuse_kernel
from hjepa_pl.models.encoder import Block
from hjepa_pl.models.levels import LevelConfig, read_levels, split_levels
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level
from hjepa_pl.models.recipe import Geometry, measure
from hjepa_pl.models.settings import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.checks import check_batch, check_masks, check_model, check_trainer
from hjepa_pl.modules.features import Features
from hjepa_pl.modules.networks import build_networks, plan_depths
from hjepa_pl.optim.ema import EMACallback
from hjepa_pl.optim.settings import EMAConfig, OptimizerConfig
from hjepa_pl.types import CleanBatch, LevelState, Masks, ViewBatch


class HJEPALightningModule(Features, PretrainModule):
    """Hierarchical joint-embedding predictive pretraining of a vision transformer.

    Token levels (I-JEPA, arXiv:2301.08243): from the visible patches of one view, predict the target encoder's tokens,
    averaged over the cells of each level. Image level (LeJEPA, arXiv:2511.08544): the projections of an image's views
    are regressed to their mean and kept from collapse by a regulariser. One level {block: last, cell: 1} is I-JEPA;
    the image level alone is LeJEPA, without a target encoder.

    Attributes:
        context_encoder: The encoder that learns.
        target_encoder: Its moving average; None without token levels.
        ema: The `EMACallback` that moves it.
        predictor, fusion, projector, pyramid, pyramid_heads: What reads the encoder, None where the levels need none.
        target_pyramid: The pyramid's moving average.
    """

    predictor: Predictor | None
    fusion: ContextFusion | None
    projector: Projector | None
    pyramid: FeaturePyramid | None
    pyramid_heads: PyramidHeads | None

    def __init__(
        self,
        encoder: EncoderConfig = EncoderConfig(),
        levels: list[LevelConfig] | Literal["flat", "three"] = "three",
        masks: MaskConfig = MaskConfig(),
        predictor: PredictorConfig = PredictorConfig(),
        projector: ProjectorConfig = ProjectorConfig(),
        pyramid: PyramidConfig | None = None,
        prediction: PredictionKind = "smooth_l1",
        level_scale: LevelScale = "baseline",
        regularizers: list[RegularizerConfig] | None = None,
        ema: EMAConfig = EMAConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        time_budget: str | None = None,
        seed: int | None = None,
    ) -> None:
        """Check the settings, then make the networks. Each settings object may also be a mapping of its fields.

        Args:
            encoder: The vision transformer.
            levels: Levels of the hierarchy, finest first, or a preset: 'flat' is [{cell: 1}] (I-JEPA), 'three' is
                [{cell: 1, weight: 0.1}, {cell: 2, weight: 0.1}, {cell: image, masked_view: replace}].
            masks: What is hidden and predicted, at the token levels.
            predictor: The predictor of the token levels.
            projector: The projector of the image level.
            pyramid: Maps at three strides for dense tasks (`encode_pyramid`), learnt beside the token levels.
            prediction: Distance between predicted and target tokens.
            level_scale: What a token level's loss is divided by before its weight: 'baseline', the loss of predicting
                each position's mean, so that levels count alike, or 'raw', nothing (as I-JEPA).
            regularizers: Terms against collapse; null is SIGReg on the projections where there is an image level.
            ema: How the target encoder follows.
            optimizer: AdamW and its schedules.
            time_budget: "HH:MM:SS"; the run ends by then, with its schedules complete.
            seed: Key of masks, directions and drop path; null is seed_everything's from the CLI, 0 from Python.

        Raises:
            ConfigError: If a setting is out of range or does not go with another, before any weight is made.
        """
        optimizer = from_plain(OptimizerConfig, optimizer, "optimizer")
        super().__init__(optimizer, time_budget)
        seed = 0 if seed is None else seed
        encoder = from_plain(EncoderConfig, encoder, "encoder")
        self.token_levels, self.image_level = split_levels(read_levels(levels))
        if regularizers is None:
            regularizers = [RegularizerConfig(kind="sigreg")] if self.image_level else []
        self.regularizers = from_plain_list(RegularizerConfig, regularizers, "regularizers")
        self.prediction: PredictionKind = prediction
        self.level_scale: LevelScale = level_scale
        masks, ema = from_plain(MaskConfig, masks, "masks"), from_plain(EMAConfig, ema, "ema")
        predictor = from_plain(PredictorConfig, predictor, "predictor")
        projector = from_plain(ProjectorConfig, projector, "projector")
        pyramid = None if pyramid is None else from_plain(PyramidConfig, pyramid, "pyramid")
        self.seed, self.img_size, self.in_chans = seed, encoder.img_size, encoder.in_chans
        settings: dict[str, Any] = {
            "encoder": encoder, "levels": [*self.token_levels, *filter(None, [self.image_level])], "masks": masks,
            "predictor": predictor, "projector": projector, "pyramid": pyramid, "prediction": prediction,
            "level_scale": level_scale, "regularizers": self.regularizers, "ema": ema, "optimizer": optimizer,
            "time_budget": time_budget, "seed": seed,
        }  # fmt: skip
        geometry = measure(encoder)
        check_model(settings, self.token_levels, self.image_level, geometry)
        self.save_settings(settings)
        self._make(settings, geometry)

    def _make(self, settings: Mapping[str, Any], geometry: Geometry) -> None:
        """Make the masks, the networks and what moves the targets, from settings that go together."""
        encoder, predictor, pyramid = settings["encoder"], settings["predictor"], settings["pyramid"]
        self.masks: MaskGenerator | None = None
        if self.token_levels:
            cells = tuple(int(level.cell) for level in self.token_levels)
            self.masks = build_masks(settings["masks"], geometry.grid, cells, self.seed)
            check_masks(predictor.targets, self.masks)
        fused = predictor.context == "fused"
        self.depths = plan_depths(self.token_levels, fused, pyramid is not None, geometry.depth)
        has_image = self.image_level is not None
        networks = build_networks(
            encoder, predictor, settings["projector"], pyramid, self.token_levels, has_image, self.depths
        )
        for name, network in networks._asdict().items():
            setattr(self, name, network)
        self.ema = EMACallback(settings["ema"]) if self.token_levels else None
        self.pyramid_weight = 0.0 if pyramid is None else pyramid.weight
        self._drops_paths = encoder.drop_path_rate > 0

    def save_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings as plain values, the same from YAML and from Python, for checkpoints and reloading."""
        plain = to_plain(settings)
        self._set_hparams(plain)
        self._hparams_initial = dict(plain)
        # What `load_from_checkpoint` passes back, as keyword arguments.
        self._hparams_name = "kwargs"

    def train(self, mode: bool = True) -> "HJEPALightningModule":
        """Switch to training, all but the moving averages: drop path would make the targets noisy."""
        super().train(mode)
        for target in (self.target_encoder, self.target_pyramid):
            if target is not None:
                target.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        """Return the networks that the optimizer moves: all but the moving averages."""
        return [net for name, net in self.named_children() if name.split("_")[0] != "target"]

    # ------------------------------------------------------------------------------------------------------ the step

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        """Return the loss of a batch and, without gradient, what callbacks watch."""
        check_batch(batch, self.image_level)
        if self._drops_paths:
            # The one use of the global generator: timm's drop path takes no generator of its own.
            torch.manual_seed(hash_int(self.seed, batch.counters.step, Stream.STEP, self.global_rank))
        total, terms, watched = self.compute(batch)
        n_ep = {"sigreg_image_n_ep": watched.pop("n_ep")} if "n_ep" in watched else {}
        self.log_terms({"loss": total, **terms, **n_ep})
        return {"loss": total, **watched}

    def compute(self, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        """Return the loss, its terms (raw, and weighted where the weight is not 1), and what callbacks watch."""
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        watched: dict[str, Any] = {"levels": {}}

        def add(name: str, value: Tensor, weight: float | Tensor) -> None:
            terms[name] = value
            weighted.append(weight * value)
            if isinstance(weight, Tensor) or weight != 1.0:
                terms[f"{name}_weighted"] = weighted[-1]

        tokens, index = None, None
        if self.masks is not None:
            masks = self.masks(batch.counters)
            tokens, index = self._token_levels(batch.views[0], masks, add, watched)
        if self.projector is not None:
            assert self.image_level is not None
            how = self.image_level.masked_view
            masked = [tokens.mean(dim=1)] if how is not None and tokens is not None else []
            features, projection = self._project(batch.views[1:] if how == "replace" else batch.views, masked)
            if tokens is None:
                tokens = features[: len(batch.label)]
            add("image", view_loss(projection, len(masked)), self.image_level.weight)
        assert tokens is not None
        watched["embedding"] = tokens.detach().float().mean(dim=1)
        self._regularize(watched, projection if self.projector is not None else None, tokens, index, batch, add)
        return torch.stack(weighted).sum(), terms, watched

    def _token_levels(self, images: Tensor, masks: Masks, add: Any, watched: dict) -> tuple[Tensor, Tensor]:
        """Predict every token level from the visible patches; return the context's tokens and their places."""
        maps = self.target_maps(images)
        found = self.context_encoder(images, masks.context, (*self.depths.context, *self.depths.pyramid))
        inputs = found["last"]
        if self.fusion is not None:
            inputs = self.fusion([found[b] for b in self.depths.context])
        assert self.predictor is not None
        predictions = self.predictor(inputs, masks.context, masks.targets)
        scales: list[Tensor | float] = []
        for level, cells, prediction, target_map in zip(
            self.token_levels, masks.targets, predictions, maps, strict=True
        ):
            index = cells.flatten(1)
            target = gather_tokens(target_map, index)
            scales.append(position_baseline(target_map, self.prediction) if self.level_scale == "baseline" else 1.0)
            add(level.name, prediction_loss(prediction, target, self.prediction), level.weight / scales[-1])
            watched["levels"][level.name] = LevelState(prediction.detach(), target, index, target_map)
        if self.pyramid is not None:
            add("pyramid", self._pyramid_loss(found, masks, predictions, maps, scales), self.pyramid_weight)
        return found["last"], masks.context

    def _pyramid_loss(
        self,
        found: Mapping[Block, Tensor],
        masks: Masks,
        predictions: Sequence[Tensor],
        maps: Sequence[Tensor],
        scales: Sequence[Tensor | float],
    ) -> Tensor:
        """Return the mean distance of the level targets, at their hidden cells, from what the pyramid's maps say.

        Each level's distance is over the level's scale, as its own loss is.
        """
        assert self.pyramid is not None
        assert self.pyramid_heads is not None
        fill = finest_level(self.token_levels)
        made = self.pyramid(
            [found[b] for b in self.depths.pyramid],
            self.context_encoder.grid,
            masks.context,
            predictions[fill],
            masks.targets[fill].flatten(1),
        )
        losses = [
            prediction_loss(said, gather_tokens(maps[level], masks.targets[level].flatten(1)), self.prediction)
            / scales[level]
            for level, said in self.pyramid_heads(made, masks.targets)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def target_maps(self, images: Tensor) -> list[Tensor]:
        """Return every token level's target on its whole grid: (B, cells, D), normed after the averaging.

        The target encoder sees the full view. Tokens of blocks before the last are normed before the average, so that
        no token of large norm outweighs its neighbours.
        """
        assert self.target_encoder is not None
        found = self.target_encoder(images, blocks=self.depths.target)
        grid = self.target_encoder.grid
        return [plain_norm(pool_cells(found[v.block], grid, int(v.cell))) for v in self.token_levels]

    def _project(self, views: Sequence[Tensor], masked: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return patch tokens (full views * B, N, D), and projections (V, B of all ranks, P), masked views first.

        The projector sees the rows of all ranks: its batch norm is that of the global batch on any machine, and a
        regulariser of its output needs no further collective.
        """
        assert self.projector is not None
        tokens = self.context_encoder(torch.cat(tuple(views)))["last"]
        full = tokens.mean(dim=1).unflatten(0, (len(views), -1))  # (V, B, D)
        pooled = torch.cat([*(m[None] for m in masked), full])
        count = len(pooled)
        pooled = gather_rows(pooled.transpose(0, 1)).transpose(0, 1)
        return tokens, self.projector(pooled.flatten(0, 1)).unflatten(0, (count, -1))

    def _regularize(
        self, watched: dict, projection: Tensor | None, tokens: Tensor, index: Tensor | None, batch: ViewBatch, add: Any
    ) -> None:
        """Add every regulariser, on the projections or on the context's tokens."""
        patches = self.context_encoder.grid[0] * self.context_encoder.grid[1]
        key = hash_int(self.seed, batch.counters.step)
        for term in self.regularizers:
            if term.stream == "image":
                assert projection is not None
                value = regularize(term, projection, None, patches, key)
                if term.kind == "sigreg":  # about 1 where the projections are Gaussian
                    watched["n_ep"] = projection.shape[1] * value.detach()
            else:
                if index is None:
                    index = torch.arange(patches, device=tokens.device).expand(len(tokens), -1)
                value = regularize(term, tokens, index, patches, key)
            add(term.name, value, term.factor)

    def after_optimizer_step(self, share: float) -> None:
        """Move the target networks."""
        if self.ema is not None:
            momentum = self.ema.momentum(share, self.progress.total_steps)
            self.move_target(momentum)
            if self._logs_now():
                self.log("train/momentum", momentum)

    def move_target(self, momentum: float) -> None:
        """Move target encoder and target pyramid, where there are any, towards the online ones."""
        pairs = [(self.context_encoder, self.target_encoder), (self.pyramid, self.target_pyramid)]
        online, target = (nn.ModuleList(side) for side in zip(*[p for p in pairs if p[1] is not None], strict=True))
        if self.ema is not None:
            self.ema.update(online, target, momentum)  # one update an optimizer step

    # ------------------------------------------------------------------------------------------------------- the use

    def setup(self, stage: str) -> None:
        """Refuse a Trainer or data that does not go with the model."""
        check_trainer(self.trainer, self.image_level)
        if stage == "fit":
            self.check_device(self.trainer)

    def check_device(self, trainer: pl.Trainer) -> None:
        """Refuse a kernel of attention that the Trainer's device does not have."""
        half = str(trainer.precision) != "32-true"
        refuse_kernel(self.context_encoder.config.attention, trainer.strategy.root_device.type, half)

    def validation_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the features of clean images: 'online' and, where there is one, 'target', each (B, D) float32."""
        features = {"online": self.pooled(self.context_encoder, batch.image)}
        untrained = self.trainer.sanity_checking and self.trainer.global_step == 0
        if self.target_encoder is not None and not untrained:  # before training both are one network
            features["target"] = self.pooled(self.target_encoder, batch.image)
        return features

    def test_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the features of clean images, as `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the judged network's features (B, D) with labels and places, for `hjepa predict`."""
        return {"features": self.encode(batch.image), "label": batch.label, "place": batch.place}
