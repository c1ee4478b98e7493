"""The projector of the image level."""

from torch import Tensor, nn
from torchvision.ops import MLP

from hjepa_pl.models.config import ProjectorConfig


class Projector(nn.Module):
    """MLP from the pooled embedding (B, D) to the projection (B, out_dim), by default LeJEPA's: with batch norm."""

    def __init__(self, config: ProjectorConfig, embed_dim: int) -> None:
        super().__init__()
        widths = [config.hidden_dim] * config.hidden_layers + [config.out_dim]
        norm = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": None}[config.norm]
        self.mlp = MLP(embed_dim, widths, norm_layer=norm)

    def forward(self, pooled: Tensor) -> Tensor:
        """Project (B, D) to (B, out_dim)."""
        return self.mlp(pooled)
