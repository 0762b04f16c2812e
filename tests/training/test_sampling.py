"""Repeat factor sampling: the factors, the order of the pictures, and runs with it."""

import math
import os
import signal
from collections import Counter
from functools import partial

import pytest
import torch
from short_training import NARROW, run, states_equal

import ssd.training.run as training
from ssd.data.loader import SeededDataset, epoch_batches, epoch_length, train_loader
from ssd.data.shapes import write_shapes
from ssd.runtime.packed import Packed, splits_of
from ssd.training.run import train
from ssd.training.sampling import repeat_factors
from ssd.training.settings import Settings
from ssd.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def objects_of(*pictures):
    labels = torch.tensor([label for labels in pictures for label in labels])
    return Packed({"labels": labels}, splits_of(torch.tensor([len(labels) for labels in pictures])))


def test_the_factor_of_a_picture_is_that_of_its_rarest_class():
    pictures = [[1, 1, 1], [1, 2], [], [1], [1], [1], [1], [4, 2, 1], [1], [1]]
    factors, rare = repeat_factors(objects_of(*pictures), 0.4)
    two, four = math.sqrt(0.4 / 0.2), math.sqrt(0.4 / 0.1)  # class 3 has no object, and class 1 is in most pictures
    assert factors.tolist() == pytest.approx([1, two, 1, 1, 1, 1, 1, four, 1, 1])
    assert factors.dtype == torch.float64
    assert rare == pytest.approx({2: 0.2, 4: 0.1})
    factors, rare = repeat_factors(objects_of(*pictures), 0.05)
    assert factors.tolist() == [1] * 10
    assert rare == {}
    assert repeat_factors(
        Packed({"labels": torch.zeros(0, dtype=torch.int64)}, torch.zeros(4, dtype=torch.int64)), 0.5
    )[0].tolist() == [1, 1, 1]


def test_pictures_are_repeated_as_often_as_their_factors_say():
    repeats = torch.tensor([1, 1, 3, 1, 2.5, 1.3, 1], dtype=torch.float64)
    assert epoch_length(7, repeats) == 11  # 10.8
    total = Counter()
    for epoch in range(400):
        order = [index for batch in epoch_batches(7, 1, seed=0, epoch=epoch, repeats=repeats) for index in batch]
        assert len(order) == 11
        seen = Counter(order)
        assert all(math.floor(r) <= seen[i] <= math.ceil(r * 11 / 10.8) for i, r in enumerate(repeats.tolist()))
        total += seen
    for index, factor in enumerate(repeats.tolist()):
        assert total[index] / 400 == pytest.approx(factor * 11 / 10.8, rel=0.06)  # the seeds are fixed
    assert str(epoch_batches(7, 2, 3, 4, repeats)) == str(epoch_batches(7, 2, 3, 4, repeats))
    assert str(epoch_batches(7, 2, 3, 4, repeats)) != str(epoch_batches(7, 2, 3, 5, repeats))


class Draws:
    """Samples that are drawn at random."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, torch.rand(1).item()


def test_a_repeated_picture_is_augmented_anew():
    repeats = torch.tensor([1, 1, 4, 1, 1], dtype=torch.float64)
    loader = train_loader(Draws(), 2, seed=1, steps=range(8), repeats=repeats)
    keys = list(loader.batch_sampler)
    assert len(keys) == 8
    for epoch in (0, 1):
        of_epoch = [key for batch in keys for key in batch if key[0] == epoch]
        assert sorted(key for key in of_epoch if key[1] == 2) == [(epoch, 2), *((epoch, 2, copy) for copy in (1, 2, 3))]
    samples = SeededDataset(Draws(), 1)
    assert len({samples[key] for batch in keys for key in batch}) == 16
    again = train_loader(Draws(), 2, seed=1, steps=range(3, 8), repeats=repeats)
    assert list(again.batch_sampler) == keys[3:]


def test_a_run_with_repeats_is_resumed_to_the_bit(tmp_path, at_step, capsys, monkeypatch):
    loaders = []
    monkeypatch.setattr(training, "train_loader", lambda *args: loaders.append(train_loader(*args)) or loaders[-1])
    data = write_shapes(tmp_path / "shapes", 7, 3)
    names = (data / "ImageSets" / "Main" / "train.txt").read_text().split()
    rare = data / "Annotations" / f"{names[0]}.xml"
    rare.write_text(rare.read_text().replace("circle", "star").replace("square", "star").replace("triangle", "star"))
    settings = Settings((str(data),), "train", "test", epochs=2, eval_every=2, repeat_factor=0.9, **NARROW)
    straight = train(settings, tmp_path / "straight", device="cpu", workers=0)
    printed = capsys.readouterr().out
    assert "pictures instead of 7: those of rare classes are repeated, up to 2.5 times" in printed  # sqrt(0.9 * 7)
    assert "star (14.29%)" in printed
    assert len(straight["step"]) > 2 * 3
    assert any(len(key) == 3 for batch in loaders[0].batch_sampler for key in batch)  # the second copy of a picture
    at_step(5, partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(settings, tmp_path / "resumed")
    assert run(None, tmp_path / "resumed", resume=True, workers=1) == straight
    ends = [load_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "resumed")]
    assert states_equal(ends[0]["model"], ends[1]["model"])
