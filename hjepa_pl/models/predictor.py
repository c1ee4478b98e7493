"""The predictor: a narrow ViT from visible tokens to the target cells of every level."""

from typing import Any, NamedTuple

import torch
from timm.layers import Mlp
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hjepa_pl.functional.boxes import Places
from hjepa_pl.functional.tokens import sincos_at, sincos_positions
from hjepa_pl.models.attention import AttentionKind
from hjepa_pl.models.blocks import run_blocks
from hjepa_pl.models.config import PredictorConfig
from hjepa_pl.models.cross_attention import CrossBlock
from hjepa_pl.models.query_blocks import QueryBlock, RotaryQueryBlock
from hjepa_pl.models.rope import RotaryAttention, axial_rotations, rotations_at


class CropContext(NamedTuple):
    """Tokens and queries of local crops, at their positions on the view's grid."""

    tokens: Tensor
    """(B, n, D): additional context."""
    positions: Places
    """Positions of the tokens."""
    queries: tuple[Places, ...]
    """Positions of the additional cells to predict, (B, E) for each level; E may be 0."""


class Predictor(nn.Module):
    """Predict target cells of several levels from the context tokens (I-JEPA, arXiv:2301.08243, section 3).

    One trunk serves all levels. A query is the mask token plus its level's embedding, at the position of its cell's
    center (added table or rotary angles); each level has a linear head. Tokens and queries of local crops also get a
    linear embedding of their patch size relative to the view's.

    Args:
        config: Width, depth, positions and attention.
        embed_dim: Width D of the encoder.
        grid: Rows and columns of patches.
        cells: Height and width of the cells of each token level, in patches.
        attention: Attention kernel.
        crops: Make the embedding of local crops.

    Example:
        >>> predictor = Predictor(PredictorConfig(depth=2), embed_dim=384, grid=(8, 8), cells=(1, 2))
        >>> visible = torch.arange(20).expand(4, -1)
        >>> hidden = torch.arange(32, 48).expand(4, 1, -1), torch.arange(8, 12).expand(4, 1, -1)
        >>> patches, cells = predictor(torch.randn(4, 20, 384), visible, hidden)
        >>> patches.shape, cells.shape
        (torch.Size([4, 16, 384]), torch.Size([4, 4, 384]))
    """

    def __init__(
        self,
        config: PredictorConfig,
        embed_dim: int,
        grid: tuple[int, int],
        cells: tuple[int, ...],
        attention: AttentionKind = "auto",
        crops: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.attention = config, attention
        width = config.embed_dim
        self.embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.level_embed = nn.Parameter(torch.zeros(len(cells), width))
        self.register_buffer("patch_positions", self._grid_positions(grid, 1), persistent=False)
        for level, cell in enumerate(cells):
            self.register_buffer(f"cell_positions_{level}", self._grid_positions(grid, cell), persistent=False)
        self.blocks = nn.ModuleList(self._block(last=i + 1 == config.depth) for i in range(config.depth))
        self.context_norm = nn.LayerNorm(width) if config.attention == "cross" else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, embed_dim) for _ in cells)
        self.crop_embed = nn.Linear(3, width) if crops else None
        self._init_weights()

    @property
    def _theta(self) -> float:
        return 100.0 if self.config.rope_theta is None else self.config.rope_theta

    def _grid_positions(self, grid: tuple[int, int], cell: int) -> Tensor:
        """Return the positions of a grid's cells: a table (cells, P) to add, or rotations (cells, head_dim / 2, 2)."""
        config = self.config
        if config.position == "rope":
            return axial_rotations(grid, config.embed_dim // config.num_heads, self._theta, cell)
        return sincos_positions(grid, config.embed_dim, cell)

    def _block(self, *, last: bool) -> nn.Module:
        c = self.config
        if c.attention == "cross":
            return CrossBlock(c.embed_dim, c.num_heads, c.mlp_ratio, c.init_values)
        shape: dict[str, Any] = {"mlp_ratio": c.mlp_ratio, "init_values": c.init_values}
        if c.position == "sincos":
            return (QueryBlock if last else Block)(c.embed_dim, c.num_heads, qkv_bias=True, **shape)
        kind = RotaryQueryBlock if last else EvaBlock
        block: Any = kind(c.embed_dim, c.num_heads, attn_type="rope", num_prefix_tokens=0, **shape)
        block.attn = RotaryAttention(block.attn)
        return block

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.level_embed, std=0.02)

    def forward(
        self, context: Tensor, index: Tensor, targets: tuple[Tensor, ...], crops: CropContext | None = None
    ) -> tuple[Tensor, ...]:
        """Predict every level's target cells.

        Args:
            context: (B, K, D) tokens of the visible patches.
            index: (B, K) int64 indices of these patches on the grid.
            targets: (B, T, M) int64 indices of the target cells on each level's own grid.
            crops: Tokens and queries of local crops (joint targets only).

        Returns:
            One (B, T * M + E, D) tensor per level: the target cells, then the queries of the crops.
        """
        b, t = targets[0].shape[:2]
        x, position = self.embed(context), self.get_buffer("patch_positions")[index]
        queries, positions = zip(*[self._queries(level, cells) for level, cells in enumerate(targets)], strict=True)
        sizes = [cells.shape[2] for cells in targets]
        query, query_position = torch.cat(queries, dim=2), torch.cat(positions, dim=2)  # (B, T, M of all levels, P)
        crop_sizes: list[int] = []
        if self.config.targets == "separate":
            # One pass per block: blocks become part of the batch, each with a copy of the context.
            x, position = x.repeat_interleave(t, dim=0), position.repeat_interleave(t, dim=0)
            out = self._trunk(x, position, query.flatten(0, 1), query_position.flatten(0, 1))
        else:
            query, query_position = query.flatten(1, 2), query_position.flatten(1, 2)
            if crops is not None:
                x, position = self._append(x, position, self.embed(crops.tokens), crops.positions)
                for level, cells in enumerate(crops.queries):
                    token = (self.mask_token + self.level_embed[level]).expand(*cells.rows.shape, -1)
                    query, query_position = self._append(query, query_position, token, cells)
                    crop_sizes.append(token.shape[1])
            out = self._trunk(x, position, query, query_position)
        count = t * sum(sizes) if crop_sizes else out.shape[1]
        parts = out[:, :count].reshape(b, t, sum(sizes), -1).split(sizes, dim=2)
        levels = [part.flatten(1, 2) for part in parts]
        if crop_sizes:
            of_crops = out[:, count:].split(crop_sizes, dim=1)
            levels = [torch.cat(pair, dim=1) for pair in zip(levels, of_crops, strict=True)]
        return tuple(head(level) for head, level in zip(self.heads, levels, strict=True))

    def _append(self, x: Tensor, position: Tensor, other: Tensor, where: Places) -> tuple[Tensor, Tensor]:
        """Append tokens or queries of local crops, and their positions."""
        assert self.crop_embed is not None
        other = other + self.crop_embed(where.scale)
        return torch.cat([x, other.to(x.dtype)], dim=1), torch.cat([position, self._positions_at(where)], dim=1)

    def _positions_at(self, where: Places) -> Tensor:
        """Return positions off the grid, (B, n, ...), in the form of `_grid_positions`."""
        config = self.config
        if config.position == "rope":
            return rotations_at(where.rows, where.columns, config.embed_dim // config.num_heads, self._theta)
        return sincos_at(where.rows, where.columns, config.embed_dim)

    def _queries(self, level: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, M, P) without their positions, and these positions."""
        query = (self.mask_token + self.level_embed[level]).expand(*cells.shape, -1)
        return query, self.get_buffer(f"cell_positions_{level}")[cells]

    def _trunk(self, context: Tensor, position: Tensor, queries: Tensor, query_position: Tensor) -> Tensor:
        """Return the normed outputs (B, Q, P) at the queries."""
        rotations = None
        if self.config.position == "rope":  # each (B, tokens, all heads, head_dim / 2, 2)
            rotations = query_position.float()[:, :, None], position.float()[:, :, None]
        else:
            context, queries = context + position, queries + query_position
        every = self.config.checkpoint_every if self.config.grad_checkpointing and self.training else 0
        if self.config.attention == "cross":
            extras: tuple[Any, ...] = (self.context_norm(context), rotations)
            x, _ = run_blocks(self.blocks, queries, [extras] * len(self.blocks), self.attention, every)
            return self.norm(x)
        x = torch.cat([context.float(), queries], dim=1)  # the residual stream stays in 32 bits
        # One rotation for queries and keys, which have an axis of their own.
        extras = () if rotations is None else (torch.cat(rotations[::-1], dim=1)[:, :, None],)
        of_blocks = [extras] * (len(self.blocks) - 1) + [(*extras, context.shape[1])]  # the last returns the queries
        return self.norm(run_blocks(self.blocks, x, of_blocks, self.attention, every)[0])


class ContextFusion(nn.Module):
    """Fuse the context tokens of several depths into one input (V-JEPA 2.1: an MLP of the normed depths)."""

    def __init__(self, embed_dim: int, depths: int) -> None:
        super().__init__()
        self.mlp = Mlp(embed_dim * depths, embed_dim, embed_dim)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """Fuse normed tokens, each (B, K, D), into (B, K, D)."""
        return self.mlp(torch.cat(tokens, dim=-1))
