from functools import partial

import adversarial as adv
import pytest
import torch

import ssd_ext
from ops.nms import batched_oracle, oracle, scores_of
from ssd_ext._op import plain
from ssd_ext.ops import nms as nms_module

NMS = pytest.mark.parametrize("nms", [plain.nms, ssd_ext.nms], ids=["plain", "public"])
BATCHED = pytest.mark.parametrize("batched_nms", [plain.batched_nms, ssd_ext.batched_nms], ids=["plain", "public"])


BOXES = (partial(adv.grid_boxes, cells=4), adv.random_boxes, adv.hostile_boxes)


def check(op, expected, tensors, threshold, device):
    tensors = [x.to(device) for x in tensors]
    actual = op(*tensors, threshold)
    assert actual.dtype == torch.int64
    assert torch.equal(actual.cpu(), expected)
    assert torch.equal(op(*map(adv.sliced, tensors), threshold).cpu(), expected)


def class_ids(n, n_classes, seed=0):
    return torch.randint(n_classes, (n,), generator=adv.generator(seed)) * 7 - 10


@NMS
@pytest.mark.parametrize("n", [*adv.SIZES, 255, 256, 257, 300])
def test_nms_equals_the_oracle(nms, n, device):
    for seed, make in enumerate(BOXES):
        boxes, scores = make(n, seed), scores_of(n, seed)
        for threshold in (0.0, 0.5):
            check(nms, oracle(boxes, scores, threshold), (boxes, scores), threshold, device)


@BATCHED
@pytest.mark.parametrize("n", [*adv.SIZES, 300])
@pytest.mark.parametrize("n_classes", [1, 3, 1000])
def test_batched_nms_equals_the_oracle(batched_nms, n, n_classes, device):
    for seed, make in enumerate(BOXES):
        boxes, scores, idxs = make(n, seed), adv.hostile_values((n,), seed), class_ids(n, n_classes, seed)
        expected = batched_oracle(boxes, scores, idxs, 0.4)
        check(batched_nms, expected, (boxes, scores, idxs), 0.4, device)


@pytest.mark.parametrize(("band", "chunk"), [(1, 1), (2, 5), (3, 100), (100, 2)])
def test_where_bands_and_chunks_end_does_not_matter(band, chunk, monkeypatch):
    monkeypatch.setattr(nms_module, "NMS_BAND", band)
    monkeypatch.setattr(nms_module, "NMS_CHUNK", chunk)
    for seed in range(4):
        boxes, scores, idxs = BOXES[0](65, seed), adv.hostile_values((65,), seed), class_ids(65, 3)
        expected = batched_oracle(boxes, scores, idxs, 0.3)
        assert torch.equal(plain.batched_nms(boxes, scores, idxs, 0.3), expected)


@NMS
def test_nms_equals_torchvision_on_many_boxes(nms, device):
    torchvision = pytest.importorskip("torchvision")
    n = 5000
    boxes, scores = adv.random_boxes(n, 1).to(device), torch.rand(n, generator=adv.generator(1)).to(device)
    scores = scores.unique()[torch.randperm(len(scores.unique()), generator=adv.generator(2)).to(device)]
    boxes = boxes[: len(scores)]
    for threshold in (0.1, 0.45, 0.9):
        assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@BATCHED
def test_many_boxes_of_many_classes(batched_nms, device):
    """Each class alone gives what all give together; ids are beyond 32 bits, coordinates far from 0."""
    torchvision = pytest.importorskip("torchvision")
    n = 6000
    boxes = adv.random_boxes(n, 1) + 1e4
    scores, idxs = torch.rand(n, generator=adv.generator(1)), class_ids(n, 2000) * 2**40
    kept = torch.zeros(n, dtype=torch.bool)
    for members in (idxs == i for i in idxs.unique()):
        rows = members.nonzero()[:, 0]
        kept[rows[torchvision.ops.nms(boxes[rows], scores[rows], 0.3)]] = True
    expected = scores.masked_fill(~kept, -1).argsort(descending=True, stable=True)[: int(kept.sum())]
    assert torch.equal(batched_nms(boxes.to(device), scores.to(device), idxs.to(device), 0.3).cpu(), expected)


