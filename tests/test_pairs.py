"""Pairs: the scenes, folders, partners, lists, and the augmentation against torchvision."""

import csv
import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from matplotlib.axes import Axes
from PIL import Image, ImageOps

import evaluate
import pairs
import simclr
from pairs import UserError
from test_scripts import call_here, printed


def photos(n=6, size=24, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pool(labels, size=8):
    labels = torch.as_tensor(labels)
    return pairs.ImageSet("pool", photos(len(labels), size), labels, [f"c{i}" for i in range(int(labels.max()) + 1)])


# -- scenes


def test_scenes_are_a_function_of_the_seed_and_categories_are_not_shared():
    a, b, other = pairs.scenes(seed=3), pairs.scenes(seed=3), pairs.scenes(seed=4)
    assert torch.equal(a.images, b.images) and not torch.equal(a.images, other.images)
    assert a.images.shape == (4096, 3, 32, 32) and torch.equal(torch.bincount(a.labels), torch.full((256,), 16))
    seen = pairs.sample_shapes(256, pairs.stream("shapes", "seen", 3))[0]
    held = pairs.sample_shapes(20, pairs.stream("shapes", "held-out", 3))[0]
    assert (seen[:, None] - held[None]).abs().sum(2).min() > 0.05  # no held-out shape is a seen one
    assert torch.equal(pairs.load_images("scenes", "train", 8, seed=3).images, pairs.scenes("train", 8, seed=3).images)


def test_scenes_are_those_of_the_published_results():
    """Mean, deviation, roughness and spread of mean colours, of uint8 images: what results/ was measured on. A change of these
    numbers makes all figures on scenes obsolete."""
    def statistics(images):
        x = images[:200].float()
        return [x.mean().item(), x.std().item(), (x[..., 1:] - x[..., :-1]).abs().mean().item(), x.mean((2, 3)).std().item()]

    boxes = pairs.detection_scenes("train", 50)
    assert statistics(pairs.scenes("train").images) == pytest.approx([76.771, 60.977, 14.209, 31.936], abs=0.02)
    assert statistics(pairs.scenes("test", held_out=True).images) == pytest.approx([74.918, 59.217, 13.511, 30.638], abs=0.02)
    assert statistics(pairs.scenes("test", shifted=True).images) == pytest.approx([155.609, 58.656, 24.342, 38.253], abs=0.02)
    assert statistics(torch.stack(list(boxes.images))) == pytest.approx([54.83, 47.322, 8.761, 29.865], abs=0.02)
    assert sum(map(len, boxes.boxes)) == 78


def test_scene_details_describe_the_image():
    images, factors, masks, boxes = pairs.scenes("test", image_size=64, seed=0, held_out=True, details=True)
    assert masks.shape == (len(images), 64, 64) and all(len(v) == len(images) for v in factors.values())
    for i in range(20):
        rows, columns = np.nonzero(masks[i].numpy())
        assert boxes[i].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        inside = images.images[i][:, masks[i]].float().mean(1)
        outside = images.images[i][:, ~masks[i]].float().mean(1)
        assert (inside > outside).all()  # the object is the brighter part
    # the object covers the area of a disc of its scale, except where the image cuts it off
    whole = (boxes[:, :2] > 0).all(1) & (boxes[:, 2:] < 64).all(1)
    share = masks[whole].float().mean((1, 2)) / (math.pi * factors["scale"][whole] ** 2)
    assert whole.sum() > 100 and (share - 1).abs().max() < 0.1


def test_a_factor_changes_only_what_it_names():
    shapes = pairs.sample_shapes(4, pairs.stream(0))
    factors = pairs.sample_factors(torch.arange(4), pairs.stream(1))
    image, mask, _ = pairs.render_scenes(factors, shapes, 32, pairs.stream(2))
    recoloured, same_mask, _ = pairs.render_scenes(factors | {"object_color": torch.zeros(4, 3)}, shapes, 32, pairs.stream(2))
    far = torch.nn.functional.max_pool2d(mask[:, None].float(), 5, 1, 2) == 0
    assert torch.equal(mask, same_mask)
    assert torch.equal(image[far.expand_as(image)], recoloured[far.expand_as(image)]) and not torch.equal(image, recoloured)


# -- folders


def write_folder(root, split="", classes=("cat", "dog"), each=5, size=(20, 16)):
    for c, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", size, (100 * c, 10 * i, 50)).save(root / split / name / f"{i}.png")


def test_folder_with_splits_and_without(tmp_path):
    write_folder(tmp_path / "a", "train")
    write_folder(tmp_path / "a", "test", each=2)
    train, test = (pairs.load_images(str(tmp_path / "a"), s) for s in ("train", "test"))
    assert len(train) == 10 and len(test) == 4 and train.classes == ["cat", "dog"] and train.image_size == 16
    assert train.labels.tolist()[:4] == [0, 1, 0, 1]  # in turns, so a prefix is balanced
    assert train.images[1, :, 0, 0].tolist() == [100, 0, 50]
    assert pairs.load_images(str(tmp_path / "a"), limit=4).labels.tolist() == [0, 1, 0, 1]
    assert len(pairs.load_images(str(tmp_path / "a"), "test", limit=3)) == 4  # a limit is for training
    assert [len(pairs.load_images("scenes", split, 8, limit=3)) for split in ("train", "test")] == [3, 1024]
    assert pairs.load_images(str(tmp_path / "a"), image_size=32).images.shape == (10, 3, 32, 32)

    write_folder(tmp_path / "b")
    train, test = (pairs.load_images(str(tmp_path / "b"), s) for s in ("train", "test"))
    assert len(train) == 8 and len(test) == 2
    assert not {tuple(v.flatten().tolist()) for v in train.images} & {tuple(v.flatten().tolist()) for v in test.images}


def test_mistakes_in_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        pairs.load_images(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no images in class folders"):
        pairs.load_images(str(tmp_path))
    write_folder(tmp_path, "train")
    with pytest.raises(UserError, match="neither test/ nor val/"):
        pairs.load_images(str(tmp_path))
    write_folder(tmp_path, "val")
    (tmp_path / "train" / "cat" / "3.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="images cannot be read: .*3.png"):
        pairs.load_images(str(tmp_path))
    (tmp_path / "cifar").mkdir()
    with pytest.raises(UserError, match="--download"):
        pairs.load_images("cifar10", root=str(tmp_path / "cifar"))


def test_a_name_that_is_none_is_not_taken_for_another(tmp_path):
    pool = pairs.ImageSet("", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ["a", "b"])
    for call, said in ((lambda: pairs.load_images(tmp_path, "validation"), "no split validation: train, test or val"),
                       (lambda: pairs.load_images("scenes", "Train"), "no split Train"), (lambda: pairs.scenes("val"), "no split val: train or test"),
                       (lambda: pairs.make_pairs("Augmented", pool, 0), "no kind Augmented"), (lambda: pairs.read_pair_list("l.csv", arm="augment"), "no arm augment")):
        with pytest.raises(ValueError, match=said):
            call()


def test_images_of_every_usual_suffix_are_found_and_hidden_folders_are_no_classes(tmp_path):
    names = [f"{i}.{suffix}" for i, suffix in enumerate(("JPEG", "bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"))]
    for folder in ("train/c", "train/.ipynb_checkpoints", "test"):
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "c" / name)
    (tmp_path / "train" / "notes.txt").write_text("no class")
    files, _, classes = pairs.list_folder(tmp_path, "train")
    assert sorted(file.name for file in files) == sorted(names) and classes == ["c"]


def test_the_category_of_a_file_is_the_first_folder_below_the_classes(tmp_path):
    for path in ("d/cat/deep/a.png", "d/train/cat/deep/a.png", "d/test/cat/a.png"):
        assert pairs.category_of(tmp_path / path, tmp_path / "d") == "cat"
    assert pairs.category_of(tmp_path / "d" / "a.png", tmp_path / "d") == pairs.category_of(tmp_path / "a.png", tmp_path / "d") == ""


# -- pairs


def test_partners_share_the_class_and_are_uniform_over_the_others():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])
    counts, draws = torch.zeros(8, 8), 6000
    generator = pairs.stream("chi")
    for _ in range(draws):
        counts[torch.arange(8), pairs.semantic_partners(labels, generator)] += 1
    allowed = (labels[:, None] == labels[None]) & ~torch.eye(8, dtype=torch.bool)
    assert counts[~allowed].sum() == 0
    expected = draws / allowed.sum(1, keepdim=True)
    chi2 = torch.where(allowed, (counts - expected) ** 2 / expected, 0.0).sum(1)
    # class 0 has 3 partners to choose from: chi-square with 2 degrees of freedom, 99.99 % point 18.4
    assert (chi2[labels == 0] < 18.4).all() and (chi2[labels != 0] == 0).all()
    long, int32 = (pairs.semantic_partners(y, pairs.stream("dtype")) for y in (labels, labels.int()))
    assert torch.equal(long, int32) and int32.dtype == torch.int64


def test_arms_are_matched():
    data = pool([0, 1, 0, 1, 0, 1])
    augmented, semantic = (pairs.make_pairs(kind, data, seed=5) for kind in ("augmented", "semantic"))
    for epoch in (0, 1):
        (a1, p1), (a2, p2) = augmented.epoch(epoch), semantic.epoch(epoch)
        assert torch.equal(a1, a2) and torch.equal(p1, a1) and (p2 != a2).all()
        assert sorted(a1.tolist()) == list(range(6))
    assert not torch.equal(augmented.epoch(0)[0], augmented.epoch(1)[0])
    view = pairs.Augmentation()
    for (x1, x2), (y1, y2) in zip(*(pairs.batches(p, 0, 3, view, view, "cpu") for p in (augmented, semantic))):
        assert torch.equal(x1, y1) and not torch.equal(x2, y2)  # the anchors' views are equal to the last bit
    alike = pairs.replace(data, images=data.images[:1].expand_as(data.images))  # of one image the partners' views are too: the draws are the same
    for view2 in (view, pairs.replace(view, p_gray=0.5)):
        for (x1, x2), (y1, y2) in zip(*(pairs.batches(pairs.make_pairs(kind, alike, 5), 0, 3, view, view2, "cpu") for kind in ("augmented", "semantic"))):
            assert torch.equal(x1, y1) and torch.equal(x2, y2)


def test_every_epoch_and_every_seed_draws_order_partners_and_augmentation_anew():
    data, view = pool(torch.arange(64) % 4), pairs.Augmentation()
    alike = pairs.replace(data, images=data.images[:1].expand_as(data.images))  # so that batches differ by their augmentation alone
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        anchor, partner = pairs.make_pairs("semantic", data, seed).epoch(epoch)
        x1, x2 = next(pairs.batches(pairs.make_pairs("semantic", alike, seed), epoch, 8, view, view, "cpu"))
        drawn.append([v.numpy().tobytes() for v in (anchor, partner[anchor.argsort()], x1, x2)])
    assert [len(set(what)) for what in zip(*drawn)] == [3] * 4 and drawn[0] == drawn[3]


def test_the_anchors_are_seen_under_view_1_and_the_partners_under_view_2():
    source = pairs.make_pairs("semantic", pool(torch.arange(16) % 4), 0)
    plain = pairs.Augmentation().without(pairs.Augmentation.SWITCHES)
    (anchor, partner), images = source.epoch(0), source.pool.images / 255
    x1, x2 = next(pairs.batches(source, 0, 16, plain, pairs.replace(plain, p_solarize=1.0), "cpu"))
    assert torch.allclose(x1, pairs.normalize(images[anchor]), atol=1e-4)
    assert torch.allclose(x2, pairs.normalize(pairs.solarize(images[partner])), atol=1e-4)


def test_a_class_with_one_image_is_an_error_that_names_it():
    with pytest.raises(UserError, match="c1"):
        pairs.make_pairs("semantic", pool([0, 0, 1, 2, 2]), 0)
    assert len(pairs.make_pairs("augmented", pool([0, 0, 1, 2, 2]), 0)) == 5


def test_pieces_refuse_what_they_would_get_wrong():
    for labels in ([0, 1, 1], [1, 1, 2]):
        with pytest.raises(ValueError, match="one image has no partner"):
            pairs.semantic_partners(torch.tensor(labels), pairs.stream(0))
    for images in (torch.zeros(2, 3, 8, 8), *(torch.zeros(*shape, dtype=torch.uint8) for shape in ((2, 3, 8, 12), (2, 3, 12, 8), (2, 4, 8, 8), (3, 8, 8)))):
        with pytest.raises(ValueError, match="square RGB images, uint8"):
            pairs.augment(images, pairs.Augmentation(), pairs.stream(0))


def test_names_and_lists_of_transforms_are_taken_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [pairs.named(data) for data in ("cifar10", "./flat/", "a/b/", ".")] == ["cifar10", "flat", "a/b", str(tmp_path)]
    assert pairs.named("./cifar10") == pairs.named("cifar10/") == str(tmp_path / "cifar10")  # the folder, not the data set
    (tmp_path / "scenes" / "empty").mkdir(parents=True)
    assert pairs.load_pairs(simclr.parse_args(["--limit", "128"])).pool.name == "scenes"  # drawn, and no mistake of that folder
    (tmp_path / "scenes" / "empty").rmdir()
    write_folder(tmp_path / "scenes")
    assert len(pairs.load_images(pairs.named("./scenes"), image_size=8)) == 8  # of the folder
    (tmp_path / "l.csv").touch()
    with pytest.raises(UserError, match="did you mean ./scenes?"):
        pairs.load_pairs(simclr.parse_args(["--pairs", "l.csv", "--data", "scenes"]))
    args = simclr.parse_args(["--data", "./flat/", "--without", "jitter, flip,crop,flip"])
    assert (args.data, args.without) == ("flat", "crop,flip,jitter")
    with pytest.raises(UserError, match="--without turn: choose from crop, flip"):
        simclr.parse_args(["--without", "flip,turn"])
    with pytest.raises(UserError, match="--out: an empty name"):
        simclr.parse_args(["--out", ""])


def test_a_cache_or_run_within_the_data_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path / "flat")
    monkeypatch.chdir(tmp_path / "flat")
    for options, named in ((["--data", "."], "--cache cache"), (["--data", ".", "--cache", "../cache", "--out", "here"], "--out here")):
        with pytest.raises(UserError, match=f"{named} would lie in --data"):
            pairs.load_pairs(simclr.parse_args(options))
    args = simclr.parse_args(["--data", ".", "--cache", "../cache", "--out", "../run", "--batch-size", "8"])
    assert pairs.load_pairs(args).pool.name == "flat"
    with pytest.raises(UserError, match="--cache cache would lie in"):  # an evaluation may be started there too
        pairs.load_images(".", "test", cache="cache")
    (tmp_path / "split").mkdir()
    for part in ("train", "test"):
        (tmp_path / "flat").rename(tmp_path / "split" / part), write_folder(tmp_path / "flat")
    with pytest.raises(UserError, match="would lie in"):
        pairs.load_images(tmp_path / "split", cache=tmp_path / "split" / "train" / "cache")
    assert len(pairs.load_images(tmp_path / "split", cache=tmp_path / "split" / "cache"))  # beside train/


