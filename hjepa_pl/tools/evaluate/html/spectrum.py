"""Spectrum of the features: how much variance each principal axis holds."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag
from hjepa_pl.tools.evaluate.html.elements.parts import card, legend, note
from hjepa_pl.tools.evaluate.html.elements.style import COLORS
from hjepa_pl.tools.evaluate.html.elements.svg import Axes, powers

_IMAGES = 2048
_DASHES = (None, "7 4", "2 3", "9 3 2 3")
_FLOOR = 1e-7


def variance_shares(x: Tensor) -> Tensor:
    """Return the share of each principal axis in the variance of features (N, D), largest first; they sum to 1."""
    with one_thread():
        centered = x.double() - x.double().mean(dim=0)
        gram = centered.T @ centered if len(x) > x.shape[1] else centered @ centered.T
        values = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
    return values / values.sum().clamp_min(1e-300)


def spectrum_card(features: Mapping[str, tuple[Tensor, Tensor]]) -> Markup:
    """Return the chart of the spectra of the test images' features, by network."""
    shares = {label: variance_shares(test[:_IMAGES].float()) for label, (_, test) in features.items()}
    shares = {label: s[s > _FLOOR] for label, s in shares.items()}
    shares = {label: s for label, s in shares.items() if len(s)}
    if not shares:
        return card("Spectrum of the features", note("The features of all test images are the same."))
    last = max(2, *(len(s) for s in shares.values()))
    low = min(float(s[-1]) for s in shares.values())
    axes = Axes((1, last), (min(low, 0.1), 1.0), log=True)
    lines, keys = [], []
    for i, (label, values) in enumerate(shares.items()):
        style = {
            "stroke": COLORS[i % len(COLORS)],
            "stroke_dasharray": _DASHES[i % len(_DASHES)],
            "stroke_width": 2.5 if i == 0 else 2.0,
            "fill": "none",
        }
        xs = _thinned(len(values))
        lines.append(tag("path", d=axes.path([x + 1 for x in xs], values[xs].tolist()), **style))
        keys.append((tag("svg", tag("path", d="M0,7H26", **style), class_="key", viewBox="0 0 26 14"), label))
    chart = axes.draw(
        lines, ("principal axis", "share of the variance"), (powers(1, last), powers(min(low, 0.1), 1.0)),
        "Share of the variance on each principal axis",
    )  # fmt: skip
    remark = "A flat line uses all dimensions; one that falls steeply, few. Both axes are logarithmic."
    return card("Spectrum of the features", chart, legend(keys), note(remark))


def _thinned(count: int) -> list[int]:
    """Return indices that are dense on a logarithmic axis, at most about 150."""
    steps = torch.logspace(0, torch.log10(torch.tensor(float(count))).item(), 150).round().long() - 1
    return sorted({*steps.clamp(0, count - 1).tolist()})
