"""Evaluate: heads on cases worked by hand, the frozen backbone, collapse signals, the run folder."""

import argparse
import copy
import gc
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from PIL import Image

import evaluate
import pairs
from pairs import UserError


# -- backbones


@pytest.mark.parametrize("name", ["convnet", "resnet18", "mobilenet_v3_small"])
def test_a_new_backbone_is_in_training_mode(name):
    assert all(module.training for module in evaluate.build_backbone(name, 32)[0].modules())


def test_the_cifar_stem_begins_as_torchvisions_convolutions():
    torch.manual_seed(0)
    stem = evaluate.build_backbone("resnet18", 32)[0].conv1.weight
    assert stem.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)  # He et al.; nn.Conv2d's own: twice that


def test_resnet_has_torchvisions_keys_and_the_stem_of_its_image_size():
    theirs = torchvision.models.resnet18().state_dict()
    for size, kernel, side in ((32, 3, 32), (64, 3, 64), (65, 7, 33), (96, 7, 48)):
        backbone, width = evaluate.build_backbone("resnet18", size)
        assert width == 512 and set(backbone.state_dict()) == {k for k in theirs if not k.startswith("fc.")}
        assert backbone.conv1.kernel_size == (kernel, kernel) and backbone.conv1(torch.zeros(1, 3, size, size)).shape[-1] == side
        assert backbone(torch.randn(2, 3, size, size)).shape == (2, 512)


@pytest.mark.parametrize("name", ["convnet", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_any_backbone_gives_features_of_the_width_it_says(name):
    backbone, width = evaluate.build_backbone(name, 64)
    assert backbone.eval()(torch.randn(2, 3, 64, 64)).shape == (2, width)


def test_the_convnet_is_that_of_the_published_results():
    from torch.utils.flop_counter import FlopCounterMode

    backbone = evaluate.build_backbone("convnet", 32)[0].eval()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, 32, 32))
    by_layer = [16 * 16 * 32 * 3 * 9, 8 * 8 * 64 * 32 * 9, 8 * 8 * 128 * 64 * 9, 4 * 4 * 256 * 128 * 9]  # multiply-adds
    assert counter.get_total_flops() == 2 * sum(by_layer) and round(sum(by_layer) / 1e6) == 11
    layers = [type(layer).__name__ for layer in backbone]
    assert layers == ["Conv2d", "BatchNorm2d", "ReLU"] * 4 + ["MeanOverPositions", "Flatten", "BatchNorm1d"]


def test_unknown_backbones_are_named():
    for name in ("resnet19", "squeezenet1_0"):
        with pytest.raises(UserError, match=name):
            evaluate.build_backbone(name, 32)


def test_an_image_size_that_the_architecture_cannot_take_is_named():
    for name in ("vit_b_16", "alexnet"):
        with pytest.raises(UserError, match=f"{name}.* 30 px"):
            evaluate.build_backbone(name, 30)


def test_a_transformer_is_built_for_the_images_it_gets():
    assert evaluate.build_backbone("vit_b_32", 64)[0](torch.zeros(2, 3, 64, 64)).shape == (2, 768)


def test_the_mean_over_positions_is_that_of_adaptive_pooling():
    x = torch.randn(3, 5, 4, 6).to(memory_format=torch.channels_last)
    assert torch.allclose(evaluate.MeanOverPositions()(x), F.adaptive_avg_pool2d(x, 1), atol=1e-6)


@pytest.mark.parametrize("has, kind", [
    ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16), ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
    ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16), ({"avx512_f": True}, torch.float32)])
def test_a_cpu_computes_in_bf16_where_it_is_faster(monkeypatch, has, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    with evaluate.autocast(torch.device("cpu")):
        assert linear(x).dtype == kind


def test_compiled_parts_keep_names_values_and_gradients_and_know_their_shapes(monkeypatch):
    compile, sizes = torch.compile, []  # traced for real; turned into C++ it would take a minute and a compiler

    def backend(graph, inputs):
        given = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
        sizes.extend(size for x in given if isinstance(x, torch.Tensor) for size in x.shape)
        return graph

    monkeypatch.setattr(torch, "compile", lambda call, **options: compile(call, backend=backend, **options))
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True))
    plain = nn.Sequential(backbone, nn.Sequential(nn.Linear(5, 2)))  # the two share a forward, and take inputs of two shapes
    compiled = evaluate.parallel(copy.deepcopy(plain), compile="default")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    x = torch.randn(8, 3, 2, 1)
    for a in (plain(x), compiled(x)):
        a.square().sum().backward()
    assert torch.allclose(plain(x), compiled(x), atol=1e-6)
    assert all(torch.allclose(p.grad, q.grad, atol=1e-6) for p, q in zip(plain.parameters(), compiled.parameters(), strict=True))
    assert {8, 6, 5} <= set(sizes) and all(type(size) is int for size in sizes)


def test_features_leave_the_backbone_alone_and_do_not_depend_on_the_batch():
    images = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    backbone, _ = evaluate.build_backbone("convnet", 16)
    backbone[1].eval()
    before, modes = {k: v.clone() for k, v in backbone.state_dict().items()}, [module.training for module in backbone.modules()]
    x = evaluate.features(backbone, images)
    assert backbone.training and [module.training for module in backbone.modules()] == modes and all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert torch.allclose(x, evaluate.features(backbone, images, batch_size=3), atol=1e-6)

    class Leaky(nn.Module):  # moves although it is in eval mode
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            self.weight += 1
            return x.flatten(1)

    with pytest.raises(AssertionError, match="the pass changed the network"):
        evaluate.features(Leaky(), images)


def test_the_table_says_which_categories_pretraining_has_seen(capsys):
    r = {"accuracy": 0.5, "untrained": 0.2, "chance": 0.1, "classes": 10}

    def note(evaluated, given="somewhere/photos", **config):
        evaluate.show_table({"finetune": {evaluated: r}}, {"pairs": "semantic", "data": "somewhere/photos"} | config, ["flowers102", given])
        return capsys.readouterr().out

    assert "These categories were seen" in note("photos, 0.1 of the labels") and "These categories were seen" in note("photos")
    assert "These categories were seen" in note("photos", os.path.abspath("somewhere/photos"))
    assert "\nIf these categories were seen in pretraining, semantic pairs use their labels" in note("photos", "elsewhere/photos")
    both = {"pairs": "semantic", "data": "somewhere/photos"}
    evaluate.show_table({"linear": {"photos": r, "flowers102": r}}, both, ["somewhere/photos", "flowers102"])
    assert "\nThe categories of photos were seen in pretraining, and semantic pairs use their labels" in capsys.readouterr().out
    assert "were seen" not in note("flowers102, 0.1 of the labels") and "were seen" not in note("photos", pairs="augmented")
    assert "headline" in note("scenes-held-out, 0.1 of the labels", data="scenes")
    assert "were seen" not in note("photos", pairs="list.csv", arm="semantic", data=None)
    assert "semantic pairs use their labels" in note("photos") and "the pairs of a list may use their labels" in note("photos", pairs="list.csv", arm="semantic")


def test_the_table_has_its_numbers_under_their_names(capsys):
    r = {"accuracy": 0.5, "untrained": 0.2, "chance": 0.1, "classes": 10}
    evaluate.show_table({"knn": {"photos": r | {"k": 50}}, "transfer": {"photos": r | {"metric": "mAP"}}}, {"pairs": "augmented", "data": "photos"}, ["photos"])
    said = capsys.readouterr().out
    head, row, odd = (line.split() for line in said.splitlines()[1:4])
    assert head == ["data", "classes", "chance", "untrained", "this", "run"] and row[-5:] == ["photos", "10", "0.100", "0.200", "0.500"]
    assert "kNN: k = 50, temperature 0.1" in said and row[-5:] == odd[-6:-1] and odd[-1] == "mAP"


# -- heads