def test_other_files_have_another_check_sum(tmp_path, monkeypatch):
    write_folder(tmp_path / "flat"), write_folder(tmp_path / "other" / "flat", each=6)
    sums = [pairs.load_images(str(tmp_path / name)).files_crc32 for name in ("flat", "./flat", "other/flat")]
    assert sums[0] == sums[1] != sums[2]
    paths = [Path("a/1.png"), Path("b/.2.png")]
    assert pairs.crc32_of(".", paths) == pairs.crc32_of("x/y", [Path("x/y") / path for path in paths]) == zlib.crc32(b"/a/1.png\0/b/.2.png")
    rows = ["cat/0.png,cat/1.png", "dog/0.png,dog/1.png"]
    sums = []
    for listed in (rows, rows, [rows[0], "dog/0.png,dog/2.png"], ["cat/0.png,dog/1.png", "dog/0.png,cat/1.png"]):
        (tmp_path / "flat" / "list.csv").write_text("image_a,image_b\n" + "\n".join(listed) + "\n")
        source = pairs.read_pair_list(tmp_path / "flat" / "list.csv")
        sums.append(source.pool.files_crc32)
    assert sums[0] == sums[1] and len(set(sums)) == 3
    for name in ("lists", "flat2"):  # of files outside of the list's folder, also of a name that begins like its
        (tmp_path / name).mkdir(), (tmp_path / name / "l.csv").write_text("image_a,image_b\n../flat/cat/0.png,../flat/cat/1.png\n")
    read = lambda name: pairs.read_pair_list(name).pool.files_crc32
    monkeypatch.chdir(tmp_path)
    outside = [read("lists/l.csv"), read(tmp_path / "lists" / "l.csv"), read("flat2/l.csv")]
    monkeypatch.chdir("lists")
    assert {*outside, read("l.csv")} == {zlib.crc32(b"/../flat/cat/0.png\0/../flat/cat/1.png")}
    assert source.pool.classes == ["cat", "dog"] and source.rates(0)["false_rate"] == 1  # categories of the class folders


def test_a_class_whose_folder_is_a_link_to_nowhere_is_missed(tmp_path):
    write_folder(tmp_path / "flat")
    (tmp_path / "flat" / "horse").symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match="horse holds no image, and every folder there is a class"):
        pairs.load_images(tmp_path / "flat")


@pytest.mark.skipif(sys.platform == "win32", reason="file names are Unicode there")
def test_names_that_are_not_utf8_have_a_check_sum():
    assert pairs.crc32_of(".", [Path(os.fsdecode(b"caf\xe9.png"))]) == zlib.crc32(b"/caf\xe9.png")


def test_curated_list_and_its_matched_baseline(tmp_path, capsys):
    write_folder(tmp_path)
    (tmp_path / "list.csv").write_text("image_a,image_b,category\ncat/0.png,cat/1.png,cat\ndog/2.png,dog/0.png,dog\ncat/0.png,cat/3.png,cat\n")
    curated, baseline = (pairs.read_pair_list(tmp_path / "list.csv", arm=arm) for arm in ("semantic", "augmented"))
    assert len(curated) == len(baseline) == 3 and torch.equal(curated.pool.images, baseline.pool.images)
    assert capsys.readouterr().out.count("3 of the 5 images of these pairs are never image_a") == 2  # in both arms
    (tmp_path / "both.csv").write_text("image_a,image_b\ncat/0.png,cat/1.png\ncat/1.png,cat/0.png\n")
    pairs.read_pair_list(tmp_path / "both.csv")
    assert "never image_a" not in capsys.readouterr().out
    (a1, p1), (a2, p2) = curated.epoch(0), baseline.epoch(0)
    assert torch.equal(a1, a2) and torch.equal(p2, a2)
    rows = {(*curated.pool.images[a, :2, 0, 0].tolist(), *curated.pool.images[p, :2, 0, 0].tolist()) for a, p in zip(a1, p1)}
    assert rows == {(0, 0, 0, 10), (100, 20, 100, 0), (0, 0, 0, 30)}
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "list.csv"
    moved.write_text((tmp_path / "list.csv").read_text())
    assert len(pairs.read_pair_list(moved, folder=tmp_path)) == 3
    with pytest.raises(UserError, match="line 2, image_a"):
        pairs.read_pair_list(moved)
    moved.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="image_a,image_b"):
        pairs.read_pair_list(moved)
    moved.write_bytes("image_a,image_b\ncaf\xe9.png,b.png\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        pairs.read_pair_list(moved)


def test_a_list_says_what_to_keep(tmp_path):
    (tmp_path / "list.csv").write_text("image_a,image_b,keep\n" + "".join(f"a,b,{v}\n" for v in ("", "1", "True", "0", "0.0", "FALSE", "no")))
    assert [row["keep"] for row in pairs.read_rows(tmp_path / "list.csv")[0]] == [True] * 3 + [False] * 4
    (tmp_path / "list.csv").write_text("image_a,image_b,keep\na,b,perhaps\n")
    with pytest.raises(UserError, match="line 2: keep is perhaps"):
        pairs.read_rows(tmp_path / "list.csv")


def test_the_limit_counts_the_rows_that_are_kept(tmp_path):
    for i in range(4):
        Image.new("RGB", (16, 16), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "l.csv").write_text("image_a,image_b,keep\n0.png,1.png,0\n1.png,2.png,1\n2.png,3.png,1\n")
    assert len(pairs.read_pair_list(tmp_path / "l.csv", limit=2)) == 2


def test_a_lists_false_pairs_are_counted(tmp_path):
    """A row's category is its anchor's; a partner's is that of the row in which it is the anchor, else its class folder's."""
    write_folder(tmp_path, each=3)
    rows = [("cat/0.png", "dog/0.png", "cat"), ("dog/0.png", "dog/1.png", "dog"), ("cat/1.png", "dog/2.png", "cat"), ("cat/2.png", "cat/0.png", "cat")]
    (tmp_path / "list.csv").write_text("image_a,image_b,category\n" + "".join(",".join(row) + "\n" for row in rows))
    source = pairs.read_pair_list(tmp_path / "list.csv")
    assert source.rates(0)["false_rate"] == 0.5


def test_a_list_with_the_byte_order_mark_of_excel_is_read(tmp_path):
    (tmp_path / "l.csv").write_bytes("\ufeffimage_a,image_b,category,keep\na.png,b.png, cat , 0 \n".encode())
    (row,), _ = pairs.read_rows(tmp_path / "l.csv")
    assert row["image_a"] == tmp_path / "a.png" and row["category"] == "cat" and not row["keep"]


def test_a_list_over_a_folder_without_classes_is_trained_on_and_its_rates_are_not_known(tmp_path):
    noisy(tmp_path / "d", 4)
    (tmp_path / "l.csv").write_text("image_a,image_b\n000.png,001.png\n002.png,003.png\n")
    source = pairs.load_pairs(simclr.parse_args(["--pairs", str(tmp_path / "l.csv"), "--data", str(tmp_path / "d"), "--batch-size", "1", "--cache", str(tmp_path / "c")]))
    assert len(source) == 2 and source.rates(0) == {"semantic_rate": 1.0, "false_rate": None, "same_class_rate": None}


# -- augmentation: each operation against torchvision's, then the distribution of the whole


def test_crops_equal_torchvisions_resize():
    images = photos(5)
    boxes = torch.tensor([[0, 0, 24, 24], [3, 7, 11, 9], [20, 0, 4, 24], [5, 23, 1, 1], [1, 2, 23, 20]])
    flip = torch.tensor([False, True, False, False, True])
    for ours, image, box, mirrored in zip(pairs.resized_crop(images, boxes.float(), flip), images, boxes.tolist(), flip):
        theirs = TF.resized_crop(image.float() / 255, *box, [24, 24], antialias=True)
        assert torch.allclose(ours, theirs.flip(2) if mirrored else theirs, atol=1e-5)


def test_parts_join_to_what_one_part_gives():
    images = photos(40)
    draws = pairs.draw(pairs.Augmentation(p_blur=0.5, p_solarize=0.5), 40, images.shape[-1], pairs.stream("parts"))
    parts, whole = (pairs.apply(images, draws, at_once) for at_once in (1, 40 * images[0].numel()))
    assert torch.allclose(parts, whole, atol=1e-5) and parts.std() > 0.1


def test_augmentation_under_autocast_is_that_without_but_for_rounding():
    view = pairs.Augmentation(p_blur=0.5, p_solarize=0.5)
    plain = pairs.augment(photos(16), view, pairs.stream("autocast"))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pairs.augment(photos(16), view, pairs.stream("autocast"))
    assert rounded.dtype == torch.float32 and (rounded - plain).abs().mean() < 0.01


def test_a_constant_is_the_same_whoever_asks_first():
    """It is kept: a caller's default dtype or inference mode would stay with all later ones."""
    ask = lambda: pairs.constant((0.5, 1.0), torch.device("cpu"))
    try:
        torch.set_default_dtype(torch.float64)
        pairs.constant.cache_clear()
        assert ask().dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    pairs.constant.cache_clear()
    with torch.inference_mode():
        ask()
    assert not ask().is_inference()


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.05, 0.3])
def test_hue_equals_torchvisions(shift):
    x = photos().float() / 255
    x[0] = 0.5  # gray has no hue
    assert torch.allclose(pairs.shift_hue(x, torch.full((6, 1, 1, 1), shift)), TF.adjust_hue(x, shift), atol=1e-5)


def test_jitter_equals_torchvisions_operations_in_the_drawn_order():
    x = photos(60).float() / 255
    drawn = pairs.draw(pairs.Augmentation(jitter=(0.8, 0.8, 0.8, 0.5)), len(x), 24, pairs.stream("jitter"))
    chosen, factors, order = drawn["jitter"], drawn["factors"], drawn["order"]
    assert 30 < chosen.sum() < 60 and len({tuple(row) for row in order.tolist()}) > 15 and factors.std(0).min() > 0.2
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    theirs = x.clone()
    for i in chosen.nonzero()[:, 0]:
        for which in order[i]:
            theirs[i] = functions[which](theirs[i], factors[i, which].item())
    assert torch.allclose(pairs.color_jitter(x.clone(), chosen, factors, order), theirs, atol=1e-4)
    nobody = torch.zeros(len(x), dtype=torch.bool)
    assert torch.equal(pairs.color_jitter(x.clone(), nobody, factors, order), x)


@pytest.mark.parametrize("size, taps", [(60, 7), (224, 23)])
def test_blur_and_solarize_equal_torchvisions(size, taps):
    x, sigma = photos(4, size).float() / 255, torch.tensor([0.1, 0.7, 1.4, 2.0])
    for ours, image, s in zip(pairs.gaussian_blur(x, sigma), x, sigma.tolist()):
        assert torch.allclose(ours, TF.gaussian_blur(image, [taps, taps], [s, s]), atol=1e-5 if size == 60 else 1e-4)
    assert torch.allclose(pairs.solarize(x), TF.solarize(x, 0.5))
    assert torch.allclose(pairs.grayscale(x), TF.rgb_to_grayscale(x, 3), atol=1e-3)


def test_distribution_equals_torchvisions_per_sample_transforms():
    """Means, deviations and correlations of what comes out, over 4,000 views of one image from each side."""
    view = pairs.Augmentation(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), p_gray=0.2, p_blur=0.5, p_solarize=0.2)
    theirs = T.Compose([
        T.ToDtype(torch.float32, scale=True), T.RandomResizedCrop(24, (0.2, 1.0), antialias=True), T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2),
        T.RandomApply([T.GaussianBlur(3, (0.1, 2.0))], 0.5), T.RandomSolarize(0.5, 0.2),
        T.Normalize(pairs.IMAGENET_MEAN, pairs.IMAGENET_STD)])
    image, n = pairs.scenes("test", 24, held_out=True).images[7], 4000
    torch.manual_seed(0)
    a = pairs.augment(image.expand(n, -1, -1, -1), view, pairs.stream("moments"))
    b = torch.stack([theirs(image) for _ in range(n)])

    def statistics(x):  # (n, 12): what differs when a transform is missing, twice there or out of order
        gray, left, top = x.mean(1), x[..., :12].mean((1, 2, 3)), x[:, :, :12].mean((1, 2, 3))
        rough = (gray[:, 1:] - gray[:, :-1]).abs().mean((1, 2))
        return torch.stack([*x.mean((2, 3)).T, *x.std((2, 3)).T, x.std(1).mean((1, 2)), rough, left - top,
                            gray.amax((1, 2)), gray.amin((1, 2)), x.mean((1, 2, 3)) ** 2], 1)

    fa, fb = statistics(a), statistics(b)
    error = torch.sqrt(fa.var(0) / n + fb.var(0) / n)
    assert ((fa.mean(0) - fb.mean(0)).abs() / error).max() < 4.5
    assert (fa.std(0) / fb.std(0) - 1).abs().max() < 0.1
    assert (torch.corrcoef(fa.T) - torch.corrcoef(fb.T)).abs().max() < 0.1


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])  # of the second many draws do not fit, and some images stay whole
def test_boxes_are_distributed_as_torchvisions(area):
    n = 4000
    torch.manual_seed(0)
    ours = pairs.random_boxes(n, 32, area, pairs.stream("boxes"))
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor([T.RandomResizedCrop.get_params(image, area, (3 / 4, 4 / 3)) for _ in range(n)], dtype=torch.float)
    assert (ours == ours.round()).all() and (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all() and (ours[:, :2] + ours[:, 2:] <= 32).all()
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 0] - b[:, 1]):
        a, b = of(ours), of(theirs)
        at = torch.cat([a, b]).unique()[:, None]
        apart = ((a <= at).float().mean(1) - (b <= at).float().mean(1)).abs().max()  # Kolmogorov and Smirnov's statistic
        assert apart < 1.63 * math.sqrt(2 / n)  # exceeded by chance in less than 1 % of the seeds


def test_every_image_of_a_batch_has_parameters_of_its_own():
    image = pairs.scenes("test", held_out=True).images[3]
    for on in ("crop", "flip", "jitter", "gray", "blur", "solarize"):
        view = pairs.Augmentation(p_blur=0.5, p_solarize=0.5).without({"crop", "flip", "jitter", "gray", "blur", "solarize"} - {on})
        x = pairs.augment(image.expand(32, -1, -1, -1), view, pairs.stream("own"))
        assert len({v.numpy().tobytes() for v in x}) > (8 if on in ("crop", "jitter", "blur") else 1), on
    nothing = pairs.Augmentation(p_blur=0.5, p_solarize=0.5).without(["crop", "flip", "jitter", "gray", "blur", "solarize"])
    assert torch.allclose(pairs.augment(image[None], nothing, pairs.stream()), pairs.normalize(image[None]), atol=1e-5)
    with pytest.raises(UserError, match="sharpen"):
        nothing.without(["sharpen"])


def test_blur_is_off_below_64_pixels_unless_asked_for_and_each_view_has_its_own():
    import byol
    import simclr

    for argv, size, expected in (([], 32, 0), ([], 64, 0.5), (["--blur", "0.3", "0"], 32, 0.3), (["--without", "blur"], 96, 0)):
        assert pairs.make_views(simclr.parse_args(argv), size)[0].p_blur == expected
    for argv, expected in (([], [(1.0, 0.0), (0.1, 0.2)]), (["--blur", "0.3", "0.4", "--solarize", "0.5", "0.6"], [(0.3, 0.5), (0.4, 0.6)])):
        views = pairs.make_views(byol.parse_args(["--data", "x", *argv]), 224)
        assert [(view.p_blur, view.p_solarize) for view in views] == expected  # without options BYOL's, App. B


def test_strong_jitter_is_cut_off_at_zero_as_torchvisions():
    factors = pairs.draw(pairs.Augmentation(jitter=(2.0, 2.0, 2.0, 0.0)), 500, 8, pairs.stream("strong"))["factors"][:, :3]
    assert factors.min() >= 0 and factors.max() > 2.9


