"""Evaluate: what a run folder holds, what a backbone is worth, and how runs compare.

    python evaluate.py knn RUN [--data D ...]               weighted k nearest neighbours
    python evaluate.py linear RUN [--data D ...]            linear probe on the run's own data
    python evaluate.py transfer RUN --data D [D ...]        linear probe on other data sets
    python evaluate.py finetune RUN --data D --fraction 0.1 all layers, on a share of the labels
    python evaluate.py detect RUN --data DIR                Faster R-CNN on the backbone
    python evaluate.py invariance RUN [RUN ...]             which nuisance factors the features ignore
    python evaluate.py compare RUN [RUN ...]                semantic against augmented pairs, paired by seed

RUN is a folder such as runs/simclr-semantic-scenes-seed0. All but `compare` also take any backbone's weights:
--backbone-file FILE --backbone resnet50 instead of RUN.

The rules, for every number that this file prints:
  1. a frozen backbone is frozen: features come from the backbone, not the projection head, computed once, by a copy in
     eval mode, which must equal the backbone bit for bit afterwards;
  2. nothing is chosen on test images: the probe's L2 strength and the learning rate of fine-tuning are chosen on
     the data's own validation split, or a fifth of its training images; then the head is fitted again on training
     and validation images together, and scored once on the test images;
  3. each accuracy comes with chance and the same evaluation of the untrained backbone (same seed, step 0); a detector's
     baseline is a run of its own, --init random;
  4. semantic pairs use labels. Numbers on categories that pretraining saw are therefore not self-supervised
     for that arm; the fair headline is `scenes-held-out`, categories that no pretraining image shows.

Reading order: backbones, features and heads (kNN, linear probe, fine-tuning), detection, invariance, collapse signals,
several processes, run folder, the evaluations of a run, comparison, command line. No pretraining loss is computed here.
"""

import argparse
import copy
import csv
import functools
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
import torchvision

import pairs
from pairs import UserError

# ---------------------------------------------------------------------------------------- backbones


class MeanOverPositions(nn.Module):
    """(N, C, H, W) -> (N, C, 1, 1), as nn.AdaptiveAvgPool2d(1), but its gradient stays channels_last, which is faster on a CPU."""

    def forward(self, x):
        return F.avg_pool2d(x, x.shape[2:])


class ConvNet(nn.Sequential):
    """Four 3x3 convolutions with BatchNorm and ReLU, the mean over positions, BatchNorm: (N, 3, S, S) -> (N, 256).

    Ours: 11 million multiply-adds at 32 px. The last BatchNorm takes away the large mean that features after
    a ReLU share; without it MoCo, BYOL and SimSiam needed far longer to find what a semantic pair shares, in trials not kept.
    """

    def __init__(self):
        layers = []
        for channels, width, stride in (3, 32, 2), (32, 64, 2), (64, 128, 1), (128, 256, 2):
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, MeanOverPositions(), nn.Flatten(), nn.BatchNorm1d(256))


def architecture(name):
    """The name, if it is "convnet" or that of a classification model of torchvision; else raises UserError. A type for argparse."""
    if name != "convnet" and name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"--backbone {name}: choose convnet, resnet18, resnet50 or another classification model of torchvision")
    return name


def build_backbone(name, image_size, zero_init_residual=False, verbose=False):
    """A randomly initialised backbone without classifier: (module, width of its features).

    name: "convnet" or any classification model of torchvision, whose key names its state_dict keeps. ResNets
    get the CIFAR stem up to 64 px: 3x3 convolution of stride 1 and no max-pooling (SimCLR, App. B.9), because
    the ImageNet stem shrinks a 32 px image to one pixel; with zero_init_residual their residual blocks start as the identity.
    Raises UserError for names torchvision does not have and for images that the architecture cannot take.
    """
    if architecture(name) == "convnet":
        return ConvNet(), 256
    options = {"image_size": image_size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}  # the last as torchvision's weights need it
    if zero_init_residual and name.startswith(("resnet", "resnext", "wide_resnet")):
        options = {"zero_init_residual": True}
    try:
        model = torchvision.models.get_model(name, weights=None, **options)
    except AssertionError as error:
        raise UserError(f"--backbone {name} with images of {image_size} px: {error}") from None
    linears = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(f"--backbone {name}: it has no linear classifier to remove; choose another")
    model.set_submodule(linears[-1], nn.Identity())  # torchvision's classifiers are last
    if isinstance(model, torchvision.models.ResNet):
        small = image_size <= 64
        if small:
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        if verbose:
            stem = "CIFAR stem (3x3, stride 1, no max-pooling)" if small else "ImageNet stem (7x7, stride 2, max-pooling)"
            print(f"{name} with the {stem}, because images have {image_size} px")
    try:
        with torch.no_grad():
            width = model.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"--backbone {name} cannot take images of {image_size} px: {str(error).splitlines()[0]}") from None
    return model.train(), width


def new_backbone(config):
    """A backbone as a run of that config starts with, its weights drawn from torch's random state."""
    return build_backbone(config["backbone"], config["image_size"], config.get("zero_init_residual", False))[0]


def load_backbone(run):
    """(trained, untrained) backbones of a run folder; untrained has the weights of the run's step 0.

    Raises UserError when the run has not finished an epoch; prints a note if it is otherwise unfinished.
    """
    config = read_config(run)
    if config.get("trained_epochs") == 0:
        raise UserError(f"{run} has not finished an epoch: let it end, or go on with --resume")
    if said := unfinished(config):
        print(f"note: {run} {said}")
    file = Path(run) / "backbone.pt"
    if not file.is_file():
        raise UserError(f"{file} is missing (runs below results/ come without weights): copy the whole folder, or train the run again")
    torch.manual_seed(config["seed"])
    untrained = new_backbone(config)
    trained = copy.deepcopy(untrained)
    load_weights(trained, file)
    return trained, untrained


def load_run(run):
    """(config, trained, untrained backbone) of a run folder, all of one moment, as the run may go on meanwhile."""
    read_config(run)  # or a lock would be left in a folder that is not a run's
    if not os.access(run, os.W_OK):
        raise UserError(f"{run} cannot be written to, and results go there: copy it to a folder of your own")
    with pairs.locked(Path(run) / "result.json.lock"):
        if (stored := Path(run) / "result.json").exists():
            read_json(stored)  # report a damaged one before the evaluation, not after it
        return read_config(run), *load_backbone(run)


def load_weights(backbone, file):
    """Loads a file of torchvision-format weights; only a classifier may be left over.

    Raises UserError that names keys that are missing, left over or of another shape, OSError for a file that may not be read. A
    dict under "state_dict" or "model" is opened, as checkpoints have it. BatchNorm's counts of batches may be missing, as in files
    of older versions of torch.
    """
    try:
        state = load_tensors(file)
        state = state.get("state_dict", state.get("model", state))
        if not all(isinstance(key, str) for key in state):
            raise ValueError("its keys are no names")
        shapes = {key: tuple(value.shape) for key, value in state.items()}
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (ValueError, AttributeError):
        raise UserError(f"{file} is not a file of weights: a state_dict of tensors, saved by torch.save") from None
    wanted = {key: tuple(value.shape) for key, value in backbone.state_dict().items()}
    removed = [name for name, module in backbone.named_modules() if isinstance(module, nn.Identity)][-1:]  # by build_backbone
    classifier = tuple(f"{name}." for name in (*removed, "aux1", "aux2", "AuxLogits"))
    missing = sorted(f"{key} is missing" for key in wanted.keys() - shapes.keys() if not key.endswith("num_batches_tracked"))
    extra = sorted(f"{key} is left over" for key in shapes.keys() - wanted.keys() if not key.startswith(classifier))
    other = sorted(f"{key} is {shapes[key]} and should be {wanted[key]}" for key in wanted.keys() & shapes.keys() if shapes[key] != wanted[key])
    if wrong := missing + extra + other:
        told = missing[:2] + extra[:2] + other[:2]
        said = "; ".join(told) + f"; and {len(wrong) - len(told)} more" * (len(wrong) > len(told))
        known = config_beside(file)
        hint = f"; its config.json has --backbone {known['backbone']} --image-size {known['image_size']}" if known else ""
        raise UserError(f"{file} does not fit the backbone (and its image size, which decides a ResNet's stem): {said}{hint}")
    given = backbone.state_dict()  # with versions of its modules, which MNASNet asks for
    given.update({key: state[key] for key in wanted if key in state})
    backbone.load_state_dict(given)


def config_beside(file):
    """The config.json of the run that a file of weights lies in, {} if it lies in none."""
    with suppress(OSError, UserError):  # it may be missing, or another program's
        config = read_json(Path(file).parent / "config.json")
        if {"backbone", "image_size"} <= config.keys():
            return config
    return {}


def trained_size(file):
    """The image size that a file of weights in a run folder was trained with, None of other files."""
    size = config_beside(file).get("image_size")
    if size:
        print(f"images of {size} px, as {file} was trained with")
    return size


def adopt(file, name, image_size=None, out=None):
    """Makes a run folder of a bare file of weights, so that every evaluation takes it, and returns the folder.

    image_size: by default the one that a run trained them with, else 224. Raises UserError for weights that do not fit and for a
    folder that holds another backbone.
    """
    image_size = image_size or trained_size(file) or 224
    backbone, _ = build_backbone(name, image_size, verbose=True)
    load_weights(backbone, file)
    file = Path(file)
    folder = Path(out or f"runs/{name}-{file.stem}")
    config = {"method": None, "pairs": None, "data": None, "limit": None, "root": "data", "backbone": name, "image_size": image_size,
              "seed": 0, "processes": 1, "backbone_file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    begun = {"result.json.lock", "config.json.part"}  # what another program may have written so far that adopts the same now
    there = folder.exists() and {path.name for path in folder.iterdir()} - begun
    if there and read_config(folder) | {"backbone_file": str(file)} != config:  # the sum tells, however the file is named
        raise UserError(f"{folder} exists and is of another backbone or option; --out DIR writes elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    with pairs.locked(folder / "result.json.lock"):  # the same weights may be evaluated twice at the same time
        write_json(folder / "config.json", config)  # first: if this is killed, the same again will finish it
        save_tensors(folder / "backbone.pt", backbone.state_dict())
    return folder


def pick_device(name):
    """The torch.device of this name, on which float32 is float32: torch's convolutions would use TF32, of 10 bits, on a GPU.
    Raises UserError when this machine has none."""
    torch.backends.cudnn.allow_tf32 = False
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the first sentence says it; a long list may follow
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0].partition('. ')[0]}); use cpu") from None
    return device


def usual_precision(device):
    """"bfloat16" or "float32", in which networks compute on a device unless --precision says otherwise: bf16 where it is faster,
    on GPUs since NVIDIA's Ampere, CPUs with AMX, and those with AVX512-BF16 except Intel's (results/speed)."""
    if device.type == "cuda":
        faster = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has = torch.cpu.get_capabilities()
        faster = device.type == "cpu" and (has.get("amx_bf16") or has.get("avx512_bf16") and "Intel" not in has.get("cpu_name", ""))
    return "bfloat16" if faster else "float32"


def autocast(device, precision=None):
    """bf16 autocast for the networks, by default where it is faster; losses are computed outside of it, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=(precision or usual_precision(device)) == "bfloat16")


# -------------------------------------------------------------------------------------------- heads


class Diverged(UserError):
    """Features that are not finite."""


def device_of(model):
    """Where a model's parameters are; the CPU if it has none, as nn.Flatten(), for features that are the pixels."""
    return next(model.parameters(), torch.empty(0)).device


@torch.no_grad()
def features(backbone, images, batch_size=256, what="features"):
    """Features (N, d) float32 of uint8 images (N, 3, S, S), in eval mode, on the backbone's device.

    Computed by a copy, so that the backbone stays in train or eval mode. Raises AssertionError when the pass changed the copy (a
    head must not move what it judges), Diverged when features are not finite.
    """
    device = device_of(backbone)
    frozen = copy.deepcopy(backbone).eval()  # running statistics of BatchNorm are used, and stay as they are
    out, progress = [], pairs.Progress(what, len(images))
    for batch in images.split(batch_size):
        x = pairs.normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        out.append(frozen(x).float())
        progress(len(batch))
    h = torch.cat(out)
    if not h.isfinite().all():
        raise Diverged(f"{what}: not all are finite, so the network has diverged; train it with a lower --lr or a larger --batch-size")
    given = backbone.state_dict()
    assert all(torch.equal(v, given[k]) for k, v in frozen.state_dict().items()), "the pass changed the network"
    return h