def test_memory_is_bounded(monkeypatch):
    """However many boxes there are, no more IoUs exist at a time than a band and a chunk have."""
    monkeypatch.setattr(nms_module, "NMS_BAND", 32)
    monkeypatch.setattr(nms_module, "NMS_CHUNK", 512)
    largest = 0

    def watched(a, b, overlap=nms_module.overlap):
        nonlocal largest
        result = overlap(a, b)
        largest = max(largest, result[0].numel())
        return result

    monkeypatch.setattr(nms_module, "overlap", watched)
    plain.nms(adv.random_boxes(3000), torch.zeros(3000), 0.9)
    assert largest == 32 * 512


@NMS
@pytest.mark.parametrize(("a", "b", "iou"), adv.AT_THRESHOLD)
def test_the_threshold_itself_does_not_suppress(nms, a, b, iou, device):
    boxes, scores = torch.tensor([a, b], device=device), torch.tensor([0.5, 0.9], device=device)
    assert nms(boxes, scores, iou).tolist() == [1, 0]
    below = float(torch.tensor(iou).nextafter(torch.tensor(0.0)))
    assert nms(boxes, scores, below).tolist() == [1]


@NMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_only_numbers_below_the_iou_suppress(nms, dtype, device):
    """Kernels avoid the division where they can: their shortcut may not decide one unit in the last place early."""
    scores = torch.tensor([1.0, 0.5], device=device)
    for box in adv.random_boxes(40).to(dtype):
        boxes = torch.stack([box, box + (box[2:] - box[:2]).repeat(2) * 0.2]).to(device)
        iou = plain.box_iou(boxes[:1], boxes[1:])[0, 0].cpu()
        assert iou > 0
        assert nms(boxes, scores, iou.item()).tolist() == [0, 1]
        assert nms(boxes, scores, iou.nextafter(torch.zeros_like(iou)).item()).tolist() == [0]


@NMS
def test_a_negative_threshold_suppresses_all_but_the_first(nms, device):
    boxes, scores = torch.tensor(adv.NOT_BOXES, device=device), torch.zeros(len(adv.NOT_BOXES), device=device)
    assert nms(boxes, scores, -1.0).tolist() == [0]


@NMS
@pytest.mark.parametrize("tenths", range(1, 10))
def test_the_threshold_is_a_double_as_in_torchvision(nms, tenths, device):
    """k / 10 rounded to float32 may lie above the double of the same name, and then suppresses."""
    torchvision = pytest.importorskip("torchvision")
    for dtype in (torch.float32, torch.float64):
        boxes = torch.tensor([[0, 0, 10, 1], [0, 0, tenths, 1]], dtype=dtype)
        expected = torchvision.ops.nms(boxes, torch.ones(2, dtype=dtype), tenths / 10).tolist()
        assert nms(boxes.to(device), torch.ones(2, device=device), tenths / 10).tolist() == expected
        above = float(torch.tensor(tenths / 10)) > tenths / 10
        assert expected == ([0] if dtype == torch.float32 and above else [0, 1])


@NMS
def test_order(nms, device):
    boxes = torch.tensor([[i, 0, i + 0.5, 1] for i in range(7)], device=device)
    scores = torch.tensor([0.0, adv.NAN, -0.0, adv.INF, -adv.NAN, -adv.INF, 0.0], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1, 4, 3, 0, 2, 6, 5]


@NMS
def test_a_suppressed_box_suppresses_nothing(nms, device):
    boxes = torch.tensor([[i * 0.25, 0, i * 0.25 + 1, 1] for i in range(40)], device=device)  # neighbours: 3/5
    scores = torch.linspace(1, 0, 40, device=device)
    assert nms(boxes, scores, 0.5).tolist() == list(range(0, 40, 2))