def test_the_picture_shows_augmented_pairs_beside_semantic_ones(tmp_path, monkeypatch):
    plain, shown = pairs.Augmentation().without(pairs.Augmentation.SWITCHES), []
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **_: shown.append(x))
    source = pairs.make_pairs("semantic", pool([0, 0, 1, 1]), 0)
    pairs.save_picture(tmp_path / "p.png", source, plain, pairs.replace(plain, p_solarize=1.0), columns=4)
    (anchor, partner), solarized = source.epoch(0), [None] * 4
    expected = [*anchor, *anchor, *anchor, *solarized, *anchor, *partner, *anchor, *solarized]
    as_drawn = lambda i: source.pool.images[i].permute(1, 2, 0).numpy() / 255
    assert len(shown) == 32 and all(i is None or np.allclose(x, as_drawn(i), atol=1e-3) for x, i in zip(shown, expected))
    shown.clear()
    pairs.save_picture(tmp_path / "q.png", pairs.make_pairs("augmented", pool([0, 0, 1]), 0), plain, plain)
    assert len(shown) == 12  # no semantic pairs: a class has one image
    pairs.save_picture(tmp_path / "q.png", pairs.make_pairs("augmented", pool([0, 0, 0]), 0), plain, plain)
    assert len(shown) == 24  # nor here: with one class they would be any two images
    drawn = (tmp_path / "q.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):  # while it is written: what was there stays whole
        pairs.save_picture(tmp_path / "q.png", source, plain, plain)
    assert (tmp_path / "q.png").read_bytes() == drawn


# -- study controls


def test_false_partners_are_of_another_class_and_uniform():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 2])
    counts = torch.zeros(9, 9)
    for i in range(3000):
        partner = pairs.false_partners(labels, pairs.stream("f", i))
        assert (labels[partner] != labels).all()
        counts[torch.arange(9), partner] += 1
    for i in range(9):
        others = counts[i][labels != labels[i]]
        expected = 3000 / len(others)
        assert ((others - expected) ** 2 / expected).sum() < 30  # chi-square with 4 to 6 degrees of freedom: p < 1e-4
    with pytest.raises(ValueError, match="one class"):
        pairs.false_partners(torch.zeros(3, dtype=torch.long), pairs.stream("f"))


def test_rows_of_one_anchor_draw_false_partners_of_their_own():
    labels = torch.arange(40) % 4
    pool = pairs.ImageSet("x", torch.zeros(40, 3, 8, 8, dtype=torch.uint8), labels, list("abcd"))
    rows = torch.tensor([[0, 4 * (i % 9 + 1)] for i in range(90)] + [[1, 5]] * 10)
    anchor, partner = pairs.Pairs(pool, "list", 0, rows, false_pairs=1.0).epoch(0)
    assert (labels[partner] != labels[anchor]).all()
    of_one, of_other = partner[anchor == 0].unique(), partner[anchor == 1].unique()
    assert len(of_one) >= 20 and len(of_other) >= 4  # of 30 images in 90 and in 10 draws; one draw an anchor would show 1 each


def test_controls_change_the_share_asked_for_and_nothing_else():
    source = pairs.make_pairs("semantic", pool(torch.arange(4000) % 8), seed=0)
    anchor, partner = source.epoch(3)
    controlled = pairs.replace(source, false_pairs=0.3, semantic_share=0.6)
    a, p = controlled.epoch(3)
    labels = source.pool.labels
    assert torch.equal(a, anchor) and abs((a != p).float().mean() - 0.6) < 0.03
    true = (a != p) & (labels[a] == labels[p])
    assert torch.equal(p[true], partner[true])  # those left alone have the partner they had
    rates = controlled.rates(3)
    assert rates["semantic_rate"] == pytest.approx((a != p).float().mean().item())
    assert abs(rates["false_rate"] - 0.3) < 0.03 and rates["same_class_rate"] == pytest.approx(1 / 8, abs=0.005)
    assert source.rates(3) == {"semantic_rate": 1.0, "false_rate": 0.0, "same_class_rate": pytest.approx(499 / 3999)}
    assert pairs.make_pairs("augmented", source.pool, 0).rates(0)["semantic_rate"] == 0


def test_controls_are_redrawn_every_epoch():
    source = pairs.make_pairs("semantic", pool(torch.arange(400) % 4), 0)
    for controls in ({"false_pairs": 0.5}, {"semantic_share": 0.5}):
        first, second = (pairs.replace(source, **controls).epoch(epoch)[1] != source.epoch(epoch)[1] for epoch in (0, 1))
        assert 0.4 < (first == second).float().mean() < 0.6  # which places in the epoch are changed
    drawn = [pairs.replace(source, false_pairs=1.0).epoch(epoch) for epoch in (0, 1)]
    first, second = (partner[anchor.argsort()] for anchor, partner in drawn)
    assert (first == second).float().mean() < 0.1


def test_the_rate_of_negatives_of_the_anchors_class_is_that_of_simclrs_batches():
    """Counted over batches: of the second images of the other pairs, the share with the anchor's class."""
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    source = pairs.make_pairs("semantic", pool(labels), seed=0)
    same, all_ = 0, 0
    for epoch in range(5):
        anchor, partner = source.epoch(epoch)
        for a, p in zip(labels[anchor].split(50), labels[partner].split(50)):
            equal = a[:, None] == p[None]
            same, all_ = same + equal.sum() - equal.diagonal().sum(), all_ + 50 * 49
    assert source.rates(0)["same_class_rate"] == pytest.approx(float(same / all_), abs=0.01)


def test_a_pair_is_no_negative_of_itself():
    """Of a list with one pair of each category no negative is of the anchor's own; with two pairs one of the N - 1 others is."""
    labels = torch.arange(100) // 2
    listed = pairs.Pairs(pool(labels), "list", 0, rows=torch.arange(100).view(50, 2))
    assert listed.rates(0)["same_class_rate"] == 0
    assert pairs.make_pairs("semantic", pool(labels), 0).rates(0)["same_class_rate"] == pytest.approx(1 / 99)


# -- images that real folders hold


def awkward(folder):
    """Real folders' images: name -> colour (r, g, b) that each should show, or None where it cannot be read."""
    folder.mkdir(parents=True)
    red = Image.new("RGB", (20, 20), (200, 30, 40))
    red.convert("CMYK").save(folder / "cmyk.jpg")
    red.quantize(8).save(folder / "palette.png")
    Image.fromarray(np.full((20, 20), 128 * 256, np.uint16)).save(folder / "sixteen bits.png")
    red.save(folder / "größe und leer.png")
    sideways = Image.new("RGB", (40, 20), (200, 30, 40))
    sideways.paste((0, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(np.asarray(sideways.convert("L")).astype(np.uint16) * 256).save(folder / "turned 16.png", exif=exif)
    (folder / "link.png").symlink_to(folder / "palette.png")
    (folder / "nested" / "deep").mkdir(parents=True)
    red.save(folder / "nested" / "deep" / "a.PNG")
    (folder / "notes.txt").write_text("no image"), (folder / "._hidden.jpg").write_bytes(b"x")
    (folder / ".thumbnails").mkdir(), (folder / ".thumbnails" / "a.jpg").write_bytes(b"x")
    Image.fromarray(np.full((20, 20), 128, np.int32)).save(folder / "wide.tif")  # 8 bits in 32
    return ["cmyk.jpg", "größe und leer.png", "link.png", "nested/deep/a.PNG", "palette.png", "sixteen bits.png", "turned 16.png", "turned.jpg", "wide.tif"]


def test_what_is_transparent_is_white_and_floating_point_images_are_refused(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))  # black, and transparent black
    image.save(tmp_path / "a.png")
    assert np.asarray(pairs.open_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0] * 4 + [255] * 4
    Image.fromarray(np.full((8, 8), 128, np.uint16)).save(tmp_path / "8 in 16 bits.png")
    assert (np.asarray(pairs.open_image(tmp_path / "8 in 16 bits.png")) == 128).all()
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match="f.tif: its pixels are floating-point"):
        pairs.open_image(tmp_path / "f.tif")
    Image.fromarray(np.full((8, 8), 65536, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UserError, match="i.tif: its pixels are integers of more than 16 bits"):
        pairs.open_image(tmp_path / "i.tif")
    assert pairs.natural_size([tmp_path / "f.tif", tmp_path / "a.png"]) == 8


def test_every_orientation_is_upright_also_beside_tags_that_pillow_cannot_write(tmp_path):
    image = Image.fromarray(torch.randint(256, (6, 4, 3), dtype=torch.uint8).numpy())
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "a.png", exif=exif)
        assert (np.asarray(pairs.open_image(tmp_path / "a.png")) == np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))).all()
    odd = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x02\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\x1a\x01\x02\0\x03\0\0\x0072\0\0" + bytes(4)
    image.save(tmp_path / "a.jpg", exif=odd)  # turned by a quarter; its resolution is a text
    assert pairs.open_image(tmp_path / "a.jpg").size == (6, 4)
    for damaged in (bytes(200), b"II*\0", b"garbagegarbage"):  # no reason to refuse the pixels
        image.save(tmp_path / "b.jpg", exif=b"Exif\0\0" + damaged, dpi=(72, 72))
        assert pairs.open_image(tmp_path / "b.jpg").size == (4, 6)


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    two_colours(tmp_path / "d")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "blue":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    status, _, error = call_here("simclr.py", "--data", tmp_path / "d", "--device", "cpu", "--out", tmp_path / "run", "--cache", tmp_path / "c")
    assert status == 2 and "blue: permission denied" in error


def test_awkward_images_are_read_as_they_look(tmp_path):
    names = awkward(tmp_path / "c")
    assert [p.relative_to(tmp_path / "c").as_posix() for p in pairs.find_images(tmp_path / "c")] == names
    images, kept = pairs.decode(pairs.find_images(tmp_path / "c"), 20, "")
    middle = dict(zip(names, images[:, :, 10, 10].tolist()))
    assert kept.tolist() == list(range(9))
    assert middle.pop("sixteen bits.png") == middle.pop("wide.tif") == [128] * 3
    middle.pop("turned.jpg"), middle.pop("turned 16.png")
    assert all(max(abs(a - b) for a, b in zip(m, (200, 30, 40))) < 12 for m in middle.values()), middle
    for name in ("turned.jpg", "turned 16.png"):
        turned = images[names.index(name)].float().mean(0)
        assert turned[2].mean() < 20 < turned[17].mean()  # black above: the camera was held sideways
    exif, gray = Image.Exif(), Image.new("L", (40, 20), 200)
    exif[0x0112] = 6
    gray.paste(0, (0, 0, 20, 20)), gray.save(tmp_path / "gray.tif", exif=exif)
    turned = np.asarray(pairs.open_image(tmp_path / "gray.tif"))
    assert turned.shape == (40, 20, 3) and (turned[:20] == 0).all() and (turned[20:] == 200).all()


def test_images_are_cropped_to_their_middle_and_not_squeezed():
    wide = Image.new("RGB", (48, 16), (255, 0, 0))
    wide.paste((0, 255, 0), (16, 0, 32, 16))
    for image in (wide, wide.rotate(90, expand=True)):
        assert (pairs.fit(image, 8)[:, 1:-1, 1:-1] == [[[0]], [[255]], [[0]]]).all()  # red shines a little into the border


def test_images_are_scaled_bicubically_and_normalised_with_imagenets_mean_and_deviation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for size in (16, 60):
        assert (pairs.fit(image, size) == np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)).all()
    x = pairs.normalize(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))[0, :, 0]
    expected = torch.tensor([[-0.485 / 0.229, 0.515 / 0.229], [-0.456 / 0.224, 0.544 / 0.224], [-0.406 / 0.225, 0.594 / 0.225]])
    assert torch.allclose(x, expected, atol=1e-5)


def test_an_image_of_more_pixels_than_pillow_takes_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # twice as many are refused
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(pairs.BadImage, match=r"a.png: Image size \(64 pixels\) exceeds limit of 62 pixels"):
        pairs.open_image(tmp_path / "a.png")


def test_bad_images_are_all_named_or_left_out(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "0.png").write_bytes(b"")
    (tmp_path / "b" / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        pairs.load_images(str(tmp_path))
    assert "3 of 8 images cannot be read" in str(error.value) and "--skip-bad" in str(error.value)
    assert all(name in str(error.value) for name in ("a/1.png", "b/0.png", "b/3.png"))
    found = pairs.load_images(str(tmp_path), skip_bad=True)
    assert sorted(zip(found.labels.tolist(), found.images[:, 0, 0, 0].tolist())) == [(0, 0), (0, 2), (0, 3), (1, 1), (1, 2)]
    assert "left out: 3 of 8 images" in capsys.readouterr().out
    (tmp_path / "list.csv").write_text("image_a,image_b\na/0.png,a/1.png\na/0.png,a/2.png\nb/1.png,b/2.png\n")
    assert len(pairs.read_pair_list(tmp_path / "list.csv", skip_bad=True)) == 2


def test_a_folder_of_bad_images_only_is_told_even_when_they_may_be_left_out(tmp_path):
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "d" / name / f"{i}.png").write_bytes(b"")
    for cache in (None, tmp_path / "c"):
        with pytest.raises(UserError, match="8 of 8 images cannot be read"):
            pairs.load_images(tmp_path / "d", image_size=8, skip_bad=True, cache=cache)


def test_a_link_to_a_file_that_is_gone_is_an_image_that_cannot_be_read(tmp_path):
    noisy(tmp_path / "d" / "a", 5)
    files = noisy(tmp_path / "d" / "b", 10)
    for file, target in ((files[2], tmp_path / "gone.png"), (files[6], files[6])):
        file.unlink()
        file.symlink_to(target)
    load = lambda **how: pairs.load_images(tmp_path / "d", image_size=24, **how)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match=r"2 of 12 images cannot be read: \S+/002.png: .*No such file.* \| \S+/006.png: .*Too many levels"):
            load(cache=cache)
        assert len(load(skip_bad=True, cache=cache)) == 10
    shutil.copy(files[0], tmp_path / "gone.png")  # it is back
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(UserError, match="1 of 12 images cannot be read"):
            load(cache=cache)


# -- decoded images kept on disk


def noisy(folder, n=40, side=24):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side + i % 3, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return sorted(folder.iterdir())


def test_runs_that_build_one_cache_take_turns(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    files, inside, most, in_parts = noisy(tmp_path / "d", 5), [], [], pairs.in_parts

    def counted(*given):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        yield from in_parts(*given)
        inside.pop()

    monkeypatch.setattr(pairs, "in_parts", counted)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pairs.cached(files, 5, 16, "", cache=tmp_path / "c"), range(4)))
    assert most == [1] * 4


def test_a_cache_is_not_emptied_for_a_changed_source_before_its_reader_has_mapped_it(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    files, returned, later, in_parts, tell_bad = noisy(tmp_path / "d", 5), threading.Event(), [], pairs.in_parts, pairs.tell_bad
    read = lambda: pairs.cached(files, 5, 16, "", cache=tmp_path / "c")[0].clone()
    truth = read()

    def changed(*given):  # between decoding and mapping
        monkeypatch.setattr(pairs, "tell_bad", tell_bad)
        os.utime(files[0], (1, 1))
        later.append(threads.submit(read))
        time.sleep(0.2)

    def slow(*given):
        if later:
            returned.wait(5)
        yield from in_parts(*given)

    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(pairs, "tell_bad", changed), monkeypatch.setattr(pairs, "in_parts", slow)
        assert torch.equal(read(), truth)
        returned.set()
        assert torch.equal(later[0].result(), truth)


@pytest.mark.parametrize("rank, expected", [(0, ["block", "wait"]), (1, ["wait", "block"])])
def test_the_first_process_goes_first(rank, expected, monkeypatch):
    said = []
    monkeypatch.setattr(pairs, "rank_and_world", lambda: (rank, 2))
    monkeypatch.setattr(pairs.dist, "barrier", lambda: said.append("wait"))
    with pairs.first_process_first():
        said.append("block")
    assert said == expected
    said.clear()
    with pytest.raises(UserError), pairs.first_process_first():  # the others do not wait for ever, and meet the mistake themselves
        said.append("block")
        raise UserError("")
    assert said == expected


def test_labels_and_pairs_stay_with_their_images_when_some_are_left_out(tmp_path):
    for c, name in enumerate("ab"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16), (i, c, 0)).save(tmp_path / "d" / name / f"{i}.png")
    (tmp_path / "d" / "a" / "1.png").write_bytes(b"")
    (tmp_path / "l.csv").write_text("image_a,image_b\na/0.png,a/1.png\na/0.png,a/2.png\nb/1.png,b/2.png\nb/3.png,a/3.png\n")
    for cache in (None, tmp_path / "c"):  # with a cache the kept images are in another order
        found = pairs.load_images(str(tmp_path / "d"), skip_bad=True, cache=cache)
        assert len(found) == 7 and torch.equal(found.labels, found.images[:, 1, 0, 0].long())
        source = pairs.read_pair_list(tmp_path / "l.csv", tmp_path / "d", skip_bad=True, cache=cache)
        assert torch.equal(source.pool.labels, source.pool.images[:, 1, 0, 0].long())
        assert source.pool.images[source.rows][..., :2, 0, 0].tolist() == [[[0, 0], [2, 0]], [[1, 1], [2, 1]], [[3, 1], [3, 0]]]


