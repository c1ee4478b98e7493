"""The hierarchical JEPA."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.distributed import gather_rows
from hjepa_pl.functional.settings import from_plain, from_plain_list, to_plain
from hjepa_pl.functional.tokens import gather_tokens, plain_norm, pool_cells
from hjepa_pl.losses.prediction import position_baseline, prediction_loss, view_loss
from hjepa_pl.losses.settings import LevelScale, PredictionKind, RegularizerConfig
from hjepa_pl.losses.streams import regularize
from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.models.attention import refuse_kernel
from hjepa_pl.models.encoder import VisionEncoder, measure
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.settings import (
    EncoderConfig,
    LevelConfig,
    PredictorConfig,
    ProjectorConfig,
    read_levels,
    split_levels,
)
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.checks import check_batch, check_masks, check_model, check_trainer
from hjepa_pl.optim.ema import EMACallback
from hjepa_pl.optim.settings import EMAConfig, OptimizerConfig
from hjepa_pl.types import CleanBatch, LevelState, Masks, ViewBatch


class HJEPALightningModule(PretrainModule):
    """Hierarchical joint-embedding predictive pretraining of a vision transformer.

    Token levels (I-JEPA, arXiv:2301.08243): from the visible patches of one view, predict the target encoder's tokens,
    averaged over the cells of each level. Image level (LeJEPA, arXiv:2511.08544): the projections of an image's views
    are regressed to their mean and kept from collapse by a regulariser. One level {block: last, cell: 1} is I-JEPA;
    the image level alone is LeJEPA, without a target encoder.

    Attributes:
        context_encoder: The encoder that learns.
        target_encoder: Its moving average; None without token levels.
        ema: The `EMACallback` that moves it.
    """

    def __init__(
        self,
        encoder: EncoderConfig = EncoderConfig(),
        levels: list[LevelConfig] | Literal["flat", "three"] = "three",
        masks: MaskConfig = MaskConfig(),
        predictor: PredictorConfig = PredictorConfig(),
        projector: ProjectorConfig = ProjectorConfig(),
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
                [{cell: 1, weight: 0.5}, {cell: 2, weight: 0.5}, {cell: image}].
            masks: What is hidden and predicted, at the token levels.
            predictor: The predictor of the token levels.
            projector: The projector of the image level.
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
        self.seed, self.img_size, self.in_chans = seed, encoder.img_size, encoder.in_chans
        settings: dict[str, Any] = {
            "encoder": encoder, "levels": [*self.token_levels, *filter(None, [self.image_level])], "masks": masks,
            "predictor": predictor, "projector": projector, "prediction": prediction,
            "level_scale": level_scale, "regularizers": self.regularizers, "ema": ema, "optimizer": optimizer,
            "time_budget": time_budget, "seed": seed,
        }  # fmt: skip
        geometry = measure(encoder)
        check_model(settings, self.token_levels, self.image_level, geometry)
        self.save_settings(settings)
        self.masks: MaskGenerator | None = None
        if self.token_levels:
            cells = tuple(int(level.cell) for level in self.token_levels)
            self.masks = build_masks(masks, geometry.grid, cells, seed)
            check_masks(predictor.targets, self.masks)
        self._build(encoder, predictor, projector, ema)

    def _build(
        self, encoder: EncoderConfig, predictor: PredictorConfig, projector: ProjectorConfig, ema: EMAConfig
    ) -> None:
        """Make the networks: encoder, then its copy, then what reads it."""
        inner = tuple(sorted({b for level in self.token_levels if (b := level.block) != "last"}))
        fused = predictor.context == "fused"
        self.target_blocks = (*inner, *(["last"] if any(v.block == "last" for v in self.token_levels) else []))
        self.context_blocks = (*inner, "last") if fused else ("last",)
        self.context_encoder = VisionEncoder(encoder, inner, affine=fused)
        self.target_encoder: VisionEncoder | None = None
        self.predictor: Predictor | None = None
        self.fusion: ContextFusion | None = None
        self.projector: Projector | None = None
        self.ema: EMACallback | None = None
        width = self.context_encoder.embed_dim
        if self.token_levels:
            self.ema = EMACallback(ema)
            self.target_encoder = self.ema.make_target(self.context_encoder)  # type: ignore[assignment]
            cells = tuple(int(level.cell) for level in self.token_levels)
            self.predictor = Predictor(predictor, width, self.context_encoder.grid, cells, encoder.attention)
            if fused:
                self.fusion = ContextFusion(width, len(self.context_blocks))
        if self.image_level:
            self.projector = Projector(projector, width)
        self._drops_paths = encoder.drop_path_rate > 0

    def save_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings as plain values, the same from YAML and from Python, for checkpoints and reloading."""
        plain = to_plain(settings)
        self._set_hparams(plain)
        self._hparams_initial = dict(plain)
        # What `load_from_checkpoint` passes back, as keyword arguments.
        self._hparams_name = "kwargs"

    def train(self, mode: bool = True) -> "HJEPALightningModule":
        """Switch to training, all but the target encoder: drop path would make its targets noisy."""
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        """Return context encoder, predictor, fusion and projector, those that there are."""
        found = [self.context_encoder, self.predictor, self.fusion, self.projector]
        return [m for m in found if m is not None]

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
        found = self.context_encoder(images, masks.context, self.context_blocks)
        inputs = found["last"]
        if self.fusion is not None:
            inputs = self.fusion([found[b] for b in self.context_blocks])
        assert self.predictor is not None
        predictions = self.predictor(inputs, masks.context, masks.targets)
        for level, cells, prediction, target_map in zip(
            self.token_levels, masks.targets, predictions, maps, strict=True
        ):
            index = cells.flatten(1)
            target = gather_tokens(target_map, index)
            baseline = position_baseline(target_map, self.prediction) if self.level_scale == "baseline" else 1.0
            add(level.name, prediction_loss(prediction, target, self.prediction), level.weight / baseline)
            watched["levels"][level.name] = LevelState(prediction.detach(), target, index, target_map)
        return found["last"], masks.context

    @torch.no_grad()
    def target_maps(self, images: Tensor) -> list[Tensor]:
        """Return every token level's target on its whole grid: (B, cells, D), normed after the averaging.

        The target encoder sees the full view. Tokens of blocks before the last are normed before the average, so that
        no token of large norm outweighs its neighbours.
        """
        assert self.target_encoder is not None
        found = self.target_encoder(images, blocks=self.target_blocks)
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
        """Move the target encoder."""
        if self.ema is not None:
            assert self.target_encoder is not None
            momentum = self.ema.momentum(share, self.progress.total_steps)
            self.ema.update(self.context_encoder, self.target_encoder, momentum)
            if self._logs_now():
                self.log("train/momentum", momentum)

    # ------------------------------------------------------------------------------------------------------- the use

    def setup(self, stage: str) -> None:
        """Refuse a Trainer or data that does not go with the model."""
        check_trainer(self.trainer, self.image_level)
        half = str(self.trainer.precision) != "32-true"
        refuse_kernel(self.context_encoder.config.attention, self.trainer.strategy.root_device.type, half)

    def validation_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the features of clean images: 'online' and, where there is one, 'target', each (B, D) float32."""
        features = {"online": self._features(self.context_encoder, batch.image)}
        untrained = self.trainer.sanity_checking and self.trainer.global_step == 0
        if self.target_encoder is not None and not untrained:  # before training both are one network
            features["target"] = self._features(self.target_encoder, batch.image)
        return features

    def test_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the features of clean images, as `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the judged network's features (B, D) with labels and places, for `hjepa predict`."""
        return {"features": self.encode(batch.image), "label": batch.label, "place": batch.place}

    @property
    def judged_encoder(self) -> VisionEncoder:
        """The target encoder, or the online one where there is no other."""
        return self.context_encoder if self.target_encoder is None else self.target_encoder

    @staticmethod
    def _features(encoder: VisionEncoder, images: Tensor) -> Tensor:
        return encoder(images)["last"].float().mean(dim=1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of the final-norm patch tokens (B, D), float32, of normalised images (B, C, H, W)."""
        return self._features(self.judged_encoder, images)

    @torch.no_grad()
    def encode_tokens(self, images: Tensor) -> Tensor:
        """Return the final-norm patch tokens (B, N, D), float32, of normalised images (B, C, H, W)."""
        return self.judged_encoder(images)["last"].float()
