"""Detection: average precision by hand and against pycocotools, the detectors, their training data."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import evaluate
import pairs
from pairs import UserError


def boxes(*rows):
    return np.array(rows, float).reshape(-1, 4)


def truth_of(b, labels=None, difficult=None):
    return {"boxes": b, "labels": np.zeros(len(b), int) if labels is None else np.array(labels),
            "difficult": np.zeros(len(b), bool) if difficult is None else np.array(difficult)}


def found_of(b, scores, labels=None):
    return {"boxes": b, "scores": np.array(scores, float), "labels": np.zeros(len(b), int) if labels is None else np.array(labels)}


A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


@pytest.mark.parametrize("found, difficult, ap50, voc", [
    (found_of(boxes(A, B), [0.9, 0.8]), None, 1, 1),
    (found_of(boxes(A), [0.9]), None, 51 / 101, 6 / 11),  # recall stops at one half: 0 ... 0.50, and 0 ... 0.5
    (found_of(boxes(A, A, B), [0.9, 0.8, 0.7]), None, (51 + 50 * 2 / 3) / 101, (6 + 5 * 2 / 3) / 11),  # the second A is wrong
    (found_of(boxes(FAR, A, B), [0.9, 0.8, 0.7]), None, 2 / 3, 2 / 3),
    (found_of(boxes(A, B, B), [0.7, 0.9, 0.8]), [False, True], 1, 1),  # any number on a difficult box do not count
    (found_of(boxes(), []), None, 0, 0),
])
def test_average_precision_by_hand(found, difficult, ap50, voc):
    for kind in (bool, int):
        truth = [truth_of(boxes(A, B), difficult=np.array(difficult or [False, False], kind))]
        assert evaluate.coco_average_precision(truth, [found], 1)[0, 0] == pytest.approx(ap50)
        assert evaluate.voc_detection_ap(truth, [found], 1)[0] == pytest.approx(voc)
    for average_precision in (evaluate.coco_average_precision, evaluate.voc_detection_ap):
        with pytest.raises(ValueError):
            average_precision(truth, [found, found], 1)


def test_a_class_without_true_boxes_is_left_out():
    truth, found = [truth_of(boxes(A), difficult=[True]), truth_of(boxes())], [found_of(boxes(A), [0.9]), found_of(boxes(A), [0.9])]
    assert np.isnan(evaluate.coco_average_precision(truth, found, 2)).all() and np.isnan(evaluate.voc_detection_ap(truth, found, 2)).all()


def test_the_hundred_most_certain_of_an_image_count():
    for wrong, ap in ((99, 1 / 100), (100, 0)):
        found = found_of(boxes(*[FAR] * wrong, A), [0.9] * wrong + [0.1])
        assert evaluate.coco_average_precision([truth_of(boxes(A))], [found], 1)[0, 0] == pytest.approx(ap)


def test_thresholds_count_the_overlap():
    iou = 8 / 12  # boxes of 10 x 10, shifted by 2
    truth, found = [truth_of(boxes(A))], [found_of(boxes((2, 0, 12, 10)), [0.9])]
    reached = [float(t <= iou) for t in evaluate.COCO_THRESHOLDS]
    assert evaluate.coco_average_precision(truth, found, 1)[0].tolist() == pytest.approx(reached)
    data = pairs.BoxSet("", [None], [torch.tensor([A])], [torch.tensor([0])], [torch.tensor([False])], ["a"])
    metrics = evaluate.box_metrics(data, found)
    for name in ("", "voc07_"):
        assert [metrics[name + key] for key in ("ap", "ap50", "ap75")] == pytest.approx([sum(reached) / 10, 1, 0])
    assert metrics["ap50_by_class"] == {"a": pytest.approx(1)}


def random_case(rng, images=40, classes=3, ties=False):
    """True boxes, and detections near them, doubled, of a wrong class or anywhere; images without either, all difficult."""
    truth, found = [], []
    for i in range(images):
        corner = rng.random((0 if i % 9 == 2 else rng.integers(1, 8), 2)) * 300
        b = np.concatenate([corner, corner + 10 + rng.random((len(corner), 2)) * 90], 1)
        labels, difficult = rng.integers(0, classes, len(b)), rng.random(len(b)) < (1 if i % 9 == 1 else 0.2)
        truth.append(truth_of(b, labels, difficult))
        found.append(random_detections(b, labels, classes, rng, ties))
    return truth, found


def random_detections(b, labels, classes, rng, ties=False):
    """Detections of one image: near its true boxes b, doubled, of a wrong class or anywhere."""
    copies = rng.integers(0, 4)
    near = np.repeat(b, copies, 0) + rng.normal(0, 8, (copies * len(b), 4))
    anywhere = rng.random((rng.integers(0, 20), 2)) * 300
    d = np.concatenate([near, b[:2], b[:2], np.concatenate([anywhere, anywhere + 40], 1)])
    d[:, 2:] = np.maximum(d[:, 2:], d[:, :2] + 1)
    kinds = np.concatenate([np.repeat(labels, copies), labels[:2], labels[:2], rng.integers(0, classes, len(anywhere))])
    kinds = np.where(rng.random(len(kinds)) < 0.1, rng.integers(0, classes, len(kinds)), kinds)
    return found_of(d, rng.integers(0, 10, len(d)) / 10 if ties else rng.random(len(d)), kinds)


def pycocotools_average_precision(truth, found, classes):
    """What coco_average_precision should return."""
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    annotations, detections = [], []
    as_xywh = lambda b: [float(v) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])]
    for i, (t, f) in enumerate(zip(truth, found)):
        for b, c, d in zip(t["boxes"], t["labels"], t["difficult"]):
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": int(c) + 1, "bbox": as_xywh(b),
                                "area": float(np.prod(b[2:] - b[:2])), "iscrowd": int(d)})
        detections += [{"image_id": i, "category_id": int(c) + 1, "bbox": as_xywh(b), "score": s}
                       for b, s, c in zip(f["boxes"], f["scores"].tolist(), f["labels"])]
    theirs = coco.COCO()
    theirs.dataset = {"images": [{"id": i} for i in range(len(truth))], "annotations": annotations, "categories": [{"id": c + 1} for c in range(classes)]}
    theirs.createIndex()
    run = COCOeval(theirs, theirs.loadRes(detections), "bbox")
    run.evaluate(), run.accumulate()
    return run.eval["precision"][:, :, :, 0, 2].mean(1).T  # (thresholds, recalls, classes), area all, 100 detections


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_pycocotools(ties):
    pytest.importorskip("pycocotools")
    truth, found = random_case(np.random.default_rng(0), ties=ties)
    expected, ours = pycocotools_average_precision(truth, found, 3), evaluate.coco_average_precision(truth, found, 3)
    assert 0.05 < ours.mean() < 0.9 and np.abs(ours - expected).max() < 1e-6


@pytest.mark.parametrize("ties, expected", [(False, [0.094777, 0.113499, 0.091012]), (True, [0.126329, 0.119678, 0.072226])])
def test_average_precision_is_what_pycocotools_gave(ties, expected):
    """Where it is not installed: AP of the three classes in the test above."""
    truth, found = random_case(np.random.default_rng(0), ties=ties)
    assert evaluate.coco_average_precision(truth, found, 3).mean(1).tolist() == pytest.approx(expected, abs=1e-6)


def test_voc_average_precision_equals_loops():
    """Everingham's definition, one detection at a time."""
    truth, found = random_case(np.random.default_rng(1))
    for c, ours in enumerate(evaluate.voc_detection_ap(truth, found, 3)):
        every = sorted(((s, i, k) for i, f in enumerate(found) for k, s in enumerate(f["scores"]) if f["labels"][k] == c), reverse=True)
        positives = sum(((t["labels"] == c) & ~t["difficult"]).sum() for t in truth)
        used, right, points = set(), [], []
        for _, i, k in every:
            rows = np.flatnonzero(truth[i]["labels"] == c)
            over = [evaluate.overlaps(found[i]["boxes"][k : k + 1], truth[i]["boxes"][r : r + 1])[0, 0] for r in rows]
            if over and max(over) >= 0.5:
                best = rows[int(np.argmax(over))]
                if truth[i]["difficult"][best]:
                    continue
                right.append((i, best) not in used)
                used.add((i, best))
            else:
                right.append(False)
        for r in range(11):
            at = [sum(right[: n + 1]) / (n + 1) for n in range(len(right)) if sum(right[: n + 1]) / positives >= r / 10 - 1e-9]
            points.append(max(at, default=0))
        assert ours == pytest.approx(sum(points) / 11)