@pytest.mark.parametrize("shape", [(0,), (0, 4)])
def test_an_empty_tensor_has_no_boxes(shape):
    """As torchvision's own test calls it."""
    found = ssd_ext.batched_nms(torch.empty(shape, dtype=torch.int64), None, None, None)
    assert (found.shape, found.dtype) == ((0,), torch.int64)


def test_groups_may_be_bool(device):
    boxes, scores = adv.random_boxes(60).to(device), torch.rand(60, generator=adv.generator(0)).to(device)
    groups = torch.arange(60, device=device) % 2
    expected = ssd_ext.batched_nms(boxes, scores, groups, 0.1)
    assert not torch.equal(expected, ssd_ext.nms(boxes, scores, 0.1))
    assert torch.equal(ssd_ext.batched_nms(boxes, scores, groups.bool(), 0.1), expected)


@NMS
def test_equal_boxes_and_no_boxes(nms, device):
    same = torch.tensor([[0.0, 0, 1, 1]], device=device).expand(50, 4)
    assert nms(same, torch.zeros(50, device=device), 0.5).tolist() == [0]
    bad = torch.tensor(adv.NOT_BOXES, device=device)
    assert nms(bad, torch.zeros(len(bad), device=device), 0.0).tolist() == list(range(len(bad)))


@BATCHED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("idxs_dtype", [torch.int64, torch.int32], ids=str)
def test_dtypes(batched_nms, dtype, idxs_dtype, device):
    boxes, scores = adv.random_boxes(100) * 8, torch.rand(100, generator=adv.generator(0))
    idxs = class_ids(100, 3).to(idxs_dtype)
    for b, s in ((boxes.to(dtype), scores.to(dtype)), (boxes.to(dtype), scores), (boxes, scores.to(dtype))):
        check(batched_nms, batched_oracle(b, s, idxs, 0.3), (b, s, idxs), 0.3, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_groups_may_be_floating(dtype, device):
    """Such as the column of classes in a tensor of predictions; torchvision takes them too."""
    boxes, scores = adv.random_boxes(200).to(device), torch.rand(200, generator=adv.generator(0)).to(device)
    numbers = torch.tensor([0.0, 1, -2, 0.5, 6e4, torch.inf], device=device).to(dtype)
    groups = torch.randint(6, (200,), generator=adv.generator(1)).to(device)
    expected = ssd_ext.batched_nms(boxes, scores, groups, 0.3)
    assert torch.equal(ssd_ext.batched_nms(boxes, scores, numbers[groups], 0.3), expected)
    signed = torch.where(groups % 2 == 0, torch.tensor(-0.0, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    assert torch.equal(ssd_ext.batched_nms(boxes, scores, signed, 0.3), ssd_ext.nms(boxes, scores, 0.3))


@NMS
def test_integer_boxes(nms, device):
    boxes, scores = (adv.grid_boxes(65) * 300).long(), torch.rand(65, generator=adv.generator(0))
    check(nms, oracle(boxes, scores, 0.3), (boxes, scores), 0.3, device)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("boxes", {"boxes": torch.zeros(3, 5)}),
        ("scores", {"scores": torch.zeros(2)}),
        ("scores", {"scores": torch.zeros(3, dtype=torch.int64)}),
        ("idxs", {"idxs": torch.zeros(2, dtype=torch.int64)}),
        ("idxs", {"idxs": torch.zeros(3, dtype=torch.complex64)}),
    ],
)
def test_bad_input_is_named(name, change):
    good = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "idxs": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=name):
        ssd_ext.batched_nms(**{**good, **change}, iou_threshold=0.5)
    if name != "idxs":
        both = {k: {**good, **change}[k] for k in ("boxes", "scores")}
        with pytest.raises(ValueError, match=name):
            ssd_ext.nms(**both, iou_threshold=0.5)
