import pytest
import torch
from torchvision.transforms.v2 import functional as T

from hjepa_pl.data import AugmentationConfig
from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.affine import rotate_and_translate
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS, crop_boxes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images(n=8, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def plain(**kwargs):
    off = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "jitter_prob": 0, "gray": 0, "solarize": 0}
    return AugmentationConfig(**(off | kwargs))


def make(config, size=32):
    return Augmenter(config, size, (0.0,) * 3, (1.0,) * 3, seed=5)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_color_equals_torchvision(name):
    x = images()
    strength = torch.linspace(-0.5, 0.5, 8) if name == "hue" else torch.linspace(0.2, 1.8, 8)
    ours = getattr(color, f"adjust_{name}")(x, strength)
    theirs = torch.stack([getattr(T, f"adjust_{name}")(i, s) for i, s in zip(x, strength.tolist(), strict=True)])
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    raw = (x * 255).to(torch.uint8)
    bytes_ = torch.stack([getattr(T, f"adjust_{name}")(i, s) for i, s in zip(raw, strength.tolist(), strict=True)])
    ours = getattr(color, f"adjust_{name}")(raw.float() / 255, strength) * 255
    assert (ours - bytes_.float()).abs().max() <= 2


def test_hue_leaves_gray_pixels_and_a_full_turn_alone():
    gray = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    torch.testing.assert_close(color.adjust_hue(gray, torch.full((4,), 0.3)), gray)
    x = images(4)
    torch.testing.assert_close(color.adjust_hue(x, torch.ones(4)), x, atol=1e-5, rtol=0)


def test_gray_and_solarize_equal_torchvision():
    x = images()
    torch.testing.assert_close(color.to_gray(x), T.rgb_to_grayscale(x), atol=1e-5, rtol=0)
    chosen = torch.arange(8) % 2 == 0
    expected = torch.where(chosen[:, None, None, None], T.solarize(x, 0.5), x)
    torch.testing.assert_close(color.solarize(x, chosen), expected)


