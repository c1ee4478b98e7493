"""RandAugment against torchvision, 3-Augment against DeiT III's description, and Random Erasing."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as T

from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS
from hjepa_pl.data.augment.rand_augment import OPERATIONS, SIGNED, apply_operation, rand_augment, three_augment
from hjepa_pl.data.augment.random_erasing import erase
from hjepa_pl.functional.counters import uniform

SPACE = v2.RandAugment._AUGMENTATION_SPACE


def numbers(position):
    """Return the uniform numbers of `erase`."""
    return uniform(11, position, 1), uniform(12, position, CROP_NUMBERS)


def images(n=4, height=32, width=32, channels=3):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def theirs(image, name, magnitude, sign):
    """torchvision's own operation at the same bin, on one image."""
    values, signed = SPACE[name]
    bins = values(31, *image.shape[1:])
    value = 0.0 if bins is None else float(bins[magnitude]) * (sign if signed else 1)
    transform = v2.RandAugment()
    return transform._apply_image_or_video_transform(image, name, value, InterpolationMode.NEAREST, {})


def test_the_operations_are_torchvisions():
    assert tuple(SPACE) == OPERATIONS
    assert {name for name, (_, signed) in SPACE.items() if signed} == SIGNED


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 40)])
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvisions_on_the_single_image(name, magnitude, shape):
    x = images(4, *shape[1:], shape[0])
    for sign in (1, -1):
        ours = apply_operation(x, name, magnitude, sign)
        expected = torch.stack([theirs(image, name, magnitude, sign) for image in x])
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(SIGNED))
def test_the_sign_turns_the_direction(name):
    x = images()
    ours, other = apply_operation(x, name, 9, 1), apply_operation(x, name, 9, -1)
    assert (ours - other).abs().amax((1, 2, 3)).min() > 0.05


def test_every_operation_and_sign_is_drawn_about_evenly():
    """Each image is compared with all 23 results that it may have: 2 x 9 signed operations and 5 unsigned."""
    n = 4600
    one = images(1, 8, 8)
    result = rand_augment(one.expand(n, -1, -1, -1), uniform(7, torch.arange(n), 2), 9, True)
    cells = [(name, sign) for name in OPERATIONS for sign in ((1, -1) if name in SIGNED else (1,))]
    wanted = torch.cat([apply_operation(one, name, 9, sign) for name, sign in cells])
    assert len(wanted.flatten(1).unique(dim=0)) == 23
    match = ((result[:, None] - wanted).abs().amax((2, 3, 4)) < 1e-6).float()
    assert (match.sum(1) == 1).all()
    for (name, _), share in zip(cells, match.mean(0).tolist(), strict=True):
        expected = 1 / 28 if name in SIGNED else 1 / 14
        assert abs(share - expected) < 4 * (expected / n) ** 0.5, name


def test_operations_follow_one_another_and_gray_has_no_color():
    x, position = images(64, 16, 16), torch.arange(64)
    u = uniform(7, position, 4)
    for has_color in (True, False):
        names = [n for n in OPERATIONS if has_color or n != "Color"]
        expected = []
        for image, row in zip(x, u.tolist(), strict=True):
            for turn in range(2):
                name, sign = names[int(row[turn] * len(names))], -1 if row[2 + turn] < 0.5 else 1
                image = theirs(image, name, 9, sign)
            expected.append(image)
        torch.testing.assert_close(rand_augment(x, u, 9, has_color), torch.stack(expected), atol=1e-5, rtol=0)


def test_three_augment_is_one_of_three_evenly():
    n = 4000
    one = images(1, 16, 16)
    for has_color in (True, False):
        result = three_augment(one.expand(n, -1, -1, -1), uniform(7, torch.arange(n), 2), has_color)
        gray = (result - T.rgb_to_grayscale(one, 3)).abs().amax((1, 2, 3)) < 1e-5
        bright = (result - T.solarize(one, 0.5)).abs().amax((1, 2, 3)) < 1e-5
        sigma = 0.1 + 1.9 * uniform(7, torch.arange(n), 2)[:, 1]
        blurred = ~gray & ~bright
        for i in torch.nonzero(blurred)[:50, 0].tolist():
            s = float(sigma[i])
            torch.testing.assert_close(result[i], T.gaussian_blur(one[0], [3, 3], [s, s]), atol=1e-4, rtol=0)
        share = 1 / 3 if has_color else 1 / 2
        assert abs(bright.float().mean() - share) < 0.03
        assert abs(blurred.float().mean() - share) < 0.03
        assert gray.any() == has_color


def test_number_area_and_aspect_ratio_of_erased_boxes():
    n, side = 4000, 32
    result = erase(torch.ones(n, 2, side, side), numbers(torch.arange(n)), 0.25, (0.02, 0.33), (0.3, 3.3))
    gone = result[:, 0] == 0
    assert torch.equal(gone, result[:, 1] == 0)
    assert ((result == 0) | (result == 1)).all()
    erased = gone[gone.any(2).any(1)]
    assert abs(len(erased) / n - 0.25) < 0.025
    height, width = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(erased.sum((1, 2)), height * width)  # one whole box
    area = (height * width) / side**2
    assert 0.01 < area.min() < 0.04
    assert 0.28 < area.max() < 0.36
    assert abs(area.mean() - 0.175) < 0.02
    ratio = (width / height).log()
    assert abs(ratio.mean()) < 0.1
    assert ratio.abs().max() < 1.6  # log 3.3, and rounding to pixels
    corner = erased.flatten(1).int().argmax(1)
    assert len(corner.unique()) > 200  # everywhere


def test_erasing_depends_on_the_position_alone():
    x, position = images(64), torch.arange(64)
    whole = erase(x, numbers(position), 0.5, (0.1, 0.3), (0.5, 2))
    halves = [erase(x[i : i + 32], numbers(position[i : i + 32]), 0.5, (0.1, 0.3), (0.5, 2)) for i in (0, 32)]
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(erase(x, numbers(position), 0.0, (0.1, 0.3), (0.5, 2)), x)
