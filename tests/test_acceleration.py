"""torchvision's detectors, accelerated, against a plain copy of the same model on the same images and targets.

Most tests put given predictions in the place of the network, so that the rest of `forward` is quick.
"""

import copy
import pickle
from functools import cache

import pytest
import torch
from inputs import objects, trained_like
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from ssd import accelerate
from ssd.networks.priors import PRESETS, make_priors

RATIOS, STEPS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]], [8, 16, 32, 64, 100, 300]
SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
PRIORS = make_priors("torchvision")
SIZES = ((30, 50), (64, 20), (7, 9))  # of images, height and width
RETINA_STRIDES = (8, 16, 32, 64, 128)


class Maps(nn.Module):
    """A backbone that gives empty feature maps: of these sizes, or of the image's divided by these strides."""

    def __init__(self, sizes=(), strides=()):
        super().__init__()
        self.sizes, self.strides = sizes, strides
        self.out_channels = 1 if strides else [1] * len(sizes)

    def forward(self, x):
        sizes = [(n, n) for n in self.sizes] + [[-(-side // s) for side in x.shape[-2:]] for s in self.strides]
        return {str(i): x.new_zeros(len(x), 1, *size) for i, size in enumerate(sizes)}


class Given(nn.Module):
    """A head that predicts what it is told."""

    def __init__(self):
        super().__init__()
        self.outputs = {}

    def forward(self, features):
        return self.outputs


def ssd_arguments(classes=21):
    generator = DefaultBoxGenerator(RATIOS, scales=SCALES, steps=STEPS)
    return Maps(PRESETS["torchvision"].maps), generator, (300, 300), classes, None, None, Given()


def make_ssd(classes=21, **options):
    return SSD(*ssd_arguments(classes), **options)


def make_retinanet(classes=4, **options):
    return RetinaNet(Maps(strides=RETINA_STRIDES), classes, 96, 160, head=Given(), **options)


def n_anchors(model):
    given = model.eval().transform(images(3))[0]
    return len(model.anchor_generator(given, list(model.backbone(given.tensors).values()))[0])


def pair(plain):
    return plain, accelerate(copy.deepcopy(plain))


def image_sizes(n):
    return [SIZES[i % len(SIZES)] for i in range(n)]


def images(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=g) for size in image_sizes(n)]


def targets(n, fewest=0):
    """Objects for images(n), in pixels: some reach out of their image."""
    x = objects(n, 21, fewest, 20)
    sizes = [torch.tensor([width, height] * 2) for height, width in image_sizes(n)]
    return [{"boxes": b * size, "labels": k} for b, k, size in zip(x.box_lists, x.label_lists, sizes, strict=True)]


def predict(models, offsets, logits):
    for model in models:
        model.head.outputs = {
            "bbox_regression": offsets.detach().clone().requires_grad_(),
            "cls_logits": logits.detach().clone().requires_grad_(),
        }


def trained(model, images, targets):
    """The losses, and the gradients of the head's outputs."""
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    return losses, [x.grad for x in model.head.outputs.values()]


def assert_same_training(plain, ours, images, targets):
    (their_losses, their_grads), (losses, grads) = (trained(model, images, targets) for model in (plain, ours))
    assert list(losses) == list(their_losses)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, their_losses[name], rtol=1e-5, atol=0)
    for a, b in zip(grads, their_grads, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def decided(plain, images):
    """What torchvision finds in each image; None where rounding decides: with thresholds near by it finds other things.

    Its NMS moves the boxes of a class by up to thousands of pixels, which costs an IoU four of its seven digits.
    """
    thresholds = plain.nms_thresh, plain.score_thresh
    found = []
    for sign in (0, -1, 1):
        plain.nms_thresh, plain.score_thresh = thresholds[0] + sign * 2e-4, thresholds[1] * (1 + sign * 1e-6)
        found.append(plain.eval()(images))
    plain.nms_thresh, plain.score_thresh = thresholds
    apart = 2e-6 if isinstance(plain, SSD) else 0  # softmax is ours, sigmoid is torch's
    return [
        x
        if all(torch.equal(x["scores"], y["scores"]) for y in near)
        and (x["scores"].diff() < -apart * x["scores"][1:]).all()
        else None
        for x, *near in zip(*found, strict=True)
    ]


def assert_same_detections(plain, ours, images):
    """Returns how many detections there are, and in how many images rounding decides."""
    total = undecided = 0
    found = ours.eval()(images)
    for x, theirs, image in zip(found, decided(plain, images), images, strict=True):
        if theirs is None:
            undecided += 1
            continue
        assert list(x) == list(theirs)
        assert torch.equal(x["labels"], theirs["labels"])
        torch.testing.assert_close(x["scores"], theirs["scores"], rtol=1e-5, atol=0)
        torch.testing.assert_close(x["boxes"], theirs["boxes"], rtol=0, atol=1e-5 * max(image.shape[1:]))
        total += len(x["labels"])
    return total, undecided


# ------------------------------------------------------------------------------------------------ SSD


def test_losses_and_gradients_of_100_batches():
    """Anchors within an object, or around it, overlap it equally but for rounding: theirs are matched to the bit."""
    models = pair(make_ssd())
    g = torch.Generator().manual_seed(3)
    everything = images(200), targets(200)
    for i in range(0, 200, 2):
        predict(models, torch.randn(2, 8732, 4, generator=g), 3 * torch.randn(2, 8732, 21, generator=g))
        assert_same_training(*models, *(x[i : i + 2] for x in everything))


def test_detections_of_100_batches():
    models = pair(make_ssd())
    everything, found = images(200), []
    for i, (offsets, logits) in enumerate(zip(*(x.split(2) for x in trained_like(200, 21, PRIORS)), strict=True)):
        predict(models, offsets, logits)
        found.append(assert_same_detections(*models, everything[2 * i : 2 * i + 2]))
    detections, undecided = map(sum, zip(*found, strict=True))
    assert detections > 2000
    assert undecided < 10


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 0), (2,)])
def test_training_with_images_without_objects(counts):
    models = pair(make_ssd())
    given = [{k: v[:n] for k, v in t.items()} for t, n in zip(targets(2, fewest=3), counts, strict=False)]
    predict(models, torch.randn(len(counts), 8732, 4), torch.randn(len(counts), 8732, 21))
    assert_same_training(*models, images(len(counts)), given)


