"""PCA maps: what the encoder tells apart within an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.evaluation.pictures.maps import pca_maps
from hjepa_pl.tools.evaluate.extract import Pass
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag
from hjepa_pl.tools.evaluate.html.elements.parts import card, note, short
from hjepa_pl.tools.evaluate.html.elements.pictures import image_tag, read_images, shown, spread
from hjepa_pl.tools.evaluate.networks import UNTRAINED, Network
from hjepa_pl.tools.evaluate.sets import LabeledSet

_IMAGES = 12
_TITLE = "PCA maps of patch tokens"


def pca_colors(tokens: Tensor) -> Tensor:
    """Return the first three principal components of tokens as colors.

    Args:
        tokens: (P, h, w, D) of P images; the components are those of all their tokens together.

    Returns:
        (P, h, w, 3) uint8; each component spans the colors from its 1st to its 99th percentile.
    """
    colors = pca_maps(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])
    return (255 * colors).round().to(torch.uint8)


@torch.inference_mode()
def maps_card(networks: Sequence[Network], data: LabeledSet, how: Pass, bad: BadFiles) -> Markup:
    """Return the PCA maps of a dozen test images, by the judged network and by the untrained one.

    Args:
        networks: The judged one first.
        data: The dataset.
        how: Device of the forward pass, which is in float32 here.
        bad: Takes the files that cannot be decoded.
    """
    subject = networks[0]
    positions = spread(data.test_y, _IMAGES)
    images = read_images(data.test, positions, subject.spec, bad)
    colors: dict[str, Tensor] = {}
    for network in networks:
        if network is subject or network.label == UNTRAINED:
            network.prepare([network.kind(None)], how.device)
            found = network.feature_map(images.to(how.device))
            if found is not None:
                colors[network.label] = pca_colors(found.cpu())
    if subject.label not in colors:
        return card(_TITLE, note(f"{subject.label} has no patch tokens."))
    pixels, rows = shown(images, subject.spec), list(colors)
    cells = []
    for i, position in enumerate(positions.tolist()):
        name = data.classes[int(data.test_y[position])]
        maps = [image_tag(colors[label][i], f"PCA map of {label}") for label in rows]
        cells.append(tag("div", image_tag(pixels[i], name), *maps, short(name, 24)))
    _, height, width, _ = colors[subject.label].shape
    remark = (
        f"Below each test image the {height} × {width} tokens of {' and then of '.join(rows)}: their first three "
        "principal components as red, green and blue. Patches of like color have like features."
    )
    return card(_TITLE, note(remark), tag("div", join(*cells), class_="maps"))
