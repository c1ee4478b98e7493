"""Features of the test images in the plane, by t-SNE, or UMAP where it is installed."""

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from hjepa_pl.functional.stratify import stratified
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag
from hjepa_pl.tools.evaluate.html.elements.parts import card, legend, note
from hjepa_pl.tools.evaluate.html.elements.style import COLORS
from hjepa_pl.tools.evaluate.html.elements.svg import picture

IMAGES = 1000
_SIZE = (400, 400)
_SHAPES = (
    "m-3.1,0a3.1,3.1 0 1,0 6.2,0a3.1,3.1 0 1,0 -6.2,0z",  # circle
    "m-2.8,-2.8h5.6v5.6h-5.6z",  # square
    "m0,-3.8l3.6,6.4h-7.2z",  # triangle
    "m0,-4.1l4.1,4.1l-4.1,4.1l-4.1,-4.1z",  # diamond
    "m0,3.8l-3.6,-6.4h7.2z",  # triangle on its tip
    "m-1.1,-3.6h2.2v2.5h2.5v2.2h-2.5v2.5h-2.2v-2.5h-2.5v-2.2h2.5z",  # plus
)
CLASSES = 2 * len(_SHAPES)
"""Most classes that have a mark of their own, filled or hollow."""


def embedding_card(test_x: Tensor, test_y: Tensor, names: list[str], seed: int) -> Markup:
    """Return a map of the features of at most `IMAGES` test images.

    Args:
        test_x: (M, D) features.
        test_y: (M,) labels.
        names: Of the classes.
        seed: Of the choice of images and of the layout.
    """
    chosen = stratified(test_y, IMAGES, seed).sort().values
    x, y = test_x[chosen].float(), test_y[chosen]
    title = "Features in the plane"
    if len(x) < 5:
        return card(title, note(f"There are {len(x)} test images; a map needs five."))
    method, points = _layout(x, seed)
    order = torch.bincount(y, minlength=len(names)).argsort(descending=True, stable=True)
    order = order[torch.isin(order, y)]
    own, rest = order[:CLASSES].sort().values.tolist(), order[CLASSES:]
    shapes = [_marks(points[torch.isin(y, rest)], _SHAPES[0], fill="#c4cad1", stroke="none")] if len(rest) else []
    shapes += [_marks(points[y == c], _SHAPES[i % 6], **_look(i)) for i, c in enumerate(own)]
    keys = [(_key(i), names[c]) for i, c in enumerate(own)]
    text = f"{method} of {len(x):,} test images; like features lie close together, and long distances mean little."
    if len(rest):
        text += f" {len(own)} of {len(order)} classes have marks, the others are light gray."
    drawing = picture(_SIZE, tag("g", *shapes), f"{method} of the features, by class")
    return card(title, drawing, legend(keys), note(text))


def _layout(x: Tensor, seed: int) -> tuple[str, Tensor]:
    """Return the method's name, and the positions (M, 2) in the picture."""
    if importlib.util.find_spec("umap") is not None:
        method, points = "UMAP", _umap(x.numpy(), seed)
    else:
        method, points = "t-SNE", _tsne(x, seed)
    found = torch.as_tensor(points, dtype=torch.float64)
    low, high = found.amin(dim=0), found.amax(dim=0)
    return method, 8 + (found - low) / (high - low).clamp_min(1e-12) * (torch.tensor(_SIZE) - 16)


def _tsne(x: Tensor, seed: int) -> "np.ndarray[Any, Any]":
    """Lay out by t-SNE, from the first 50 principal components, on one thread."""
    centered = (x - x.mean(dim=0)).double()
    values, vectors = torch.linalg.eigh(centered.T @ centered)
    reduced = (centered @ vectors[:, -50:]).numpy()
    if float(values[-1]) <= 0 or reduced.shape[1] < 2:
        return np.zeros((len(x), 2))
    reduced = reduced / reduced.std()
    perplexity = min(30.0, (len(x) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(reduced)


def _umap(x: "np.ndarray[Any, Any]", seed: int) -> "np.ndarray[Any, Any]":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the number of jobs with a seed
        return importlib.import_module("umap").UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed).fit_transform(x)


def _look(index: int) -> dict[str, str]:
    """Return color and filling of a class's marks: hollow from the seventh on."""
    color = COLORS[index % len(COLORS)]
    hollow = index >= len(_SHAPES)
    return {"fill": "#fff" if hollow else color, "stroke": color if hollow else "#fff"}


def _marks(points: Tensor, shape: str, **look: str) -> Markup:
    path = "".join(f"M{x:.1f},{y:.1f}{shape}" for x, y in points.tolist())
    return tag("path", d=path, stroke_width=1.4 if look["fill"] == "#fff" else 0.5, **look)


def _key(index: int) -> Markup:
    mark = _marks(torch.tensor([[7.0, 7.0]]), _SHAPES[index % 6], **_look(index))
    return tag("svg", mark, class_="key one", viewBox="0 0 14 14")
