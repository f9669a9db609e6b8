"""The four scripts as a user runs them: each method on each kind of pairs, what it writes, its mistakes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate

ROOT = Path(__file__).parent.parent
METHODS = ["simclr", "moco", "byol", "simsiam"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--device", "cpu"]


def call(script, *arguments, ok=True):
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 2 classes x 20 training and 6 test images, a pair list, and three runs' worth of use."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for split, each in (("train", 20), ("test", 6)):
        for c, name in enumerate(("rot grün", "blau")):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = torch.randint(0, 120, (16, 16, 3), generator=generator, dtype=torch.uint8)
                pixels[:, :, c] += 100
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{i}.png")
    with open(folder / "list.csv", "w", newline="") as file:
        rows = [(f"train/{n}/{i}.png", f"train/{n}/{(i + 1) % 20}.png", n) for n in ("rot grün", "blau") for i in range(20)]
        csv.writer(file).writerows([("image_a", "image_b", "category"), *rows])
    return folder


def check_run(folder, config_has):
    """Opens everything a run folder holds."""
    config = json.loads((folder / "config.json").read_text())
    assert config_has.items() <= config.items() and {"torch", "git_commit", "seed"} <= set(config)
    lines = [json.loads(line) for line in open(folder / "log.jsonl")]
    assert all(list(line) == ["epoch", "step", "loss", "lr", "images_per_second", "embedding_std", "effective_rank"] for line in lines)
    assert lines[-1]["epoch"] == config["epochs"]
    assert lines[-1]["step"] == config["epochs"] * (config["pairs_per_epoch"] // config["batch_size"])
    backbone, _ = evaluate.build_backbone(config["backbone"], config["image_size"])
    backbone.load_state_dict(torch.load(folder / "backbone.pt", weights_only=True))
    for picture in ("pairs.png", "curves.png"):
        assert min(Image.open(folder / picture).size) > 100
    return config, lines


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["augmented", "semantic", "list"])
def test_every_method_runs_on_every_kind_of_pairs(method, kind, photos, tmp_path):
    given = photos / "list.csv" if kind == "list" else kind
    small = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
    done = call(f"{method}.py", "--pairs", given, "--data", photos, "--backbone", "convnet", *QUICK, *small, "--out", tmp_path / "run")
    check_run(tmp_path / "run", {"method": method, "pairs": str(given), "image_size": 16})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for head in ("linear", "knn"):
        r = result[head][photos.name]
        assert 0 <= r["accuracy"] <= 1 and r["chance"] == 0.5 and (r["classes"], r["n_train"], r["n_test"]) == (2, 40, 12)
        assert f"{r['accuracy']:.3f}" in done.stdout and f"{r['untrained']:.3f}" in done.stdout


def test_a_list_without_data_trains_and_says_how_to_evaluate(photos, tmp_path):
    for arm in ("semantic", "augmented"):
        done = call("byol.py", "--pairs", photos / "list.csv", "--arm", arm, "--backbone", "convnet", *QUICK, "--out", tmp_path / arm)
        check_run(tmp_path / arm, {"pairs_per_epoch": 40, "arm": arm, "data": None})
        assert "--data DIR" in done.stdout and not (tmp_path / arm / "result.json").exists()
    refused = call("evaluate.py", "knn", tmp_path / "semantic", ok=False)
    assert refused.returncode == 2 and "--data" in refused.stderr
    call("evaluate.py", "knn", tmp_path / "semantic", "--data", photos, "--device", "cpu")


def test_scenes_show_the_held_out_table(tmp_path):
    done = call("simclr.py", "--pairs", "semantic", "--epochs", "1", "--limit", "1024", "--out", tmp_path / "run", "--device", "cpu")
    config, lines = check_run(tmp_path / "run", {"data": "scenes", "backbone": "convnet"})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["linear"]) == ["scenes", "scenes-held-out"] and result["linear"]["scenes-held-out"]["classes"] == 20
    assert "categories that no pretraining image shows" in done.stdout


def test_same_seed_gives_the_same_backbone_to_the_bit_and_resume_equals_no_interruption(photos, tmp_path):
    for method in METHODS:
        small = ["--queue-size", "32", "--bn-splits", "2"] if method == "moco" else []
        common = ["--pairs", "semantic", "--data", photos, "--backbone", "convnet", *QUICK, *small]
        for name in "ab":
            call(f"{method}.py", *common, "--out", tmp_path / method / name)
        a, b = tmp_path / method / "a", tmp_path / method / "b"
        assert (a / "backbone.pt").read_bytes() == (b / "backbone.pt").read_bytes()
        # cut the second run after its first epoch, where a kill would have left it
        code = (f"import sys, evaluate, {method}, pairs\n"
                "save = evaluate.Run.save\n"
                "def cut(self, epoch):\n    save(self, epoch)\n    if epoch == 1: raise KeyboardInterrupt\n"
                f"evaluate.Run.save = cut\npairs.run_cli({method}.main)\n")
        done = subprocess.run([sys.executable, "-c", code, *map(str, common), "--out", tmp_path / method / "c"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 130 and "--resume" in done.stderr
        refused = call(f"{method}.py", *common, "--out", tmp_path / method / "c", "--resume", "--lr", "0.7", ok=False)
        assert "lr was" in refused.stderr
        call(f"{method}.py", *common, "--out", tmp_path / method / "c", "--resume")
        assert (a / "backbone.pt").read_bytes() == (tmp_path / method / "c" / "backbone.pt").read_bytes()
        steps = [json.loads(line)["step"] for line in open(tmp_path / method / "c" / "log.jsonl")]
        assert steps == sorted(set(steps))


def test_evaluate_adds_to_the_result_and_keeps_the_rest(photos, tmp_path):
    run = tmp_path / "run"
    call("simsiam.py", "--data", photos, "--backbone", "convnet", *QUICK, "--out", run)
    before = json.loads((run / "result.json").read_text())
    call("evaluate.py", "knn", run, "--data", "scenes-held-out", "--device", "cpu")
    call("evaluate.py", "linear", run, "--device", "cpu")
    after = json.loads((run / "result.json").read_text())
    assert set(after["knn"]) == {photos.name, "scenes-held-out"}
    assert after["knn"][photos.name] == before["knn"][photos.name] and after["linear"] == before["linear"]


@pytest.mark.parametrize("arguments, said", [
    (["--pairs", "nowhere.csv"], "nowhere.csv: no such file"),
    (["--data", "nowhere"], "--data nowhere"),
    (["--epochs", "0"], "0 is not 1 or more"),
    (["--epochs", "two"], "--epochs"),
    (["--lr", "-1"], "-1 is not above 0"),
    (["--without", "sharpen"], "--without sharpen"),
    (["--backbone", "resnet19"], "--backbone resnet19"),
    (["--device", "tpu9"], "--device tpu9"),
    (["--limit", "256", "--pairs", "semantic"], "one image only"),
    (["--batch-size", "5000"], "--batch-size 5000"),
    (["--crop-min", "2"], "--crop-min: 2 is not between 0 and 1"),
    (["--weight-decay", "-1"], "--weight-decay"),
    (["--jitter", "0", "0", "0", "0.6"], "half a turn"),
])
def test_a_users_mistake_is_one_line_and_exit_status_2(arguments, said, tmp_path):
    done = call("simclr.py", *arguments, "--out", tmp_path / "run", ok=False)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_names_every_option_with_its_default():
    for method in METHODS:
        text = call(f"{method}.py", "--help").stdout
        for option in "pairs arm data root download image-size limit backbone epochs batch-size lr weight-decay seed device out resume without".split():
            assert f"--{option}" in text
        assert "on scenes" in text


def test_blocks_that_the_scripts_share_are_equal():
    """A fix in one script cannot miss the others: shared options, and the start and end of the program."""
    text = {m: (ROOT / f"{m}.py").read_text() for m in METHODS}

    def same(pattern, methods=METHODS):
        found = {m: re.search(pattern, text[m], re.S).group(0) for m in methods}
        assert len(set(found.values())) == 1 and len(found[methods[0]]) > 80, pattern

    same(r"    # -- shared by the four methods.*?(?=    # -- \w+'s own)")
    same(r"def parse_args.*?add, default[^\n]*\n")  # the start of the parser
    same(r"    device = torch.device\(args.device\)\n    steps_per_epoch.*?batch_size\n")
    same(r"def learning_rate.*?(?=\n\n\n)", ["simclr", "byol"])
    same(r"def learning_rate.*?(?=\n\n\n)", ["moco", "simsiam"])
    for m in METHODS:
        banners = re.findall(r"^# -{5,} (\w+)$", text[m], re.M)
        assert banners == ["CONFIG", "MODEL", "LOSS", "SCHEDULES", "TRAIN", "main"]


def test_ci_runs_the_readmes_test_command():
    command = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line)
    assert command in (ROOT / "README.md").read_text()
