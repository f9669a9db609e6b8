"""Pairs: where images come from, how two of them become a pair, how a pair becomes two views.

    python simclr.py --pairs augmented          two augmented views of one image (labels unused)
    python simclr.py --pairs semantic           two different images of one category (labels used)
    python simclr.py --pairs FILE.csv           the pairs of a curated list (its author may have used labels)
    python simclr.py --pairs FILE.csv --arm augmented     the matched baseline of that list

A worked example. Five images, labels = [0, 0, 0, 1, 1]. An epoch visits every image once as the
*anchor*, in a random order that depends on seed and epoch alone, say 3, 0, 4, 2, 1. The two arms then differ
in one index, the *partner*:

    anchor      3  0  4  2  1
    augmented   3  0  4  2  1     the anchor itself, augmented a second time
    semantic    4  2  3  0  2     uniform over the *other* images of the anchor's class

Everything else (image pool, order of anchors, number of pairs, augmentation draws) is equal, so a
difference between two runs is a difference between the pairs.

Reading order: pairs, augmentation, their picture; then where they come from: folders and lists, the built-in `scenes`, torchvision's sets,
the cache, boxes; last what all programs share (the command line, too), and how a list of pairs is made. No loss is computed
here and nothing is trained.
"""

import argparse
import csv
import errno
import functools
import glob
import hashlib
import io
import json
import math
import multiprocessing
import operator
import os
import shlex
import shutil
import signal
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class UserError(Exception):
    """A mistake of the user's: one line that says what was wrong, where, and what to do."""


def stream(*key):
    """A separate CPU random generator for each key, e.g. stream("order", seed, epoch).

    Streams make the arms matched (drawing partners cannot disturb the order of anchors) and an
    interrupted run resumable (an epoch's randomness depends on its number, not on what ran before).
    """
    return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))


def rank_and_world():
    """(number of this process, number of processes): (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


# -------------------------------------------------------------------------------------------- pairs

ARMS = ("augmented", "semantic")  # the kinds of --pairs; any other is the file of a list


@dataclass
class ImageSet:
    """Labelled images: uint8 (N, 3, S, S), those of folders mapped from disk; int64 labels (N,), names of the classes.

    Where an image may show several classes, the labels are (N, classes): 1 shown, 0 not shown, -1 difficult (not counted).
    metric is the one that publications use for the set: "top-1", "mean per class" or "11-point mAP". files_crc32 is a check
    sum of the files' names (for a pair list: of its pairs), to recognise other files; None where there are no files.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: list
    metric: str = "top-1"
    files_crc32: int = None

    def __len__(self):
        return len(self.labels)

    @property
    def image_size(self):
        return self.images.shape[-1]


@dataclass
class Pairs:
    """A pool of images and the rule that makes pairs of them.

    kind: "augmented" | "semantic" | "list". For a list, `rows` (R, 2) holds image indices of its pairs.
    false_pairs: the share of semantic partners that is drawn from another category instead, redrawn every epoch.
    semantic_share: the share of pairs that is semantic, redrawn every epoch; the rest are augmented.
    judged: whether the run is evaluated on its --data when it ends: not if that has one class only, or too few images for a probe;
    of a list, only if --data has class folders with a test split when the run starts.
    """

    pool: ImageSet
    kind: str
    seed: int
    rows: torch.Tensor = None
    false_pairs: float = 0.0
    semantic_share: float = 1.0
    judged: bool = True

    def __len__(self):
        """Pairs in an epoch: one for each image of the pool, or for each row of the list."""
        return len(self.pool) if self.rows is None else len(self.rows)

    def epoch(self, epoch):
        """Image indices (anchor (M,), partner (M,)) of one epoch: a function of seed and epoch alone."""
        stream_of = lambda name: stream(name, self.seed, epoch)
        order = torch.randperm(len(self), generator=stream_of("order"))
        anchors = torch.arange(len(self)) if self.rows is None else self.rows[:, 0]
        anchor = anchors[order]
        if self.kind == "augmented":
            return anchor, anchor
        partner = self.rows[order, 1] if self.kind == "list" else semantic_partners(self.pool.labels, stream_of("partner"))[anchor]
        if self.false_pairs:
            wrong = torch.rand(len(anchor), generator=stream_of("which are false")) < self.false_pairs
            partner = torch.where(wrong, false_partners(self.pool.labels, stream_of("false partner"), anchors)[order], partner)
        if self.semantic_share < 1:
            semantic = torch.rand(len(anchor), generator=stream_of("which are semantic")) < self.semantic_share
            partner = torch.where(semantic, partner, anchor)
        return anchor, partner

    def rates(self, epoch):
        """The shares realised in an epoch's pairs, {name: share, or None where categories are not known}:

        semantic_rate: pairs of two different images, false ones too; false_rate: those among them of two categories;
        same_class_rate: the expected share of an anchor's negatives that are of its class, the second images of the other
        pairs being the negatives (of MoCo's queue: nearly).
        """
        anchor, partner = self.epoch(epoch)
        semantic = anchor != partner
        rates = {"semantic_rate": semantic.float().mean().item(), "false_rate": None, "same_class_rate": None}
        if len(self.pool.classes) > 1:
            a, b = self.pool.labels[anchor], self.pool.labels[partner]
            count = lambda y: torch.bincount(y, minlength=len(self.pool.classes))
            others = (count(a) * count(b)).sum() - (a == b).sum()  # (anchor, other pair) of one category
            rates |= {"false_rate": (a != b)[semantic].float().mean().item() if semantic.any() else 0.0,
                      "same_class_rate": others.item() / max(len(a) * (len(a) - 1), 1)}
        return rates


def sorted_by_class(labels):
    """The images (N,) sorted by class; and for each image how many its class has, and where the class starts in that order."""
    counts = torch.bincount(labels)
    return torch.argsort(labels, stable=True), counts[labels], (counts.cumsum(0) - counts)[labels]


def rank_in_class(labels):
    """For each image (N,) how many images of its class come before it."""
    by_class, _, start = sorted_by_class(labels)
    return by_class.argsort() - start


def by_turns(labels):
    """An order of the images that takes the classes in turn: first of each class, second of each, ...; labels (N, C): as they are."""
    if labels.ndim > 1:
        return torch.arange(len(labels))
    return torch.argsort(rank_in_class(labels) * (int(labels.max()) + 1) + labels)


def semantic_partners(labels, generator):
    """For each image (N,) another one of its class, uniform over the n_c - 1 others.

    Write the images sorted by class, in a row: a draw among the first n_c - 1 of the class's n_c places, plus one if it is at or
    after the anchor's place, hits every other place equally often and the anchor never. No rejection sampling. Labels and
    generator are on the CPU. Raises ValueError for a class with one image.
    """
    by_class, n_c, start = sorted_by_class(labels)
    if (n_c == 1).any():
        raise ValueError("a class with one image has no partner for it")
    place = by_class.argsort()  # of each image in that row
    other = start + (torch.rand(len(labels), generator=generator, dtype=torch.float64) * (n_c - 1)).long()
    return by_class[other + (other >= place)]


def false_partners(labels, generator, anchors=slice(None)):
    """For each image, or each of the anchors (M,), one of another class, uniform over all of those.

    As semantic_partners: a draw among the N - n_c places outside the class is moved past the class. Raises ValueError where all
    images are of one class.
    """
    by_class, n_c, start = sorted_by_class(labels)
    if (n_c == len(labels)).any():
        raise ValueError("with one class there is no partner of another")
    n_c, start = n_c[anchors], start[anchors]
    other = (torch.rand(len(n_c), generator=generator, dtype=torch.float64) * (len(labels) - n_c)).long()
    return by_class[other + n_c * (other >= start)]