def test_copies_are_those_within_four_levels_and_large_images_are_scaled_to_224(tmp_path):
    thumbnail, other = torch.zeros(64), torch.zeros(64)
    for value, alike in ((3.9, True), (4.1, False)):
        other[7] = value
        assert pairs.near_identical(thumbnail, other) == alike
    Image.new("RGB", (300, 260)).save(tmp_path / "a.png")
    assert pairs.natural_size([tmp_path / "a.png"]) == 224 and pairs.decode([tmp_path / "a.png"], None, "")[0].shape[2:] == (224, 224)


def test_the_cache_holds_what_decoding_gives_and_decodes_once(tmp_path, monkeypatch):
    files = noisy(tmp_path / "d")
    expected, _ = pairs.decode(files, 16, "")
    for first in (10, 40):  # a limited run decodes what it needs, the next one goes on from there
        images, kept = pairs.cached(files, first, 16, "", cache=tmp_path / "cache")
        assert torch.equal(images, expected[:first]) and kept.tolist() == list(range(first))
    monkeypatch.setattr(pairs, "open_image", lambda path: pytest.fail("decoded again"))
    images, _ = pairs.cached(files, 40, 16, "", cache=tmp_path / "cache")
    assert torch.equal(images, expected) and len(list((tmp_path / "cache").iterdir())) == 1
    images[0] = 0  # the caller's copy: the file stays
    assert torch.equal(pairs.cached(files, 40, 16, "", cache=tmp_path / "cache")[0], expected)


def test_an_array_larger_than_the_memory_is_mapped(tmp_path):
    """Linux refuses a writable copy of one, even if nothing is ever written."""
    size = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 36
    try:
        with open(tmp_path / "images.bin", "wb") as file:
            file.truncate(size)
    except OSError:
        pytest.skip("the file system has no files of that size")
    images = pairs.mapped(tmp_path / "images.bin", (size // 3072, 3, 32, 32))
    ends = images[[0, -1]]
    del images
    (tmp_path / "images.bin").unlink()  # not to be kept: a copy of it may take all of its length
    assert not ends.any()


def test_lists_of_files_do_not_share_a_cache(tmp_path):
    """Folders of one name, with files of equal names, sizes and times; and one folder's files in another order."""
    for folder in ("x", "y"):
        (tmp_path / folder / "d").mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, ord(folder), 0)).save(tmp_path / folder / "d" / f"{i}.bmp")
            os.utime(tmp_path / folder / "d" / f"{i}.bmp", (1, 1))
        files = sorted((tmp_path / folder / "d").iterdir())
        for paths in (files, files[::-1]):
            images, _ = pairs.cached(paths, 3, 8, "", cache=tmp_path / "c")
            assert torch.equal(images, pairs.decode(paths, 8, "")[0])


def test_a_changed_source_is_decoded_anew(tmp_path, capsys):
    files = noisy(tmp_path / "d", 5)
    pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")
    for colour in ((1, 2, 3), (4, 5, 6)):  # the second is as large as the first: only its time tells
        Image.new("RGB", (30, 30), colour).save(files[3], "BMP")
        os.utime(files[3], (colour[0], colour[0]))
        images, _ = pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")
        assert images[3, :, 0, 0].tolist() == list(colour) and "has changed" in capsys.readouterr().out
        assert torch.equal(images, pairs.decode(files, 16, "")[0])


@pytest.mark.parametrize("damage", [lambda f: (f / "images.bin").unlink(), lambda f: (f / "done.bin").unlink(), lambda f: (f / "index.json").unlink(),
                                    lambda f: os.truncate(f / "images.bin", 100), lambda f: (f / "index.json").write_text('{"finger'),
                                    lambda f: (f / "index.json").write_text("{}"), lambda f: (f / "index.json").write_text("[]")])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    files = noisy(tmp_path / "d", 5)
    whole = pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")[0].clone()
    damage(next((tmp_path / "cache").iterdir()))
    assert torch.equal(pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")[0], whole)


def test_a_whole_cache_may_be_one_that_can_only_be_read(tmp_path):
    """As several people share one. (For root the modes mean nothing: then the lock alone is in the way.)"""
    files = noisy(tmp_path / "d", 5)
    whole = pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")[0].clone()
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "lock").unlink(), (folder / "lock").mkdir()
    for path, mode in [*((file, 0o444) for file in folder.glob("*.*")), (folder, 0o555)]:
        path.chmod(mode)
    try:
        assert torch.equal(pairs.cached(files, 5, 16, "", cache=tmp_path / "cache")[0], whole)
    finally:
        folder.chmod(0o755)


def test_bad_images_and_full_disks_with_a_cache(tmp_path, monkeypatch):
    files = noisy(tmp_path / "d", 6)
    right = pairs.decode(files, 16, "")[0]
    files[2].write_bytes(b"")
    for _ in range(2):  # named each time, not only when first met
        with pytest.raises(UserError, match="1 of 6 images cannot be read: .*002.png"):
            pairs.cached(files, 6, 16, "", cache=tmp_path / "cache")
        images, kept = pairs.cached(files, 6, 16, "", skip_bad=True, cache=tmp_path / "cache")
        assert kept.tolist() == [0, 1, 5, 3, 4] and torch.equal(images, right[kept])  # the last good one in the gap
    (array,) = (tmp_path / "cache").glob("*/images.bin")
    assert not np.fromfile(array, np.uint8).reshape(6, -1)[2].any()  # and not on the disk
    monkeypatch.setattr(pairs.shutil, "disk_usage", lambda _: type("", (), {"free": 100}))
    with pytest.raises(UserError, match="6 images of 24 px need 0.0 MB"):
        pairs.cached(files, 6, 24, "", cache=tmp_path / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_image_that_the_disk_had_no_room_for_is_not_marked_as_decoded(tmp_path):
    (file,) = noisy(tmp_path / "d", 1)
    (tmp_path / "images.bin").symlink_to("/dev/full")
    (tmp_path / "done.bin").write_bytes(b"\0")
    with pytest.raises(OSError):
        pairs.fill_part(tmp_path, 16, [(0, str(file))])
    assert (tmp_path / "done.bin").read_bytes() == b"\0"


def test_a_script_that_decoding_processes_import_again_is_told(tmp_path, monkeypatch):
    """Such a process would wait for the lock that its parent holds."""
    files = noisy(tmp_path / "d", 2)
    monkeypatch.setattr(pairs.multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match='load images under if __name__ == "__main__"'):
        pairs.cached(files, 2, 16, "", cache=tmp_path / "cache")
    monkeypatch.setattr(pairs.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(UserError, match='load images under if __name__ == "__main__"'):
        list(pairs.in_parts(pairs.read_thumbnails, files, ""))


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="needs processes that are forked")
def test_a_script_without_a_guard_decodes_by_several_processes(tmp_path):
    files = noisy(tmp_path / "d")
    code = ("import os, sys, pathlib, pairs\n"
            "pairs.os.sched_getaffinity = lambda _: {0, 1}\n"
            "read = lambda paths: [os.getpid() for path in paths]\n"
            "print(*pairs.in_parts(read, sorted(pathlib.Path(sys.argv[1]).iterdir()), '', size=4), os.getpid())\n")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d"], cwd=Path(pairs.__file__).parent, capture_output=True, text=True)
    *readers, parent = done.stdout.split()
    assert len(readers) == len(files) and len(set(readers)) == 2 and parent not in readers and done.stderr == ""


def test_a_killed_build_goes_on_and_ends_equal(tmp_path):
    """SIGKILL at moments spread over the build, which runs in several processes."""
    files = noisy(tmp_path / "d", 600, 120)
    code = ("import sys, pathlib, pairs\n"
            "if __name__ == '__main__':\n"
            "    whole = pairs.in_parts\n"
            "    pairs.in_parts = lambda *a: whole(*a, size=4)\n"  # many jobs, so that processes start, also where there is one core
            "    pairs.os.sched_getaffinity = lambda _: {0, 1}\n"
            "    print('start', flush=True)\n"
            "    pairs.cached(sorted(pathlib.Path(sys.argv[1]).iterdir()), 600, 64, '', cache=sys.argv[2])\n")
    (tmp_path / "build.py").write_text(code)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(Path(pairs.__file__).parent), os.environ.get("PYTHONPATH")])))
    decoded = lambda: sum(int(np.fromfile(f, np.uint8).sum()) for f in (tmp_path / "cache").glob("*/done.bin"))
    for target in (0, 100, 350):  # killed when so many are done
        child = subprocess.Popen([sys.executable, tmp_path / "build.py", tmp_path / "d", tmp_path / "cache"], env=environment, stdout=subprocess.PIPE)
        child.stdout.readline()
        while decoded() < target and child.poll() is None:
            time.sleep(0.01)
        listed = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        workers = listed.read_text().split() if listed.exists() else []
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert decoded() >= 350

    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    until = time.time() + 20
    while not {state(pid) for pid in workers} <= {"gone", "Z"}:
        assert time.time() < until, "a process that decodes has outlived its parent"
        time.sleep(0.1)
    images, _ = pairs.cached(files, 600, 64, "", cache=tmp_path / "cache")
    assert torch.equal(images, pairs.decode(files, 64, "")[0])


def test_a_killed_build_of_small_images_loses_none(tmp_path):
    files = noisy(tmp_path / "d")
    code = ("import os, sys, pathlib, pairs\nopened, seen = pairs.open_image, []\n"
            "pairs.open_image = lambda path: seen.append(path) or (os._exit(9) if len(seen) > 20 else opened(path))\n"
            "pairs.cached(sorted(pathlib.Path(sys.argv[1]).iterdir()), 40, 16, '', cache=sys.argv[2])\n")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d", tmp_path / "c"], cwd=Path(pairs.__file__).parent)
    assert done.returncode == 9
    assert torch.equal(pairs.cached(files, 40, 16, "", cache=tmp_path / "c")[0], pairs.decode(files, 16, "")[0])


def test_streamed_batches_are_those_of_images_in_memory():
    images, index = pool(torch.arange(64) % 4).images, torch.randperm(64).split(16)
    for rows, x in zip(index, pairs.streamed(images, index, "cpu"), strict=True):
        assert torch.equal(images[rows], x)


def test_images_that_would_fill_a_gpu_stay_on_the_disk(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**12))  # free, whole
    images = torch.zeros(400, dtype=torch.uint8)
    assert pairs.to_device(images, "cuda") is images


# -- curation


def two_colours(folder, n=12):
    """Class folders of n noisy red and n noisy blue images."""
    generator = torch.Generator().manual_seed(0)
    for name in ("blue", "red"):
        (folder / "train" / name).mkdir(parents=True), (folder / "test" / name).mkdir(parents=True)
        for i in range(n):
            pixels = torch.randint(0, 100, (16, 16, 3), generator=generator, dtype=torch.uint8)
            pixels[:, :, 0 if name == "red" else 2] += 120
            Image.fromarray(pixels.numpy()).save(folder / "train" / name / f"{i:02d}.png")
    return folder


def test_proposed_pairs_are_balanced_and_pass_the_check(tmp_path):
    folder = two_colours(tmp_path / "d")
    shutil.rmtree(folder / "test")  # a list needs none
    rows = pairs.propose(folder, count=10)
    assert len(rows) == 10 and [r["category"] for r in rows].count("red") == 5
    for row in rows:
        assert row["image_a"] != row["image_b"] and row["image_a"].split("/")[1] == row["image_b"].split("/")[1] == row["category"]
    (tmp_path / "l.csv").write_text("image_a,image_b,category\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    assert pairs.check(tmp_path / "l.csv", folder)[1] == []


def test_spaces_around_a_class_do_not_hide_false_pairs(tmp_path):
    folder = two_colours(tmp_path / "d")
    for name in ("red", "blue"):
        (folder / "train" / name).rename(folder / "train" / f"{name} ")
    (tmp_path / "l.csv").write_text("image_a,image_b,category\n" + "".join(f"train/red /0{i}.png,train/blue /0{i}.png,red \n" for i in range(4)))
    assert "false pairs: 4 of 4 (100.0%)" in pairs.check(tmp_path / "l.csv", folder)[0]
    assert pairs.read_pair_list(tmp_path / "l.csv", folder).rates(0)["false_rate"] == 1


def test_fewer_pairs_than_classes_are_of_classes_at_random(tmp_path):
    for c in range(20):
        (tmp_path / "d" / f"c{c:02d}").mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (c, i, 0)).save(tmp_path / "d" / f"c{c:02d}" / f"{i}.png")
    categories = [row["category"] for row in pairs.propose(tmp_path / "d", count=10)]
    assert len(set(categories)) == 10 and set(categories) != {f"c{c:02d}" for c in range(10)}


