"""What each arm of an ablation changes of the base model's keyword arguments, and of the data's under 'data'."""

from typing import Any

IMAGE = {"cell": "image", "weight": 1.0}


def tokens(*levels: tuple[Any, int, float]) -> list[dict[str, Any]]:
    """Return token levels from (block, cell, weight)."""
    return [{"block": block, "cell": cell, "weight": weight} for block, cell, weight in levels]


FLAT = tokens(("last", 1, 1.0))
POOLED = [*tokens(("last", 1, 0.5), ("last", 2, 0.5)), IMAGE]


def level_arms(depth: int) -> dict[str, dict[str, Any]]:
    """Return what each arm changes of the module's keyword arguments; token weights sum to 1 but where they vary."""
    a, b = depth // 2, depth * 3 // 4
    depths = [*tokens((a, 1, 1 / 3), (b, 1, 1 / 3), ("last", 1, 1 / 3)), IMAGE]
    both = [*tokens((a, 1, 0.5), ("last", 2, 0.5)), IMAGE]
    return {
        "untrained": {"levels": POOLED},
        "three pooled levels": {"levels": POOLED},
        "flat I-JEPA": {"levels": FLAT, "level_scale": "raw"},
        "LeJEPA": {"levels": [IMAGE]},
        "flat + image": {"levels": [*FLAT, IMAGE]},
        "several depths": {"levels": depths},
        "depths and cells": {"levels": both},
        "depths, fused context": {"levels": depths, "predictor": {"context": "fused"}},
        "three, raw losses": {"levels": POOLED, "level_scale": "raw"},
        "three, weights 1/1/1": {"levels": [*tokens(("last", 1, 1.0), ("last", 2, 1.0)), IMAGE]},
        "three, weights 1/.7/.5": {"levels": [*tokens(("last", 1, 1.0), ("last", 2, 0.7)), {**IMAGE, "weight": 0.5}]},
        "three, weights .1/.1/1": {"levels": [*tokens(("last", 1, 0.1), ("last", 2, 0.1)), IMAGE]},
        "three, masked view added": {"levels": [*POOLED[:2], {**IMAGE, "masked_view": "add"}]},
        "three, masked view replaces": {"levels": [*POOLED[:2], {**IMAGE, "masked_view": "replace"}]},
        "three, masked, .1/.1/1": {
            "levels": [*tokens(("last", 1, 0.1), ("last", 2, 0.1)), {**IMAGE, "masked_view": "replace"}]
        },
        "three, masked view, cross": {
            "levels": [*POOLED[:2], {**IMAGE, "masked_view": "replace"}],
            "predictor": {"attention": "cross"},
        },
        "three, pyramid": {"levels": POOLED, "pyramid": {}},
        "three, hierarchical masks": {"levels": POOLED, "masks": {"kind": "hierarchical"}},
        "three, RoPE": {"levels": POOLED, "encoder": {"position": "rope"}},
        "three, LayerScale .1": {"levels": POOLED, "encoder": {"init_values": 0.1}},
    }


def objective_arms(depth: int) -> dict[str, dict[str, Any]]:
    """Return the objectives: I-JEPA, I-JEPA beside each regulariser of the projections, LeJEPA, crops, DeiT III.

    Where token levels stand beside the image level, their weights sum to 0.2 or less and the visible patches are one of
    two views, as in the preset 'three'.
    """
    token = {"cell": 1, "weight": 0.1}
    shown = {"cell": "image", "masked_view": "replace"}
    crops = {"views": 2, "multicrop": {"local_views": 4, "local_size": 16}}
    large = {"augmentation": {"crop_scale": (0.4, 1.0)}}
    three = [token, {"cell": 2, "weight": 0.1}, shown]
    return {
        "untrained": {"levels": [IMAGE]},
        "flat I-JEPA": {"levels": FLAT, "level_scale": "raw"},
        "flat + VICReg": {
            "levels": [token, shown | {"compare": "none"}], "regularizers": [{"kind": "vicreg", "weight": 0.2}],
        },
        "flat + SIGReg": {"levels": [token, shown], "regularizers": [{"kind": "sigreg"}]},
        "C-JEPA (flat + NT-Xent)": {
            "levels": [token, shown | {"compare": "none"}],
            "regularizers": [{"kind": "ntxent", "weight": 1.0, "temperature": 0.2}],
        },
        "LeJEPA": {"levels": [IMAGE]},
        "LeJEPA, 4 views": {"levels": [IMAGE], "data": {"views": 4}},
        "LeJEPA, 2 + 4 crops": {"levels": [IMAGE], "data": {**crops, **large}},
        "three": {"levels": three},
        "three, 2 + 4 crops": {"levels": three, "data": {**crops, **large}},
        "three, 2 + 4, crops in the context": {
            "levels": three, "masks": {"strategy": "global_with_local_context"}, "data": {**crops, **large},
        },
        "three, 2 + 4, crops predicted": {
            "levels": three, "masks": {"strategy": "cross_crop_prediction"}, "data": {**crops, **large},
        },
        "LeJEPA, DeiT III": {"levels": [IMAGE], "data": {"augmentation": "deit3"}},
        "three, DeiT III": {"levels": three, "data": {"augmentation": "deit3"}},
        "LeJEPA, SimCLR": {"levels": [IMAGE], "data": {"augmentation": "simclr"}},
    }  # fmt: skip


STUDIES = {"levels": level_arms, "objectives": objective_arms}
