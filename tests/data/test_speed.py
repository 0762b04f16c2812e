"""How many pictures a core prepares: no time is looked at."""

import torch

from ssd.data import open_dataset
from ssd.data.augmentation import EvalTransform, TrainTransform
from ssd.data.shapes import write_shapes
from ssd.data.speed import InputSpeed, measure_speed


def test_a_data_set_is_measured_and_left_as_it_is(tmp_path):
    transform = EvalTransform(300)
    dataset = open_dataset(write_shapes(tmp_path / "shapes", 3, 0), transform=transform)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speed = measure_speed(dataset, TrainTransform, 300, batch_size=2, seconds=0.01)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert min(speed) > 0
    assert dataset.transform is transform


def test_cores_are_rounded_up():
    lines = str(InputSpeed(400.4, 300.0, 350.0)).splitlines()
    assert lines[:3] == [
        "reading: 400 pictures/s",
        "training samples: 300 pictures/s",
        "evaluation samples: 350 pictures/s",
    ]
    assert lines[3:] == [f"training at {n} pictures/s: {cores} cores" for n, cores in ((100, 1), (700, 3), (1500, 5))]