def test_a_file_name_that_a_list_cannot_hold_is_named(tmp_path):
    folder = two_colours(tmp_path / "d")
    try:
        (folder / "train" / "red" / "00.png").rename(os.fsdecode(bytes(folder / "train" / "red") + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(UserError, match="is not UTF-8"):
        pairs.propose(folder)


def test_neighbours_without_labels_and_without_copies():
    h = torch.tensor([[1, 0.0], [1, 0.01], [1, 0.3], [0, 1], [0.1, 1]])
    assert pairs.nearest_partners(h).tolist() == [1, 0, 1, 4, 3]
    assert pairs.nearest_partners(h, torch.tensor([0, 1, 0, 1, 1])).tolist() == [2, 4, 0, 4, 3]
    copies = lambda i, j: (i + j) == 1  # images 0 and 1 are the same picture
    assert pairs.nearest_partners(h, forbidden=copies).tolist() == [2, 2, 1, 4, 3]
    assert pairs.nearest_partners(h * 2.0**-60).tolist() == [1, 0, 1, 4, 3]  # features of any scale


def test_neighbours_of_many_images_are_those_of_plain_loops():
    torch.manual_seed(0)
    h, labels = torch.randn(1100, 8), torch.randint(3, (1100,)) * 2  # more than are compared at a time; no image of class 1, 3
    labels[:1060] = 0
    u = torch.nn.functional.normalize(h, dim=1).double()
    for labels in (None, labels):
        found = pairs.nearest_partners(h, labels, forbidden=lambda i, j: (i + j) % 3 == 0, at_once=500_000)
        for i in range(0, 1100, 7):
            others = [j for j in range(1100) if j != i and (labels is None or labels[j] == labels[i])]
            nearest = sorted(others, key=lambda j: -(u[i] @ u[j]))[:5]
            assert found[i] == next((j for j in nearest if (i + j) % 3), nearest[0])
    with pytest.raises(ValueError, match="one image"):
        pairs.nearest_partners(h[:3], torch.tensor([0, 0, 1]))


def test_proposals_by_features_skip_copies_cross_classes_if_asked_and_depend_on_the_seed(tmp_path):
    folder, pixels = two_colours(tmp_path / "d"), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(768))
    red, blue = folder / "train" / "red", folder / "train" / "blue"
    shutil.copy(red / "00.png", red / "copy.png")
    like = np.array(Image.open(red / "01.png"))
    like[:4, :4] = 0
    Image.fromarray(like).save(blue / "like.png")
    partners = lambda **options: {row["image_a"]: row["image_b"] for row in pairs.propose(folder, **options)}
    by = lambda **options: partners(by="features", backbone=pixels, image_size=16, **options)
    assert by()["train/red/00.png"] != "train/red/copy.png"
    assert by()["train/red/01.png"].startswith("train/red/") and by(ignore_labels=True)["train/red/01.png"] == "train/blue/like.png"
    one, other = partners(seed=0), partners(seed=1)
    assert list(one) != list(other) and one != other  # the order, and the partners


def test_where_there_is_nothing_to_pair_it_is_told(tmp_path, capsys):
    def refused(said, call, *given, **options):
        with pytest.raises(UserError, match=said):
            call(*given, **options)

    folder, pixels = two_colours(tmp_path / "d", 2), torch.nn.Flatten()
    (tmp_path / "struck.csv").write_text("image_a,image_b,keep\nd/train/red/00.png,d/train/red/01.png,0\n")
    refused("struck.csv: no pairs in it", pairs.read_pair_list, tmp_path / "struck.csv")
    refused("nowhere.csv: no such file", pairs.read_pair_list, tmp_path / "nowhere.csv")
    refused("nowhere: no such folder", pairs.propose, tmp_path / "nowhere")
    (folder / "train" / "red" / "01.png").write_bytes(b"")
    (tmp_path / "bad.csv").write_text("image_a,image_b\nd/train/red/00.png,d/train/red/01.png\n")
    refused("bad.csv: no pair is left", pairs.read_pair_list, tmp_path / "bad.csv", skip_bad=True)
    refused("one image only, so no partner: red", pairs.propose, folder, skip_bad=True)
    flat = folder / "train" / "red"
    refused("only one of its images can be read", pairs.propose, flat, "features", backbone=pixels, skip_bad=True)
    (flat / "01.png").unlink()
    refused("neither class folders nor two images", pairs.propose, flat)
    shutil.copy(flat / "00.png", flat / "copy.png")
    pairs.propose(flat, "features", backbone=pixels)
    assert "note: for 2 images the five nearest are all near-identical" in capsys.readouterr().out


def test_a_list_is_proposed_from_the_cache_and_files_are_read_by_several_processes(tmp_path, monkeypatch):
    folder = two_colours(tmp_path / "d")
    assert pairs.propose(folder, cache=tmp_path / "c") == pairs.propose(folder) == pairs.propose(folder, cache=tmp_path / "c")
    backbone, _ = evaluate.build_backbone("convnet", 16)
    by_features = [pairs.propose(folder, "features", None, backbone, 16, cache=cache) for cache in (None, tmp_path / "c")]
    assert by_features[0] == by_features[1]
    assert len(list((tmp_path / "c").iterdir())) == 2  # at 8 px, where no features are needed, and
    pairs.load_images(folder, "train", 16, cache=tmp_path / "c")  # that of a run on the folder
    assert len(list((tmp_path / "c").iterdir())) == 2
    (folder / "train" / "blue" / "03.png").write_bytes(b"")
    partners = lambda rows: {row["image_a"]: row["image_b"] for row in rows}
    rows, plain = (pairs.propose(folder, "features", None, backbone, 16, skip_bad=True, cache=cache) for cache in (tmp_path / "c", None))
    assert partners(rows) == partners(plain)  # though the cache returns the images in another order
    for rows in (rows, pairs.propose(folder, skip_bad=True, cache=tmp_path / "c")):
        assert len(partners(rows)) == 23 and "train/blue/03.png" not in partners(rows).keys() | partners(rows).values()
        assert all(row["image_a"].split("/")[1] == row["image_b"].split("/")[1] == row["category"] for row in rows)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    files = pairs.find_images(folder)
    wanted = [files[k] for i in range(40) for k in (i % 24, 3)]
    found = list(pairs.in_parts(pairs.read_thumbnails, wanted, "", size=3))  # many parts, so that processes start
    for path, thumbnail, expected in zip(wanted, found, pairs.read_thumbnails(wanted), strict=True):
        assert "03.png" in thumbnail and thumbnail == expected if path == files[3] else np.array_equal(thumbnail, expected)
    flat = (two_colours(tmp_path / "e") / "train").rename(tmp_path / "flat")
    status, _, error = run_pairs("propose", "--data", flat, "--out", tmp_path / "l.csv", "--cache", flat / "cache")
    assert status == 2 and "--cache" in error and "would lie in --data" in error and not (flat / "cache").exists()


def run_pairs(*arguments):
    return call_here("pairs.py", *arguments)


def test_propose_strike_out_check_and_train_as_a_user_does(tmp_path):
    folder, out = two_colours(tmp_path / "d"), tmp_path / "pairs.csv"
    status, said, error = run_pairs("propose", "--data", folder, "--out", tmp_path / "few.csv", "--show", 2, "--cache", tmp_path / "c")
    assert status == 0 and "24 pairs" in said and Image.open(tmp_path / "few-001.png").size[1] < 200, error
    status, said, error = run_pairs("propose", "--data", folder, "--out", out, "--cache", tmp_path / "c")
    assert status == 0 and "24 pairs" in said and f"pairs.csv --data {folder} --cache {tmp_path}" in said, error
    assert min(Image.open(tmp_path / "pairs-001.png").size) > 100
    text = out.read_text().splitlines()
    assert text[0] == "number,image_a,image_b,category,keep" and len(text) == 25
    out.write_text("\n".join([text[0], text[1][:-1] + "0", *text[2:]]) + "\n")  # one struck out
    status, said, _ = run_pairs("check", out, "--data", folder)
    assert status == 0 and "24 rows, 23 kept" in said and "false pairs: 0 of 23" in said and "11 (" in said and "nothing wrong" in said
    source = pairs.read_pair_list(out, folder)
    assert len(source) == 23 and source.rates(0)["false_rate"] == 0 and source.pool.classes == ["blue", "red"]
    wrong = pairs.replace(source, false_pairs=1.0)
    assert wrong.rates(0)["false_rate"] == 1
    status, _, error = run_pairs("propose", "--data", folder, "--out", out)
    assert status == 2 and "not overwritten" in error and error.count("\n") == 1
    (tmp_path / "link.csv").symlink_to(tmp_path / "not there.csv")
    status, _, error = run_pairs("propose", "--data", folder, "--out", tmp_path / "link.csv")
    assert status == 2 and "link.csv exists and is not overwritten" in error and (tmp_path / "link.csv").is_symlink()
    out.rename(tmp_path / "other.csv")
    status, _, error = run_pairs("propose", "--data", folder, "--out", out)
    assert status == 2 and "pairs-001.png exists and is not overwritten" in error
    status, _, error = run_pairs("propose", "--data", folder, "--out", folder / "train" / "lists" / "p.csv")
    assert status == 2 and "be one of its classes" in error and not (folder / "train" / "lists").exists()


def test_contact_sheets_are_not_written_among_images_without_classes(tmp_path):
    (two_colours(tmp_path / "d") / "train" / "red").rename(tmp_path / "flat")
    features = ["--by", "features", "--backbone-file", "x.pt", "--cache", tmp_path / "c", "--device", "cpu"]
    status, _, error = call_here("pairs.py", "propose", "--data", tmp_path / "flat", "--out", tmp_path / "flat" / "p.csv", *features)
    assert status == 2 and "would lie in --data" in error and "or its images" in error and len(list((tmp_path / "flat").iterdir())) == 12
    status, _, error = call_here("pairs.py", "propose", "--data", tmp_path / "flta", "--out", tmp_path / "p.csv", *features)
    assert status == 2 and "flta: no such folder" in error


@pytest.mark.parametrize("layout, note", [
    (".", None), ("images", None), ("train/red", "has train/ but neither test/ nor val/"), ("red", "annotations holds no image"),
])
def test_a_list_needs_no_class_folders(tmp_path, monkeypatch, layout, note):
    """Its images may lie anywhere below --data, also if that is where the program runs and writes; then without a table."""
    folder = tmp_path / "d"
    (folder / layout).mkdir(parents=True, exist_ok=True)
    for file in (two_colours(tmp_path / "colours") / "train" / "red").iterdir():
        file.rename(folder / layout / file.name)
    if layout == "red":
        (folder / "annotations").mkdir()
    (tmp_path / "l.csv").write_text("image_a,image_b\n" + "".join(f"{layout}/{i:02d}.png,{layout}/{i + 1:02d}.png\n" for i in range(4)))
    monkeypatch.chdir(folder)
    for arm in ("semantic", "augmented"):
        said = printed("simclr.py", "--pairs", "../l.csv", "--data", ".", "--arm", arm, "--backbone", "convnet", "--batch-size", "2", "--epochs", "1", "--device", "cpu")
        assert "so no table" in said and (note is None or note in said)
    assert len(list((folder / "runs").iterdir())) == 2


def test_a_run_beside_the_images_of_its_list_is_not_judged_on_its_own_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (two_colours(Path("colours")) / "train").rename("d")
    shutil.rmtree("d/blue")
    Path("d/l.csv").write_text("image_a,image_b\n" + "".join(f"red/{i:02d}.png,red/{i + 1:02d}.png\n" for i in range(4)))
    options = ["--data", "d", "--out", "d/run", "--backbone", "convnet", "--batch-size", "2", "--epochs", "1", "--device", "cpu"]
    assert "so no table" in printed("simclr.py", "--pairs", "d/l.csv", *options)


def test_a_list_is_judged_on_class_folders_where_there_are_some(tmp_path, capsys):
    folder = two_colours(tmp_path / "d")
    assert not pairs.can_judge(folder)  # test/ is empty
    for name in ("red", "blue"):
        Image.new("RGB", (16, 16), name).save(folder / "test" / name / "a.png")
    assert pairs.can_judge(folder)
    (folder / "val" / "green").mkdir(parents=True)
    assert not pairs.can_judge(folder) and "val has classes that" in capsys.readouterr().out
    (folder / "val" / "green").rename(folder / "val" / "red")
    assert not pairs.can_judge(folder) and "no images in class folders below" in capsys.readouterr().out
    few = two_colours(tmp_path / "few")
    for i, name in [*enumerate(("red", "blue") * 10, start=4)]:
        (few / "train" / name / f"{i // 2:02d}.png").unlink()
    for name in ("red", "blue"):
        Image.new("RGB", (16, 16), name).save(few / "test" / name / "a.png")
    assert not pairs.can_judge(few) and f"judged on {few}: it has 4 training images, and a probe needs 5 or more" in capsys.readouterr().out
    shutil.copytree(few / "test", few / "val")
    assert pairs.can_judge(few)  # the probe's strength is chosen on val/
    shutil.rmtree(folder / "val"), shutil.rmtree(folder / "train" / "blue"), shutil.rmtree(folder / "test" / "blue")
    assert not pairs.can_judge(folder) and "it has one class only, red" in capsys.readouterr().out


def test_images_of_a_list_that_the_run_is_tested_on_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (two_colours(Path("colours")) / "train").rename("d")
    Path("l.csv").write_text("image_a,image_b,keep\nred/03.png,red/04.png,1\nblue/04.png,blue/05.png,1\nred/01.png,red/09.png,0\n")
    # every fifth image of a class is for testing: 04 and 09
    asked = ["--pairs", "l.csv", "--data", "d", "--batch-size", "2", "--device", "cpu"]

    def said(*options):
        pairs.load_pairs(simclr.parse_args([*asked, *options]))
        return capsys.readouterr().out

    assert "note: 2 of the images that the run will be tested on are in the list" in said()
    assert "note: 1 of the images" in said("--arm", "augmented")  # which does not train on red/04, never image_a
    Path("l.csv").write_text("image_a,image_b\nred/00.png,red/01.png\nblue/00.png,blue/01.png\nred/03.png,red/04.png\n")
    assert "note: 1 of the images" in said()
    assert "tested on" not in said("--limit", "2")


def test_semantic_pairs_of_a_single_class_are_refused(tmp_path):
    (two_colours(tmp_path / "colours") / "train").rename(tmp_path / "d")
    (tmp_path / "above").mkdir()
    (tmp_path / "d").rename(tmp_path / "above" / "d")  # --data is one folder too high
    pool = pairs.load_images(str(tmp_path / "above"))
    assert len(pairs.make_pairs("augmented", pool, 0)) == len(pool)
    with pytest.raises(UserError, match="above has one class only, d; is --data the folder of the class folders"):
        pairs.make_pairs("semantic", pool, 0)
    for by in ("random", "features"):
        with pytest.raises(UserError, match="above has one class only, d; is it the folder of the class folders"):
            pairs.propose(tmp_path / "above", by)
    pixels = torch.nn.Flatten()
    assert len(pairs.propose(tmp_path / "above", "features", backbone=pixels, ignore_labels=True)) == 20  # every fifth is for testing
    for category, said in (("d", "not known"), ("cat", "0 of 2")):  # the folder's name again, and the list's own word
        (tmp_path / "l.csv").write_text(f"image_a,image_b,category\nd/red/00.png,d/blue/00.png,{category}\nd/blue/01.png,d/red/02.png,{category}\n")
        assert f"false pairs: {said}" in pairs.check(tmp_path / "l.csv", tmp_path / "above")[0][-1]


def test_a_folder_of_one_class_is_trained_on_and_not_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noisy(tmp_path / "d" / "all", 10)
    load = lambda: pairs.load_pairs(simclr.parse_args(["--data", "d", "--batch-size", "2"])).judged
    assert not load() and "note: d has one class only, all, so the run will not be judged on it" in capsys.readouterr().out
    noisy(tmp_path / "d" / "more", 10)
    assert load() and "one class" not in capsys.readouterr().out


def test_images_too_few_for_a_probe_are_trained_on_and_not_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        noisy(tmp_path / "d" / name, 10)
    options = ["--data", "d", "--batch-size", "2", "--backbone", "convnet", "--epochs", "1", "--device", "cpu"]
    said = "note: d has 4 training images, and a probe needs 5 or more, so the run will not be judged on it"
    out = printed("simclr.py", *options, "--limit", "4")
    assert said in out and "so no table" in out
    assert "linear probe" in printed("simclr.py", *options, "--limit", "5", "--out", "five")
    scenes = lambda limit: pairs.load_pairs(simclr.parse_args(["--data", "scenes", "--limit", limit, "--batch-size", "4"])).judged
    assert (scenes("4"), scenes("5")) == (False, True)


def test_a_class_that_the_test_split_lacks_is_trained_on_and_not_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = two_colours(Path("d"))
    Image.new("RGB", (16, 16), "red").save(folder / "test" / "red" / "a.png")
    (folder / "test" / "blue").rmdir()
    found = pairs.load_images("d", "test")
    assert found.classes == ["blue", "red"] and found.labels.tolist() == [1]
    (tmp_path / "l.csv").write_text("image_a,image_b\n" + "".join(f"train/red/{i:02d}.png,train/red/{i + 1:02d}.png\n" for i in range(4)))
    for kind in ("semantic", "l.csv"):
        said = printed("simclr.py", "--pairs", kind, "--data", "d", "--backbone", "convnet", "--batch-size", "2", "--epochs", "1", "--device", "cpu")
        assert "linear probe d 2 1.000" in " ".join(said.split())  # two classes; chance: all test images are of one


@pytest.mark.parametrize("options, said", [
    (["--backbone-file", "x.pt"], "--backbone-file needs --by features"),
    (["--ignore-labels"], "--ignore-labels needs --by features"),
    (["--by", "features"], "needs --backbone-file"),
])
def test_options_of_features_go_with_features(options, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pairs.py", "propose", "--data", str(two_colours(tmp_path / "d")), "--out", str(tmp_path / "l.csv"), *options])
    with pytest.raises(UserError, match=said):
        pairs.main()
    assert not (tmp_path / "l.csv").exists()


def test_a_mistake_that_evaluate_finds_is_one_line_of_the_program_pairs(tmp_path):
    """Run as a program, pairs.py is loaded twice, and there must be one UserError."""
    options = ["--by", "features", "--backbone-file", "x.pt", "--backbone", "convnet", "--device", "cpu", "--out", tmp_path / "l.csv"]
    done = subprocess.run([sys.executable, pairs.__file__, "propose", "--data", two_colours(tmp_path / "d"), *options], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "pairs.py: error: x.pt: no such file" and "Traceback" not in done.stderr


def test_proposals_by_features_from_the_command_line(tmp_path, monkeypatch):
    (two_colours(tmp_path / "d") / "train" / "red").rename(tmp_path / "flat")
    torch.manual_seed(1)
    backbone, _ = evaluate.build_backbone("convnet", 16)
    torch.save(backbone.state_dict(), tmp_path / "b.pt")
    given, propose = [], pairs.propose
    monkeypatch.setattr(pairs, "propose", lambda *a: given.append(a) or propose(*a))
    options = ["--by", "features", "--backbone", "convnet", "--backbone-file", tmp_path / "b.pt", "--count", 5, "--seed", 3, "--skip-bad", "--ignore-labels",
               "--device", "cpu", "--cache", tmp_path / "c", "--out", tmp_path / "l.csv"]
    status, _, error = call_here("pairs.py", "propose", "--data", tmp_path / "flat", *options)
    assert status == 0, error
    (_, by, count, used, size, seed, ignore, skip, cache), = given
    assert (by, count, size, seed, ignore, skip, cache) == ("features", 5, 16, 3, True, True, str(tmp_path / "c"))
    assert all(torch.equal(a, b) for a, b in zip(used.parameters(), backbone.parameters(), strict=True))
    evaluate.write_json(tmp_path / "config.json", {"backbone": "convnet", "image_size": 24})  # as if it were of a run
    status, _, error = call_here("pairs.py", "propose", "--data", tmp_path / "flat", *options[:-1], tmp_path / "m.csv")
    assert status == 0 and given[1][4] == 24, error
    rows = list(csv.DictReader(open(tmp_path / "l.csv")))
    assert [row["number"] for row in rows] == list("12345") and {row["category"] for row in rows} == {""}
    with pytest.raises(UserError, match="has no class folders: only --by features"):
        propose(tmp_path / "flat")


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files stands for a full disk")
def test_a_full_disk_leaves_no_list_that_is_cut_off(tmp_path):
    import resource

    folder = two_colours(tmp_path / "d")
    pairs.load_images(folder, "train", 8, cache=tmp_path / "c")
    command = [sys.executable, pairs.__file__, "propose", "--data", folder, "--out", tmp_path / "p.csv", "--cache", tmp_path / "c"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)), "env": pairs.os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}}
    done = subprocess.run(command, **limit, capture_output=True, text=True)
    assert done.returncode == 2 and "is full; make room" in done.stderr and not (tmp_path / "p.csv").exists()
    assert done.stdout == ""  # the cache was whole: it is the list that had no room