def knn(train_x, train_y, test_x, test_y, k=200, temperature=0.1):
    """Accuracy of the weighted k-nearest-neighbour classifier (Wu et al. 2018, Sec. 3.4; there temperature 0.07, 0.1 is lightly's).

    Cosine similarity s of features (N, d); each of the k nearest training images votes exp(s / temperature)
    for its class, int64 (N,). k is cut to the number of training images.
    """
    # with the usual eps, 1e-12, features shorter than that would stay shorter than 1
    train_x, test_x = (F.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny) for x in (train_x, test_x))
    correct, classes = 0, int(train_y.max()) + 1
    for x, y in zip(test_x.split(1024), test_y.split(1024)):
        similarity, index = (x @ train_x.T).topk(min(k, len(train_x)), dim=1)
        votes = x.new_zeros(len(x), classes)  # relative to the nearest one's: at a low temperature exp overflows
        votes.scatter_add_(1, train_y[index], torch.exp((similarity - similarity[:, :1]) / temperature))
        correct += (votes.argmax(1) == y).sum().item()
    return correct / len(test_y)


def classification_loss(logits, y):
    """Cross entropy of logits (N, C) for classes y (N,); for several classes an image, y (N, C) of 1, 0 and -1 (not
    counted), binary cross entropy summed over the classes. The mean over the images."""
    if y.ndim == 1:
        return F.cross_entropy(logits, y)
    each = F.binary_cross_entropy_with_logits(logits, y.clamp(min=0).to(logits.dtype), reduction="none")
    return (each * (y >= 0)).sum(1).mean()


def score(metric, logits, y):
    """The metric of logits (N, C): "top-1" (share of y (N,) that is right), "mean per class" (mean over the classes
    of that share), or "11-point mAP" (mean over the classes of voc_average_precision; y (N, C) of 1, 0, -1).
    Raises ValueError for another metric."""
    if metric == "11-point mAP":
        ranked = y.gather(0, logits.argsort(dim=0, descending=True, stable=True)).cpu().numpy()
        hits = [truth[truth >= 0] == 1 for truth in ranked.T]
        return float(np.nanmean([voc_average_precision(right, right.sum()) for right in hits]))
    right = (logits.argmax(1) == y).float()
    if metric == "top-1":
        return right.mean().item()
    if metric == "mean per class":
        return (torch.bincount(y, right) / torch.bincount(y)).nanmean().item()  # nan: a class without images
    raise ValueError(f"no metric {metric}")


def logistic_regression(x, y, classes, l2, start=None, tick=lambda: None):
    """Multinomial logistic regression by L-BFGS: weights (d + 1, classes), the last row the bias, that minimise

        mean cross entropy(x W + b, y) + l2 / 2 |W|^2        (the bias is not penalised; scikit-learn's C = 1 / (n l2)).

    x (N, d), y (N,), or (N, classes) for a binary regression for each class. `start` are weights to begin with;
    `tick` is called at every evaluation of the loss.
    """
    weights = x.new_zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    weights.requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=1000, tolerance_grad=1e-5, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = classification_loss(x @ weights[:-1] + weights[-1], y) + l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        tick()
        return loss

    solver.step(closure)
    return weights.detach()


def shuffled_by_turns(labels, seed):
    """A random order of the rows of labels (N,) that takes the classes in turn; of labels (N, C) just a random one."""
    order = torch.randperm(len(labels), generator=pairs.stream("validation", seed))
    return order[pairs.by_turns(labels[order])]