def test_knn_by_hand():
    """Three neighbours: two of class 1 at similarity 0 outvote one of class 0 at 0.1 T, but not one at T."""
    train_y, temperature = torch.tensor([0, 1, 1, 0]), 0.5
    for s, expected in ((0.05, 1), (0.5, 0)):  # exp(0.05 / 0.5) = 1.1 < 2 = e^0 + e^0; exp(1) = 2.7 > 2
        train_x = torch.tensor([[s, math.sqrt(1 - s * s), 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
        test_x = torch.tensor([[7.0, 0, 0]])
        assert evaluate.knn(train_x, train_y, test_x, torch.tensor([expected]), k=3, temperature=temperature) == 1
        assert evaluate.knn(train_x, train_y, test_x, torch.tensor([1 - expected]), k=3, temperature=temperature) == 0


def test_features_of_any_scale_are_judged_alike():
    """Those of an untrained EfficientNet are of 1e-14; a constant one stays 0."""
    torch.manual_seed(0)
    y = torch.arange(100) % 4
    x = torch.randn(4, 8)[y] + torch.randn(100, 8)
    x[:, 3] = 0.7
    judged = lambda x: (evaluate.linear_probe(x[:60], y[:60], x[60:], y[60:], 4)["accuracy"], evaluate.knn(x[:60], y[:60], x[60:], y[60:]))  # k is cut to 60
    assert judged(x) == judged(x * 2.0**-45) and min(judged(x)) > 0.4


@pytest.mark.parametrize("width, temperature", [(5, 0.1), (2, 0.005), (512, 0.005)])
def test_knn_equals_loops(width, temperature):
    """In float64. In float32 exp(s / 0.005) is infinite for s near 1, and exp((s - 1) / 0.005) is 0 for s near 0, as in 512 dimensions."""
    torch.manual_seed(0)
    train_x, test_x, train_y, test_y = torch.randn(50, width), torch.randn(20, width), torch.randint(4, (50,)), torch.randint(4, (20,))
    hits = 0
    for x, y in zip(test_x.double(), test_y):
        s = sorted(((F.cosine_similarity(x, t, dim=0).item(), int(c)) for t, c in zip(train_x.double(), train_y)), reverse=True)[:7]
        votes = [sum(math.exp(v / temperature) for v, c in s if c == label) for label in range(4)]
        hits += votes.index(max(votes)) == y
    assert evaluate.knn(train_x, train_y, test_x, test_y, k=7, temperature=temperature) == hits / 20
    many = test_x.repeat(60, 1), test_y.repeat(60)  # more than are compared at a time
    assert evaluate.knn(train_x, train_y, *many, k=7, temperature=temperature) == hits / 20


def test_logistic_regression_is_at_the_minimum_of_its_objective():
    torch.manual_seed(0)
    x, y, l2 = torch.randn(200, 6, dtype=torch.float64), torch.randint(3, (200,)), 0.03
    w = evaluate.logistic_regression(x, y, 3, l2).requires_grad_()
    objective = F.cross_entropy(x @ w[:-1] + w[-1], y) + l2 / 2 * w[:-1].square().sum()
    (gradient,) = torch.autograd.grad(objective, w)
    assert gradient.abs().max() < 1e-4


def test_logistic_regression_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    x, y, l2 = torch.randn(300, 8), torch.randint(4, (300,)), 0.01
    theirs = linear_model.LogisticRegression(C=1 / (300 * l2), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    w = evaluate.logistic_regression(x, y, 4, l2)
    ours = F.softmax(x @ w[:-1] + w[-1], 1)
    assert torch.allclose(ours.double(), torch.from_numpy(theirs.predict_proba(x.numpy())).double(), atol=1e-3)


def test_probe_chooses_its_strength_on_training_images_alone():
    torch.manual_seed(0)
    centres = torch.randn(5, 20)
    train_y, test_y = torch.arange(100) % 5, torch.arange(200) % 5
    train_x, test_x = centres[train_y] + 0.8 * torch.randn(100, 20), centres[test_y] + 0.8 * torch.randn(200, 20)
    a = evaluate.linear_probe(train_x, train_y, test_x, test_y, 5)
    b = evaluate.linear_probe(train_x, train_y, torch.randn_like(test_x), test_y, 5)
    assert a["accuracy"] > 0.9 and b["accuracy"] < 0.4
    assert a["l2"] == b["l2"] and a["validation"] == b["validation"] and set(a["validation"]) == set(evaluate.L2_GRID)
    assert a["validation"][a["l2"]] == max(a["validation"].values())


def test_a_long_fit_is_not_silent(monkeypatch, capsys):
    seconds = iter(range(10**6))
    monkeypatch.setattr(pairs.time, "time", lambda: next(seconds))  # one a call: each evaluation of the loss takes a second
    torch.manual_seed(0)
    x, y = torch.randn(90, 8), torch.arange(90) % 3
    evaluate.linear_probe(x, y, x, y, 3, grid=[1e-2, 1e-3])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "linear probe, L2 strengths and a last fit: 0 of 3" and len(lines) > 4
    assert any(" 1 of 3, " in line for line in lines) and re.fullmatch("linear probe, L2 strengths and a last fit: 2 of 3, [0-9]+ s left", lines[-1])


def test_weak_regularisation_is_fitted_to_its_end():
    torch.manual_seed(0)
    x, y = torch.randn(300, 60, dtype=torch.float64), torch.randint(3, (300,))
    x = x + 3 * x[:, :1]  # correlated
    w = evaluate.logistic_regression(x, y, 3, 1e-6).requires_grad_()
    loss = nn.functional.cross_entropy(x @ w[:-1] + w[-1], y) + 0.5e-6 * w[:-1].square().sum()
    assert torch.autograd.grad(loss, w)[0].abs().max() < 5e-4


def test_a_probe_does_not_depend_on_the_scale_and_offset_of_features():
    torch.manual_seed(0)
    scale, offset = torch.logspace(-2, 2, 12), torch.linspace(-5, 5, 12)
    y, centres = torch.arange(400) % 4, torch.randn(4, 12)
    x = (centres[y] + 1.5 * torch.randn(400, 12)).double()
    plain, moved = (evaluate.linear_probe(v[:200], y[:200], v[200:], y[200:], 4) for v in (x, x * scale + offset))
    assert plain == moved and 0.6 < plain["accuracy"] < 0.95


def test_of_equal_strengths_a_probe_takes_the_strongest_and_is_fitted_again_on_all_rows():
    torch.manual_seed(0)
    y = torch.arange(90) // 30
    x, held = 5 * torch.eye(3)[y] + 0.1 * torch.randn(90, 3), y == 2  # a class that only the rows to choose on have
    found = evaluate.linear_probe(x, y, x[held], y[held], 3, split=(held.nonzero()[:, 0], (~held).nonzero()[:, 0]))
    assert set(found["validation"].values()) == {0} and found["l2"] == max(evaluate.L2_GRID)
    assert found["accuracy"] == 1  # and test images of one class are standardised as the training images, not by their own mean


def test_a_probe_has_biases():
    """Three classes on a line: the one in the middle is found by its bias alone."""
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.stack([y + 0.1 * torch.randn(300), torch.randn(300)], 1)
    found = evaluate.linear_probe(x[:200], y[:200], x[200:], y[200:], 3)
    assert found["accuracy"] > 0.85  # without them two thirds at most


def test_metrics_by_hand():
    logits, y = torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 2])  # class 1: one of two right
    assert evaluate.score("top-1", logits, y) == 0.75
    assert evaluate.score("mean per class", torch.eye(4)[[0, 0, 1, 0]], torch.tensor([0, 1, 1, 1])) == pytest.approx((1 + 1 / 3) / 2)
    # by falling score: right, wrong, right; recall 0.5 from 1 of 1, recall 1 from 2 of 3; the difficult one is not counted
    logits, y = torch.tensor([[4.0], [3], [2], [1], [0]]), torch.tensor([[1], [0], [-1], [1], [0]])
    assert evaluate.score("11-point mAP", logits, y) == pytest.approx((6 + 5 * 2 / 3) / 11)
    with pytest.raises(ValueError, match="no metric top1"):
        evaluate.score("top1", logits, y)


def test_metrics_leave_out_classes_that_no_image_shows():
    assert evaluate.score("mean per class", torch.eye(4)[[0, 2]], torch.tensor([0, 2])) == 1
    assert evaluate.score("11-point mAP", torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1, 0], [0, 0]])) == 1


def test_regressions_of_several_classes_an_image_leave_out_what_is_difficult():
    torch.manual_seed(0)
    x, y, l2 = torch.randn(100, 4, dtype=torch.float64), torch.randint(-1, 2, (100, 2)), 0.03
    both = evaluate.logistic_regression(x, y, 2, l2)
    for c in (0, 1):  # each class by itself, on the rows that count
        rows, w = y[:, c] >= 0, both[:, c].clone().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(x[rows] @ w[:-1] + w[-1], y[rows, c].double(), reduction="sum") / 100 + l2 / 2 * w[:-1].square().sum()
        assert torch.autograd.grad(loss, w)[0].abs().max() < 1e-4