@pytest.mark.parametrize("name, kind", [("resnet18", "c4"), ("resnet18", "fpn"), ("convnet", "c4")])
def test_detectors_train_every_layer_and_detect(name, kind):
    torch.manual_seed(0)
    backbone, _ = evaluate.build_backbone(name, 96)
    model = evaluate.build_detector(backbone.requires_grad_(False), 2, kind, [96], rois=8, roi_size=7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image, box = torch.rand(3, 96, 96), torch.tensor([[10.0, 10, 60, 60]])
    data = pairs.BoxSet("d", [(image * 255).byte()] * 4, [box] * 4, [torch.tensor([1])] * 4, [torch.tensor([False])] * 4, ["a", "b"])
    evaluate.train_detector(model, data, steps=2, batch_size=2, lr=0.1, seed=0)
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert {k for k, _ in model.named_parameters()} <= set(moved)
    found = evaluate.detect(model, data)
    assert len(found) == 4 and all(f["boxes"].shape == (len(f["scores"]), 4) and set(f["labels"]) <= {0, 1} for f in found)
    result = evaluate.box_metrics(data, found)
    assert set(result["ap50_by_class"]) == {"a", "b"} and result["ap50_by_class"]["a"] is None and 0 <= result["ap50"] <= 1


@pytest.mark.parametrize("name, kind", [("convnet", "c4"), ("resnet18", "fpn")])
def test_anchors_scale_with_the_size_of_test_images(name, kind):
    for size, smallest in (([480, 800], 32), ([128], 5.12)):
        model = evaluate.build_detector(evaluate.build_backbone(name, 32)[0], 2, kind, size)
        sizes = [a for level in model.rpn.anchor_generator.sizes for a in level]
        assert sizes == pytest.approx([smallest * 2**k for k in range(5)])
    assert set(model.rpn.anchor_generator.aspect_ratios) == {(0.5, 1.0, 2.0)} and model.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert model.rpn._pre_nms_top_n == {"training": 2000, "testing": 1000} and model.rpn._post_nms_top_n == {"training": 1024, "testing": 512}
    assert model.roi_heads.box_roi_pool.sampling_ratio == 2


@pytest.mark.parametrize("name", ["resnet18", "convnet"])
def test_a_c4_detector_is_the_backbone_and_one_more_batchnorm(name):
    backbone = evaluate.build_backbone(name, 96)[0].eval()
    model = evaluate.build_detector(copy.deepcopy(backbone), 2, "c4", [96, 128], rois=8, roi_size=7).eval()
    x, extra = torch.randn(2, 3, 96, 96), math.sqrt(1 + 1e-5) if name == "resnet18" else 1  # a new BatchNorm; the convnet ends in one
    assert torch.allclose(extra * model.roi_heads.box_head(model.backbone(x)), backbone(x), rtol=1e-4, atol=1e-5)
    assert any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in list(model.roi_heads.box_head)[1:])
    assert model.roi_heads.box_roi_pool.output_size == (7, 7) and model.transform.max_size == 213
    assert model.rpn._post_nms_top_n == {"training": 200, "testing": 100}


