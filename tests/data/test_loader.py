"""The order, the augmentation and the random state of batches."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch
from small_datasets import add_picture, cut
from torch.utils.data import Dataset

from ssd.data import ImageReadError, VOCDataset
from ssd.data.augmentation import EvalTransform, TrainTransform
from ssd.data.loader import (
    SeededDataset,
    collate,
    epoch_batches,
    eval_loader,
    steps_per_epoch,
    train_loader,
    worker_count,
)
from ssd.data.torchvision_recipe import v2_transform

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pair(tmp_path):
    """Two pictures, of which one shows a dog and a difficult cat and the other nothing."""
    add_picture(tmp_path, "a", [("dog", 1, 1, 60, 40), ("cat", 11.5, 5, 20, 30, 1)])
    add_picture(tmp_path, "b")
    return tmp_path


@pytest.mark.parametrize(
    ("cores", "gpu", "processes", "workers"),
    [
        (1, False, None, 1),
        (3, False, None, 3),
        (64, False, None, 4),
        (64, True, None, 16),
        (64, True, 8, 8),
        (2, True, 4, 1),
    ],
)
def test_the_number_of_workers(monkeypatch, cores, gpu, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))  # by torchrun
    assert worker_count(None) == workers
    assert worker_count(None, torch.device("cpu")) <= 4
    assert worker_count(7) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, Python's default is kept")
@pytest.mark.parametrize(("chosen", "used"), [(None, "fork"), ("forkserver", "fork"), ("spawn", None)])
def test_workers_are_forked_unless_the_program_has_chosen_another_way(monkeypatch, pair, chosen, used):
    """From Python 3.14 on, the default is not fork."""
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda allow_none: chosen)
    monkeypatch.setattr(torch.multiprocessing, "get_all_start_methods", lambda: ["forkserver", "spawn", "fork"])
    context = eval_loader(pair, 1, workers=1).multiprocessing_context
    assert (context and context.get_start_method()) == used
    assert eval_loader(pair, 1, workers=0).multiprocessing_context is None


def test_memory_is_pinned_for_a_gpu_only(monkeypatch):
    """To pin it takes memory of a GPU, which may be another program's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, pinned in ((None, True), ("cuda:1", True), ("cpu", False)):
        on = device and torch.device(device)
        assert train_loader(Noise(4), 2, 0, range(1), device=on).pin_memory == pinned
        loader = eval_loader(Noise(4), 2, device=on)
        assert (loader.pin_memory, loader.num_workers) == (pinned, worker_count(None, on))


def test_collate(pair):
    samples = [VOCDataset(pair, transform=EvalTransform(300))[index] for index in (0, 1, 0)]
    batch = collate(samples)
    assert all(torch.equal(image, sample[0]) for image, sample in zip(batch.images, samples, strict=True))
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 300, 300), torch.uint8)
    assert type(batch.images) is torch.Tensor
    assert batch.colours is None
    assert batch.row_splits.tolist() == [0, 2, 2, 4]
    assert (batch.boxes.shape, batch.labels.tolist(), batch.difficult.tolist()) == (
        (4, 4),
        [2, 1] * 2,
        [False, True] * 2,
    )
    assert [len(target["boxes"]) for target in batch.targets()] == [2, 0, 2]
    assert batch.targets()[2]["difficult"].tolist() == [False, True]
    whole = list(eval_loader(VOCDataset(pair, transform=EvalTransform(300)), 4, workers=0))
    assert [len(target["boxes"]) for batch in whole for target in batch.targets()] == [2, 0]


def test_parts_of_a_batch(pair):
    samples = [VOCDataset(pair, transform=TrainTransform(300))[index] for index in (0, 1, 0, 0, 1)]
    batch = collate(samples)
    parts = batch.parts(3)
    assert [len(part.images) for part in parts] == [1, 2, 2]
    for part, few in zip(parts, (samples[:1], samples[1:3], samples[3:]), strict=True):
        assert all(torch.equal(column, expected) for column, expected in zip(part, collate(few), strict=True))
    assert batch.parts(1) == [batch]
    assert batch._replace(colours=None).parts(2)[1].colours is None


def test_collate_of_training_samples(pair):
    ours, theirs = (collate([VOCDataset(pair, transform=t)[0]] * 2) for t in (TrainTransform(300), v2_transform(300)))
    assert (ours.images.dtype, ours.colours.shape) == (torch.uint8, (2, 3, 4))
    assert (theirs.images.dtype, theirs.colours) == (torch.float32, None)
    for batch in (ours, theirs):
        assert type(batch.boxes) is torch.Tensor
        assert batch.to(torch.device("cpu"))[2:] == batch[2:]


def test_a_sample_of_another_form_is_named():
    image, target = torch.zeros(3, 4, 4), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    whole = r"a sample must be \(image, target\), the target a dict with .*; got "
    with pytest.raises(ValueError, match=whole + "a tuple of Tensor, Tensor, Tensor"):
        collate([(image, target), (image, *target.values())])
    with pytest.raises(ValueError, match=whole + "a Tensor"):
        collate([image])