@pytest.mark.parametrize("settings", [{"iou_thresh": 0.35}, {"positive_fraction": 0.4}])
def test_training_with_other_settings(settings):
    models = pair(make_ssd(**settings))
    predict(models, torch.randn(2, 8732, 4), torch.randn(2, 8732, 21))
    assert_same_training(*models, images(2), targets(2, fewest=1))


CASES = {
    # name: settings, how predictions (offsets, logits) are changed, detections at least
    "nothing passes": ({"score_thresh": 1.0}, None, 0),
    "one class": ({}, lambda x, s: (x, s[..., [0, 3]]), 1),
    "all scores pass": ({"score_thresh": 0.0}, None, 100),
    "one candidate of a class": ({"topk_candidates": 1}, None, 4),
    "no candidate": ({"topk_candidates": 0}, None, 0),
    "one detection": ({"detections_per_img": 1}, None, 4),
    "other settings": ({"score_thresh": 0.02, "nms_thresh": 0.8}, None, 4),
    "outside of the image": ({}, lambda x, s: (x + torch.tensor([500, -500, 0, 0]), s), 100),
    "huge boxes": ({}, lambda x, s: (x + torch.tensor([0, 0, 1e3, 1e3]), s), 4),
    "tiny boxes": ({}, lambda x, s: (x - torch.tensor([0, 0, 1e3, 1e3]), s), 100),
    "huge offsets": ({}, lambda x, s: (1e20 * x, s), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_detection_at_the_edges(name):
    settings, change, least = CASES[name]
    models = pair(make_ssd())
    predictions = trained_like(4, 21, PRIORS)
    predict(models, *(change(*predictions) if change else predictions))
    for model in models:  # after `accelerate`: they are read at each call
        vars(model).update(settings)
    found, undecided = assert_same_detections(*models, images(4))
    assert found >= least
    assert undecided <= 1
    predict(models, *(x[:1] for x in models[0].head.outputs.values()))
    assert_same_detections(*models, images(1))


@pytest.mark.parametrize(("make", "threshold"), [(make_ssd, 0.25), (make_retinanet, 0.5)])
def test_a_score_equal_to_the_threshold_does_not_pass(make, threshold):
    for model in pair(make(4)):
        predict([model], torch.zeros(3, n_anchors(model), 4), torch.zeros(3, n_anchors(model), 4))
        model.score_thresh = threshold
        assert [len(found["labels"]) for found in model.eval()(images(3))] == [0, 0, 0]
        model.score_thresh -= 1e-6
        assert [len(found["labels"]) for found in model.eval()(images(3))] == [model.detections_per_img] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    models = pair(make_ssd())
    offsets, logits = trained_like(2, 21, PRIORS)
    predict(models, offsets.to(dtype), logits.to(dtype))
    with torch.autocast("cpu", dtype):
        assert_same_training(*models, images(2), targets(2, fewest=1))
        assert_about_the_same_best(*models, images(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_retinanet(dtype):
    models = pair(make_retinanet())
    g, n = torch.Generator().manual_seed(4), n_anchors(models[0])
    predict(models, torch.zeros(3, n, 4, dtype=dtype), (2 * torch.randn(3, n, 4, generator=g) - 6).to(dtype))
    with torch.autocast("cpu", dtype):
        assert_about_the_same_best(*models, images(3))


def assert_about_the_same_best(plain, ours, images):
    """The best detection of each image: torchvision's boxes are rounded to a few bits."""
    for a, b in zip(ours.eval()(images), plain.eval()(images), strict=True):
        assert {x.dtype for x in a.values()} == {torch.float32, torch.int64}
        assert a["labels"][0] == b["labels"][0]
        torch.testing.assert_close(a["scores"][0], b["scores"][0].float(), rtol=1e-2, atol=0)
        torch.testing.assert_close(a["boxes"][0], b["boxes"][0].float(), rtol=2e-2, atol=1)


def test_nothing_is_matched_twice(monkeypatch):
    _, ours = pair(make_ssd())
    predict([ours], torch.randn(2, 8732, 4), torch.randn(2, 8732, 21))
    monkeypatch.delattr(SSDMatcher, "__call__")
    monkeypatch.delattr(Matcher, "__call__")
    monkeypatch.delattr("torchvision.ops.boxes.box_iou")
    assert sum(ours.train()(images(2), targets(2)).values()) > 0


def test_a_matching_of_ones_own_is_used():
    plain, ours = pair(make_ssd())
    predict([plain, ours], torch.randn(2, 8732, 4), torch.randn(2, 8732, 21))
    matched = torch.full((2, 8732), -1)
    matched[:, :5] = 0
    arguments = targets(2, fewest=1), plain.head.outputs, [torch.rand(8732, 4).cumsum(1)] * 2, list(matched)
    assert ours.compute_loss(*arguments) == plain.compute_loss(*arguments)


GOOD = torch.tensor([[1.0, 2, 3, 4]])
BAD_TARGETS = {
    "no targets": None,
    "no tensor": [{"boxes": [[1, 2, 3, 4]], "labels": torch.ones(1).long()}] * 2,
    "flat": [{"boxes": GOOD[0], "labels": torch.ones(1).long()}] * 2,
    "five columns": [{"boxes": torch.ones(1, 5), "labels": torch.ones(1).long()}] * 2,
    "degenerate": [{"boxes": b, "labels": torch.ones(len(b)).long()} for b in (GOOD, torch.cat([GOOD, GOOD * 0]))],
    "inverted": [{"boxes": b, "labels": torch.ones(len(b)).long()} for b in (GOOD[:0], GOOD.flip(1))],
}


@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_bad_targets_raise_as_in_torchvision(bad):
    models = pair(make_ssd())
    predict(models, torch.randn(2, 8732, 4), torch.randn(2, 8732, 21))
    errors = []
    for model in models:
        with pytest.raises(AssertionError) as error:
            model.train()(images(2), BAD_TARGETS[bad])
        errors.append(str(error.value))
    assert errors[0] == errors[1]


# ------------------------------------------------------------------------------------------------ RetinaNet

RETINA_CASES = {
    # name: settings, shift of the logits, scale of the offsets, detections at least
    "usual": ({}, -6, 0.3, 300),
    "nothing passes": ({"score_thresh": 1.0}, 0, 0.3, 0),
    "in one image only": ({}, torch.tensor([-6.0, -99, -99])[:, None, None], 0.3, 100),
    "all scores pass": ({"score_thresh": 0.0}, -6, 0.3, 300),
    "one candidate of a level": ({"topk_candidates": 1}, -6, 0.3, 3),
    "no candidate": ({"topk_candidates": 0}, -6, 0.3, 0),
    "one detection": ({"detections_per_img": 1, "nms_thresh": 0.3}, -6, 0.3, 3),
    "huge offsets": ({}, -6, 1e4, 100),
}


@pytest.mark.parametrize("name", RETINA_CASES)
def test_detection_of_retinanet(name):
    settings, shift, scale, least = RETINA_CASES[name]
    models = pair(make_retinanet())
    for model in models:
        vars(model).update(settings)
    given, g, results = images(3), torch.Generator().manual_seed(4), []
    for _ in range(10):
        offsets, logits = (torch.randn(3, n_anchors(models[0]), 4, generator=g) for _ in range(2))
        predict(models, scale * offsets, 2 * logits + shift)
        results.append(assert_same_detections(*models, given))
    found, undecided = map(sum, zip(*results, strict=True))
    assert found >= 10 * least
    assert undecided <= 10


# ------------------------------------------------------------------------------------------------ real networks

NETWORKS = {
    # name: the model, its options, images of a batch
    "ssd300": (detection.ssd300_vgg16, {}, 1),
    "ssdlite320": (detection.ssdlite320_mobilenet_v3_large, {}, 2),
    "retinanet": (detection.retinanet_resnet50_fpn, {"min_size": 64, "max_size": 96}, 2),
    "retinanet_v2": (detection.retinanet_resnet50_fpn_v2, {"min_size": 64, "max_size": 96}, 2),
}


@cache
def network(name):
    """With random weights; as it would predict nearly the same everywhere, noise is added to what it predicts."""
    torch.manual_seed(0)
    make, options, _ = NETWORKS[name]
    model = make(weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0, **options)
    noise = {}

    def spread(head, features, outputs):
        if not noise:
            noise.update((name, torch.randn(x.shape[1:])) for name, x in outputs.items())
        return {name: x + noise[name] for name, x in outputs.items()}

    model.head.register_forward_hook(spread)
    with torch.no_grad():
        if name == "ssd300":  # whose scores would all be 0 or 1
            for weights in model.head.classification_head.parameters():
                weights *= 0.1
        else:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None  # its statistics are those of the next batch
            model.train()(images(2), few_targets())
        found = model.eval()(images(2))
    model.score_thresh = float(found[0]["scores"][40:42].mean())
    return model


def few_targets():
    """Objects for images(2), of three classes."""
    return [{"boxes": t["boxes"], "labels": (t["labels"] - 1) % 3 + 1} for t in targets(2, fewest=1)]


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_of_the_network(name):
    models = pair(copy.deepcopy(network(name)))
    n = NETWORKS[name][2]
    found, _ = assert_same_detections(*models, images(n))
    assert found > 30
    theirs, ours = (model.train()(images(n), few_targets()[:n]) for model in models)
    for part, loss in ours.items():
        torch.testing.assert_close(loss, theirs[part], rtol=1e-5, atol=0)
    for losses in (theirs, ours):
        sum(losses.values()).backward()
    a, b = (torch.cat([x.grad.flatten() for x in model.parameters()]) for model in models)
    assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("name", ["ssd300", "ssdlite320"])
@torch.no_grad()
def test_export_and_compile(name):
    """torchvision's own fail in `batched_nms`, which asks for the number of candidates."""
    ours = accelerate(copy.deepcopy(network(name))).eval()
    given = images(2), [100 * image for image in images(2)]
    expected = [ours(x) for x in given]
    assert len({len(found["labels"]) for x in expected for found in x}) > 1
    exported = torch.export.export(ours, (given[0],)).module()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for call in (exported, compiled):
        for x, results in zip(given, expected, strict=True):
            torch.testing.assert_close(call(x), results)


@pytest.mark.parametrize(("make", "shift"), [(make_ssd, 9), (make_retinanet, 6)])
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and warns where it takes a number as a constant
def test_torch_jit_trace(make, shift):
    """The number of detections is not a constant in the graph. A RetinaNet is traced with torchvision's detection."""
    plain, ours = pair(make(4).eval())
    given = ours.transform(images(2))[0]
    anchors = ours.anchor_generator(given, list(ours.backbone(given.tensors).values()))
    n, shapes = len(anchors[0]), [(300, 300)] * 2
    height, width = given.tensors.shape[-2:]
    levels = [9 * -(-height // stride) * -(-width // stride) for stride in RETINA_STRIDES]

    def detect(offsets, logits, model=ours):
        outputs = {"bbox_regression": offsets, "cls_logits": logits}
        split = anchors
        if make is make_retinanet:
            outputs = {name: list(x.split(levels, dim=1)) for name, x in outputs.items()}
            split = [list(x.split(levels)) for x in anchors]
        return tuple(x for found in model.postprocess_detections(outputs, split, shapes) for x in found.values())

    g = torch.Generator().manual_seed(5)
    background = torch.tensor([shift, 0, 0, 0]) if make is make_ssd else -shift
    predictions = [
        (torch.randn(2, n, 4, generator=g), torch.randn(2, n, 4, generator=g) + background) for _ in range(2)
    ]
    traced = torch.jit.trace(detect, predictions[0], check_trace=False)
    expected = [detect(*each, ours if make is make_ssd else plain) for each in predictions]
    assert len(expected[0][0]) != len(expected[1][0])
    for each, results in zip(predictions, expected, strict=True):
        for a, b in zip(traced(*each), results, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_export_to_onnx(dynamo, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"no {package}: pip install 'ssd-ext[onnx]'")
    import onnxruntime

    ours = accelerate(copy.deepcopy(network("ssdlite320"))).eval()
    path, given = tmp_path / "model.onnx", images(2)
    torch.onnx.export(ours, (given,), path, dynamo=dynamo, opset_version=18 if dynamo else 16, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    numbers = set()
    for scale in (1, 100):
        images_ = [scale * image for image in given]
        names = [x.name for x in session.get_inputs()]
        found = session.run(None, {name: image.numpy() for name, image in zip(names, images_, strict=True)})
        for i, expected in enumerate(ours(images_)):
            boxes, scores, labels = (torch.from_numpy(x) for x in found[3 * i : 3 * i + 3])
            numbers.add(len(labels))
            torch.testing.assert_close(scores, expected["scores"], rtol=1e-3, atol=0)
            # Rounding in the network moves boxes, and swaps some that are nearly equal.
            rows, wanted = (
                torch.cat([x, 1e3 * k[:, None]], 1)
                for x, k in ((boxes, labels), (expected["boxes"], expected["labels"]))
            )
            assert torch.cdist(rows, wanted, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values.max() < 0.2
    assert len(numbers) > 1


# ------------------------------------------------------------------------------------------------ a model as any other


class WithClassOfItsOwn(SSD):
    pass


def test_the_model_stays_the_same_object():
    plain = make_ssd()
    calls = []
    plain.register_forward_hook(lambda *_: calls.append("hook"))
    before = plain.state_dict()
    assert accelerate(plain) is plain
    assert isinstance(plain, SSD)
    assert accelerate(plain) is plain
    assert type(plain).__bases__[1] is SSD
    assert plain.state_dict().keys() == before.keys()
    predict([plain], torch.randn(1, 8732, 4), torch.randn(1, 8732, 21))
    plain.eval()(images(1))
    assert calls == ["hook"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_accelerated(copied):
    for plain in (make_retinanet(), WithClassOfItsOwn(*ssd_arguments())):
        ours = accelerate(plain)
        ours.score_thresh = 0.3
        again = copied(ours)
        assert type(again) is type(ours)
        assert again is not ours
        assert again.score_thresh == 0.3
        assert type(again).forward is type(ours).forward


class WithForward(SSD):
    def forward(self, images, targets=None):
        return super().forward(images, targets)


class OtherMatcher(SSDMatcher):
    pass


class OtherCoder(BoxCoder):
    pass


class OtherAnchors(DefaultBoxGenerator):
    def forward(self, image_list, feature_maps):
        return super().forward(image_list, feature_maps)


def low_quality():
    matcher = SSDMatcher(0.5)
    matcher.allow_low_quality_matches = True
    return matcher


@pytest.mark.parametrize(
    ("attributes", "error", "named"),
    [
        ({"box_coder": BoxCoder((10, 9, 5, 5))}, ValueError, "weights"),
        ({"box_coder": BoxCoder((10, 10, 5, 4))}, ValueError, "weights"),
        ({"box_coder": OtherCoder((10, 10, 5, 5))}, TypeError, "OtherCoder"),
        ({"proposal_matcher": Matcher(0.5, 0.5)}, TypeError, "Matcher"),
        ({"proposal_matcher": OtherMatcher(0.5)}, TypeError, "OtherMatcher"),
        ({"proposal_matcher": low_quality()}, ValueError, "low-quality"),
        ({"anchor_generator": OtherAnchors(RATIOS)}, TypeError, "OtherAnchors"),
        ({"anchor_generator": AnchorGenerator()}, TypeError, "AnchorGenerator"),
        ({"postprocess_detections": len}, TypeError, "postprocess_detections"),
    ],
)
def test_what_cannot_be_accelerated_is_named(attributes, error, named):
    plain = make_ssd()
    for name, value in attributes.items():
        setattr(plain, name, value)
    with pytest.raises(error, match=named):
        accelerate(plain)
    assert type(plain) is SSD


def test_other_models_are_named():
    with pytest.raises(TypeError, match=r"WithForward.*forward"):
        accelerate(WithForward(*ssd_arguments()))
    with pytest.raises(TypeError, match="Linear"):
        accelerate(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("name", "value"), [("box_coder", BoxCoder((1, 2, 3, 3))), ("proposal_matcher", low_quality())]
)
def test_a_setting_that_came_later_is_named(name, value):
    _, ours = pair(make_ssd())
    predict([ours], torch.randn(1, 8732, 4), torch.randn(1, 8732, 21))
    setattr(ours, name, value)
    with pytest.raises(ValueError, match=name):
        ours.train()(images(1), targets(1))
