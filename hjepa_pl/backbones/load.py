"""One line from a run to its encoder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch

from hjepa_pl.backbones.backbone import Backbone, Branch
from hjepa_pl.backbones.checkpoint import Weights, find_checkpoint, read_weights
from hjepa_pl.data.loading.image_spec import image_spec
from hjepa_pl.models.base import Encoder
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain, invalid
from hjepa_pl.utils.wording import either


def load_encoder(path: str | Path, branch: Branch | None = None, device: str | torch.device = "cpu") -> Backbone:
    """Return the trained encoder of a run, in eval mode.

    Args:
        path: A checkpoint, or the folder of a run (its last.ckpt).
        branch: "target" (the moving average) or "online"; None is the target encoder, or the online one where there is
            no other.
        device: Where to put it.

    Raises:
        ConfigError: If the file cannot be read, is not of this package, or has no such branch.

    For the features (1, D) of an image::

        backbone = load_encoder("results/quickstart")
        features = backbone(backbone.transform()("cat.jpg")[None])
    """
    if branch is not None and branch not in get_args(Branch):
        raise invalid("branch", branch, f"must be {either(get_args(Branch))}.")
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}; pass a checkpoint, or the folder of a run.")
    file = find_checkpoint(path)
    return make_backbone(read_weights(file, branch), file, device)


def make_backbone(weights: Weights, path: Path, device: str | torch.device = "cpu") -> Backbone:
    """Return the backbone of stored weights.

    Args:
        weights: The encoder as it is stored.
        path: Where it is stored, for messages.
        device: Where to put it.

    Raises:
        ConfigError: If the weights do not fit their config, or are not finite.
    """
    config = from_plain(EncoderConfig, weights.encoder, "encoder")
    with without_pretrained(), _global_generator_kept():
        encoder = build_encoder(config)
    _load(encoder, weights, path)
    if config.in_chans in (1, 3):
        spec = image_spec(config.img_size, config.in_chans, weights.mean, weights.std)
        mean, std = spec.mean, spec.std
    else:  # of another loader than this package's: as its images are
        mean, std = (0.0,) * config.in_chans, (1.0,) * config.in_chans
    return Backbone(encoder, weights.branch, mean, std, weights.metadata).to(device).eval()


def _load(encoder: Encoder, weights: Weights, path: Path) -> None:
    """Load the weights, without the norms of inner blocks, which only levels and the pyramid read."""
    state = {name: x for name, x in weights.state.items() if not name.startswith("inner_norms.")}
    for name, x in state.items():
        if not isinstance(x, torch.Tensor):
            raise ConfigError(f"{path} is damaged: its weight '{name}' is not a tensor; use another file.")
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise ConfigError(f"{path} has weights that are not finite ({name}); use an earlier checkpoint.")
    own = encoder.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own or own[name].shape != state[name].shape:
            problem = "lacks" if name not in state else "has" if name not in own else "has another shape of"
            raise ConfigError(f"{path} is damaged: it {problem} the weight '{name}'; use another file.")
    encoder.load_state_dict(state)


@contextlib.contextmanager
def _global_generator_kept() -> Iterator[None]:
    """Undo the draws of the initial weights, which are overwritten."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
