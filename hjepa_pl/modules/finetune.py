"""Fine-tuning of a pretrained encoder to a classifier."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from hjepa_pl.backbones import Backbone, load_encoder
from hjepa_pl.evaluation.linear import fit_logistic
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.optim.schedules import warmup_cosine
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import NonNegative, Positive, PositiveFraction, from_plain, settings, to_plain


@settings("finetune")
class FinetuneConfig:
    """How an encoder is fine-tuned; the defaults are for small sets and tens of epochs, without Mixup and CutMix."""

    lr: Positive = 1e-3
    """Peak learning rate of the head; an encoder's block has `layer_decay` times that of the block above it."""
    layer_decay: PositiveFraction = 0.75
    """Factor between the learning rates of neighboring blocks (ELECTRA, BEiT); 1 is one rate for all."""
    weight_decay: NonNegative = 0.05
    """Weight decay of the matrices."""
    warmup_fraction: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Fraction of the run in which the learning rate rises linearly; a cosine to 0 follows."""
    drop_path_rate: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Stochastic depth of the last block, rising linearly from 0 in the first."""
    mixup: NonNegative = 0.0
    """alpha of Mixup (arXiv:1710.09412), 0.8 in MAE for 100 epochs; 0 is none. With CutMix too, one of the two is drawn
    for each batch."""
    cutmix: NonNegative = 0.0
    """alpha of CutMix (arXiv:1905.04899), 1.0 in MAE for 100 epochs; 0 is none."""
    label_smoothing: Annotated[float, Ge(0), Le(0.9)] = 0.1
    """Part of the target that is spread over all classes."""


