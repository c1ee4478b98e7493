"""The projector of the image level."""

from torch import Tensor, nn
from torchvision.ops import MLP

from hjepa_pl.models.config import ProjectorConfig


class Projector(nn.Module):
    """MLP from the pooled embedding to the projection, by default as in LeJEPA (arXiv:2511.08544), with batch norm.

    Args:
        config: Widths and norm.
        embed_dim: Width D of the pooled embedding.

    Example:
        >>> import torch
        >>> projector = Projector(ProjectorConfig(hidden_dim=256, out_dim=32), embed_dim=192)
        >>> projector(torch.randn(8, 192)).shape
        torch.Size([8, 32])
    """

    def __init__(self, config: ProjectorConfig, embed_dim: int) -> None:
        super().__init__()
        widths = [config.hidden_dim] * config.hidden_layers + [config.out_dim]
        norm = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": None}[config.norm]
        self.mlp = MLP(embed_dim, widths, norm_layer=norm)

    def forward(self, pooled: Tensor) -> Tensor:
        """Project (B, D) to (B, out_dim)."""
        return self.mlp(pooled)