def a_fifth(labels, seed=0):
    """(rows to choose on, rows to train on): a random fifth of the rows, of each class about a fifth, and the others. Raises
    ValueError for fewer than five."""
    if len(labels) < 5:
        raise ValueError(f"{len(labels)} rows, of which a fifth is to choose on: give five or more, or a split")
    order = shuffled_by_turns(labels, seed)
    y, held = labels[order], torch.zeros(len(order), dtype=torch.bool)
    # an image's place in its class, as a share of the class, 1 / n to 1: the fifth with the smallest shares is held out, about a fifth
    # of each class, and usually none of a class of fewer than five if there are larger ones
    share = (pairs.rank_in_class(y) + 1) / torch.bincount(y)[y] if y.ndim == 1 else torch.arange(len(y))
    held[share.argsort(stable=True)[: len(order) // 5]] = True
    return order[held], order[~held]


def split_off_validation(train, val):
    """(rows to choose on, rows to train on) among the training and then the validation images; val None: see a_fifth. Raises
    UserError if a fifth is less than one image."""
    if val is None:
        if len(train) < 5:
            raise UserError(f"{train.name} has {len(train)} training images, of which a fifth is to choose on: a probe needs 5 or more; "
                            "add some, or a val/ folder")
        return a_fifth(train.labels)
    return torch.arange(len(train), len(train) + len(val)), shuffled_by_turns(train.labels, 0)


L2_GRID = [10.0**k for k in range(1, -8, -1)]  # from strong to weak: each fit starts from the one before


def linear_probe(train_x, train_y, test_x, test_y, classes, grid=L2_GRID, split=None, metric="top-1"):
    """Linear probe on frozen features (N, d): {"accuracy", "metric", "l2", "validation": {l2: accuracy}}.

    Features are standardised with the training mean and standard deviation. The L2 strength is the one of the grid that is
    best on held-out training rows (of equals the stronger one); the probe is fitted again on all training rows; the test images
    are read once (Kornblith et al. 2019, Sec. A.4, with 45 strengths). Labels are int64 (N,), for several classes an image
    (N, classes). split: (rows to choose on, rows to train on), else a_fifth. "accuracy" is in the metric named (see `score`).
    """
    held, kept = (rows.to(train_y.device) for rows in split or a_fifth(train_y.cpu()))
    scale = train_x.abs().max().clamp(1e-24, 1)  # features may be small, as an untrained MobileNet's
    mean, std = train_x.mean(0), train_x.std(0).clamp(min=1e-6 * scale)  # no division by the 0 of constant ones
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    accuracy = lambda w, x, y: score(metric, x @ w[:-1] + w[-1], y)

    curve, fitted, weights = {}, {}, None
    progress = pairs.Progress("linear probe, L2 strengths and a last fit", len(grid) + 1)
    still_busy = lambda: progress(0)
    for l2 in grid:
        weights = fitted[l2] = logistic_regression(train_x[kept], train_y[kept], classes, l2, weights, still_busy)
        curve[l2] = accuracy(weights, train_x[held], train_y[held])
        progress()
    best = max(curve, key=curve.get)  # of equals the first, which is the strongest
    weights = logistic_regression(train_x, train_y, classes, best, fitted[best], still_busy)
    return {"accuracy": accuracy(weights, test_x, test_y), "metric": metric, "l2": best, "validation": curve}


# of the heads, in tables
TITLES = {"linear": "linear probe", "knn": "weighted kNN", "transfer": "linear probe", "finetune": "fine-tuned"}


def judge(heads, trained, untrained, train, test, val=None, **options):
    """Results {head: {...}} of the heads "knn", "linear" or "transfer" (the same probe), "finetune" for ImageSets, the
    trained beside the untrained backbone. `options` go to fine_tune. Raises ValueError for other heads."""
    if isinstance(heads, str) or not TITLES.keys() >= set(heads):
        raise ValueError(f"heads: a list of {', '.join(TITLES)}, not {heads!r}")
    device = device_of(trained)
    split = split_off_validation(train, val) if set(heads) - {"knn"} else None
    parts = [train] if val is None else [train, val]
    y, test_y = torch.cat([s.labels for s in parts]).to(device), test.labels.to(device)

    def chance(metric):  # of always naming the largest class; of random scores, the mean of ten, where an image has several classes
        if y.ndim > 1:
            random = torch.rand(10, *test_y.shape, generator=pairs.stream("chance"))
            return sum(score(metric, scores, test_y.cpu()) for scores in random) / 10
        return torch.bincount(test_y).max().item() / len(test) if metric == "top-1" else 1 / len(test_y.unique())

    sizes = {"classes": len(train.classes), "n_train": len(y), "n_test": len(test), "files_crc32": test.files_crc32,
             "train_crc32": [s.files_crc32 for s in parts]}
    results, both = {}, train  # training and validation images
    if "finetune" in heads and val is not None:
        both = replace(train, images=torch.cat([s.images for s in parts]), labels=y.cpu())
    for which, backbone in (("trained", trained), ("untrained", untrained)):
        if set(heads) - {"finetune"}:
            *x, test_x = (features(backbone, s.images, what=f"{which} features of {s.name}") for s in (*parts, test))
            x = torch.cat(x)
        for head in heads:
            if head == "finetune":
                found = fine_tune(backbone, both, test, split, **options)
            elif head == "knn":
                settings = {"k": min(200, len(y)), "temperature": 0.1}
                found = {"accuracy": knn(x, y, test_x, test_y, **settings)} | settings
            else:
                found = linear_probe(x, y, test_x, test_y, len(train.classes), split=split, metric=train.metric)
            if which == "trained":
                results[head] = found | {"chance": chance(found.get("metric", "top-1"))} | sizes
            else:
                results[head]["untrained"] = found["accuracy"]
    return results


FINETUNE_LRS = [0.1, 0.01, 0.001, 0.0001]  # Ericsson et al. 2021 (ssl-transfer): 1e-4 ... 1e-1


def fit_all_layers(backbone, train, rows, lr, steps, batch_size, seed):
    """A copy of the backbone with a linear classifier, all layers trained on the rows of an ImageSet.

    SGD with Nesterov momentum 0.9 and no weight decay (ssl-transfer tries several), the learning rate falls along a cosine
    to 0; random crops of at least half the image and flips. Unlike in a probe, BatchNorm is trained too.
    """
    device = device_of(backbone)
    generator, view = pairs.stream("finetune", seed), pairs.Augmentation(crop=(0.5, 1.0), p_jitter=0, p_gray=0)
    width = features(backbone, train.images[:1]).shape[1]
    torch.manual_seed(seed)
    model = nn.Sequential(copy.deepcopy(backbone), nn.Linear(width, len(train.classes)).to(device)).train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    progress = pairs.Progress(f"fine-tuning {len(rows)} images, lr {lr:g}, steps", steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        # with few labels a batch shows an image several times, each time with another crop
        chosen = rows[torch.randint(len(rows), (batch_size,), generator=generator)]
        x, y = pairs.augment(train.images[chosen].to(device), view, generator), train.labels[chosen].to(device)
        with autocast(device):
            logits = model(x)
        loss = classification_loss(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress()
    return model


def fine_tune(backbone, train, test, split=None, fraction=1.0, steps=1000, batch_size=64, seed=0, lrs=FINETUNE_LRS):
    """Fine-tuning of all layers: {"accuracy", "metric", "lr", "validation": {lr: accuracy}, "fraction", ...}.

    Trained on a `fraction` of the training images: classes in turn, at least one image of each; where an image may show
    several classes random ones, at least as many as there are classes. The learning rate is chosen on held-out training
    images, the same whatever the fraction; then the network is trained again on that fraction of all training images, drawn by
    the seed, and the test images are read once. split: as in linear_probe; with it the learning rate is chosen on the same
    images whatever the seed. Raises UserError where training diverges: Diverged for a backbone that has, before any step.
    """
    if batch_size < 2:
        raise UserError(f"--batch-size {batch_size}: BatchNorm needs 2 images or more")
    held, kept = split or a_fifth(train.labels, seed)
    share = lambda rows: rows[pairs.by_turns(train.labels[rows])][: max(round(fraction * len(rows)), len(train.classes))]
    judged = lambda model, images, y: score(train.metric, features(model, images, what="classifying").cpu(), y)
    fit = lambda rows, lr: fit_all_layers(backbone, train, rows, lr, steps, batch_size, seed)
    of_kept, of_all, curve = share(kept), share(shuffled_by_turns(train.labels, seed)), {}
    for lr in lrs:
        model = fit(of_kept, lr)  # raises Diverged for a backbone that has, which is no fault of a learning rate
        try:
            curve[lr] = judged(model, train.images[held], train.labels[held])
        except Diverged:
            curve[lr] = -1.0  # below any accuracy: not chosen, were the others all wrong
    lr = max(curve, key=curve.get)
    try:
        accuracy = judged(fit(of_all, lr), test.images, test.labels)
    except Diverged:
        raise UserError(f"fine-tuning diverged at lr {lr:g}, the best of {lrs} on held-out images; try a larger --batch-size or another --seed") from None
    return {"accuracy": accuracy, "metric": train.metric, "lr": lr, "validation": curve, "fraction": fraction, "n_fitted": len(of_all),
            "steps": steps, "batch_size": batch_size, "seed": seed, "precision": usual_precision(device_of(backbone))}


# ---------------------------------------------------------------------------------------- detection


def build_detector(backbone, classes, kind="c4", size=(800,), rois=512, roi_size=14):
    """Faster R-CNN of torchvision on a backbone: all its layers train, also if they were frozen, BatchNorm included (MoCo, detection/).

    kind "c4": proposals and RoIAlign on the feature map before the last stage; the last stage, a BatchNorm and the mean over
    positions are the box head (He et al. 2016; MoCo's R50-C4 with its extra BatchNorm). "fpn": a feature pyramid of all stages
    and two linear layers (Lin et al. 2017). size: short sides; each training image draws one, testing takes the last, with which
    the anchors (32 ... 512 px at 800 px) scale. rois: RoIs in an image's box loss; at test time as many proposals, at least 100.
    Differences from detectron2's, which MoCo used: fewer proposals (by default 2,000 before non-maximum suppression in training,
    1,024 after it; 1,000 and 512 in testing), smooth L1 losses of the boxes with beta 1/9 (there plain L1), a box predictor that
    starts with torch's usual weights (there normal ones, 0.01 and 0.001), RoIAlign with two samples a side and without the shift
    by half a pixel, the batch padded to one size (there each GPU's share), weight decay of BatchNorm too, images without an object
    trained on and objects marked difficult not, and BatchNorm's running statistics not computed anew before testing. Raises
    UserError for backbones other than ResNets and, with c4, convnet.
    """
    if not isinstance(backbone, (torchvision.models.ResNet, ConvNet) if kind == "c4" else torchvision.models.ResNet):
        raise UserError(f"detection with {kind} takes torchvision's ResNets" + (" and convnet" if kind == "c4" else "; convnet has c4 only"))
    vision = torchvision.models.detection
    backbone.requires_grad_(True)
    anchors = tuple(a * size[-1] / 800 for a in (32, 64, 128, 256, 512))
    anchors = (anchors,) if kind == "c4" else tuple((a,) for a in anchors)  # all on one map, or a size on each
    options = {"min_size": tuple(size), "max_size": round(size[-1] * 5 / 3), "box_batch_size_per_image": rois,
               "rpn_post_nms_top_n_train": max(2 * rois, 200), "rpn_post_nms_top_n_test": max(rois, 100),
               "rpn_anchor_generator": vision.anchor_utils.AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors))}
    if kind == "fpn":
        stages = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
        body = vision.backbone_utils.BackboneWithFPN(backbone, stages, [backbone.inplanes // k for k in (8, 4, 2, 1)], 256)
        return vision.FasterRCNN(body, classes + 1, **options)
    if isinstance(backbone, torchvision.models.ResNet):
        body = nn.Sequential(*[getattr(backbone, k) for k in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")])
        body.out_channels, width = backbone.inplanes // 2, backbone.inplanes  # of layer3 and of layer4
        head = nn.Sequential(backbone.layer4, nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:  # the convnet's last convolution; its own last BatchNorm is the extra one
        layers, width = list(backbone), 256
        body, head = nn.Sequential(*layers[:9]), nn.Sequential(*layers[9:])
        body.out_channels = 128
    return vision.FasterRCNN(body, box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], roi_size, 2), box_head=head,
                             box_predictor=vision.faster_rcnn.FastRCNNPredictor(width, classes + 1), **options)


def train_detector(model, data, steps, batch_size, lr, seed):
    """Trains a detector on a BoxSet: SGD momentum 0.9, weight decay 1e-4, lr per 16 images, 100 steps of linear
    warm-up, divided by 10 after 3/4 and again after 11/12 of the steps (MoCo, detection/: 18k and 22k of 24k); flips.

    Objects marked difficult are left out of training. Raises UserError when the loss is not finite.
    """
    device, generator = device_of(model), pairs.stream("detect", seed)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    peak, order = lr * batch_size / 16, torch.empty(0, dtype=torch.long)
    progress = pairs.Progress("training the detector, steps", steps)
    model.train()
    for step in range(steps):
        falls = 0.1 ** ((step >= steps * 3 / 4) + (step >= steps * 11 / 12))
        optimizer.param_groups[0]["lr"] = peak * falls * min(1, (step + 1) / min(100, steps))
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        batch, order = order[:batch_size].tolist(), order[batch_size:]
        images, targets = [], []
        for i in batch:
            image, boxes, clear = data.image(i), data.boxes[i].clone(), ~data.difficult[i]
            if torch.rand((), generator=generator) < 0.5:
                image, boxes[:, [0, 2]] = image.flip(2), image.shape[2] - boxes[:, [2, 0]]
            images.append(image.to(device) / 255)
            targets.append({"boxes": boxes[clear].to(device), "labels": data.labels[i][clear].to(device) + 1})  # 0 is background
        loss = sum(model(images, targets).values())
        if not math.isfinite(loss.item()):
            raise UserError(f"the detector's loss is {loss.item()} at step {step + 1}: try a lower --lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress()


@torch.no_grad()
def detect(model, data):
    """Detections: for each image of a BoxSet a dict of boxes (k, 4), scores (k,), labels (k,), numpy, at most 100."""
    device, found, progress = device_of(model), [], pairs.Progress("detecting, images", len(data))
    model.eval()
    for i in range(len(data)):
        out = {key: value.cpu().numpy() for key, value in model([data.image(i).to(device) / 255])[0].items()}
        found.append(out | {"labels": out["labels"] - 1})  # 0 is background
        progress()
    return found


def overlaps(a, b, crowd=False):
    """IoU (len(a), len(b)) of boxes x1, y1, x2, y2; for `crowd` columns the share of a's area instead (COCO)."""
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = side.clip(0).prod(2)
    area = lambda boxes: (boxes[:, 2:] - boxes[:, :2]).prod(1)
    union = area(a)[:, None] + area(b)[None] - shared
    return shared / np.where(crowd, area(a)[:, None], union)


COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def of_class(truth, found, c):
    """What each image has of class c: (scores (D,), falling; detected boxes (D, 4); true boxes (G, 4); which are difficult (G,))."""
    for t, f in zip(truth, found, strict=True):
        t_rows, f_rows = t["labels"] == c, np.flatnonzero(f["labels"] == c)
        f_rows = f_rows[np.argsort(-f["scores"][f_rows], kind="stable")]
        difficult = np.asarray(t["difficult"], bool)[t_rows]
        yield f["scores"][f_rows], f["boxes"][f_rows].astype(float), t["boxes"][t_rows].astype(float), difficult


def coco_match(iou, crowd):
    """COCO's greedy matching of one image and class: (hit, ignored), each bool (thresholds, D).

    iou (D, G), detections by falling score. Each takes the free true box of highest IoU, if that reaches
    the threshold; a true box is taken once. A detection that only a crowd covers is ignored: neither right nor wrong.
    """
    hit, ignored = np.zeros((2, len(COCO_THRESHOLDS), len(iou)), bool)
    if not iou.shape[1]:
        return hit, ignored
    free = np.tile(~crowd, (len(COCO_THRESHOLDS), 1))
    for d, row in enumerate(iou):
        possible = np.where(free, row, -1)
        best = possible.shape[1] - 1 - possible[:, ::-1].argmax(1)  # the last of equals, as pycocotools
        hit[:, d] = possible.max(1) >= COCO_THRESHOLDS
        free[hit[:, d], best[hit[:, d]]] = False
        ignored[:, d] = ~hit[:, d] & (np.where(crowd, row, -1).max() >= COCO_THRESHOLDS)
    return hit, ignored


def coco_average_precision(truth, found, classes, max_detections=100):
    """AP (classes, thresholds) of detections, COCO's 101-point definition; nan for a class without true boxes.

    truth, found: lists of dicts, one for each image; truth has boxes (G, 4), labels (G,), difficult (G,), found has
    boxes, scores, labels. Difficult objects count as COCO's crowds: they need not be found, and detections on them are ignored. At each
    recall 0, 0.01 ... 1 the highest precision at that recall or more is taken, 0 where it is never reached.
    Equal to pycocotools' precision averaged over recalls (area "all").
    """
    result = np.full((classes, len(COCO_THRESHOLDS)), np.nan)
    for c in range(classes):
        matched, positives = [], 0  # of each image: (scores, hits, ignored)
        for scores, boxes, true_boxes, crowd in of_class(truth, found, c):
            iou = overlaps(boxes[:max_detections], true_boxes, crowd)
            matched.append((scores[:max_detections], *coco_match(iou, crowd)))
            positives += (~crowd).sum()
        if positives == 0:
            continue
        scores, hits, ignored = (np.concatenate(part, -1) for part in zip(*matched))
        order = np.argsort(-scores, kind="stable")
        tp, fp = hits[:, order].cumsum(1), (~hits & ~ignored)[:, order].cumsum(1)
        for i in range(len(COCO_THRESHOLDS)):
            precision = tp[i] / (tp[i] + fp[i] + np.spacing(1))
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            reached = np.searchsorted(tp[i] / positives, np.linspace(0, 1, 101), side="left")
            result[c, i] = envelope[reached].mean()
    return result


def voc_average_precision(hits, positives):
    """VOC2007's 11-point AP of hits (bool, by falling score) among `positives` true ones; nan if there are none.

    The mean over the recalls 0, 0.1 ... 1 of the highest precision at that recall or more (Everingham et al. 2010, Eq. 1).
    """
    if positives == 0:
        return float("nan")
    tp = np.cumsum(hits)
    recall, precision = tp / positives, tp / np.arange(1, len(tp) + 1)
    return float(np.mean([precision[recall >= r - 1e-9].max(initial=0) for r in np.linspace(0, 1, 11)]))


def voc_detection_ap(truth, found, classes, threshold=0.5):
    """VOC2007's AP (classes,) at an IoU; arguments as coco_average_precision.

    A detection belongs to the true box of highest IoU: the first on a box is right, further ones are wrong,
    any number on a difficult one are not counted.
    """
    result = []
    for c in range(classes):
        scored, positives = [], 0  # (score, right) of what counts
        for scores, boxes, true_boxes, difficult in of_class(truth, found, c):
            positives += (~difficult).sum()
            taken = set()
            for row, s in zip(overlaps(boxes, true_boxes), scores):
                if row.max(initial=0) < threshold:
                    scored.append((s, False))
                elif not difficult[best := row.argmax()]:
                    scored.append((s, best not in taken))
                    taken.add(best)
        scored.sort(key=lambda pair: -pair[0])
        result.append(voc_average_precision(np.array([right for _, right in scored], bool), positives))
    return np.array(result)


def box_metrics(data, found):
    """{"ap", "ap50", "ap75", "voc07_ap", "voc07_ap50", "voc07_ap75", "ap50_by_class"} of detections of a BoxSet: the first three
    are COCO's; the next three of VOC2007's 11 points, also averaged over the IoUs 0.5 ... 0.95 (as MoCo's table for VOC)."""
    truth = [{"boxes": b.numpy(), "labels": l.numpy(), "difficult": d.numpy()} for b, l, d in zip(data.boxes, data.labels, data.difficult)]
    ap = coco_average_precision(truth, found, len(data.classes))
    mean = lambda values: float(np.nanmean(values))
    voc = np.stack([voc_detection_ap(truth, found, len(data.classes), iou) for iou in COCO_THRESHOLDS], 1)
    return {"ap": mean(ap), "ap50": mean(ap[:, 0]), "ap75": mean(ap[:, 5]),
            "voc07_ap": mean(voc), "voc07_ap50": mean(voc[:, 0]), "voc07_ap75": mean(voc[:, 5]),
            "ap50_by_class": {name: None if np.isnan(v) else v for name, v in zip(data.classes, ap[:, 0].tolist())}}


@pairs.picture()
def draw_detections(path, data, found, n=8, threshold=0.5):
    """Writes a picture of the first n images of a BoxSet: true boxes dotted, detections above the threshold solid."""
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    n, shown = min(n, len(data)), set()  # the classes
    outlined = [withStroke(linewidth=3, foreground="black")]  # white boxes can be seen on a pale background too
    true_box = {"ls": ":", "lw": 1.2, "ec": "white", "path_effects": outlined}
    lines, columns = math.ceil(n / 4), min(n, 4)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.4 * lines), squeeze=False, layout="constrained")
    colors = plt.get_cmap("tab10" if len(data.classes) <= 10 else "tab20").colors
    for axis in axes.flat:
        axis.axis("off")
    for i, axis in zip(range(n), axes.flat):
        axis.imshow(data.image(i).permute(1, 2, 0).numpy())
        sure = found[i]["scores"] >= threshold
        for boxes, labels, style in ((data.boxes[i].numpy(), data.labels[i].numpy(), true_box),
                                     (found[i]["boxes"][sure], found[i]["labels"][sure], {"ls": "-", "lw": 1.6})):
            shown.update(labels.tolist())
            for (x1, y1, x2, y2), label in zip(boxes, labels):
                axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **{"ec": colors[label % len(colors)]} | style))
    handles = [plt.Line2D([], [], color=colors[i % len(colors)], label=name) for i, name in enumerate(data.classes) if i in shown]
    handles += [plt.Line2D([], [], color="white", ls=":", label="true box", path_effects=outlined)]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(2, int(figure.get_figwidth() / 2.5)))
    any_sure = any((f["scores"] >= threshold).any() for f in found[:n])
    figure.suptitle(f"{pairs.drawable(data.name)}: {'detections' if any_sure else 'no detection'} with a score of at least {threshold}")
    figure.savefig(path, dpi=80)
    plt.close(figure)


# --------------------------------------------------------------------------------------- invariance

TRANSFORMS = ("crop", "flip", "jitter", "gray", "blur", "solarize", "rotation", "noise", "patch")


def transform_images(images, name, view, generator):
    """uint8 images (N, 3, S, S) under one of TRANSFORMS, each image with its own draw; strengths are the view's, but the usual ones
    for a crop that keeps all, and for a jitter of probability and strength 0.

    Outside of any pipeline here: rotation up to 30 degrees either way, noise of standard deviation 0.1, and a
    patch, half the side, of another image of the batch, in a random place.
    """
    n, _, size, _ = images.shape
    x, all_of_them = images / 255, torch.ones(n, dtype=torch.bool)
    usual = {"crop": view.crop if view.crop[0] < 1 else (0.2, 1.0),
             "jitter": view.jitter if view.p_jitter or any(view.jitter) else pairs.Augmentation.jitter}
    draws = pairs.draw(replace(view, **usual), n, size, generator)
    if name == "crop":
        x = pairs.resized_crop(images, draws["box"], ~all_of_them)
    elif name == "flip":
        x = x.flip(3)
    elif name == "jitter":
        x = pairs.color_jitter(x, all_of_them, draws["factors"], draws["order"])
    elif name == "gray":
        x = pairs.grayscale(x)
    elif name == "blur":
        x = pairs.gaussian_blur(x, draws["sigma"])
    elif name == "solarize":
        x = pairs.solarize(x)
    elif name == "rotation":
        angle = pairs.uniform(-math.pi / 6, math.pi / 6, n, generator)
        turn = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], 1).view(n, 2, 3)
        x = F.grid_sample(x, F.affine_grid(turn, x.shape, align_corners=False), padding_mode="reflection", align_corners=False)
    elif name == "noise":
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
    elif name == "patch":
        half, other = size // 2, x.roll(1, 0)
        for i, (top, left) in enumerate(torch.randint(size - half + 1, (n, 2), generator=generator).tolist()):
            x[i, :, top : top + half, left : left + half] = other[i, :, top : top + half, left : left + half]
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def variance_of_category(h, labels):
    """The variance of features h (N, d) that the category accounts for, summed over features: between classes.

    The unbiased estimate of one-way analysis of variance with n images of each class: variance of the class means
    - variance within classes / n; not below 0. Classes with one image are left out. Raises ValueError if fewer than two are left.
    """
    classes = [h[labels == c] for c, n in zip(*labels.unique(return_counts=True)) if n > 1]
    if len(classes) < 2:
        raise ValueError("the variance between classes needs two classes with two images or more")
    means = torch.stack([rows.mean(0) for rows in classes])
    within = torch.stack([rows.var(0) / len(rows) for rows in classes]).mean(0)
    return (means.var(0) - within).sum().clamp(min=0).item()


