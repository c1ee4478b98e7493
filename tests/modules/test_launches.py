"""What a step launches, counted: on a GPU, steps of small images wait for nothing else."""

import pytest

from tests.benchmarks.launches import augmentation, step

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 16, "patch_size": 2}


def test_the_views_of_a_step_launch_little_however_many_they_are() -> None:
    counted = {views: augmentation(views).total() for views in (1, 2, 4)}
    assert counted[2] <= 246 * 1.05
    assert counted[4] == counted[2]
    assert counted[1] >= counted[2] - 20


@pytest.mark.parametrize(("position", "most"), [("learned", 1681), ("rope", 1820)])
def test_a_step_launches_no_more_than_it_did(position, most, tiny_module) -> None:
    """Three levels, two views, bfloat16, three blocks instead of twelve; the counts are those of 21 November 2026."""
    module = tiny_module(encoder=TINY | {"position": position}, levels="three")
    parts = {name: counted.total() for name, counted in step(module, img_size=16).items()}
    assert sum(parts.values()) <= most * 1.05, parts