def test_a_killed_process_that_decodes_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(pairs.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        pairs.run_cli(lambda: list(pairs.in_parts(die, list(range(40)), "", size=1)))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "was killed, perhaps for want of memory" in error and error.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) is before


def die(part):
    os._exit(1)


@pytest.mark.parametrize("n", [4, 40])  # read here, and by processes
def test_a_full_disk_is_told_whoever_writes(n, monkeypatch):
    monkeypatch.setattr(pairs.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(OSError) as told:
        list(pairs.in_parts(fill_the_disk, list(range(n)), "", size=1))
    assert told.value.errno == errno.ENOSPC


def fill_the_disk(part):
    raise OSError(errno.ENOSPC, "no room")


@pytest.mark.skipif(os.name == "nt", reason="needs signals to a group of processes")
def test_ctrl_c_while_processes_decode_is_one_line(tmp_path):
    noisy(tmp_path / "d", 40, 120)
    code = ("import signal, sys, pathlib, pairs\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also where the tests were started with it ignored
            "pairs.os.sched_getaffinity = lambda _: {0, 1}\n"
            "def main():\n"
            "    found = pairs.in_parts(pairs.read_thumbnails, 2000 * list(pathlib.Path(sys.argv[1]).iterdir()), '', size=4)\n"
            "    next(found)\n"
            "    print('start', flush=True)\n"
            "    list(found)\n"
            "pairs.run_cli(main)\n")
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "d"], cwd=Path(pairs.__file__).parent, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
    child.stdout.readline()
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and said.startswith("\ninterrupted; ") and said.count("\n") == 2, said


def test_processes_that_decode_leave_ctrl_c_to_their_parent():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError), pairs.interrupts_ignored():
        code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is before


def test_check_finds_what_is_wrong(tmp_path):
    folder = two_colours(tmp_path / "d")
    (folder / "train" / "red" / "copy.png").write_bytes((folder / "train" / "red" / "00.png").read_bytes())
    (folder / "train" / "red" / "bad.png").write_bytes(b"x")
    rows = ["red/00.png,train/red/copy.png", "red/01.png,train/red/01.png", "red/02.png,train/red/gone.png", "red/03.png,train/red/bad.png",
            "red/04.png,train/blue/04.png", "red/05.png,train/red/06.png"]
    (tmp_path / "l.csv").write_text("image_a,image_b\n" + "".join(f"train/{row}\n" for row in rows))
    report, mistakes = pairs.check(tmp_path / "l.csv", folder)
    assert "false pairs: 1 of 4 (25.0%)" in report and "classes: 1; pairs in a class: 6 in each" in report
    assert "images: 11; 0 in more than one row, at most 1 rows" in report  # one is twice in its row
    (tmp_path / "l2.csv").write_text("image_a,image_b\ntrain/red/05.png,train/red/06.png\ntrain/red/07.png,train/red/06.png\n")
    assert "images: 3; 1 in more than one row, at most 2 rows" in pairs.check(tmp_path / "l2.csv", folder)[0]
    for line, said in ((2, "identical"), (3, "with itself"), (4, "is missing"), (5, "cannot be read"), (6, "two categories")):
        assert any(m.startswith(f"line {line}:") and said in m for m in mistakes), (line, mistakes)
    assert len(mistakes) == 5
    assert run_pairs("check", tmp_path / "l.csv", "--data", folder)[0] == 1


def test_check_and_training_take_a_lists_own_categories(tmp_path):
    """Folders may be cameras: then the list's column tells the category, to both."""
    folder = two_colours(tmp_path / "d")
    rows = [f"train/red/{i:02d}.png,train/blue/{i:02d}.png,{'cat' if i % 2 else 'dog'}" for i in range(8)]
    (tmp_path / "l.csv").write_text("\n".join(["image_a,image_b,category", *rows]) + "\n")
    report, mistakes = pairs.check(tmp_path / "l.csv", folder)
    assert "false pairs: 0 of 8 (0.0%)" in report and not mistakes
    source = pairs.read_pair_list(tmp_path / "l.csv", folder)
    assert source.pool.classes == ["cat", "dog"] and source.rates(0)["false_rate"] == 0
    (tmp_path / "l.csv").write_text("\n".join(["image_a,image_b,category", *(row.replace("cat", "red").replace("dog", "red") for row in rows)]) + "\n")
    report, mistakes = pairs.check(tmp_path / "l.csv", folder)  # the folders' names: then partners in blue are false
    assert "false pairs: 8 of 8 (100.0%)" in report and len(mistakes) == 8
    assert pairs.read_pair_list(tmp_path / "l.csv", folder).rates(0)["false_rate"] == 1


def test_a_partner_of_another_class_folder_is_false_where_only_some_categories_are_folders(tmp_path):
    folder = two_colours(tmp_path / "d")
    rows = ["red/00.png,train/blue/00.png,red", "red/01.png,train/red/02.png,special", "red/02.png,train/red/01.png,special", "blue/03.png,train/blue/04.png,blue",
            "red/05.png,train/red/06.png,special"]  # the last partner, no anchor, lies in a folder that is another row's category, but so does its anchor
    (tmp_path / "l.csv").write_text("image_a,image_b,category\n" + "".join(f"train/{row}\n" for row in rows))
    assert "false pairs: 1 of 5 (20.0%)" in pairs.check(tmp_path / "l.csv", folder)[0]


def test_a_category_holds_for_all_rows_of_an_anchor_and_may_be_coarser_than_the_folders(tmp_path):
    table = [{"image_a": Path(a), "image_b": Path(b), "category": c} for a, b, c in (("0", "1", ""), ("0", "2", "dog"), ("3", "2", "dog"))]
    assert set(pairs.categories_of(table, Path()).values()) == {"dog"}
    folder = two_colours(tmp_path / "d")
    (folder / "train" / "green").mkdir()
    shutil.copy(folder / "train" / "red" / "00.png", folder / "train" / "green" / "00.png")
    (tmp_path / "l.csv").write_text("image_a,image_b,category\ntrain/red/01.png,train/green/00.png,red\ntrain/blue/01.png,train/green/00.png,red\n")
    assert "false pairs: 0 of 2 (0.0%)" in pairs.check(tmp_path / "l.csv", folder)[0]  # blue ones are red here, so folders do not tell


def test_folders_above_the_classes_or_beside_the_splits_are_no_categories(tmp_path):
    folder = two_colours(tmp_path / "d")
    (tmp_path / "l.csv").write_text("image_a,image_b\n" + "".join(f"d/train/red/{i:02d}.png,d/train/blue/{i:02d}.png\n" for i in range(4)))
    report, mistakes = pairs.check(tmp_path / "l.csv")  # all lie in d, which says nothing
    assert report[-1].startswith("false pairs: not known") and not any(line.startswith("classes") for line in report) and not mistakes
    shutil.copytree(folder / "train" / "red", folder / "unlabeled")
    rows = [f"train/{c}/{i:02d}.png,unlabeled/{i + 6 * (c == 'red'):02d}.png,{c}" for c in ("red", "blue") for i in range(4)]
    (tmp_path / "l.csv").write_text("\n".join(["image_a,image_b,category", *rows]) + "\n")
    report, mistakes = pairs.check(tmp_path / "l.csv", folder)
    assert "false pairs: 0 of 8 (0.0%)" in report and not mistakes
    source = pairs.read_pair_list(tmp_path / "l.csv", folder)
    assert source.pool.classes == ["blue", "red"] and source.rates(0)["false_rate"] == 0


def test_rows_that_a_spreadsheet_leaves_empty_are_skipped_and_half_rows_told(tmp_path):
    folder = two_colours(tmp_path / "d")
    rows = ["image_a,image_b,category,keep", "train/red/00.png,train/red/01.png,red,1", ",,,", "train/red/02.png,,,0"]
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n,,,\n")
    assert len(pairs.read_pair_list(tmp_path / "l.csv", folder)) == 1 and pairs.check(tmp_path / "l.csv", folder)[1] == []
    (tmp_path / "l.csv").write_text("\n".join(rows[:2]) + "\ntrain/red/02.png,,,\n")
    with pytest.raises(UserError, match="line 3: image_a or image_b is empty"):
        pairs.read_rows(tmp_path / "l.csv", folder)


def test_lists_as_people_type_them_are_read_or_told(tmp_path):
    folder, file = two_colours(tmp_path / "d"), tmp_path / "l.csv"
    red = [f"train/red/{i:02d}.png" for i in range(12)]

    def listed(*lines):
        file.write_text("\n".join(lines) + "\n")
        return pairs.read_rows(file, folder)[0]

    assert [row["keep"] for row in listed("Image_A, image_b,KEEP", f"{red[0]},{red[1]},0", f"{red[0]},{red[2]},1")] == [False, True]
    spelled, = listed("image_a,image_b", f"{red[0]},train/../train/red/00.png")  # one image
    assert spelled["image_a"] == spelled["image_b"] and len(pairs.read_pair_list(file, folder).pool) == 1
    spaced, = listed("image_a, image_b, keep", f"{red[0]} , {red[1]}, 1")  # a space beside the comma is no part of a name
    assert (spaced["image_a"], spaced["image_b"]) == (folder / red[0], folder / red[1])
    (folder / " 4.png").write_bytes((folder / red[4]).read_bytes())
    named, = listed("image_a,image_b", f"{red[0]}, 4.png")  # but in a file's name it is
    assert named["image_b"] == folder / " 4.png"
    written_on_windows, = listed("image_a,image_b", f"{red[0]},train\\red\\01.png")
    assert written_on_windows["image_b"] == folder / red[1]
    with pytest.raises(UserError, match="line 2: image_a or image_b is empty"):
        listed("image_a,image_b", f"{red[0]}, ")
    for lines, said in ((("image_a,image_b,image_b", f"{red[0]},{red[1]},{red[2]}"), "image_a,image_b, separated by commas, and may name category and keep, each once"),
                        (("image_a,image_b,note", f'{red[0]},{red[1]},"12 inch', f"{red[2]},{red[3]},"), "cannot be read as a CSV"),
                        (("Keep,image_a,image_b,keep", f"0,{red[0]},{red[1]},1"), "may name category and keep, each once")):
        with pytest.raises(UserError, match=said):
            listed(*lines)
    listed("image_a,image_b,category", f"{red[0]},{red[1]},cat", f"{red[0]},{red[2]},dog")
    assert pairs.check(file, folder)[1] == [f"line 3: {folder / red[0]} is of dog, and of cat in another row"]
    listed("image_a,image_b,keep", f"{red[0]},{red[1]},0")
    assert pairs.check(file, folder)[1] == [f"{file}: no pairs in it"]


def test_mistyped_paths_do_not_hide_false_pairs_and_a_wrong_folder_is_one_line(tmp_path):
    folder, file = two_colours(tmp_path / "d"), tmp_path / "l.csv"
    file.write_text("image_a,image_b,category\ntrain/red/00.png,train/blue/00.png,red\ntrain/rde/01.png,train/red/02.png,red\n")
    mistakes = pairs.check(file, folder)[1]
    assert len(mistakes) == 2 and "rde/01.png is missing" in mistakes[0] and mistakes[1].endswith("are of two categories, red and blue")
    said, = pairs.check(file)[1]
    assert f"such as {tmp_path / 'train' / 'red' / '00.png'}: is --data the folder" in said


def test_a_pair_without_a_category_does_not_hide_the_others(tmp_path, capsys):
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "l.csv").write_text("image_a,image_b,category\n0.png,1.png,k\n2.png,3.png,\n4.png,5.png,m\n")
    report, mistakes = pairs.check(tmp_path / "l.csv")
    assert "classes: 2; pairs in a class: 1 in each; 1 without a category" in report and "false pairs: 0 of 2 (0.0%)" in report and not mistakes
    assert pairs.read_pair_list(tmp_path / "l.csv").pool.classes == ["l"] and "all images count as one class" in capsys.readouterr().out