def share_of_factor(h, changed, labels):
    """How much a factor moves features h (N, d), relative to the category. Between 0 and 1:

        share = V_factor / (V_factor + V_category)

    0: the features ignore the factor; 0.5: it moves them as much as the category does; 1: the category does
    not move them. `changed` (N, d) are the features of the same images after a change of the factor alone; V_factor is
    half the mean |h - changed|^2 (Jansen 1999, Eq. 10: the total effect, interactions included), V_category that of
    variance_of_category. Features are standardised first, so that none dominates; those that are (nearly) constant in h
    are left out. nan if both V are 0; raises what variance_of_category raises.
    """
    std = h.std(0)
    varies = std > 1e-3 * std.max()
    h, changed = (v[:, varies] / std[varies] for v in (h, changed))
    factor, category = ((h - changed).square().sum(1).mean() / 2).item(), variance_of_category(h, labels)
    return factor / (factor + category) if factor + category > 0 else float("nan")


def scene_changes(seed, image_size, n=1000):
    """Scenes of held-out categories: (labels, images, {factor: the same scenes, one factor drawn again})."""
    classes = pairs.HELD_OUT_CATEGORIES
    shapes = pairs.sample_shapes(classes, pairs.stream("shapes", "held-out", seed))
    generator, labels = pairs.stream("invariance", seed), torch.arange(n) % classes
    factors = pairs.sample_factors(labels, generator)
    # the same pixel noise before and after, except where noise is the factor
    render = lambda factors, noise=0: pairs.render_scenes(factors, shapes, image_size, pairs.stream("pixels", seed, noise))[0]
    return labels, render(factors), {f: render(pairs.redraw(factors, f, generator), int(f == "noise")) for f in pairs.FACTORS}


