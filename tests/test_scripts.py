"""The four scripts as a user runs them: each method on each kind of pairs, what it writes, its mistakes."""

import ast
import builtins
import contextlib
import csv
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
import pairs
from bench import METHODS

ROOT = Path(__file__).parent.parent
LOGGED = ["epoch", "step", "loss", "lr", "images_per_second", "seconds", "embedding_std", "effective_rank", "semantic_rate", "false_rate", "same_class_rate"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--device", "cpu"]


def call(script, *arguments):
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def call_here(script, *arguments):
    """As `call`, within this process, which is quicker: (exit status, what was printed, what was said of a mistake)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            pairs.run_cli(importlib.import_module(script.removesuffix(".py")).main)
            status = 0
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def printed(script, *arguments):
    status, out, err = call_here(script, *arguments)
    assert status == 0, out + err
    return out


def cut(script, *arguments):
    """As `call_here`, but the program ends when its first epoch is saved, as if it were interrupted there."""
    def save(self, epoch, save=evaluate.Run.save):
        save(self, epoch)
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.Run, "save", save)
        patch.setattr(evaluate, "SECONDS_BETWEEN_SAVES", 0)
        return call_here(script, *arguments)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 2 classes x 20 training and 6 test images, and a pair list."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for split, each in (("train", 20), ("test", 6)):
        for c, name in enumerate(("rot grün", "blau")):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = torch.randint(0, 120, (16, 16, 3), generator=generator, dtype=torch.uint8)
                pixels[:, :, c] += 100
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{i}.png")
    with open(folder / "list.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(f"train/{n}/{i}.png", f"train/{n}/{(i + 1) % 20}.png", n) for n in ("rot grün", "blau") for i in range(20)]
        csv.writer(file).writerows([("image_a", "image_b", "category"), *rows])
    return folder


def check_run(folder, config_has):
    """Opens everything a run folder holds."""
    config = json.loads((folder / "config.json").read_text())
    assert config_has.items() <= config.items() and {"torch", "git_commit", "seed"} <= set(config)
    lines = [json.loads(line) for line in open(folder / "log.jsonl")]
    assert all(list(line) == LOGGED for line in lines)
    assert lines[-1]["epoch"] == config["epochs"]
    assert lines[-1]["step"] == config["epochs"] * (config["pairs_per_epoch"] // config["batch_size"])
    if (config["semantic_share"], config["false_pairs"]) == (1, 0):  # what it says, it was trained on
        assert {line["semantic_rate"] for line in lines} == {0.0 if "augmented" in (config["pairs"], config["arm"]) else 1.0}
    torch.manual_seed(config["seed"])
    untrained, _ = evaluate.build_backbone(config["backbone"], config["image_size"])
    backbone, beside = evaluate.load_backbone(folder)
    assert all(torch.equal(a, b) for a, b in zip(untrained.state_dict().values(), beside.state_dict().values(), strict=True))
    stored = torch.load(folder / "backbone.pt", weights_only=True)
    assert all(torch.equal(stored[name], value) for name, value in backbone.state_dict().items()) and stored.keys() == untrained.state_dict().keys()
    for picture in ("pairs.png", "curves.png"):
        assert min(Image.open(folder / picture).size) > 100
    return config, lines


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["augmented", "semantic", "list"])
def test_every_method_runs_on_every_kind_of_pairs(method, kind, photos, tmp_path):
    given = photos / "list.csv" if kind == "list" else kind
    small = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
    said = printed(f"{method}.py", "--pairs", given, "--data", photos, "--backbone", "convnet", *QUICK, *small, "--out", tmp_path / "run")
    check_run(tmp_path / "run", {"method": method, "pairs": str(given), "image_size": 16})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for head in ("linear", "knn"):
        r = result[head][photos.name]
        assert r["accuracy"] > 0.7 and r["chance"] == 0.5 and (r["classes"], r["n_train"], r["n_test"]) == (2, 40, 12)
        assert re.search(rf"^{evaluate.TITLES[head]} +\S+ +2 +0\.500 +{r['untrained']:.3f} +{r['accuracy']:.3f}$", said, re.M)


def test_torchrun_makes_one_run_of_two_processes(photos, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--pairs", "semantic", "--data", photos, "--backbone", "convnet", *QUICK, "--queue-size", "32", "--bn-splits", "2", "--out", tmp_path / "run"]
    done = subprocess.run([*launcher, ROOT / "moco.py", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_run(tmp_path / "run", {"processes": 2, "batch_size": 16})
    said = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"], done.stdout.count("linear probe  ")
    assert done.stdout.count(f"step {said[0]:5d}/{said[0]}") == 1 == said[1]  # the last line and the table once: the first process alone speaks


def test_study_controls_are_logged_as_they_turned_out(photos, tmp_path):
    for i, given in enumerate(("semantic", photos / "list.csv")):
        said = printed("simsiam.py", "--pairs", given, "--data", photos, "--backbone", "convnet", *QUICK, "--false-pairs", "0.2", "--semantic-share", "0.7", "--out", tmp_path / str(i))
        _, lines = check_run(tmp_path / str(i), {"false_pairs": 0.2, "semantic_share": 0.7})
        assert all(0.5 < line["semantic_rate"] < 0.9 and 0 < line["false_rate"] < 0.45 and line["same_class_rate"] > 0.4 for line in lines)
        assert "semantic_rate 0." in said


def test_a_list_without_data_trains_and_says_how_to_evaluate(photos, tmp_path):
    for arm in ("semantic", "augmented"):
        said = printed("byol.py", "--pairs", photos / "list.csv", "--arm", arm, "--backbone", "convnet", *QUICK, "--out", tmp_path / arm)
        check_run(tmp_path / arm, {"pairs_per_epoch": 40, "arm": arm, "data": None})
        assert "--data DIR" in said and not (tmp_path / arm / "result.json").exists()
    status, _, error = call_here("evaluate.py", "knn", tmp_path / "semantic")
    assert status == 2 and "--data" in error
    printed("evaluate.py", "knn", tmp_path / "semantic", "--data", photos, "--device", "cpu")


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_backbone_to_the_bit_and_resume_equals_no_interruption(method, photos, tmp_path):
    small = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
    common = ["--pairs", "semantic", "--data", photos, "--backbone", "convnet", *QUICK, *small]
    weights = lambda name: (tmp_path / name / "backbone.pt").read_bytes()
    printed(f"{method}.py", *common, "--out", tmp_path / "here")
    call(f"{method}.py", *common, "--out", tmp_path / "another process")
    assert weights("here") == weights("another process")

    status, _, said = cut(f"{method}.py", *common, "--out", tmp_path / "cut")
    assert status == 130 and "--resume" in said and weights("cut") != weights("here")
    if method == "simclr":  # its numbers are those of an unfinished run, and do not outlive it
        assert "has only 1 of its 2 epochs" in printed("evaluate.py", "knn", tmp_path / "cut", "--device", "cpu")
    status, _, said = call_here(f"{method}.py", *common, "--out", tmp_path / "cut", "--resume", "--lr", "0.7")
    assert status == 2 and "lr was" in said
    with open(tmp_path / "cut" / "log.jsonl", "a") as log:
        log.write('{"epoch": 2, "st')  # as a full disk leaves it
    printed(f"{method}.py", *common, "--out", tmp_path / "cut", "--resume")
    assert weights("cut") == weights("here")
    steps = [json.loads(line)["step"] for line in open(tmp_path / "cut" / "log.jsonl")]
    assert steps == sorted(set(steps))
    assert (tmp_path / "cut" / "result-epoch1.json").exists() == (method == "simclr")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["trained_epochs"] == 2 and config == json.loads((tmp_path / "here" / "config.json").read_text()) | {"out": config["out"]}


def test_a_resumed_run_is_judged_with_the_cache_that_it_now_names(photos, tmp_path):
    common = ["--data", photos, "--backbone", "convnet", *QUICK, "--out", tmp_path / "run"]
    cut("simclr.py", *common, "--cache", tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    assert "linear probe" in printed("simclr.py", *common, "--cache", tmp_path / "second", "--resume")
    printed("evaluate.py", "knn", tmp_path / "run", "--device", "cpu")  # later too
    assert (tmp_path / "second").exists() and not (tmp_path / "first").exists()


def test_evaluate_adds_to_the_result_and_keeps_the_rest(photos, tmp_path):
    run = tmp_path / "run"
    printed("simsiam.py", "--data", photos, "--backbone", "convnet", *QUICK, "--out", run)
    before = json.loads((run / "result.json").read_text())
    printed("evaluate.py", "knn", run, "--data", "scenes-held-out", "--device", "cpu")
    printed("evaluate.py", "linear", run, "--device", "cpu")
    after = json.loads((run / "result.json").read_text())
    assert set(after["knn"]) == {photos.name, "scenes-held-out"}
    assert after["knn"][photos.name] == before["knn"][photos.name] and after["linear"] == before["linear"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two matched runs of one step on scenes, of fewer categories."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SCENE_CATEGORIES", 16)
        for arm in ("augmented", "semantic"):
            said = printed("simclr.py", "--pairs", arm, "--epochs", "1", "--limit", "64", "--batch-size", "64", "--device", "cpu", "--out", folder / arm)
            assert "categories that no pretraining image shows" in said
    return folder


def test_every_evaluation_of_a_run(runs, photos, tmp_path, monkeypatch):
    """transfer, finetune, detect, invariance, compare: what they print, what they add to result.json, their pictures."""
    a, s = runs / "augmented", runs / "semantic"
    for module, name, few in ((evaluate, "scene_changes", lambda f: lambda *given: f(*given, n=60)), (evaluate, "image_changes", lambda f: lambda *given: f(*given, n=60)),
                              (pairs, "detection_scenes", lambda f: lambda split, n, *rest: f(split, n // 20, *rest))):
        monkeypatch.setattr(module, name, few(getattr(module, name)))  # fewer images
    check_run(s, {"data": "scenes", "backbone": "convnet"})
    for run in (a, s):
        printed("evaluate.py", "transfer", run, "--data", photos, "scenes-shifted", "--device", "cpu")
    done = printed("evaluate.py", "finetune", s, "--data", photos, "--fraction", "0.5", "--steps", "3", "--batch-size", "8", "--device", "cpu")
    assert "fine-tuned" in done
    quick = ["--size", "48", "--steps", "2", "--batch-size", "2", "--rois", "8", "--device", "cpu"]
    for init in ("run", "random"):
        done = printed("evaluate.py", "detect", s, "--data", "scenes", "--init", init, *quick)
        assert f"scenes, c4, init {init}, seed 0: AP " in done
    done = printed("evaluate.py", "invariance", a, s, "--device", "cpu")
    assert "background" in done and str(a / "invariance.png") in done
    done = printed("evaluate.py", "compare", a, s, "--out", tmp_path / "out")
    assert "| simclr | scenes | linear scenes-held-out |" in done and "| simclr | scenes | share of rotation factors of scenes |" in done
    assert "no row has both arms" not in done and "replaced" not in done
    done = printed("evaluate.py", "compare", s, "--measure", "linear", "--out", tmp_path / "out")
    assert "no row has both arms" in done and "replaced" in done and "share of" not in done

    result = json.loads((s / "result.json").read_text())
    assert list(result) == ["linear", "knn", "transfer", "finetune", "detect", "invariance"] and list(result["linear"]) == ["scenes", "scenes-held-out"]
    assert result["linear"]["scenes-held-out"]["classes"] == 20
    probe = result["transfer"][photos.name]
    assert probe["l2"] in evaluate.L2_GRID and len(probe["validation"]) == len(evaluate.L2_GRID) and probe["metric"] == "top-1"
    tuned = result["finetune"][f"{photos.name}, 0.5 of the labels, seed 0"]
    assert tuned["n_fitted"] == 20 and tuned["n_train"] == 40 and set(tuned["validation"]) == set(map(str, evaluate.FINETUNE_LRS))
    for init in ("run", "random"):
        found = result["detect"][f"scenes, c4, init {init}, seed 0"]
        assert {"ap", "ap50", "ap75", "voc07_ap", "voc07_ap50", "voc07_ap75", "ap50_by_class"} <= set(found) and found["steps"] == 2
    factors = result["invariance"]["factors of scenes"]["factors"]
    assert all(0 <= f["share"] <= 1 for f in factors.values()) and factors["position"]["inside"] and not factors["rotation"]["inside"]
    printed("evaluate.py", "compare", a, s, "--out", tmp_path / "out")
    for picture in (s / "detections.png", s / "detections-random.png", a / "invariance.png", tmp_path / "out" / "comparison.png"):
        assert min(Image.open(picture).size) > 100


def test_any_weights_of_torchvisions_format_are_judged_by_the_same_heads(photos, tmp_path):
    import torchvision

    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), tmp_path / "m.pth")
    given = ["--backbone-file", tmp_path / "m.pth", "--backbone", "mobilenet_v3_small", "--image-size", "32", "--out", tmp_path / "run", "--device", "cpu"]
    for command in ("knn", "transfer"):
        printed("evaluate.py", command, "--data", photos, *given)
    assert set(json.loads((tmp_path / "run" / "result.json").read_text())) == {"knn", "transfer"}
    status, _, said = call_here("evaluate.py", "knn", *given)
    assert status == 2 and "--data" in said


@pytest.mark.parametrize("arguments, said", [
    (["judge"], "invalid choice: 'judge'"),
    (["knn"], "name a run folder"),
    (["knn", "--data", "elsewhere", "RUN"], "name a run folder (before --data, which takes all names after it)"),
    (["compare", "--measure", "linear", "RUN"], "name runs before --by and --measure"),
    (["knn", "nowhere"], "nowhere is not a run folder"),
    (["knn", "WEIGHTS"], "backbone.pt is not a run folder: it has no config.json; give its folder, or --backbone-file"),
    (["transfer", "RUN"], "--data"),
    (["transfer", "RUN", "--data", "nowhere"], "--data nowhere"),
    (["finetune", "RUN", "--fraction", "2"], "--fraction: 2 is not above 0, and at most 1"),
    (["detect", "RUN", "--data", "RUN"], "no Annotations/"),
    (["detect", "RUN", "--data", "scenes", "--detector", "fpn"], "convnet has c4 only"),
    (["compare", "RUN", "nowhere"], "nowhere is not a run folder"),
    (["invariance", "nowhere"], "nowhere is not a run folder"),
    (["invariance", "EMPTY"], "is not a run folder"),
    (["knn", "RUN", "--backbone-file", "x.pth"], "--backbone-file goes with --backbone NAME"),
    (["knn", "--backbone-file", "x.pth", "--backbone", "resnet18", "--data", "nowhere"], "x.pth: no such file"),
    (["knn", "--backbone-file", "x.pth", "--backbone", "resnet18"], "name the images to evaluate the backbone on with --data"),
    (["knn", "--backbone-file", "x.pth", "--backbone", "resnet18", "--data", "EMPTY", "--out", "EMPTY"], "would lie in --data"),
    (["knn", "RUN", "--backbone", "resnet18"], "go with --backbone-file"),
    (["finetune", "RUN", "--batch-size", "1"], "--batch-size 1"),
    (["finetune", "RUN", "--fraction", "0"], "--fraction: 0 is not above 0, and at most 1"),
    (["invariance", "RUN", "EMPTY"], "is not a run folder"),
    (["transfer", "RUN", "--data", "a/images", "b/images"], "two of one name"),
    (["invariance", "RUN", "--picture", "shares"], "name a file that ends in .png, .pdf or .svg"),
    (["detect", "RUN", "--data", "scenes", "--size", "480", "16"], "--size takes 32 pixels or more"),
    (["detect", "RUN", "--data", "scenes", "--rois", "3"], "--rois 4 or more"),  # torchvision: a quarter, rounded down, show objects
    (["detect", "RUN", "--data", "scenes", "--detector", "fpn", "--size", "32"], "with fpn 64"),
    (["finetune", "RUN", "--seed", "-1"], "--seed: -1 is not between 0 and 2**63 - 1"),
])
def test_a_mistake_in_an_evaluation_is_one_line_and_loses_nothing(arguments, said, runs, tmp_path):
    run = runs / "semantic"
    before = (run / "result.json").read_bytes()
    status, _, error = call_here("evaluate.py", *[{"RUN": run, "WEIGHTS": run / "backbone.pt", "EMPTY": tmp_path}.get(a, a) for a in arguments])
    assert status == 2 and said in error and error.count("\n") == 1
    assert (run / "result.json").read_bytes() == before and not Path("nowhere").exists() and not any(tmp_path.iterdir())


def test_options_of_evaluations_arrive(tmp_path, monkeypatch):
    evaluate.write_json(tmp_path / "config.json", {"method": None, "data": "photos", "pairs": None, "backbone": "convnet", "seed": 0})
    asked, cpu = [], torch.device("cpu")
    run = lambda command, *options: printed("evaluate.py", command, tmp_path, *options)
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *given, **options: asked.append((given[3:], options)) or {})
    monkeypatch.setattr(evaluate, "show_table", lambda *_: None)
    run("finetune", "--device", "cpu")
    run("finetune", "--device", "cpu", "--root", "r", "--download", "--skip-bad", "--cache", "c", "--fraction", "0.5", "--steps", "7", "--batch-size", "9", "--seed", "3")
    assert asked == [((cpu, None, False, False, None), {"fraction": 1.0, "steps": 1000, "batch_size": 64, "seed": 0}),
                     ((cpu, "r", True, True, "c"), {"fraction": 0.5, "steps": 7, "batch_size": 9, "seed": 3})]
    monkeypatch.setattr(evaluate, "invariance_run", lambda *given: asked.append(given[2:]) or {})
    monkeypatch.setattr(evaluate, "draw_invariance", lambda *_: None)
    run("invariance", "--device", "cpu", "--data", "d", "--root", "r", "--skip-bad", "--cache", "c")
    monkeypatch.setattr(evaluate, "compare", lambda *given: asked.append(given) or [])
    monkeypatch.setattr(evaluate, "write_comparison", lambda *_: "")
    run("compare", "--by", "lr", "--measure", "knn held")
    assert asked[2:] == [("d", "r", False, True, "c"), ([str(tmp_path)], ["lr"], ["knn held"])]

    def adopt(*given, **_):
        raise pairs.UserError(str(given))

    monkeypatch.setattr(evaluate, "adopt", adopt)
    elsewhere = ["--backbone-file", "x.pth", "--backbone", "resnet50", "--data", "d", "--device", "cpu"]
    for size in None, 96:
        assert f"('x.pth', 'resnet50', {size})" in call_here("evaluate.py", "knn", *elsewhere, *["--image-size", "96"] * bool(size))[2]


def test_printed_numbers_stand_under_their_names(tmp_path, monkeypatch):
    evaluate.write_json(tmp_path / "config.json", {"method": None, "backbone": "convnet", "pairs": None, "data": None, "seed": 0})
    share = {"inside": True, "untrained": 0.7, "share": 0.3}
    monkeypatch.setattr(evaluate, "invariance_run", lambda *_: {"factors of scenes": {"factors": {"position": share}}})
    head, row, *_ = (line.split() for line in printed("evaluate.py", "invariance", tmp_path, "--device", "cpu").splitlines()[1:])
    assert head == ["inside", "untrained", "this", "run"] and row == ["position", "yes", "0.700", "0.300"]
    assert (tmp_path / "invariance.png").exists()
    printed("evaluate.py", "invariance", tmp_path, "--device", "cpu", "--picture", tmp_path / "new" / "shares.pdf")
    assert (tmp_path / "new" / "shares.pdf").exists()
    for share["inside"], said in (False, "no"), (None, "?"):
        assert f"position{said:>14}" in printed("evaluate.py", "invariance", tmp_path, "--device", "cpu")
    numbers, asked = dict(zip(("ap", "ap50", "ap75", "voc07_ap", "voc07_ap50", "voc07_ap75"), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6))), []
    monkeypatch.setattr(evaluate, "detect_run", lambda *given: asked.append(given) or ("name", numbers))
    said = printed("evaluate.py", "detect", tmp_path, "--data", "scenes", "--device", "cpu", "--seed", "5", "--init", "random", "--detector", "fpn",
                   "--size", "96", "128", "--steps", "7", "--batch-size", "3", "--lr", "0.5", "--rois", "9", "--roi-size", "4")
    assert "AP 0.100  AP50 0.200  AP75 0.300  (COCO)  AP 0.400  AP50 0.500  AP75 0.600  (VOC2007" in said
    assert asked[0][3:] == ("random", "fpn", [96, 128], 7, 3, 0.5, 9, 4, 5)


@pytest.mark.parametrize("arguments, said", [
    (["--pairs", "nowhere.csv"], "--pairs nowhere.csv: neither augmented nor semantic, and no such file"),
    (["--pairs", "sematic", "--data", "cifar10"], "--pairs sematic: neither augmented nor semantic, and no such file"),
    (["--data", "nowhere"], "--data nowhere"),
    (["--epochs", "0"], "0 is not 1 or more"),
    (["--epochs", "two"], "--epochs"),
    (["--seed", "9223372036854775808"], "--seed: 9223372036854775808 is not between 0 and 2**63 - 1"),
    (["--pairs", "FILE", "--arm", "augmented", "--semantic-share", "0.5"], "or a list's semantic arm"),
    (["--lr", "-1"], "-1 is not above 0"),
    (["--without", "sharpen"], "--without sharpen"),
    (["--backbone", "resnet19"], "--backbone resnet19"),
    (["--backbone", "resnet19", "--data", "nowhere"], "--backbone resnet19"),  # before the images are read
    (["--device", "tpu9"], "--device tpu9"),
    (["--resume"], "--resume: there is no "),
    (["--device", "meta"], "--device meta: not usable here (Tensor.item() cannot be called on meta tensors); use cpu"),
    (["--limit", "256", "--pairs", "semantic"], "one image only"),
    (["--false-pairs", "1.5"], "--false-pairs: 1.5 is not between 0 and 1"),
    (["--batch-size", "5000"], "--batch-size 5000"),
    (["--crop-min", "2"], "--crop-min: 2 is not between 0 and 1"),
    (["--weight-decay", "-1"], "--weight-decay"),
    (["--jitter", "0", "0", "0", "0.6"], "half a turn"),
    (["--batch-size", "1"], "needs 2 pairs"),
    (["--pairs", "semantic", "--arm", "augmented"], "--arm is for a list"),
    (["--pairs", "augmented", "--false-pairs", "0.5"], "--pairs semantic or a list"),
    (["--warmup-epochs", "20"], "never fall"),
    (["--optimizer", "lars", "--lr", "0.3"], "--optimizer lars: give --lr and --weight-decay too"),
    (["--optimizer", "lars", "--weight-decay", "1e-4"], "--optimizer lars: give --lr and --weight-decay too"),
    (["--image-size", "4"], "images of 4 px: use 8 px or more"),
    (["--data", ""], "--data: an empty name"),
    (["--data", "scenes-held-out"], "is for evaluation"),
    (["--cache", "FILE", "--data", "FOLDER"], "name another file or folder"),
    (["--data", "FEW"], "every fifth image"),
    (["--data", "ABOVE"], "did you mean --data"),
    (["--data", "CAPITALS"], "holds Test, Train: splits must be named train/ and test/"),
    (["--data", "OTHERS"], "has not: c; rename or remove"),
])
def test_a_users_mistake_is_one_line_and_exit_status_2(arguments, said, tmp_path):
    places = {"FILE": tmp_path / "file", "FOLDER": tmp_path / "folder", "FEW": tmp_path / "few"}
    places["FILE"].write_text("")
    for name, images in (("folder", 5), ("few", 4)):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (8, 8)).save(tmp_path / name / label / f"{i}.png")
    for name in ("above/photos/train/a", "above/photos/test/a", "capitals/Train/a", "capitals/Test/a", "others/train/a", "others/test/a", "others/test/c"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
        places[name.split("/")[0].upper()] = tmp_path / name.split("/")[0]
    status, _, error = call_here("simclr.py", *[places.get(a, a) for a in arguments], "--out", tmp_path / "run")
    assert status == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options, said", [
    (["--queue-size", "96"], "--queue-size 96 must be a multiple of --batch-size 64"),
    (["--batch-size", "66", "--queue-size", "66", "--bn-splits", "4"], "--batch-size 66 must be a multiple, twice or more, of --bn-splits 4; change one of the two"),
])
def test_moco_refuses_a_queue_and_parts_that_the_batch_does_not_fit(options, said, tmp_path):
    status, _, error = call_here("moco.py", *options, "--limit", "256", "--epochs", "1", "--device", "cpu", "--out", tmp_path / "run")
    assert status == 2 and said in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "out of GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB.): try a smaller batch"),
    (torch.OutOfMemoryError("HIP out of memory."), "out of GPU memory (HIP out of memory.): try"),
    (RuntimeError("CUDA error: out of memory\nmore"), "out of GPU memory (CUDA error: out of memory): try a smaller batch"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of GPU memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    (OSError(28, "No space left on device"), "the disk, or what you may use of it, is full; make room"),
    (OSError(27, "File too large"), "the disk, or what you may use of it, is full; make room"),
    (OSError(30, "Read-only file system", "runs"), "runs: read-only file system; name another"),
    (RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore"), "--compile needs a C++ compiler"),
    (RuntimeError("CppCompileError: C++ compile error\nfatal error: Python.h: No such file\n"), "and the headers of Python"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory: try"),
    (MemoryError(), "out of memory: try"),
])
def test_what_the_machine_lacks_is_one_line_and_other_errors_keep_their_traceback(error, said, capsys):
    def main(error=error):
        raise error

    with pytest.raises(SystemExit) as end:
        pairs.run_cli(main)
    told = capsys.readouterr().err
    assert end.value.code == 2 and said in told and told.count("\n") == 1
    for bug in (OSError(5, "Input/output error", "x"), RuntimeError("bug")):
        with pytest.raises(type(bug)):
            pairs.run_cli(lambda: main(bug))


def test_evaluate_is_one_process(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun does
    assert call_here("evaluate.py", "knn", "run") == (2, "", "evaluate.py: error: evaluate.py works in one process: start it with python, not with torchrun\n")


@pytest.mark.skipif(sys.platform == "win32", reason="other pipes there")
def test_output_that_nothing_reads_any_more_is_no_error():
    code = "import sys, pairs; sys.stdin.read(); pairs.run_cli(lambda: print('a table'))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=buffered, stdin=-1, stdout=-1, stderr=-1) as child:
        child.stdout.close(), child.stdin.close()
        assert (child.stderr.read(), child.wait()) == (b"", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="no shell that closes it")
def test_a_closed_output_is_no_error():
    code = "import pairs; pairs.run_cli(lambda: print('a table'))"
    assert subprocess.run(f"{sys.executable} -c \"{code}\" >&-", shell=True, cwd=ROOT).returncode == 0


def test_pictures_are_drawn_in_programs_started_from_a_notebook(tmp_path):
    code = f"import pairs\nwith pairs.picture():\n    import matplotlib.pyplot as plt\n    plt.figure().savefig({str(tmp_path / 'a.png')!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"MPLBACKEND": "module://not_installed_here"}, check=True)
    assert (tmp_path / "a.png").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files stands for a full disk")
def test_a_full_disk_is_one_line_and_the_run_goes_on_where_it_stopped(tmp_path):
    import resource

    command = [sys.executable, ROOT / "simclr.py", "--limit", "128", "--epochs", "1", "--device", "cpu", "--out", tmp_path / "run"]
    least = 3_000_000  # bytes: enough for the weights, not for a checkpoint with the optimiser's momentum
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (least, least)), "env": os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}}
    full = subprocess.run(command, **limit, capture_output=True, text=True)
    assert full.returncode == 2 and "is full; make room" in full.stderr.splitlines()[-1] and "Traceback" not in full.stderr
    assert not list((tmp_path / "run").glob("*.part")) and evaluate.read_config(tmp_path / "run")["trained_epochs"] == 0
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    assert evaluate.read_config(tmp_path / "run")["trained_epochs"] == 1 and (tmp_path / "run" / "result.json").exists()


def test_moco_wants_two_images_in_each_part_of_a_batch(tmp_path):
    status, _, error = call_here("moco.py", "--batch-size", "2", "--bn-splits", "2", "--out", tmp_path / "run")
    assert status == 2 and "twice or more, of --bn-splits 2" in error


def test_moco_tells_that_one_part_leaks(tmp_path):
    for parts, told in (("1", True), ("2", False)):
        _, said, _ = call_here("moco.py", "--bn-splits", parts, "--data", tmp_path / "none", "--out", tmp_path / "run")
        assert ("note: with --bn-splits 1 BatchNorm's statistics give the right key away" in said) == told


def test_moco_counts_the_parts_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "rank_and_world", lambda: (0, 2))
    status, _, error = call_here("moco.py", "--batch-size", "64", "--bn-splits", "32", "--limit", "64", "--epochs", "1", "--device", "cpu", "--out", tmp_path / "run")
    assert status == 2 and "--bn-splits 32 times 2 processes" in error


def test_a_warm_up_takes_a_tenth_of_the_epochs_at_most():
    import byol

    warmup = lambda *argv: byol.parse_args(["--data", "x", *argv]).warmup_epochs
    assert (warmup(), warmup("--epochs", "20"), warmup("--epochs", "20", "--warmup-epochs", "10")) == (10, 2, 10)


def test_help_names_every_option_with_its_default():
    for method in METHODS:
        text = " ".join(printed(f"{method}.py", "--help").split())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairs, "parse", lambda *given: given)
            parser, _, recipes = importlib.import_module(method).parse_args()
        actions = [action for action in parser._actions if action.dest != "help"]
        assert len(actions) > 25
        for action in actions:
            assert action.option_strings[0] in text
            if action.nargs == 0 or action.dest == "device":  # a switch, off unless given; and whatever the machine has
                continue
            if action.dest in recipes["scenes"]:
                shown = f"{recipes['scenes'][action.dest]} on scenes, {recipes['photographs'][action.dest]} on photographs"
                shown = re.sub(r"\[(.*?)\]", lambda values: values[1].replace(",", ""), shown)  # several numbers, as they are given
            elif action.dest == "blur":
                shown = "{:g} {:g}; 0 0 below 64 px".format(*(parser.get_default("usual_blur") or [0.5, 0.5]))
            elif action.dest == "data":
                shown = importlib.import_module(method).parse_args([]).data
            elif action.default is None:  # it depends on other options, in words
                shown = action.help.removesuffix("]").rsplit("[", 1)[1]
            else:
                shown = " ".join(f"{v:g}" for v in action.default) if isinstance(action.default, list) else "none" if action.default == "" else "off" if action.default is False else action.default
                shown = f"{shown:g}" if isinstance(shown, float) else shown
            assert action.help.endswith(f"[{shown}]"), action.dest


@pytest.mark.parametrize("method", METHODS)
def test_defaults_on_scenes_are_those_of_the_published_results(method):
    published = json.loads((ROOT / "results" / "scenes" / f"{method}-semantic-scenes-seed0" / "config.json").read_text())
    now = vars(importlib.import_module(method).parse_args(["--pairs", "semantic", "--device", "cpu"]))
    shared = now.keys() & published.keys() - {"image_size"} - evaluate.ELSEWHERE  # the image size of the scenes, there
    assert {k: now[k] for k in shared} == {k: published[k] for k in shared} and len(shared) > 25
    assert not published.keys() & {"lr", "epochs", "batch_size", "weight_decay", "crop_min", "jitter"} - shared


@pytest.mark.parametrize("method", METHODS)
def test_defaults_on_photographs_are_those_of_the_published_results(method):
    published = json.loads((ROOT / "results" / "transfer" / "epochs60" / f"{method}-semantic-seed0" / "config.json").read_text())
    now = vars(importlib.import_module(method).parse_args(["--pairs", "semantic", "--data", "cifar10-jpeg", "--device", "cpu"]))
    other = {"image_size", "out", "backbone", "epochs", "limit"} | ({"temperature"} if method == "moco" else set())  # in those runs
    shared = now.keys() & published.keys() - other - evaluate.ELSEWHERE
    assert {k: now[k] for k in shared} == {k: published[k] for k in shared} and {"lr", "batch_size", "weight_decay", "crop_min", "jitter"} <= shared
    assert (now["backbone"], now["epochs"]) == ("resnet18", 200) and now.get("temperature") == {"simclr": 0.5, "moco": 0.1}.get(method)


def test_protocols_are_those_of_the_published_results(monkeypatch):
    """Sizes of the probes' data, what was tried, kNN's constants, the options of detection: a change of one makes results/ obsolete."""
    published = json.loads((ROOT / "results" / "scenes" / "simclr-semantic-scenes-seed0" / "result.json").read_text())
    for data in ("scenes", "scenes-held-out"):
        train, test = (pairs.load_images(data, split, 8) for split in ("train", "test"))
        r = published["linear"][data]
        assert (r["n_train"], r["n_test"], r["classes"], r["metric"]) == (len(train), len(test), len(train.classes), train.metric)
        assert list(map(float, r["validation"])) == evaluate.L2_GRID
    asked = []
    monkeypatch.setattr(evaluate, "knn", lambda *features, **options: asked.append(options) or 0.5)
    colours = pairs.ImageSet("t", torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8), torch.arange(300) % 2, ["a", "b"])
    backbone, _ = evaluate.build_backbone("convnet", 8)
    found = evaluate.judge(["knn"], backbone, backbone, colours, colours)["knn"]
    shown = {key: published["knn"]["scenes"][key] for key in ("k", "temperature")}
    assert asked == [shown] * 2 and found.items() >= shown.items()
    assert evaluate.FINETUNE_LRS == [0.1, 0.01, 0.001, 0.0001]

    def detect_run(run, data, device, init, kind, size, steps, batch_size, lr, rois, roi_size, seed):
        asked.append({"kind": kind, "size": size, "steps": steps, "batch_size": batch_size, "lr": lr, "rois": rois, "roi_size": roi_size})
        return "name", dict.fromkeys(("ap", "ap50", "ap75", "voc07_ap", "voc07_ap50", "voc07_ap75"), 0.0)

    monkeypatch.setattr(evaluate, "detect_run", detect_run)
    for data in ("scenes", "VOC2007"):
        printed("evaluate.py", "detect", ".", "--data", data, "--device", "cpu")
    detected = json.loads((ROOT / "results" / "detection" / "scenes" / "simclr-semantic-scenes-seed0" / "result.json").read_text())["detect"]["scenes, c4, init run, seed 0"]
    assert asked[2].items() <= detected.items()
    # MoCo, detection/: 24k steps of 16 images, short sides of 480 to 800 px, lr 0.02
    assert asked[3] == {"kind": "c4", "size": list(range(480, 801, 32)), "steps": 24000, "batch_size": 16, "lr": 0.02, "rois": 512, "roi_size": 14}


def test_blocks_that_the_scripts_share_are_equal():
    """A fix in one script cannot miss the others: shared options, the frame of the loop, and the start and end of the program."""
    text = {m: (ROOT / f"{m}.py").read_text() for m in METHODS}

    def same(pattern, methods=METHODS):
        found = {m: re.search(pattern, text[m], re.S).group(0) for m in methods}
        assert len(set(found.values())) == 1 and len(found[methods[0]]) > 80, pattern

    same(r"    # -- shared by the four methods.*?(?=    # -- \w+'s own)")
    same(r"def parse_args.*?add, default[^\n]*\n")  # the start of the parser
    same(r"    device = torch.device\(args.device\)\n    steps_per_epoch.*?batch_size\n")
    same(r"    for epoch in range.*?device, images\):\n")
    same(r"            optimizer.zero_grad\(\)\n.*?optimizer.step\(\)\n")
    same(r"    model = model.to[^\n]*\n")
    same(r"def learning_rate.*?(?=\n\n\n)", ["simclr", "byol"])
    same(r"class LARS.*?(?=\n\n\n)", ["simclr", "byol"])
    same(r"def learning_rate.*?(?=\n\n\n)", ["moco", "simsiam"])
    same(r"    source = pairs.load_pairs.*?torch.manual_seed[^\n]*\n")
    same(r"    train\(model, optimizer.*")
    for m in METHODS:
        banners = re.findall(r"^# -{5,} (\w+)$", text[m], re.M)
        assert banners == ["CONFIG", "MODEL", "LOSS", "SCHEDULES", "TRAIN", "main"]


def test_ci_runs_the_readmes_test_command():
    command = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line)
    assert command in (ROOT / "README.md").read_text()


def pieces():
    """The rows of README's table of pieces: a file, what is called, what else to copy."""
    for row in (ROOT / "README.md").read_text().split("## Copying a piece")[1].split("\n## ")[0].splitlines():
        called, _, others = row.strip("| ").partition(" | ")
        for file, name in re.findall(r"`(\w+)\.(\w+)", called) if row.startswith("| `") else ():
            if name not in ("augment", "linear_probe"):  # a section, and what is better imported
                yield file, name, re.findall(r"`(\w+)`", others)


def source_of(file, name):
    text = (ROOT / f"{file}.py").read_text()
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == name or isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def names_used(source):
    """What a piece of code takes from outside of it, but for torch, F, np and math."""
    wanted, given = set(), set(dir(builtins)) | {"torch", "F", "np", "math"}
    for part in ast.parse(source).body:
        names = [node for node in ast.walk(part) if isinstance(node, ast.Name)]
        own = {node.id for node in names if isinstance(node.ctx, ast.Store)} | {node.arg for node in ast.walk(part) if isinstance(node, ast.arg)}
        own |= {node.name for node in ast.walk(part) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        wanted |= {node.id for node in names} - own
        given |= own if isinstance(part, ast.Assign) else {getattr(part, "name", None)}
    return wanted - given


def test_the_table_of_pieces_is_found():
    assert len(list(pieces())) >= 9


@pytest.mark.parametrize("file, name, others", list(pieces()))
def test_a_piece_can_be_copied_with_what_the_readme_names(file, name, others):
    assert names_used("\n\n".join(source_of(file, each) for each in (*others, name))) == set()


def test_the_section_augmentation_can_be_copied_whole():
    section = (ROOT / "pairs.py").read_text().split(" augmentation\n")[1].split("# ----")[0]
    assert "def augment(" in section
    section = section.replace(source_of("pairs", "make_views"), "")
    assert names_used(section) == {"UserError", "dataclass", "replace", "functools"}  # ours, and the standard library's


def test_a_loop_of_ones_own_as_in_the_readme():
    code = (ROOT / "README.md").read_text().split("In a training loop of your own:")[1].split("To paste")[0]
    given = {"epoch": 0, "labels": torch.arange(256) % 4, "images": torch.randint(256, (256, 3, 16, 16), dtype=torch.uint8), "device": "cpu",
             "model": lambda x: x.flatten(1)}
    exec(textwrap.dedent(code), given)
    assert given["loss"].isfinite() and torch.equal(given["labels"][given["partner"]], given["labels"]) and len(given["x1"]) == 128
