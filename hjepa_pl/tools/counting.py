"""What a step costs, counted without computing it: operations, memory and tokens."""

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

from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.masks import MaskGenerator, MaskShape
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch

_LATE = 10**12
"""A step after every curriculum of local crops."""


class Encoded(NamedTuple):
    """One pass of an encoder over all images of a batch."""

    images: int
    """Views or crops that it is given, of one image."""
    tokens: int
    """Patches of each that it computes on."""


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
        with self._fake, _Passes(module, batch_size) as passes:
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
        return flops.get_total_flops(), peak.peak, passes.found()


def empty_batch(
    module: HJEPALightningModule, views: ViewPlan, images: int, step: int, device: torch.device
) -> ViewBatch:
    """Return a batch of the shapes that the data would make, after any curriculum; its pixels mean nothing."""
    sizes = [augmenter.img_size for augmenter, _ in views.at(_LATE)]
    made = tuple(torch.zeros(images, module.in_chans, *size, device=device) for size in sizes)
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


def parameters_of(network: nn.Module | None) -> int:
    """Return the number of parameters, shared ones once."""
    return 0 if network is None else sum(p.numel() for p in network.parameters())


class Memory(NamedTuple):
    """Bytes that a step of one process needs on its device."""

    weights: int
    """Of the trained networks, in 32 bits, with their buffers."""
    target: int
    """Of the moving averages."""
    adam: int
    """Two moments of every trained parameter."""
    images: int
    """The views, in 32 bits."""
    step: int
    """Gradients and activations: the most that is alive at a time."""


def memory_of(module: HJEPALightningModule, views: ViewPlan, batch_size: int, peak: int) -> Memory:
    """Return what a step needs, given the most that is alive in it (`StepCount.peak`)."""
    trained = list({id(p): p for net in module.trained_modules() for p in net.parameters()}.values())
    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    target = 4 * (parameters_of(module.target_encoder) + parameters_of(module.target_pyramid))
    pixels = sum(a.img_size[0] * a.img_size[1] for a, _ in views.at(_LATE)) * module.in_chans
    adam = 8 * sum(p.numel() for p in trained if p.requires_grad)
    return Memory(held - target, target, adam, 4 * pixels * batch_size, peak)


class _Passes:
    """Notes the tokens of every pass of the encoders and the predictor."""

    def __init__(self, module: HJEPALightningModule, batch_size: int) -> None:
        self.module, self.batch_size = module, batch_size
        self._encoded: dict[str, list[Encoded]] = {"context": [], "target": []}
        self._predicted = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> "_Passes":
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

    def _predicts(self, net: nn.Module, args: Any, out: tuple[Tensor, ...]) -> None:
        context = args[0].shape[1] * args[0].shape[0]
        self._predicted += (context + sum(x.shape[0] * x.shape[1] for x in out)) // self.batch_size

    def found(self) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], int]:
        return tuple(self._encoded["context"]), tuple(self._encoded["target"]), self._predicted


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
