"""Mixup and CutMix: partners and ratios, the same on every rank."""

import pytest
import torch

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.mixup import draw_mix, mix_views

MIXUP, CUTMIX = AugmentationConfig(mixup=0.8), AugmentationConfig(cutmix=1.0)
BOTH = AugmentationConfig(mixup=0.8, cutmix=1.0)


def views(n=8):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(n, 3, *size, generator=generator) for size in ((16, 16), (16, 16), (8, 8), (6, 10)))


LABEL = torch.tensor([3, 1, 4, 1, 5, 9, -1, 6])


@pytest.mark.parametrize("step", range(4))
def test_mixup_blends_each_view_with_the_partners_by_one_ratio(step):
    x = views()
    mixed, mix = mix_views(x, LABEL, MIXUP, 5, step)
    share = draw_mix(MIXUP, 5, step)[0]
    for before, after in zip(x, mixed, strict=True):
        for i in range(8):
            torch.testing.assert_close(after[i], share * before[i] + (1 - share) * before[i ^ 1])
    assert mix.label.tolist() == [1, 3, 1, 4, 9, 5, 6, -1]
    torch.testing.assert_close(mix.share, torch.full((8,), share))
    assert mix.share.dtype == torch.float32


@pytest.mark.parametrize("step", range(8))
def test_cutmix_pastes_one_box_of_the_partner_and_counts_its_pixels(step):
    x = views()
    mixed, mix = mix_views(x, LABEL, CUTMIX, 5, step)
    drawn, box = draw_mix(CUTMIX, 5, step)
    for number, (before, after) in enumerate(zip(x, mixed, strict=True)):
        partner = before.view(-1, 2, *before.shape[1:]).flip(1).flatten(0, 1)
        pasted = (after == partner)[:, 0]
        assert ((after == before) | (after == partner)).all()
        assert (pasted == pasted[0]).all()  # one box for the batch
        rows, columns = torch.nonzero(pasted[0].any(1))[:, 0], torch.nonzero(pasted[0].any(0))[:, 0]
        assert int(pasted[0].sum()) == len(rows) * len(columns)
        if number == 0:
            torch.testing.assert_close(mix.share, torch.full((8,), 1 - float(pasted[0].float().mean())))
        if len(rows) and len(columns):  # the same box as a share of the sides, to the pixel
            height, width = before.shape[2:]
            for share, edge, side in zip(
                box, (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), (height, width) * 2, strict=True
            ):
                assert abs(share * side - edge) <= 0.5
    assert 1 - mix.share[0] <= 1 - drawn + 0.1  # what lies outside is cut off
    assert mix.label.tolist() == [1, 3, 1, 4, 9, 5, 6, -1]


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH])
def test_halves_of_a_batch_are_mixed_as_the_whole(config):
    """Two processes give the result of one."""
    for step in range(6):
        whole, mix = mix_views(views(), LABEL, config, 5, step)
        halves = [mix_views([v[i : i + 4] for v in views()], LABEL[i : i + 4], config, 5, step) for i in (0, 4)]
        for number, view in enumerate(whole):
            assert torch.equal(view, torch.cat([h[0][number] for h in halves]))
        assert torch.equal(mix.label, torch.cat([h[1].label for h in halves]))
        assert torch.equal(mix.share, torch.cat([h[1].share for h in halves]))


def test_the_ratio_is_beta_distributed_and_the_coin_is_fair():
    drawn = [draw_mix(BOTH, 5, step) for step in range(4000)]
    cut = torch.tensor([box is not None for _, box in drawn])
    share = torch.tensor([s for s, _ in drawn])
    assert abs(cut.float().mean() - 0.5) < 0.03
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)): 1/12 at 1, .0962 at .8.
    for chosen, variance in ((share[cut], 1 / 12), (share[~cut], 1 / 10.4)):
        assert abs(chosen.mean() - 0.5) < 0.03
        assert abs(chosen.var() - variance) < 0.006
    assert draw_mix(BOTH, 5, 3) == drawn[3]
    assert draw_mix(BOTH, 6, 3) != drawn[3]


def test_the_global_generators_are_left_alone():
    import random

    torch.manual_seed(0)
    random.seed(0)
    before = torch.random.get_rng_state(), random.getstate()
    mix_views(views(), LABEL, BOTH, 5, 1)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
