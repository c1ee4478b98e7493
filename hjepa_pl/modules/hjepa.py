"""The hierarchical JEPA."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.losses.config import LevelScale, PredictionKind, RegularizerConfig
from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.models.attention import check_kernel
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.families import EncoderShape, measure
from hjepa_pl.models.levels import LevelConfig, split_levels
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.check_model import check_masks, check_model
from hjepa_pl.modules.check_run import check_batch, check_clean, check_curriculum, check_data
from hjepa_pl.modules.config import read_settings
from hjepa_pl.modules.features import Features
from hjepa_pl.objectives.image_level import ImageLevel
from hjepa_pl.objectives.local_crops import LocalCrops
from hjepa_pl.objectives.networks import build_networks, plan_depths
from hjepa_pl.objectives.record import StepRecord
from hjepa_pl.optim.config import EMAConfig, OptimizerConfig
from hjepa_pl.optim.ema import EMACallback
from hjepa_pl.types import CleanBatch, ViewBatch
from hjepa_pl.utils.settings import to_plain


class HJEPALightningModule(Features, LocalCrops, ImageLevel, PretrainModule):
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
        ema: EMAConfig | None = EMAConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        time_budget: str | None = None,
        seed: int | None = None,
        experimental: bool = False,
        compile: bool = False,
    ) -> None:
        """Check the settings, then make the networks. Each settings object may also be a mapping of its fields.

        Args:
            encoder: The vision transformer; from Python also a size ('small') or timm's name of one.
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
            ema: How the target encoder follows; null is without one: the context encoder makes the targets, with
                gradient (experimental).
            optimizer: AdamW and its schedules.
            time_budget: "HH:MM:SS"; the run ends by then, with its schedules complete. The start counts against it,
                but schedules begin at the first step. A warm-up of fewer than 10 steps in it draws a warning.
            seed: Key of masks, directions and drop path; null is seed_everything's from the CLI, 0 from Python.
            experimental: Allow token levels without a moving average, which collapse unless a regulariser on stream
                'tokens' holds them.
            compile: Fuse the operations of each transformer block (`torch.compile`) when training starts, which costs
                half a minute there.

        Raises:
            ConfigError: If a setting is out of range or does not go with another, before any weight is made.
        """
        settings = read_settings({
            "encoder": encoder, "levels": levels, "masks": masks, "predictor": predictor, "projector": projector,
            "pyramid": pyramid, "prediction": prediction, "level_scale": level_scale, "regularizers": regularizers,
            "ema": ema, "optimizer": optimizer, "time_budget": time_budget, "seed": 0 if seed is None else seed,
            "experimental": experimental, "compile": compile,
        })  # fmt: skip
        super().__init__(settings["optimizer"], time_budget)
        self.token_levels, self.image_level = split_levels(tuple(settings["levels"]))
        self.regularizers, self.mask_config = settings["regularizers"], settings["masks"]
        self.prediction: PredictionKind = prediction
        self.level_scale: LevelScale = level_scale
        self.compiled = compile
        encoder = settings["encoder"]
        self.seed, self.img_size, self.in_chans = settings["seed"], encoder.img_size, encoder.in_chans
        geometry = measure(encoder)
        check_model(settings, self.token_levels, self.image_level, geometry)
        self.save_settings(settings)
        self._make(settings, geometry)

    def _make(self, settings: Mapping[str, Any], geometry: EncoderShape) -> None:
        """Make the masks, the networks and what moves the targets, from settings that go together."""
        grid, size = geometry.grid, self.img_size
        height, width = (size, size) if isinstance(size, int) else size
        self.patch_size = (height // grid[0], width // grid[1])  # the data cuts local crops to whole patches
        self.masks: MaskGenerator | None = None
        self._crop_masks: dict[tuple[int, int], MaskGenerator] = {}
        if self.token_levels:
            cells = tuple(int(level.cell) for level in self.token_levels)
            joint = settings["predictor"].targets == "joint"
            self.masks = build_masks(settings["masks"], grid, cells, self.seed, joint)
            check_masks(settings["predictor"].targets, self.masks)
        self.depths = plan_depths(self.token_levels, self.image_level, settings, geometry.depth)
        networks = build_networks(settings, self.token_levels, self.image_level, self.depths)
        for name, network in networks._asdict().items():
            setattr(self, name, network)
        self.ema = None if self.target_encoder is None else EMACallback(settings["ema"])
        self.pyramid_weight = 0.0 if settings["pyramid"] is None else settings["pyramid"].weight
        self._drops_paths = settings["encoder"].drop_path_rate > 0

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
        check_batch(batch, self, self.trainer.world_size)
        if self._drops_paths:
            # The one use of the global generator: timm's drop path takes no generator of its own.
            torch.manual_seed(hash_int(self.seed, batch.counters.step, Stream.STEP, self.global_rank))
        total, record = self.compute(batch)
        n_ep = {} if record.n_ep is None else {"sigreg_image_n_ep": record.n_ep}
        self.log_terms({"loss": total, **record.terms, **n_ep})
        self.note_predictions(batch.source, record.prediction_by_image)
        embedding = record.streams["tokens"].embedding.detach().float().mean(dim=1)
        return {"loss": total, "levels": record.levels, "embedding": embedding}

    def compute(self, batch: ViewBatch) -> tuple[Tensor, StepRecord]:
        """Return the loss of a batch, and what it is made of."""
        record = StepRecord()
        crops = self.encode_crops(batch)
        context, projection, partial = {}, None, 0
        if self.masks is not None:
            context = self.predict_tokens(batch.views[0], self.masks(batch.counters), crops, record)
        if self.image_level is not None:
            projection, partial = self.compare_views(batch, context, crops, record)
        self.regularize(batch.counters.step, projection, partial, record)
        return record.total(), record

    def after_optimizer_step(self, share: float) -> None:
        """Move the target networks."""
        if self.ema is not None:
            steps = self.progress.expected_steps(self.trainer.global_step, share)
            momentum = self.ema.momentum(share, steps)
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
        """Refuse data that does not go with the model."""
        super().setup(stage)
        if stage == "fit":
            check_data(getattr(self.trainer, "datamodule", None), self, self.trainer.world_size)
            self.check_device(self.trainer)
            if self.compiled:
                networks = (self.context_encoder, self.target_encoder, self.predictor)
                compile_blocks(networks, self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Fix the length of the run, and refuse a curriculum of crops that it would not reach the end of."""
        super().on_train_start()
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            batches = self.progress.total_steps * self.trainer.accumulate_grad_batches
            check_curriculum(getattr(self.trainer, "datamodule", None), batches)

    def check_device(self, trainer: pl.Trainer) -> None:
        """Refuse a kernel of attention that the Trainer's device does not have."""
        half = str(trainer.precision) != "32-true"
        check_kernel(self.context_encoder.config.attention, trainer.strategy.root_device.type, half)

    def validation_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return the features of clean images: 'online' and, where there is one, 'target', each (B, D) float32."""
        check_clean(batch)
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
