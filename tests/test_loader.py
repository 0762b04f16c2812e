"""The order, the augmentation and the random state of batches."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from test_data import add_picture, cut
from torch.utils.data import Dataset

from ssd.data import ImageReadError, VOCDataset
from ssd.data.augmentation import eval_transform, train_transform
from ssd.data.loader import SeededDataset, collate, epoch_batches, eval_loader, train_loader

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pair(tmp_path):
    """Two pictures, of which one shows a dog and a difficult cat and the other nothing."""
    add_picture(tmp_path, "a", [("dog", 1, 1, 60, 40), ("cat", 11.5, 5, 20, 30, 1)])
    add_picture(tmp_path, "b")
    return tmp_path


def test_collate(pair):
    images, targets = collate([VOCDataset(pair, transform=eval_transform())[index] for index in (0, 1, 0)])
    assert (images.shape, images.dtype) == ((3, 3, 300, 300), torch.float32)
    assert type(images) is torch.Tensor
    assert [len(target["boxes"]) for target in targets] == [2, 0, 2]
    whole = list(eval_loader(VOCDataset(pair, transform=eval_transform()), 4, workers=0))
    assert [len(target["boxes"]) for _, targets in whole for target in targets] == [2, 0]


class Noise(Dataset):
    """What a sample with random transforms draws."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.rand(3, 2, 2), {"labels": torch.randint(9, (index % 3,))}


class TestSeededDataset:
    def test_depends_on_seed_epoch_and_index_only(self):
        view = SeededDataset(Noise(5), seed=1, epoch=2)
        first = [view[index][0] for index in range(5)]
        again = [view[index][0] for index in reversed(range(5))][::-1]
        assert torch.equal(torch.stack(first), torch.stack(again))
        others = [SeededDataset(Noise(5), *key)[0][0] for key in ((1, 3), (2, 2), (2, 1), (12, 0), (-1, 2))]
        everything = torch.stack([*first, *others]).flatten(1)
        assert len(everything.unique(dim=0)) == 10

    def test_leaves_all_global_random_states_alone(self, pair):
        view = SeededDataset(VOCDataset(pair, transform=train_transform()), seed=0, epoch=0)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        view[0]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    def test_augmentation_is_reproducible(self, pair):
        dataset = VOCDataset(pair, transform=train_transform())
        first, second = (SeededDataset(dataset, seed=0, epoch=3)[0] for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
        assert not torch.equal(first[0], SeededDataset(dataset, seed=0, epoch=4)[0][0])

    def test_can_be_sent_to_a_process(self, pair):
        view = SeededDataset(VOCDataset(pair, transform=train_transform(flips=True)), seed=0, epoch=0)
        copy = pickle.loads(pickle.dumps(view))
        assert torch.equal(copy[0][0], view[0][0])


class TestEpochBatches:
    def test_every_sample_once(self):
        assert sorted(index for batch in epoch_batches(20, 5, seed=0, epoch=0) for index in batch) == list(range(20))

    def test_an_incomplete_last_batch_is_left_out(self):
        batches = epoch_batches(23, 5, 0, 0)
        assert [len(batch) for batch in batches] == [5, 5, 5, 5]
        assert len({index for batch in batches for index in batch}) == 20

    def test_a_set_smaller_than_the_batch_is_one_batch(self):
        assert [sorted(batch) for batch in epoch_batches(3, 8, 0, 0)] == [[0, 1, 2]]

    def test_order_depends_on_seed_and_epoch(self):
        orders = [str(epoch_batches(50, 8, *key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert len(set(orders)) == 4
        assert str(epoch_batches(50, 8, 0, 0)) == orders[0]

    @pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0), (-1, 4)])
    def test_refuses(self, n, batch_size):
        with pytest.raises(ValueError, match=f"{n} and {batch_size}"):
            epoch_batches(n, batch_size, 0, 0)


class TestTrainLoader:
    @staticmethod
    def read(loader):
        return [(images, [target["labels"].tolist() for target in targets]) for images, targets in loader]

    def test_workers_and_resuming_do_not_change_the_batches(self):
        whole = self.read(train_loader(Noise(22), 4, seed=5, epoch=1))
        assert len(whole) == 5
        torch.manual_seed(77)
        for workers, start in ((2, 0), (0, 3), (1, 2)):
            part = self.read(train_loader(Noise(22), 4, seed=5, epoch=1, start_batch=start, workers=workers))
            assert len(part) == 5 - start
            for (images, labels), (expected, expected_labels) in zip(part, whole[start:], strict=True):
                assert torch.equal(images, expected)
                assert labels == expected_labels

    @pytest.mark.parametrize("workers", [0, 1])
    def test_leaves_the_global_random_state_alone(self, workers):
        before = torch.get_rng_state()
        self.read(train_loader(Noise(8), 4, seed=0, epoch=0, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_picture_is_named(self, pair, workers):
        dataset = VOCDataset(pair, transform=train_transform())
        cut(pair / "JPEGImages" / "b.jpg", 0.6)
        with pytest.raises(ImageReadError, match=r"JPEGImages/b\.jpg"):
            self.read(train_loader(dataset, 2, seed=0, epoch=0, workers=workers))