def test_detectors_for_other_backbones_are_refused_by_name():
    for name, kind in (("mobilenet_v3_small", "c4"), ("convnet", "fpn")):
        with pytest.raises(UserError, match=f"{kind} takes torchvision's ResNets"):
            evaluate.build_detector(evaluate.build_backbone(name, 64)[0], 2, kind)


class OneWeight(nn.Module):
    """In place of a detector: one weight; its losses, or detections, are what `losses(weight, images, targets)` returns."""

    def __init__(self, losses):
        super().__init__()
        self.weight, self.losses = nn.Parameter(torch.ones((), dtype=torch.float64)), losses

    def forward(self, images, targets=None):
        return self.losses(self.weight, images, targets)


def test_boxes_follow_their_images_when_flipped_and_difficult_ones_are_left_out():
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 5:9, 3:10] = 255
    box = torch.tensor([[3.0, 5, 10, 9], [0, 0, 2, 2]])
    data = pairs.BoxSet("d", [image] * 3, [box] * 3, [torch.tensor([0, 0])] * 3, [torch.tensor([False, True])] * 3, ["a"])
    seen = []

    def losses(weight, images, targets):
        for x, t in zip(images, targets):
            assert t["labels"].tolist() == [1] and len(t["boxes"]) == 1
            x1, y1, x2, y2 = map(int, t["boxes"][0])
            assert x[:, y1:y2, x1:x2].min() == 1 and x.sum() == 3 * 4 * 7
            seen.append(x1)
        return {"loss": weight}

    evaluate.train_detector(OneWeight(losses), data, steps=8, batch_size=2, lr=0.1, seed=0)
    assert set(seen) == {3, 20} and data.boxes[0][0].tolist() == [3, 5, 10, 9]


