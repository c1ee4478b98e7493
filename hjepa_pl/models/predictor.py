"""The predictor: a narrow ViT from visible tokens to the target cells of every level."""

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hjepa_pl.functional.tokens import sincos_positions
from hjepa_pl.models.attention import attend, fused_pays, use_fused
from hjepa_pl.models.settings import PredictorConfig


class CrossBlock(nn.Module):
    """Pre-norm transformer block whose queries attend to a fixed context and not to one another."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Update queries (B, Q, P) from a context (B, K, P)."""
        b, n, d = x.shape
        q = self.query(self.norm1(x)).reshape(b, n, self.num_heads, -1).transpose(1, 2)
        k, v = self.key_value(context).reshape(b, context.shape[1], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Predictor(nn.Module):
    """Predict target cells of several levels from the context's tokens (I-JEPA, arXiv:2301.08243, section 3).

    One trunk serves all levels. A query is the mask token + the position of its cell's centre + its level's embedding;
    each level has a linear head of its own.
    """

    def __init__(self, config: PredictorConfig, embed_dim: int, grid: tuple[int, int], cells: tuple[int, ...]) -> None:
        """Make a predictor.

        Args:
            config: Width, depth and attention.
            embed_dim: Width D of the encoder.
            grid: Rows and columns of patches.
            cells: Side of the cells of each token level, in patches.
        """
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.level_embed = nn.Parameter(torch.zeros(len(cells), width))
        self.patch_positions: Tensor
        self.register_buffer("patch_positions", sincos_positions(grid, width), persistent=False)
        for level, cell in enumerate(cells):
            self.register_buffer(f"cell_positions_{level}", sincos_positions(grid, width, cell), persistent=False)
        make = CrossBlock if config.attention == "cross" else self._self_block
        self.blocks = nn.ModuleList(make(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.context_norm = nn.LayerNorm(width) if config.attention == "cross" else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, embed_dim) for _ in cells)
        self._init_weights()

    @staticmethod
    def _self_block(width: int, num_heads: int, mlp_ratio: float) -> nn.Module:
        return Block(width, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.level_embed, std=0.02)

    def forward(self, context: Tensor, index: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Predict every level's target cells.

        Args:
            context: (B, K, D) tokens of the visible patches.
            index: (B, K) their places on the grid.
            targets: One (B, T, M) tensor of cell indices per level.

        Returns:
            One (B, T * M, D) tensor per level.
        """
        b, t = targets[0].shape[:2]
        x = self.embed(context) + self.patch_positions[index]
        queries = [self._queries(level, cells) for level, cells in enumerate(targets)]  # (B, T, M, P)
        sizes = [q.shape[2] for q in queries]
        if self.config.targets == "separate":
            # One pass a block: blocks join the batch axis, each with a copy of the context.
            x = x.repeat_interleave(t, dim=0)
            out = self._trunk(x, torch.cat([q.flatten(0, 1) for q in queries], dim=1))
            out = out.reshape(b, t, sum(sizes), -1)
        else:
            out = self._trunk(x, torch.cat(queries, dim=2).flatten(1, 2)).reshape(b, t, sum(sizes), -1)
        parts = out.split(sizes, dim=2)
        return tuple(head(part.flatten(1, 2)) for head, part in zip(self.heads, parts, strict=True))

    def _queries(self, level: int, cells: Tensor) -> Tensor:
        return self.mask_token + self.level_embed[level] + self.get_buffer(f"cell_positions_{level}")[cells]

    def _trunk(self, context: Tensor, queries: Tensor) -> Tensor:
        """Return the normed outputs (B, Q, P) at the queries."""
        if self.config.attention == "cross":
            context, x = self.context_norm(context), queries
            for block in self.blocks:
                x = self._run(block, x, context)
            return self.norm(x)
        use_fused(self.blocks, fused_pays(context.device))
        x = torch.cat([context, queries.to(context.dtype)], dim=1)
        for block in self.blocks:
            x = self._run(block, x)
        return self.norm(x[:, context.shape[1] :])

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        if self.config.grad_checkpointing and self.training:
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


class ContextFusion(nn.Module):
    """Fuse the context tokens of several depths into one input (V-JEPA 2.1: an MLP of the normed depths)."""

    def __init__(self, embed_dim: int, depths: int) -> None:
        super().__init__()
        self.mlp = Mlp(embed_dim * depths, embed_dim, embed_dim)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """Fuse normed tokens, each (B, K, D), into (B, K, D)."""
        return self.mlp(torch.cat(tokens, dim=-1))