class Noise(Dataset):
    """What a sample with random transforms draws."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.rand(3, 2, 2), {"labels": torch.randint(9, (index % 3,)), "boxes": torch.rand(index % 3, 4)}


class WorkerName(Noise):
    """Labels that tell which process read them."""

    def __getitem__(self, index):
        return torch.zeros(3, 2, 2), {"labels": torch.tensor([os.getpid()]), "boxes": torch.zeros(1, 4)}


class TestSeededDataset:
    def test_depends_on_seed_epoch_and_index_only(self):
        view = SeededDataset(Noise(5), seed=1)
        first = [view[2, index][0] for index in range(5)]
        again = [view[2, index][0] for index in reversed(range(5))][::-1]
        assert torch.equal(torch.stack(first), torch.stack(again))
        keys = ((1, 3), (2, 2), (2, 1), (12, 0), (-1, 2))
        others = [SeededDataset(Noise(5), seed)[epoch, 0][0] for seed, epoch in keys]
        everything = torch.stack([*first, *others]).flatten(1)
        assert len(everything.unique(dim=0)) == 10

    @pytest.mark.parametrize("transform", [TrainTransform(300), v2_transform(300)])
    def test_leaves_all_global_random_states_alone(self, pair, transform):
        view = SeededDataset(VOCDataset(pair, transform=transform), seed=0)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        view[0, 0]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    @pytest.mark.parametrize("transform", [TrainTransform(300, flips=True), v2_transform(300, flips=True)])
    def test_augmentation_is_reproducible_in_another_process_too(self, pair, transform):
        view = SeededDataset(VOCDataset(pair, transform=transform), seed=0)
        first, second, copy = view[3, 0], view[3, 0], pickle.loads(pickle.dumps(view))[3, 0]
        for other in (second, copy):
            assert torch.equal(first[0], other[0])
            assert all(torch.equal(first[1][name], other[1][name]) for name in first[1])
        assert not torch.equal(first[0], view[4, 0][0])


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
        return [(batch.images, batch.labels.tolist(), batch.row_splits.tolist()) for batch in loader]

    def test_workers_and_resuming_do_not_change_the_batches_of_three_epochs(self):
        whole = self.read(train_loader(Noise(22), 4, seed=5, steps=range(15)))
        assert len(whole) == 15 == 3 * steps_per_epoch(22, 4)
        assert len({str(images) for images, *_ in whole}) == 15
        torch.manual_seed(77)
        for workers, start in ((2, 0), (0, 3), (1, 5), (2, 7)):
            part = self.read(train_loader(Noise(22), 4, seed=5, steps=range(start, 15), workers=workers))
            assert len(part) == 15 - start
            for (images, *objects), (expected, *expected_objects) in zip(part, whole[start:], strict=True):
                assert torch.equal(images, expected)
                assert objects == expected_objects

    @pytest.mark.parametrize("full", ["_new_shared", "_share_fd_cpu_"])
    def test_batches_arrive_where_shared_memory_is_full(self, monkeypatch, full):
        """At the images, or at a later column."""
        whole = self.read(train_loader(Noise(8), 4, seed=0, steps=range(3)))

        def no_space(*args, **kwargs):
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

        monkeypatch.setattr(torch.UntypedStorage, full, no_space)
        part = self.read(train_loader(Noise(8), 4, seed=0, steps=range(3), workers=2))
        assert str(part) == str(whole)
        layouts = [[images.stride() for images, *_ in batches] for batches in (part, whole)]
        assert layouts[0] == layouts[1]  # results of convolutions depend on it

    def test_every_picture_once_an_epoch(self):
        loader = train_loader(Noise(6), 2, seed=0, steps=range(2, 9))
        keys = [key for batch in loader.batch_sampler for key in batch]
        assert len(loader) == 7
        assert keys[:2] == [(0, index) for _, index in keys[:2]]
        assert sorted(keys[2:8]) == [(1, index) for index in range(6)]
        assert sorted(keys[8:]) == [(2, index) for index in range(6)]

    def test_workers_live_through_all_epochs(self):
        loader = train_loader(WorkerName(8), 4, seed=0, steps=range(10), workers=2)
        assert len({name for batch in loader for name in batch.labels.tolist()}) == 2

    @pytest.mark.parametrize("workers", [0, 1])
    def test_leaves_the_global_random_state_alone(self, workers):
        before = torch.get_rng_state()
        self.read(train_loader(Noise(8), 4, seed=0, steps=range(4), workers=workers))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_picture_is_named(self, pair, workers):
        dataset = VOCDataset(pair, transform=TrainTransform(300))
        cut(pair / "JPEGImages" / "b.jpg", 0.4)
        before = set(multiprocessing.active_children())
        with pytest.raises(ImageReadError, match=r"^\S*JPEGImages/b\.jpg: cannot decode the picture .*\)$") as raised:
            self.read(train_loader(dataset, 2, seed=0, steps=range(1), workers=workers))
        assert set(multiprocessing.active_children()) <= before  # although the traceback is kept
        assert raised.tb is not None

    @pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
    def test_a_worker_that_is_being_killed_is_one_that_was_killed(self, monkeypatch, error):
        """While the system still ends the process, torch takes it for alive, and reading from it fails."""
        loader = iter(train_loader(WorkerName(8), 2, seed=0, steps=range(100), workers=1))
        next(loader)

        def fail(iterator):
            raise error

        monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_next_data", fail)
        with pytest.raises(ChildProcessError, match=f"was killed; .*{error.__name__}"):
            next(loader)

    def test_a_killed_worker_is_an_error_where_its_batch_is_asked_for(self):
        loader = iter(train_loader(WorkerName(8), 2, seed=0, steps=range(100), workers=2))
        os.kill(next(loader).labels[0], signal.SIGKILL)
        time.sleep(0.1)  # in which torch's own handler would raise
        with pytest.raises(ChildProcessError, match="process that reads pictures was killed"):
            list(loader)
