"""The fast step against a slow and obvious one: image by image, token by token, in plain formulas and 32 bits."""

import math

import pytest
import torch
from torch import Tensor, nn

from hjepa_pl import HJEPALightningModule
from tests.conftest import TINY, make_batch

SIDE, PATCH = 8, 2
"""Of the grid, in patches, and of a patch, in pixels."""
PREDICTOR = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    middle = x - x.mean()
    return middle / (middle.pow(2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return layer.weight @ x + layer.bias


def attend(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """One query (D) over lists of keys and values (D), head by head."""
    width, found = len(query) // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = [query[part] @ key[part] / math.sqrt(width) for key in keys]
        weights = torch.stack(logits).exp()
        weights = weights / weights.sum()
        found.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
    return torch.cat(found)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def mlp(x: Tensor, block: nn.Module) -> Tensor:
    return x + linear(gelu(linear(norm(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)


def self_block(tokens: list[Tensor], block: nn.Module, heads: int) -> list[Tensor]:
    """Pre-norm self-attention and MLP (ViT, arXiv:2010.11929, equations 2 and 3)."""
    triples = [linear(norm(x, block.norm1), block.attn.qkv).chunk(3) for x in tokens]
    keys, values = [t[1] for t in triples], [t[2] for t in triples]
    seen = [linear(attend(t[0], keys, values, heads), block.attn.proj) for t in triples]
    return [mlp(x + more, block) for x, more in zip(tokens, seen, strict=True)]


def cross_block(queries: list[Tensor], context: list[Tensor], block: nn.Module, heads: int) -> list[Tensor]:
    pairs = [linear(x, block.attn.key_value).chunk(2) for x in context]
    keys, values = [p[0] for p in pairs], [p[1] for p in pairs]
    asked = [linear(norm(x, block.norm1), block.attn.query) for x in queries]
    seen = [linear(attend(q, keys, values, heads), block.attn.proj) for q in asked]
    return [mlp(x + more, block) for x, more in zip(queries, seen, strict=True)]


def encode(image: Tensor, places: list[int], encoder: nn.Module) -> list[Tensor]:
    vit, tokens = encoder.vit, []
    for place in places:
        y, x = place // SIDE * PATCH, place % SIDE * PATCH
        pixels = image[:, y : y + PATCH, x : x + PATCH].flatten()
        tokens.append(vit.patch_embed.proj.weight.flatten(1) @ pixels + vit.patch_embed.proj.bias)
    tokens = [x + vit.pos_embed[0, place] for x, place in zip(tokens, places, strict=True)]
    for block in vit.blocks:
        tokens = self_block(tokens, block, TINY["num_heads"])
    return [norm(x, vit.norm) for x in tokens]


def position(row: float, column: float, dim: int) -> Tensor:
    """Sines and cosines of the column, then of the row (MAE, arXiv:2111.06377, and its code)."""
    values = []
    for at in (column, row):
        angles = [at / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values)


def predict(
    context: list[Tensor], places: list[int], cells: list[list[int]], predictor: nn.Module
) -> list[list[Tensor]]:
    """Return what the predictor makes of each level's cells (I-JEPA, arXiv:2301.08243, section 3)."""
    width, heads = PREDICTOR["embed_dim"], PREDICTOR["num_heads"]
    seen = [
        linear(x, predictor.embed) + position(place // SIDE, place % SIDE, width)
        for x, place in zip(context, places, strict=True)
    ]
    queries = []
    for level, wanted in enumerate(cells):
        cell = level + 1
        for number in wanted:
            row, column = number // (SIDE // cell) * cell, number % (SIDE // cell) * cell
            centre = position(row + (cell - 1) / 2, column + (cell - 1) / 2, width)
            queries.append(predictor.mask_token[0, 0] + predictor.level_embed[level] + centre)
    if predictor.config.attention == "cross":
        seen = [norm(x, predictor.context_norm) for x in seen]
        for block in predictor.blocks:
            queries = cross_block(queries, seen, block, heads)
    else:
        for block in predictor.blocks:
            tokens = self_block(seen + queries, block, heads)
            seen, queries = tokens[: len(seen)], tokens[len(seen) :]
    found, start = [], 0
    for level, wanted in enumerate(cells):
        part = queries[start : start + len(wanted)]
        found.append([linear(norm(x, predictor.norm), predictor.heads[level]) for x in part])
        start += len(wanted)
    return found


def smooth_l1(x: Tensor, y: Tensor) -> Tensor:
    off = (x - y).abs()
    return torch.where(off < 1, 0.5 * off**2, off - 0.5).mean()


def slow_loss(module: HJEPALightningModule, batch) -> Tensor:
    """The weighted loss of cells 1 and 2, raw."""
    masks, total = module.masks(batch.counters), 0.0
    for i, image in enumerate(batch.views[0]):
        with torch.no_grad():
            whole = encode(image, list(range(SIDE * SIDE)), module.target_encoder)
        places = masks.context[i].tolist()
        cells = [level[i].flatten().tolist() for level in masks.targets]
        predicted = predict(encode(image, places, module.context_encoder), places, cells, module.predictor)
        for level, (config, wanted) in enumerate(zip(module.token_levels, cells, strict=True)):
            cell, side = level + 1, SIDE // (level + 1)
            for said, number in zip(predicted[level], wanted, strict=True):
                row, column = number // side * cell, number % side * cell
                patches = [whole[(row + y) * SIDE + column + x] for y in range(cell) for x in range(cell)]
                target = torch.stack(patches).mean(0)
                target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
                total = total + config.weight * smooth_l1(said, target) / len(wanted) / len(batch.views[0])
    return total


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_loss_and_gradients_are_those_of_the_slow_formulas(attention) -> None:
    module = HJEPALightningModule(
        encoder={**TINY, "depth": 2},
        levels=[{"cell": 1, "weight": 0.7}, {"cell": 2, "weight": 0.4}],
        predictor={**PREDICTOR, "attention": attention},
        level_scale="raw",
    )
    with torch.no_grad():  # a target of its own, and layers that are not at their first values
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = make_batch(images=2, views=1)
    learnt = {n: p for n, p in module.named_parameters() if p.requires_grad}
    fast, _ = module.compute(batch)
    slow = slow_loss(module, batch)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    wanted = torch.autograd.grad(slow, list(learnt.values()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = module.compute(batch)
    found = {
        "32": torch.autograd.grad(fast, list(learnt.values())),
        "bf16": torch.autograd.grad(half, list(learnt.values())),
    }
    for name, exact, rough, want in zip(learnt, found["32"], found["bf16"], wanted, strict=True):
        torch.testing.assert_close(exact, want, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        # bf16 keeps eight bits: sums over many tokens come out within a hundredth of the gradient's length.
        assert (rough - want).norm() < 0.03 * want.norm(), name
    assert min(float(w.norm()) for w in wanted) > 0
