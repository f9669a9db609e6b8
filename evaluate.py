"""Evaluate: what a run folder holds, and what a frozen backbone is worth.

    python evaluate.py knn runs/simclr-semantic-scenes-seed0
    python evaluate.py linear runs/simclr-semantic-scenes-seed0 --data DIR

The rules, for every number that this file prints:
  1. features come from the backbone, not the projection head, in eval mode, computed once; the backbone is
     compared with a copy of itself afterwards and must be bit-identical;
  2. nothing is chosen on test images: the probe's L2 strength is chosen on a fifth of the training images,
     the probe is fitted again on all of them, and the test images are read once;
  3. beside each number stand chance and the same evaluation of the untrained backbone (same seed, step 0);
  4. semantic pairs use labels. Numbers on categories that pretraining saw are therefore not self-supervised
     for that arm; the fair headline is `scenes-held-out`, categories that no pretraining image shows.

Reading order: backbones, heads (kNN, linear probe), collapse signals, run folder, command line.
This file knows no pretraining method.
"""

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision

import pairs
from pairs import UserError

# ---------------------------------------------------------------------------------------- backbones


class ConvNet(nn.Sequential):
    """Four 3x3 convolutions with BatchNorm and ReLU, the mean over positions, BatchNorm: (N, 3, S, S) -> (N, 256).

    Ours: 11 million multiply-adds at 32 px. The last BatchNorm takes away the large mean that features after
    a ReLU share; without it MoCo, BYOL and SimSiam needed far longer to find what a semantic pair shares.
    """

    def __init__(self, widths=(32, 64, 128, 256), strides=(2, 2, 1, 2)):
        layers = []
        for before, width, stride in zip((3, *widths), widths, strides):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(widths[-1]))


def build_backbone(name, image_size, verbose=False):
    """A randomly initialised backbone without classifier: (module, width of its features).

    name: "convnet" or any classification model of torchvision, whose key names its state_dict keeps. ResNets
    get the CIFAR stem up to 64 px: 3x3 convolution of stride 1 and no max-pooling (SimCLR, App. B.9), because
    the ImageNet stem leaves a 32 px image one pixel. Raises UserError for names torchvision does not have and
    for images that the architecture cannot take.
    """
    if name == "convnet":
        return ConvNet(), 256
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"--backbone {name}: choose convnet, resnet18, resnet50 or another classification model of torchvision")
    options = {"image_size": image_size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    try:
        model = torchvision.models.get_model(name, weights=None, **options)
    except AssertionError as error:
        raise UserError(f"--backbone {name} with images of {image_size} px: {error}") from None
    linears = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(f"--backbone {name}: it has no linear classifier to take off; choose another")
    parent, _, key = linears[-1].rpartition(".")  # torchvision's classifiers are last
    setattr(model.get_submodule(parent), key, nn.Identity())
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


def load_backbone(run):
    """(trained, untrained) backbones of a run folder; untrained has the weights of the run's step 0."""
    config = read_config(run)
    torch.manual_seed(config["seed"])
    untrained, _ = build_backbone(config["backbone"], config["image_size"])
    trained = copy.deepcopy(untrained)
    file = Path(run) / "backbone.pt"
    if not file.is_file():
        raise UserError(f"{run} has no backbone.pt: the run has not finished an epoch")
    trained.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))  # strict: every key, no other
    return trained, untrained