def labelled(n, seed, size=16):
    """n images of two classes, more red or more blue, on noise."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randint(0, 150, (n, 3, size, size), generator=generator, dtype=torch.uint8), torch.arange(n) % 2
    images[torch.arange(n), 2 * labels] += 60
    return pairs.ImageSet("colours", images, labels, ["red", "blue"])


def mean_color():
    """A backbone whose features tell the classes of `labelled` apart."""
    return nn.Sequential(evaluate.MeanOverPositions(), nn.Flatten(), nn.BatchNorm1d(3))


def test_a_set_with_validation_images_of_its_own_is_chosen_on_them():
    train, val = labelled(20, 0), labelled(8, 1)
    held, kept = evaluate.split_off_validation(train, val)
    assert held.tolist() == list(range(20, 28)) and sorted(kept.tolist()) == list(range(20))
    held, kept = evaluate.split_off_validation(train, None)
    assert len(held) == 4 and sorted([*held.tolist(), *kept.tolist()]) == list(range(20))
    assert train.labels[held].sum() == 2 and train.labels[kept[:6]].sum() == 3  # balanced, and so is every prefix


def test_a_result_says_of_which_images_it_is():
    train, val, test = labelled(20, 0), labelled(4, 2), labelled(10, 1)
    train.files_crc32, test.files_crc32 = 1, 2
    r = evaluate.judge(["knn"], mean_color(), mean_color(), train, test, val)["knn"]
    assert (r["files_crc32"], r["n_train"], r["n_test"]) == (2, 24, 10)


def test_a_fifth_of_every_class_is_held_out_of_unequal_classes_too():
    sizes = [100, 4, 40, 1, 10]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    held, kept = evaluate.a_fifth(labels)
    assert sorted([*held.tolist(), *kept.tolist()]) == list(range(155))
    assert labels[held].bincount(minlength=5).tolist() == [21, 0, 8, 0, 2]  # 31 in all; a class of fewer than five is trained on whole
    several = torch.ones(20, 3)
    assert [len(rows) for rows in evaluate.a_fifth(several)] == [4, 16]
    with pytest.raises(UserError, match="t has 4 training images, of which a fifth is to choose on"):
        evaluate.split_off_validation(pairs.ImageSet("t", torch.zeros(4, 3, 8, 8), torch.arange(4), list("abcd")), None)
    assert evaluate.judge(["knn"], mean_color(), mean_color(), labelled(4, 0), labelled(20, 2))["knn"]["k"] == 4  # kNN chooses nothing


def test_a_backbone_that_diverged_is_told_and_a_learning_rate_that_diverges_is_not_chosen(monkeypatch):
    torch.manual_seed(0)
    backbone, width = evaluate.build_backbone("convnet", 16)
    broken = copy.deepcopy(backbone)
    with torch.no_grad():
        broken[0].weight.fill_(math.nan)
    with pytest.raises(evaluate.Diverged, match="features: not all are finite, so the network has diverged"):
        evaluate.features(broken, labelled(4, 0).images)
    with pytest.raises(evaluate.Diverged, match="features: not all are finite"):
        evaluate.fine_tune(broken, labelled(40, 0), labelled(20, 1), lrs=[0.1, 0.01])
    monkeypatch.setattr(evaluate, "fit_all_layers", lambda backbone, train, rows, lr, *_: nn.Sequential(broken if lr == 0.1 else backbone, nn.Linear(width, 2)))
    found = evaluate.fine_tune(backbone, labelled(40, 0), labelled(20, 1), lrs=[0.1, 0.01])
    assert found["lr"] == 0.01 and found["validation"][0.1] == -1
    with pytest.raises(UserError, match="fine-tuning diverged at lr 0.1, the best of .0.1. on held-out images"):
        evaluate.fine_tune(backbone, labelled(40, 0), labelled(20, 1), lrs=[0.1])
    always_wrong = nn.Sequential(backbone, nn.Linear(width, 3))  # it names class 2, of no image
    with torch.no_grad():
        always_wrong[1].weight.zero_(), always_wrong[1].bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    monkeypatch.setattr(evaluate, "fit_all_layers", lambda backbone, train, rows, lr, *_: broken if lr == 0.1 else always_wrong)
    assert evaluate.fine_tune(backbone, labelled(40, 0), labelled(20, 1), lrs=[0.1, 0.01])["lr"] == 0.01


def test_chance_is_that_of_the_metric_each_head_has():
    torch.manual_seed(0)
    backbone, _ = evaluate.build_backbone("convnet", 16)
    train, test = labelled(20, 0), labelled(10, 1)
    test.labels[:6] = 0  # eight of ten are of class 0
    for metric, chance in (("top-1", 0.8), ("mean per class", 0.5)):
        train.metric = metric
        results = evaluate.judge(["knn", "linear"], backbone, copy.deepcopy(backbone), train, test)
        assert results["knn"]["chance"] == pytest.approx(0.8) and results["linear"]["chance"] == pytest.approx(chance)
    alone = pairs.replace(test, labels=torch.zeros_like(test.labels))  # the mean is over the classes that test images have
    assert evaluate.judge(["linear"], backbone, copy.deepcopy(backbone), train, alone)["linear"]["chance"] == 1
    several = [pairs.replace(s, labels=F.one_hot(s.labels), metric="11-point mAP") for s in (train, test)]
    several[1].labels[:6] = 0  # of ten images and two classes four are shown
    found = evaluate.judge(["transfer"], mean_color(), mean_color(), *several)["transfer"]["chance"]
    random = torch.tensor([evaluate.score("11-point mAP", torch.rand(10, 2), several[1].labels) for _ in range(1000)])
    assert found == pytest.approx(random.mean().item(), abs=3 * random.std().item() / 10**0.5) and found > 0.25  # the share of what is shown is 0.2


def test_the_trained_backbone_is_judged_beside_the_untrained_and_choices_are_made_on_validation_images():
    torch.manual_seed(0)
    blind, val = mean_color(), labelled(8, 1)
    nn.init.zeros_(blind[2].weight)
    val.labels = 1 - val.labels  # so that whoever learns the training images is always wrong on these
    train, test, val = (pairs.replace(found, files_crc32=i) for i, found in enumerate((labelled(60, 0), labelled(20, 2), val)))
    results = evaluate.judge(["knn", "linear", "finetune"], mean_color(), blind, train, test, val, steps=20, batch_size=8, lrs=[0.1])
    assert all((r["train_crc32"], r["files_crc32"]) == ([0, 2], 1) for r in results.values())
    for head in ("knn", "linear"):
        assert (results[head]["accuracy"], results[head]["untrained"]) == (1, 0.5)
    for head in ("linear", "finetune"):
        assert set(results[head]["validation"].values()) == {0}


def test_fine_tuning_begins_with_the_weights_of_each_backbone(monkeypatch):
    trained, untrained = (evaluate.build_backbone("convnet", 16)[0] for _ in "tu")
    fitted = evaluate.fit_all_layers(trained, labelled(8, 0), torch.arange(8), 1e-9, 1, 4, 0)[0]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(fitted.parameters(), trained.parameters(), strict=True))
    given = []
    monkeypatch.setattr(evaluate, "fine_tune", lambda backbone, *_: given.append(backbone) or {"accuracy": len(given)})
    r = evaluate.judge(["finetune"], trained, untrained, labelled(20, 0), labelled(10, 1))["finetune"]
    assert given[0] is trained and given[1] is untrained and (r["accuracy"], r["untrained"]) == (1, 2)


def test_a_gpu_computes_in_bf16_since_ampere(monkeypatch):
    for capability, kind in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert evaluate.usual_precision(torch.device("cuda")) == kind


def test_transformed_images_are_of_few_classes_where_there_are_a_thousand():
    several = pairs.ImageSet("d", torch.zeros(2400, 3, 8, 8, dtype=torch.uint8), torch.arange(2400) % 800, [str(c) for c in range(800)])
    labels, images, changes = evaluate.image_changes(several, pairs.Augmentation(), 0)
    assert labels.bincount().tolist() == [3] * 50 and len(images) == len(changes["flip"]) == 150
    alone = pairs.replace(several, labels=torch.arange(2400))
    with pytest.raises(UserError, match="d needs two classes or more with two test images or more"):
        evaluate.image_changes(alone, pairs.Augmentation(), 0)


def test_a_small_share_of_the_labels_has_every_class_in_every_training(monkeypatch):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([60, 5, 3])])
    train = pairs.ImageSet("d", torch.zeros(68, 3, 16, 16, dtype=torch.uint8), labels, ["a", "b", "c"])
    backbone, width = evaluate.build_backbone("convnet", 16)
    seen = []

    def fit(backbone, train, rows, *_):
        seen.append(rows)
        return nn.Sequential(backbone, nn.Linear(width, 3))

    monkeypatch.setattr(evaluate, "fit_all_layers", fit)
    evaluate.fine_tune(backbone, train, train, fraction=0.05, lrs=[0.1, 0.01])
    assert [sorted(labels[rows].tolist()) for rows in seen] == [[0, 1, 2]] * 3


def test_fine_tuning_sees_no_image_but_those_of_its_rows(monkeypatch):
    train, augment, shown = labelled(40, 0), pairs.augment, []
    monkeypatch.setattr(pairs, "augment", lambda images, *rest: shown.append(images) or augment(images, *rest))
    evaluate.fit_all_layers(mean_color(), train, torch.tensor([3, 8]), 0.1, 4, 8, 0)
    assert len(shown) == 4 and all((x[:, None] == train.images[[3, 8]]).flatten(2).all(2).any(1).all() for x in shown)


def test_fine_tuning_chooses_its_learning_rate_on_training_images_alone():
    train, test = labelled(40, 0), labelled(20, 1)
    a, b = (evaluate.fine_tune(mean_color(), train, pairs.replace(test, labels=y), steps=20, batch_size=8, seed=3, lrs=[1e-6, 0.1]) for y in (test.labels, 1 - test.labels))
    assert a["accuracy"] == 1 and b["accuracy"] == 0
    assert a["lr"] == b["lr"] == 0.1 and a["validation"] == b["validation"] == {1e-6: 0, 0.1: 1}  # with this seed the classifier begins wrong


def test_fine_tuning_trains_all_layers_and_batchnorm_also_of_a_frozen_backbone_and_depends_on_its_seed_alone():
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    backbone, train, rates = evaluate.build_backbone("convnet", 16)[0].requires_grad_(False).eval(), labelled(8, 0), []
    fit = lambda seed: evaluate.fit_all_layers(backbone, train, torch.arange(8), 0.1, 4, 4, seed).state_dict()
    handle = register_optimizer_step_pre_hook(lambda solver, *_: rates.append(solver.param_groups[0]["lr"]))
    fitted, again, other = fit(0), fit(0), fit(1)
    handle.remove()
    assert all(torch.equal(v, again[k]) for k, v in fitted.items()) and not torch.equal(fitted["1.weight"], other["1.weight"])
    assert not any(torch.equal(v, fitted[f"0.{k}"]) for k, v in backbone.state_dict().items())  # weights, running statistics, counts
    assert not any(p.requires_grad for p in backbone.parameters()) and not backbone.training
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)] * 3)


def test_fine_tuning_is_fitted_on_all_rows_and_draws_its_share_anew_for_each_seed(monkeypatch):
    train, (backbone, width), fitted = labelled(40, 0), evaluate.build_backbone("convnet", 16), []
    monkeypatch.setattr(evaluate, "fit_all_layers", lambda backbone, train, rows, *_: fitted.append(rows.tolist()) or nn.Sequential(backbone, nn.Linear(width, 2)))
    split = evaluate.a_fifth(train.labels)
    for fraction, seed in ((1, 0), (0.25, 0), (0.25, 1)):
        evaluate.fine_tune(backbone, train, train, split, fraction=fraction, seed=seed, lrs=[0.1])
    assert list(map(len, fitted)) == [32, 40, 8, 10, 8, 10] and sorted(fitted[1]) == list(range(40))
    assert set(fitted[3]) != set(fitted[5])


def test_fine_tunings_optimiser_and_crops(monkeypatch):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen, views, augment = [], [], pairs.augment
    monkeypatch.setattr(pairs, "augment", lambda images, view, generator: views.append(view) or augment(images, view, generator))
    handle = register_optimizer_step_pre_hook(lambda solver, *_: seen.append(solver.param_groups[0].copy()))
    evaluate.fit_all_layers(mean_color(), labelled(8, 0), torch.arange(8), 0.1, 1, 4, 0)
    handle.remove()
    assert (seen[0]["momentum"], seen[0]["nesterov"], seen[0]["weight_decay"]) == (0.9, True, 0)
    assert views == [pairs.Augmentation(crop=(0.5, 1.0), p_flip=0.5, p_jitter=0, p_gray=0)]


def test_fine_tuning_learns_on_a_share_of_the_labels_and_leaves_the_backbone():
    torch.manual_seed(0)
    backbone, _ = evaluate.build_backbone("convnet", 16)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    found = evaluate.fine_tune(backbone, labelled(100, 0), labelled(40, 1), fraction=0.2, steps=30, batch_size=16, lrs=[0.1, 1e-6])
    assert found["accuracy"] > 0.9 and found["lr"] == 0.1 and found["n_fitted"] == 20 and list(found["validation"]) == [0.1, 1e-6]
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert evaluate.fine_tune(backbone, labelled(100, 0), labelled(40, 1), fraction=0.0, steps=1, batch_size=4, lrs=[0.1])["n_fitted"] == 2


# -- invariance


def test_the_share_of_a_factor_for_features_whose_answer_is_known():
    torch.manual_seed(0)
    labels, n = torch.arange(4000) % 20, 4000
    category, factor, other = torch.randn(20)[labels], torch.randn(n), torch.randn(n)
    ignores, only = torch.stack([category, other], 1), factor[:, None]
    assert evaluate.share_of_factor(ignores, ignores, labels) == 0
    assert evaluate.share_of_factor(only, torch.randn(n, 1), labels) == pytest.approx(1, abs=0.01)
    # h = category + a factor of the same variance: half; in any unit, and beside a feature that is constant
    spread = category[:20].std()
    h, changed = ((category + spread * f)[:, None] for f in (factor, torch.randn(n)))
    assert evaluate.share_of_factor(h, changed, labels) == pytest.approx(0.5, abs=0.02)
    wider = lambda v: torch.cat([1000 * v, torch.ones(n, 1)], 1)
    assert evaluate.share_of_factor(wider(h), wider(changed), labels) == pytest.approx(0.5, abs=0.02)
    beside = [torch.cat([v, width * torch.randn(n, 1)], 1) for v, width in ((h, 1e-4), (changed, 1))]  # or nearly constant, in h
    assert evaluate.share_of_factor(*beside, labels) == pytest.approx(0.5, abs=0.02)
    # variances in a ratio of 1 to 4
    h, changed = ((2 * category + spread * f)[:, None] for f in (factor, torch.randn(n)))
    assert evaluate.share_of_factor(h, changed, labels) == pytest.approx(0.2, abs=0.02)


def test_the_variance_of_a_category_is_unbiased():
    """Labels that mean nothing account for nothing on average, though class means differ by chance."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 4
    means = []
    for _ in range(200):
        h = torch.randn(40, 5)
        classes = torch.stack([h[labels == c] for c in range(4)])
        means.append((classes.mean(1).var(0) - classes.var(1).mean(0) / 10).sum().item())
        assert evaluate.variance_of_category(h, labels) == pytest.approx(max(means[-1], 0), abs=1e-5)
    assert abs(sum(means) / 200) < 0.05  # the biased one would be 0.5
    h = torch.randn(40, 5) + labels[:, None]
    alone = torch.cat([h, torch.full((1, 5), 100.0)]), torch.cat([labels, torch.tensor([4])])  # and a class of one image
    assert evaluate.variance_of_category(*alone) == evaluate.variance_of_category(h, labels) > 1
    with pytest.raises(ValueError, match="two classes with two images"):
        evaluate.variance_of_category(h[:5], torch.tensor([0, 0, 0, 1, 2]))


