"""Monitor of representation collapse, position-only collapse included, with a fix for each kind."""

from collections import deque
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le, Lt
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from hjepa_pl.evaluation.collapse import (
    effective_rank,
    image_share,
    position_share,
    power_shares,
    prediction_gain,
    spread,
    std_across_images,
)
from hjepa_pl.types import ConfigError, LevelState
from hjepa_pl.utils.settings import Count, Hint, settings

_FIXES = {
    "std": "add {kind: sigreg, stream: tokens} to model.regularizers or raise its weight, or lower model.optimizer.lr",
    "position_share": "add {kind: sigreg, stream: tokens}, which compares images at one position, to "
    "model.regularizers, or raise its weight",
    "image_share": "set model.target_norm to instance, or add {cell: image} to model.levels or, if it is there, lower "
    "the weight of the token levels (0.1 in the preset three)",
    "spread": "raise the weight of model.regularizers, lower model.optimizer.lr or, with {cell: image} in "
    "model.levels, set model.projector.norm to none, as a batch norm hides from the loss how little images differ",
    "rank": "add {cell: image} to model.levels, or raise the weight of its regularizer (5 or more for {kind: sigreg})",
}
"""What to change, by the metric that is beyond its limit."""


@settings("collapse")
class CollapseConfig:
    """Limits of the collapse monitor, and what it does when one is exceeded."""

    action: Annotated[Literal["warn", "stop", "none"], Hint("none turns the monitor off")] = "warn"
    """Warn; warn, and stop the run when `patience` more checks have failed; or measure and log nothing."""
    every_n_steps: Count = 50
    """Optimizer steps between two checks."""
    window: Count = 512
    """Number of images of which the effective rank is computed."""
    patience: Count = 3
    """Number of consecutive checks that must fail before the monitor warns."""
    min_std: Annotated[float, Ge(0), Lt(1), Hint("0 disables the check")] = 0.1
    """Minimum standard deviation across images of a level's targets, which are layer-normed: 1 is the maximum."""
    max_position_share: Annotated[float, Gt(0), Le(1), Hint("1 disables the check")] = 0.95
    """Maximum fraction of the variance that the position explains."""
    max_image_share: Annotated[float, Gt(0), Le(1), Hint("1 disables the check")] = 0.7
    """Maximum fraction of the variance between images that all cells of an image have in common.
    Runs that learned stayed below 0.55, a flat one that did not reached 0.83 (tests/benchmarks/homogenise.py)."""
    min_spread: Annotated[float, Ge(0), Lt(1), Hint("0 disables the check")] = 0.05
    """Minimum rms distance of the online embeddings to their mean, as a fraction of their rms size.
    Runs that learned stayed above 0.1, collapsed ones were below 0.02 (tests/test_collapse.py)."""
    min_rank: Annotated[float, Ge(1), Lt(float("inf")), Hint("1 disables the check")] = 2.0
    """Minimum effective rank; checked once the window holds 8 times as many images."""

    def __post_init__(self) -> None:
        """Reject a window in which the rank is never checked."""
        if self.window < 8 * self.min_rank:
            raise ConfigError(
                f"invalid `collapse.window={self.window}`: must be at least 8 x collapse.min_rank = "
                f"{8 * self.min_rank:g} images."
            )


