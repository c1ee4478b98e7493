"""Nearest neighbors: test images with the training images whose features are closest."""

import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag
from hjepa_pl.tools.evaluate.html.elements.parts import card, note
from hjepa_pl.tools.evaluate.html.elements.pictures import image_tag, read_images, shown, spread
from hjepa_pl.tools.evaluate.sets import LabeledSet

_QUERIES, _NEIGHBORS = 8, 8


def nearest(train_x: Tensor, test_x: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` training images nearest to test images by cosine, (M, count) int64."""
    return (F.normalize(test_x, dim=1) @ F.normalize(train_x, dim=1).T).topk(min(count, len(train_x)), dim=1).indices


def neighbors_card(data: LabeledSet, features: tuple[Tensor, Tensor], spec: ImageSpec, bad: BadFiles) -> Markup:
    """Return some test images, each with its nearest training images, hits and misses marked.

    Args:
        data: The dataset.
        features: Of its training and test images.
        spec: Images that the network takes.
        bad: Takes the files that cannot be decoded.
    """
    positions = spread(data.test_y, _QUERIES)
    found = nearest(features[0], features[1][positions], _NEIGHBORS)
    queries = shown(read_images(data.test, positions, spec, bad), spec)
    images = shown(read_images(data.train, found.flatten(), spec, bad), spec).unflatten(0, found.shape)
    blocks = [
        _query(data, int(data.test_y[position]), queries[i], data.train_y[found[i]], images[i])
        for i, position in enumerate(positions.tolist())
    ]
    remark = (
        f"Left a test image, then the {found.shape[1]} training images with the most similar features (cosine), "
        "nearest first. ✓ and a solid frame: of the same class. ✗ and a dashed frame: of another."
    )
    return card("Nearest neighbors", note(remark), tag("div", *blocks, class_="queries"))


def _query(data: LabeledSet, label: int, query: Tensor, labels: Tensor, images: Tensor) -> Markup:
    name = data.classes[label]
    hits = int((labels == label).sum())
    cells = [tag("div", image_tag(query, f"test image of {name}"), tag("span", "test", class_="what"), class_="asked")]
    for other, image in zip(labels.tolist(), images, strict=True):
        hit = other == label
        text = "✓" if hit else f"✗ {data.classes[other]}"
        words = tag("span", text, class_="what", title=data.classes[other])
        cells.append(tag("div", image_tag(image, data.classes[other]), words, class_="hit" if hit else "miss"))
    head = tag("p", tag("b", name), f": {hits} of {len(labels)}")
    return tag("div", head, tag("div", *cells, class_="strip"), class_="query")