def test_every_factor_and_transformation_changes_the_images_and_nothing_else_moves():
    labels, images, changes = evaluate.scene_changes(0, 24, n=40)
    assert set(changes) == set(pairs.FACTORS) and all(c.shape == images.shape for c in changes.values())
    assert all((c != images).flatten(1).any(1).float().mean() > 0.9 for c in changes.values())
    again = evaluate.scene_changes(0, 24, n=40)[2]
    assert all(torch.equal(again[f], c) for f, c in changes.items())
    kept = {f: (c == images).float().mean().item() for f, c in changes.items()}  # values: those of the background, and their noise
    assert all(kept[f] > 0.5 for f in ("position", "scale", "object color", "rotation")) and kept["noise"] < 0.3
    found = pairs.ImageSet("s", images, labels, ["a"])
    _, same, transformed = evaluate.image_changes(found, pairs.Augmentation(), 0)
    assert torch.equal(same, images) and set(transformed) == set(evaluate.TRANSFORMS)
    assert all(t.dtype == torch.uint8 and not torch.equal(t, images) for t in transformed.values())
    assert torch.equal(transformed["flip"], images.flip(3))
    many = pairs.ImageSet("s", torch.arange(129)[:, None, None, None].expand(129, 3, 8, 8).byte(), torch.arange(129) % 2, ["a", "b"])
    patched = evaluate.image_changes(many, pairs.Augmentation(), 0)[2]["patch"]
    assert (patched != many.images).flatten(1).any(1).all()  # each has a patch of another, also the last, which would be a batch of its own
    inside = (images > 90) & (images < 165)  # where three deviations of the noise are not cut off
    assert (transformed["noise"].float() - images)[inside].std() == pytest.approx(0.1 * 255, rel=0.05)


def test_scenes_for_invariance_show_the_held_out_categories_of_the_runs_world(monkeypatch):
    render, shown = pairs.render_scenes, []
    monkeypatch.setattr(pairs, "render_scenes", lambda factors, shapes, *rest: shown.append(shapes[0]) or render(factors, shapes, *rest))
    pairs.scenes("test", 8, seed=3, held_out=True)
    evaluate.scene_changes(3, 8, n=20)
    assert len(shown) > 2 and all(torch.equal(shapes, shown[0]) for shapes in shown)


def test_shares_are_those_of_the_trained_and_of_the_untrained_backbone(tmp_path, monkeypatch):
    torch.manual_seed(0)
    changes = evaluate.scene_changes
    evaluate.write_json(tmp_path / "config.json", {"pairs": None, "method": None, "image_size": 16, "seed": 0, "data": None})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768))))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: [pairs.replace(labelled(40, 0), files_crc32=7)])
    monkeypatch.setattr(evaluate, "scene_changes", lambda seed, size: changes(seed, size, n=40))
    tables = evaluate.invariance_run(tmp_path, torch.device("cpu"))
    assert [table.get("files_crc32") for table in tables.values()] == [None, 7]  # by which compare knows other images
    found = tables["transformations of colours"]["factors"]["flip"]
    assert found["share"] < 1e-3 and found["untrained"] > 0.1  # the mean colour stays, the pixels move


def test_it_is_told_where_features_do_not_tell_the_categories_apart(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    evaluate.write_json(tmp_path / "config.json", {"pairs": None, "method": None, "image_size": 16, "seed": 0, "data": None})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "scene_changes", lambda *_: (torch.arange(4) % 2, labelled(4, 0).images, {}))
    alike = labelled(40, 0)
    for labels, told in ((alike.labels, False), (torch.arange(40) // 2 % 2, True)):  # the second: of either class as many of each colour
        monkeypatch.setattr(evaluate, "load_splits", lambda *_: [pairs.replace(alike, labels=labels)])
        found = evaluate.invariance_run(tmp_path, torch.device("cpu"))["transformations of colours"]["factors"]
        assert (found["jitter"]["share"] == 1) == told == ("note: transformations of colours: a share of 1 means" in capsys.readouterr().out)


def test_features_are_computed_in_float32(monkeypatch):
    monkeypatch.setattr(evaluate, "usual_precision", lambda device: "bfloat16")
    seen, backbone = [], nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    backbone[1].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    evaluate.features(backbone, labelled(4, 0).images)
    assert seen == [torch.float32]


def test_transformations_have_the_strengths_that_they_say(monkeypatch):
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patch = evaluate.transform_images(images, "patch", pairs.Augmentation(), pairs.stream(0))
    changed = (patch != images).any(1)
    assert (changed.flatten(1).sum(1) == 64).all() and len(changed.unique(dim=0)) > 10  # each in a place of its own
    asked, uniform = [], pairs.uniform
    monkeypatch.setattr(pairs, "uniform", lambda *given: asked.append(given[:2]) or uniform(*given))
    evaluate.transform_images(images, "rotation", pairs.Augmentation(), pairs.stream(0))
    assert asked[-1] == (-math.pi / 6, math.pi / 6)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_fine_tuning_computes_in_the_precision_that_its_result_names(kind, monkeypatch):
    monkeypatch.setattr(evaluate, "usual_precision", lambda device: str(kind).removeprefix("torch."))
    seen, network = [], nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    network[1].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    evaluate.fit_all_layers(network, labelled(8, 0), torch.arange(8), 0.1, 2, 4, 0)
    assert seen == [torch.float32, kind, kind]  # the first pass tells the width of the features


def test_fine_tuning_chooses_and_scores_in_the_metric_of_the_set(monkeypatch):
    asked, score = [], evaluate.score
    monkeypatch.setattr(evaluate, "score", lambda metric, *rest: asked.append(metric) or score(metric, *rest))
    train = pairs.replace(labelled(40, 0), metric="mean per class")
    evaluate.fine_tune(mean_color(), train, labelled(20, 1), steps=1, batch_size=4, lrs=[0.1])
    assert asked == ["mean per class"] * 2


def test_transformations_are_what_their_names_say():
    slope = torch.arange(32, dtype=torch.uint8).mul(7).expand(40, 3, 32, 32).contiguous()  # brighter to the right
    noise = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of = lambda name, x=slope, **view: evaluate.transform_images(x, name, pairs.Augmentation(**view), pairs.stream(0)).float()
    assert (of("crop")[..., 1:] >= of("crop")[..., :-1]).all()  # not mirrored
    gray = of("gray", noise)
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(of("solarize", noise), torch.where(noise < 128, noise, 255 - noise).float())
    assert len(of("rotation").unique(dim=0)) > 30 and len(of("jitter").unique(dim=0)) > 30  # a draw for each
    assert torch.equal(of("jitter", jitter=(0, 0, 0, 0)), slope.float())  # of the strength that the view has
    assert not torch.equal(of("crop", crop=(1.0, 1.0)), slope.float())  # a view without crops: of a usual strength
    y = torch.arange(32) - 15.5
    radius = (y[:, None] ** 2 + y**2).sqrt()
    rings = (10 * radius).clamp(max=255).byte().expand(40, 3, 32, 32).contiguous()
    assert (of("rotation", rings) - rings)[..., radius < 12].abs().mean() < 2  # rings stay
    rough = lambda x: (x[..., 1:].float() - x[..., :-1].float()).abs().mean()
    assert rough(of("blur", noise)) < 0.8 * rough(noise) and not torch.equal(of("blur", noise)[:, 0], of("blur", noise)[:, 1])


def test_invariance_is_by_default_of_held_out_scenes_or_the_runs_own_data(tmp_path, monkeypatch):
    asked, nothing = [], (torch.arange(4) % 2, labelled(4, 0).images, {})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "load_splits", lambda config, data, *_: asked.append(data) or [labelled(40, 0)])
    for name in ("scene_changes", "image_changes"):
        monkeypatch.setattr(evaluate, name, lambda *_: nothing)
    for data in ("scenes", None, "photos"):
        evaluate.write_json(tmp_path / "config.json", {"pairs": None, "method": None, "image_size": 16, "seed": 0, "data": data})
        evaluate.invariance_run(tmp_path, torch.device("cpu"))
    assert asked == ["scenes-held-out", "scenes-held-out", "photos"]


def test_what_one_of_the_two_views_has_is_inside_of_the_augmentation(tmp_path, monkeypatch):
    import byol

    config = vars(byol.parse_args(["--data", ".", "--solarize", "0", "0.2"]))
    evaluate.write_json(tmp_path / "config.json", config | {"method": "byol", "image_size": 16, "data": "photos"})
    labels, x = torch.arange(4) % 2, labelled(4, 0).images
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: [labelled(40, 0)])
    monkeypatch.setattr(evaluate, "scene_changes", lambda *_: (labels, x, {}))
    monkeypatch.setattr(evaluate, "image_changes", lambda *_: (labels, x, {"solarize": 255 - x, "rotation": x.rot90(1, (2, 3))}))
    found = evaluate.invariance_run(tmp_path, torch.device("cpu"))["transformations of colours"]["factors"]
    assert found["solarize"]["inside"] and not found["rotation"]["inside"]


