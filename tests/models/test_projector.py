import pytest
import torch
from torch import nn
from torchvision.ops import MLP

from hjepa_pl.models.config import ProjectorConfig
from hjepa_pl.models.projector import Projector
from hjepa_pl.types import ConfigError


def make(**settings) -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(**({"hidden_dim": 8, "out_dim": 4} | settings)), 6)


def test_the_default_projector_is_torchvisions_with_batch_norm() -> None:
    projector = make()
    torch.manual_seed(0)
    plain = MLP(6, [8, 8, 4], norm_layer=nn.BatchNorm1d)
    assert projector.mlp.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(5, 6)
    assert torch.equal(projector(x), plain(x))


@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("layer", False), ("none", False)])
def test_only_batch_norm_makes_a_projection_depend_on_other_images(norm, depends) -> None:
    projector, x = make(norm=norm).train(), torch.randn(5, 6)
    alone = projector(torch.cat([x[:1], torch.randn(4, 6)]))[:1]
    assert torch.allclose(alone, projector(x)[:1], atol=1e-6) is not depends
    kinds = [type(m) for m in projector.mlp if isinstance(m, nn.BatchNorm1d | nn.LayerNorm)]
    assert kinds == {"batch": [nn.BatchNorm1d] * 2, "layer": [nn.LayerNorm] * 2, "none": []}[norm]


def test_no_hidden_layer_is_a_linear_map() -> None:
    projector = make(hidden_dim=2048, hidden_layers=0)
    a, b, zero = torch.randn(5, 6), torch.randn(5, 6), torch.zeros(5, 6)
    torch.testing.assert_close(projector(a + b) + projector(zero), projector(a) + projector(b))
    assert projector(a).shape == (5, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "group"}, "projector.norm=group`: must be batch, layer or none."),
        ({"hidden_layers": -1}, "projector.hidden_layers=-1`: must be a whole number >= 0."),
        ({"hidden_layers": 0, "norm": "layer"}, "projector.norm=layer`: has no effect with projector.hidden_layers=0"),
        (
            {"hidden_layers": 0, "hidden_dim": 8},
            "projector.hidden_dim=8`: has no effect with projector.hidden_layers=0",
        ),
        ({"out_dim": 0}, "projector.out_dim=0`: must be a whole number >= 1."),
    ],
)
def test_bad_projectors_are_rejected(settings, message) -> None:
    with pytest.raises(ConfigError, match=f"invalid `{message}"):
        ProjectorConfig(**settings)