def batches(source, epoch, batch_size, view1, view2, device, images=None, at_once=2**25):
    """Yields the batches (x1, x2) of an epoch of the Pairs `source`, each float (batch_size, 3, S, S), augmented on `device`.

    x1 shows the anchors under `view1`, x2 the partners under `view2`. The last, smaller batch is dropped:
    batch statistics and MoCo's queue need equal batches. `images` is the pool as to_device returned it. Of several
    processes each gets its share of every batch, batch_size / processes pairs. On a GPU several batches, about `at_once` pixel
    values, are augmented together, as every operation costs a launch; their views are the same as one by one. The first batch is
    alone, so that the GPU has work while the host draws for the others.
    """
    images = to_device(source.pool.images, device) if images is None else images
    rank, world = rank_and_world()
    generator = stream("augment", source.seed, epoch, *([rank] if world > 1 else []))  # each process draws its own numbers
    n, share, size = len(source) // batch_size, batch_size // world, images.shape[-1]
    mine = lambda index: index[: n * batch_size].view(n, world, share)[:, rank].to(images.device)  # (n, share): of n batches
    rows = torch.cat([mine(index) for index in source.epoch(epoch)], 1)  # (n, 2 share): of a batch the anchors, then the partners
    device = torch.device(device)
    together = 1 if device.type == "cpu" else max(1, at_once // (2 * share * 3 * size**2))  # batches
    groups = [group.flatten() for group in (rows[:1], *rows[1:].split(together)) if len(group)]
    taken = (images[group] for group in groups) if images.device.type == device.type else streamed(images, groups, device)
    views = [(view1, 2 * share)] if view1 == view2 else [(view1, share), (view2, share)]
    for x in taken:
        draws = [draw(view, k, size, generator) for _ in range(len(x) // (2 * share)) for view, k in views]
        x = apply(x, {name: torch.cat([drawn[name] for drawn in draws]) for name in draws[0]})
        yield from (batch.chunk(2) for batch in x.split(2 * share))


def to_device(images, device, share=0.3):
    """Images on the device, or left where they are (those of folders: mapped from disk) if they need more than `share` of a
    GPU's free memory: training takes the rest."""
    device = torch.device(device)
    if device.type == "cuda" and images.nbytes > share * torch.cuda.mem_get_info(device)[0]:
        print(f"{images.nbytes / 1e9:.1f} GB of images are too many to keep on {device}: streamed instead")
        return images
    return images.to(device)


def streamed(images, groups, device):
    """Yields images[rows] on the device for the rows in groups; a thread gathers the next ones meanwhile, for a GPU into
    pinned memory, so that the host need not wait for the copy."""
    pin = torch.device(device).type == "cuda"
    gather = lambda rows: images[rows].pin_memory() if pin else images[rows]
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(gather, groups[0])
        for following in [*groups[1:], []]:  # after the last there is nothing to gather
            now, ahead = ahead.result(), thread.submit(gather, following)
            yield now.to(device, non_blocking=pin)


# ------------------------------------------------------------------------------------- augmentation

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """One view's transforms, in the order of application. p_* are probabilities per image."""

    crop: tuple = (0.08, 1.0)  # range of the crop's share of the image area
    p_flip: float = 0.5
    jitter: tuple = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue: torchvision's meaning
    p_jitter: float = 0.8
    p_gray: float = 0.2
    p_blur: float = 0.0
    sigma: tuple = (0.1, 2.0)  # of the blur, in pixels
    p_solarize: float = 0.0

    SWITCHES = {"crop": {"crop": (1.0, 1.0)}, "flip": {"p_flip": 0.0}, "jitter": {"p_jitter": 0.0},
                "gray": {"p_gray": 0.0}, "blur": {"p_blur": 0.0}, "solarize": {"p_solarize": 0.0}}

    def without(self, names):
        """The same view with some transforms off: any of crop, flip, jitter, gray, blur, solarize."""
        for name in names:
            if name not in self.SWITCHES:
                raise UserError(f"--without {name}: choose from {', '.join(self.SWITCHES)}")
            self = replace(self, **self.SWITCHES[name])
        return self


def make_views(args, image_size):
    """The two views that the options --crop-min, --jitter, --gray, --blur, --solarize, --without describe."""
    blur = args.blur or (getattr(args, "usual_blur", [0.5, 0.5]) if image_size >= 64 else [0.0, 0.0])
    off = [name for name in args.without.split(",") if name]
    off += ["jitter"] * (not any(args.jitter))  # it would change nothing
    return [Augmentation(crop=(args.crop_min, 1.0), jitter=tuple(args.jitter), p_gray=args.gray, p_blur=p_blur,
                         p_solarize=p_solarize).without(off) for p_blur, p_solarize in zip(blur, args.solarize)]


def draw(view, n, size, generator):
    """All random parameters of n views, `size` pixels a side, drawn on the CPU so that every device sees the same.

    Returns a dict of tensors, one row per image: box (N, 4) of the crop (see random_boxes); factors (N, 4) of brightness,
    contrast, saturation, and the hue's shift in turns; order (N, 4), in which those four come; sigma of the blur in
    pixels; and whether it gets each of flip, jitter, gray, blur, solarize.
    """
    u = lambda low, high, *shape: uniform(low, high, (n, *shape), generator)
    hue = view.jitter[3]
    return {
        "box": random_boxes(n, size, view.crop, generator),
        "flip": u(0, 1) < view.p_flip,
        "jitter": u(0, 1) < view.p_jitter,
        "factors": torch.stack([*(u(max(0, 1 - s), 1 + s) for s in view.jitter[:3]), u(-hue, hue)], 1),
        "order": u(0, 1, 4).argsort(1),
        "gray": u(0, 1) < view.p_gray,
        "blur": u(0, 1) < view.p_blur,
        "sigma": u(*view.sigma),
        "solarize": u(0, 1) < view.p_solarize,
    }


def augment(images, view, generator):
    """A batch uint8 (N, 3, S, S) under one view: float32 (N, 3, S, S), ImageNet-normalised, same device.

    Parameters are drawn independently for each image by a CPU `generator`; the distribution is that of torchvision's
    RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur, RandomSolarize applied image by
    image. Raises ValueError for images that are not square, RGB and uint8.
    """
    return apply(images, draw(view, len(images), images.shape[-1], generator))


def apply(images, draws, at_once=256 * 3 * 32**2):
    """augment, with parameters as `draw` gives them, in a few operations on the whole batch (on a CPU on parts of it that
    suit its cache: `at_once` pixel values, but at least 8 images)."""
    n, size = len(images), images.shape[-1]
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        raise ValueError(f"augment takes square RGB images, uint8 (N, 3, S, S), not {images.dtype} {tuple(images.shape)}")
    out = torch.empty_like(images, dtype=torch.float32)
    part = max(8, at_once // (3 * size**2)) if images.device.type == "cpu" else n
    for start in range(0, n, part):
        rows = slice(start, start + part)
        d = {name: drawn[rows] for name, drawn in draws.items()}
        x = resized_crop(images[rows], d["box"], d["flip"])
        x = color_jitter(x, d["jitter"], d["factors"], d["order"])
        x = on_some(x, d["gray"], grayscale)
        x = on_some(x, d["blur"], gaussian_blur, d["sigma"])
        x = on_some(x, d["solarize"], solarize)
        normalize(x, out=out[rows])
    return out


@functools.cache
def constant(values, device):
    """A small float32 tensor, made once for each device: sending it at every step would make the host wait for a GPU."""
    with torch.inference_mode(False):  # it is kept for later calls, outside of that mode too
        return torch.tensor(values, dtype=torch.float32, device=device)


def send(x, device):
    """Sends a CPU tensor to the device; to a GPU from pinned memory, so that the host need not wait for the copy."""
    return x.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def uniform(low, high, shape, generator):
    """Uniform numbers between low and high."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def normalize(x, out=None):
    """Images, uint8 or float in [0, 1], to the float input of every backbone here: ImageNet mean and std."""
    x = x / 255 if x.dtype == torch.uint8 else x
    mean, std = (constant(v, x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return torch.sub(x, mean, out=out).div_(std)


def on_some(x, chosen, transform, *draws):
    """Replaces the chosen (N,) images of the batch, in place, by transform(images, *their rows of the draws)."""
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return x
    where = send(rows, x.device)
    return x.index_copy_(0, where, transform(x.index_select(0, where), *(drawn[rows] for drawn in draws)).to(x.dtype))


def random_boxes(n, size, area, generator):
    """The boxes of RandomResizedCrop: float (n, 4), whole pixels top, left, height, width, in images of side `size`.

    As torchvision: the first of ten draws of area (a share of the image's) and log-uniform aspect ratio that
    fits, else the whole image. Area (1, 1) switches the crop off.
    """
    target = uniform(*area, (n, 10), generator) * size**2
    aspect = torch.exp(uniform(math.log(3 / 4), math.log(4 / 3), (n, 10), generator))
    width, height = torch.sqrt(target * aspect).round(), torch.sqrt(target / aspect).round()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.float().argmax(1, keepdim=True)
    width, height = (torch.where(fits.any(1), v.gather(1, first)[:, 0], float(size)) for v in (width, height))
    left, top = ((torch.rand(n, generator=generator) * (size - v + 1)).floor() for v in (width, height))
    return torch.stack([top, left, height, width], 1)


def resized_crop(images, box, flip):
    """The box (N, 4) of each image (see random_boxes), resized to the full side S, bilinear, and mirrored where flip (N,).

    uint8 (N, 3, S, S) -> float (N, 3, S, S) in [0, 1]. A box is never larger than the output, so no
    antialiasing is needed. Outside the box its border is repeated: pixels around it do not leak in.
    """
    size = images.shape[-1]
    box = send(torch.cat([box, flip[:, None]], 1), images.device)
    top, left, height, width, flip = box.T[..., None]
    middles = (torch.arange(size, device=images.device) + 0.5) / size

    def places(start, length):  # of the output's pixels in the image, from -1 to 1 as grid_sample wants them
        inside = (middles * length).clamp(min=0.5).minimum(length - 0.5)
        return (start + inside) * 2 / size - 1

    y, x = places(top, height), places(left, width)
    x = torch.where(flip > 0, x.flip(1), x)
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)  # (N, S, S, 2)
    return F.grid_sample(images / 255, grid, align_corners=False)


def color_jitter(x, chosen, factors, order):
    """Brightness, contrast, saturation and hue of the chosen (N,) images, in place, each in its own order (torchvision's
    ColorJitter); factors and order (N, 4) as drawn.

    With a factor f, the first three are f x, f x + (1 - f) mean(gray(x)) and f x + (1 - f) gray(x). Hue is costly, so it
    is computed once for all: images are sorted by hue's place among the four. The k-th of the other three operations comes
    after hue in the first after[k] images, and before it in the rest: hence a loop, hue, and a loop.
    """
    place = (order == 3).int().argmax(1)
    rows = torch.where(chosen, place, 4).argsort()[: int(chosen.sum())]
    after = torch.bincount(place[rows], minlength=4).cumsum(0).tolist()
    order, factors = order[rows], factors[rows]
    others = order[order != 3].view(-1, 3)  # [i, k]: the k-th operation on image i, but for hue
    f = factors.gather(1, others)
    weights = torch.stack([f, (1 - f) * (others == 1), (1 - f) * (others == 2)])
    weights, where, shift = (send(v, x.device) for v in (weights, rows, factors[:, 3]))
    y = x.index_select(0, where)

    def blend(k, images):  # of a slice of y
        of_image, of_mean, of_gray = weights[:, images, k, None, None, None]
        gray = luma(y[images])
        mean = gray.mean((2, 3), keepdim=True)
        y[images].mul_(of_image).add_(gray.mul_(of_gray).add_(mean.mul_(of_mean))).clamp_(0, 1)

    for k in range(3):
        blend(k, slice(after[k], None))
    if factors[:, 3].any():
        y = shift_hue(y, shift[:, None, None, None])
    for k in range(3):
        blend(k, slice(after[k]))
    return x.index_copy_(0, where, y)


def luma(x):
    """Brightness (N, 1, H, W) of RGB images, ITU-R 601-2 as in torchvision and PIL."""
    r, g, b = x.split(1, 1)
    return (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)


def shift_hue(x, shift):
    """Turns the hue of RGB images (N, 3, H, W) in [0, 1] by shift (N, 1, 1, 1), in turns of the circle.

    With C = max - min and red at 0, green at 2, blue at -2 sixths of a turn, the hue is 1 + (g + b - r - min) / C sixths
    from red, towards green where g > b. Where d is its distance from a channel's place, that channel is
    min + C clamp(||d| - 3| - 1, 0, 1) (Smith 1978, HSV and back without branches).
    """
    r, g, b = x.split(1, 1)
    low, high = torch.minimum(r, g).minimum(b), torch.maximum(r, g).maximum(b)
    chroma = high.sub_(low).clamp_(min=1e-9)  # so that the hue of gray is a number; which one does not matter
    hue = (g + b).sub_(r).sub_(low).div_(chroma).add_(1).copysign_(g - b).add_(6 * shift)
    hue.sub_((hue / 6).round_(), alpha=6)  # between -3 and 3
    d = hue - constant((0.0, 2.0, -2.0), x.device)[:, None, None]
    return d.abs_().sub_(3).abs_().clamp_(1, 2).mul_(chroma).add_(low.sub_(chroma))


def grayscale(x):
    """RGB to three equal channels of luma."""
    return luma(x).expand_as(x)


def gaussian_blur(x, sigma):
    """Gaussian blur of images (N, 3, S, S) with a sigma (N,) in pixels for each, reflected border.

    The kernel is SimCLR's, a tenth of the side wide, but at most four times the largest sigma to each side: the weights
    beyond that sum to less than 1e-4.
    """
    half = min(max(1, x.shape[-1] // 20), math.ceil(4 * sigma.max()))
    offsets = torch.arange(-half, half + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / send(sigma, x.device)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)[:, None]  # (3 N, 1, taps)
    flat = F.pad(x, [half] * 4, mode="reflect").flatten(0, 1)[None]  # one image of 3 N channels, each with a kernel of its own
    if x.device.type == "cpu":  # faster there; on a GPU cuDNN would take over, and plan anew for every other number of images
        flat = flat.contiguous(memory_format=torch.channels_last)
    flat = F.conv2d(flat, kernel[..., None], groups=len(kernel))
    return F.conv2d(flat, kernel[:, :, None], groups=len(kernel)).view(x.shape)


def solarize(x, threshold=0.5):
    """Inverts the pixels at or above the threshold."""
    return torch.where(x >= threshold, 1 - x, x)


# ------------------------------------------------------------------------------------------ picture


@contextmanager
def picture():
    """For functions that draw: no window, and names are shown as they are: a class may be called $5, which is no formula."""
    if "matplotlib" not in sys.modules:  # else the caller has chosen a backend
        os.environ["MPLBACKEND"] = "agg"  # programs started in a notebook inherit one that may not be installed for them
    import matplotlib  # only where a picture is drawn

    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # boxes in their place say it too
        yield


def drawable(text):
    """Text as matplotlib takes it: of a file's name that is not UTF-8 the odd bytes become \\udcff and the like."""
    return text.encode(errors="backslashreplace").decode()


@picture()
def save_picture(path, source, view1, view2, columns=6):
    """Writes a picture of pairs, one a column, augmented on the left, semantic (or the list's) on the right: the two images,
    and under them the two views that the network sees."""
    import matplotlib.pyplot as plt

    other, caption = ("semantic", "semantic pairs: two images of one category") if source.rows is None else ("list", "pairs of the curated list")
    if source.false_pairs:
        caption += f"\n{source.false_pairs:.0%} of them false: of two categories"
    if source.semantic_share < 1:
        caption += f"\n{source.semantic_share:.0%} of all pairs, the others augmented"
    captions = {"augmented": "augmented pairs: two views of one image" + "\n " * caption.count("\n"), other: caption}  # equally high
    if other == "semantic":
        try:
            make_pairs("semantic", source.pool, source.seed)
        except UserError:  # there are no such pairs
            del captions[other]
    columns = min(columns, len(source))
    figure = plt.figure(figsize=(columns * len(captions), 4.4), layout="constrained")
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    for block, kind in zip(figure.subfigures(1, len(captions), squeeze=False, wspace=0.03)[0], captions):
        block.suptitle(captions[kind], fontsize=11)
        anchor, partner = (index[:columns] for index in replace(source, kind=kind).epoch(0))
        generator = stream("picture", source.seed)
        a, b = source.pool.images[anchor], source.pool.images[partner]
        x1, x2 = (augment(images, view, generator) * std + mean for images, view in ((a, view1), (b, view2)))
        axes = block.subplots(4, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
        for title, images, row in zip(("anchor", "partner", "view 1,\nof the anchor", "view 2,\nof the partner"), (a / 255, b / 255, x1, x2), axes):
            row[0].set_ylabel(title, fontsize=9, alpha=float(kind == "augmented"))  # unseen on the right: it keeps the halves alike
            for image, axis in zip(images, row):
                axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    buffer = io.BytesIO()  # whole or not at all: a run that is resumed draws it only if it is missing
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    write_whole(Path(path), buffer.getbuffer())


# ----------------------------------------------------------------------- pairs of folders and lists


def load_pairs(args):
    """The Pairs that the command line asks for: options --pairs, --arm, --data and those that shape pool and pairs. Where the
    images are files, those that the run will be judged on are read as well. Raises UserError."""
    if args.data in SCENES[1:]:
        raise UserError(f"--data {args.data} is for evaluation, and is evaluated after a run on scenes; pretrain on --data scenes")
    if args.pairs not in ARMS and not Path(args.pairs).is_file():
        raise UserError(f"--pairs {args.pairs}: neither {' nor '.join(ARMS)}, and no such file of a pair list, a CSV with columns image_a,image_b")
    in_folder = args.data not in (None, *DATA_SETS) and Path(args.data).is_dir()
    of_classes = args.pairs in ARMS
    if of_classes and args.data != "scenes":
        # open what the run will be judged on: a mistake, or a download, should not have to wait for the training images
        judged_on_files = isinstance(open_split(args.data, "test", args.root, args.download)[0], list)
        val = open_split(args.data, "val", args.root, args.download)
    else:
        judged_on_files, val = in_folder and can_judge(args.data), None
    if in_folder and judged_on_files:
        not_a_class(args.data, {"--cache": args.cache, "--out": args.out or "runs"})
    if of_classes:
        pool = load_images(args.data, "train", args.image_size, args.limit, args.seed, args.root, args.download, args.skip_bad, args.cache)
        source = make_pairs(args.pairs, pool, args.seed)
    elif args.data is not None and not in_folder:
        hint = f"; did you mean ./{args.data}?" if Path(args.data).is_dir() else ""
        raise UserError(f"--pairs {args.pairs} is a list, whose paths need a folder, not --data {args.data}{hint}")
    else:
        source = read_pair_list(args.pairs, args.data, args.arm, args.image_size, args.limit, args.seed, args.skip_bad, args.cache)
    if args.false_pairs and len(source.pool.labels.unique()) < 2:
        raise UserError(f"--false-pairs {args.false_pairs}: {source.pool.name} has no two categories to draw false partners from")
    if len(source) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(source)} pairs of an epoch; make it smaller")
    if judged_on_files:  # so that a bad image stops the run now, and not after the training
        for split in ("test", "val") if of_classes else ("test", "val", "train"):
            load_images(args.data, split, source.pool.image_size, root=args.root, skip_bad=args.skip_bad, cache=args.cache)
    if judged_on_files and not of_classes:
        rows = [row for row in read_rows(args.pairs, args.data)[0] if row["keep"]][: args.limit]
        columns = ("image_a",) if args.arm == "augmented" else ("image_a", "image_b")
        listed = {os.path.abspath(row[column]) for row in rows for column in columns}
        if both := listed & set(map(os.path.abspath, list_folder(Path(args.data), "test")[0])):
            print(f"note: {len(both):,} of the images that the run will be tested on are in the list: it will have seen them")
    if unfit := of_classes and unfit_for_a_probe(len(source.pool), source.pool.classes, val):
        print(f"note: {source.pool.name} has {unfit}, so the run will not be judged on it")
    judged = (of_classes or judged_on_files) and not unfit
    return replace(source, false_pairs=args.false_pairs, semantic_share=args.semantic_share, judged=judged)


def make_pairs(kind, pool, seed):
    """Pairs of kind "augmented" or "semantic" over a labelled pool.

    Raises ValueError for another kind, UserError for images of several classes and, if semantic, for a class with a single image
    and for one class only.
    """
    if kind not in ARMS:
        raise ValueError(f"no kind {kind}: augmented or semantic")
    if pool.labels.ndim > 1:
        raise UserError(f"{pool.name} has images of several classes: make a pair list and name it with --pairs FILE.csv")
    if kind == "semantic" and (lonely := lonely_classes(pool.labels, pool.classes)):
        raise UserError(f"--pairs semantic: in {pool.name} {lonely}; add images, remove the class or raise --limit")
    if kind == "semantic" and len(pool.labels.unique()) < 2:
        raise UserError(f"--pairs semantic: {pool.name} has one class only, {pool.classes[pool.labels[0]]}; is --data the folder of the class folders?")
    return Pairs(pool, kind, seed)


def lonely_classes(labels, classes):
    """In words, which classes have one image only; "" if none."""
    lonely = [classes[i] for i in (torch.bincount(labels) == 1).nonzero()[:, 0].tolist()]
    names = ", ".join(lonely[:5]) + " ..." * (len(lonely) > 5)
    return f"{len(lonely)} class(es) have one image only, so no partner: {names}" if lonely else ""


def read_pair_list(file, folder=None, arm="semantic", image_size=None, limit=None, seed=0, skip_bad=False, cache=None):
    """Pairs of a curated list: a CSV with columns image_a, image_b and, optionally, category and keep.

    Paths are relative to `folder`, by default the file's own. Rows with keep = 0 are left out. arm "augmented" pairs
    each row's anchor image_a with itself: the matched baseline, equal in anchors, order and number of pairs, and in
    images if each is some row's image_a (else a note says so). Both arms load the images of both columns. `limit` keeps
    the first rows; `skip_bad` leaves out pairs with an image that cannot be read. Raises UserError with the row of a
    mistake, ValueError for another arm.
    """
    if arm not in ARMS:
        raise ValueError(f"no arm {arm}: augmented or semantic")
    table, folder = read_rows(file, folder)
    table = [row for row in table if row["keep"]][:limit]
    index = {}  # of each image, its place in the pool
    if not table:
        raise UserError(f"{file}: no pairs in it")
    for row in table:
        for column in ("image_a", "image_b"):
            if not row[column].is_file():
                raise UserError(f"{file}, line {row['line']}, {column}: no image {row[column]}; paths are relative to {folder}, the folder of --data or the list's own")
            index.setdefault(row[column], len(index))
    category = categories_of(table, folder)
    rows = torch.tensor([[index[row["image_a"]], index[row["image_b"]]] for row in table])
    images, kept = cached(list(index), len(index), image_size, f"reading the images of {Path(file).name}", skip_bad, cache)
    place = torch.full((len(index),), -1)  # of each image in the pool; -1: left out
    place[kept] = torch.arange(len(kept))
    rows = place[rows]
    rows = rows[(rows >= 0).all(1)]
    if not len(rows):
        raise UserError(f"{file}: no pair is left, as each has an image that cannot be read; repair some")
    if any(category.values()) and not all(category.values()):
        print(f"note: {file} has pairs without a category, so all images count as one class")
    classes = sorted(set(category.values())) if all(category.values()) else [Path(file).stem]
    label = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([label.get(category[path], 0) for path in index])  # without categories all are of one class
    shown, anchors = (len(places.unique()) for places in (rows, rows[:, 0]))
    if shown > anchors:
        print(f"note: {shown - anchors:,} of the {shown:,} images of these pairs are never image_a, so --arm augmented does not train "
              "on them; a list with each pair in both directions shows both arms the same images")
    crc32 = crc32_of(folder, [row[column] for row in table for column in ("image_a", "image_b")])
    pool = ImageSet(Path(file).stem, images, labels[kept], classes, files_crc32=crc32)
    return Pairs(pool, "augmented" if arm == "augmented" else "list", seed, rows)


def categories_of(table, folder):
    """{path: category} of the images of a list's rows, "" where neither the list nor a class folder tells."""
    own, category = functools.cache(lambda path: category_of(path, folder)), {}
    # whether the list's categories are its class folders; rows without a file do not count
    folders_tell = all(row["category"] in ("", own(row["image_a"])) or not row["image_a"].is_file() for row in table)
    for row in sorted(table, key=lambda row: not row["category"]):  # a row's category is its anchor's; those that have one first
        category.setdefault(row["image_a"], row["category"] or own(row["image_a"]))
    names = set(category.values()) - {""}
    for row in table:  # a partner that is never an anchor may be of another category, that of its class folder
        a, b = row["image_a"], row["image_b"]
        tells = own(b) not in ("", own(a)) and (own(b) in names or folders_tell or not row["category"])
        category.setdefault(b, own(b) if tells else category[a])
    return category


def read_rows(file, folder=None):
    """The rows of a pair list as dicts (image_a and image_b as paths, category, keep as bool, line), and their folder."""
    file, folder = Path(file), Path(os.path.normpath(folder or Path(file).parent))
    if not file.is_file():
        raise UserError(f"{file}: no such file; a pair list is a CSV with columns image_a,image_b")
    keep = {"": True, "1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
    rows = []

    def path_of(name):  # in one spelling; spaces around it, and backslashes (of Windows), are part of it only if there is such a file
        exact, plain = folder / name, name.strip().replace("\\", "/")
        return Path(os.path.normpath(exact if name == plain or exact.is_file() else folder / plain))

    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True)  # else a stray quote would swallow the rows after it
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            count = reader.fieldnames.count
            if not count("image_a") == count("image_b") == 1 or count("category") > 1 or count("keep") > 1:
                raise UserError(f"{file}: the first line must name the columns image_a,image_b, separated by commas, and may name category "
                                f"and keep, each once; it has {reader.fieldnames}")
            for row in reader:
                kept = (row.get("keep") or "").strip().lower()
                if kept not in keep:
                    raise UserError(f"{file}, line {reader.line_num}: keep is {kept}; use 1 or 0")
                if not any(row.values()):  # as spreadsheets leave them at the end
                    continue
                a, b = (row[column] or "" for column in ("image_a", "image_b"))
                if keep[kept] and not (a.strip() and b.strip()):
                    raise UserError(f"{file}, line {reader.line_num}: image_a or image_b is empty; fill it, set keep to 0 or remove the row")
                rows.append({"image_a": path_of(a), "image_b": path_of(b), "category": (row.get("category") or "").strip(),
                             "keep": keep[kept], "line": reader.line_num})
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read as a CSV ({error}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{file}, line {len(rows) + 2} or after, cannot be read as a CSV ({error}): "
                        "is a quote not closed, or not doubled?") from None
    return rows, folder


# ------------------------------------------------------------------------------------------- images

# -- scenes: the built-in data set. A category is a shape; everything else is nuisance.

SCENE_CATEGORIES, SCENE_TRAIN, SCENE_TEST = 256, 16, 4  # seen in pretraining; images per category
HELD_OUT_CATEGORIES, HELD_OUT_TRAIN, HELD_OUT_TEST = 20, 10, 50  # never seen in pretraining: a probe with few labels


def sample_shapes(n, generator):
    """n categories: complex Fourier coefficients c (n, 5) of the closed contour

        r(theta) = exp(Re sum_k c_k e^(i k theta)),  k = 2..6,

    scaled to the area of the unit circle. k = 1 would shift the contour rather than shape it. The family is
    unlimited, so held-out categories are just further draws. Returns (c, log_scale (n, 1)).
    """
    k = torch.arange(2, 7)
    c = torch.complex(*(torch.randn(2, n, 5, generator=generator) * 0.7 / k))
    theta = torch.linspace(0, 2 * math.pi, 257)[:-1]
    log_r = (c[:, :, None] * torch.exp(1j * k[:, None] * theta)).sum(1).real  # (n, 256)
    return c, -0.5 * torch.log(torch.exp(2 * log_r).mean(1, keepdim=True))


def sample_factors(category, generator, shifted=False):
    """Draws every nuisance factor of len(category) scenes. Returns a dict of tensors, a row per image:

    category; x, y (object centre), scale (radius), all as fractions of the image side; rotation (rad);
    object_color (3), background_color (2 x 3) in [0, 1]; background (0 gradient, 1 stripes, 2 blotches)
    with its angle (rad), frequency (cycles per image), phase (rad) and texture (4 x 4);
    light_angle (rad), light_strength, exposure (gain); noise (standard deviation).
    `shifted`: dark objects on bright, busier backgrounds, smaller, turned, noisier; light and place are as before.
    """
    n = len(category)
    u = lambda low, high, *shape: uniform(low, high, (n, *shape), generator)
    scale = u(0.24, 0.36)
    room = 0.5 - 1.2 * scale  # keeps most of every object inside the image
    first = u(0, 0.4, 3)
    factors = {
        "category": category,
        "x": 0.5 + u(-1, 1) * room,
        "y": 0.5 + u(-1, 1) * room,
        "scale": scale,
        "rotation": u(-math.pi / 12, math.pi / 12),
        "object_color": first + u(0.4, 0.6, 3),  # brighter than the background in every channel, in any hue
        "background": torch.randint(3, (n,), generator=generator),
        "background_color": torch.stack([first, (first + u(-0.15, 0.15, 3)).clamp(0, 1)], 1),
        "angle": u(0, 2 * math.pi),
        "frequency": u(1.5, 5),
        "phase": u(0, 2 * math.pi),
        "texture": torch.randn(n, 1, 4, 4, generator=generator),
        "light_angle": u(0, 2 * math.pi),
        "light_strength": u(0, 0.6),
        "exposure": u(0.6, 1.2),
        "noise": u(0, 0.06),
    }
    if shifted:
        first = u(0.6, 1, 3)
        factors |= {"scale": u(0.2, 0.24), "rotation": u(math.pi / 12, math.pi / 4), "object_color": first - u(0.4, 0.6, 3),
                    "background_color": torch.stack([first, first - u(0, 0.15, 3)], 1), "frequency": u(5, 8), "noise": u(0.06, 0.1)}
    return factors


FACTORS = {  # the nuisance factors of scenes, and the augmentation that imitates each (None: none does)
    "position": "crop", "scale": "crop", "object color": "jitter", "illumination": "jitter",
    "background": None, "rotation": None, "noise": None,
}


def redraw(factors, name, generator):
    """The same scenes (see sample_factors) with one of FACTORS drawn again, from its distribution given all others."""
    n, new = len(factors["category"]), sample_factors(factors["category"], generator)
    if name == "position":
        room, old_room = 0.5 - 1.2 * new["scale"], 0.5 - 1.2 * factors["scale"]
        return factors | {axis: 0.5 + (new[axis] - 0.5) / room * old_room for axis in "xy"}
    if name == "scale":  # given x and y, p(room) ~ 1 / room^2 from off to 0.212, so 1 / room is uniform
        off = torch.maximum((factors["x"] - 0.5).abs(), (factors["y"] - 0.5).abs()).clamp(0.068, 0.212)
        room = 1 / torch.lerp(torch.tensor(1 / 0.212), 1 / off, torch.rand(n, generator=generator))
        return factors | {"scale": (0.5 - room) / 1.2}
    if name == "object color":
        return factors | {"object_color": factors["background_color"][:, 0] + new["object_color"] - new["background_color"][:, 0]}
    if name == "background":  # given the object's colour, 0.4 to 0.6 above the first
        low, high = (factors["object_color"] - 0.6).clamp(min=0), (factors["object_color"] - 0.4).clamp(max=0.4)
        first = torch.lerp(low, high, torch.rand(n, 3, generator=generator))
        second = (first + uniform(-0.15, 0.15, (n, 3), generator)).clamp(0, 1)
        look = ("background", "angle", "frequency", "phase", "texture")
        return factors | {key: new[key] for key in look} | {"background_color": torch.stack([first, second], 1)}
    keys = ("light_angle", "light_strength", "exposure") if name == "illumination" else (name,)
    return factors | {key: new[key] for key in keys}


def render_scenes(factors, shapes, size, generator):
    """Draws scenes from their factors, on the CPU, so that every device gets the same images.

    Returns images uint8 (N, 3, size, size), masks bool (N, size, size), boxes float (N, 4) as
    x1, y1, x2, y2 in pixels (of the visible part of the object). `generator` draws the pixel noise only.
    """
    images, masks = [], []
    grid = (torch.arange(size) + 0.5) / size
    for rows in torch.arange(len(factors["category"])).split(max(1, 2**20 // size**2)):
        f = {name: value[rows] for name, value in factors.items()}
        col = lambda name: f[name][:, None, None]
        x, y = grid[None, None, :], grid[None, :, None]

        along = lambda angle: (x - 0.5) * torch.cos(angle) + (y - 0.5) * torch.sin(angle)  # (n, size, size)
        gradient = 0.5 + along(col("angle")) * 0.7
        stripes = 0.5 + 0.5 * torch.sin(2 * math.pi * col("frequency") * along(col("angle")) + col("phase"))
        blotches = torch.sigmoid(4 * F.interpolate(f["texture"], (size, size), mode="bicubic")[:, 0])
        mix = torch.where(col("background") == 0, gradient, torch.where(col("background") == 1, stripes, blotches))
        a, b = f["background_color"].unbind(1)
        image = a[..., None, None] + mix[:, None] * (b - a)[..., None, None]

        z = torch.complex(x - col("x"), y - col("y")) * torch.exp(-1j * col("rotation"))
        rho = z.abs().clamp(min=1e-6)
        direction = power = z / rho  # e^(i theta)
        c, log_scale = (part[f["category"]] for part in shapes)
        log_r = log_scale[..., None]
        for k in range(c.shape[1]):
            power = power * direction  # e^(i (k + 2) theta)
            log_r = log_r + (c[:, k, None, None] * power).real
        mask = ((torch.exp(log_r) * col("scale") - rho) * size + 0.5).clamp(0, 1)  # one pixel of antialiasing
        image = torch.lerp(image, f["object_color"][..., None, None], mask[:, None])

        light = col("exposure") * (1 + col("light_strength") * along(col("light_angle")))
        image = image * light[:, None] + col("noise")[:, None] * torch.randn(image.shape, generator=generator)
        images.append((image.clamp(0, 1) * 255).round().to(torch.uint8))
        masks.append(mask > 0.5)
    masks = torch.cat(masks)
    boxes = torchvision.ops.masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # the edges of the last pixels, not their places
    return torch.cat(images), masks, boxes


def scenes(split="train", image_size=32, seed=0, held_out=False, details=False, shifted=False):
    """The built-in data set: an ImageSet and, with `details`, also (factors, masks, boxes) as `render_scenes`.

    `seed` is the world: its categories, its images. `split` is "train" or "test" (else ValueError): same categories, other
    images. `held_out` takes categories that the train split of the same world does not contain; `shifted`
    shows those in contexts that it does not contain either (see sample_factors).
    """
    if split not in ("train", "test"):
        raise ValueError(f"no split {split}: train or test")
    held_out = held_out or shifted
    world = "held-out" if held_out else "seen"
    n_classes, train, test = (HELD_OUT_CATEGORIES, HELD_OUT_TRAIN, HELD_OUT_TEST) if held_out else (SCENE_CATEGORIES, SCENE_TRAIN, SCENE_TEST)
    shapes = sample_shapes(n_classes, stream("shapes", world, seed))
    labels = torch.arange(n_classes).repeat(train if split == "train" else test)  # 0, 1, ..., 0, 1, ...: a prefix is balanced
    generator = stream("images", world, split, seed)
    factors = sample_factors(labels, generator, shifted)
    images, masks, boxes = render_scenes(factors, shapes, image_size, generator)
    name = "scenes-shifted" if shifted else "scenes-held-out" if held_out else "scenes"
    result = ImageSet(name, images, labels, [f"shape {i}" for i in range(n_classes)])
    return (result, factors, masks, boxes) if details else result


# -- real images

TORCHVISION_SETS = {  # name: torchvision's class; arguments of the train, validation (None: has none) and test split; metric
    "cifar10": ("CIFAR10", {"train": True}, None, {"train": False}, "top-1"),
    "cifar100": ("CIFAR100", {"train": True}, None, {"train": False}, "top-1"),
    "stl10": ("STL10", {"split": "train"}, None, {"split": "test"}, "top-1"),
    "svhn": ("SVHN", {"split": "train"}, None, {"split": "test"}, "top-1"),
    "food101": ("Food101", {"split": "train"}, None, {"split": "test"}, "top-1"),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "val"}, {"split": "test"}, "mean per class"),
    "pets": ("OxfordIIITPet", {"split": "trainval"}, None, {"split": "test"}, "mean per class"),
    "dtd": ("DTD", {"split": "train"}, {"split": "val"}, {"split": "test"}, "top-1"),
    "aircraft": ("FGVCAircraft", {"split": "train"}, {"split": "val"}, {"split": "test"}, "mean per class"),
    "cars": ("StanfordCars", {"split": "train"}, None, {"split": "test"}, "top-1"),
    "caltech101": ("Caltech101", {}, None, {}, "mean per class"),
    "sun397": ("SUN397", {}, None, {}, "top-1"),
    "voc2007": ("VOCDetection", *({"year": "2007", "image_set": name} for name in ("train", "val", "test")), "11-point mAP"),
}
IMAGES_PER_CLASS = {"caltech101": (30, math.inf), "sun397": (50, 50)}  # train and test, where torchvision has no split
SCENES = ("scenes", "scenes-held-out", "scenes-shifted")
DATA_SETS = (*SCENES, *TORCHVISION_SETS)  # names that --data takes for a data set, even if there is a folder of that name
NOT_TRAIN = ("test", "val", "valid", "validation")  # folders beside train/
SPLIT_NAMES = ("train", "training", "testing", *NOT_TRAIN)
# also some that Pillow may not read: they should be reported, not silently skipped
IMAGE_SUFFIXES = tuple(".jpg .jpeg .jfif .jp2 .png .bmp .webp .gif .tif .tiff .tga .pbm .pgm .pnm .ppm .avif .heic .heif .jxl".split())


def load_images(data, split="train", image_size=None, limit=None, seed=0, root="data", download=False, skip_bad=False, cache=None):
    """The images of `data`, one of SCENES, a name in TORCHVISION_SETS, or a folder.

    split is "train", "test" or "val"; None comes back for "val" when the data has no validation split of its own.
    A folder holds DIR/train/<class>/* with DIR/test or DIR/val beside it (if both, val is for choosing), or
    just class folders, in which case every fifth image is for testing. image_size None takes the set's own (the first
    image's short side, at most 224 px); images are scaled to that short side and centre-cropped. `limit` keeps
    the first images of the train split, one of each class in turn; `skip_bad` leaves out images that cannot be
    read; `cache` is the folder for decoded image files, see `cached`. Raises UserError when there is nothing
    to read, and when there are images that cannot be read, all of them named; ValueError for another split.
    """
    if split not in ("train", "test", "val"):
        raise ValueError(f"no split {split}: train, test or val")
    limit = limit if split == "train" else None
    if data in SCENES:
        if split == "val":
            return None
        found = scenes(split, large_enough(image_size or 32), seed, held_out=data == "scenes-held-out", shifted=data == "scenes-shifted")
        return replace(found, images=found.images[:limit], labels=found.labels[:limit])
    if cache and data not in TORCHVISION_SETS:
        not_a_class(data, {"--cache": cache})
    found = open_split(data, split, root, download)
    if found is None:
        return None
    items, labels, classes = found
    order = by_turns(labels)
    n, what = len(order[:limit]), f"reading {Path(data).name} {split}"
    if isinstance(items, list):
        paths = [items[i] for i in order.tolist()]
        images, kept = cached(paths, n, image_size, what, skip_bad, cache)
    else:  # a set that torchvision holds in memory
        lazily = [(f"{data} {split}, image {i}", lambda i=i: items[i][0]) for i in order[:n].tolist()]
        images, kept = decode(lazily, image_size, what, skip_bad)
    labels = labels[order[kept]]
    if data in TORCHVISION_SETS:
        return ImageSet(data, images, labels, classes, TORCHVISION_SETS[data][-1])
    return ImageSet(Path(data).name, images, labels, classes, files_crc32=crc32_of(data, paths[:n]))


def open_split(data, split, root, download):
    """What list_folder or open_torchvision finds: (items, labels, names of the classes), None if there is no such split."""
    if data in TORCHVISION_SETS:
        return open_torchvision(data, split, root, download)
    if not Path(data).is_dir():
        raise UserError(f"--data {data}: no such folder, and not one of {', '.join(DATA_SETS)}")
    return list_folder(Path(data), split)


def open_torchvision(data, split, root, download):
    """One split of a set of TORCHVISION_SETS, None if there is none: (items, labels, names of the classes); items are a list of
    the image files, or torchvision's data set if that holds its images in memory."""
    cls, *splits, _ = TORCHVISION_SETS[data]
    arguments = splits[["train", "val", "test"].index(split)]
    if arguments is None:
        return None
    root = os.path.expanduser(root)
    download = download and cls != "StanfordCars"  # which torchvision cannot download, and then does not read either
    if download:
        Path(root).mkdir(parents=True, exist_ok=True)
    try:
        # one process at a time downloads, also of two runs started together
        with first_process_first(), locked(Path(root) / f"{data}.lock") if download else nullcontext():
            found = getattr(torchvision.datasets, cls)(root, download=download, **arguments)
    except ModuleNotFoundError as error:
        raise UserError(f"to read {data}, torchvision needs a package that is not installed: pip install {error.name}") from None
    except (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"an archive of {data} in {root} is cut off or damaged ({error}); remove it, and what was unpacked, and get it again") from None
    except (RuntimeError, OSError, ValueError) as error:
        if "scipy" in str(error).lower():
            raise UserError(f"to read {data}, torchvision needs a package that is not installed: pip install scipy") from None
        advice = "the download failed; get it by hand" if download else "get it by hand" if cls == "StanfordCars" else "add --download"
        raise UserError(f"{data} is not in {root}: {advice}, or --root DIR ({error})") from None
    first_of = lambda *names: next((getattr(found, name) for name in names if hasattr(found, name)), None)
    files, labels = first_of("_image_files", "_images", "images"), first_of("targets", "labels", "_labels", "y")
    classes = first_of("classes", "categories")
    if cls == "StanfordCars":
        files, labels = zip(*found._samples)
    elif cls == "Caltech101":
        files = [Path(found.root, "101_ObjectCategories", found.categories[y], f"image_{i:04d}.jpg") for y, i in zip(found.y, found.index)]
    items = found if files is None else list(map(Path, files))
    if files is not None and (missing := next((file for file in items if not file.is_file()), None)):
        raise UserError(f"{data} in {root} is not whole: {missing} is missing; remove the set and get it again")
    if cls == "VOCDetection":
        truth = [read_voc_annotation(Path(file)) for file in labels]  # "targets" are annotations there
        classes = sorted({name for t in truth for name in t["names"]})
        labels = torch.zeros(len(truth), len(classes), dtype=torch.long)
        for row, t in zip(labels, truth):  # -1 first, so that one object that is not difficult decides
            for difficult, name in sorted(zip(t["difficult"], t["names"]), reverse=True):
                row[classes.index(name)] = -1 if difficult else 1
        return items, labels, classes
    labels = torch.as_tensor(labels).long()
    if data in IMAGES_PER_CLASS:  # files in the order of their names, shuffled by a seed of its own: the same for all
        train, test = IMAGES_PER_CLASS[data]
        rows = sorted(range(len(items)), key=items.__getitem__)
        shuffled = torch.tensor(rows)[torch.randperm(len(rows), generator=stream("split", data))]
        place = rank_in_class(labels[shuffled])
        kept = place < train if split == "train" else (place >= train) & (place < train + test)
        rows = shuffled[kept].tolist()
        items, labels = [items[i] for i in rows], labels[rows]
    return items, labels, list(classes or map(str, range(int(labels.max()) + 1)))


def find_images(folder):
    """The image files below a folder, by suffix, in the order of their names; hidden ones, and hidden folders, are left out, links
    to folders are followed, to each once. A link to a file that is gone is an image that cannot be read. Raises OSError for a
    folder that may not be read."""
    def stop(error):
        raise error

    found, seen = [], set()
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")  # else the disk's order would decide which link is followed
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(parent, name) for name in files if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted((p for p in found if p.is_file() or p.is_symlink()), key=lambda p: p.parts)  # on Windows too, where paths ignore case


def folders_in(folder):
    """The names of the folders in a folder, in order, without hidden ones: classes, or train, test, val; also of a link whose folder
    is gone, so that it is missed. A folder that has none holds images without labels."""
    gone = lambda d: d.is_symlink() and not d.exists() and not d.suffix
    return sorted(d.name for d in Path(folder).iterdir() if (d.is_dir() or gone(d)) and d.name[0] != ".")


def crc32_of(folder, paths):
    """A check sum of the paths relative to a folder, the same wherever the folder lies and however it is spelled."""
    above = f"{Path(folder).as_posix()}/"
    relative = lambda name: name[len(above) :] if name.startswith(above) else Path(os.path.relpath(name, folder)).as_posix()  # which is slow
    return zlib.crc32("\0".join(f"/{relative(path.as_posix())}" for path in paths).encode(errors="surrogateescape"))


def not_a_class(data, folders):
    """Raises UserError if a folder that an option names, {option: folder}, lies inside --data, where folders are classes and files images."""
    data = Path(data)
    holders = [data / name for name in ("train", *NOT_TRAIN)] if (data / "train").is_dir() else [data]
    for option, folder in folders.items():
        if any(Path(folder).resolve().is_relative_to(holder.resolve()) for holder in holders):
            raise UserError(f"{option} {folder} would lie in --data {data} and be one of its classes, or its images; "
                            "name a folder elsewhere, or run from another one")


def list_folder(folder, split, judged=True):
    """Files, labels (N,) and class names of one split of a folder of class folders (see load_images), None if it has no such
    split. judged: a train split needs a test split beside it. Raises UserError for folders that are no classes, for classes that
    only the test split has, and without an image."""
    others = [folder / name for name in NOT_TRAIN if (folder / name).is_dir()]
    has_splits = (folder / "train").is_dir()
    if has_splits and not others and judged:
        raise UserError(f"{folder} has train/ but neither test/ nor val/ beside it: the probe needs one")
    if has_splits and len({d.resolve() for d in (folder / "train", *others)}) <= len(others):
        raise UserError(f"{folder}: two of train/, {', '.join(f'{d.name}/' for d in others)} are links to one folder; a split must have its own images")
    if len(both := [f"{d.name}/" for d in others if d.name != "test"]) > 1:
        raise UserError(f"{folder} has {' and '.join(both)}: keep one of them, for validation")
    if split == "val" and len(others) < 2:
        return None
    train = folder / "train" if has_splits else folder
    top = train if split == "train" or not has_splits else others[0 if split == "test" else -1]
    classes = folders_in(train)
    if not has_splits:
        if splits := [name for name in classes if name.lower() in SPLIT_NAMES]:
            raise UserError(f"{folder} holds {', '.join(splits)}: splits must be named train/ and test/ (or val/), and no class like a split")
        if inside := [name for name in classes if (folder / name / "train").is_dir()]:
            raise UserError(f"{folder / inside[0]} holds train/ and so is no class; did you mean --data {folder / inside[0]}?")
    elif unknown := sorted(set(folders_in(top)) - set(classes)):
        raise UserError(f"{top} has classes that {train} has not: {', '.join(unknown[:5])}; rename or remove them")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = find_images(top / name) if (top / name).is_dir() else []  # test/ and val/ may lack a class: it is not judged
        if not has_splits:
            files = [p for i, p in enumerate(files) if (i % 5 == 4) == (split == "test")]
        if split == "train" and not files:
            raise UserError(f"{top / name} holds no image, and every folder there is a class; remove it, or move it elsewhere")
        paths += files
        labels += [label] * len(files)
    if not paths:
        few = split == "test" and classes and not has_splits
        advice = " (every fifth image of a class is for testing: give each five, or make train/ and test/)" if few else ""
        raise UserError(f"no images in class folders below {top}: expected {top}/<class>/<image>.jpg{advice}")
    return paths, torch.tensor(labels), classes


def unfit_for_a_probe(n, classes, val):
    """In words, what keeps a probe from n training images of these classes; "" if nothing does. val: the validation images, or None."""
    if len(classes) < 2:
        return f"one class only, {classes[0]}"
    return f"{n} training images, and a probe needs 5 or more" if n < 5 and val is None else ""


def can_judge(folder):
    """Whether a run on a list of pairs can be judged on the folder of its images: class folders, two or more, with a test split
    and images enough for a probe.

    A list needs only the paths, so other folders are no mistake there; a note says what is wrong with class folders.
    """
    folder = Path(folder)
    if not folders_in(folder):
        return False
    try:
        _, (train, _, classes), val = (list_folder(folder, split) for split in ("test", "train", "val"))  # raises what is wrong with it
        if unfit := unfit_for_a_probe(len(train), classes, val):
            raise UserError(f"it has {unfit}")
    except UserError as error:
        print(f"note: the run will not be judged on {folder}: {error}")
        return False
    return True


class BadImage(UserError):
    """An image that cannot be read: which and why."""


Turn = Image.Transpose
TURNS = {2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE, 6: Turn.ROTATE_270,
         7: Turn.TRANSVERSE, 8: Turn.ROTATE_90}  # what makes an image of each EXIF orientation upright


def open_image(item):
    """A file, or (a name, a function that opens the image), as an upright RGB image: 16 bits become 8, transparent areas white.
    Raises BadImage, also for pixels whose range is not known: floating-point numbers, integers above 65535."""
    # not by its name: Pillow maps some files into memory, and turns those wrongly
    name, opened = item if isinstance(item, tuple) else (item, lambda: Image.open(io.BytesIO(item.read_bytes())))
    try:
        image = opened()
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, whose range is not known")
        image.load()
        turn = None
        with suppress(Exception):  # a damaged EXIF block is no damage to the pixels; ImageOps.exif_transpose refuses some odd tags
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        image = image.transpose(turn) if turn is not None else image
        if image.mode == "I" and image.getextrema()[1] > 65535:
            raise ValueError("its pixels are integers of more than 16 bits, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits: PIL would cut them off at 255
            pixels = np.asarray(image).clip(0, 65535)
            image = Image.fromarray((pixels if pixels.max() < 256 else pixels // 256).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        raise BadImage(f"{name}: not an image, or of a kind that Pillow cannot read") from None
    except Exception as error:  # broken files raise whatever their bytes lead the decoder to
        raise BadImage(f"{name}: {error}") from None


def read_each(of, paths):
    """of(image) of each image file, or in words why it cannot be read."""
    found = []
    for path in paths:
        try:
            found.append(of(open_image(path)))
        except BadImage as error:
            found.append(str(error))
    return found


def natural_size(items):
    """The side of the images unless it is given: the short side of the first one that can be read, at most 224 pixels."""
    for item in items:
        with suppress(BadImage):
            return min(224, *open_image(item).size)
    return 8  # there is none, which decoding will report


def large_enough(image_size):
    """The side of the images. Raises UserError for less than 8 pixels."""
    if image_size < 8:
        raise UserError(f"images of {image_size} px: use 8 px or more, see --image-size")
    return image_size


def list_bad(reasons, n):
    """One line that names the images, some of n, that cannot be read."""
    return f"{len(reasons)} of {n} images cannot be read: {' | '.join(reasons)}"


def tell_bad(reasons, n, skip_bad):
    """With `skip_bad` prints which of n images cannot be read; without it, or if all cannot, raises UserError."""
    if not reasons:
        return
    if not skip_bad or len(reasons) == n:
        raise UserError(f"{list_bad(reasons, n)}; repair or remove them, or, unless all are bad, leave them out with --skip-bad")
    print(f"left out: {list_bad(reasons, n)}")


def decode(items, image_size, what, skip_bad=False):
    """Reads images (see open_image): (uint8 tensor (m, 3, image_size, image_size), their places (m,) among the items).

    m is smaller than their number only with `skip_bad`; otherwise raises UserError that lists every image that cannot be read.
    """
    image_size = large_enough(image_size or natural_size(items))
    out = torch.empty(len(items), 3, image_size, image_size, dtype=torch.uint8)
    kept, bad, progress = [], [], Progress(what, len(items))
    for i, item in enumerate(items):
        progress()
        try:
            out[len(kept)] = torch.from_numpy(fit(open_image(item), image_size))
            kept.append(i)
        except BadImage as error:
            bad.append(str(error))
    tell_bad(bad, len(items), skip_bad)
    return out[: len(kept)], torch.tensor(kept)


def fit(image, size):
    """An RGB image scaled so that its short side is `size`, and centre-cropped: uint8 (3, size, size), numpy. Crops are taken
    from that square (the papers': from the whole picture), so that an array holds all images."""
    if image.size != (size, size):  # else it would be copied for nothing, which shows at 32 px
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def cached(paths, first, image_size, what, skip_bad=False, cache=None):
    """Like `decode`, for the first `first` files of `paths`; with `cache`, a folder, each file is decoded once for all runs, and
    the places of the images kept need not be in order.

    Below `cache` lies a folder for this list of files and this size: images.bin, uint8 (N, 3, S, S), mapped into memory
    and not read into it; done.bin, a byte for each image (1: decoded); index.json, the
    paths and a fingerprint of the files' sizes and times. Several processes decode. What is there already is used; a
    killed build goes on where it stopped; a changed source is decoded anew; a finished cache without bad images may be read-only.
    Raises UserError when the disk is too full. A script that loads many images needs if __name__ == "__main__" where Python does
    not fork its processes (Linux: from Python 3.14 on).
    """
    if cache is None:
        return decode(paths[:first], image_size, what, skip_bad)
    tell_unguarded_script()  # here, as it would wait for the lock that its parent holds
    image_size = large_enough(image_size or natural_size(paths))
    names, n = list(map(os.path.abspath, paths)), len(paths)
    above = os.path.commonpath(set(map(os.path.dirname, names)))
    crc32 = zlib.crc32(repr((names, image_size)).encode())
    folder = Path(cache) / f"{Path(above).name[:50]}-{n}x{image_size}px-{crc32:08x}"
    folder.mkdir(parents=True, exist_ok=True)
    with first_process_first(), locked(folder / "lock"):  # of several processes or programs that want it, one builds, the others wait
        fingerprint = hashlib.sha256(repr(list(map(size_and_time, names))).encode()).hexdigest()
        index, lengths = folder / "index.json", {"images.bin": n * 3 * image_size**2, "done.bin": n}
        current = False
        with suppress(OSError, ValueError, LookupError, TypeError):
            whole = all((folder / name).stat().st_size == length for name, length in lengths.items())
            current = whole and json.loads(index.read_text())["fingerprint"] == fingerprint
        if not current:
            if index.exists():
                print(f"{folder}: its source has changed, or it is damaged; decoding anew")
            index.unlink(missing_ok=True)
            for name, length in lengths.items():
                (folder / name).unlink(missing_ok=True)  # a run that still maps the old file keeps it
                with open(folder / name, "wb") as file:
                    file.truncate(length)
            write_whole(index, json.dumps({"fingerprint": fingerprint, "shape": [n, 3, image_size, image_size], "paths": names}).encode())
        done = np.memmap(folder / "done.bin", np.uint8, "r")
        missing = np.flatnonzero(done[:first] != 1)
        need, free = len(missing) * 3 * image_size**2, shutil.disk_usage(folder).free
        if need > free:
            raise UserError(f"--cache {cache}: {len(missing):,} images of {image_size} px need {need / 1e6:,.1f} MB and {free / 1e6:,.1f} MB "
                            "are free; name another folder")
        if need:
            print(f"{what}: {len(missing):,} images into {folder}, {need / 1e9:.2f} GB")
        reasons = list(in_parts(functools.partial(fill_part, folder, image_size), [(row, names[row]) for row in missing.tolist()], what))
        tell_bad(reasons, first, skip_bad)
        # still locked, as a changed source would let another program replace the files
        images = mapped(folder / "images.bin", (first, 3, image_size, image_size), must_write=bool(reasons))
    good = torch.from_numpy(done[:first] == 1)
    kept = torch.arange(int(good.sum()))
    if reasons:  # the last good images fill the gaps, in memory of this process: the others need not be copied
        gaps = kept[~good[: len(kept)]]
        kept[gaps] = len(kept) + good[len(kept) :].nonzero()[:, 0]
        images[gaps] = images[kept[gaps]]
    return images[: len(kept)], kept


def size_and_time(file):
    """A file's size in bytes and when it was changed, in ns; None for a link to a file that is gone."""
    with suppress(OSError):
        return (found := os.stat(file)).st_size, found.st_mtime_ns


def mapped(file, shape, must_write=False):
    """A file of uint8 numbers as a tensor of that shape, read from the disk where it is used. What is written to it stays in
    memory. Linux refuses that for a file larger than its memory: the tensor is then read-only (must_write: UserError)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            array = np.memmap(file, np.uint8, "c", shape=shape)
        except OSError as error:
            if must_write:
                raise UserError(f"--skip-bad: {file} does not fit in memory ({error}); repair or remove the images that cannot be read") from None
            array = np.memmap(file, np.uint8, "r", shape=shape)
        return torch.from_numpy(array)


class ByParts(Dataset):
    """Images to read as a data set for DataLoader, whose batches are lists: function(part), for a part of the items."""

    def __init__(self, function, items):
        self.function, self.items = function, items

    def __len__(self):
        return len(self.items)

    def __getitems__(self, rows):
        try:
            return self.function([self.items[i] for i in rows])
        except OSError as error:  # DataLoader would raise one without its errno
            return [error]


def in_parts(function, items, what, size=64):
    """Yields what the lists function(part) hold, in order, for parts of the items, which are images to read; by several processes if
    there are so many that it pays."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # those that this process may use
    workers = min(cpus, 61, len(items) // size // 4)  # Windows takes 61 at most
    tell_unguarded_script()
    loader = DataLoader(ByParts(function, items), size, collate_fn=list, num_workers=workers if workers > 1 else 0, generator=torch.Generator())
    with interrupts_ignored():
        batches = iter(loader)  # starts the processes
    progress = Progress(what, len(items))
    for found, rows in zip(batches, loader.batch_sampler):
        if found and isinstance(found[0], OSError):
            raise found[0]
        yield from found
        progress(len(rows))


@contextmanager
def interrupts_ignored():
    """Ctrl-C is ignored here, and for good by processes that are started here: they inherit it. Only the main thread can do this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def tell_unguarded_script():
    """Raises UserError in a process of in_parts that runs the user's script again, because that has no guard and processes are not
    forked here."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError('load images under if __name__ == "__main__": the processes that decode import the script first')


def fill_part(folder, image_size, part):
    """Decodes some files, (row, name), into the arrays of `cached`: the row first, then its mark, so that a mark is never ahead of
    its image. Returns the reasons why some cannot be."""
    done, reasons = np.memmap(folder / "done.bin", np.uint8, "r+"), []
    with open(folder / "images.bin", "r+b") as images:  # a memory map would cost a page fault for every page
        for row, name in part:
            try:
                image = fit(open_image(Path(name)), image_size)
                images.seek(row * image.nbytes)
                images.write(image)
                images.flush()
                done[row] = 1
            except BadImage as error:
                reasons.append(str(error))
    return reasons


# -- images with boxes


@dataclass
class BoxSet:
    """Images with boxes, as lists over images: images (paths, or uint8 (3, H, W)); boxes float (k, 4) as x1, y1,
    x2, y2 in pixels from the image's upper left corner; labels int64 (k,), indices of classes; difficult bool (k,)."""

    name: str
    images: list
    boxes: list
    labels: list
    difficult: list
    classes: list

    def __len__(self):
        return len(self.images)

    def image(self, i):
        """Image i as uint8 (3, H, W)."""
        image = self.images[i]
        return pil_to_tensor(open_image(image)) if isinstance(image, Path) else image


def read_voc_annotation(file):
    """One Pascal VOC annotation: {"names": [...], "boxes": [[x1, y1, x2, y2]], "difficult": [bool], "size": (width, height) or None}.

    VOC counts pixels from 1 and includes the last one; here the corners are edges, counted from 0. Boxes without an area are left out.
    """
    names, boxes, difficult = [], [], []
    try:
        root = ElementTree.parse(file)
        size = tuple(float(root.findtext(f"size/{key}") or 0) for key in ("width", "height"))
        for item in root.iter("object"):
            x1, y1, x2, y2 = (float(item.find(f"bndbox/{key}").text) for key in ("xmin", "ymin", "xmax", "ymax"))
            name = (item.findtext("name") or "").strip()
            if not name or not all(map(math.isfinite, (x1, y1, x2, y2))):
                raise ValueError("an object without a name, or a box that is not of finite numbers")
            x1, y1 = max(x1 - 1, 0), max(y1 - 1, 0)
            if x2 > x1 and y2 > y1:
                names.append(name)
                boxes.append([x1, y1, x2, y2])
                difficult.append((item.findtext("difficult") or "0").strip() == "1")
    except (OSError, ElementTree.ParseError, LookupError, AttributeError, ValueError) as error:  # LookupError: no such encoding
        raise UserError(f"cannot read the annotation {file}: {error}") from None
    return {"names": names, "boxes": boxes, "difficult": difficult, "size": size if all(size) else None}


def load_boxes(data, seed=0, image_size=128):
    """(train, test) BoxSets of `data`: ["scenes"] (see detection_scenes) or a list of folders in the layout of Pascal VOC.

    Each folder is VOC2007 or any other with Annotations/, JPEGImages/ and ImageSets/Main/, or one that holds such
    folders at most two levels down. Training uses trainval.txt (without that train.txt, and not val.txt), testing test.txt; a
    folder without test.txt serves for training only, all of it if it has no list, or val.txt alone. If no folder has one:
    train.txt and val.txt; without those every fifth of all images is for testing. Raises UserError for missing or unreadable
    files, for boxes outside of their image, for images too thin to be scaled to image_size, for images listed for both, and for a
    folder that is there twice.
    """
    if data == ["scenes"]:
        return tuple(detection_scenes(split, n, image_size, seed) for split, n in (("train", 400), ("test", 200)))
    if "scenes" in data:
        raise UserError(f"--data {' '.join(data)}: scenes cannot be joined with folders; name one or the other")
    folders = []
    for folder in map(Path, data):
        found = [p.parent for level in ("", "*/", "*/*/") for p in sorted(folder.glob(level + "Annotations")) if p.is_dir()]
        if not found:
            raise UserError(f"--data {folder}: neither scenes nor a folder of the VOC layout (no Annotations/ in it)")
        folders += found
    if len({f.resolve() for f in folders}) < len(folders):
        raise UserError(f"--data {' '.join(data)}: one folder is named twice, or lies in another; name each once")
    listed = lambda name: {f: file for f in folders if (file := f / "ImageSets" / "Main" / f"{name}.txt").is_file()}
    lists = {name: listed(name) for name in ("train", "trainval", "val", "test")}

    def read(files):
        found = []
        for f, file in files.items():
            try:
                lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                # the first word: some lists, of one class, tell after it whether the image shows that
                found += [(f, line if (f / "Annotations" / f"{line}.xml").is_file() else line.split()[0]) for line in lines]
            except UnicodeDecodeError as error:
                raise UserError(f"{file} cannot be read ({error}); save it in UTF-8") from None
        return found

    annotated = lambda folders: [(f, p.stem) for f in folders for p in sorted((f / "Annotations").glob("[!.]*.xml"))]
    without = lambda *names: annotated(f for f in folders if not any(f in lists[name] for name in names))
    if lists["test"]:
        train, test = read(lists["train"] | lists["trainval"]) + without("train", "trainval", "test"), read(lists["test"])
    elif lists["val"] and lists["train"]:
        neither = {f: file for f, file in lists["trainval"].items() if f not in lists["train"] | lists["val"]}
        train, test = read(lists["train"] | neither) + without(*lists), read(lists["val"])
    else:
        names = annotated(folders)
        train, test = [n for i, n in enumerate(names) if i % 5 != 4], names[4::5]
    if both := set(train) & set(test):
        f, name = min(both)
        raise UserError(f"{len(both)} image(s) are listed for training and for testing, such as {name} in {f}; list each for one of them")
    truth = [[read_voc_annotation(f / "Annotations" / f"{name}.xml") for f, name in part] for part in (train, test)]
    classes = sorted({name for part in truth for t in part for name in t["names"]})
    clear = lambda part: any(not all(t["difficult"]) for t in part)
    if not all(map(clear, truth)):
        raise UserError(f"--data {' '.join(data)}: no boxes to train on and test with below {folders[0]} (but for difficult ones)")
    sets = []
    for part, found in zip((train, test), truth):
        images = [f / "JPEGImages" / f"{name}.jpg" for f, name in part]
        if missing := [str(path) for path in images if not path.is_file()]:
            raise UserError(f"{len(missing)} image(s) of the annotations are missing: {', '.join(missing[:3])}")
        sizes = list(in_parts(functools.partial(read_each, operator.attrgetter("size")), images, "checking images"))
        if bad := [said for said in sizes if isinstance(said, str)]:  # report it before the training
            raise UserError(f"{list_bad(bad, len(images))}; repair or remove them")
        for image, t, (width, height) in zip(images, found, sizes):
            turned = width != height and t["size"] == (height, width)
            # at their far ends by a pixel or two at most, as some count them
            if turned or any(x1 >= width or y1 >= height or x2 > width + 2 or y2 > height + 2 for x1, y1, x2, y2 in t["boxes"]):
                raise UserError(f"{image} is {width} x {height} px when upright, and its annotation tells of another size, or has boxes outside: "
                                "was it resized or turned since? Bring both in line")
            if min(width, height) * round(image_size * 5 / 3) < max(width, height):  # the longest side that a detector takes
                raise UserError(f"{image} is {width} x {height} px: too thin, at --size {image_size} less than a pixel of it would be left; crop or remove it")
        sets.append(BoxSet(
            "+".join(Path(d).resolve().name for d in data), images,
            [torch.tensor(t["boxes"]).reshape(-1, 4) for t in found],
            [torch.tensor([classes.index(n) for n in t["names"]], dtype=torch.long) for t in found],
            [torch.tensor(t["difficult"], dtype=torch.bool) for t in found], classes))
    return tuple(sets)


def detection_scenes(split, n, image_size=128, seed=0, categories=5):
    """Scenes with one to four objects of categories that pretraining does not show: a BoxSet of n images.

    The first object is drawn with its context; up to three others, in the same context and noise, are pasted with
    probability 0.6 each, unless their boxes overlap.
    """
    generator = stream("detection", split, seed)
    shapes = sample_shapes(categories, stream("shapes", "detection", seed))
    category = lambda: torch.randint(categories, (n,), generator=generator)
    context, noise = sample_factors(category(), generator), generator.get_state()
    boxes, labels = [[] for _ in range(n)], [[] for _ in range(n)]
    for place in range(4):
        new = sample_factors(category(), generator)
        scale = uniform(0.1, 0.18, n, generator)
        drawn = context | {"category": new["category"], "rotation": new["rotation"], "scale": scale,
                           "x": uniform(0.15, 0.85, n, generator), "y": uniform(0.15, 0.85, n, generator),
                           "object_color": context["background_color"][:, 0] + new["object_color"] - new["background_color"][:, 0]}
        rendered, masks, found = render_scenes(drawn, shapes, image_size, torch.Generator().set_state(noise))
        wanted = torch.rand(n, generator=generator) < (0.6 if place else 1)
        if place == 0:
            images = rendered
        for i in wanted.nonzero()[:, 0].tolist():
            if not boxes[i] or torchvision.ops.box_iou(found[i : i + 1], torch.stack(boxes[i])).sum() == 0:
                images[i] = torch.where(masks[i], rendered[i], images[i])
                boxes[i].append(found[i])
                labels[i].append(int(drawn["category"][i]))
    return BoxSet("scenes", list(images), [torch.stack(b) for b in boxes], [torch.tensor(v) for v in labels],
                  [torch.zeros(len(v), dtype=torch.bool) for v in labels], [f"shape {i}" for i in range(categories)])


# -------------------------------------------------------------------------------- for every program


def run_cli(main):
    """Calls `main()`; a UserError, a full disk, a path that cannot be written to or too little memory becomes one line on
    stderr and exit status 2, Ctrl-C exit status 130; a bug keeps its traceback."""
    if hasattr(sys.stdout, "reconfigure"):
        # a file's name may hold what the terminal has no sign for; and lines should be seen at once, in a log file too
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
        return
    except UserError as error:
        mistake = error
    except BrokenPipeError:  # what reads the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at its end
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            mistake = "the disk, or what you may use of it, is full; make room. What is written is kept"
        elif error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR,
                                                errno.ENAMETOOLONG, errno.ELOOP):
            mistake = f"{error.filename}: {error.strerror.lower()}; name another file or folder"
        else:
            raise
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            of_gpu = isinstance(error, torch.OutOfMemoryError) or "CU" in str(error)  # of CUDA, cuDNN or cuBLAS
            mistake = (f"out of GPU memory ({str(error).splitlines()[0]}): try a smaller batch, smaller images, another --device, or evaluate "
                       "later, on the CPU; what is written is kept" if of_gpu else
                       "out of memory: try a smaller batch, smaller images or smaller layers; what is written is kept")
        elif "DataLoader worker" in str(error):
            mistake = "a process that reads images was killed, perhaps for want of memory; start again: what is in the cache is kept"
        elif any(sign in str(error) for sign in ("InvalidCxxCompiler", "Failed to find C compiler", "Python.h", "CalledProcessError")):
            mistake = ("--compile needs a C++ compiler and the headers of Python, and torch does not find both: install them (g++, python3-dev), "
                       "or go on without --compile, with --resume if the run's folder is there")
        else:
            raise
    except KeyboardInterrupt:
        print("\ninterrupted; what was written is kept, and --resume continues a run from its last checkpoint", file=sys.stderr)
        sys.exit(130)
    print(f"{Path(sys.argv[0]).name}: error: {mistake}", file=sys.stderr)
    sys.exit(2)


def out_of_memory(error):
    """Whether an exception says that memory does not suffice, the computer's or a GPU's; torch's are RuntimeErrors."""
    said = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in said)


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is a UserError: one line instead of the whole usage."""

    def error(self, message):
        raise UserError(f"{message}; --help lists the options")


def number(kind, fits, words):
    """A type for argparse: an int or a float that fits, in words."""

    def parse_number(text):
        if not fits(kind(text)):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return kind(text)

    parse_number.__name__ = kind.__name__  # argparse names it: invalid int value
    return parse_number


positive_int = number(int, lambda value: value >= 1, "1 or more")
seed_int = number(int, lambda value: 0 <= value < 2**63, "between 0 and 2**63 - 1")
positive_float = number(float, lambda value: 0 < value < math.inf, "above 0")
nonnegative_float = number(float, lambda value: 0 <= value < math.inf, "0 or more")
fraction = number(float, lambda value: 0 <= value <= 1, "between 0 and 1")


def named(data):
    """The name of a data set or a folder, without ./ and a last slash; ., .. and ./cifar10, which is that folder and not the data set,
    as absolute paths. A type for argparse."""
    if not data:
        raise argparse.ArgumentTypeError("an empty name; is a variable of the shell not set?")
    path = Path(data)
    if path.name in ("", "..") or str(path) != data and str(path) in DATA_SETS:
        return os.path.abspath(data)
    return str(path)


def default_help(recipes):
    """A function from an option's name to the part of its help that shows its default on each kind of data."""
    told = lambda value: " ".join(map(str, value)) if isinstance(value, list) else value
    return lambda option: f"[{told(recipes['scenes'][option])} on scenes, {told(recipes['photographs'][option])} on photographs]"


def parse(parser, argv, recipes):
    """Parses twice: once to see which data is meant, then with that data's recipe as the defaults. Raises UserError for
    options that contradict each other."""
    args = parser.parse_args(argv)
    if "optimizer" in args and args.optimizer == "lars" and None in (args.lr, args.weight_decay):
        raise UserError("--optimizer lars: give --lr and --weight-decay too, as the defaults are those of SGD (papers: 0.2 to 1, and 1e-6 to 1e-4)")
    is_list = args.pairs not in ARMS
    on_scenes = args.data in (None, "scenes") and not is_list
    recipe = recipes["scenes"] | {"data": "scenes"} if on_scenes else dict(recipes["photographs"])
    if "warmup_epochs" in recipe:
        recipe["warmup_epochs"] = min(recipe["warmup_epochs"], (args.epochs or recipe["epochs"]) / 10)
    parser.set_defaults(**recipe)
    args = parser.parse_args(argv)
    off = [name.strip() for name in args.without.split(",") if name.strip()]
    Augmentation().without(off)  # tells unknown names
    args.without = ",".join(name for name in Augmentation.SWITCHES if name in off)  # each once, in one order
    if args.jitter[3] > 0.5:
        raise UserError(f"--jitter: the hue's strength, {args.jitter[3]}, is more than half a turn, 0.5")
    if "warmup_epochs" in args and args.warmup_epochs >= args.epochs:
        raise UserError(f"--warmup-epochs {args.warmup_epochs:g} of --epochs {args.epochs}: the learning rate would never fall; warm up for less")
    if args.arm == "augmented" and not is_list:
        raise UserError(f"--pairs {args.pairs} --arm augmented: --arm is for a list, FILE.csv; did you mean --pairs augmented?")
    if "augmented" in (args.pairs, args.arm) and (args.false_pairs or args.semantic_share < 1):
        raise UserError("--false-pairs and --semantic-share change semantic pairs: use them with --pairs semantic or a list's semantic arm")
    return args


def write_whole(file, content):
    """Writes bytes to a file, whole or not at all: when the disk is full what was there stays, and nothing is left beside it."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(file, busy=None):
    """Holds a lock on a file, so that one process at a time is inside; released when the process dies. Prints a line if it has to
    wait. No lock on Windows, on file systems without locks, or if it cannot be opened. busy: a message for a UserError instead of
    waiting; this process may then lock it several times."""
    with ExitStack() as stack:
        for mode in "wr":  # another user's file may only be read, which suffices on most file systems
            with suppress(OSError):
                opened = stack.enter_context(open(file, mode))
                if fcntl:
                    try:
                        (fcntl.lockf if busy else fcntl.flock)(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except (BlockingIOError, PermissionError):
                        if busy:
                            raise UserError(busy) from None
                        print(f"waiting for another program, which holds {file}")
                        fcntl.flock(opened, fcntl.LOCK_EX)
                break
        yield


@contextmanager
def first_process_first():
    """Under torchrun process 0 runs the block alone first, for example to download; the others follow when it is done."""
    rank, world = rank_and_world()
    if rank:
        dist.barrier()
    try:
        yield
    finally:  # after a mistake too, which the others then meet themselves
        if world > 1 and not rank:
            dist.barrier()


class Progress:
    """Counts what is done, and prints `what: done of total, time left` at most every two seconds; silent when the work is short."""

    def __init__(self, what, total):
        self.what, self.total, self.done, self.first = what, total, 0, None
        self.printed = time.time()

    def __call__(self, n=1):
        self.done, now = self.done + n, time.time()
        self.first = self.first or (now, self.done)  # what came before (processes that start, an earlier build) says nothing about the rate
        since, before = self.first
        if now - self.printed > 2:
            self.printed = now
            left = f", {(now - since) * (self.total - self.done) / (self.done - before):.0f} s left" if self.done > before else ""
            print(f"{self.what}: {self.done:,} of {self.total:,}{left}")


# ----------------------------------------------------------------------------------------- curation


def nearest_partners(h, labels=None, forbidden=None, tries=5, at_once=2**27):
    """For each image the nearest other one by cosine similarity of features h (N, d): (N,).

    labels (N,): only images of the same class. forbidden(i, j) -> bool (n,): partners to reject, such as near-identical
    images; the first of the `tries` nearest that is not rejected is taken, else the nearest. `at_once` similarities are held
    in memory. Raises ValueError for a class with one image.
    """
    labels = torch.zeros(len(h), dtype=torch.long) if labels is None else labels
    by_class, n_c, _ = sorted_by_class(labels)
    if (n_c == 1).any():
        raise ValueError("a class with one image has no partner for it")
    partner, progress = torch.empty(len(h), dtype=torch.long), Progress("nearest neighbours", len(h))
    for members in by_class.split(labels.unique(return_counts=True)[1].tolist()):  # a class at a time: its square, not that of all
        # with the usual eps, 1e-12, features shorter than that would stay shorter than 1
        among, step = F.normalize(h[members], dim=1, eps=torch.finfo(h.dtype).tiny), max(1, at_once // len(members))
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            similarity = among[start : start + step] @ among.T
            similarity.diagonal(start).fill_(-math.inf)  # of an image with itself
            nearest = members[similarity.topk(min(tries, len(members) - 1), dim=1).indices.cpu()]  # (n, tries)
            if forbidden is not None:
                bad = torch.stack([forbidden(rows, column) for column in nearest.T], 1)
                nearest = nearest.gather(1, bad.int().argmin(1, keepdim=True))
            partner[rows] = nearest[:, 0]
            progress(len(rows))
    return partner


def thumbnails(images):
    """Gray thumbnails (N, 64) float in 0 ... 255 of images uint8 (N, 3, S, S), by area averages."""
    found, progress = [], Progress("thumbnails", len(images))
    for part in images.split(512):
        found.append(F.adaptive_avg_pool2d(luma(part.float()), 8).flatten(1))
        progress(len(part))
    return torch.cat(found)


def thumbnail_of(image):
    """The thumbnail (64,), numpy, of an RGB image."""
    return thumbnails(torch.from_numpy(fit(image, 64))[None])[0].numpy()


read_thumbnails = functools.partial(read_each, thumbnail_of)


def near_identical(a, b, tolerance=4.0):
    """Whether thumbnails (..., 64) differ nowhere by more than `tolerance` of 255: bool (...)."""
    return (a - b).abs().amax(-1) <= tolerance


def images_to_pair(folder):
    """Files, labels (N,) and class names of what `propose` pairs: the train split of class folders, or images without classes.
    Raises UserError where there are neither."""
    if folders_in(folder):
        return list_folder(folder, "train", judged=False)
    paths = find_images(folder)
    if len(paths) < 2:
        raise UserError(f"--data {folder}: neither class folders nor two images in it")
    return paths, torch.zeros(len(paths), dtype=torch.long), [""]  # all of one class


def propose(folder, by="random", count=None, backbone=None, image_size=None, seed=0, ignore_labels=False, skip_bad=False, cache=None):
    """Proposes a partner for each image of a folder: rows {"image_a", "image_b", "category"} (paths in the folder).

    The train split of a folder of class folders, or a folder of images without classes. by "random": uniform over the
    other images of the class; "features": the nearest neighbour in the features of `backbone` that is not
    near-identical, within the class; with `ignore_labels`, or without classes, among all images, and then some are
    false pairs. In random order, but the classes in turn; `count` keeps the first. `cache` as in load_images; by
    "random" `image_size` is not used. Raises UserError for a class with one image and for names that a list cannot hold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    paths, labels, classes = images_to_pair(folder)
    if by == "random" and classes == [""]:
        raise UserError(f"--data {folder} has no class folders: only --by features can propose partners there")
    if len(classes) == 1 and classes != [""] and not ignore_labels:
        raise UserError(f"--data {folder} has one class only, {classes[0]}; is it the folder of the class folders? (--by features --ignore-labels "
                        "pairs images whatever their class)")
    turns = by_turns(labels)
    paths, labels = [paths[i] for i in turns.tolist()], labels[turns]
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        if name != name.encode(errors="replace").decode() or "\r" in name:
            raise UserError(f"{folder}: the file name {name!r} is not UTF-8, as a list must be, or breaks its lines; rename it")

    def refuse_lonely_classes(labels):
        if not ignore_labels and (lonely := lonely_classes(labels, classes)):
            raise UserError(f"--data {folder}: {lonely}; add images or remove the class")

    refuse_lonely_classes(labels)
    image_size = 8 if by == "random" else image_size  # random: read to find the bad ones
    images, kept = cached(paths, len(paths), image_size, f"reading {folder.name}", skip_bad, cache)
    names, labels = [names[i] for i in kept.tolist()], labels[kept]
    if len(names) < 2:
        raise UserError(f"--data {folder}: only one of its images can be read")
    refuse_lonely_classes(labels)
    if by == "random":
        partner = semantic_partners(labels, stream("propose", seed))
    else:
        import evaluate  # it imports this file, so not at the top

        small = thumbnails(images)
        h = evaluate.features(backbone, images)
        partner = nearest_partners(h, None if ignore_labels else labels, lambda i, j: near_identical(small[i], small[j]))
        if copies := int(near_identical(small, small[partner]).sum()):
            print(f"note: for {copies:,} images the five nearest are all near-identical; `check` will name the pairs")
    order = torch.randperm(len(names), generator=stream("propose order", seed))
    order = order[rank_in_class(labels[order]).argsort(stable=True)][:count]  # one of each class, in random order, then the next
    return [{"image_a": names[i], "image_b": names[partner[i]], "category": classes[labels[i]]} for i in order.tolist()]


@picture()
def write_sheets(stem, rows, folder, per_sheet=50, columns=5):
    """Contact sheets STEM-001.png ...: the pairs of the rows of `propose` side by side under their number and category."""
    import matplotlib.pyplot as plt

    files, progress = [], Progress("contact sheets, pairs", len(rows))
    for first in range(0, len(rows), per_sheet):
        part = rows[first : first + per_sheet]
        lines = math.ceil(len(part) / columns)
        figure, axes = plt.subplots(lines, columns, figsize=(2.4 * columns, 1.4 * lines), squeeze=False,
                                    subplot_kw={"frameon": False, "xticks": [], "yticks": []})
        for position, (row, axis) in enumerate(zip(part, axes.flat), start=first + 1):
            a, b = (open_image(Path(folder, row[column])) for column in ("image_a", "image_b"))
            side = min(112, *a.size, *b.size)  # sharp, whatever size a backbone takes
            gap = np.full((3, side, max(1, side // 16)), 255, np.uint8)
            axis.imshow(np.concatenate([fit(a, side), gap, fit(b, side)], 2).transpose(1, 2, 0), interpolation="nearest")
            category, other = row["category"], category_of(Path(folder, row["image_b"]), folder)
            said = f"{category} / {other}" if category and other not in ("", category) else category  # of two: a false pair
            axis.set_title(f"{position}  {said[:24]}", fontsize=7, pad=2)
        figure.tight_layout(pad=0.4)
        files.append(Path(f"{stem}-{first // per_sheet + 1:03d}.png"))
        figure.savefig(files[-1], dpi=100)
        plt.close(figure)
        progress(len(part))
    return files


def category_of(path, folder):
    """The class folder of an image: the first below `folder`, or below its train, test, val; "" if it lies in neither, or beside
    those."""
    path, folder = (Path(os.path.abspath(p)) for p in (path, folder))
    parts = path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else ()
    if parts and parts[0] in ("train", *NOT_TRAIN):
        parts = parts[1:]
    elif (folder / "train").is_dir():
        parts = ()
    return parts[0].strip() if parts else ""  # as a list's categories are read


def check(file, folder=None):
    """Checks a pair list: (lines of the report, mistakes). A mistake is an image that is missing, cannot be read,
    is given two categories, or is paired with itself or a near-identical one; and, where categories are known, a pair of two. A
    script that checks a long list needs if __name__ == "__main__", as several processes read the images."""
    table, folder = read_rows(file, folder)
    rows = [row for row in table if row["keep"]]
    report, mistakes, seen, stated = [f"{file}: {len(table)} rows, {len(rows)} kept"], [], {}, {}
    if not rows:
        return report, [f"{file}: no pairs in it"]
    for row in rows:
        for column in ("image_a", "image_b"):
            seen.setdefault(row[column], []).append(row["line"])
        if row["category"] and stated.setdefault(row["image_a"], row["category"]) != row["category"]:
            mistakes.append(f"line {row['line']}: {row['image_a']} is of {row['category']}, and of {stated[row['image_a']]} in another row")
    if not any(path.is_file() for path in seen):
        return report, [f"{file}: none of its images is there, such as {next(iter(seen))}: is --data the folder that its paths are relative to?"]
    small = {}
    for path, thumbnail in zip(seen, in_parts(read_thumbnails, list(seen), "reading images")):
        if isinstance(thumbnail, str):
            mistakes.append(f"line {seen[path][0]}: " + (f"{thumbnail}: cannot be read" if path.is_file() else f"{path} is missing"))
        else:
            small[path] = torch.from_numpy(thumbnail)
    category, false, known = categories_of(rows, folder), [], 0
    if len(set(category.values()) - {""}) < 2 and all(row["category"] in ("", category_of(row["image_a"], folder)) for row in rows):
        category = dict.fromkeys(category, "")  # one folder holds all: it may be the one above the classes
    for row in rows:
        a, b = row["image_a"], row["image_b"]
        both = a in small and b in small
        if a == b:
            mistakes.append(f"line {row['line']}: {a} is paired with itself")
        elif both and near_identical(small[a], small[b]):
            mistakes.append(f"line {row['line']}: {a} and {b} are identical, or nearly")
        if both and category[a] and category[b]:
            known += 1
            if category[a] != category[b]:
                false.append(f"line {row['line']}: {a} and {b} are of two categories, {category[a]} and {category[b]}")
    count = Counter(category[row["image_a"]] for row in rows)
    without = count.pop("", 0)
    if count:
        low, high = min(count, key=count.get), max(count, key=count.get)
        spread = f"{count[low]} in each" if count[low] == count[high] else f"{count[low]} ({low}) to {count[high]} ({high})"
        report.append(f"classes: {len(count)}; pairs in a class: {spread}" + (f"; {without} without a category" if without else ""))
    uses = [len(set(lines)) for lines in seen.values()]
    report.append(f"images: {len(seen)}; {sum(n > 1 for n in uses)} in more than one row, at most {max(uses)} rows")
    rate = f"{len(false)} of {known} ({len(false) / known:.1%})" if known else "not known, as list and class folders tell no two categories"
    report.append(f"false pairs: {rate}")
    return report, mistakes + false


def main():
    parser = Parser(description="Make and check a list of semantic pairs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    said = "Writes a list of pairs (image_a, image_b, category, keep) and contact sheets. Drop wrong rows, or set keep to 0."
    add = commands.add_parser("propose", help="propose pairs, with contact sheets to look at", description=said).add_argument
    add("--data", required=True, help="a folder of class folders, with train/ or without; or, with --by features, of images")
    add("--out", type=named, default="pairs.csv", help="the list; contact sheets are written beside it [pairs.csv]")
    add("--count", type=positive_int, help="number of pairs, balanced over the classes [one for each image]")
    add("--show", type=positive_int, help="contact sheets of the first N pairs only, a balanced sample [all]")
    add("--by", default="random", choices=["random", "features"], help="random: within the class; features: the nearest neighbour in a backbone's features [random]")
    add("--backbone-file", help="with --by features: a run folder's backbone.pt, or weights with torchvision's key names")
    add("--backbone", default="resnet18", help="its architecture [resnet18]")
    add("--ignore-labels", action="store_true", help="with --by features: neighbours of any class; some pairs are false then")
    add("--image-size", type=positive_int, help="with --by features: side of the images in pixels, which decides a ResNet's stem [the run's if the file lies in a run folder, else the first image's, at most 224]")
    add("--skip-bad", action="store_true", help="leave out images that cannot be read")
    add("--cache", type=named, default="cache", help="folder for the decoded images, kept for later [cache]")
    add("--seed", type=seed_int, default=0, help="random seed of the partners and the order [0]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    add = commands.add_parser("check", help="check a pair list; exit status 1 if something is wrong").add_argument
    add("list", help="FILE.csv with columns image_a,image_b and, optionally, category and keep")
    add("--data", help="the folder that its paths are relative to [the list's own]")
    args = parser.parse_args()

    if args.command == "check":
        report, mistakes = check(args.list, args.data)
        print("\n".join(report + mistakes + [f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)}" if mistakes else "nothing wrong"]))
        sys.exit(1 if mistakes else 0)
    out = Path(args.out)
    stem = out.with_suffix("") if out.suffix == ".csv" else out
    for there in (out, *out.parent.glob(f"{glob.escape(stem.name)}-[0-9][0-9][0-9].png")):
        if there.exists() or there.is_symlink():
            raise UserError(f"{there} exists and is not overwritten; choose another --out")
    folder = Path(args.data)
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder")
    not_a_class(args.data, {"--cache": args.cache})
    if not (folders_in(folder) and out.parent.resolve() == folder.resolve()):  # a list beside the classes is none of them
        not_a_class(args.data, {"--out": out.parent})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()  # fail now if the folder cannot be written to
    out.unlink()
    backbone = None
    if args.by == "features":
        import evaluate

        if not args.backbone_file:
            raise UserError("--by features needs --backbone-file FILE (and --backbone NAME)")
        args.image_size = args.image_size or evaluate.trained_size(args.backbone_file) or natural_size(images_to_pair(folder)[0])
        backbone, _ = evaluate.build_backbone(args.backbone, args.image_size)
        evaluate.load_weights(backbone, args.backbone_file)
        backbone.to(evaluate.pick_device(args.device))
    elif args.backbone_file:
        raise UserError("--backbone-file needs --by features: random partners use no backbone")
    elif args.ignore_labels:
        raise UserError("--ignore-labels needs --by features: random partners of any class are no semantic pairs")
    rows = propose(args.data, args.by, args.count, backbone, args.image_size, args.seed, args.ignore_labels, args.skip_bad, args.cache)
    with open(out, "x", newline="", encoding="utf-8") as file:  # x: not what another program has written meanwhile
        try:
            table = csv.DictWriter(file, ["number", "image_a", "image_b", "category", "keep"], lineterminator="\n")
            table.writeheader()
            table.writerows({"number": i, **row, "keep": 1} for i, row in enumerate(rows, start=1))
            file.flush()
        except OSError:  # the disk is full: a list cut off would look whole
            out.unlink()
            raise
    print(f"{out}: {len(rows):,} pairs; contact sheets follow")
    sheets = write_sheets(stem, rows[: args.show], args.data)
    last = f" ... {sheets[-1].name}" if len(sheets) > 1 else ""
    data = f"./{args.data}" if args.data in DATA_SETS else args.data
    listed, cache = [str(out), "--data", data], ["--cache", args.cache] * (args.cache != "cache")
    print(f"Look at {sheets[0]}{last}, set keep to 0 where a pair is wrong, then\n"
          f"    python pairs.py check {shlex.join(listed)}\n    python simclr.py --pairs {shlex.join(listed + cache)}")


if __name__ == "__main__":
    import pairs  # this file again, under the name that evaluate.py knows it by: there must be one UserError

    pairs.run_cli(pairs.main)
