import torch

from hjepa_pl.functional.stratify import rank_in_class, stratified, validation_split


def test_rank_in_class_counts_in_order() -> None:
    rank, size = rank_in_class(torch.tensor([3, -1, 3, 7, 3, -1]))
    assert rank.tolist() == [0, 0, 1, 0, 2, 1]
    assert size.tolist() == [3, 2, 3, 1, 3, 2]


def test_stratified_keeps_the_proportions_and_follows_the_seed() -> None:
    labels = torch.tensor([0] * 60 + [-1] * 30 + [2] * 10)
    chosen = stratified(labels, 20, seed=1)
    assert (labels[chosen] == 0).sum() == 12
    assert (labels[chosen] == -1).sum() == 6
    assert not torch.equal(chosen, stratified(labels, 20, seed=2))


def test_validation_split_is_every_fifth_of_a_class() -> None:
    labels = torch.arange(5).repeat(20)
    assert torch.bincount(labels[validation_split(labels)]).tolist() == [4] * 5
    assert not validation_split(torch.arange(4)).any()
