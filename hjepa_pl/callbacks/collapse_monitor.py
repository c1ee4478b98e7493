"""Watches the training for collapse, position-only collapse included, and says what to change."""

from collections import deque
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from hjepa_pl.evaluation.collapse import (
    effective_rank,
    image_share,
    position_share,
    prediction_gain,
    std_across_images,
)
from hjepa_pl.types import ConfigError, LevelState

Action = Literal["warn", "stop", "none"]

_MENDS = {
    "std": "add {kind: sigreg, stream: tokens} to model.init_args.regularizers or raise its weight, or lower "
    "model.init_args.optimizer.lr",
    "position_share": "add {kind: sigreg, stream: tokens}, which compares images at one position, to "
    "model.init_args.regularizers or raise its weight",
    "image_share": "add {cell: image} to model.init_args.levels or, where it is there, lower the `weight` of the token "
    "levels (0.1 in the preset three)",
    "rank": "add {cell: image} to model.init_args.levels, or raise the `weight` of its regularizer (5 or more for "
    "{kind: sigreg})",
}
"""What to change, by the metric that is beyond its limit."""


class CollapseMonitor(pl.Callback):
    """Measure every n optimizer steps whether the representation still tells images apart.

    Logged: per token level `collapse/<level>/std` (standard deviation over images at a fixed position),
    `.../position_share` (share of variance that the position explains), `.../image_share` (share of what tells images
    apart that all cells of an image have in common; of the levels with the finest cells), `.../gain` (prediction gain
    over the per-position mean target) and `.../rank` (effective rank of the target maps' means over their cells); and
    `collapse/rank`, that of the online embedding. The ranks are taken over the last `window` images, the others over
    one batch; with several ranks all are averaged over them. The gain has no limit: it is near zero in any young run.

    A figure beyond its limit `patience` checks in a row turns `status` from "green" to "red", sets `verdict` to one
    line with the figure, its value and what to change for it, and warns (once an episode) or stops the run. It only
    reads: nothing of the training changes, save that "stop" ends it.

    Args:
        action: "warn", "stop", or "none" (YAML reads a bare off as false): then nothing is measured and nothing logged.
        every_n_steps: Optimizer steps between two checks.
        window: Images over which the ranks are taken.
        patience: Checks in a row that must fail.
        min_std: Least standard deviation across images of a level's targets (1 is full: targets are layer-normed).
        max_position_share: Largest share of variance that the position may explain.
        max_image_share: Largest share of what tells images apart that the cells of an image may have in common.
            Runs that learned stayed below 0.55, a flat one that did not went to 0.83 (tests/benchmarks/homogenise.py).
        min_rank: Least effective rank; judged once the window holds 8 times as many images.
    """

    def __init__(
        self,
        action: Action = "warn",
        every_n_steps: int = 50,
        window: int = 512,
        patience: int = 3,
        min_std: float = 0.1,
        max_position_share: float = 0.95,
        max_image_share: float = 0.7,
        min_rank: float = 2.0,
    ) -> None:
        _check("action", action, action in get_args(Action), "use warn, stop or none")
        _check("every_n_steps", every_n_steps, every_n_steps >= 1, "use 1 or more")
        _check("patience", patience, patience >= 1, "use 1 or more")
        _check("min_std", min_std, 0 <= min_std < 1, "use 0 (no limit) to below 1, the value of a full code")
        _check("max_position_share", max_position_share, 0 < max_position_share <= 1, "use above 0 to 1 (no limit)")
        _check("max_image_share", max_image_share, 0 < max_image_share <= 1, "use above 0 to 1 (no limit)")
        _check("min_rank", min_rank, min_rank >= 1, "use 1 (no limit) or more")
        _check("window", window, window >= 8 * min_rank, f"use at least 8 x min_rank = {8 * min_rank:g} images")
        self.action, self.every_n_steps, self.window, self.patience = action, every_n_steps, window, patience
        self.min_std, self.max_position_share, self.min_rank = min_std, max_position_share, min_rank
        self.max_image_share = max_image_share
        self.status: Literal["green", "red"] = "green"
        self.verdict = ""
        self.figures: dict[str, float] = {}
        self.stopped = False
        self._pooled: dict[str, deque[Tensor]] = {}
        self._strikes: dict[str, int] = {}
        self._last_check = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count checks from the step at which the run starts or goes on."""
        self._last_check = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the pooled embeddings; check when it is time."""
        if self.action == "none":
            return
        levels: dict[str, LevelState] = outputs["levels"]
        self._keep("", outputs["embedding"])
        for name, state in levels.items():
            self._keep(name, state.target_map)
        # A batch of one image cannot be compared with anything: the check waits for the next one.
        if trainer.global_step - self._last_check < self.every_n_steps or len(outputs["embedding"]) < 2:
            return
        self._last_check = trainer.global_step
        self.figures = self._average(trainer, pl_module, self._measure(levels))
        pl_module.log_dict(self.figures, logger=False, on_step=True, on_epoch=False)
        # Straight to the loggers: `log` would drop the figures wherever the check is not a logging step.
        for logger in trainer.loggers:
            logger.log_metrics(self.figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._judge(trainer)

    def _keep(self, name: str, features: Tensor) -> None:
        """Add (B, D) or (B, n, D) features to a window, on their device and without a sync."""
        features = features.detach().float()
        kept = self._pooled.setdefault(name, deque())
        # clone: the output of a CUDA graph is overwritten by the next step.
        kept.append(features.mean(dim=1) if features.dim() == 3 else features.clone())
        while sum(map(len, kept)) - len(kept[0]) >= self.window:
            kept.popleft()

    def _measure(self, levels: dict[str, LevelState]) -> dict[str, float]:
        # One stacked tensor: one wait for the device.
        named = {
            f"collapse/{name}/{key}": figure
            for name, state in levels.items()
            for key, figure in (
                ("std", std_across_images(state.target_map)),
                ("position_share", position_share(state.target_map)),
                ("gain", prediction_gain(state)),
            )
        }
        # Coarser cells have less of what is local by their nature, and a grid of one cell has none.
        finest = max((state.target_map.shape[1] for state in levels.values()), default=1)
        named |= {
            f"collapse/{name}/image_share": image_share(state.target_map)
            for name, state in levels.items()
            if state.target_map.shape[1] == finest > 1
        }
        figures = dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True)) if named else {}
        for name, kept in self._pooled.items():
            pooled = torch.cat(list(kept))[-self.window :]
            if len(pooled) >= 8 * self.min_rank:
                figures[f"collapse/{name}/rank" if name else "collapse/rank"] = effective_rank(pooled)
        return figures

    @staticmethod
    def _average(trainer: pl.Trainer, module: pl.LightningModule, figures: dict[str, float]) -> dict[str, float]:
        """Average over ranks: then all ranks come to the same verdict and stop together."""
        if trainer.world_size == 1 or not figures:
            return figures
        mean = trainer.strategy.reduce(torch.tensor(list(figures.values()), device=module.device), reduce_op="mean")
        return dict(zip(figures, torch.as_tensor(mean).tolist(), strict=True))

    def _judge(self, trainer: pl.Trainer) -> None:
        red: dict[str, dict[str, str]] = {}
        for name, value in self.figures.items():
            kind = name.rsplit("/", 1)[1]
            complaint = self._complaint(kind, value)
            self._strikes[name] = self._strikes.get(name, 0) + 1 if complaint else 0
            if self._strikes[name] >= self.patience:
                red.setdefault(kind, {})[name] = complaint
        was, self.status = self.status, "red" if red else "green"
        if not red:
            self.verdict = ""
            if was == "red":
                rank_zero_info(f"Collapse monitor: green again at step {trainer.global_step}.")
            return
        said = "; ".join(f"{_of_kind(found)}: {_MENDS[kind]}" for kind, found in red.items())
        self.verdict = f"Collapse at step {trainer.global_step}, {said}."
        if self.action == "stop":
            trainer.should_stop = self.stopped = True
        if was == "green":
            rank_zero_warn(self.verdict + (" The run is stopped." if self.stopped else ""))

    def _complaint(self, figure: str, value: float) -> str:
        """Return what is wrong with a figure, or an empty string."""
        # Written so that NaN, the figure of a diverged run, fails too.
        if figure == "std" and not value >= self.min_std:
            return (
                f"std across images is {value:.3g}, below collapse.min_std {self.min_std:g}, so all images get nearly "
                "one code"
            )
        if figure == "position_share" and not value <= self.max_position_share:
            return (
                f"position explains {100 * value:.1f} % of the variance, above collapse.max_position_share "
                f"{self.max_position_share:g}, so the code says where, not what"
            )
        if figure == "image_share" and not value <= self.max_image_share:
            return (
                f"{100 * value:.0f} % of what tells images apart is the same at all positions, above "
                f"collapse.max_image_share {self.max_image_share:g}, so the tokens of an image become one vector"
            )
        if figure == "rank" and not value >= self.min_rank:
            return (
                f"effective rank is {value:.2f}, below collapse.min_rank {self.min_rank:g}, so images differ in one "
                "direction only"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return the verdict so far, in plain values."""
        return {"status": self.status, "verdict": self.verdict, "strikes": dict(self._strikes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the verdict of the run that is resumed."""
        self.status, self.verdict = state_dict["status"], state_dict["verdict"]
        self._strikes = dict(state_dict["strikes"])


def _of_kind(found: dict[str, str]) -> str:
    """Return the complaint of the first of some figures of one kind, and the names of the others."""
    name, complaint = next(iter(found.items()))
    level = name.split("/")[1] if name.count("/") == 2 else "online embedding"
    others = f" (with {', '.join(list(found)[1:])})" if len(found) > 1 else ""
    return f"{level}: {complaint}{others}"


def _check(key: str, value: object, right: bool, mend: str) -> None:
    if not right:
        raise ConfigError(f"invalid `collapse.{key}={value}`: {mend}")