def test_a_detector_is_tested_on_images_between_0_and_1_and_its_labels_are_those_of_the_data():
    data = pairs.detection_scenes("test", 3, 32)
    shown = iter(data.images)

    def detections(weight, images, targets):
        assert not model.training and torch.equal(images[0], next(shown) / 255)
        return [{"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.tensor([1])}]  # 0 is background

    model = OneWeight(detections)
    assert [f["labels"].tolist() for f in evaluate.detect(model, data)] == [[0]] * 3


@pytest.fixture
def detector_run(tmp_path, monkeypatch):
    """A run folder for detect_run, which then trains, detects and draws nothing."""
    evaluate.write_json(tmp_path / "config.json", {"method": None, "pairs": None, "data": None, "backbone": "convnet", "image_size": 32, "seed": 3, "trained_epochs": 2})
    world, backbone = [pairs.detection_scenes("train", 2, 32)] * 2, evaluate.build_backbone("convnet", 32)[0]
    for module, name, stand_in in ((pairs, "load_boxes", world), (evaluate, "load_backbone", (backbone, backbone)), (evaluate, "train_detector", None),
                                   (evaluate, "detect", [found_of(boxes(), [])] * 2), (evaluate, "draw_detections", None)):
        monkeypatch.setattr(module, name, lambda *_, value=stand_in: value)
    return tmp_path


def test_a_detector_is_given_the_runs_backbone_or_a_new_one_and_the_runs_world(detector_run, monkeypatch, capsys):
    trained, untrained = (evaluate.build_backbone("convnet", 32)[0] for _ in "tu")
    world, given = [pairs.detection_scenes("train", 2, 32)] * 2, []
    monkeypatch.setattr(pairs, "load_boxes", lambda data, seed, size: world if (data, seed, size) == (["scenes"], 3, 32) else None)
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (trained, untrained))
    monkeypatch.setattr(evaluate, "build_detector", lambda backbone, *_: given.append(backbone) or backbone)
    names = [evaluate.detect_run(detector_run, ["scenes"], torch.device("cpu"), init, "c4", [32], 1, 1, 0.1, 8, 7, 5)[0] for init in ("run", "random")]
    assert names == ["scenes, c4, init run, seed 5", "scenes, c4, init random, seed 5"]
    torch.manual_seed(5)
    new = evaluate.build_backbone("convnet", 32)[0]
    assert given[0] is trained and torch.equal(given[1][0].weight, new[0].weight)
    assert "CIFAR stem" not in capsys.readouterr().out
    trained = evaluate.build_backbone("resnet18", 32)[0]  # whose maps at 800 px would need 16 times the memory of the usual
    evaluate.detect_run(detector_run, ["scenes"], torch.device("cpu"), "run", "c4", [32], 1, 1, 0.1, 8, 7, 5)
    assert "note: the CIFAR stem" in capsys.readouterr().out
    for zero in True, False:  # SimSiam's ResNets start so, and so does the detector that they are compared with
        evaluate.write_json(detector_run / "config.json", {"method": None, "pairs": None, "data": None, "backbone": "resnet18", "image_size": 32, "seed": 3, "trained_epochs": 2, "zero_init_residual": zero})
        evaluate.detect_run(detector_run, ["scenes"], torch.device("cpu"), "random", "c4", [32], 1, 1, 0.1, 8, 7, 5)
        assert given[-1].layer1[0].bn2.weight.any() != zero


def test_a_detector_is_trained_on_training_images_and_tested_on_test_images(detector_run, monkeypatch):
    (train, test), used = [pairs.detection_scenes(s, 2, 32) for s in ("train", "test")], []
    monkeypatch.setattr(pairs, "load_boxes", lambda *_: (train, test))
    monkeypatch.setattr(evaluate, "train_detector", lambda model, data, *options: used.append((data, options, model.roi_heads.box_predictor.cls_score.weight.clone())))
    monkeypatch.setattr(evaluate, "detect", lambda model, data: used.append(data) or [found_of(boxes(), [])] * 2)
    for seed in (5, 5, 6):
        _, r = evaluate.detect_run(detector_run, ["scenes"], torch.device("cpu"), "run", "c4", [32], 6, 4, 0.1, 8, 7, seed)
        assert r.items() >= {"init": "run", "kind": "c4", "size": [32], "steps": 6, "batch_size": 4, "lr": 0.1, "rois": 8, "roi_size": 7, "seed": seed}.items()
    assert used[0][0] is train and used[0][1] == (6, 4, 0.1, 5) and used[1] is test
    heads = [head for *_, head in used[::2]]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])  # they start from the detector's seed


