"""Linear heads trained by SGD on fixed features: all learning rates and weight decays of a grid at once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.evaluation.linear import top_k_accuracy
from hjepa_pl.functional.stratify import validation_split

_BATCH = 256
_MOMENTUM = 0.9

Head = tuple[float, float]
"""Learning rate at batch size 256, and weight decay."""


def fit_sgd_heads(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    grid: Sequence[Head],
    epochs: int,
    seed: int = 0,
) -> tuple[Tensor, Head, float | None]:
    """Train one linear head for each entry of a grid, and classify test features by the best.

    SGD with momentum .9, batch size 256, and a learning rate with cosine decay to 0, on the features as they are. All
    heads see the same batches, so a grid costs one pass over the features. With several entries, the grid is trained on
    four fifths of the training images, the validation split (`validation_split`) chooses, and the chosen head is
    trained again on all of them. Without a validation split the middle entry is used.

    Args:
        train_x: (N, D) features.
        train_y: (N,) int64 labels.
        test_x: (M, D) features, on the same device.
        num_classes: Number of classes.
        grid: Learning rates and weight decays.
        epochs: Passes over the training features.
        seed: Of the order of the images.

    Returns:
        (M, num_classes) logits of the test features, the chosen entry, and its accuracy in percent on the validation
        split (None where nothing was chosen).
    """
    train_x, test_x = train_x.float(), test_x.float()
    held = validation_split(train_y)
    best, val = grid[len(grid) // 2], None
    if len(grid) > 1 and bool(held.any()):
        heads = _train(train_x[~held], train_y[~held], num_classes, grid, epochs, seed)
        logits = _logits(train_x[held], heads)
        scores = [top_k_accuracy(one, train_y[held], 1) for one in logits]
        index = max(range(len(grid)), key=lambda i: scores[i])
        best, val = grid[index], scores[index]
    return _logits(test_x, _train(train_x, train_y, num_classes, [best], epochs, seed))[0], best, val


def _train(x: Tensor, y: Tensor, num_classes: int, grid: Sequence[Head], epochs: int, seed: int) -> Tensor:
    """Return the heads (H, D + 1, num_classes); the last row is the bias, which does not decay."""
    rates = x.new_tensor([rate for rate, _ in grid])[:, None, None]
    decays = x.new_tensor([decay for _, decay in grid])[:, None, None].repeat(1, x.shape[1] + 1, 1)
    decays[:, -1] = 0
    heads = x.new_zeros(len(grid), x.shape[1] + 1, num_classes)
    speed = torch.zeros_like(heads)
    generator = torch.Generator().manual_seed(seed)
    batch = min(_BATCH, len(x))
    steps = epochs * (len(x) // batch)
    target = F.one_hot(y, num_classes).to(x.dtype)
    order, step = torch.empty(0, dtype=torch.int64), 0
    x = F.pad(x, (0, 1), value=1.0)
    for step in range(steps):
        at = step % (len(x) // batch) * batch
        if at == 0:
            order = torch.randperm(len(x), generator=generator).to(x.device)
        rows = order[at : at + batch]
        error = (_scores(x[rows], heads).softmax(dim=-1) - target[rows]) / batch  # (H, batch, num_classes)
        gradient = torch.einsum("bd,hbc->hdc", x[rows], error) + decays * heads
        speed.mul_(_MOMENTUM).add_(gradient)
        fraction = torch.tensor(step / steps * torch.pi).cos().item()
        heads.addcmul_(rates.expand_as(heads), speed, value=-0.5 * (1 + fraction) * batch / _BATCH)
    return heads


def _scores(x: Tensor, heads: Tensor) -> Tensor:
    return torch.einsum("bd,hdc->hbc", x, heads)


def _logits(x: Tensor, heads: Tensor) -> Tensor:
    """Return (H, N, num_classes)."""
    return _scores(F.pad(x, (0, 1), value=1.0), heads)
