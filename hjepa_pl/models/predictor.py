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
from hjepa_pl.models.config import PredictorConfig
from hjepa_pl.models.cross_attention import CrossBlock
from hjepa_pl.models.query_blocks import LastBlock, LastRotaryBlock
from hjepa_pl.models.rope import RotaryAttention, axial_rotations, rotations_at
from hjepa_pl.models.run_blocks import run_blocks


class CropContext(NamedTuple):
    """What other crops of the same images add to a prediction, each at its place on the view's grid."""

    tokens: Tensor
    """(B, n, D): seen beside the context."""
    seen: Places
    """Of the tokens."""
    asked: tuple[Places, ...]
    """Cells to predict beside the targets, (B, E) for each level; E may be 0."""


class Predictor(nn.Module):
    """Predict target cells of several levels from the context's tokens (I-JEPA, arXiv:2301.08243, section 3).

    One trunk serves all levels. A query is the mask token + its level's embedding, at the position of its cell's
    centre (a table that is added, or rotary angles); each level has a linear head of its own. Tokens and queries of
    other crops are told apart by a linear embedding of how their patches differ from the view's in size.
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
        """Make a predictor.

        Args:
            config: Width, depth, positions and attention.
            embed_dim: Width D of the encoder.
            grid: Rows and columns of patches.
            cells: Side of the cells of each token level, in patches.
            attention: Kernel of attention.
            crops: Whether other crops stand beside the context.
        """
        super().__init__()
        self.config, self.attention = config, attention
        width = config.embed_dim
        self.embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.level_embed = nn.Parameter(torch.zeros(len(cells), width))
        for name, cell in [("patch_places", 1), *((f"cell_places_{level}", cell) for level, cell in enumerate(cells))]:
            self.register_buffer(name, self._places(grid, cell), persistent=False)
        self.blocks = nn.ModuleList(self._block(last=i + 1 == config.depth) for i in range(config.depth))
        self.context_norm = nn.LayerNorm(width) if config.attention == "cross" else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, embed_dim) for _ in cells)
        self.crop_embed = nn.Linear(3, width) if crops else None
        self._init_weights()

    def _places(self, grid: tuple[int, int], cell: int) -> Tensor:
        """Return the positions of a grid's cells: a table (cells, P) to add, or rotations (cells, head_dim / 2, 2)."""
        config = self.config
        if config.position == "rope":
            theta = 100.0 if config.rope_theta is None else config.rope_theta
            return axial_rotations(grid, config.embed_dim // config.num_heads, theta, cell)
        return sincos_positions(grid, config.embed_dim, cell)

    def _block(self, last: bool) -> nn.Module:
        c = self.config
        if c.attention == "cross":
            return CrossBlock(c.embed_dim, c.num_heads, c.mlp_ratio, c.init_values)
        shape: dict[str, Any] = {"mlp_ratio": c.mlp_ratio, "init_values": c.init_values}
        if c.position == "sincos":
            return (LastBlock if last else Block)(c.embed_dim, c.num_heads, qkv_bias=True, **shape)
        kind = LastRotaryBlock if last else EvaBlock
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
        self, context: Tensor, index: Tensor, targets: tuple[Tensor, ...], beside: CropContext | None = None
    ) -> tuple[Tensor, ...]:
        """Predict every level's target cells.

        Args:
            context: (B, K, D) tokens of the visible patches.
            index: (B, K) their places on the grid.
            targets: One (B, T, M) tensor of cell indices per level.
            beside: What other crops add (joint targets only).

        Returns:
            One (B, T * M + E, D) tensor per level.
        """
        b, t = targets[0].shape[:2]
        x, place = self.embed(context), self.get_buffer("patch_places")[index]
        queries, places = zip(*[self._queries(level, cells) for level, cells in enumerate(targets)], strict=True)
        sizes = [cells.shape[2] for cells in targets]
        query, query_place = torch.cat(queries, dim=2), torch.cat(places, dim=2)  # (B, T, M of all levels, P)
        more: list[int] = []
        if self.config.targets == "separate":
            # One pass a block: blocks join the batch axis, each with a copy of the context.
            x, place = x.repeat_interleave(t, dim=0), place.repeat_interleave(t, dim=0)
            out = self._trunk(x, place, query.flatten(0, 1), query_place.flatten(0, 1))
        else:
            query, query_place = query.flatten(1, 2), query_place.flatten(1, 2)
            if beside is not None:
                x, place = self._join(x, place, self.embed(beside.tokens), beside.seen)
                for level, asked in enumerate(beside.asked):
                    token = (self.mask_token + self.level_embed[level]).expand(*asked.rows.shape, -1)
                    query, query_place = self._join(query, query_place, token, asked)
                    more.append(token.shape[1])
            out = self._trunk(x, place, query, query_place)
        count = t * sum(sizes) if more else out.shape[1]
        parts = out[:, :count].reshape(b, t, sum(sizes), -1).split(sizes, dim=2)
        joined = [part.flatten(1, 2) for part in parts]
        if more:
            joined = [torch.cat(pair, dim=1) for pair in zip(joined, out[:, count:].split(more, dim=1), strict=True)]
        return tuple(head(part) for head, part in zip(self.heads, joined, strict=True))

    def _join(self, x: Tensor, place: Tensor, other: Tensor, where: Places) -> tuple[Tensor, Tensor]:
        """Append tokens or queries of other crops, and their positions."""
        assert self.crop_embed is not None
        other = other + self.crop_embed(where.scale)
        return torch.cat([x, other.to(x.dtype)], dim=1), torch.cat([place, self._at(where)], dim=1)

    def _at(self, where: Places) -> Tensor:
        """Return the positions of places as `_places` has them for a grid, (B, n, ...)."""
        config = self.config
        if config.position == "rope":
            theta = 100.0 if config.rope_theta is None else config.rope_theta
            head_dim = config.embed_dim // config.num_heads
            return rotations_at(where.rows, where.columns, head_dim, theta)
        return sincos_at(where.rows, where.columns, config.embed_dim)

    def _queries(self, level: int, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, M, P) without their positions, and those."""
        query = (self.mask_token + self.level_embed[level]).expand(*cells.shape, -1)
        return query, self.get_buffer(f"cell_places_{level}")[cells]

    def _trunk(self, context: Tensor, place: Tensor, queries: Tensor, query_place: Tensor) -> Tensor:
        """Return the normed outputs (B, Q, P) at the queries."""
        turns = None
        if self.config.position == "rope":
            turns = (
                query_place.float()[:, :, None],
                place.float()[:, :, None],
            )  # (B, tokens, all heads, head_dim / 2, 2)
        else:
            context, queries = context + place, queries + query_place
        every = self.config.checkpoint_every if self.config.grad_checkpointing and self.training else 0
        if self.config.attention == "cross":
            extras: tuple = (self.context_norm(context), turns)
            x, _ = run_blocks(self.blocks, queries, [extras] * len(self.blocks), self.attention, every)
            return self.norm(x)
        # Queries and keys are turned together, so their rotations have an axis for the two.
        extras = () if turns is None else (torch.cat([turns[1], turns[0]], dim=1)[:, :, None],)
        x = torch.cat([context.float(), queries], dim=1)  # the residual stream stays in 32 bits
        of_blocks = [extras] * (len(self.blocks) - 1) + [(*extras, context.shape[1])]
        return self.norm(run_blocks(self.blocks, x, of_blocks, self.attention, every)[0])


class ContextFusion(nn.Module):
    """Fuse the context tokens of several depths into one input (V-JEPA 2.1: an MLP of the normed depths)."""

    def __init__(self, embed_dim: int, depths: int) -> None:
        super().__init__()
        self.mlp = Mlp(embed_dim * depths, embed_dim, embed_dim)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """Fuse normed tokens, each (B, K, D), into (B, K, D)."""
        return self.mlp(torch.cat(tokens, dim=-1))