def test_a_detectors_result_knows_its_files_wherever_they_lie(detector_run, monkeypatch):
    def sums(folder, train, test):
        sets = [pairs.BoxSet("v", [Path(folder, "JPEGImages", f"{i}.jpg") for i in part], [], [], [], ["a"]) for part in (train, test)]
        monkeypatch.setattr(pairs, "load_boxes", lambda *_: sets)
        monkeypatch.setattr(evaluate, "box_metrics", lambda *_: {})
        result = evaluate.detect_run(detector_run, ["v"], torch.device("cpu"), "run", "c4", [32], 1, 2, 0.1, 8, 7, 0)[1]
        return result["train_crc32"], result["files_crc32"]

    first = sums("VOC", (1, 2), (3, 4))
    assert first == sums("/moved/VOC", (1, 2), (3, 4)) and None not in first
    assert all(a != b for a, b in zip(first, sums("VOC", (1, 3), (2, 4))))


def test_a_detectors_result_is_of_the_weights_that_were_read(detector_run, monkeypatch):
    file = detector_run / "config.json"
    further = lambda *_: evaluate.write_json(file, evaluate.read_json(file) | {"trained_epochs": 4})  # the run goes on meanwhile
    monkeypatch.setattr(evaluate, "train_detector", further)
    evaluate.detect_run(detector_run, ["scenes"], torch.device("cpu"), "run", "c4", [32], 1, 2, 0.1, 8, 7, 0)
    assert set(evaluate.read_json(detector_run / "result-epoch2.json")) == {"detect"} and not (detector_run / "result.json").exists()