def test_what_a_run_will_be_judged_on_is_read_before_it(tmp_path, monkeypatch):
    folder = two_colours(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    for name in ("blue", "red"):
        Image.new("RGB", (16, 16)).save(folder / "test" / name / "0.png")
    (tmp_path / "l.csv").write_text("image_a,image_b\ntrain/red/00.png,train/red/01.png\n")
    load = lambda *options: pairs.load_pairs(simclr.parse_args(["--data", str(folder), "--batch-size", "1", *options]))
    assert len(load("--pairs", "semantic")) == 24 and len(load("--pairs", "l.csv")) == 1
    (tmp_path / "four.csv").write_text("image_a,image_b\n" + "".join(f"train/red/0{i}.png,train/red/0{i + 1}.png\n" for i in range(4)))
    for arm, kind in (("semantic", "list"), ("augmented", "augmented")):
        found = load("--pairs", "four.csv", "--arm", arm, "--limit", "3", "--seed", "5", "--batch-size", "2")
        assert (found.kind, found.seed, len(found), len(found.pool)) == (kind, 5, 3, 4) and found.rows[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="--batch-size 64 is more than the 24 pairs of an epoch"):
        load("--pairs", "semantic", "--batch-size", "64")
    with pytest.raises(UserError, match="images of 2 px: use 8 px or more, see --image-size"):
        load("--pairs", "l.csv", "--image-size", "2")
    (folder / "test" / "red" / "0.png").write_bytes(b"")
    for kind in ("augmented", "semantic", "l.csv"):
        with pytest.raises(UserError, match="1 of 2 images cannot be read"):
            load("--pairs", kind)
    assert len(load("--pairs", "semantic", "--skip-bad")) == 24
    for i in range(12):
        (folder / "train" / "blue" / f"{i:02d}.png").write_bytes(b"")
    with pytest.raises(UserError, match="d has one class only, red"):  # none of blue is left
        load("--pairs", "semantic", "--skip-bad")
    with pytest.raises(UserError, match="l has no two categories to draw false partners from"):
        load("--pairs", "l.csv", "--skip-bad", "--false-pairs", "0.3")
    Image.new("RGB", (1, 1)).save(folder / "train" / "red" / "00.png")
    with pytest.raises(UserError, match="images of 1 px"):
        pairs.read_pair_list(tmp_path / "l.csv", folder)


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_bad_image_that_a_list_does_not_name_stops_the_run_before_it(split, tmp_path):
    folder = two_colours(tmp_path / "d")
    for part in ("test", "val"):
        for name in ("blue", "red"):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(folder / part / name / "0.png")
    (folder / split / "red" / ("0.png" if split == "val" else "11.png")).write_bytes(b"")
    (tmp_path / "l.csv").write_text("image_a,image_b\ntrain/red/00.png,train/red/01.png\n")
    with pytest.raises(UserError, match="1 of .* images cannot be read"):
        pairs.load_pairs(simclr.parse_args(["--data", str(folder), "--pairs", str(tmp_path / "l.csv"), "--batch-size", "1", "--cache", str(tmp_path / "c")]))


def test_a_contact_sheet_shows_the_pair_of_each_number(tmp_path, monkeypatch):
    for i in range(7):
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    shown, titles = [], []
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **_: shown.append((x[0, 0, 0] // 30, x[0, -1, 0] // 30)))
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text.split()))
    rows = [{"image_a": f"{i}.png", "image_b": f"{i + 1}.png", "category": "k"} for i in range(6)]
    pairs.write_sheets(tmp_path / "s", rows, tmp_path, per_sheet=4)
    assert shown == [(i, i + 1) for i in range(6)] and titles == [[str(i + 1), "k"] for i in range(6)]


def test_contact_sheets_of_classes_and_lists_of_any_name(tmp_path):
    folder = two_colours(tmp_path / "d", 3)
    (folder / "train" / "red").rename(folder / "train" / "$5_to_$_x")
    (folder / "train" / "blue").rename(folder / "train" / "靴")  # of which matplotlib's font has no picture
    for out in ("v.1", "v.2"):
        status, _, error = run_pairs("propose", "--data", folder, "--out", tmp_path / out, "--cache", tmp_path / "c")
        assert status == 0 and not error, error
    assert {"v.1-001.png", "v.2-001.png"} <= {p.name for p in tmp_path.iterdir()}


def test_links_to_folders_are_followed_once_and_a_folder_without_images_is_no_class(tmp_path):
    folder = two_colours(tmp_path / "d")
    more = two_colours(tmp_path / "more")
    count = len(pairs.find_images(folder / "train" / "red"))
    (folder / "train" / "red" / "more").symlink_to(more / "train" / "red", target_is_directory=True)
    (folder / "train" / "red" / "again").symlink_to(folder / "train" / "red", target_is_directory=True)
    assert len(pairs.find_images(folder / "train" / "red")) == 2 * count
    (folder / "train" / "__MACOSX").mkdir()
    with pytest.raises(UserError, match="__MACOSX holds no image, and every folder there is a class; remove it"):
        pairs.list_folder(folder, "train")


def test_photographs_of_formats_that_pillow_cannot_read_are_told(tmp_path):
    folder = two_colours(tmp_path / "d")
    (folder / "train" / "red" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match="1 of 25 images cannot be read: .*IMG_1.HEIC"):
        pairs.load_images(folder, "train")


# -- scenes drawn again, shifted, with boxes


def test_redrawing_a_factor_keeps_the_others_and_the_distribution():
    """Factors drawn again have the moments of a fresh draw, jointly too: bright objects, inside the image."""
    keys = {"position": {"x", "y"}, "scale": {"scale"}, "rotation": {"rotation"}, "noise": {"noise"}, "object color": {"object_color"},
            "illumination": {"light_angle", "light_strength", "exposure"},
            "background": {"background", "background_color", "angle", "frequency", "phase", "texture"}}
    category = torch.zeros(20000, dtype=torch.long)
    before = pairs.sample_factors(category, pairs.stream("a"))
    assert set(keys) == set(pairs.FACTORS)
    for name, moved in keys.items():
        after = pairs.redraw(before, name, pairs.stream("b", name))
        assert {k for k in before if not torch.equal(before[k], after[k])} == moved
        for k in moved - {"background"}:
            a, b = before[k].flatten(1) if before[k].ndim > 1 else before[k][:, None], after[k].flatten(1) if after[k].ndim > 1 else after[k][:, None]
            assert torch.allclose(a.mean(0), b.mean(0), atol=0.04 * float(a.std())), (name, k)
            assert torch.allclose(a.std(0), b.std(0), rtol=0.04), (name, k)
        contrast = after["object_color"] - after["background_color"][:, 0]
        assert contrast.min() > 0.399 and contrast.max() < 0.601
        off = torch.stack([after["x"] - 0.5, after["y"] - 0.5]).abs().amax(0)
        assert (off <= 0.5 - 1.2 * after["scale"] + 1e-5).all() and after["scale"].min() > 0.2399 and after["scale"].max() < 0.3601


def test_shifted_scenes_show_held_out_categories_in_contexts_that_training_never_draws(monkeypatch):
    shifted, factors, *_ = pairs.scenes("test", 24, details=True, shifted=True)
    plain = pairs.sample_factors(torch.zeros(5000, dtype=torch.long), pairs.stream("x"))
    assert shifted.name == "scenes-shifted" and len(shifted.classes) == 20
    assert (factors["object_color"] < factors["background_color"][:, 0]).all() and (plain["object_color"] > plain["background_color"][:, 0]).all()
    assert factors["rotation"].min() >= plain["rotation"].max() and factors["noise"].min() >= plain["noise"].max()
    assert torch.equal(shifted.labels, pairs.load_images("scenes-held-out", "test", 24).labels)
    assert pairs.load_images("scenes-shifted", "val") is None
    shapes, render = [], pairs.render_scenes
    monkeypatch.setattr(pairs, "render_scenes", lambda factors, drawn, *rest: shapes.append(drawn) or render(factors, drawn, *rest))
    pairs.scenes("test", 8, held_out=True), pairs.scenes("test", 8, shifted=True), pairs.scenes("test", 8)
    held_out, moved, seen = (c for c, _ in shapes)
    assert torch.equal(held_out, moved) and not torch.equal(held_out, seen[: len(held_out)])


def test_detection_scenes_have_apart_boxes_around_objects_that_stand_out():
    found = pairs.detection_scenes("train", 60, 64)
    again = pairs.detection_scenes("train", 60, 64)
    assert all(torch.equal(a, b) for a, b in zip(found.images, again.images)) and len(found.classes) == 5
    counts = torch.tensor([len(b) for b in found.boxes])
    assert counts.min() == 1 and 2 < counts.max() <= 4 and [len(v) for v in found.labels] == counts.tolist()
    for i, b in enumerate(found.boxes):
        assert b.min() >= 0 and b.max() <= 64 and (torchvision.ops.box_iou(b, b) - torch.eye(len(b))).abs().max() < 1e-5
        image = found.image(i).float().mean(0)
        outside = torch.ones(64, 64, dtype=torch.bool)
        for x1, y1, x2, y2 in b.int().tolist():
            outside[y1:y2, x1:x2] = False
        assert all(image[y1:y2, x1:x2].max() > image[outside].mean() for x1, y1, x2, y2 in b.int().tolist())


def test_objects_are_drawn_in_their_boxes_and_have_the_labels_of_their_shapes(monkeypatch):
    render, drawn = pairs.render_scenes, []
    monkeypatch.setattr(pairs, "render_scenes", lambda factors, *rest: drawn.append((factors["category"], render(factors, *rest))) or drawn[-1][1])
    data = pairs.detection_scenes("train", 20, 32)
    for i, (boxes, labels) in enumerate(zip(data.boxes, data.labels)):
        shown = {(*found[i].tolist(), int(category[i])) for category, (_, _, found) in drawn}
        assert {(*box.tolist(), int(label)) for box, label in zip(boxes, labels)} <= shown
        for box in boxes:
            rendered, masks, _ = next(result for _, result in drawn if torch.equal(result[2][i], box))
            assert torch.equal(data.images[i][:, masks[i]], rendered[i][:, masks[i]])


def test_detection_scenes_are_others_for_each_split_and_seed(monkeypatch):
    drawn = [torch.stack(pairs.detection_scenes(split, 8, 16, seed).images) for split, seed in (("train", 0), ("test", 0), ("train", 1))]
    assert all((drawn[0] == other).float().mean() < 0.1 for other in drawn[1:])  # contexts too, of which most pixels are
    monkeypatch.setattr(pairs, "detection_scenes", lambda *arguments: arguments)
    assert pairs.load_boxes(["scenes"], 3, 16) == (("train", 400, 16, 3), ("test", 200, 16, 3))


# -- other data sets


def test_splits_and_metrics_of_torchvisions_sets_are_those_of_publications():
    """Written out once more: figures are comparable with those of papers only if both are theirs."""
    split = lambda *names: tuple(name and {"split": name} for name in names)
    voc = lambda name: {"year": "2007", "image_set": name}
    assert {name: (*splits, metric) for name, (_, *splits, metric) in pairs.TORCHVISION_SETS.items()} == {
        "cifar10": ({"train": True}, None, {"train": False}, "top-1"),
        "cifar100": ({"train": True}, None, {"train": False}, "top-1"),
        "stl10": (*split("train", None, "test"), "top-1"),
        "svhn": (*split("train", None, "test"), "top-1"),
        "food101": (*split("train", None, "test"), "top-1"),
        "flowers102": (*split("train", "val", "test"), "mean per class"),
        "pets": (*split("trainval", None, "test"), "mean per class"),
        "dtd": (*split("train", "val", "test"), "top-1"),
        "aircraft": (*split("train", "val", "test"), "mean per class"),
        "cars": (*split("train", None, "test"), "top-1"),
        "caltech101": ({}, None, {}, "mean per class"),
        "sun397": ({}, None, {}, "top-1"),
        "voc2007": (voc("train"), voc("val"), voc("test"), "11-point mAP")}


@pytest.mark.parametrize("name", list(pairs.TORCHVISION_SETS))
def test_torchvision_takes_the_arguments_of_every_set(name, tmp_path):
    import inspect

    cls, *splits, metric = pairs.TORCHVISION_SETS[name]
    assert len(splits) == 3 and metric in ("top-1", "mean per class", "11-point mAP")
    for arguments in filter(None, splits):
        inspect.signature(getattr(torchvision.datasets, cls)).bind("root", download=False, **arguments)
    advice = "get it by hand" if name == "cars" else "add --download"
    with pytest.raises(UserError, match=f"{name} is not in .*: {advice}|pip install scipy$"):
        pairs.load_images(name, "test", root=tmp_path)


@pytest.mark.parametrize("name, attribute, values", [
    ("stl10", "labels", [1, 0, 1]), ("svhn", "labels", [1, 0, 1]), ("cifar10", "targets", [1, 0, 1]), ("pets", "_labels", [1, 0, 1]),
    ("cars", "_samples", [("x", 1), ("y", 0), ("z", 1)])])
def test_labels_are_found_wherever_torchvision_keeps_them(name, attribute, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [Path(file).touch() for file in "xyz"]
    cls = pairs.TORCHVISION_SETS[name][0]
    fake = type(cls, (), {"__init__": lambda self, root, **_: setattr(self, attribute, values), "__len__": lambda self: 3})
    monkeypatch.setattr(torchvision.datasets, cls, fake)
    _, labels, classes = pairs.open_torchvision(name, "test", "data", False)
    assert labels.tolist() == [1, 0, 1] and classes == ["0", "1"]


def test_root_and_download_reach_torchvision(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []

    class Fake:
        classes = ["a", "b"]

        def __init__(self, root, train, download):
            asked.append((root, train, download))
            self.targets = [0, 1] * 4

        __len__ = lambda self: 8
        __getitem__ = lambda self, i: (Image.new("RGB", (8, 8)), i % 2)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    pairs.load_pairs(simclr.parse_args(["--data", "cifar10", "--root", "elsewhere", "--download", "--batch-size", "4"]))
    assert asked == [("elsewhere", False, True), ("elsewhere", True, True)]  # also what the run will be judged on, before the training


def test_images_that_torchvision_holds_in_memory_keep_their_labels(monkeypatch):
    targets = [2, 0, 0, 1, 2, 1, 0, 2]

    class Fake:
        classes = ["a", "b", "c"]

        def __init__(self, root, train, download):
            self.targets = targets

        __getitem__ = lambda self, i: (Image.new("RGB", (8, 8), (i, 0, 0)), targets[i])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    for limit in (None, 4):
        found = pairs.load_images("cifar10", limit=limit)
        assert len(set(shown(found))) == len(found) == (limit or 8)
        assert found.labels.tolist() == [targets[i] for i in shown(found)]


@pytest.mark.parametrize("name, options", [("scenes", {}), ("scenes-held-out", {"held_out": True}), ("scenes-shifted", {"shifted": True})])
def test_each_kind_of_scenes_is_loaded_by_its_name(name, options):
    for split in ("train", "test"):
        found = pairs.load_images(name, split, 8, seed=3)
        assert found.name == name and torch.equal(found.images, pairs.scenes(split, 8, seed=3, **options).images)


def test_cars_are_read_though_they_cannot_be_downloaded_and_home_is_found(monkeypatch):
    asked = []
    monkeypatch.setenv("HOME", "/home/someone"), monkeypatch.setenv("USERPROFILE", "/home/someone")
    monkeypatch.setattr(torchvision.datasets, "StanfordCars", lambda root, split, download: asked.append((root, download)) or (_ for _ in ()).throw(RuntimeError("no cars")))
    with pytest.raises(UserError, match="cars is not in .*: get it by hand, or --root DIR"):
        pairs.load_images("cars", root="~/data", download=True)
    assert asked == [(os.path.expanduser("~/data"), False)] and asked[0][0].startswith("/home")


@pytest.mark.parametrize("error", [EOFError("cut"), zlib.error("bad"), tarfile.ReadError("not a gzip file"), zipfile.BadZipFile("not a zip")])
def test_a_damaged_archive_is_told(error, monkeypatch, tmp_path):
    def broken(root, split, download):
        raise error

    monkeypatch.setattr(torchvision.datasets, "FGVCAircraft", broken)
    with pytest.raises(UserError, match="an archive of aircraft in .* is cut off or damaged"):
        pairs.load_images("aircraft", root=tmp_path, download=True)


def test_a_test_split_that_is_missing_is_told_before_the_training(monkeypatch):
    class Fake:
        def __init__(self, root, split, download):
            if split == "test":
                raise RuntimeError("Dataset not found or corrupted")
            raise AssertionError("the training images need not be read")

    monkeypatch.setattr(torchvision.datasets, "SVHN", Fake)
    with pytest.raises(UserError, match="svhn is not in data: add --download"):
        pairs.load_pairs(simclr.parse_args(["--data", "svhn"]))


def write_image(file, value):
    """A small image of one gray value, lossless whatever its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")


def shown(found):
    """The gray values of an ImageSet of images that write_image wrote."""
    return found.images[:, 0, 0, 0].tolist()


# where torchvision expects the images, and the files that name them: {name: (image i of its class c, {file: content of items (i, c)})}
LAYOUTS = {
    "food101": (lambda i, c: f"food-101/images/{c}/{i}.jpg",
                {"food-101/meta/{split}.json": lambda items: json.dumps({c: [f"{c}/{i}" for i, k in items if k == c] for c in "ab"})}),
    "pets": (lambda i, c: f"oxford-iiit-pet/images/{c}_{i}.jpg",
             {"oxford-iiit-pet/annotations/{split}.txt": lambda items: "".join(f"{c}_{i} {'ab'.index(c) + 1} 1 1\n" for i, c in items)}),
    "dtd": (lambda i, c: f"dtd/dtd/images/{c}/{i}.jpg",
            {"dtd/dtd/labels/{split}1.txt": lambda items: "".join(f"{c}/{i}.jpg\n" for i, c in items)}),
    "aircraft": (lambda i, c: f"fgvc-aircraft-2013b/data/images/{i}.jpg",
                 {"fgvc-aircraft-2013b/data/images_variant_{split}.txt": lambda items: "".join(f"{i} {c}\n" for i, c in items),
                  "fgvc-aircraft-2013b/data/variants.txt": lambda items: "a\nb\n"})}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_torchvisions_files_are_read_with_their_labels_and_kept(name, tmp_path, capsys):
    """Torchvision's own classes, on small folders of their layout."""
    place, lists = LAYOUTS[name]
    arguments = {s: list(a.values())[0] for s, a in zip(("train", "val", "test"), pairs.TORCHVISION_SETS[name][1:-1]) if a}
    number, expected = 0, {}
    for split, theirs in arguments.items():
        items = [(number + k, "ab"[k % 2]) for k in range(5)]
        number += 5
        expected[split] = {i: "ab".index(c) for i, c in items}
        for i, c in items:
            write_image(tmp_path / place(i, c), i)
        for file, content in lists.items():
            file = tmp_path / file.format(split=theirs)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content(items))
    for split in arguments:
        for _ in range(2):  # decoded, then from the cache
            found = pairs.load_images(name, split, root=tmp_path, cache=tmp_path / "cache")
            assert dict(zip(shown(found), found.labels.tolist())) == expected[split] and [c.lower() for c in found.classes] == ["a", "b"]
    assert len(list((tmp_path / "cache").iterdir())) == len(arguments) and capsys.readouterr().out.count("images into") == len(arguments)
    (tmp_path / place(number - 1, "a")).write_bytes(b"x")  # of the test split: told before the training
    with pytest.raises(UserError, match="1 of 5 images cannot be read"):
        options = ["--data", name, "--root", str(tmp_path), "--cache", str(tmp_path / "cache"), "--batch-size", "2"]
        pairs.load_pairs(simclr.parse_args(options))
    (tmp_path / place(0, "a")).unlink()
    with pytest.raises(UserError, match=f"{name} in .* is not whole: .* is missing"):
        pairs.load_images(name, "train", root=tmp_path)


def test_a_set_without_a_split_of_its_own_gets_thirty_a_class(tmp_path):
    """Caltech-101's protocol: 30 images of each class train, the others are for testing."""
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    (folder / "BACKGROUND_Google").mkdir(parents=True)  # no class
    files = [folder / name / f"image_{i:04d}.jpg" for name, n in (("ants", 40), ("bees", 35)) for i in range(1, n + 1)]
    for value, file in enumerate(files):
        write_image(file, value)
    load = lambda split, **options: pairs.load_images("caltech101", split, root=tmp_path, **options)
    train, test = load("train"), load("test")
    assert sorted(shown(train) + shown(test)) == list(range(75)) and torch.bincount(train.labels).tolist() == [30, 30]
    assert all(label == (i >= 40) for s in (train, test) for i, label in zip(shown(s), s.labels))
    assert train.metric == "mean per class" and train.classes == ["ants", "bees"] and shown(train) != sorted(shown(train))
    assert load("val") is None and len(load("test", limit=3)) == len(test)
    files[7].write_bytes(b"x")
    with pytest.raises(UserError, match="1 of .* cannot be read: .*image_0008.jpg: not an image"):
        [load(split) for split in ("train", "test")]
    assert sum(len(load(split, skip_bad=True)) for split in ("train", "test")) == 74


def test_sun397_is_fifty_images_a_class_whatever_the_disks_order(tmp_path, monkeypatch):
    folder = tmp_path / "SUN397"
    for value in range(240):
        write_image(folder / "az"[value // 120] / ("abbey", "zoo")[value // 120] / f"sun_{value:03d}.jpg", value)
    (folder / "ClassName.txt").write_text("/a/abbey\n/z/zoo\n")
    orders, rglob = [], Path.rglob
    for step in (1, 7):  # the same files in two orders
        monkeypatch.setattr(Path, "rglob", lambda *a, step=step: [f for s in range(step) for f in sorted(rglob(*a))[s::step]])
        train, test = (pairs.load_images("sun397", split, root=tmp_path) for split in ("train", "test"))
        assert train.labels.bincount().tolist() == test.labels.bincount().tolist() == [50, 50] and train.classes == ["abbey", "zoo"]
        orders.append(shown(train) + shown(test))
        assert all(label == (i >= 120) for s in (train, test) for i, label in zip(shown(s), s.labels))
    assert orders[0] == orders[1] and len(set(orders[0])) == 200


def test_two_runs_that_download_take_turns(monkeypatch, tmp_path):
    """Started together, both would unpack into the same folder."""
    pytest.importorskip("fcntl")
    inside, most = [], []

    class Fake:
        classes = ["a", "b"]

        def __init__(self, root, train, download):
            inside.append(1), most.append(len(inside)), time.sleep(0.05), inside.pop()
            self.targets = [0, 1]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pairs.open_torchvision("cifar10", "train", tmp_path / "data", True), range(4)))
    assert most == [1] * 4


def voc_folder(folder, lists, n=10):
    """A folder of the VOC layout: image i has a cat; every third has a dog that is difficult, one is clear."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (40, 30), (20 * i, 90, 90)).save(folder / "JPEGImages" / f"{i:06d}.jpg")
        item = lambda name, difficult, box: (f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>" + "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box)) + "</bndbox></object>")
        objects = item("cat", 0, (1, 1, 20, 10)) + (item("dog", int(i != 3), (5, 6, 40, 30)) if i % 3 == 0 else "") + item("cat", 0, (9, 9, 8, 9))
        (folder / "Annotations" / f"{i:06d}.xml").write_text(f"<annotation>{objects}</annotation>")
    for name, numbers in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i:06d}\n" for i in numbers))
    return folder


def test_voc_layout_is_read_wherever_it_lies(tmp_path):
    voc = voc_folder(tmp_path / "kit" / "VOCdevkit" / "VOC2007", {"train": [0, 1], "val": [2], "trainval": [0, 1, 2], "test": [3, 4]})
    for given in (voc, tmp_path / "kit" / "VOCdevkit", tmp_path / "kit"):
        train, test = pairs.load_boxes([str(given)])
        assert (len(train), len(test), train.classes) == (3, 2, ["cat", "dog"])
    # corners are edges from 0; the box without area is left out; difficult is kept
    assert train.boxes[0].tolist() == [[0, 0, 20, 10], [4, 5, 40, 30]] and train.difficult[0].tolist() == [False, True]
    assert test.labels[0].tolist() == [0, 1] and not test.difficult[0].any() and train.image(0).shape == (3, 30, 40)
    other = voc_folder(tmp_path / "VOC2012", {"trainval": [5, 6, 7]})
    train, test = pairs.load_boxes([str(voc), str(other)])
    assert (len(train), len(test)) == (6, 2)
    for lists, sizes in (({}, (8, 2)), ({"train": [0, 1, 2], "val": [3]}, (3, 1)), ({"train": [0, 1], "val": [2], "test": [3]}, (2, 1))):
        train, test = pairs.load_boxes([str(voc_folder(tmp_path / f"bare{len(lists)}", lists))])
        assert (len(train), len(test)) == sizes
    (tmp_path / "bare3" / "ImageSets" / "Main" / "test.txt").write_text("000004  1\n000005 -1\n")  # as in the lists of a class
    assert [path.stem for path in pairs.load_boxes([str(tmp_path / "bare3")])[1].images] == ["000004", "000005"]
    (voc / "ImageSets" / "Main" / "test.txt").write_text("000003\n", encoding="utf-8-sig")  # as some editors write it
    train, test = pairs.load_boxes([str(voc), str(voc_folder(tmp_path / "unlisted", {}))])  # all of what has no list trains
    assert (len(train), len(test)) == (3 + 10, 1)
    train, test = pairs.load_boxes([str(voc), str(voc_folder(tmp_path / "val", {"val": [0, 1]}))])
    assert (len(train), len(test)) == (3 + 10, 1)
    (voc / "ImageSets" / "Main" / "test.txt").unlink()
    train, test = pairs.load_boxes([str(voc), str(other)])  # train.txt and val.txt; of the other folder its trainval.txt
    assert (len(train), len(test)) == (2 + 3, 1)


def test_mistakes_in_a_voc_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no Annotations/"):
        pairs.load_boxes([str(tmp_path)])
    voc = voc_folder(tmp_path / "a", {})
    (voc / "JPEGImages" / "000004.jpg").write_bytes((voc / "JPEGImages" / "000004.jpg").read_bytes()[:300])
    with pytest.raises(UserError, match="1 of 2 images cannot be read: .*000004.jpg"):
        pairs.load_boxes([str(voc)])
    (voc / "JPEGImages" / "000004.jpg").unlink()
    with pytest.raises(UserError, match="1 image.* missing: .*000004.jpg"):
        pairs.load_boxes([str(voc)])
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    for text in ("<annotation><object>", '<?xml version="1.0" encoding="no-such"?><annotation></annotation>',
                 f"<annotation><object><name/>{box.format(9)}</object></annotation>",
                 f"<annotation><object><name>cell</name>{box.format('inf')}</object></annotation>"):
        (voc / "Annotations" / "000002.xml").write_text(text)
        with pytest.raises(UserError, match="cannot read the annotation .*000002.xml"):
            pairs.load_boxes([str(voc)])
    for twice in ([str(voc)] * 2, [str(tmp_path), str(voc)]):
        with pytest.raises(UserError, match="one folder is named twice, or lies in another"):
            pairs.load_boxes(twice)
    (voc / "ImageSets" / "Main" / "test.txt").write_text("000003\n", encoding="utf-16")
    with pytest.raises(UserError, match="test.txt cannot be read .* save it in UTF-8"):
        pairs.load_boxes([str(voc)])
    both = voc_folder(tmp_path / "both", {"trainval": [0, 1, 2], "test": [2, 3]})
    with pytest.raises(UserError, match=r"1 image\(s\) are listed for training and for testing, such as 000002 in .*both"):
        pairs.load_boxes([str(both)])
    difficult = "<annotation><object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    (both / "Annotations" / "000003.xml").write_text(difficult)
    (both / "ImageSets" / "Main" / "test.txt").write_text("000003\n")
    with pytest.raises(UserError, match="no boxes to train on and test with .*but for difficult ones"):
        pairs.load_boxes([str(both)])


def test_boxes_of_an_image_that_was_resized_or_turned_since_are_refused(tmp_path):
    voc = voc_folder(tmp_path / "a b", {})
    size = "<annotation><size><width>40</width><height>30</height></size>"
    for file in (voc / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<annotation>", size))
    assert pairs.load_boxes([str(voc)])[0].boxes[0].tolist() == [[0, 0, 20, 10], [4, 5, 40, 30]]
    turned = Image.Exif()
    turned[0x0112] = 6
    # image 0 has boxes from (0, 0) and (4, 5) on, to (40, 30): of smaller ones the second is outside, or ends there
    for of_file, exif in (((40, 30), turned), ((8, 5), Image.Exif()), ((40, 27), Image.Exif()), ((37, 30), Image.Exif())):
        Image.new("RGB", of_file).save(voc / "JPEGImages" / "000000.jpg", exif=exif)
        with pytest.raises(UserError, match="000000.jpg is .* px when upright, and its annotation tells of another size, or has boxes outside"):
            pairs.load_boxes([str(voc)])


def test_an_image_too_thin_to_be_scaled_is_refused_before_the_training(tmp_path):
    voc = voc_folder(tmp_path, {})
    annotation = voc / "Annotations" / "000001.xml"
    annotation.write_text(annotation.read_text().replace("<ymax>10<", "<ymax>1<"))
    detector = evaluate.build_detector(evaluate.build_backbone("convnet", 32)[0], 2, "c4", [128], 64, 7).eval()
    for long_side, fits in ((213, True), (214, False)):  # a detector takes 213 px at most
        Image.new("RGB", (long_side, 1)).save(voc / "JPEGImages" / "000001.jpg")
        if fits:
            image = pairs.load_boxes([str(voc)], image_size=128)[0].image(1)
            detector.transform([image / 255])
        else:
            with pytest.raises(UserError, match="000001.jpg is 214 x 1 px: too thin, at --size 128 less than a pixel"):
                pairs.load_boxes([str(voc)], image_size=128)
            with pytest.raises(RuntimeError):
                detector.transform([torch.zeros(3, 1, long_side)])
            assert pairs.load_boxes([str(voc)], image_size=256)


def test_names_with_spaces_in_a_voc_list(tmp_path):
    voc = voc_folder(tmp_path, {"train": [0, 1], "val": [2]})
    (voc / "Annotations" / "000001.xml").rename(voc / "Annotations" / "my photo 1.xml")
    (voc / "JPEGImages" / "000001.jpg").rename(voc / "JPEGImages" / "my photo 1.jpg")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("000000 1\nmy photo 1\n")
    assert [path.stem for path in pairs.load_boxes([str(voc)])[0].images] == ["000000", "my photo 1"]
    shutil.rmtree(voc / "ImageSets")
    (voc / "Annotations" / "._000000.xml").write_bytes(b"\0\5")  # as macOS leaves them on other disks
    assert sum(map(len, pairs.load_boxes([str(voc)]))) == 10


def test_voc_classification_knows_what_is_difficult(tmp_path):
    voc_folder(tmp_path / "VOCdevkit" / "VOC2007", {"train": range(0, 4), "val": range(4, 7), "test": range(7, 10)})
    train, val, test = (pairs.load_images("voc2007", split, 16, root=tmp_path) for split in ("train", "val", "test"))
    assert train.labels.tolist() == [[1, -1], [1, 0], [1, 0], [1, 1]] and train.metric == "11-point mAP"
    shown = lambda s: (s.images[:, 0].float().mean((1, 2)) / 20).round().int().tolist()
    assert [shown(s) for s in (train, val, test)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(UserError, match="several classes"):
        pairs.make_pairs("semantic", train, 0)


def test_one_object_that_is_not_difficult_decides(tmp_path):
    voc = voc_folder(tmp_path / "VOCdevkit" / "VOC2007", {"train": [0, 1], "val": [2], "test": [3]})
    box = "<bndbox><xmin>0</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    for i, difficult in enumerate(("10", "01")):
        objects = "".join(f"<object><name>cat</name><difficult>{d}</difficult>{box}" for d in difficult) + f"<object><name>dog</name>{box}"
        (voc / "Annotations" / f"{i:06d}.xml").write_text(f"<annotation>{objects}</annotation>")
    assert pairs.load_images("voc2007", "train", 16, root=tmp_path).labels.tolist() == [[1, 1], [1, 1]]
    found = pairs.read_voc_annotation(voc / "Annotations" / "000000.xml")
    assert found["boxes"][0] == [0, 0, 9, 9] and found["difficult"] == [True, False, False]  # the dog's is not said


def test_folders_with_three_splits_keep_validation_for_choosing(tmp_path):
    for split, n in (("train", 4), ("validation", 2), ("test", 3)):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8)).save(tmp_path / split / "a" / f"{i}.png")
    assert [len(pairs.load_images(str(tmp_path), split)) for split in ("train", "val", "test")] == [4, 2, 3]
    for p in (tmp_path / "test" / "a").iterdir():
        p.unlink()
    (tmp_path / "test" / "a").rmdir(), (tmp_path / "test").rmdir()
    assert len(pairs.load_images(str(tmp_path), "test")) == 2 and pairs.load_images(str(tmp_path), "val") is None
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="has val/ and validation/: keep one of them, for validation"):
        pairs.load_images(str(tmp_path), "test")
    (tmp_path / "val").rmdir()
    (tmp_path / "test").symlink_to(tmp_path / "validation", target_is_directory=True)
    with pytest.raises(UserError, match="two of train/, test/, validation/ are links to one folder"):
        pairs.load_images(str(tmp_path), "train")