def image_changes(found, view, seed, n=1000):
    """Images of an ImageSet, the first n of its first n / 20 classes: (labels, images, {transformation: the same images
    transformed}). Raises UserError for fewer than two classes with two images."""
    rows = (found.labels < n // 20).nonzero()[:n, 0]
    labels, images = found.labels[rows], found.images[rows]
    if (labels.bincount() > 1).sum() < 2:
        raise UserError(f"invariance: {found.name} needs two classes or more with two test images or more; name another --data")
    generator, chunks = pairs.stream("transformations", seed), images.split(127 if len(images) % 128 == 1 else 128)  # none of one image
    return labels, images, {name: torch.cat([transform_images(chunk, name, view, generator) for chunk in chunks]) for name in TRANSFORMS}


# --------------------------------------------------------------------------------- collapse signals


@torch.no_grad()
def collapse_signals(z):
    """Two signs of collapse of a batch of embeddings z (N, d), each computed on z / |z|.

    embedding_std: the standard deviation of each coordinate over the batch, averaged, times sqrt(d): about 1
    when directions are spread evenly over the sphere, 0 when all embeddings are equal (SimSiam, Sec. 4.1).
    effective_rank: exp of the entropy of the singular values, normalised to sum 1 (Roy & Vetterli 2007):
    between 1 (one direction; z is not centred, so equal embeddings have it too) and min(N, d).
    """
    z = F.normalize(z.cpu().double(), dim=1)  # Apple's GPUs have no float64
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()  # z's singular values; an SVD is slower, and a GPU waits for this
    rank = torch.special.entr(F.normalize(s, p=1, dim=0)).sum().exp()
    return (z.std(0).mean() * math.sqrt(z.shape[1])).item(), rank.item()


# ---------------------------------------------------------------------------------- several processes


def join(device_name, batch_size):
    """The torch.device of this process. Under torchrun it also joins the others: NCCL on GPUs, one each; else gloo.

    Only process 0 prints. Raises UserError when there is no such device, when batch_size is not a multiple of the
    processes, when a process would see fewer than two pairs, or when the environment tells of processes that torchrun did not start.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(f"WORLD_SIZE is {world} in the environment, but torchrun did not start this program: use torchrun, or unset it")
    if batch_size % world:
        raise UserError(f"--batch-size {batch_size} must be a multiple of the {world} processes: it is the batch of all of them")
    if batch_size < 2 * world:
        raise UserError(f"--batch-size {batch_size}: BatchNorm needs 2 pairs or more in each process")
    if world > 1 and device_name.startswith("cuda"):
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device_name != "cuda" or local >= here:
            raise UserError(f"--device {device_name} under torchrun: use cuda, and as many processes as GPUs, {here} here; each takes one")
        torch.cuda.set_device(local)  # "cuda" means this one from now on
    device = pick_device(device_name)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # so that torch.cuda's random state, name and memory are this device's
    if world > 1:
        # process 0 may download or decode a data set while the others wait
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
        if dist.get_rank():
            sys.stdout = open(os.devnull, "w", errors="backslashreplace")
    return device


def parallel(model, compile=False, sync_batchnorm=True):
    """The model as the training loop calls it: its parts compiled if `compile`, a mode of torch.compile, is given and, among
    several processes, in DistributedDataParallel, which averages gradients; BatchNorm takes its statistics over all processes
    (torch has that on GPUs only, and there its SyncBatchNorm makes the host wait in every layer, and interrupts what torch.compile
    joins). Each process but the first seeds torch anew, by its rank."""
    if dist.is_initialized() and sync_batchnorm and next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # replaces the layers inside, keeps their parameters
    if compile:
        for part in model.children():  # in place: the names of the parameters stay
            # dynamic=False: else two parts of one class would be taken for one that is given changing shapes. Not part.compile(),
            # which in torch 2.11 leaves an nn.Sequential as it is
            part.forward = torch.compile(part.forward, dynamic=False, mode=compile)
    if not dist.is_initialized():
        return model
    if rank := dist.get_rank():
        torch.manual_seed(torch.initial_seed() + rank)  # a backbone's dropout should differ between processes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the argument's newer name, which older torch does not know
        # buffers stay each process's own: sent before every forward, they would change between a step's two, and under autograd
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def gather(z):
    """The rows z (N, d) of every process, (processes N, d), in order; z itself when there is one.

    A loss of all rows can then be computed by each process. Its gradient reaches this process's rows, times the
    number of processes, by which DistributedDataParallel will divide: the result is the gradient on the joined batch.
    """
    rank, world = pairs.rank_and_world()
    if world == 1:
        return z
    rows = [torch.empty_like(z) for _ in range(world)]
    dist.all_gather(rows, z.detach().contiguous())
    if z.requires_grad:
        rows[rank] = z.detach() + world * (z - z.detach())  # the value of z, world times its gradient
    return torch.cat(rows)


def same_on_all(x):
    """Process 0's tensor x, on every process."""
    if dist.is_initialized():
        dist.broadcast(x, 0)
    return x


def on_first(call):
    """Calls on process 0 only; a UserError there is raised in every process, so that none waits for the others."""
    error = [None]
    if pairs.rank_and_world()[0] == 0:
        try:
            call()
        except UserError as caught:
            error[0] = str(caught)
    if dist.is_initialized():
        dist.broadcast_object_list(error)
    if error[0]:
        raise UserError(error[0])


# --------------------------------------------------------------------------------------- run folder

SECONDS_BETWEEN_SAVES = 20  # an epoch may take two seconds on a GPU, and a save some tenths of that
# options that do not change what is learned (but that a compiled backbone with dropout draws other numbers)
WHERE_IT_RUNS = {"root", "download", "device", "out", "resume", "cache", "compile"}
MACHINE = {"python", "torch", "torchvision", "numpy", "pillow", "threads", "machine", "git_commit", "gpu"}
ELSEWHERE = MACHINE | {"precision"}  # what may change, with a note, when a run is resumed


class Run:
    """The folder of one pretraining run, written while it trains:

    config.json     every option, versions, device, git commit
    log.jsonl       lines of JSON: epoch, step, loss (mean since the line before), lr,
                    images_per_second (two views a pair), seconds (of training, since the start or --resume),
                    embedding_std, effective_rank, and what the epoch's pairs are (pairs.Pairs.rates): semantic_rate,
                    false_rate, same_class_rate
    checkpoint.pt   model with target networks and queues, optimiser, random state, epoch, step, for `--resume`: at the start,
                    at the end of an epoch if the last is 20 seconds old, and at the end of the run
    backbone.pt     a bare state_dict, torchvision's names where the architecture is torchvision's
    pairs.png, curves.png, result.json

    config.json's trained_epochs says after how many epochs backbone.pt was saved; its resumed_elsewhere, from which epoch on
    other versions or another machine went on with the run. Raises UserError when the folder holds files, unless `resume`, and when
    another process trains in it.
    """

    def __init__(self, method, args, source, view1, view2, model, optimizer):
        rank, processes = pairs.rank_and_world()
        self.first, self.device = rank == 0, torch.device(args.device)  # only process 0 writes
        self.config = {"method": method, **vars(args), "image_size": source.pool.image_size, "pairs_per_epoch": len(source),
                       "files_crc32": source.pool.files_crc32,
                       "python": platform.python_version(), "torch": torch.__version__,
                       "torchvision": torchvision.__version__, "numpy": np.__version__, "pillow": PIL.__version__,
                       "threads": torch.get_num_threads(), "machine": platform.machine(), "git_commit": git_commit(),
                       "precision": args.precision or usual_precision(self.device), "processes": processes}
        if self.device.type == "cuda":
            self.config["gpu"] = torch.cuda.get_device_name()
        kind = args.pairs if args.pairs in pairs.ARMS else Path(args.pairs).stem
        kind += "-augmented" * (args.arm == "augmented")  # of a list, see pairs.parse
        kind += f"-share{args.semantic_share:g}" * (args.semantic_share < 1) + f"-false{args.false_pairs:g}" * (args.false_pairs > 0)
        kind += f"-without-{args.without.replace(',', '-')}" if args.without else ""
        data = Path(args.data).name if args.data else "list"
        self.folder = Path(args.out or f"runs/{method}-{kind}-{data}-seed{args.seed}")
        self.model, self.optimizer = model, optimizer
        self.epochs, self.total = args.epochs, args.epochs * (len(source) // args.batch_size)
        self.batch_size, self.judged = args.batch_size, source.judged
        self.epoch = self.step = self.saved = 0
        if not args.resume:
            on_first(self._create)
        else:
            self._load()
        if self.first and not (self.folder / "pairs.png").exists():
            pairs.save_picture(self.folder / "pairs.png", source, view1, view2)
        resumed = f", resumed after epoch {self.epoch}" if args.resume else ""
        print(f"{self.folder}: {len(source):,} pairs an epoch, {self.total:,} steps, on {args.device} in "
              f"{self.config['precision']}{resumed}")
        self.rates = functools.lru_cache(1)(source.rates)  # the same for all of an epoch's lines
        told = ", ".join(f"{name} {value:.3f}" for name, value in self.rates(0).items() if value is not None)
        print(f"pairs of the first epoch: {told}")
        self.losses, self.std, self.warned, self.printed_step = 0.0, 1.0, False, self.step
        self.began = self.printed = time.time()

    def _create(self):
        """Makes the folder, with the untrained backbone."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} exists and is not overwritten: --resume goes on with it, --out DIR writes elsewhere")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        write_json(self.folder / "config.json", self.config)
        self.save(0)

    def _hold(self):
        """Locks the folder while this process trains in it, as two that do would replace each other's weights."""
        self.held = pairs.locked(self.folder / "run.lock", busy=f"{self.folder}: another program trains in it, perhaps a stopped one; let it end first")
        self.held.__enter__()  # for as long as this run lives

    def _load(self):
        """Takes everything back from checkpoint.pt, after checking that the run's settings are the same."""
        checkpoint, log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        if not checkpoint.is_file():
            raise UserError(f"--resume: there is no {checkpoint} to go on from; name the run's folder with --out, or start a new one "
                            "without --resume" + ", after removing that folder" * self.folder.exists())
        on_first(self._hold)
        old = read_config(self.folder)

        def same(name):
            a, b = old.get(name), self.config[name]
            return a == b or name in ("data", "pairs") and None not in (a, b) and Path(a).resolve() == Path(b).resolve()

        for name in self.config:
            if name not in WHERE_IT_RUNS | ELSEWHERE and not same(name):
                changed = f"{name} was {old.get(name)} in {self.folder} and is {self.config[name]} now; keep it" + ", by a link if it was moved" * (name == "data")
                if name == "files_crc32":
                    changed = f"the files of --data, or the pairs of the list, are not those of {self.folder}; bring them back"
                raise UserError(f"--resume: {changed}, or start a new run: --out NEW without --resume")
        try:
            state = load_tensors(checkpoint)
            weights, moments = state["model"], state["optimizer"]
        except (ValueError, TypeError, LookupError):
            raise UserError(f"{checkpoint} is damaged; copy it anew, or remove the folder and start again") from None
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(moments)
        for group in self.optimizer.param_groups:  # the checkpoint may be of another device
            group["fused"] = self.device.type == "cuda"
        self.epoch, self.step = state["epoch"], state["step"]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        if not self.first:
            return
        if log.exists():  # lines after the checkpoint are of steps that will be run again; the last may be cut off
            try:
                lines = [line for line in log.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= self.step]
            except (ValueError, LookupError):
                raise UserError(f"{log} is damaged; remove the lines that are not whole, or the file: then curves.png shows what follows") from None
            pairs.write_whole(log, "".join(line + "\n" for line in lines).encode())
        last = dict(old)  # where it was last
        for place in old.get("resumed_elsewhere", []):
            last.update(place)
        elsewhere = {name: self.config.get(name) for name in sorted(ELSEWHERE) if self.config.get(name) != last.get(name)}
        if elsewhere and self.epoch < self.epochs:
            said = ", ".join(f"{name} {value}" for name, value in elsewhere.items())
            print(f"note: after epoch {self.epoch} the run goes on with {said}, as config.json will say")
            old.setdefault("resumed_elsewhere", []).append({"after_epoch": self.epoch, **elsewhere})
        # evaluations look for the data where the run had it last
        write_json(self.folder / "config.json", old | {name: self.config[name] for name in ("root", "cache")})
        self._publish()  # the run may have been killed between its last checkpoint and the backbone.pt of that

    def log(self, epoch, loss, lr, z):
        """Counts a step; about every two seconds and at the end of an epoch writes a line to the screen and log.jsonl.

        Only then, within an epoch, does the host wait for the device. Raises UserError when the loss is not finite.
        """
        self.step, self.losses = self.step + 1, self.losses + loss.detach()
        if not self.first:
            return
        steps, seconds = self.step - self.printed_step, time.time() - self.printed
        to_come = -self.step % (self.total // self.epochs)  # in this epoch
        if to_come and (seconds < 2 or seconds / steps * to_come < 1):  # not yet, or the epoch's last line is near: it should tell of many steps
            return
        value = (self.losses / steps).item()
        now = time.time()  # after the wait, so that the rate is the device's
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step} (epoch {epoch + 1}): try a lower --lr; "
                            f"{self.folder / 'checkpoint.pt'} holds the end of epoch {self.epoch}")
        std, rank = collapse_signals(z)
        speed = 2 * self.batch_size * steps / (now - self.printed)
        line = {"epoch": epoch + 1, "step": self.step, "loss": value, "lr": lr, "images_per_second": speed,
                "seconds": now - self.began, "embedding_std": std, "effective_rank": rank, **self.rates(epoch)}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        left = int((self.total - self.step) * 2 * self.batch_size / speed)
        print(f"epoch {epoch + 1:3d}/{self.epochs}  step {self.step:5d}/{self.total}  loss {value:7.4f}  lr {lr:.4f}  "
              f"{speed:6,.0f} images/s  std {std:.2f}  rank {rank:5.1f}  {left // 60}:{left % 60:02d} left")
        if (std < 0.1 or rank < 2) and not self.warned:
            self.warned = True
            print(f"warning: the embeddings are collapsing: almost equal, or along one line (std {std:.3f}, healthy is "
                  f"about 0.65 to 1; effective rank {rank:.1f}). What such a run learns is worth little.")
        self.losses, self.std, self.printed, self.printed_step = 0.0, std, now, self.step

    def save(self, epoch):
        """Writes checkpoint.pt and backbone.pt, whole or not at all, unless the last ones are younger than SECONDS_BETWEEN_SAVES
        and there are more epochs to come. Raises UserError, and keeps the last good ones, if weights are not finite."""
        if not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            raise UserError(f"a weight is not finite after epoch {epoch}: try a lower --lr; "
                            f"{self.folder / 'checkpoint.pt'} holds the end of epoch {self.epoch}")
        if 0 < epoch < self.epochs and time.time() - self.saved < SECONDS_BETWEEN_SAVES:
            return
        self.epoch, self.saved = epoch, time.time()
        if not self.first:
            return
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": epoch, "step": self.step,
                 "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None}
        save_tensors(self.folder / "checkpoint.pt", state)
        self._publish()

    def _publish(self):
        """Writes backbone.pt, and in config.json the epoch that it is of; results of an earlier one are set aside."""
        config, result = read_config(self.folder), self.folder / "result.json"
        bare = {key: value.cpu().contiguous() for key, value in self.model.backbone.state_dict().items()}
        with pairs.locked(self.folder / "result.json.lock"):
            before = config.get("trained_epochs", self.epoch)
            if result.exists() and before != self.epoch:
                os.replace(result, self.folder / f"result-epoch{before}.json")
            save_tensors(self.folder / "backbone.pt", bare)
            write_json(self.folder / "config.json", config | {"trained_epochs": self.epoch})

    def finish(self):
        """Draws curves.png, evaluates the backbone on its data, prints the table, writes result.json; process 0 alone does."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if not self.first:
            return
        draw_curves(self.folder)
        if self.std < 0.5 and not self.warned:
            print(f"warning: the embeddings are still alike at the end (std {self.std:.2f}, healthy is about 0.65 to 1): more --epochs, another "
                  f"--lr{' or a higher --temperature' if 'temperature' in self.config else ''} may help.")
        if not self.judged:
            print(f"The run is not judged on its data, so no table. Later: python evaluate.py linear {self.folder} --data DIR")
            return
        data = default_data(self.config)
        show_table(evaluate_run(self.folder, ["linear", "knn"], data, self.device), self.config, data)
        print(f"{self.folder} holds pairs.png, curves.png, result.json, backbone.pt and the log.")


def options_of(config):
    """The names in config.json that are the user's options or follow from the data, not from the machine."""
    return [name for name in config if name not in MACHINE | {"trained_epochs", "resumed_elsewhere"}]


def unfinished(config):
    """How far a run has come, in words, if it is unfinished; "" if it is finished."""
    done, epochs = (config.get(name) for name in ("trained_epochs", "epochs"))
    return f"has only {done} of its {epochs} epochs" if done is not None and done != epochs else ""


@functools.cache  # what is loaded, not what the files are later
def git_commit():
    """The commit of this repository, with "-dirty" when files differ from it; None outside a checkout."""
    try:
        call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save_tensors(file, content):
    """torch.save to a file, whole or not at all. (On a full disk torch.save itself raises a RuntimeError, not an OSError.)"""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    pairs.write_whole(file, buffer.getbuffer())


def load_tensors(file):
    """What save_tensors wrote, on the CPU. Raises ValueError for other files; a path that cannot be read, or a lack of memory, raises
    what pairs.run_cli has words for."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError)) or pairs.out_of_memory(error):
            raise
        raise ValueError(f"{file} is not a file that torch.save wrote") from None


def write_json(file, content):
    pairs.write_whole(file, (json.dumps(content, indent=2) + "\n").encode())


def read_json(file):
    """The object that a JSON file holds. Raises UserError for one that is cut off, or that holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object, {...}")
        return content
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); copy it anew, or remove it") from None


def read_config(run):
    """The config.json of a run folder. Raises UserError if the folder has none, or another program's."""
    file = Path(run) / "config.json"
    if not file.is_file():
        hint = "; give its folder, or --backbone-file" if Path(run).is_file() else ""
        raise UserError(f"{run} is not a run folder: it has no config.json{hint}")
    config = {"processes": 1} | read_json(file)  # older runs, from before there could be several, lack it
    if not {"method", "pairs", "data", "seed"} <= config.keys():
        raise UserError(f"{run} is not a run folder: its config.json is another program's")
    return config


