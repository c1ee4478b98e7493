"""A last block that answers for some tokens equals timm's block at these tokens, by values and gradients, for less."""

import pytest
import torch
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch.utils.flop_counter import FlopCounterMode

from hjepa_pl.models.query_blocks import QueryBlock, RotaryQueryBlock
from hjepa_pl.models.rope import RotaryAttention, axial_rotations

SHAPE = {"mlp_ratio": 4.0, "init_values": 0.3}


def pair(kind: str, fused: bool):
    if kind == "plain":
        whole, last = Block(48, 4, qkv_bias=True, **SHAPE), QueryBlock(48, 4, qkv_bias=True, **SHAPE)
        extras = ()
    else:
        made = [k(48, 4, attn_type="rope", num_prefix_tokens=0, **SHAPE) for k in (EvaBlock, RotaryQueryBlock)]
        for block in made:
            block.attn = RotaryAttention(block.attn)
        whole, last = made
        extras = (axial_rotations((3, 4), 12, 100.0)[None, :, None, None],)
    last.load_state_dict(whole.state_dict())
    whole.attn.fused_attn = last.attn.fused_attn = fused
    return whole, last, extras


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["plain", "rotary"])
def test_it_equals_timms_block_at_the_tokens_asked_for(kind, fused) -> None:
    whole, last, extras = pair(kind, fused)
    x = torch.randn(2, 12, 48, requires_grad=True)
    weight = torch.randn(2, 7, 48)
    expected, found = whole(x, *extras)[:, 5:], last(x, *extras, 5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *whole.parameters()])
    gradients = torch.autograd.grad((found * weight).sum(), [x, *last.parameters()])
    for have, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-5)


def test_it_costs_less_by_what_the_other_tokens_would() -> None:
    whole, last, _ = pair("plain", fused=False)
    x, flops = torch.randn(2, 12, 48), []
    for run in (lambda: whole(x), lambda: last(x, 5)):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    # Of five tokens: the query, the projection and both layers of the MLP (1 + 1 + 4 + 4 products of width 48), and
    # their rows of both attention products.
    assert flops[0] - flops[1] == 2 * (2 * 5 * 10 * 48**2 + 2 * 2 * 5 * 12 * 48)
