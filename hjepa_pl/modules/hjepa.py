"""The hierarchical JEPA as a Lightning module."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.losses import Regularizer
from hjepa_pl.losses.config import LevelScale, PredictionKind
from hjepa_pl.masks import MaskConfig
from hjepa_pl.models.attention import check_kernel
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.blocks import compile_blocks
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.families import EncoderShape, measure
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.check_data import check_batch, check_curriculum, check_data, check_validated
from hjepa_pl.modules.check_model import check_model, make_masks
from hjepa_pl.modules.config import ModuleSettings, read_settings
from hjepa_pl.modules.features import check_images, patch_tokens, pooled, pyramid_maps
from hjepa_pl.modules.validation import EvalBatch, validate_batch
from hjepa_pl.objectives.image_levels import ImageLevels
from hjepa_pl.objectives.local_crops import LocalCrops
from hjepa_pl.objectives.networks import build_networks, plan_depths
from hjepa_pl.objectives.record import Projections, StepRecord
from hjepa_pl.objectives.regularizers import Regularizers
from hjepa_pl.objectives.targets import TargetNorm
from hjepa_pl.objectives.token_levels import TokenLevels
from hjepa_pl.optim.config import EMAConfig, OptimizerConfig
from hjepa_pl.optim.ema import EMACallback
from hjepa_pl.types import CleanBatch, ConfigError, ViewBatch
from hjepa_pl.utils.sizes import sides


class HJEPALightningModule(PretrainModule):
    """Hierarchical joint-embedding predictive (H-JEPA) pretraining of a vision transformer.

    Token levels (I-JEPA, arXiv:2301.08243): from the visible patches of one view, predict the target encoder's tokens,
    averaged over the cells of each level. Image level (LeJEPA, arXiv:2511.08544): regress the projections of an image's
    views to their mean, with a regularizer against collapse. One level {block: last, cell: 1} is I-JEPA; the image
    level alone is LeJEPA, without a target encoder.

    `HJEPALightningModule.load_from_checkpoint(path).eval()` encodes images that are prepared as the data module's clean
    ones: resized and center-cropped to `encoder.img_size` (or any multiples of the patch size), then (x / 255 - mean) /
    std for each channel, with ImageNet's mean and std for color and .5 and .25 for gray.

    Attributes:
        context_encoder: The encoder that is trained.
        target_encoder: Its moving average; None without token levels or with `ema: null`.
        predictor, fusion, projector, inner_projectors, pyramid, pyramid_heads: Networks on top; None where the levels
            need none.
        target_pyramid: Moving average of the pyramid.
        tokens, images, crops, terms: The objectives: `TokenLevels`, `ImageLevels`, `LocalCrops`, `Regularizers`.
        masks: The masks of the token levels; None without any.
        ema: `EMACallback` of the target networks.
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
        target_norm: TargetNorm = "layer",
        target_blocks: int = 1,
        regularizers: list[Regularizer] | None = None,
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
            masks: Masks of the token levels.
            predictor: The predictor of the token levels.
            projector: The projector of each image level.
            pyramid: Maps at three strides for dense tasks (`encode_pyramid`), learned with the token levels.
            prediction: Distance between predicted and target tokens.
            level_scale: Divisor of a token level's loss: 'baseline' is the loss of predicting each position's mean, so
                that levels have equal scales; 'raw' is none (as I-JEPA).
            target_norm: Normalization of the target encoder's tokens: 'layer' of each token (as I-JEPA), 'instance' of
                each channel over an image's tokens (data2vec 2.0) or 'batch' over all images' tokens, before 'layer'.
            target_blocks: Number of blocks, up to a level's, whose normalized outputs' mean is the target (data2vec).
            regularizers: Terms against collapse; null is SIGReg on the projections if there is an image level.
            ema: Momentum of the target encoder; with null the context encoder makes the targets, with gradient
                (experimental).
            optimizer: AdamW and its schedules.
            time_budget: "HH:MM:SS"; the run ends by then, with its schedules complete. Start-up counts against
                it, but schedules begin at the first step. Fewer than 10 warm-up steps draw a warning.
            seed: Key of masks, directions and drop path; null is seed_everything's in the CLI, 0 in Python.
            experimental: Allow token levels without a target encoder, which collapse without a regularizer on stream
                'tokens'.
            compile: Fuse the operations of each transformer block (`torch.compile`) when training starts, which costs
                half a minute there.

        Raises:
            ConfigError: If a setting is invalid, alone or with another, before any weight is made.
        """
        settings = read_settings({
            "encoder": encoder, "levels": levels, "masks": masks, "predictor": predictor, "projector": projector,
            "pyramid": pyramid, "prediction": prediction, "level_scale": level_scale, "target_norm": target_norm,
            "target_blocks": target_blocks, "regularizers": regularizers, "ema": ema, "optimizer": optimizer,
            "time_budget": time_budget, "seed": 0 if seed is None else seed, "experimental": experimental,
            "compile": compile,
        })  # fmt: skip
        super().__init__(settings.optimizer, settings.time_budget)
        # On a meta-device model, before weights are made: 0.1 s against 1 s (size base) or 4 s (large).
        shape = measure(settings.encoder)
        check_model(settings, shape)
        self.store_arguments(settings.arguments())
        self.token_levels, self.image_level = settings.token_levels, settings.image_level
        self.regularizers, self.mask_config = settings.regularizers, settings.masks
        self.seed, self.compiled = settings.seed, settings.compile
        self.img_size, self.in_chans = settings.encoder.img_size, settings.encoder.in_chans
        height, width = sides(self.img_size)
        self.patch_size = (height // shape.grid[0], width // shape.grid[1])
        self.masks = make_masks(settings, shape)
        self._build_networks(settings, shape)
        self._drop_path = settings.encoder.drop_path_rate > 0

    def _build_networks(self, settings: ModuleSettings, shape: EncoderShape) -> None:
        """Build the networks, and the objectives on them."""
        levels, image = settings.token_levels, settings.image_level
        fused = settings.predictor.context == "fused"
        count, pyramid = settings.target_blocks, settings.pyramid is not None
        images = () if image is None else (*settings.inner_images, image)
        depths = plan_depths(levels, images, shape.depth, fused=fused, pyramid=pyramid, target_blocks=count)
        networks = build_networks(
            settings.encoder, settings.predictor, settings.projector, settings.pyramid, levels, images, depths,
            moving_average=settings.ema is not None, crop_context=settings.masks.strategy != "global_only",
        )  # fmt: skip
        self.context_encoder = networks.context_encoder
        self.target_encoder = networks.target_encoder
        self.predictor = networks.predictor
        self.fusion = networks.fusion
        self.projector, self.inner_projectors = networks.projector, networks.inner_projectors
        self.pyramid = networks.pyramid
        self.pyramid_heads = networks.pyramid_heads
        self.target_pyramid = networks.target_pyramid
        self.ema = None if settings.ema is None or networks.target_encoder is None else EMACallback(settings.ema)
        self._pyramid_blocks = depths.pyramid

        weight = 0.0 if settings.pyramid is None else settings.pyramid.weight
        scoring = (settings.prediction, settings.level_scale, weight, settings.target_norm, count)
        self.tokens = TokenLevels(networks, levels, depths, *scoring) if levels else None
        self.images = None if image is None else ImageLevels(networks, settings.inner_images, image, settings.seed)
        self.crops = LocalCrops(networks.context_encoder, self.tokens, depths, settings.masks, settings.seed)
        self.terms = Regularizers(settings.regularizers, settings.seed)

    def train(self, mode: bool = True) -> "HJEPALightningModule":
        """Set training mode, but for the target networks: drop path would make the targets noisy."""
        super().train(mode)
        for target in (self.target_encoder, self.target_pyramid):
            if target is not None:
                target.eval()
        return self

    def trained_modules(self) -> list[nn.Module]:
        """Return the networks that the optimizer updates: all but the moving averages."""
        return [net for name, net in self.named_children() if not name.startswith("target_")]

    # ------------------------------------------------------------------------------------------------------- training

    def prepare_fit(self) -> None:
        """Check the data and the device, then compile; raises `ConfigError` if one does not fit the model."""
        check_data(data := getattr(self.trainer, "datamodule", None), self, self.trainer.world_size)
        check_validated(data, self.trainer.limit_val_batches)
        self.check_device(self.trainer)
        if self.compiled:
            networks = (self.context_encoder, self.target_encoder, self.predictor)
            compile_blocks(networks, self.trainer.strategy.root_device)

    def check_device(self, trainer: pl.Trainer) -> None:
        """Check that the Trainer's device has the attention kernel; raises `ConfigError` if not."""
        half = str(trainer.precision) != "32-true"
        check_kernel(self.context_encoder.config.attention, trainer.strategy.root_device.type, half)

    def check_run(self, batches: float) -> None:
        """Check that a curriculum of local crops ends within a run of `batches` batches."""
        check_curriculum(self.data_module, batches)

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        """Return the loss of a batch and, without gradient, the state of the levels for callbacks."""
        check_batch(batch, self, self.trainer.world_size)
        if self._drop_path:
            # The only use of the global generator: timm's drop path has no generator argument.
            torch.manual_seed(hash_int(self.seed, batch.counters.step, Stream.STEP, self.global_rank))
        loss, record = self.compute(batch)
        self.term_log.add({"loss": loss, **record.terms, **record.n_ep})
        self.term_log.add_predictions(batch.source, record.prediction_by_image)
        embedding = record.streams["tokens"].embedding.detach().float().mean(dim=1)
        return {"loss": loss, "levels": record.levels, "embedding": embedding}

    def compute(self, batch: ViewBatch) -> tuple[Tensor, StepRecord]:
        """Return the loss of a batch, and the record of its terms."""
        record = StepRecord()
        crops = self.crops.encode(batch)
        context: Mapping[Block, Tensor] = {}
        projections: list[Projections] = []
        if self.tokens is not None and self.masks is not None:
            context = self.tokens.predict(batch.views[0], self.masks(batch.counters), crops, record)
        if self.images is not None:
            projections = self.images.compare(batch, context, crops, record)
        self.terms.add(batch.counters.step, projections, record)
        return record.total(), record

    def after_optimizer_step(self, fraction: float) -> None:
        """Update the target networks."""
        if self.ema is not None:
            steps = self.progress.expected_steps(self.trainer.global_step, fraction)
            momentum = self.ema.momentum(fraction, steps)
            self.move_target(momentum)
            if self.term_log.is_logged_step():
                self.log("train/momentum", momentum)

    def move_target(self, momentum: float) -> None:
        """Update target encoder and target pyramid, where there are any, from the online ones."""
        pairs = [(self.context_encoder, self.target_encoder), (self.pyramid, self.target_pyramid)]
        online, target = (nn.ModuleList(nets) for nets in zip(*[p for p in pairs if p[1] is not None], strict=True))
        if self.ema is not None:
            self.ema.update(online, target, momentum)  # one update an optimizer step

    # ----------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the features or, of held-out views, the levels of a batch, and log its loss; see `validate_batch`."""
        untrained = self.trainer.sanity_checking and self.trainer.global_step == 0
        return validate_batch(self, batch, both=self.target_encoder is not None and not untrained)

    def test_step(self, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Do as `validation_step`."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return features (B, D) with labels and indices, for `hjepa predict`."""
        return {"features": self.encode(batch.image), "label": batch.label, "place": batch.place}

    # ------------------------------------------------------------------------------------------------------- features

    @property
    def encoder(self) -> Encoder:
        """The encoder to evaluate and use: the target encoder, or the context encoder where there is none."""
        return self.context_encoder if self.target_encoder is None else self.target_encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return `encode(images)`."""
        return self.encode(images)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mean of the final-norm patch tokens of `encoder`, (B, D) float32.

        Args:
            images: (B, C, H, W), normalized; H and W are multiples of the patch size.

        Raises:
            ConfigError: If the images are not floats, or not (B, C, H, W).
        """
        check_images(images, self.in_chans)
        return pooled(self.encoder, images)

    @torch.no_grad()
    def encode_tokens(self, images: Tensor) -> Tensor:
        """Return the final-norm patch tokens of `encoder`, (B, N, D) float32 in raster order; see `encode`."""
        check_images(images, self.in_chans)
        return patch_tokens(self.encoder, images)

    @torch.no_grad()
    def encode_pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the target pyramid's maps of full images, without gradient; see `pyramid_features`."""
        return self.pyramid_features(images)

    def pyramid_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the target pyramid's maps with a gradient, to train a dense head on.

        The target networks are frozen: `requires_grad_()` on `target_encoder` and `target_pyramid` unfreezes them. For
        torchvision's detectors wrap this in a backbone with `out_channels = module.pyramid.dim` that returns
        `OrderedDict(zip("012", module.pyramid_features(images)))`. The maps are those of `features.pyramid_maps`.

        Raises:
            ConfigError: If the module has no pyramid.
        """
        if self.target_pyramid is None or self.target_encoder is None:
            raise ConfigError("invalid `pyramid=null`: encode_pyramid needs a pyramid; train with pyramid: {}.")
        return pyramid_maps(self.target_encoder, self.target_pyramid, self._pyramid_blocks, images)