def add_results(run, results, config=None):
    """Adds {head: {data: result}} to a run's result.json, with the commit and the version of torch that they come from; whatever
    else it holds stays, also what another process adds at the same moment (a lock on result.json.lock, where the operating
    system has them). A result that is replaced by another goes to result-replaced.jsonl. config: the run's, when its weights
    were read; if it has been trained further since, the results go to result-epoch<its epoch>.json."""
    versions = {"git_commit": git_commit(), "torch": torch.__version__}
    with pairs.locked(Path(run) / "result.json.lock"):
        file, epoch = Path(run) / "result.json", config and config.get("trained_epochs")
        if config and epoch != read_config(run).get("trained_epochs"):
            file = file.with_name(f"result-epoch{epoch}.json")
            print(f"note: {run} was trained further meanwhile; what its weights after epoch {epoch} gave is in {file}")
        stored = read_json(file) if file.exists() else {}
        for head, by_data in results.items():
            for data, result in by_data.items():
                new = json.loads(json.dumps(result)) | versions  # as it will be read again
                old = stored.setdefault(head, {}).get(data)
                if old is not None and old | versions != new:
                    with open(file.with_name("result-replaced.jsonl"), "a", encoding="utf-8") as replaced:
                        replaced.write(json.dumps({"head": head, "data": data, **old}) + "\n")
                    print(f"note: this {head} of {data} replaces another one, which is kept in {replaced.name}")
                stored[head][data] = new
        write_json(file, stored)


# ------------------------------------------------------------------------------- evaluations of a run


def default_data(config):
    """The data sets that a run is evaluated on unless told: its own, and with scenes also the held-out categories."""
    if config["data"] is None:
        raise UserError("this run has no data set of its own to evaluate on: name one with --data")
    return ["scenes", "scenes-held-out"] if config["data"] == "scenes" else [config["data"]]


def load_splits(config, data, root=None, download=False, skip_bad=False, cache=None, splits=("train", "test", "val")):
    """The ImageSets of the splits (None where there is no val) of `data` as the run of this config saw or would have seen them."""
    own = config["data"] if config["pairs"] in pairs.ARMS else None  # a list is of files that it names, and the limit is of its rows
    if data == config["data"] and data not in pairs.DATA_SETS and not Path(data).is_dir():
        raise UserError(f"the run was trained on {data}, and there is no such folder here: say with --data where it is, or start where it was trained")
    alike = own and Path(data).name == Path(own).name and (data in pairs.DATA_SETS) == (own in pairs.DATA_SETS)  # ./cifar10 is not cifar10
    load = lambda split, limit: pairs.load_images(data, split, config["image_size"], limit, config["seed"], root or config["root"], download,
                                                  skip_bad or config.get("skip_bad", False), cache or config.get("cache", "cache"))
    found = [load(split, config["limit"] if alike else None) for split in splits]
    if alike and "train" in splits and found[0].files_crc32 != config.get("files_crc32", found[0].files_crc32):
        if Path(data).resolve() == Path(own).resolve():
            print(f"note: {data} holds other files than those that the run was trained on")
        elif config["limit"]:  # another folder of the same name
            found[0] = load("train", None)
    return found


def evaluate_run(run, heads, data_names, device, root=None, download=False, skip_bad=False, cache=None, **options):
    """Evaluates a run's backbone with the heads (see `judge`) on each named data set, and adds to result.json.

    Returns {head: {data: result}} of what was evaluated now. `options` go to fine_tune.
    """
    names = [Path(data).name for data in data_names]
    if len(set(names)) < len(names):
        raise UserError(f"--data {' '.join(data_names)}: two of one name would overwrite each other's result; rename a folder")
    config, trained, untrained = load_run(run)
    trained, untrained, results = trained.to(device), untrained.to(device), {head: {} for head in heads}
    for data in data_names:
        print(f"{run}: {', '.join(heads)} on {data}, the trained and the untrained backbone")
        train, test, val = load_splits(config, data, root, download, skip_bad, cache)
        if len(train.classes) < 2:
            raise UserError(f"--data {data} has one class only, {train.classes[0]}; is it the folder of the class folders?")
        if "knn" in heads and train.labels.ndim > 1:
            raise UserError(f"knn: the images of {data} have several classes each; use transfer")
        name = lambda r: train.name + (f", {r['fraction']:g} of the labels, seed {r['seed']}" if "fraction" in r else "")  # of fine-tuning
        found = {head: {name(r): r} for head, r in judge(heads, trained, untrained, train, test, val, **options).items()}
        add_results(run, found, config)
        for head in heads:
            results[head] |= found[head]
    return results


def detect_run(run, data, device, init, kind, size, steps, batch_size, lr, rois, roi_size, seed):
    """Trains and tests a detector on a run's backbone (init "run") or a new one (init "random"): (name, result).

    The result is added to result.json; the run folder gets detections.png, or detections-random.png.
    """
    config, backbone, _ = load_run(run)
    train, test = pairs.load_boxes(data, config["seed"], size[-1])
    torch.manual_seed(seed)
    if init == "random":
        backbone = new_backbone(config)
    if isinstance(getattr(backbone, "maxpool", None), nn.Identity):
        print("note: the CIFAR stem of a backbone for images up to 64 px makes maps of 4 times the side: "
              f"--size {size[-1]} costs what {4 * size[-1]} does with the ImageNet stem")
    model = build_detector(backbone, len(train.classes), kind, size, rois, roi_size).to(device)
    print(f"{kind} detector, init {init}: {len(train)} training and {len(test)} test images of {train.name}, "
          f"{len(train.classes)} classes")
    train_detector(model, train, steps, batch_size, lr, seed)
    found = detect(model, test)
    options = {"kind": kind, "size": list(size), "steps": steps, "batch_size": batch_size, "lr": lr, "rois": rois, "roi_size": roi_size}
    files = train.images + test.images
    crc32 = lambda part: pairs.crc32_of(os.path.commonpath(files), part.images) if isinstance(files[0], Path) else None
    result = box_metrics(test, found) | {"init": init, "seed": seed, **options, "n_train": len(train), "n_test": len(test),
                                         "classes": len(train.classes), "files_crc32": crc32(test), "train_crc32": crc32(train)}
    name = f"{train.name}, {kind}, init {init}, seed {seed}"
    add_results(run, {"detect": {name: result}}, config)
    draw_detections(Path(run) / ("detections.png" if init == "run" else f"detections-{init}.png"), test, found)
    return name, result


def invariance_run(run, device, data=None, root=None, download=False, skip_bad=False, cache=None):
    """Shares of the nuisance factors of scenes, and of image transformations on `data`, added to result.json.

    Returns {table: {"factors": {name: {"share", "untrained", "inside"}}, ...}}, see share_of_factor; "inside" says
    whether the run's augmentation has the factor, or imitates it, jitter of any kind the colours and the light (None: of weights
    from elsewhere this is not known). Image transformations are applied to test images of `data`, if None of the run's own
    (scenes-held-out, if that is scenes or nothing).
    """
    config, trained, untrained = load_run(run)
    size, models = config["image_size"], {"share": trained.to(device), "untrained": untrained.to(device)}
    views = pairs.make_views(argparse.Namespace(**config), size) if config["method"] else [pairs.Augmentation()]
    switches = {name for name in pairs.Augmentation.SWITCHES if any(view.without([name]) != view for view in views)}
    inside = lambda factor: pairs.FACTORS.get(factor, factor) in switches if config["method"] else None
    results, data = {}, data or ("scenes-held-out" if config["data"] in (None, "scenes") else config["data"])
    found, = load_splits(config, data, root, download, skip_bad, cache, ["test"])
    if found.labels.ndim > 1:
        raise UserError(f"invariance: the images of {data} have several classes each; name another --data")
    of_images = image_changes(found, views[0], config["seed"])  # first: it takes no time to refuse them
    for name, (labels, images, changes) in (("factors of scenes", scene_changes(config["seed"], size)),
                                            (f"transformations of {found.name}", of_images)):
        factors = {f: {"inside": inside(f)} for f in changes}
        for which, model in models.items():
            h = features(model, images, what=f"invariance to {name}").cpu()
            for f, changed in changes.items():
                factors[f][which] = share_of_factor(h, features(model, changed, what=f"invariance to {f}").cpu(), labels)
        if any(1 in (f["share"], f["untrained"]) for f in factors.values()):
            print(f"note: {name}: a share of 1 means that the category's variance cannot be told from 0, by features this poor or images this few")
        crc32 = {} if name == "factors of scenes" else {"files_crc32": found.files_crc32}
        results[name] = {"factors": factors, "n": len(labels), "classes": len(labels.unique()), **crc32}
    add_results(run, {"invariance": results}, config)
    return results


def show_table(results, config, given):
    """Prints {head: {name of the data: result}} as a table with chance, the untrained backbone, and how to read it; given: the data
    sets as --data names them, which may be paths."""
    rows = [(head, data, r) for head, by_data in results.items() for data, r in by_data.items()]
    wide = max(18, *(len(data) + 2 for _, data, _ in rows))
    print(f"\n{'':14}{'data':{wide}}{'classes':>8}{'chance':>9}{'untrained':>11}{'this run':>10}")
    for head, data, r in rows:
        metric = f"  {r['metric']}" if r.get("metric", "top-1") != "top-1" else ""
        print(f"{TITLES[head]:14}{data:{wide}}{r['classes']:8}{r['chance']:9.3f}{r['untrained']:11.3f}{r['accuracy']:10.3f}{metric}")
    ks = dict.fromkeys(str(r["k"]) for head, _, r in rows if head == "knn")
    if "finetune" in results:
        print("Test accuracy with all layers trained; untrained: the same from a random start.")
    else:
        print("Test accuracy of frozen backbone features." + f" kNN: k = {' or '.join(ks)}, temperature 0.1." * bool(ks))
    is_of = lambda name, data: name == data or name.startswith(f"{data}, ")  # after that, the share of the labels
    of = lambda data: any(is_of(name, data) for _, name, _ in rows)
    own = config["data"] and Path(config["data"])
    if of("scenes-held-out"):
        print("The headline is scenes-held-out: categories that no pretraining image shows. Semantic pairs use")
        print("labels, so on seen categories that arm has an advantage that is not self-supervised.")
    elif arm_of(config) == "semantic" and own and of(own.name):
        use = "semantic pairs use" if config["pairs"] in pairs.ARMS else "the pairs of a list may use"
        certain = own.resolve() in [Path(name).resolve() for name in given]  # else the folder was moved, or is another of that name
        alone = all(is_of(name, own.name) for _, name, _ in rows)
        which = "these categories" if alone else f"the categories of {own.name}"
        seen = f"{which[0].upper()}{which[1:]} were seen in pretraining, and" if certain else f"If {which} were seen in pretraining,"
        print(f"{seen} {use} their labels: not a self-supervised figure.")


@pairs.picture()
def draw_curves(folder):
    """curves.png of a run folder: loss and the two collapse signals over the epochs."""
    import matplotlib.pyplot as plt

    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not lines:
        print(f"note: {log} is missing or empty, so curves.png is not drawn")
        return
    epochs = lines[-1]["epoch"] * np.array([line["step"] for line in lines]) / lines[-1]["step"]
    titles = {"loss": "loss", "embedding_std": "embedding std × √d\n(0: all embeddings equal)",
              "effective_rank": "effective rank\n(1: one direction left)"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, titles.items()):
        axis.plot(epochs, [line[name] for line in lines], marker="." if len(lines) < 10 else None)
        axis.set_title(title, fontsize=10), axis.set_xlabel("epoch"), axis.grid(alpha=0.3)
        if name != "loss":
            axis.set_ylim(0, 1.05 * max(line[name] for line in lines))
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


# --------------------------------------------------------------------------------------- comparison

FREE = WHERE_IT_RUNS | {"seed", "pairs", "arm", "semantic_share", "false_pairs", "data", "skip_bad"}  # may differ between matched runs
FREE |= {"usual_blur", "zero_init_residual"}  # set by the method, not the user; older runs do not have them
ARM_COLORS = {"untrained": "0.6", "augmented": "tab:orange", "semantic": "tab:blue"}


def arm_of(config):
    """"augmented" or "semantic" (a curated list counts as semantic, unless its matched baseline was asked for); "any" without pairs."""
    if config["pairs"] is None:
        return "any"
    return config["pairs"] if config["pairs"] in pairs.ARMS else config["arm"]


def control_of(config):
    """The study's controls of a run's semantic pairs, such as ", share 0.5, false 0.2"; "" at their defaults."""
    share, false = config.get("semantic_share", 1), config.get("false_pairs", 0)
    return f", share {share:g}" * (share < 1) + f", false {false:g}" * (false > 0)