def pick_device(name):
    """The torch.device of this name. Raises UserError when this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); use cpu") from None
    return device


# -------------------------------------------------------------------------------------------- heads


@torch.no_grad()
def features(backbone, images, batch_size=256, what="features"):
    """Features (N, d) float32 of uint8 images (N, 3, S, S), in eval mode, on the backbone's device.

    Raises AssertionError when the pass changed the backbone (a head must not move what it judges).
    """
    before, was_training = copy.deepcopy(backbone.state_dict()), backbone.training
    device = next(backbone.parameters()).device
    backbone.eval()  # running statistics of BatchNorm are used, and stay as they are
    out, progress = [], pairs.Progress(what, len(images))
    for batch in images.split(batch_size):
        x = pairs.normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        out.append(backbone(x).float())
        progress(sum(map(len, out)))
    backbone.train(was_training)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items()), "the backbone moved"
    return torch.cat(out)


def knn(train_x, train_y, test_x, test_y, k=200, temperature=0.1):
    """Accuracy of the weighted k-nearest-neighbour classifier (Wu et al. 2018, Sec. 3.4).

    Cosine similarity s of features (N, d); each of the k nearest training images votes exp(s / temperature)
    for its class. k is cut to the number of training images.
    """
    train_x, test_x = F.normalize(train_x, dim=1), F.normalize(test_x, dim=1)
    correct, classes = 0, int(train_y.max()) + 1
    for x, y in zip(test_x.split(1024), test_y.split(1024)):
        similarity, index = (x @ train_x.T).topk(min(k, len(train_x)), dim=1)
        votes = torch.zeros(len(x), classes, device=x.device)
        votes.scatter_add_(1, train_y[index], torch.exp((similarity - 1) / temperature))
        correct += (votes.argmax(1) == y).sum().item()
    return correct / len(test_y)


def logistic_regression(x, y, classes, l2, start=None, max_iter=200):
    """Multinomial logistic regression by L-BFGS: weights (d + 1, classes), the last row the bias, that minimise

        mean cross entropy(x W + b, y) + l2 / 2 |W|^2        (the bias is not penalised; scikit-learn's C = 1 / (n l2)).

    x (N, d), y (N,). `start` are weights to begin with.
    """
    weights = x.new_zeros(x.shape[1] + 1, classes) if start is None else start.clone()
    weights.requires_grad_()
    solver = torch.optim.LBFGS([weights], max_iter=max_iter, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(x @ weights[:-1] + weights[-1], y) + l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weights.detach()


L2_GRID = [10.0**k for k in (1, 0, -1, -2, -3, -4, -5)]  # from strong to weak: each fit starts from the one before


def linear_probe(train_x, train_y, test_x, test_y, classes, grid=L2_GRID, seed=0):
    """Linear probe on frozen features (N, d): {"accuracy", "l2", "validation": {l2: accuracy}}.

    Features are standardised with the training mean and deviation. The L2 strength with the best accuracy
    on a fifth of the training images (of each class) is taken, the stronger one when equal; the probe is
    fitted again on all training images; the test images are read once (Kornblith et al. 2019, Sec. A.4).
    """
    mean, std = train_x.mean(0), train_x.std(0).clamp(min=1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    accuracy = lambda w, x, y: ((x @ w[:-1] + w[-1]).argmax(1) == y).float().mean().item()

    shuffled = torch.randperm(len(train_y), generator=pairs.stream("validation", seed)).to(train_y.device)
    order = shuffled[pairs.by_turns(train_y[shuffled].cpu()).to(train_y.device)]  # balanced over the classes
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    curve, weights, best, progress = {}, None, None, pairs.Progress("linear probe, L2 strengths", len(grid))
    for l2 in grid:
        weights = logistic_regression(train_x[kept], train_y[kept], classes, l2, weights)
        curve[l2] = accuracy(weights, train_x[held], train_y[held])
        if best is None or curve[l2] > curve[best[0]]:
            best = l2, weights
        progress(len(curve))
    weights = logistic_regression(train_x, train_y, classes, *best)
    return {"accuracy": accuracy(weights, test_x, test_y), "l2": best[0], "validation": curve}


def judge(heads, trained, untrained, train, test):
    """Results {head: {...}} of the heads ("knn", "linear") for two ImageSets, trained beside untrained."""
    device = next(trained.parameters()).device
    train_y, test_y = train.labels.to(device), test.labels.to(device)
    results = {head: {} for head in heads}
    for which, backbone in (("trained", trained), ("untrained", untrained.to(device))):
        x = [features(backbone, s.images, what=f"{which} features of {s.name}") for s in (train, test)]
        for head in heads:
            if head == "knn":
                found = {"accuracy": knn(x[0], train_y, x[1], test_y), "k": min(200, len(train)), "temperature": 0.1}
            else:
                found = linear_probe(x[0], train_y, x[1], test_y, len(train.classes))
            results[head].update(found if which == "trained" else {"untrained": found["accuracy"]})
    for head in heads:
        results[head].update(chance=1 / len(train.classes), classes=len(train.classes), n_train=len(train), n_test=len(test))
    return results


# --------------------------------------------------------------------------------- collapse signals


@torch.no_grad()
def collapse_signals(z):
    """Two signs of collapse of a batch of embeddings z (N, d), each computed on z / |z|.

    embedding_std: the standard deviation of each coordinate over the batch, averaged, times sqrt(d): 1 when
    directions are spread evenly over the sphere, 0 when all embeddings are equal (SimSiam, Sec. 4.1).
    effective_rank: exp of the entropy of the singular values, normalised to sum 1 (Roy & Vetterli 2007):
    between 1 (one direction) and min(N, d).
    """
    z = F.normalize(z.detach().float(), dim=1)
    s = torch.linalg.svdvals(z)
    s = s / s.sum()
    rank = torch.exp(-(s * torch.log(s.clamp(min=1e-12))).sum())
    return (z.std(0).mean() * math.sqrt(z.shape[1])).item(), rank.item()


# --------------------------------------------------------------------------------------- run folder


class Run:
    """The folder of one pretraining run, written while it trains:

    config.json     every option, versions, device, git commit
    log.jsonl       a JSON object a line: epoch, step, loss (mean since the line before), lr,
                    images_per_second (views of both kinds), embedding_std, effective_rank
    checkpoint.pt   model with target networks and queues, optimiser, random state, epoch, step: `--resume`
    backbone.pt     a bare state_dict, torchvision's names where the architecture is torchvision's
    pairs.png, curves.png, result.json

    Raises UserError when the folder is there already, unless `resume`.
    """

    def __init__(self, method, args, source, view1, view2, backbone, model, optimizer):
        self.config = {"method": method, **vars(args), "image_size": source.pool.image_size, "pairs_per_epoch": len(source),
                       "python": platform.python_version(), "torch": torch.__version__,
                       "torchvision": torchvision.__version__, "numpy": np.__version__, "pillow": PIL.__version__,
                       "threads": torch.get_num_threads(), "machine": platform.machine(), "git_commit": git_commit()}
        if torch.device(args.device).type == "cuda":
            self.config["gpu"] = torch.cuda.get_device_name()
        kind = args.pairs if args.pairs in ("augmented", "semantic") else Path(args.pairs).stem
        if args.pairs != kind and args.arm == "augmented":
            kind += "-augmented"
        data = Path(args.data).name if args.data else "list"
        self.folder = Path(args.out or f"runs/{method}-{kind}-{data}-seed{args.seed}")
        self.backbone, self.model, self.optimizer = backbone, model, optimizer
        self.epochs, self.total = args.epochs, args.epochs * (len(source) // args.batch_size)
        self.batch_size, self.device = args.batch_size, torch.device(args.device)
        self.epoch = self.step = 0
        if len(source) < args.batch_size:
            raise UserError(f"--batch-size {args.batch_size} is more than the {len(source)} pairs of an epoch; make it smaller")
        if args.resume:
            self._load()
        else:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UserError(f"{self.folder} exists and is not overwritten: --resume goes on with it, --out DIR writes elsewhere")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "config.json", self.config)
            self.save(0)
        pairs.save_picture(self.folder / "pairs.png", source, view1, view2)
        print(f"{self.folder}: {len(source):,} pairs an epoch, {self.total:,} steps, on {args.device}", flush=True)
        self.losses, self.warned, self.printed, self.printed_step = 0.0, False, time.time(), self.step

    def _load(self):
        """Takes everything back from checkpoint.pt, after checking that the run's settings are the same."""
        if not (self.folder / "checkpoint.pt").is_file():
            raise UserError(f"--resume: {self.folder} has no checkpoint.pt to go on from")
        old, free = read_config(self.folder), ("resume", "device", "out", "download", "root")
        for name in set(vars_of(self.config)) - set(free):
            if old.get(name) != self.config[name]:
                raise UserError(f"--resume: {name} was {old.get(name)} in {self.folder} and is {self.config[name]} now; keep it, or use --out")
        state = torch.load(self.folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        log = self.folder / "log.jsonl"  # lines after the checkpoint are of steps that will be run again
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step] if log.exists() else []
        log.write_text("".join(line + "\n" for line in lines))

    def log(self, epoch, loss, lr, z):
        """Counts a step; every two seconds and at the end of an epoch writes a line to the screen and log.jsonl.

        Only then does the host wait for the device. Raises UserError when the loss is not finite.
        """
        self.step, self.losses = self.step + 1, self.losses + loss.detach()
        now, steps = time.time(), self.step - self.printed_step
        if now - self.printed < 2 and self.step % max(1, self.total // self.epochs):
            return
        value = (self.losses / steps).item()
        if not math.isfinite(value):
            raise UserError(f"the loss is {value} at step {self.step} (epoch {epoch + 1}): try a lower --lr; "
                            f"{self.folder / 'checkpoint.pt'} holds the end of epoch {self.epoch}")
        std, rank = collapse_signals(z)
        speed = 2 * self.batch_size * steps / (now - self.printed)
        line = {"epoch": epoch + 1, "step": self.step, "loss": value, "lr": lr, "images_per_second": speed,
                "embedding_std": std, "effective_rank": rank}
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        left = int((self.total - self.step) * 2 * self.batch_size / speed)
        print(f"epoch {epoch + 1:3d}/{self.epochs}  step {self.step:5d}/{self.total}  loss {value:7.4f}  lr {lr:.4f}  "
              f"{speed:6,.0f} images/s  std {std:.2f}  rank {rank:5.1f}  {left // 60}:{left % 60:02d} left", flush=True)
        if (std < 0.1 or rank < 2) and not self.warned:
            self.warned = True
            print(f"warning: the embeddings are collapsing: they hardly differ between images (std {std:.3f}, healthy is "
                  f"near 1; effective rank {rank:.1f}). What such a run learns is worth little.", flush=True)
        self.losses, self.printed, self.printed_step = 0.0, now, self.step

    def save(self, epoch):
        """Writes checkpoint.pt and backbone.pt, whole or not at all; keeps the last good ones if weights are not finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise UserError(f"a weight is not finite after epoch {epoch}: try a lower --lr; "
                            f"{self.folder / 'checkpoint.pt'} holds the end of epoch {self.epoch}")
        self.epoch = epoch
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "epoch": epoch, "step": self.step,
                 "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None}
        bare = {key: value.detach().cpu().contiguous() for key, value in self.backbone.state_dict().items()}
        for name, content in (("checkpoint.pt", state), ("backbone.pt", bare)):
            torch.save(content, self.folder / (name + ".part"))
            os.replace(self.folder / (name + ".part"), self.folder / name)

    def finish(self, data):
        """Draws curves.png, evaluates the backbone on `data`, prints the table, writes result.json."""
        draw_curves(self.folder)
        if data is None:
            print(f"No labelled --data was given, so no table. Later: python evaluate.py linear {self.folder} --data DIR")
            return
        names = ["scenes", "scenes-held-out"] if data == "scenes" else [data]
        show_table(evaluate_run(self.folder, ["linear", "knn"], names, self.device), self.config["pairs"])
        print(f"{self.folder} holds pairs.png, curves.png, result.json, backbone.pt and the log.")


def vars_of(config):
    """The names in config.json that are the user's options or follow from the data, not from the machine."""
    machine = {"python", "torch", "torchvision", "numpy", "pillow", "threads", "machine", "git_commit", "gpu"}
    return [name for name in config if name not in machine]


def git_commit():
    """The commit of this repository, with "-dirty" when files differ from it; None outside a checkout."""
    try:
        call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path, content):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n")
    os.replace(part, path)


def read_config(run):
    file = Path(run) / "config.json"
    if not file.is_file():
        raise UserError(f"{run} is not a run folder: it has no config.json")
    return json.loads(file.read_text())


def evaluate_run(run, heads, data_names, device, root=None, download=False):
    """Evaluates a run's backbone with the heads on each named data set, and adds the results to result.json.

    Returns {head: {data: result}} of what was evaluated now; other keys of result.json stay.
    """
    run, config = Path(run), read_config(run)
    trained, untrained = (b.to(device) for b in load_backbone(run))
    results = {head: {} for head in heads}
    for data in data_names:
        print(f"evaluating the trained and the untrained backbone on {data}: {', '.join(heads)}", flush=True)
        train, test = (
            pairs.load_images(data, split, config["image_size"], config["limit"] if data == config["data"] else None,
                              config["seed"], root or config["root"], download)
            for split in ("train", "test"))
        for head, result in judge(heads, trained, untrained, train, test).items():
            results[head][train.name] = result
    file = run / "result.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    for head in heads:
        stored.setdefault(head, {}).update(results[head])
    write_json(file, stored)
    return results


def show_table(results, pair_kind):
    """Prints {head: {data: result}} as a table with chance, the untrained backbone, and how to read it."""
    title = {"linear": "linear probe", "knn": "weighted kNN"}
    print(f"\n{'':14}{'data':18}{'classes':>8}{'chance':>9}{'untrained':>11}{'this run':>10}")
    for head, by_data in results.items():
        for data, r in by_data.items():
            print(f"{title[head]:14}{data:18}{r['classes']:8}{r['chance']:9.3f}{r['untrained']:11.3f}{r['accuracy']:10.3f}")
    print("Test accuracy of frozen backbone features. kNN: k = 200, temperature 0.1.")
    names = [data for by_data in results.values() for data in by_data]
    if "scenes-held-out" in names:
        print("The headline is scenes-held-out: categories that no pretraining image shows. Semantic pairs use")
        print("labels, so on seen categories that arm has an advantage that is not self-supervised.")
    elif pair_kind != "augmented":
        print("These categories were seen in pretraining, and semantic pairs use their labels: not a self-supervised figure.")


def draw_curves(folder):
    """curves.png of a run folder: loss and the two collapse signals over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in open(folder / "log.jsonl")] if (folder / "log.jsonl").exists() else []
    if not lines:
        return
    epochs = lines[-1]["epoch"] * np.array([line["step"] for line in lines]) / lines[-1]["step"]
    titles = {"loss": "loss", "embedding_std": "embedding std × √d\n(0: all embeddings equal)",
              "effective_rank": "effective rank\n(1: one direction left)"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for axis, (name, title) in zip(axes, titles.items()):
        axis.plot(epochs, [line[name] for line in lines], marker="." if len(lines) < 10 else None)
        axis.set_title(title, fontsize=10), axis.set_xlabel("epoch"), axis.grid(alpha=0.3)
        if name != "loss":
            axis.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)


# ------------------------------------------------------------------------------------- command line


def main():
    parser = argparse.ArgumentParser(description="Judge the frozen backbone of a run folder; results go to its result.json.")
    parser.add_argument("head", choices=["knn", "linear"], help="weighted kNN (k 200, temperature 0.1), or logistic regression by L-BFGS")
    parser.add_argument("run", help="run folder, e.g. runs/simclr-semantic-scenes-seed0")
    parser.add_argument("--data", help="scenes, scenes-held-out, cifar10, cifar100, stl10, svhn, or a folder of class folders [the run's]")
    parser.add_argument("--root", help="folder of torchvision's data sets [the run's]")
    parser.add_argument("--download", action="store_true", help="let torchvision download the data set")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    args = parser.parse_args()
    config = read_config(args.run)
    data = args.data or config["data"]
    if data is None:
        raise UserError(f"{args.run} was trained on a list without --data: name one with --data")
    names = ["scenes", "scenes-held-out"] if data == "scenes" else [data]
    results = evaluate_run(args.run, [args.head], names, pick_device(args.device), args.root, args.download)
    show_table(results, config["pairs"])


if __name__ == "__main__":
    pairs.run_cli(main)