def test_detectors_take_their_options_and_ap75_is_that_of_0_75():
    model = evaluate.build_detector(evaluate.build_backbone("convnet", 32)[0], 2, "c4", [96, 128], rois=8)
    assert model.transform.min_size == (96, 128) and model.roi_heads.fg_bg_sampler.batch_size_per_image == 8
    data = pairs.BoxSet("", [None], [torch.tensor([(0.0, 0, 10, 10)])], [torch.tensor([0])], [torch.tensor([False])], ["a"])
    metrics = evaluate.box_metrics(data, [found_of(boxes((1.6, 0, 11.6, 10)), [0.9])])  # IoU 0.724
    assert metrics["ap75"] == metrics["voc07_ap75"] == 0 and metrics["ap"] == pytest.approx(0.5)


def test_a_detectors_order_depends_on_its_seed():
    data, total = pairs.detection_scenes("train", 8, 32), lambda image: int((image * 255).round().sum())  # the same when flipped

    def order(seed):
        seen = []
        evaluate.train_detector(OneWeight(lambda w, images, targets: seen.extend(map(total, images)) or {"loss": w}), data, 2, 4, 0.1, seed)
        return seen

    assert order(0) == order(0) != order(1) and sorted(order(0)) == sorted(order(1)) == sorted(int(image.sum()) for image in data.images)


def test_classes_of_any_name_are_shown_as_they_are(tmp_path):
    data = pairs.replace(pairs.detection_scenes("test", 2, 32), classes=["$5_to_$_x", *"bcde"], name="caf\udce9")  # the folder's name is not UTF-8
    evaluate.draw_detections(tmp_path / "d.png", data, [found_of(boxes(), [])] * 2)
    assert (tmp_path / "d.png").stat().st_size > 1000


def test_the_legend_has_the_colour_of_every_class_that_is_shown(tmp_path, monkeypatch):
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    drawn, legend = [], Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda self, **options: drawn.append((self.axes[0].patches, options["handles"])) or legend(self, **options))
    box, labels = torch.tensor([[3.0, 3, 20, 20]] * 19), torch.arange(19)
    data = pairs.BoxSet("d", [torch.zeros(3, 40, 40, dtype=torch.uint8)], [box], [labels], [labels < 0], [f"c{i}" for i in range(20)])
    for label, shown in ((14, 19), (19, 20)):  # a true box's, and one that is only detected
        evaluate.draw_detections(tmp_path / "d.png", data, [found_of(box[:1].numpy(), [0.9], [label])])
        (*_, detection), handles = drawn.pop()
        colors = {handle.get_label(): to_rgb(handle.get_color()) for handle in handles}
        assert colors[f"c{label}"] == to_rgb(detection.get_edgecolor()) and len(set(colors.values())) == len(colors) == shown + 1


def test_a_detectors_learning_rate_by_hand():
    """Warm-up over 100 steps, a tenth after three quarters of all, a hundredth after eleven twelfths; SGD with momentum."""
    weights = []

    def losses(weight, images, targets):
        weights.append(weight.item())
        return {"loss": weight / 2, "other": weight / 2}  # a gradient of 1

    evaluate.train_detector(OneWeight(losses), pairs.detection_scenes("train", 5, 32), steps=132, batch_size=4, lr=0.8, seed=0)
    w, velocity = 1.0, 0.0
    for step in range(132):
        assert weights[step] == pytest.approx(w, abs=1e-12)
        velocity = 0.9 * velocity + 1 + 1e-4 * w
        w -= 0.8 * 4 / 16 * min(1, (step + 1) / 100) * (0.01 if step >= 121 else 0.1 if step >= 99 else 1) * velocity


def test_a_detector_whose_loss_is_not_finite_stops():
    broken, data = OneWeight(lambda weight, images, targets: {"loss": weight * math.nan}), pairs.detection_scenes("train", 2, 32)
    with pytest.raises(UserError, match="loss is nan at step 1: try a lower --lr"):
        evaluate.train_detector(broken, data, steps=2, batch_size=2, lr=0.1, seed=0)