def test_transforms_of_no_strength_are_not_inside_and_are_judged_at_the_usual_one(tmp_path, monkeypatch):
    import simclr

    config = vars(simclr.parse_args(["--data", ".", "--jitter", "0", "0", "0", "0", "--crop-min", "1"]))
    evaluate.write_json(tmp_path / "config.json", config | {"method": "simclr", "image_size": 16, "data": "photos"})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: [labelled(40, 0)])
    monkeypatch.setattr(evaluate, "scene_changes", lambda *_: (torch.arange(4) % 2, labelled(4, 0).images, {}))
    found = evaluate.invariance_run(tmp_path, torch.device("cpu"))["transformations of colours"]["factors"]
    assert not found["jitter"]["inside"] and not found["crop"]["inside"] and found["flip"]["inside"] and found["jitter"]["share"] > 0.01


def test_invariance_is_of_test_images_of_the_runs_world_and_view(tmp_path, monkeypatch):
    import simclr

    config = vars(simclr.parse_args(["--seed", "3", "--crop-min", "0.7", "--jitter", "0.1", "0.1", "0.1", "0.1"]))
    evaluate.write_json(tmp_path / "config.json", config | {"method": "simclr", "image_size": 16})
    asked, nothing = [], (torch.arange(4) % 2, labelled(4, 0).images, {})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *given: asked.append(given[-1]) or [labelled(40, 0)])
    monkeypatch.setattr(evaluate, "scene_changes", lambda *given: asked.append(given) or nothing)
    monkeypatch.setattr(evaluate, "image_changes", lambda found, *given: asked.append(given) or nothing)
    evaluate.invariance_run(tmp_path, torch.device("cpu"))
    view, _ = pairs.make_views(argparse.Namespace(**config), 16)
    assert asked == [["test"], (view, 3), (3, 16)]


def test_the_picture_of_shares_names_each_row_and_shades_what_each_method_has(tmp_path, monkeypatch):
    """Two methods, of which one solarises and one has a run without crops; two weights of one name, of which that is not known."""
    plt = pytest.importorskip("matplotlib.pyplot")
    results = {}
    for name, method, inside in (("a", "simclr", {"crop"}), ("b", "byol", {"crop", "solarize"}), ("c", None, None), ("d/c", None, None), ("e", "simclr", {"flip"})):
        (tmp_path / name).mkdir(parents=True)
        without = "crop" if name == "e" else ""
        evaluate.write_json(tmp_path / name / "config.json", {"method": method, "backbone": "resnet18", "pairs": method and "semantic", "data": "x", "seed": 0, "without": without})
        factors = {f: {"inside": inside and f in inside, "untrained": 0.5, "share": share} for f, share in (("crop", 0.1), ("flip", 0.2), ("solarize", 0.3))}
        results[tmp_path / name] = {"transformations of caf\udce9": {"factors": factors}}
    monkeypatch.setattr(plt, "close", lambda figure: None)
    evaluate.draw_invariance(results, tmp_path / "shares.png")
    figure = plt.gcf()
    monkeypatch.undo()
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["simclr", "byol", "c", "c", "simclr without crop"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]  # those that are seen, beside all panels
    for axis, shaded in zip(figure.axes, ({"crop"}, {"crop", "solarize"}, set(), set(), {"flip"}), strict=True):
        rows = {line.get_label(): line for line in axis.lines}
        points = dict(zip(names, rows["any" if axis.get_title()[0] == "c" else "semantic"].get_xdata()))
        assert points == pytest.approx({"crop": 0.1, "flip": 0.2, "solarize": 0.3})
        assert {names[round(patch.get_y() + 0.5)] for patch in axis.patches} == shaded
    plt.close(figure)


# -- collapse signals


def test_collapse_signals_of_known_cases():
    torch.manual_seed(0)
    std, rank = evaluate.collapse_signals(torch.ones(64, 16))
    assert std == pytest.approx(0, abs=1e-6) and rank == pytest.approx(1, abs=1e-3)
    assert evaluate.collapse_signals(torch.zeros(8, 16)) == (0, 1)
    std, rank = evaluate.collapse_signals(torch.randn(4096, 16))
    assert std == pytest.approx(1, abs=0.02) and rank == pytest.approx(16, abs=0.2)
    line = torch.randn(64, 1) * torch.ones(1, 16)  # spread, but along one direction
    assert evaluate.collapse_signals(line)[1] == pytest.approx(1, abs=1e-3)
    corners = torch.eye(8).repeat(4, 1)
    assert evaluate.collapse_signals(corners)[1] == pytest.approx(8, abs=1e-3)
    for n, d in ((20, 50), (50, 20)):  # by definition
        z = torch.randn(n, d) @ torch.randn(d, d) + 1
        share = torch.linalg.svdvals(z / z.norm(dim=1, keepdim=True)).double()
        share = share / share.sum()
        assert evaluate.collapse_signals(z)[1] == pytest.approx((-share @ share.log()).exp().item(), rel=1e-4)


# -- run folder


def make_run(tmp_path, files=None, **options):
    import simclr

    argv = [f"--{k.replace('_', '-')}" + f"={v}" * (v is not True) for k, v in ({"out": tmp_path / "run", "epochs": 2, "batch_size": 4} | options).items() if v is not None]
    args = simclr.parse_args(argv + ["--device=cpu"])
    pool = pairs.ImageSet("t", torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ["a"], files_crc32=files)
    model, view = nn.Module(), pairs.Augmentation()
    model.backbone, _ = evaluate.build_backbone("convnet", 16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return evaluate.Run("simclr", args, pairs.make_pairs("augmented", pool, 0), view, view, model, optimizer)


def test_a_run_says_in_which_precision_it_computes(tmp_path, capsys):
    for kind in ("bfloat16", "float32"):
        run = make_run(tmp_path, out=tmp_path / kind, precision=kind)
        assert evaluate.read_config(run.folder)["precision"] == kind and f"on cpu in {kind}" in capsys.readouterr().out


def test_a_run_folder_is_named_by_what_the_study_varies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = lambda **options: make_run(tmp_path, out=None, **options).folder.as_posix()
    assert name(seed=3) == "runs/simclr-augmented-scenes-seed3"
    assert name(data=str(tmp_path / "photos")) == "runs/simclr-augmented-photos-seed0"
    assert name(pairs="semantic", semantic_share=0.5, false_pairs=0.2) == "runs/simclr-semantic-share0.5-false0.2-scenes-seed0"
    assert name(pairs="semantic", without="crop,flip") == "runs/simclr-semantic-without-crop-flip-scenes-seed0"
    for file in ("l.csv", "m"):  # a list's name need not end in .csv
        expected = [f"runs/simclr-{file[0]}{arm}-list-seed0" for arm in ("", "-augmented")]
        assert [name(pairs=file, arm=arm) for arm in ("semantic", "augmented")] == expected


def test_a_run_folder_is_never_overwritten(tmp_path):
    make_run(tmp_path)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="--resume goes on"):
        make_run(tmp_path)
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}


def test_two_programs_do_not_train_in_one_folder(tmp_path):
    run = make_run(tmp_path)
    other = ("import pathlib, sys, pairs\nwith pairs.locked(pathlib.Path(sys.argv[1]), busy='taken'):\n    print('free', flush=True)\n    input()\n",
             run.folder / "run.lock")
    start = lambda: subprocess.Popen([sys.executable, "-c", *other], cwd=os.path.dirname(pairs.__file__), text=True, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE))
    assert "UserError: taken" in start().communicate()[1]
    make_run(tmp_path, resume=True)  # the same program may: the first was interrupted
    del run
    gc.collect()
    second = start()
    assert second.stdout.readline() == "free\n"
    with pytest.raises(UserError, match="run: another program trains in it"):
        make_run(tmp_path, resume=True)
    second.communicate("\n")
    make_run(tmp_path, resume=True)


def test_a_run_does_not_go_on_with_other_files(tmp_path):
    make_run(tmp_path, files=7)
    make_run(tmp_path, files=7, resume=True)
    with pytest.raises(UserError, match="--resume: the files of --data, or the pairs of the list, are not those of"):
        make_run(tmp_path, files=8, resume=True)


def test_a_run_does_not_go_on_with_another_seed_or_other_pairs(tmp_path):
    make_run(tmp_path)
    for name, value in (("seed", 1), ("pairs", "semantic"), ("skip_bad", True)):
        with pytest.raises(UserError, match=f"--resume: {name} was"):
            make_run(tmp_path, resume=True, **{name: value})


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    run = make_run(tmp_path)
    kept = (run.folder / "checkpoint.pt").read_bytes()
    run.log(0, torch.tensor(1.0), 0.1, torch.randn(4, 8))
    with pytest.raises(UserError, match="the loss is nan at step 2"):
        run.log(0, torch.tensor(float("nan")), 0.1, torch.randn(4, 8))
    next(run.model.parameters()).data.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        run.save(1)
    assert (run.folder / "checkpoint.pt").read_bytes() == kept


def test_checkpoints_are_written_when_the_last_is_old_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SECONDS_BETWEEN_SAVES", 1e6)
    run = make_run(tmp_path, epochs=4)
    saved = lambda: torch.load(run.folder / "checkpoint.pt", weights_only=True)["epoch"]
    run.save(1)
    assert saved() == 0 and run.epoch == 0  # the untrained one is still young
    run.saved -= evaluate.SECONDS_BETWEEN_SAVES
    run.save(2)
    assert saved() == 2
    run.save(3)
    assert saved() == 2
    evaluate.add_results(run.folder, {"knn": {"t": {"accuracy": 0.1}}})  # while the run goes on
    run.save(4)
    assert saved() == 4 and not (run.folder / "result.json").exists()
    versions = {"git_commit": evaluate.git_commit(), "torch": torch.__version__}
    assert evaluate.read_json(run.folder / "result-epoch2.json") == {"knn": {"t": {"accuracy": 0.1} | versions}}