@pytest.mark.parametrize("size", [16, 64])
def test_blur_equals_torchvision(size):
    x = images(4, size)
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    matrix = color.blur_matrix(sigma, torch.tensor([True, True, True, False]), size, color.blur_kernel_size(size))
    ours = matrix[:, None] @ x @ matrix.transpose(1, 2)[:, None]
    kernel = [color.blur_kernel_size(size)] * 2
    for i in range(3):
        torch.testing.assert_close(ours[i], T.gaussian_blur(x[i], kernel, [float(sigma[i])] * 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours[3], x[3])


def test_rotation_and_translation_equal_torchvision():
    x = images(2)
    rotated = rotate_and_translate(x, torch.tensor([90.0, 0.0]), torch.tensor([[0.0, 0.0], [0.25, -0.5]]))
    torch.testing.assert_close(rotated[0], torch.rot90(x[0], 1, (1, 2)), atol=1e-4, rtol=0)
    expected = T.affine(x[1], 0, [8, -16], 1.0, [0, 0], interpolation=T.InterpolationMode.BILINEAR)
    torch.testing.assert_close(rotated[1], expected, atol=1e-4, rtol=0)
    oblong = torch.rand(1, 3, 20, 40)
    ours = rotate_and_translate(oblong, torch.tensor([30.0]), torch.zeros(1, 2))[..., 5:-5, 12:-12]
    theirs = T.rotate(oblong, 30, interpolation=T.InterpolationMode.BILINEAR)[..., 5:-5, 12:-12]
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


EVERYTHING = AugmentationConfig(blur=0.5, rotate=20, translate=0.1, gray=0.3, solarize=0.3)


@pytest.mark.parametrize("size", [16, 48])
def test_a_sample_looks_the_same_however_the_batch_is_split(size):
    x, augment = images(), make(EVERYTHING, size)
    whole = augment.view(x, Counters(2, 9, torch.arange(8)), 1)
    halves = [augment.view(x[i : i + 4], Counters(2, 9, torch.arange(i, i + 4)), 1) for i in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(halves), atol=1e-5, rtol=0)
    assert whole.shape == (8, 3, size, size)
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize("change", ["epoch", "position", "view"])
def test_every_counter_changes_the_view(change):
    augment, x = make(AugmentationConfig()), images()
    base = augment.view(x, Counters(0, 0, torch.arange(8)), 0)
    counters = Counters(int(change == "epoch"), 0, torch.arange(8) + 8 * (change == "position"))
    assert (augment.view(x, counters, int(change == "view")) != base).flatten(1).any(1).all()


def test_the_step_changes_the_order_of_colors():
    augment, x = make(plain(jitter_prob=1.0)), images()
    results = {augment.view(x, Counters(0, s, torch.arange(8)), 0).sum().item() for s in range(8)}
    assert len(results) > 4


@pytest.mark.parametrize(
    "change",
    [
        {"crop_scale": (0.2, 0.3)},
        {"crop_scale": (0.5, 0.5), "crop_ratio": (2, 2)},
        {"flip": 1.0},
        {"jitter_prob": 1.0, "jitter": (0.4, 0, 0, 0)},
        {"jitter_prob": 1.0, "jitter": (0, 0.4, 0, 0)},
        {"jitter_prob": 1.0, "jitter": (0, 0, 0.4, 0)},
        {"jitter_prob": 1.0, "jitter": (0, 0, 0, 0.4)},
        {"gray": 1.0},
        {"blur": 1.0},
        {"solarize": 1.0},
        {"rotate": 30.0},
        {"translate": 0.3},
    ],
)
def test_every_key_acts(change):
    x, counters = images(), Counters(0, 0, torch.arange(8))
    off = make(plain()).view(x, counters, 0)
    torch.testing.assert_close(off, x, atol=1e-5, rtol=0)
    changed = (make(plain(**change)).view(x, counters, 0) - off).abs().amax((1, 2, 3)) > 1e-3
    assert changed.sum() >= 7  # a draw may be as good as none


def test_flip_only_mirrors_and_probabilities_are_kept():
    x = images(1).expand(2000, -1, -1, -1)[:, :, :4, :4].contiguous()
    views = make(plain(flip=0.3), 4).view(x, Counters(0, 0, torch.arange(2000)), 0)
    same = (views - x).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (views - x.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    assert (same | mirrored).all()
    assert abs(mirrored.float().mean() - 0.3) < 0.04


@pytest.mark.parametrize("size", [16, 48])
def test_normalized_at_the_end(size):
    x, counters = images(), Counters(0, 0, torch.arange(8))
    raw = make(EVERYTHING, size).view(x, counters, 0)
    ours = Augmenter(EVERYTHING, size, MEAN, STD, seed=5).view(x, counters, 0)
    expected = (raw - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("native", [16, 64])  # smaller and larger than the view: colors before or after the crop
def test_views_that_are_not_square(native):
    x, counters = images(side=native), Counters(2, 9, torch.arange(8))
    view = make(EVERYTHING, (24, 40)).view(x, counters, 0)
    assert view.shape == (8, 3, 24, 40)
    assert torch.isfinite(view).all()
    halves = [make(EVERYTHING, (24, 40)).view(x[i : i + 4], Counters(2, 9, torch.arange(i, i + 4)), 0) for i in (0, 4)]
    torch.testing.assert_close(view, torch.cat(halves), atol=1e-5, rtol=0)


def test_blur_of_a_view_that_is_not_square_is_one_round_kernel():
    x, counters = images(4, 40)[:, :, :20], Counters(0, 0, torch.arange(4))
    blurred = make(plain(blur=1.0, crop_ratio=(1, 1)), (20, 40)).view(x, counters, 0)
    draws = Draws(hash_int(5, 0, Stream.VIEW), counters.position, (0,), {Stream.BLUR: 2})
    sigma = [0.1 + 1.9 * u for u in draws[Stream.BLUR][:, 1].tolist()]
    for image, result, s in zip(x, blurred, sigma, strict=True):
        torch.testing.assert_close(result, T.gaussian_blur(image, [3, 3], [s, s]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(20, 80), (80, 20)])
def test_crops_have_the_aspect_of_the_view(size):
    """Around the view's own, so that a ratio of 1 distorts nothing: torchvision's would stretch every wide view."""
    augment = make(plain(crop_scale=(0.1, 0.2), crop_ratio=(3 / 4, 4 / 3)), size)
    box, _ = augment.boxes(1000, 1000, 0, torch.arange(2000), 0)
    relative = box[:, 3] / box[:, 2] * size[0] / size[1]
    assert relative.min() > 0.745
    assert relative.max() < 1.345
    assert abs(relative.log().mean()) < 0.01


def test_square_views_draw_the_boxes_that_they_always_drew():
    augment, position = make(AugmentationConfig(), 32), torch.arange(100)
    box, _ = augment.boxes(40, 60, 3, position, 1)
    u = Draws(hash_int(5, 3, Stream.VIEW), position, (1,), {Stream.CROP: CROP_NUMBERS})[Stream.CROP]
    assert torch.equal(box, crop_boxes(u, 40, 60, (0.2, 1.0), (3 / 4, 4 / 3)))


@pytest.mark.parametrize("native", [16, 64])
def test_views_made_together_are_those_made_alone(native):
    """Whichever other views and images are made with it, a view of an image is the same."""
    config = AugmentationConfig(
        blur=0.5, rotate=20, translate=0.1, gray=0.3, solarize=0.3, rand_augment=1, three_augment=True, erase=0.5
    )
    for c in (EVERYTHING, config):
        augment, x, counters = make(c), images(side=native), Counters(2, 9, torch.arange(8))
        together, crop = augment.views(x, counters, (0, 3))
        for i, v in enumerate((0, 3)):
            rows = slice(8 * i, 8 * i + 8)
            torch.testing.assert_close(together[rows], augment.view(x, counters, v), atol=1e-5, rtol=0)
            alone = augment.boxes(native, native, 2, counters.position, v)
            assert all(torch.equal(a[rows], b) for a, b in zip(crop, alone, strict=True))


def test_a_number_depends_on_its_own_counters_only():
    position, counts = torch.arange(50), {Stream.CROP: 22, Stream.FLIP: 1, Stream.JITTER: 5}
    whole = Draws(7, position, (0, 1, 2), counts)
    part = Draws(7, position[30:], (2,), {Stream.JITTER: 5})
    assert torch.equal(part[Stream.JITTER], whole[Stream.JITTER][2 * 50 + 30 :])
    drawn = torch.cat([whole[s].flatten() for s in counts])
    assert len(drawn.unique()) > len(drawn) - 5  # no two of a view, stream or position are alike but by chance
    assert abs(float(drawn.mean()) - 0.5) < 0.02


def test_streams_and_views_are_independent():
    draws = Draws(3, torch.arange(20000), (0, 1), {Stream.FLIP: 1, Stream.GRAY: 1, Stream.JITTER: 5})
    columns = torch.cat([draws[s].view(2, 20000, -1).permute(0, 2, 1).flatten(0, 1) for s in draws._drawn])
    correlation = torch.corrcoef(columns) - torch.eye(len(columns))
    assert correlation.abs().max() < 5 / 20000**0.5