def data_of(config):
    """What a run was trained on: the data set's name, and the pair list's if there is one."""
    pair_list = config["pairs"] if config["pairs"] not in pairs.ARMS else None
    return " ".join(Path(name).name for name in (config["data"], pair_list) if name)


PROTOCOL = ("metric", "k", "classes", "n", "n_train", "n_test", "files_crc32", "train_crc32", "n_fitted", "precision", "steps", "batch_size", "kind", "size", "rois", "roi_size")


def measures(results):
    """The numbers of a result.json, {"head data": {"value", "untrained", "chance", "protocol", "unlike"}}, without those that it lacks.

    Of fine-tuning and detectors means over their own seeds; of detectors AP50 and AP, "untrained" being that of --init random, of
    whichever seeds. "protocol": what has to be equal in results that are compared. "unlike": in words, in what those seeds were not
    trained alike, "" if they were.
    """
    groups, found = {}, {}
    for head, by_data in results.items():
        for data, r in by_data.items():
            name, which = data.rsplit(", seed ", 1)[0] if head in ("finetune", "detect") else data, "value"
            if head == "detect" and "init random" in name:
                name, which = name.replace("init random", "init run"), "untrained"
            groups.setdefault((head, name), {}).setdefault(which, []).append(r)
    for (head, name), there in groups.items():
        keys = (*PROTOCOL, "lr") if head == "detect" else PROTOCOL  # fine-tuning chooses its own lr
        protocol = {}
        how = {"protocol": protocol, "unlike": ""}
        for r in sum(there.values(), []):
            for key in keys:
                if key in r and protocol.setdefault(key, r[key]) != r[key]:  # results of older code may lack one
                    how["unlike"] = f"{key} is {protocol[key]} and {r[key]}"
        if "value" in there:
            protocol["its seeds"] = sorted(r["seed"] for r in there["value"] if "seed" in r)
        mean = lambda key, which="value": float(np.mean([r[key] for r in there[which]]))
        if head == "detect":
            for key in ("ap50", "ap"):
                found[f"detect {key.upper()} {name}"] = {which: mean(key, which) for which in there} | how
        elif head == "invariance":
            for factor, v in there["value"][0]["factors"].items():
                found[f"share of {factor} {name}"] = {"value": v["share"], "untrained": v["untrained"]} | how
        else:
            chance = there["value"][-1]["chance"]
            found[f"{head} {name}"] = {"value": mean("accuracy"), "untrained": mean("untrained"), "chance": chance} | how
    return found


def student_t(df, level=0.95):
    """The quantile t with P(|T| < t) = level of Student's t with df degrees of freedom.

    With t = sqrt(df) tan(a), P is the integral of cos(x)^(df - 1) over |x| < a, as a share of that over |x| < pi / 2.
    """
    a = np.linspace(0, math.pi / 2, 200001)
    density = np.cos(a) ** (df - 1)
    area = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2))
    return math.sqrt(df) * math.tan(np.interp(level, area / area[-1], a))


def interval(differences):
    """(mean, low, high) of paired differences: Student's t interval of 95 %; low and high are nan for fewer than two."""
    mean, n = float(np.mean(differences)), len(differences)
    half = student_t(n - 1) * float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else float("nan")
    return mean, mean - half, mean + half


def compare(runs, by=(), only=()):
    """Rows of the comparison, a dict each, of run folders: one for each method, pretraining data, control and measure,
    and, for an ablation, each value of the options named in `by`. `only` names the measures wanted, "linear" all that begin so (all).

    "augmented", "semantic" and "any" hold {seed: value}; "difference" is (mean, low, high) of semantic - augmented
    over the seeds that both arms have, with a 95 % interval (Student's t), or None. Raises UserError when a run is unfinished,
    when runs of one row differ in how they were trained or evaluated or have the same arm and seed, for a name that no option or
    measure has, and for `by` what has rows of its own anyway.
    """
    def shown(value):
        if value in ("", None):
            return "nothing"
        return " ".join(map(str, value)) if isinstance(value, list) else value

    groups, known, by = {}, {}, [name.replace("-", "_") for name in by]
    for run in map(Path, runs):
        config, file = read_config(run), run / "result.json"
        if said := unfinished(config):
            raise UserError(f"{run} {said}: let it end, or go on with --resume")
        if not file.is_file():
            raise UserError(f"{run} has no result.json: evaluate it first, e.g. python evaluate.py linear {run}")
        for name in by:
            if name in FREE:
                raise UserError(f"--by {name}: leave it out, as runs that differ in it are told apart or paired without it")
            if name not in options_of(config):
                raise UserError(f"--by {name}: no option of {run}; its options are {', '.join(options_of(config))}")
        found = measures(read_json(file))
        values = ["with all transforms" if name == "without" and not config[name] else f"{name} {shown(config[name])}" for name in by]
        row = config["method"] or run.resolve().name, ", ".join(filter(None, [data_of(config), *values]))
        groups.setdefault(row, []).append((run, config, found))
        known |= found
    asked_for = lambda measure, name: measure == name or measure.startswith(f"{name} ")
    for name in only:
        if not any(asked_for(measure, name) for measure in known):
            raise UserError(f"--measure {name}: not measured in these runs; choose from {' | '.join(known)}")
    rows = []
    for (method, data), members in groups.items():
        for name in ("files_crc32", "precision"):  # runs of older code do not have them
            known_value = next((config[name] for _, config, _ in members if name in config), None)
            for _, config, _ in members:
                config.setdefault(name, known_value)
        first_run, first, _ = members[0]
        for run, config, _ in members[1:]:
            for name in sorted({*options_of(first), *options_of(config)} - FREE):
                if config.get(name) != first.get(name):
                    if name == "files_crc32":
                        raise UserError("not matched, so not comparable: the images of --data, or the pairs of the list, are not the same in "
                                        f"{first_run} and in {run}; train both on the same")
                    raise UserError(f"not matched, so not comparable: {name} is {shown(first.get(name))} in {first_run} and "
                                    f"{shown(config.get(name))} in {run}; with --by {name} each value has rows of its own")
        controls = dict.fromkeys(control_of(config) for _, config, _ in members if arm_of(config) == "semantic") or [""]
        for control in controls:  # each with the same augmented runs
            chosen = [m for m in members if arm_of(m[1]) != "semantic" or control_of(m[1]) == control]
            for measure in dict.fromkeys(measure for *_, found in chosen for measure in found):
                if not only or any(asked_for(measure, name) for name in only):
                    rows.append(compare_one(method, data + control, measure, [m for m in chosen if measure in m[2]]))
    if not rows:
        raise UserError("these runs hold no evaluation: first python evaluate.py linear RUN, for each")
    return rows


def compare_one(method, data, measure, members):
    """One row of `compare`, of the members (run, config, measures) that have the measure."""
    row = {"method": method, "data": data, "measure": measure, "chance": None, "untrained": {}, "any": {}, "augmented": {}, "semantic": {}}
    protocol = {}  # {what should be equal: (value, run that has it)}
    for run, config, found in members:
        arm, seed, number = row[arm_of(config)], config["seed"], found[measure]
        if number["unlike"]:
            raise UserError(f"{run}: {measure}: not all were trained alike: {number['unlike']}; evaluate one again, or leave it out with --measure")
        for key, value in number["protocol"].items():
            other, where = protocol.setdefault(key, (value, run))  # results of older code may lack one
            if value != other:
                said = f"{key} is {other} in {where} and {value} in {run}"
                if key.endswith("crc32"):
                    said = f"the {'test' if key == 'files_crc32' else 'training'} images have other file names in {run} than in {where}"
                raise UserError(f"{measure} is not comparable: {said}; evaluate one again")
        if seed in arm:
            raise UserError(f"{run}: another run of {method}, {arm_of(config)} pairs, seed {seed} is there already")
        if "value" in number:
            arm[seed], row["chance"] = number["value"], number.get("chance")
        if "untrained" in number:
            row["untrained"].setdefault(seed, []).append(number["untrained"])
    # equal in all runs of a seed, but for detectors on scenes, or trained at other seeds of their own
    row["untrained"] = {seed: float(np.mean(values)) for seed, values in row["untrained"].items()}
    row["seeds"] = sorted(row["augmented"].keys() & row["semantic"].keys())
    row["difference"] = interval([row["semantic"][k] - row["augmented"][k] for k in row["seeds"]]) if row["seeds"] else None
    return row


def mean_and_deviation(by_seed):
    """"0.123 ± 0.045 (3)": mean, standard deviation (n - 1), n, of {seed: value}; without ± for one value, "" for none."""
    values = list(by_seed.values())
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation} ({len(values)})"


def write_comparison(rows, folder):
    """Writes comparison.md, comparison.csv (raw values of each seed) and comparison.png; returns the Markdown."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arms = ["untrained", *(arm for arm in ("any", "augmented", "semantic") if any(row[arm] for row in rows))]
    lines = [f"| method | pretrained on | measure | {' | '.join(arms)} | semantic - augmented [95 %] | each seed |", "|---" * (5 + len(arms)) + "|"]
    with open(folder / "comparison.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(["method", "data", "measure", "arm", "seed", "value"])
        for row in rows:
            difference = each = ""
            if row["difference"]:
                mean, low, high = row["difference"]
                difference = f"{mean:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if not math.isnan(low) else "")
                each = ", ".join(f"{row['semantic'][k] - row['augmented'][k]:+.3f}" for k in row["seeds"])
            cells = [mean_and_deviation(row[arm]) for arm in arms]
            lines.append(f"| {' | '.join([row['method'], row['data'], row['measure'], *cells, difference, each])} |")
            for arm in arms:
                table.writerows([row["method"], row["data"], row["measure"], arm, seed, value] for seed, value in sorted(row[arm].items()))
    alone = {}  # seeds that only one arm has
    for row in rows:
        if row["augmented"] and row["semantic"] and (others := sorted(row["augmented"].keys() ^ row["semantic"].keys())):
            alone.setdefault(tuple(others), []).append(f"{row['method']} {row['data']}, {row['measure']}")
    for seeds, where in alone.items():
        lines.append(f"\nSeed {', '.join(map(str, seeds))}: of one arm only, so in its mean and not in the difference ({'; '.join(where)}).")
    (folder / "comparison.md").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    draw_comparison(rows, folder / "comparison.png")
    return "\n".join(lines)


def legend_below(figure):
    """One legend of all axes, each name once, at the figure's lower edge."""
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    columns = min(len(handles), int(figure.get_figwidth() / 1.25))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