class HJEPAFinetuneModule(pl.LightningModule):
    """An encoder and a linear head on the mean of its patch tokens, all of it trained on labeled images.

    Batches are (images, labels): images (B, C, H, W) as `Backbone.transform()` makes them, and augmented as you like;
    labels (B,) int64. Logged: `train/loss`, `val/loss`, `val/accuracy` and `test/accuracy` in percent. A checkpoint of
    it loads by `load_from_checkpoint`, and its encoder by `hjepa_pl.load_encoder`.

    Args:
        backbone: A checkpoint or run to start from, or a loaded one; None starts from random weights, which is what
            `load_from_checkpoint` fills.
        num_classes: Number of classes, at least 2.
        branch: Encoder of the checkpoint, "target" or "online"; None is the target encoder, where there is one.
        encoder: Architecture, in place of `backbone`.
        mean: Statistics of the images, with `encoder`.
        std: Statistics of the images, with `encoder`.
        options: Fields of `FinetuneConfig`.

    Attributes:
        context_encoder: The encoder, under the name that it has in pretraining.
        head: The linear layer.

    Raises:
        ConfigError: If the file cannot be read or an option is invalid.

    Example:
        >>> module = HJEPAFinetuneModule(
        ...     num_classes=3, encoder={"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4}
        ... )
        >>> module(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: Backbone | str | Path | None = None,
        num_classes: int = 0,
        *,
        branch: Any = None,
        encoder: EncoderConfig | Mapping[str, Any] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"invalid `num_classes={num_classes}`: must be a whole number >= 2.")
        if (backbone is None) == (encoder is None):
            raise ConfigError("HJEPAFinetuneModule needs either a backbone (a checkpoint or a run) or an encoder.")
        if branch is not None and not isinstance(backbone, str | Path):
            raise ConfigError(
                f"invalid `branch={branch}`: has an effect only with the path of a checkpoint; remove it."
            )
        if backbone is not None and (mean is not None or std is not None):
            raise ConfigError("invalid `mean` or `std`: a backbone has its own; remove them.")
        self.config = FinetuneConfig(**options)
        if isinstance(backbone, str | Path):
            backbone = load_encoder(backbone, branch)
        if backbone is not None:
            encoder, mean, std = backbone.config, backbone.mean, backbone.std
        architecture = self._architecture(encoder)
        with without_pretrained():
            self.context_encoder = build_encoder(architecture)
        if backbone is not None:
            self.context_encoder.load_state_dict(backbone.encoder.state_dict())
        self.head = nn.Linear(self.context_encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.mean, self.std, self.num_classes = mean, std, num_classes
        self._store_arguments(to_plain(architecture))
        self.val_accuracy, self.test_accuracy = (
            100 * MulticlassAccuracy(num_classes, average="micro") for _ in ("val", "test")
        )
        self._mix = self._make_mix()

    @torch.no_grad()
    def start_head(self, features: Tensor, labels: Tensor, l2: float = 1e-2) -> None:
        """Set the head to the logistic regression on frozen features (LP-FT, arXiv:2202.10054, section 4).

        Training then starts from the linear probe, and its first gradients do not spoil the encoder.

        Args:
            features: (N, D) mean patch tokens of clean training images, as `load_encoder(...)(images)` gives them.
            labels: (N,) int64.
            l2: Penalty, see `fit_logistic`.
        """
        x = features.double().cpu()
        mean, std = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
        weight = fit_logistic((x - mean) / std, labels.cpu(), self.num_classes, l2)
        scaled = weight[:-1] / std[:, None]
        self.head.weight.copy_(scaled.T)
        self.head.bias.copy_(weight[-1] - mean @ scaled)

    def _architecture(self, encoder: Any) -> EncoderConfig:
        """Return the config of an encoder, with the drop path of fine-tuning."""
        config: Any = from_plain(EncoderConfig, encoder, "encoder")
        return dataclasses.replace(config, drop_path_rate=self.config.drop_path_rate)

    def _store_arguments(self, encoder: dict[str, Any]) -> None:
        """Store the arguments that `load_from_checkpoint` passes back: the architecture, in place of the weights."""
        stored = {"encoder": encoder, "num_classes": self.num_classes, **to_plain(self.config)}
        stored |= {name: None if (value := getattr(self, name)) is None else list(value) for name in ("mean", "std")}
        self._set_hparams(stored)
        self._hparams_initial, self._hparams_name = dict(stored), "kwargs"

    def _make_mix(self) -> v2.Transform | None:
        """Return Mixup and CutMix, of which one is drawn for each batch; None without either."""
        config = self.config
        parts: list[v2.Transform] = []
        if config.mixup:
            parts.append(v2.MixUp(alpha=config.mixup, num_classes=self.num_classes))
        if config.cutmix:
            parts.append(v2.CutMix(alpha=config.cutmix, num_classes=self.num_classes))
        return v2.RandomChoice(parts) if parts else None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of normalized images (B, C, H, W)."""
        return self.head(self.context_encoder(images)["last"].mean(dim=1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        images, labels = batch
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.config.label_smoothing)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log accuracy and loss."""
        logits = self(batch[0])
        self.val_accuracy.update(logits, batch[1])
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log("val/loss", F.cross_entropy(logits, batch[1]), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.test_accuracy.update(self(batch[0]), batch[1])
        self.log("test/accuracy", self.test_accuracy)

    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """Return probabilities (B, num_classes)."""
        return self(batch if isinstance(batch, Tensor) else batch[0]).softmax(dim=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, each with `lr_scale`: timm's layer-wise decay of the encoder, and the head.

        Raises:
            ConfigError: If `layer_decay` is given for an encoder of another family than timm's.
        """
        config, encoder = self.config, self.context_encoder
        if isinstance(encoder, VisionEncoder):
            groups = param_groups_layer_decay(
                encoder.vit,
                weight_decay=config.weight_decay,
                no_weight_decay_list=encoder.vit.no_weight_decay(),
                layer_decay=config.layer_decay,
            )
            for group in groups:  # timm's last block has 1, as if the head were the block above the next one
                group["lr_scale"] *= config.layer_decay
            extra = [p for n, p in encoder.named_parameters() if not n.startswith("vit.") and p.requires_grad]
        elif config.layer_decay == 1:
            groups, extra = [], [p for p in encoder.parameters() if p.requires_grad]
        else:
            raise ConfigError(
                f"invalid `layer_decay={config.layer_decay}`: needs the blocks of a timm ViT, the encoder is "
                f"{type(encoder).__name__}; set it to 1."
            )
        top = [*self.head.parameters(), *extra]
        return [
            *groups,
            {"params": [p for p in top if p.ndim > 1], "weight_decay": config.weight_decay, "lr_scale": 1.0},
            {"params": [p for p in top if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": 1.0},
        ]

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW; `on_before_optimizer_step` sets the learning rates."""
        return torch.optim.AdamW(self.parameter_groups(), lr=self.config.lr, betas=(0.9, 0.999))

    def on_fit_start(self) -> None:
        """Check that the run has a length, which the learning rate follows.

        Raises:
            ConfigError: If it has none.
        """
        if self.trainer.estimated_stepping_batches == float("inf"):
            raise ConfigError("fine-tuning needs the length of the run: set max_epochs or max_steps of the Trainer.")

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rates by the fraction of the run that is done, in the middle of the step."""
        fraction = (self.trainer.global_step + 0.5) / self.trainer.estimated_stepping_batches
        for group in optimizer.param_groups:
            peak = self.config.lr * group.get("lr_scale", 1.0)
            group["lr"] = warmup_cosine(peak, 0.0, self.config.warmup_fraction, fraction)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the statistics of the images where `load_encoder` reads them."""
        checkpoint["hjepa_data"] = {"mean": self.mean, "std": self.std}
