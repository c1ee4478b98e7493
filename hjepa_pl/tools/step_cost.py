"""What a step costs, counted without computing it: operations, memory and tokens."""

import statistics
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.masks import MaskGenerator, MaskShape
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch


class Encoded(NamedTuple):
    """One pass of an encoder over all images of a batch."""

    images: int
    """Views or crops that it is given, of one image."""
    tokens: int
    """Patches of each that it computes on."""


class Passes:
    """Notes the tokens of every pass of the encoders and the predictor, while it is entered.

    Args:
        module: Whose networks.
        batch_size: Images of the batch that they are given.
    """

    def __init__(self, module: HJEPALightningModule, batch_size: int) -> None:
        self.module, self.batch_size = module, batch_size
        self._encoded: dict[str, list[Encoded]] = {"context": [], "target": []}
        self._predicted = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "Passes":
        for name, net in (("context", self.module.context_encoder), ("target", self.module.target_encoder)):
            if net is not None:
                self._hooks.append(net.register_forward_hook(self._encodes(name)))
        if self.module.predictor is not None:
            self._hooks.append(self.module.predictor.register_forward_hook(self._predicts))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _encodes(self, name: str) -> Callable[..., None]:
        def note(net: nn.Module, args: Any, out: dict[Any, Tensor]) -> None:
            images, tokens = next(iter(out.values())).shape[:2]
            self._encoded[name].append(Encoded(images // self.batch_size, tokens))

        return note

    def _predicts(self, net: Any, args: Any, out: tuple[Tensor, ...]) -> None:
        context, _, targets, beside = args
        copies = targets[0].shape[1] if net.config.targets == "separate" else 1
        seen = copies * context.shape[1] + (0 if beside is None else beside.tokens.shape[1])
        self._predicted += seen + sum(x.shape[1] for x in out)

    @property
    def found(self) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]:
        """The passes of context and target encoder, and the predictor's tokens of an image."""
        return tuple(self._encoded["context"]), tuple(self._encoded["target"]), self._predicted


_LATE = 10**12
"""A step after every curriculum of local crops."""


class StepCount(NamedTuple):
    """What one step of one process takes."""

    flops: int
    """Of forward and backward, two a multiplication with addition; what checkpointing repeats is not counted."""
    peak: int
    """Most bytes alive at a time, beside weights, moments and the images: gradients, activations, what they need."""
    context: tuple[Encoded, ...]
    """The passes of the context encoder, with gradient."""
    target: tuple[Encoded, ...]
    """The passes of the target encoder."""
    predictor: int
    """Tokens of an image that the predictor computes on, with a query for every cell; 0 without one."""

    @property
    def tokens(self) -> int:
        """Tokens of an image that the two encoders compute on."""
        return sum(p.images * p.tokens for p in (*self.context, *self.target))


class PeakBytes(TorchDispatchMode):
    """Keeps account of the storages that are alive, and of the most there were at a time.

    Args:
        known: Tensors that are there before, and are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)

    def _free(self, size: int) -> None:
        self.alive -= size


class StepCounter:
    """Counts the steps of a module that has no storage, whose parameters become fake tensors.

    Args:
        module: On the meta device; it is of no other use afterwards.
        views: Which views its batches have; the steps counted are those after any curriculum.
        device: Whose kernels are taken.
        half: Whether a step runs under autocast to bfloat16.
    """

    def __init__(self, module: HJEPALightningModule, views: ViewPlan, device: torch.device, half: bool) -> None:
        self.module, self.views, self.device, self.half = module, views, device, half
        self._fake = FakeTensorMode()
        with self._fake:
            module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
        module.train()

    def count(self, batch_size: int, step: int = 0) -> StepCount:
        """Return what a step of so many images takes; its number decides the sizes of the masks."""
        configs = [c for c in (self.module.context_encoder.config, *self._predictor_config()) if c.grad_checkpointing]
        flops, peak, seen = self._run(batch_size, step)
        if configs:
            # Once more without checkpointing, which computes twice what counts once.
            with _changed(configs, "grad_checkpointing", False):
                flops = self._run(batch_size, step)[0]
        return StepCount(flops, peak, *seen)

    def _predictor_config(self) -> list[Any]:
        return [] if self.module.predictor is None else [self.module.predictor.config]

    def _run(self, batch_size: int, step: int) -> tuple[int, int, tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]]:
        module = self.module
        with self._fake, Passes(module, batch_size) as passes:
            batch = empty_batch(module, self.views, batch_size, step, self.device)
            known = [*module.parameters(), *module.buffers(), *tree_iter(batch)]
            flops, peak = FlopCounterMode(display=False), PeakBytes(t for t in known if isinstance(t, Tensor))
            with flops, peak:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    loss, record = module.compute(batch)
                loss.backward()
                del loss, record
                if module.ema is not None:
                    module.move_target(0.5)
            module.zero_grad(set_to_none=True)
        return flops.get_total_flops(), peak.peak, passes.found


def sizes_of(views: ViewPlan) -> list[tuple[int, int]]:
    """Return the height and width of each view and crop of an image, after any curriculum."""
    return [augmenter.img_size for augmenter, _ in views.at(_LATE)]


def empty_batch(
    module: HJEPALightningModule, views: ViewPlan, images: int, step: int, device: torch.device
) -> ViewBatch:
    """Return a batch of the shapes that the data would make, after any curriculum; its pixels mean nothing."""
    made = tuple(torch.zeros(images, module.in_chans, *size, device=device) for size in sizes_of(views))
    label = torch.zeros(images, dtype=torch.int64, device=device)
    counters = Counters(0, step, torch.arange(images, device=device))
    boxes = None
    if views.multicrop is not None:
        boxes = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).expand(len(made), images, -1)
    return ViewBatch(made[: views.views], label, label, counters, made[views.views :], boxes)


def steps_by_shape(masks: MaskGenerator | None) -> dict[MaskShape | None, int]:
    """Return a step for each row of the masks' table, in its order: the first that has these sizes."""
    if masks is None:
        return {None: 0}
    found: dict[MaskShape | None, int] = {}
    step = 0
    while len(found) < len(set(masks.shapes)):
        found.setdefault(masks.shape_of(step), step)
        step += 1
    return {shape: found[shape] for shape in masks.shapes}


class TableCount(NamedTuple):
    """What the steps of a run take: one for each row of the masks' table, of which every step draws one."""

    steps: list[int]
    """A step that has the row's sizes."""
    counts: list[StepCount]

    @property
    def flops(self) -> float:
        """Of a step of one process, on average."""
        return statistics.fmean(c.flops for c in self.counts)

    @property
    def tokens(self) -> float:
        """Of an image, on average."""
        return statistics.fmean(c.tokens for c in self.counts)

    @property
    def peak(self) -> int:
        """Most bytes alive in any of the steps."""
        return max(c.peak for c in self.counts)

    @property
    def heaviest(self) -> int:
        """The step that needs most memory."""
        return max(zip(self.counts, self.steps, strict=True), key=lambda pair: pair[0].peak)[1]


def count_table(counter: StepCounter, batch_size: int) -> TableCount:
    """Count a step for each row of the masks' table; rows of the same lengths are counted once."""
    masks = counter.module.masks
    by_shape = steps_by_shape(masks)
    counted: dict[object, StepCount] = {}
    for shape, step in by_shape.items():
        lengths = _lengths(shape)
        if lengths not in counted:
            counted[lengths] = counter.count(batch_size, step)
    rows = [None] if masks is None else masks.shapes
    return TableCount([by_shape[r] for r in rows], [counted[_lengths(r)] for r in rows])


def _lengths(shape: MaskShape | None) -> object:
    return None if shape is None else shape.lengths


@contextmanager
def _changed(objects: Iterable[Any], key: str, value: Any) -> Iterator[None]:
    """Set a field of frozen settings for a while."""
    objects = list(objects)
    old = [getattr(o, key) for o in objects]
    try:
        for o in objects:
            object.__setattr__(o, key, value)
        yield
    finally:
        for o, before in zip(objects, old, strict=True):
            object.__setattr__(o, key, before)