@pairs.picture()
def draw_comparison(rows, path, panels=8):
    """A picture of the first measures (accuracies, AP50, AP), those on held-out categories first: a point for each seed, a bar
    at the mean. One panel per measure, with the methods side by side; if there are several data sets or options, one panel
    per method and measure, with those side by side."""
    import matplotlib.pyplot as plt

    rows = [row for row in rows if not row["measure"].startswith("share of")] or rows
    rows = [row | {key: pairs.drawable(row[key]) for key in ("method", "data", "measure")} for row in rows]
    rows = sorted(rows, key=lambda row: "held-out" not in row["measure"])
    several = len({row["data"] for row in rows}) > 1
    shown = {}  # (method, measure): its rows
    for row in rows:
        shown.setdefault((row["method"] if several else "", row["measure"]), []).append(row)
    left_out = len(shown) - panels
    shown = dict(list(shown.items())[:panels])
    name = lambda row: row["data"].removeprefix("scenes, ").replace(", ", "\n").replace(",", ",\n") if several else row["method"]  # under the axis
    inches = max(0.9, 0.07 * max(len(line) for row in rows for line in name(row).splitlines()))  # that a name takes
    lines = math.ceil(len(shown) / (3 if len(shown) <= 6 else 4))
    columns = math.ceil(len(shown) / lines)
    width = max(3.8 if columns > 1 else 5, inches * max(map(len, shown.values())))
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, 3.2 * lines), squeeze=False, sharey=True, layout="constrained")
    for axis, ((method, measure), here) in zip(axes.flat, shown.items()):
        for x, row in enumerate(here):
            for arm, offset in (("untrained", -0.25), ("any", 0), ("augmented", 0), ("semantic", 0.25)):
                if values := list(row[arm].values()):
                    color = ARM_COLORS.get(arm, "black")
                    axis.plot([x + offset] * len(values), values, "o", ms=4, color=color, alpha=0.7, label=arm)
                    axis.hlines(np.mean(values), x + offset - 0.1, x + offset + 0.1, color=color)
        axis.set_xticks(range(len(here)), list(map(name, here)), fontsize=8)
        if chance := max(row["chance"] or 0 for row in here):  # some results of earlier versions say 1 / classes
            axis.axhline(chance, color="0.6", ls=":", lw=1, label="chance")
        head, _, data = measure.partition(" ")
        axis.set_title(f"{method}, " * several + f"{TITLES.get(head, head)}: {data}", fontsize=9)
        axis.set_ylim(0, 1.02), axis.set_xlim(-0.5, len(here) - 0.5), axis.grid(axis="y", alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    if left_out > 0:
        figure.suptitle(f"panels not drawn: {left_out}; --measure chooses", fontsize=9)
    legend_below(figure)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@pairs.picture()
def draw_invariance(results, path):
    """A picture of the shares {run: what invariance_run returns}: a column for each method (several, if its runs differ in data set
    or augmentation), in it a panel for each table; a line for each factor, a point for each run, the mean larger; shaded is what the
    augmentation has, or imitates."""
    import matplotlib.pyplot as plt

    panels = {}  # {(title, ...): [(arm, [the factors of a table, ...])]}, of runs that have the same tables and augmentation
    for run, shares in results.items():
        config, tables = read_config(run), [table["factors"] for table in shares.values()]
        name = (config["method"] or Path(run).name) + (f" without {config['without']}" if config.get("without") else "")
        augmentation = tuple(v["inside"] for factors in tables for v in factors.values())
        key = name, config["method"] or run, tuple(shares), augmentation
        panels.setdefault(key, []).append((arm_of(config) + control_of(config), tables))
    kinds = len(next(iter(results.values())))  # factors of scenes, transformations
    figure, axes = plt.subplots(kinds, len(panels), figsize=(1 + 2.7 * len(panels), 3.2 * kinds), squeeze=False,
                                sharex=True, sharey="row", layout="constrained")
    for i, row in enumerate(axes):
        inside = [{factor: v["inside"] for factor, v in tables[i].items()} for (_, tables), *_ in panels.values()]
        factors = sorted(inside[0], key=lambda f: sum(bool(has[f]) for has in inside))  # one order for all panels, the shaded above
        for axis, ((title, _, names, _), members), has in zip(row, panels.items(), inside):
            for label in ("untrained", *dict.fromkeys(arm for arm, _ in members)):
                key = "untrained" if label == "untrained" else "share"
                values = np.array([[tables[i][f][key] for f in factors] for arm, tables in members if label in ("untrained", arm)])
                color, places = ARM_COLORS.get(label, "black"), np.arange(len(factors)) + {"augmented": 0.12, "semantic": -0.12}.get(label, 0)
                axis.plot(values.mean(0), places, "o", color=color, ms=7, label=label)
                axis.plot(values.T, places, ".", color=color, alpha=0.4, ms=4)
            for place, factor in enumerate(factors):
                if has[factor]:
                    axis.axhspan(place - 0.5, place + 0.5, color="0.93", zorder=0, label="the augmentation has or imitates it")
            axis.set_yticks(range(len(factors)), factors, fontsize=8), axis.set_ylim(-0.5, len(factors) - 0.5)
            axis.set_xlim(-0.03, 1), axis.grid(alpha=0.3)
            axis.set_title(pairs.drawable(f"{title}: {names[i]}"), fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("share (0: ignored, 0.5: as the category)", fontsize=8)
    legend_below(figure)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ------------------------------------------------------------------------------------- command line


def parse_args(argv=None):
    sets = ", ".join(pairs.DATA_SETS)
    parser = pairs.Parser(description="Judge the backbone of a run folder; results go to its result.json.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text, runs="?"):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("run", nargs=runs, help="run folder, e.g. runs/simclr-semantic-scenes-seed0")
        if name == "compare":
            return sub
        sub.add_argument("--backbone-file", help="instead of a run: a file of weights with torchvision's key names; only a classifier may be left over")
        sub.add_argument("--backbone", type=architecture, help="its architecture: convnet, or a classification model of torchvision")
        sub.add_argument("--image-size", type=pairs.positive_int, help="with --backbone-file: side of the images in pixels; up to 64 a ResNet has the CIFAR stem [the run's if the file lies in a run folder, else 224]")
        sub.add_argument("--out", type=pairs.named, help="with --backbone-file: folder for the results [runs/<backbone>-<file>]")
        sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
        if name != "detect":
            sub.add_argument("--root", type=pairs.named, help="folder of torchvision's data sets [the run's]")
            sub.add_argument("--download", action="store_true", help="let torchvision download the data sets")
            sub.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and say which, instead of stopping [the run's]")
            sub.add_argument("--cache", type=pairs.named, help="folder for decoded image files, kept for later [the run's]")
        if name in TITLES:  # the heads, see judge
            usual = "" if name == "transfer" else " [the run's]"
            sub.add_argument("--data", type=pairs.named, nargs="+", required=name == "transfer", help=f"{sets}; or folders of class folders{usual}")
        return sub

    command("knn", "weighted kNN (k 200, temperature 0.1) on frozen features")
    command("linear", "linear probe on frozen features, by L-BFGS, L2 strength chosen on validation images")
    command("transfer", "linear probe on other data sets, each with its own metric")
    add = command("finetune", "fine-tuning of all layers, learning rate chosen on validation images").add_argument
    add("--fraction", type=pairs.number(float, lambda value: 0 < value <= 1, "above 0, and at most 1"), default=1.0, help="share of the labelled images to train on, e.g. 0.01, 0.1, 1 [1]")
    add("--steps", type=pairs.positive_int, default=1000, help="steps of each training, five a backbone (ssl-transfer: 5000) [1000]")
    add("--batch-size", type=pairs.positive_int, default=64, help="images in a step (ssl-transfer: 64) [64]")
    add("--seed", type=pairs.seed_int, default=0, help="random seed of the classifier, the order, the crops and, with --fraction, which images it takes [0]")
    add = command("detect", "Faster R-CNN on the backbone, all layers trained; defaults: MoCo's schedule for VOC 07+12").add_argument
    add("--data", type=pairs.named, nargs="+", required=True, help="scenes, or folders of the Pascal VOC layout, e.g. VOC2007 VOC2012")
    add("--init", choices=["run", "random"], default="run", help="the run's backbone, or a new one: the from-scratch baseline [run]")
    add("--detector", choices=["c4", "fpn"], default="c4", help="c4: last stage as box head (MoCo); fpn: feature pyramid [c4]")
    add("--size", type=pairs.positive_int, nargs="+", help="short sides in pixels, one is drawn for each training image, the last is for testing [480 512 ... 800; scenes 128]")
    add("--steps", type=pairs.positive_int, help="training steps [24000; scenes 400]")
    add("--batch-size", type=pairs.positive_int, help="images in a step [16; scenes 8]")
    add("--lr", type=pairs.positive_float, default=0.02, help="peak learning rate for 16 images: a step uses lr * batch / 16 [0.02]")
    add("--rois", type=pairs.positive_int, help="RoIs per image in the box loss: fewer is faster [512; scenes 64]")
    add("--roi-size", type=pairs.positive_int, help="side of RoIAlign's output with c4, before the last stage [14; scenes 7]")
    add("--seed", type=pairs.seed_int, default=0, help="random seed of the detector's weights, the order and the flips [0]")
    add = command("invariance", "which nuisance factors the features ignore; several runs are drawn into one picture", "*").add_argument
    add("--data", type=pairs.named, help=f"images to transform: {sets}; or a folder of class folders [the run's; scenes: scenes-held-out]")
    add("--picture", help="the picture's file, .png, .pdf or .svg [invariance.png in the first run's folder]")
    add = command("compare", "semantic against augmented pairs, over matched runs and equal seeds", "*").add_argument
    add("--by", nargs="+", default=[], help="pretraining options in which runs may differ, with separate rows for each value, e.g. --by without backbone")
    add("--measure", nargs="+", default=[], help='only these measures, e.g. "linear scenes-held-out", or linear for all of its data sets [all]')
    add("--out", type=pairs.named, default="comparison", help="folder for comparison.md, comparison.csv and comparison.png [comparison]")
    return parser.parse_args(argv)


def main():
    args = parse_args()
    if dist.is_torchelastic_launched():
        raise UserError("evaluate.py works in one process: start it with python, not with torchrun")
    if args.command == "compare":
        if not args.run:
            raise UserError("name runs before --by and --measure, which take all names after them")
        rows, replaced = compare(args.run, args.by, args.measure), Path(args.out, "comparison.md").exists()
        print(write_comparison(rows, args.out))
        if any(row["augmented"] or row["semantic"] for row in rows) and not any(row["difference"] for row in rows):
            print("note: no row has both arms with a seed in common; the baseline of a list is a run with --pairs FILE.csv --arm augmented")
        print(f"\n{args.out} holds comparison.md, comparison.csv and comparison.png" + " (earlier ones are replaced)" * replaced)
        return
    git_commit()  # of the code that runs: its files may have changed when the results are written
    device = pick_device(args.device)
    if args.backbone_file:
        if args.run or not args.backbone:
            raise UserError("--backbone-file goes with --backbone NAME and without a run folder")
        if args.command != "detect":  # whose folders hold no classes
            for data in [args.data] if isinstance(args.data, str) else args.data or []:
                if Path(data).is_dir() and data not in pairs.DATA_SETS:
                    pairs.not_a_class(data, {"--out": args.out or "runs"})
        if not args.data and args.command in TITLES:
            raise UserError("name the images to evaluate the backbone on with --data")
        args.run = adopt(args.backbone_file, args.backbone, args.image_size, out=args.out)
        args.run = [args.run] if args.command == "invariance" else args.run
    elif args.backbone or args.image_size or args.out:
        raise UserError("--backbone, --image-size and --out go with --backbone-file; a run folder already sets them")
    if not args.run:
        raise UserError("name a run folder (before --data, which takes all names after it), or --backbone-file FILE --backbone NAME")

    if args.command == "invariance":
        picture = Path(args.picture or Path(args.run[0]) / "invariance.png")
        results, said = {}, {True: "yes", False: "no", None: "?"}
        if picture.suffix not in (".png", ".pdf", ".svg"):
            raise UserError(f"--picture {picture}: name a file that ends in .png, .pdf or .svg")
        if args.picture:
            picture.parent.mkdir(parents=True, exist_ok=True)  # fail now if it cannot be made
        for run in args.run:
            read_config(run)
        for run in args.run:
            results[run] = invariance_run(run, device, args.data, args.root, args.download, args.skip_bad, args.cache)
            for name, found in results[run].items():
                print(f"{run}: {name}\n{'':14}{'inside':>8}{'untrained':>11}{'this run':>10}")
                for factor, r in found["factors"].items():
                    print(f"{factor:14}{said[r['inside']]:>8}{r['untrained']:11.3f}{r['share']:10.3f}")
        draw_invariance(results, picture)
        print(f"Share of a factor: its variance / (its variance + the category's). 0: ignored. inside: the augmentation has or imitates it. Picture: {picture}")
    elif args.command == "detect":
        usual = {"size": list(range(480, 801, 32)), "steps": 24000, "batch_size": 16, "rois": 512, "roi_size": 14}
        if args.data == ["scenes"]:
            usual = {"size": [128], "steps": 400, "batch_size": 8, "rois": 64, "roi_size": 7}
        size, steps, batch_size, rois, roi_size = (getattr(args, name) or value for name, value in usual.items())
        if min(size) < (64 if args.detector == "fpn" else 32) or rois < 4:  # a quarter of the RoIs, rounded down, show objects
            raise UserError("detect: --size takes 32 pixels or more, with fpn 64, and --rois 4 or more")
        name, r = detect_run(args.run, args.data, device, args.init, args.detector, size, steps, batch_size, args.lr, rois, roi_size, args.seed)
        print(f"{args.run}: {name}: AP {r['ap']:.3f}  AP50 {r['ap50']:.3f}  AP75 {r['ap75']:.3f}  (COCO)  "
              f"AP {r['voc07_ap']:.3f}  AP50 {r['voc07_ap50']:.3f}  AP75 {r['voc07_ap75']:.3f}  (VOC2007, 11 points)")
    else:
        config = read_config(args.run)
        options = {key: getattr(args, key) for key in ("fraction", "steps", "batch_size", "seed") if key in args}
        data = args.data or default_data(config)
        found = evaluate_run(args.run, [args.command], data, device, args.root, args.download, args.skip_bad, args.cache, **options)
        show_table(found, config, data)


if __name__ == "__main__":
    pairs.run_cli(main)