def test_the_log_keeps_all_lines_up_to_the_checkpoint_and_says_the_rates_of_its_epoch(tmp_path):
    run = make_run(tmp_path)
    run.rates = lambda epoch: {"semantic_rate": epoch}
    logged = lambda: [json.loads(line) for line in open(run.folder / "log.jsonl")]
    for step in range(4):
        run.printed = time.time() + 60  # no line before the end of an epoch
        run.log(step // 2, torch.tensor(1.0), 0.1, torch.randn(4, 8))
        if step == 1:
            run.saved = 0
            run.save(1)
    assert [(line["step"], line["semantic_rate"]) for line in logged()] == [(2, 0), (4, 1)]
    make_run(tmp_path, resume=True)
    assert [line["step"] for line in logged()] == [2]


def test_the_first_loss_after_resume_is_the_mean_of_its_own_steps(tmp_path):
    for epoch, loss in ((0, 1.0), (1, 3.0)):
        run = make_run(tmp_path, **({"resume": True} if epoch else {}))
        for _ in range(2):
            run.printed = time.time() + 60  # no line before the end of an epoch
            run.log(epoch, torch.tensor(loss), 0.1, torch.randn(4, 8))
        run.saved = 0
        run.save(epoch + 1)
    assert [json.loads(line)["loss"] for line in (run.folder / "log.jsonl").read_text().splitlines()] == [1.0, 3.0]


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch, capsys):
    run, name = make_run(tmp_path, epochs=3), "resumed_elsewhere"
    resumed = lambda: make_run(tmp_path, epochs=3, resume=True)
    monkeypatch.setattr(evaluate, "SECONDS_BETWEEN_SAVES", 0)
    run.save(2)
    resumed()
    assert name not in evaluate.read_config(run.folder) and "note" not in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "git_commit", lambda: "later code")
    run = resumed()
    assert "after epoch 2 the run goes on with git_commit later code" in capsys.readouterr().out
    config = evaluate.read_config(run.folder)
    assert config[name] == [{"after_epoch": 2, "git_commit": "later code"}] and config["git_commit"] != "later code"
    assert not {name, "git_commit"} & set(evaluate.options_of(config))  # neither is an option
    monkeypatch.undo()
    for _ in range(2):  # back again, and on from there
        run = resumed()
    back = [{"after_epoch": 2, "git_commit": config["git_commit"]}]
    assert evaluate.read_config(run.folder)[name][1:] == back
    run.save(3)
    monkeypatch.setattr(evaluate, "git_commit", lambda: "later code")
    resumed()  # of what is finished no epoch is trained elsewhere
    assert evaluate.read_config(run.folder)[name][1:] == back


def test_a_run_may_go_on_on_any_machine_and_says_on_which_it_was(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path)
    make_run(tmp_path, resume=True, cache="elsewhere", root="r", download=True, compile="default")
    old = evaluate.read_config(run.folder)
    for name in ("python", "torch", "torchvision", "numpy", "pillow", "threads", "machine", "git_commit", "precision"):
        evaluate.write_json(run.folder / "config.json", old | {name: "other"})
        make_run(tmp_path, resume=True)
        assert f"the run goes on with {name} " in capsys.readouterr().out
    evaluate.write_json(run.folder / "config.json", old)
    for commit in "ab":
        monkeypatch.setattr(evaluate, "git_commit", lambda: commit)
        make_run(tmp_path, resume=True)
    assert [there["git_commit"] for there in evaluate.read_config(run.folder)["resumed_elsewhere"]] == ["a", "b"]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_commit_says_when_files_differ_from_it(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull), monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git = lambda *a: subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *a], check=True, capture_output=True, text=True).stdout.strip()
    git("init")
    (tmp_path / "f").write_text("1")
    git("add", "f"), git("commit", "-m", "m"), git("tag", "-a", "v1", "-m", "v")
    monkeypatch.setattr(evaluate, "__file__", str(tmp_path / "evaluate.py"))
    commit = evaluate.git_commit.__wrapped__()
    (tmp_path / "f").write_text("2")
    assert (commit, evaluate.git_commit.__wrapped__()) == (git("rev-parse", "HEAD"), git("rev-parse", "HEAD") + "-dirty")


def test_a_run_without_an_epoch_is_not_judged(tmp_path):
    with pytest.raises(UserError, match="has not finished an epoch"):
        evaluate.load_backbone(make_run(tmp_path).folder)


def test_a_run_killed_between_checkpoint_and_backbone_is_whole_after_resume(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    evaluate.add_results(run.folder, {"knn": {"t": {"accuracy": 0.1}}})  # of the untrained backbone
    first = next(run.model.parameters())
    first.data += 1
    with monkeypatch.context() as patch:
        patch.setattr(run, "_publish", lambda: sys.exit())
        with pytest.raises(SystemExit):
            run.save(2)
    stored = lambda: next(iter(torch.load(run.folder / "backbone.pt", weights_only=True).values()))
    assert not torch.equal(stored(), first) and evaluate.read_config(run.folder)["trained_epochs"] == 0
    make_run(tmp_path, resume=True)
    assert torch.equal(stored(), first) and evaluate.read_config(run.folder)["trained_epochs"] == 2
    assert (run.folder / "result-epoch0.json").exists() and not (run.folder / "result.json").exists()


def test_a_result_belongs_to_the_weights_that_it_was_computed_from(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path, epochs=4)
    run.saved -= evaluate.SECONDS_BETWEEN_SAVES
    run.save(2)
    config, _, _ = evaluate.load_run(run.folder)
    with monkeypatch.context() as patch:  # as another user's
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(UserError, match="cannot be written to, and results go there"):
            evaluate.load_run(run.folder)
    run.save(4)  # while they are evaluated
    evaluate.add_results(run.folder, {"knn": {"t": {"accuracy": 0.1}}}, config)
    assert "was trained further meanwhile; what its weights after epoch 2 gave" in capsys.readouterr().out
    assert evaluate.read_json(run.folder / "result-epoch2.json")["knn"]["t"]["accuracy"] == 0.1 and not (run.folder / "result.json").exists()


def test_a_result_is_of_the_trained_backbone_and_of_the_epoch_that_was_read(tmp_path, monkeypatch):
    config = {"method": None, "pairs": None, "data": None, "seed": 0, "trained_epochs": 2, "epochs": 2}
    evaluate.write_json(tmp_path / "config.json", config)
    blind = mean_color()
    nn.init.zeros_(blind[2].weight)
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), blind))

    def load_splits(*_):
        evaluate.write_json(tmp_path / "config.json", config | {"trained_epochs": 4})  # the run goes on meanwhile
        return labelled(60, 0), labelled(20, 2), labelled(8, 1)

    monkeypatch.setattr(evaluate, "load_splits", load_splits)
    r = evaluate.evaluate_run(tmp_path, ["knn"], ["d"], torch.device("cpu"))["knn"]["colours"]
    assert (r["accuracy"], r["untrained"], r["n_train"]) == (1, 0.5, 68)  # with the validation images
    assert evaluate.read_json(tmp_path / "result-epoch2.json")["knn"]["colours"]["accuracy"] == 1 and not (tmp_path / "result.json").exists()


def test_results_before_a_mistake_are_kept(tmp_path, monkeypatch):
    evaluate.write_json(tmp_path / "config.json", {"method": None, "pairs": None, "seed": 0, "data": None})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))

    def load_splits(config, data, *_):
        if data == "bad":
            raise UserError("bad")
        return labelled(20, 0), labelled(10, 1), None

    monkeypatch.setattr(evaluate, "load_splits", load_splits)
    with pytest.raises(UserError, match="bad"):
        evaluate.evaluate_run(tmp_path, ["knn"], ["good", "bad"], torch.device("cpu"))
    assert "colours" in evaluate.read_json(tmp_path / "result.json")["knn"]


def test_a_fine_tuning_asked_for_by_a_script_is_named_as_the_command_line_names_it(tmp_path, monkeypatch):
    evaluate.write_json(tmp_path / "config.json", {"method": None, "pairs": None, "seed": 0, "data": None})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (mean_color(), mean_color()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: (labelled(20, 0), labelled(10, 1), None))
    monkeypatch.setattr(evaluate, "usual_precision", lambda device: "bfloat16")
    for options in ({}, {"fraction": 0.5}, {"fraction": 0.5, "seed": 3}):
        evaluate.evaluate_run(tmp_path, ["knn", "finetune"], ["d"], torch.device("cpu"), steps=1, batch_size=4, lrs=[0.1], **options)
    results = evaluate.read_json(tmp_path / "result.json")
    assert list(results["knn"]) == ["colours"]
    assert list(results["finetune"]) == [f"colours, {of} of the labels, seed {seed}" for of, seed in ((1, 0), (0.5, 0), (0.5, 3))]
    assert {r["precision"] for r in results["finetune"].values()} == {"bfloat16"}


def test_the_untrained_backbone_is_that_of_the_runs_seed_and_options(tmp_path):
    torch.manual_seed(3)
    start, _ = evaluate.build_backbone("resnet18", 16, zero_init_residual=True)
    evaluate.write_json(tmp_path / "config.json", {"method": None, "pairs": None, "data": None, "seed": 3, "backbone": "resnet18", "image_size": 16, "zero_init_residual": True})
    torch.save(start.state_dict(), tmp_path / "backbone.pt")
    _, untrained = evaluate.load_backbone(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), untrained.parameters(), strict=True))


def test_a_result_that_is_replaced_by_another_is_kept(tmp_path, capsys):
    long, short = {"accuracy": 0.9, "validation": {0.1: 0.8}, "steps": 1000}, {"accuracy": 0.2, "validation": {0.1: 0.1}, "steps": 10}
    for result in (long, long, short):
        evaluate.add_results(tmp_path, {"finetune": {"t": result}})
    assert evaluate.read_json(tmp_path / "result.json")["finetune"]["t"]["steps"] == 10
    replaced, = [json.loads(line) for line in open(tmp_path / "result-replaced.jsonl")]
    assert (replaced["head"], replaced["data"], replaced["steps"], replaced["accuracy"]) == ("finetune", "t", 1000, 0.9)
    assert capsys.readouterr().out.count("this finetune of t replaces another one, which is kept in ") == 1


def test_every_replaced_result_is_kept_and_the_same_of_other_code_replaces_none(tmp_path, monkeypatch, capsys):
    for value in (0.1, 0.2, 0.3):
        evaluate.add_results(tmp_path, {"knn": {"t": {"accuracy": value}}})
    assert [json.loads(line)["accuracy"] for line in open(tmp_path / "result-replaced.jsonl")] == [0.1, 0.2]
    monkeypatch.setattr(evaluate, "git_commit", lambda: "later")
    capsys.readouterr()
    evaluate.add_results(tmp_path, {"knn": {"t": {"accuracy": 0.3}}})
    assert "replaces" not in capsys.readouterr().out


def test_a_line_of_the_log_by_hand(tmp_path, monkeypatch, capsys):
    run, z = make_run(tmp_path), torch.randn(64, 8)
    run.printed = run.began = 1000.0
    monkeypatch.setattr(evaluate.time, "time", lambda: 1001.0)
    run.log(0, torch.tensor(1.0), 0.3, z), run.log(0, torch.tensor(1.0), 0.2, z)
    line, = map(json.loads, open(run.folder / "log.jsonl"))
    assert (line["embedding_std"], line["effective_rank"]) == evaluate.collapse_signals(z)
    assert line["images_per_second"] == 2 * 4 * 2 and line["lr"] == 0.2 and line["seconds"] == 1
    assert "  0:01 left" in capsys.readouterr().out  # two steps of four took a second
    monkeypatch.setattr(evaluate.time, "time", lambda: 1003.0)  # two seconds later a line, also within an epoch
    run.log(1, torch.tensor(1.0), 0.1, z)
    written = lambda: [json.loads(line)["step"] for line in open(run.folder / "log.jsonl")]
    assert written() == [2, 3]
    run.total = run.epochs * 40
    for run.step, expected in ((69, [2, 3]), (58, [2, 3, 59])):  # 30 steps in two seconds and 10 to come, which the next line is to tell; 19 and 21
        run.printed, run.printed_step = 1001.0, 40
        run.log(1, torch.tensor(1.0), 0.1, z)
        assert written() == expected


