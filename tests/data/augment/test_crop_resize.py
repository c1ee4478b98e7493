import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS, apply_axes, axis_weights, clean_resize, crop_boxes
from hjepa_pl.functional.counters import uniform


def crop_resize(images, boxes, flip, height, width):
    top, left, high, wide = boxes.unbind(1)
    rows = axis_weights(top, high, height, images.shape[2])
    return apply_axes(images, rows, axis_weights(left, wide, width, images.shape[3], flip))


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (32, 32, 96), (64, 48, 24), (20, 30, 7)])
def test_crop_resize_equals_torchvision(height, width, size):
    torch.manual_seed(0)
    images = torch.rand(16, 3, height, width)
    boxes = crop_boxes(uniform(7, torch.arange(16), CROP_NUMBERS), height, width, (0.1, 1.0), (0.5, 2.0))
    flip = torch.arange(16) % 2 == 1
    ours = crop_resize(images, boxes, flip, size, size)
    for image, box, flipped, result in zip(images, boxes.int().tolist(), flip, ours, strict=True):
        expected = T.resized_crop(image, *box, [size, size], antialias=True)
        expected = expected.flip(-1) if flipped else expected
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 40)])
def test_crop_boxes_are_distributed_like_torchvisions(height, width):
    scale, ratio, n = (0.2, 1.0), (3 / 4, 4 / 3), 4000
    ours = crop_boxes(uniform(3, torch.arange(n), CROP_NUMBERS), height, width, scale, ratio)
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width)
    rows = [crop.make_params([image]) for _ in range(n)]
    theirs = torch.tensor([[r["top"], r["left"], r["height"], r["width"]] for r in rows], dtype=torch.float32)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        a, b = ours.quantile(quantile, 0), theirs.quantile(quantile, 0)
        assert (a - b).abs().max() <= 1.5, (quantile, a, b)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.5


def test_boxes_of_images_of_many_sizes_are_those_of_each_alone():
    heights, widths = torch.tensor([30, 200, 64]), torch.tensor([50, 20, 64])
    together = crop_boxes(uniform(1, torch.arange(3), CROP_NUMBERS), heights, widths, (0.2, 1.0), (3 / 4, 4 / 3))
    for i in range(3):
        alone = crop_boxes(
            uniform(1, torch.tensor([i]), CROP_NUMBERS), int(heights[i]), int(widths[i]), (0.2, 1.0), (3 / 4, 4 / 3)
        )
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("size", [(12, 40), (33, 7)])
def test_crop_resize_to_oblongs_equals_torchvision(size):
    images = torch.rand(8, 3, 30, 40)
    boxes = crop_boxes(uniform(7, torch.arange(8), CROP_NUMBERS), 30, 40, (0.1, 1.0), (0.5, 2.0))
    ours = crop_resize(images, boxes, torch.zeros(8, dtype=torch.bool), *size)
    for image, box, result in zip(images, boxes.int().tolist(), ours, strict=True):
        torch.testing.assert_close(result, T.resized_crop(image, *box, size, antialias=True), atol=1e-4, rtol=0)


def test_impossible_crop_falls_back_to_the_center():
    boxes = crop_boxes(uniform(1, torch.arange(5), CROP_NUMBERS), 10, 100, (1.0, 1.0), (3 / 4, 4 / 3))
    assert boxes.tolist() == [[0, 43, 10, 13]] * 5


def test_clean_resize_of_squares_is_torchs_and_of_equal_size_nothing():
    images = torch.rand(4, 3, 20, 20)
    expected = F.interpolate(images, size=(12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(clean_resize(images, 12), expected, atol=1e-5, rtol=0)
    assert clean_resize(images, 20) is images


@pytest.mark.parametrize(
    ("size", "whole"),  # height and width, and what a 40 x 60 image is resized to before the center is cropped
    [((20, 30), (20, 30)), ((20, 20), (20, 30)), ((20, 40), (27, 40)), ((30, 10), (30, 45)), ((64, 32), (64, 96))],
)
def test_clean_resize_to_oblongs_covers_them_without_distortion(size, whole):
    image = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8)
    expected = T.resize(image.float(), list(whole), antialias=True)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    expected = expected[..., top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(clean_resize(image.float(), size), expected, atol=1e-2, rtol=0)
    assert clean_resize(image, size).shape == (1, 3, *size)
    assert clean_resize(image, (40, 60)) is image


def test_clean_resize_is_resize_then_center_crop():
    image = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8)
    expected = T.center_crop(T.resize(image, [20], antialias=True), [20, 20])
    result = clean_resize(image, 20)
    assert result.dtype == torch.uint8
    assert (result.int() - expected.int()).abs().max() <= 1