class CollapseMonitor(pl.Callback):
    """Check every n optimizer steps whether the representation still distinguishes images.

    Logged for each token level: `collapse/<level>/std` (standard deviation over images at a fixed position),
    `.../position_share` (fraction of the variance that the position explains), `.../image_share` (fraction of the
    variance between images that all cells of an image have in common; levels with the finest cells only), `.../gain`
    (prediction gain over the per-position mean target), `.../power_constant`, `power_position`, `power_image` and
    `power_local` (parts of the targets' mean square, which sum to 1: `power_shares`) and `.../rank` (effective rank of
    the target maps averaged over cells); and of the online embedding `collapse/rank` and `collapse/spread` (rms
    distance to the mean over rms size). Ranks are of the last `window` images, the others of one batch; all are
    averaged over processes. The gain has no limit, as it is near zero in any young run, and the powers have none.

    When a metric is beyond its limit in `patience` consecutive checks, `status` changes from "green" to "red",
    `message` is one line with the metric, its value and what to change, and the monitor warns (once until it is green
    again). With action 'stop' it ends the run when the metric has failed in `patience` more checks. It changes nothing
    else of the training.

    Args:
        **keys: The fields of `CollapseConfig`.

    Raises:
        ConfigError: If a key is unknown or its value invalid.

    Example:
        >>> CollapseMonitor(action="stop", every_n_steps=100).config.min_rank
        2.0
    """

    def __init__(self, **keys: Any) -> None:
        self.config = CollapseConfig(**keys)
        self.status: Literal["green", "red"] = "green"
        self.message = ""
        self.metrics: dict[str, float] = {}
        self.stopped = False
        self._pooled: dict[str, deque[Tensor]] = {}
        self._strikes: dict[str, int] = {}
        self._last_check = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps from the one where the run starts or resumes."""
        self._last_check = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the pooled embeddings; check every n steps."""
        if self.config.action == "none":
            return
        levels: dict[str, LevelState] = outputs["levels"]
        self._keep("", outputs["embedding"])
        for name, state in levels.items():
            self._keep(name, state.target_map)
        # One image cannot be compared with others: the check waits for the next batch.
        if trainer.global_step - self._last_check < self.config.every_n_steps or len(outputs["embedding"]) < 2:
            return
        self._last_check = trainer.global_step
        self.metrics = self._average(trainer, pl_module, self._measure(levels, outputs["embedding"]))
        pl_module.log_dict(self.metrics, logger=False, on_step=True, on_epoch=False)
        # Directly to the loggers: `log` drops metrics at steps that are not logging steps.
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._update_status(trainer)

    def _keep(self, name: str, features: Tensor) -> None:
        """Add (B, D) or (B, n, D) features to a window, on their device and without waiting for it."""
        features = features.detach().float()
        kept = self._pooled.setdefault(name, deque())
        # clone: the output of a CUDA graph is overwritten by the next step.
        kept.append(features.mean(dim=1) if features.dim() == 3 else features.clone())
        while sum(map(len, kept)) - len(kept[0]) >= self.config.window:
            kept.popleft()

    def _measure(self, levels: dict[str, LevelState], embedding: Tensor) -> dict[str, float]:
        # One stacked tensor, so that the host waits for the device once.
        named = {
            f"collapse/{name}/{key}": value
            for name, state in levels.items()
            for key, value in (
                ("std", std_across_images(state.target_map)),
                ("position_share", position_share(state.target_map)),
                ("gain", prediction_gain(state)),
                *((f"power_{part}", share) for part, share in power_shares(state.target_map).items()),
            )
        }
        named["collapse/spread"] = spread(embedding)
        # Coarser cells have less local content by nature, and a grid of one cell has none.
        finest = max((state.target_map.shape[1] for state in levels.values()), default=1)
        named |= {
            f"collapse/{name}/image_share": image_share(state.target_map)
            for name, state in levels.items()
            if state.target_map.shape[1] == finest > 1
        }
        metrics = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))
        for name, kept in self._pooled.items():
            pooled = torch.cat(list(kept))[-self.config.window :]
            if len(pooled) >= 8 * self.config.min_rank:
                metrics[f"collapse/{name}/rank" if name else "collapse/rank"] = effective_rank(pooled)
        return metrics

    @staticmethod
    def _average(trainer: pl.Trainer, module: pl.LightningModule, metrics: dict[str, float]) -> dict[str, float]:
        """Average over ranks, so that all of them reach the same status and stop together."""
        if trainer.world_size == 1 or not metrics:
            return metrics
        mean = trainer.strategy.reduce(torch.tensor(list(metrics.values()), device=module.device), reduce_op="mean")
        return dict(zip(metrics, torch.as_tensor(mean).tolist(), strict=True))

    def _update_status(self, trainer: pl.Trainer) -> None:
        red: dict[str, dict[str, str]] = {}
        for name, value in self.metrics.items():
            kind = name.rsplit("/", 1)[1]
            problem = self._problem(kind, value)
            self._strikes[name] = self._strikes.get(name, 0) + 1 if problem else 0
            if self._strikes[name] >= self.config.patience:
                red.setdefault(kind, {})[name] = problem
        if "std" in red:  # of which a small spread is a consequence
            red.pop("spread", None)
        previous, self.status = self.status, "red" if red else "green"
        if not red:
            self.message = ""
            if previous == "red":
                rank_zero_info(f"Collapse monitor: green again at step {trainer.global_step}.")
            return
        problems = "; ".join(f"{_summarize(found)}: {_FIXES[kind]}" for kind, found in red.items())
        self.message = f"Collapse at step {trainer.global_step}, {problems}."
        stops = self.config.action == "stop"
        if stops and max(self._strikes.values()) >= 2 * self.config.patience:
            trainer.should_stop = self.stopped = True
            rank_zero_warn(f"{self.message} The run is stopped.")
        elif previous == "green":
            left = self.config.patience * self.config.every_n_steps
            rank_zero_warn(self.message + (f" The run is stopped in {left} steps if this lasts." if stops else ""))

    def _problem(self, metric: str, value: float) -> str:
        """Return what is wrong with the value of a metric, or an empty string."""
        limits = self.config
        # Written so that NaN, the value of a diverged run, fails too.
        if metric == "std" and not value >= limits.min_std:
            return (
                f"the std across images is {value:.3g}, below collapse.min_std {limits.min_std:g}, so all images have "
                "nearly the same representation"
            )
        if metric == "position_share" and not value <= limits.max_position_share:
            return (
                f"the position explains {100 * value:.1f} % of the variance, above collapse.max_position_share "
                f"{limits.max_position_share:g}, so the representation encodes position, not content"
            )
        if metric == "image_share" and not value <= limits.max_image_share:
            return (
                f"{100 * value:.0f} % of the variance between images is common to all positions, above "
                f"collapse.max_image_share {limits.max_image_share:g}, so the tokens of an image become one vector"
            )
        if metric == "spread" and not value >= limits.min_spread:
            return (
                f"the spread over images is {value:.3g} of the embedding's size, below collapse.min_spread "
                f"{limits.min_spread:g}, so images differ less and less"
            )
        if metric == "rank" and not value >= limits.min_rank:
            return (
                f"the effective rank is {value:.2f}, below collapse.min_rank {limits.min_rank:g}, so images differ "
                "along very few directions (dimensional collapse)"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return the status so far, in plain values."""
        return {"status": self.status, "message": self.message, "strikes": dict(self._strikes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the status of the resumed run."""
        self.status, self.message = state_dict["status"], state_dict["message"]
        self._strikes = dict(state_dict["strikes"])


def _summarize(problems: dict[str, str]) -> str:
    """Return the problem of the first of some metrics of one kind, and the names of the others."""
    name, problem = next(iter(problems.items()))
    level = name.split("/")[1] if name.count("/") == 2 else "online embedding"
    others = f" (and {', '.join(list(problems)[1:])})" if len(problems) > 1 else ""
    return f"{level}: {problem}{others}"