def test_curves_show_what_their_titles_say(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    lines = [{"epoch": 1 + (step > 2), "step": step, "loss": 5 - step, "lr": 0, "embedding_std": step / 10, "effective_rank": 9 + step} for step in (2, 3, 4)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(plt, "close", lambda figure: None)
    evaluate.draw_curves(tmp_path)
    figure = plt.gcf()
    monkeypatch.undo()
    shown = {axis.get_title().split()[0]: axis.lines[0].get_xydata().tolist() for axis in figure.axes}
    assert shown == {"loss": [[1, 3], [1.5, 2], [2, 1]], "embedding": [[1, 0.2], [1.5, 0.3], [2, 0.4]], "effective": [[1, 11], [1.5, 12], [2, 13]]}
    plt.close(figure)


def test_without_a_log_there_are_no_curves(tmp_path, capsys):
    evaluate.draw_curves(tmp_path)
    assert "log.jsonl is missing or empty" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_run_that_keeps_one_direction_warns(tmp_path, capsys):
    torch.manual_seed(0)
    run = make_run(tmp_path)
    for _ in range(2):
        run.printed = time.time() + 60
        run.log(0, torch.tensor(1.0), 0.1, torch.randn(64, 1) * torch.ones(1, 8))  # either way along it: std is 1
    assert capsys.readouterr().out.count("warning: the embeddings are collapsing") == 1


def test_a_collapsing_run_warns_once_in_plain_words(tmp_path, capsys):
    run = make_run(tmp_path)
    for loss in (1.0, 3.0, 5.0, 5.0):
        run.printed = time.time() + 60  # however slow the machine, no line before the end of an epoch
        run.log(run.step // 2, torch.tensor(loss), 0.1, torch.ones(4, 8))
    assert capsys.readouterr().out.count("warning: the embeddings are collapsing") == 1
    lines = [json.loads(line) for line in open(run.folder / "log.jsonl")]
    assert [line["step"] for line in lines] == [2, 4] and [line["loss"] for line in lines] == [2.0, 5.0] and 0 <= lines[0]["seconds"] <= lines[1]["seconds"]
    assert list(lines[0]) == ["epoch", "step", "loss", "lr", "images_per_second", "seconds", "embedding_std", "effective_rank", "semantic_rate", "false_rate", "same_class_rate"]


@pytest.mark.parametrize("spread, warnings", [(0.02, 1), (1.0, 0)])
def test_a_run_that_ends_with_like_embeddings_says_so(tmp_path, capsys, spread, warnings):
    run = make_run(tmp_path)
    torch.manual_seed(0)
    for _ in range(4):
        run.log(run.step // 2, torch.tensor(1.0), 0.1, 0.1 + spread * torch.randn(64, 8))
    run.judged = False
    run.finish()
    out = capsys.readouterr().out
    assert out.count("warning: the embeddings are still alike at the end") == warnings and "collapsing" not in out


def test_weights_of_modules_that_ask_for_their_version_are_loaded(tmp_path):
    network, _ = evaluate.build_backbone("mnasnet0_5", 32)
    torch.save(dict(network.state_dict()), tmp_path / "backbone.pt")  # a plain dict, without the versions
    other, _ = evaluate.build_backbone("mnasnet0_5", 32)
    evaluate.load_weights(other, tmp_path / "backbone.pt")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="not a run folder: it has no config.json"):
        evaluate.read_config(tmp_path)
    for theirs in ('{"model_type": "resnet"}', '{"seed": 0, "data": "photos"}'):
        (tmp_path / "config.json").write_text(theirs)
        with pytest.raises(UserError, match="not a run folder: its config.json is another program's"):
            evaluate.read_config(tmp_path)
    with pytest.raises(UserError, match="--device nonsense"):
        evaluate.pick_device("nonsense")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    evaluate.pick_device("cpu")
    assert torch.backends.cudnn.allow_tf32 is False


# -- weights from elsewhere, results


def test_weights_in_a_run_folder_are_judged_at_the_size_that_they_were_trained_with(tmp_path, capsys):
    backbone, _ = evaluate.build_backbone("convnet", 16)  # which fits any size
    for folder, config in (("run", {"backbone": "convnet", "image_size": 16}), ("other", {"model": "convnet"})):
        (tmp_path / folder).mkdir()
        torch.save(backbone.state_dict(), tmp_path / folder / "b.pt")
        evaluate.write_json(tmp_path / folder / "config.json", config)
    size = lambda folder, *given: evaluate.read_config(evaluate.adopt(tmp_path / folder / "b.pt", "convnet", *given, out=tmp_path / f"{folder}{given}"))["image_size"]
    assert size("run") == 16 and "images of 16 px, as " in capsys.readouterr().out
    assert size("run", 24) == 24 and size("other") == 224 and "as" not in capsys.readouterr().out


def test_weights_of_torchvisions_format_are_taken_and_misfits_listed(tmp_path):
    theirs = torchvision.models.resnet18(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "r.pth")
    folder = evaluate.adopt(tmp_path / "r.pth", "resnet18", 96, out=tmp_path / "run")
    trained, untrained = evaluate.load_backbone(folder)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(trained.eval()(x), theirs.eval()(x)) and not torch.equal(untrained.eval()(x), theirs(x))
    (folder / "backbone.pt").unlink()  # as if it had been killed before that
    other_name = tmp_path / "run" / ".." / "r.pth"
    assert evaluate.adopt(other_name, "resnet18", 96, out=tmp_path / "run") == folder  # the same again is no mistake
    assert (folder / "backbone.pt").is_file()

    state = torch.load(tmp_path / "r.pth")
    state["layer9.weight"] = state.pop("bn1.weight")
    torch.save({"state_dict": state}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="bn1.weight is missing; layer9.weight is left over$"):
        evaluate.adopt(tmp_path / "wrong.pth", "resnet18", 96, out=tmp_path / "other")
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="bn1.bias is missing; .*; module.bn1.bias is left over; .*; and [0-9]+ more$"):  # both, so that the prefix shows
        evaluate.adopt(tmp_path / "wrong.pth", "resnet18", 96, out=tmp_path / "other")
    torch.save({key: value for key, value in theirs.state_dict().items() if "tracked" not in key}, tmp_path / "old.pth")
    old, _ = evaluate.load_backbone(evaluate.adopt(tmp_path / "old.pth", "resnet18", 96, out=tmp_path / "old"))  # as torch 0.4 and before wrote them
    assert torch.equal(old.eval()(x), theirs(x))
    with pytest.raises(UserError, match=r"conv1.weight is \(64, 3, 7, 7\) and should be \(64, 3, 3, 3\)"):
        evaluate.adopt(tmp_path / "r.pth", "resnet18", 32, out=tmp_path / "other")
    for beside, hint in (([], "$"), ({"some": "model"}, "$"), ({"backbone": "resnet18", "image_size": 96}, "; .*config.json has --backbone resnet18 --image-size 96$")):
        (tmp_path / "config.json").write_text(json.dumps(beside))
        with pytest.raises(UserError, match=r"should be \(64, 3, 3, 3\)" + hint):
            evaluate.adopt(tmp_path / "r.pth", "resnet18", 32, out=tmp_path / "other")
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "nested.pth")
    nested, _ = evaluate.load_backbone(evaluate.adopt(tmp_path / "nested.pth", "resnet18", 96, out=tmp_path / "nested"))
    assert torch.equal(nested.eval()(x), theirs(x))
    with pytest.raises(IsADirectoryError):  # which run_cli words as for every path
        evaluate.adopt(tmp_path, "resnet18", 96, out=tmp_path / "other")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    torch.save({0: torch.zeros(2)}, tmp_path / "numbers.pth")
    for name in ("bad", "numbers"):
        with pytest.raises(UserError, match=f"{name}.pth is not a file of weights"):
            evaluate.adopt(tmp_path / f"{name}.pth", "resnet18", 96, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
    torch.save(theirs.state_dict(), tmp_path / "r2.pth")
    with pytest.raises(UserError, match="of another backbone"):
        evaluate.adopt(tmp_path / "r2.pth", "resnet18", 96, out=tmp_path / "run")


def test_googlenet_is_built_without_auxiliary_classifiers_and_takes_weights_that_have_them(tmp_path):
    theirs, x = torchvision.models.googlenet(init_weights=False, transform_input=True), torch.randn(2, 3, 32, 32)
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    ours, width = evaluate.build_backbone("googlenet", 32)
    evaluate.load_weights(ours, tmp_path / "g.pth")
    theirs.fc = nn.Identity()
    assert width == 1024 and torch.equal(ours.eval()(x), theirs.eval()(x)) and torch.is_tensor(ours.train()(x))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_weights_may_be_evaluated_twice_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(evaluate.ConvNet().state_dict(), tmp_path / "c.pt")
    (tmp_path / "begun").mkdir()
    for name in ("result.json.lock", "config.json.part"):  # the other has come no further
        (tmp_path / "begun" / name).touch()
    evaluate.adopt(tmp_path / "c.pt", "convnet", 16, out=tmp_path / "begun")
    assert evaluate.adopt(tmp_path / "c.pt", "convnet", 16).as_posix() == "runs/convnet-c"
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(lambda _: evaluate.adopt(tmp_path / "c.pt", "convnet", 16, out=tmp_path / "run"), range(12)))
    assert folders == [tmp_path / "run"] * 12
    evaluate.load_backbone(tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_lock_holds_between_processes(tmp_path):
    code = "import fcntl, sys\ntry: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: sys.exit(3)"
    tried = lambda: subprocess.run([sys.executable, "-c", code, tmp_path / "lock"]).returncode
    with pairs.locked(tmp_path / "lock"):
        assert tried() == 3
    assert tried() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_who_waits_for_a_lock_says_so(tmp_path):
    code = "import pathlib, sys, pairs\nwith pairs.locked(pathlib.Path(sys.argv[1])): print('in')"
    with pairs.locked(tmp_path / "lock"):
        other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=os.path.dirname(pairs.__file__), stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == f"waiting for another program, which holds {tmp_path / 'lock'}\n"
    assert other.communicate()[0] == "in\n" and other.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_results_of_evaluations_that_end_at_the_same_time_are_all_kept(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda k: [evaluate.add_results(tmp_path, {"knn": {f"{k}-{i}": {"accuracy": i}}}) for i in range(20)], range(4)))
    stored = json.loads((tmp_path / "result.json").read_text())
    assert len(stored["knn"]) == 80 and stored["knn"]["3-19"] == {"accuracy": 19, "git_commit": evaluate.git_commit(), "torch": torch.__version__}


def test_the_limit_of_a_run_holds_for_its_data_however_it_is_named(tmp_path, monkeypatch, capsys):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / label / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    config = {"data": "photos", "pairs": "semantic", "limit": 4, "image_size": 8, "seed": 0, "root": "data", "cache": None}
    sizes = [len(evaluate.load_splits(config, data, splits=["train"])[0]) for data in ("photos", "./photos/", str(tmp_path / "photos"))]
    assert sizes == [4, 4, 4]
    assert len(evaluate.load_splits(config | {"data": "other"}, "photos", splits=["train"])[0]) == 8
    (tmp_path / "scenes").symlink_to("photos")
    assert len(evaluate.load_splits(config | {"data": "scenes"}, pairs.named("./scenes"), splits=["train"])[0]) == 8  # not the built-in set
    assert len(evaluate.load_splits(config | {"pairs": "list.csv"}, "photos", splits=["train"])[0]) == 8  # the limit is the list's
    (tmp_path / "photos" / "a" / "0.png").rename(tmp_path / "photos" / "a" / "00.png")
    known = pairs.load_images("photos", limit=4).files_crc32
    capsys.readouterr()
    for told, said in ((known, ""), (known + 1, "note: photos holds other files than those that the run was trained on\n")):
        evaluate.load_splits(config | {"files_crc32": told}, "photos", splits=["train"])
        assert capsys.readouterr().out == said
    shutil.copytree("photos", "moved/photos")
    sizes = [len(evaluate.load_splits(config | {"files_crc32": told}, "moved/photos", splits=["train"])[0]) for told in (known, known + 1)]
    assert sizes == [4, 8]  # the run's own data elsewhere, and another folder of that name


def test_data_are_loaded_as_for_the_run_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    asked = []
    monkeypatch.setattr(pairs, "load_images", lambda *given: asked.append(given) or labelled(4, 0))
    config = {"data": "photos", "pairs": "semantic", "limit": None, "image_size": 8, "seed": 3, "root": "there", "skip_bad": True, "cache": "c"}
    evaluate.load_splits(config, "photos", splits=["test"])
    evaluate.load_splits(config, "photos", "here", True, cache="other", splits=["test"])
    evaluate.load_splits({k: v for k, v in config.items() if k != "cache"}, "photos", splits=["test"])  # of weights from elsewhere
    assert asked == [("photos", "test", 8, None, 3, "there", False, True, "c"), ("photos", "test", 8, None, 3, "here", True, True, "other"),
                     ("photos", "test", 8, None, 3, "there", False, True, "cache")]
    (tmp_path / "photos").rmdir()
    with pytest.raises(UserError, match="the run was trained on photos, and there is no such folder here"):
        evaluate.load_splits(config, "photos", splits=["test"])


def test_damaged_files_of_a_run_are_named(tmp_path):
    run = make_run(tmp_path)
    for name, call in (("checkpoint.pt", lambda: make_run(tmp_path, resume=True)), ("config.json", lambda: evaluate.read_config(run.folder))):
        path = run.folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=f"{name} is damaged"):
            call()
    (run.folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json is damaged .it holds no object"):
        evaluate.read_config(run.folder)


def test_a_run_without_weights_says_so(tmp_path):
    run = make_run(tmp_path)
    run.save(2)
    (run.folder / "backbone.pt").unlink()
    with pytest.raises(UserError, match="backbone.pt is missing .runs below results/ come without weights."):
        evaluate.load_backbone(run.folder)


def test_resume_takes_the_same_data_under_another_spelling_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, files=1, data="photos", pairs="semantic")
    make_run(tmp_path, files=1, data=tmp_path / "photos", pairs="semantic", resume=True)
    for other, said in (({"data": "photos2", "pairs": "semantic"}, "data was photos in .* now; keep it, by a link if it was moved,"),
                        ({"data": "photos"}, "pairs was semantic in .* and is augmented now; keep it,")):
        with pytest.raises(UserError, match=f"--resume: {said}"):
            make_run(tmp_path, files=1, **other, resume=True)


