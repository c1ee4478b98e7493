"""What is drawn: attention, components, masks and spectra against independent references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat

from hjepa_pl.evaluation.pictures.attention import AttentionRecorder, mean_query, rollout
from hjepa_pl.evaluation.pictures.chart import Line, chart
from hjepa_pl.evaluation.pictures.maps import kept_cells, pca_maps, pixels
from hjepa_pl.evaluation.pictures.sheet import Column, heat, sheet
from hjepa_pl.evaluation.spectra import singular_values
from hjepa_pl.models import EncoderConfig, build_encoder

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": (16, 24), "patch_size": 4, "in_chans": 1}


@pytest.mark.parametrize("attention", ["auto", "eager", "math"])
@pytest.mark.parametrize("kind", [{}, {"position": "rope"}, {"reg_tokens": 2}])
def test_attention_is_recorded_and_changes_nothing(attention, kind) -> None:
    encoder = build_encoder(EncoderConfig(**SMALL, **kind, attention=attention)).eval()
    images = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        plain = encoder(images)["last"]
        with AttentionRecorder() as recorder:
            recorded = encoder(images)["last"]
    assert torch.equal(plain, recorded)
    assert len(recorder.weights) == 3
    n = 24 + kind.get("reg_tokens", 0)
    assert {tuple(w.shape) for w in recorder.weights} == {(2, n, n)}
    assert torch.allclose(recorder.weights[0].sum(-1), torch.ones(2, n), atol=1e-5)


def test_recorded_attention_is_that_of_the_formula() -> None:
    encoder = build_encoder(EncoderConfig(**SMALL, position="rope")).eval()
    seen = []
    attn = encoder.vit.blocks[1].attn
    attn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), AttentionRecorder() as recorder:
        encoder(torch.randn(2, 1, 16, 24))
    with torch.no_grad():
        q, k, _ = attn.qkv(seen[0]).reshape(2, 24, 3, 2, 12).permute(2, 0, 3, 1, 4)
        table = encoder.vit.rope.get_embed(shape=[4, 6])
        q, k = apply_rot_embed_cat(q, table), apply_rot_embed_cat(k, table)
        wanted = (q @ k.transpose(-2, -1) / 12**0.5).softmax(-1).mean(1)
    assert torch.allclose(recorder.weights[1], wanted, atol=1e-5)


def test_rollout_is_the_product_of_the_layers_with_their_residuals() -> None:
    weights = [torch.rand(2, 5, 5).softmax(-1) for _ in range(3)]
    product = np.eye(5)
    for layer in weights:
        product = (0.5 * layer[1].double().numpy() + 0.5 * np.eye(5)) @ product
    assert np.allclose(rollout(weights)[1].numpy(), product, atol=1e-6)
    assert torch.allclose(rollout(weights).sum(-1), torch.ones(2, 5))


def test_the_mean_query_leaves_prefix_tokens_out() -> None:
    weights = torch.rand(2, 6, 6).softmax(-1)
    found = mean_query(weights, patches=4)
    wanted = weights[:, 2:, 2:].mean(1)
    assert torch.allclose(found, wanted / wanted.sum(1, keepdim=True))


def test_components_do_not_depend_on_signs_axes_or_scale() -> None:
    tokens = torch.randn(3, 16, 8, dtype=torch.float64).exp()  # skewed, so that signs are decided
    turned = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    colors = pca_maps(tokens)
    assert torch.allclose(pca_maps(3 * tokens @ turned + 1), colors, atol=1e-5)
    assert torch.allclose(pca_maps(-tokens) + 0, pca_maps(-tokens @ turned), atol=1e-5)
    x = (tokens - tokens.flatten(0, 1).mean(0)).flatten(0, 1).numpy()
    first = x @ np.linalg.svd(x)[2][0]
    assert abs(np.corrcoef(first, colors[..., 0].flatten().numpy())[0, 1]) > 0.97  # but for the cut tails
    assert colors.min() == 0
    assert colors.max() == 1
    assert (pca_maps(torch.ones(2, 4, 8)) == 0.5).all()
    assert pca_maps(torch.randn(2, 4, 2)).shape == (2, 4, 3)


def test_pixels_undo_the_normalization() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    normalized = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert np.array_equal(np.stack(pixels(normalized, mean, std)), image.permute(0, 2, 3, 1).numpy())
    gray = pixels(torch.randn(2, 1, 4, 6), None, None)
    assert (gray[0].min(), gray[0].max(), gray[0].shape) == (0, 255, (4, 6, 3))
    assert pixels(torch.randn(1, 13, 4, 6), None, None)[0].shape == (4, 6, 3)


def test_only_kept_cells_are_shown() -> None:
    tile = np.full((8, 12, 3), 10, np.uint8)
    (shown,) = kept_cells([tile], torch.tensor([[1, 5]]), (2, 3))
    visible = (shown == 10).all(-1)
    wanted = np.zeros((8, 12), bool)
    wanted[:4, 4:8] = wanted[4:, 8:] = True
    assert np.array_equal(visible, wanted)


def test_heat_gets_lighter_so_that_it_can_be_read_in_gray() -> None:
    colors = heat(np.linspace(0, 1, 50)[None], 0, 1)[0].astype(float)
    assert (np.diff(colors @ [0.299, 0.587, 0.114]) > 0).all()
    assert (heat(np.array([[np.nan]]), 0, 1) == 255).all()


def test_singular_values() -> None:
    x = torch.randn(40, 6) + 5
    wanted = torch.linalg.svdvals(x.double() - x.double().mean(0)) / 40**0.5
    assert np.allclose(singular_values(x), wanted, rtol=1e-6)
    assert singular_values(torch.full((4, 2), torch.nan)) == []


def test_sheets_and_charts_hold_all_of_their_text() -> None:
    tiles = [np.zeros((4, 6, 3), np.uint8)] * 2
    image = sheet("a title that is much longer than the only column of it", [Column("x\nyy", tiles)], "a note " * 30)
    for edge in (np.asarray(image)[:, -3:], np.asarray(image)[-3:], np.asarray(image)[:, :3]):
        assert (edge == 255).all()
    for points in ([], [(1, 0.0)], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(0, 1e-9), (900, 1e6)]):
        drawn = np.asarray(chart("t", [Line("one", points), Line("a long name of a line", points)], "x", "y"))
        assert (drawn[:, -3:] == 255).all()
        assert (drawn < 128).any()
    assert F.softmax(torch.zeros(2), 0)[0] == 0.5  # no recorder is left active
