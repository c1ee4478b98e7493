"""The networks of an evaluation: the encoder that is judged, and its baselines."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import load_state_dict

from hjepa_pl.backbones import load_encoder
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.tools.evaluate.config import EvalConfig
from hjepa_pl.tools.evaluate.networks import UNTRAINED, Network, OwnEncoder, Pixels, TimmModel
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import invalid


def open_networks(config: EvalConfig) -> list[Network]:
    """Return the network that is judged, then the same one untrained, raw pixels, and `config.baseline`.

    Raises:
        ConfigError: If a file cannot be read, or a model does not exist.
    """
    if config.ckpt is not None:
        networks: list[Network] = [*_own(config)]
    else:
        assert config.timm is not None
        networks = [_timm("eval.timm", config.timm, config.weights), _untrained_timm(config.timm, config.seed)]
    spec = networks[0].spec
    networks.append(Pixels(spec))
    if config.baseline is not None:
        networks.append(_timm("eval.baseline", config.baseline, config.weights, spec))
    return networks


def _own(config: EvalConfig) -> tuple[OwnEncoder, OwnEncoder]:
    """Return the encoder of a checkpoint, and the one that its run started from but for `encoder.pretrained`."""
    backbone = load_encoder(str(config.ckpt), config.branch)
    spec = ImageSpec(backbone.img_size, backbone.in_chans, tuple(backbone.mean), tuple(backbone.std))
    seed = int(backbone.metadata.get("hyper_parameters", {}).get("seed") or 0)
    depth, architecture = backbone.encoder.depth, backbone.config
    state = {k: v for k, v in backbone.encoder.state_dict().items() if not k.startswith("inner_norms.")}
    trained = OwnEncoder(f"trained ({backbone.branch})", spec, architecture, state, depth, seed, backbone.metadata)
    return trained, OwnEncoder(UNTRAINED, spec, architecture, None, depth, seed)


def _timm(key: str, name: str, weights: str | None, like: ImageSpec | None = None) -> TimmModel:
    """Return a timm model with weights, from a file or downloaded."""
    model: Any = _create(key, name, pretrained=weights is None)
    if weights is not None:
        state = _read_weights(weights)
        missing, unexpected = model.load_state_dict(state, strict=False)
        unexpected = [k for k in unexpected if not k.startswith(("head.", "fc.", "classifier.", "head_dist."))]
        if missing or unexpected:
            which = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which the model has not"
            raise invalid("eval.weights", weights, f"does not fit timm's {name}: it {which}.")
    return TimmModel(name, _spec_of(model, like), model)


def _untrained_timm(name: str, seed: int) -> TimmModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create("eval.timm", name, pretrained=False)
    return TimmModel(UNTRAINED, _spec_of(model, None), model)


def _create(key: str, name: str, *, pretrained: bool) -> Any:
    """Make a timm model without classifier."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise invalid(key, name, f"is not a timm model{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # of the hub, a proxy or the disk, or no such weights
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise invalid(key, name, f"its weights cannot be downloaded ({reason}); give a file with --weights.") from None


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise invalid("eval.weights", path, "there is no such file.")
    try:
        return load_state_dict(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise invalid("eval.weights", path, f"cannot be read ({reason}); use the state dict of a timm model.") from None


def _spec_of(model: Any, like: ImageSpec | None) -> ImageSpec:
    """Return the images that a timm model takes, by its own statistics."""
    found = resolve_model_data_config(model)
    channels, height, width = found["input_size"]
    if like is not None and like.channels != channels:
        raise ConfigError(
            f"invalid `eval.baseline`: it takes images of {channels} channels, the encoder of {like.channels}; use a "
            "model with as many."
        )
    return ImageSpec((height, width), channels, tuple(found["mean"]), tuple(found["std"]))