def test_a_damaged_line_of_the_log_is_told_on_resume(tmp_path):
    run = make_run(tmp_path)
    for line in ('{"step": 1, "lo}', '{"epoch": 1}'):
        (run.folder / "log.jsonl").write_text(line + '\n{"step": 1}\n')
        with pytest.raises(UserError, match="log.jsonl is damaged; remove the lines that are not whole"):
            make_run(tmp_path, resume=True)
    (run.folder / "log.jsonl").write_text('{"step": 1}\n{"step": 99}\n{"st')
    make_run(tmp_path, resume=True)
    assert (run.folder / "log.jsonl").read_text() == ""


def test_a_damaged_result_is_told_before_the_evaluation(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    run.save(2)
    (run.folder / "result.json").write_text('{"knn": {')
    monkeypatch.setattr(evaluate, "load_splits", None)  # so that what follows would fail
    with pytest.raises(UserError, match="result.json is damaged"):
        evaluate.evaluate_run(run.folder, ["knn"], ["scenes"], torch.device("cpu"))


def test_a_file_of_weights_is_no_checkpoint(tmp_path):
    run = make_run(tmp_path)
    (run.folder / "checkpoint.pt").write_bytes((run.folder / "backbone.pt").read_bytes())
    with pytest.raises(UserError, match="checkpoint.pt is damaged"):
        make_run(tmp_path, resume=True)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "c"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_file_that_there_is_no_right_or_room_to_read_is_not_called_damaged(error, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    run = make_run(tmp_path)
    monkeypatch.setattr(torch, "load", refuse)
    for call in (lambda: make_run(tmp_path, resume=True), lambda: evaluate.load_weights(nn.Identity(), run.folder / "backbone.pt")):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


def test_only_the_first_process_holds_and_rewrites_a_run_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "rank_and_world", lambda: (0, 2))
    run = make_run(tmp_path)
    run.save(2)
    (run.folder / "log.jsonl").write_text('{"step": 99}\n')  # which the first process cuts off
    kept = {p.name: p.read_bytes() for p in run.folder.iterdir()}
    monkeypatch.setattr(pairs, "rank_and_world", lambda: (1, 2))
    assert not hasattr(make_run(tmp_path, resume=True), "held")
    assert kept == {p.name: p.read_bytes() for p in run.folder.iterdir()}


def test_another_method_is_named_first_when_a_run_would_go_on(tmp_path):
    run = make_run(tmp_path)
    config = json.loads((run.folder / "config.json").read_text()) | {"method": "byol", "temperature": None, "pairs": "semantic"}
    (run.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--resume: method was byol"):
        make_run(tmp_path, resume=True)


def test_untrained_features_of_held_out_scenes_score_as_published():
    """A backbone of known weights, judged from end to end: results/scenes has 0.164 and 0.060 of seed 0."""
    torch.manual_seed(0)
    backbone, _ = evaluate.build_backbone("convnet", 32)
    splits = [pairs.scenes(split, held_out=True) for split in ("train", "test")]
    found = evaluate.judge(["linear", "knn"], backbone, backbone, *splits)
    assert found["linear"]["accuracy"] == pytest.approx(0.164, abs=0.01) and found["knn"]["accuracy"] == pytest.approx(0.060, abs=0.005)


def test_other_heads_and_too_few_rows_are_refused_and_pixels_are_judged():
    train, test, pixels = labelled(40, 0), labelled(20, 1), nn.Flatten()
    for heads in ("knn", ["knn", "Linear"]):
        with pytest.raises(ValueError, match="heads: a list of linear, knn, transfer, finetune, not "):
            evaluate.judge(heads, pixels, pixels, train, test)
    x, y = torch.randn(4, 3), torch.arange(4) % 2
    with pytest.raises(ValueError, match="4 rows, of which a fifth is to choose on"):
        evaluate.linear_probe(x, y, x, y, 2)
    found = evaluate.judge(["linear", "knn", "finetune"], pixels, pixels, train, test, steps=2, batch_size=4, lrs=[0.1])
    assert all(found[head]["accuracy"] == found[head]["untrained"] for head in found) and found["linear"]["accuracy"] > 0.9


def test_what_images_of_several_classes_cannot_have_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    several = pairs.ImageSet("voc2007", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 20, dtype=torch.long), ["a"] * 20)
    monkeypatch.setattr(evaluate, "read_config", lambda run: {"method": None, "image_size": 8, "seed": 0, "data": None, "root": "data"})
    monkeypatch.setattr(evaluate, "load_backbone", lambda run: (nn.Identity(), nn.Identity()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: [several])
    with monkeypatch.context() as patch, pytest.raises(UserError, match="knn: the images of voc2007 have several classes each"):
        patch.setattr(evaluate, "load_splits", lambda *_: [several, several, None])
        evaluate.evaluate_run(tmp_path, ["linear", "knn"], ["voc2007"], "cpu")
    with pytest.raises(UserError, match="the images of voc2007 have several classes each"):
        evaluate.invariance_run(tmp_path, torch.device("cpu"), "voc2007")
    several.labels = torch.arange(4)
    monkeypatch.setattr(evaluate, "scene_changes", None)
    with pytest.raises(UserError, match="needs two classes or more with two test images"):
        evaluate.invariance_run(tmp_path, torch.device("cpu"), "voc2007")


@pytest.mark.parametrize("head", ["knn", "linear", "transfer", "finetune"])
def test_one_class_is_refused_as_every_accuracy_would_be_1(head, tmp_path, monkeypatch):
    one = pairs.ImageSet("all", torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.zeros(6, dtype=torch.long), ["images"])
    monkeypatch.setattr(evaluate, "load_run", lambda run: ({}, nn.Identity(), nn.Identity()))
    monkeypatch.setattr(evaluate, "load_splits", lambda *_: [one, one, None])
    with pytest.raises(UserError, match="--data all has one class only, images; is it the folder of the class folders"):
        evaluate.evaluate_run(tmp_path, [head], ["all"], "cpu")
    assert not (tmp_path / "result.json").exists()
