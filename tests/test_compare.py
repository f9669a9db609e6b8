"""Comparison of runs: intervals that are known, matched settings, what is written."""

import csv
import json
import math

import pytest
from PIL import Image

import evaluate
from pairs import UserError

CONFIG = {"method": "simclr", "arm": "semantic", "data": "scenes", "backbone": "convnet", "image_size": 32, "limit": None, "epochs": 30, "lr": 0.5, "files_crc32": 5, "torch": "2"}


@pytest.fixture
def make(tmp_path):
    def make_run(pairs, seed, value, **changes):
        run = tmp_path / f"{pairs.replace('.', '')}-{seed}-{len(list(tmp_path.iterdir()))}"
        run.mkdir()
        evaluate.write_json(run / "config.json", CONFIG | {"pairs": pairs, "seed": seed, "out": str(run)} | changes)
        evaluate.write_json(run / "result.json", {"linear": {"held": {"accuracy": value, "untrained": 0.2, "chance": 0.05}}})
        return run
    return make_run


def test_quantiles_of_students_t():
    """Table values of the two-sided 95 %; and 99 %."""
    for df, t in ((1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (100, 1.98397)):
        assert evaluate.student_t(df) == pytest.approx(t, rel=1e-4)
    assert evaluate.student_t(4, 0.99) == pytest.approx(4.60409, rel=1e-4)


def test_the_interval_of_a_known_case(make):
    """Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, half width 4.30265 * 0.1 / sqrt(3)."""
    values = {"augmented": {2: 0.1, 0: 0.5, 1: 0.3}, "semantic": {7: 0.99, 0: 0.6, 1: 0.5, 2: 0.4}}  # 7: in the mean, not in the difference
    (row,) = evaluate.compare([make(arm, seed, value) for arm, of in values.items() for seed, value in of.items()])
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert row["difference"] == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-4)
    assert (row["method"], row["data"], row["measure"], row["seeds"]) == ("simclr", "scenes", "linear held", [0, 1, 2])
    assert row["semantic"] == pytest.approx(values["semantic"]) and row["untrained"] == {0: 0.2, 1: 0.2, 2: 0.2, 7: 0.2}


def test_runs_that_are_not_matched_are_refused_by_the_settings_name(make):
    fine = [make("augmented", 0, 0.5, torch="3"), make("semantic", 0, 0.6, device="cuda")]
    assert evaluate.compare(fine)[0]["difference"][0] == pytest.approx(0.1)
    for name, value in (("epochs", 31), ("lr", 0.4), ("image_size", 64), ("gray", 0.1), ("limit", 100), ("pairs_per_epoch", 9)):
        with pytest.raises(UserError, match=f"{name} is .* in .* and {value} in "):
            evaluate.compare([*fine, make("semantic", 1, 0.6, **{name: value})])
    older = make("augmented", 1, 0.5)
    config = json.loads((older / "config.json").read_text())
    del config["files_crc32"]  # which older code did not write
    evaluate.write_json(older / "config.json", config)
    assert evaluate.compare([older, *fine])[0]["difference"][0] == pytest.approx(0.1)
    with pytest.raises(UserError, match="not matched, .*: the images of --data, or the pairs of the list, are not the same in .*0.* and in "):
        evaluate.compare([older, *fine, make("semantic", 1, 0.6, files_crc32=7)])
    with pytest.raises(UserError, match="semantic pairs, seed 0 is there already"):
        evaluate.compare([*fine, make("semantic", 0, 0.6)])
    run = make("semantic", 5, 0.6)
    (run / "result.json").write_text("{}")
    with pytest.raises(UserError, match="these runs hold no evaluation"):
        evaluate.compare([run])
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="no result.json: evaluate it first"):
        evaluate.compare([run])


def test_runs_that_were_judged_otherwise_or_stopped_are_refused(make):
    runs = [make("augmented", 0, 0.5), make("semantic", 0, 0.6)]
    for run, steps in zip(runs, (100, 5000)):
        evaluate.add_results(run, {"finetune": {"held": {"accuracy": 0.3, "untrained": 0.1, "chance": 0.05, "n_train": 50, "steps": steps, "lr": 1 / steps}}})
    with pytest.raises(UserError, match="finetune held is not comparable: steps is 100 in .* and 5000 in .*; evaluate one again"):
        evaluate.compare(runs)
    evaluate.add_results(runs[1], {"finetune": {"held": {"accuracy": 0.4, "untrained": 0.1, "chance": 0.05, "n_train": 50, "steps": 100, "lr": 0.1}}})
    assert [row["difference"][0] for row in evaluate.compare(runs)] == pytest.approx([0.1, 0.1])  # what was chosen may differ
    older = json.loads((runs[0] / "result.json").read_text())
    del older["finetune"]["held"]["n_train"]  # the first of the runs need not have what the others differ in
    evaluate.write_json(runs[0] / "result.json", older)
    other = make("semantic", 1, 0.6)
    evaluate.add_results(other, {"finetune": {"held": {"accuracy": 0.4, "untrained": 0.1, "chance": 0.05, "n_train": 5, "steps": 100, "lr": 0.1}}})
    with pytest.raises(UserError, match="finetune held is not comparable: n_train is 50 in .* and 5 in "):
        evaluate.compare([*runs, other])
    assert [row["measure"] for row in evaluate.compare([*runs, other], only=["linear held"])] == ["linear held"]  # which is comparable
    evaluate.add_results(runs[0], {"detect": {"v, seed 0": {"ap": 0.3, "ap50": 0.6, "steps": 2}, "v, seed 1": {"ap": 0.5, "ap50": 0.8, "steps": 3}}})
    with pytest.raises(UserError, match=f"{runs[0]}: .*not all were trained alike: steps is 2 and 3; evaluate one again"):
        evaluate.compare(runs)
    assert [row["measure"] for row in evaluate.compare(runs, only=["linear"])] == ["linear held"]  # what is not asked for may be unlike
    with pytest.raises(UserError, match="has only 7 of its 30 epochs: let it end, or go on with --resume"):
        evaluate.compare([make("semantic", 1, 0.6, trained_epochs=7)])
    assert evaluate.compare([make("semantic", 1, 0.6, trained_epochs=30)])
    with pytest.raises(UserError, match="processes is 1 in .* and 8 in "):
        evaluate.compare([make("semantic", 1, 0.6), make("augmented", 1, 0.6, processes=8)])


def test_groups_are_methods_and_data_and_a_list_is_a_semantic_arm(make):
    rows = evaluate.compare([make("augmented", 0, 0.5), make("augmented", 0, 0.4, method="moco", lr=0.1), make("augmented", 0, 0.3, data="cifar10"),
                             make("list.csv", 0, 0.7, data="photos"), make("list.csv", 0, 0.6, data="photos", arm="augmented")])
    assert [(r["method"], r["data"]) for r in rows] == [("simclr", "scenes"), ("moco", "scenes"), ("simclr", "cifar10"), ("simclr", "photos list.csv")]
    assert [r["difference"] is None for r in rows] == [True, True, True, False]
    assert rows[3]["difference"][0] == pytest.approx(0.1) and math.isnan(rows[3]["difference"][1])  # one seed has no interval


def test_controls_are_rows_of_their_own_beside_the_same_baseline(make):
    rows = evaluate.compare([make("augmented", 0, 0.5), make("semantic", 0, 0.9), make("semantic", 0, 0.8, false_pairs=0.2),
                             make("semantic", 0, 0.7, false_pairs=0.2, semantic_share=0.5)])
    assert [(r["data"], round(r["difference"][0], 6)) for r in rows] == [("scenes", 0.4), ("scenes, false 0.2", 0.3), ("scenes, share 0.5, false 0.2", 0.2)]


def test_an_ablation_has_rows_of_its_own_for_each_value_of_an_option(make):
    runs = [make(arm, 0, value - (without == "crop") * 0.1 * (arm == "augmented"), without=without)
            for without in ("", "crop") for arm, value in (("augmented", 0.5), ("semantic", 0.9))]
    with pytest.raises(UserError, match="without is nothing in .* and crop in .*; with --by without each value"):
        evaluate.compare(runs)
    rows = evaluate.compare(runs, by=["without"])
    assert [(r["data"], round(r["difference"][0], 6)) for r in rows] == [("scenes, with all transforms", 0.4), ("scenes, without crop", 0.5)]
    with pytest.raises(UserError, match="not comparable: lr is 0.5"):  # what is not named must still be equal
        evaluate.compare([*runs, make("semantic", 1, 0.6, without="", lr=0.4)], by=["without"])
    with pytest.raises(UserError, match="--by semantic_share: leave it out"):
        evaluate.compare(runs, ["semantic-share"])
    with pytest.raises(UserError, match="--by image_sise: no option of "):
        evaluate.compare(runs, by=["image-sise"])
    evaluate.add_results(runs[0], {"knn": {"held": {"accuracy": 0.3, "untrained": 0.1, "chance": 0.05}}})
    measured = lambda **options: [(r["data"], r["measure"]) for r in evaluate.compare(runs, by=["without"], **options)]
    assert ("scenes, with all transforms", "knn held") in measured()
    assert measured(only=["linear held"]) == [("scenes, with all transforms", "linear held"), ("scenes, without crop", "linear held")]
    assert measured(only=["linear"]) == measured(only=["linear held"])
    with pytest.raises(UserError, match="--measure linear hold: .* choose from linear held \\| knn held"):
        evaluate.compare(runs, by=["without"], only=["linear hold"])


def test_runs_in_another_precision_are_refused_unless_they_are_the_ablation(make):
    runs = [make("augmented", 0, 0.5), make("semantic", 0, 0.6, precision="float32"), make("augmented", 0, 0.7, precision="bfloat16")]
    assert len(evaluate.compare(runs[:2])) == 1  # a run of older code does not say
    with pytest.raises(UserError, match="--by precision: no option of "):
        evaluate.compare(runs[:1], by=["precision"])
    with pytest.raises(UserError, match="not matched, so not comparable: precision is float32 in .* and bfloat16 in .*; with --by precision"):
        evaluate.compare(runs[1:])
    assert [row["data"] for row in evaluate.compare(runs[1:], by=["precision"])] == ["scenes, precision float32", "scenes, precision bfloat16"]


def test_what_is_written(make, tmp_path):
    runs = [make(arm, seed, value) for seed in (0, 1) for arm, value in (("augmented", 0.5), ("semantic", 0.6 + 0.2 * seed))]
    text = evaluate.write_comparison(evaluate.compare(runs), tmp_path / "out")
    assert "| 0.500 ± 0.000 (2) | 0.700 ± 0.141 (2) | +0.200 [-1.071, +1.471] | +0.100, +0.300 |" in text
    assert (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8").strip() == text
    assert len({line.count("|") for line in text.splitlines()}) == 1  # the table's rule has as many columns as its rows
    table = list(csv.DictReader(open(tmp_path / "out" / "comparison.csv")))
    assert [(r["arm"], r["seed"], float(r["value"])) for r in table if r["arm"] == "semantic"] == [("semantic", "0", 0.6), ("semantic", "1", 0.8)]
    assert min(Image.open(tmp_path / "out" / "comparison.png").size) > 100


def test_the_picture_has_each_arms_values_under_its_name(make, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    evaluate.draw_comparison(evaluate.compare([make("augmented", 0, 0.5), make("semantic", 0, 0.6), make("semantic", 1, 0.8)]), tmp_path / "c.png")
    (axis,) = plt.gcf().axes
    twice = make("augmented", 0, 0.5)
    evaluate.add_results(twice, {"transfer": {"held": {"accuracy": 0.4, "untrained": 0.2, "chance": 0.05}}})
    evaluate.draw_comparison(evaluate.compare([twice]), tmp_path / "c.png")  # a panel for each measure, also of one data set
    assert [[len(line.get_ydata()) for line in panel.lines if line.get_label() == "augmented"] for panel in plt.gcf().axes] == [[1], [1]]
    assert not plt.gcf().get_suptitle()
    evaluate.draw_comparison(evaluate.compare([twice]), tmp_path / "c.png", panels=1)
    assert len(plt.gcf().axes) == 1 and plt.gcf().get_suptitle() == "panels not drawn: 1; --measure chooses"
    monkeypatch.undo()
    shown = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert shown.keys() == {"untrained", "augmented", "semantic", "chance"}
    assert (list(shown["untrained"]), list(shown["augmented"]), list(shown["semantic"]), shown["chance"][0]) == ([0.2] * 2, [0.5], [0.6, 0.8], 0.05)
    plt.close("all")


def test_the_picture_names_what_each_panel_shows(make, tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    run, number = make("augmented", 0, 0.5), {"accuracy": 0.4, "untrained": 0.2, "chance": 0.05}
    share = {"factors of scenes": {"factors": {"rotation": {"share": 0.6, "untrained": 0.8, "inside": False}}}}
    evaluate.write_json(run / "result.json", {"linear": {"held": number, "scenes-held-out": number}, "invariance": share})
    several = [make("augmented", 0, 0.5, method=method, data=data) for method in ("simclr", "moco") for data in ("scenes", "ph\udcff")]
    for runs, titles, under in (([run], ["linear probe: scenes-held-out", "linear probe: held"], ["simclr"]),
                                (several, ["simclr, linear probe: held", "moco, linear probe: held"], ["scenes", r"ph\udcff"])):  # not UTF-8
        evaluate.draw_comparison(evaluate.compare(runs), tmp_path / "c.png")
        assert [axis.get_title() for axis in plt.gcf().axes] == titles
        assert all([label.get_text() for label in axis.get_xticklabels()] == under for axis in plt.gcf().axes)
    monkeypatch.undo()
    plt.close("all")


def test_the_numbers_of_a_result():
    results = {"knn": {"d": {"accuracy": 0.3, "untrained": 0.2, "chance": 0.1}}, "detect": {"v, seed 0": {"ap": 0.3, "ap50": 0.6}, "v, seed 1": {"ap": 0.5, "ap50": 0.8}},
               "invariance": {"factors of scenes": {"factors": {"rotation": {"share": 0.6, "untrained": 0.8, "inside": False}}}}}
    found = evaluate.measures(results)
    two = {f"d, seed {seed}": {"accuracy": accuracy, "untrained": 0.1, "chance": 0.1} for seed, accuracy in ((0, 0.2), (1, 0.6))}
    seeded = evaluate.measures({"linear": two, "finetune": two})
    # a folder may be called "d, seed 1"; only fine-tuning has seeds of its own
    assert {k: v["value"] for k, v in seeded.items()} == pytest.approx({"linear d, seed 0": 0.2, "linear d, seed 1": 0.6, "finetune d": 0.4})
    both = {f"v, c4, init {init}, seed {seed}": {"ap": value, "ap50": value} for init, seed, value in (("run", 0, 0.3), ("run", 1, 0.5), ("random", 0, 0.2))}
    (name, numbers), _ = evaluate.measures({"detect": both}).items()
    assert name == "detect AP50 v, c4, init run" and (numbers["value"], numbers["untrained"]) == pytest.approx((0.4, 0.2))
    assert {k: v["value"] for k, v in found.items()} == pytest.approx({"knn d": 0.3, "detect AP50 v": 0.7, "detect AP v": 0.4,
                                                                  "share of rotation factors of scenes": 0.6})


def test_seeds_of_one_arm_only_are_told(make, tmp_path):
    runs = [make("augmented", 0, 0.2), make("augmented", 1, 0.6), make("semantic", 1, 0.5), make("semantic", 2, 0.9)]
    said = evaluate.write_comparison(evaluate.compare(runs), tmp_path / "out")
    assert "| -0.100 | -0.100 |" in said and "Seed 0, 2: of one arm only, so in its mean and not in the difference (simclr scenes, linear held)." in said
    for complete in (runs[1:3], runs[:2]):
        assert "of one arm only" not in evaluate.write_comparison(evaluate.compare(complete), tmp_path / "out")


def test_fine_tuning_counts_by_the_mean_of_its_seeds_and_other_files_are_refused(make):
    runs = [make("augmented", 0, 0.5), make("semantic", 0, 0.6)]
    for run, values in zip(runs, ((0.2, 0.4), (0.5,))):
        for seed, value in enumerate(values):
            evaluate.add_results(run, {"finetune": {f"held, 0.1 of the labels, seed {seed}": {"accuracy": value, "untrained": value / 2, "chance": 0.1, "files_crc32": 7}}})
    row = next(row for row in evaluate.compare(runs) if row["measure"] == "finetune held, 0.1 of the labels")
    assert row["augmented"] == pytest.approx({0: 0.3}) and row["semantic"] == {0: 0.5} and row["untrained"] == pytest.approx({0: 0.2})
    for run, seeds in zip(runs, ([0], [0, 1])):  # one arm judged with more seeds of the detector
        evaluate.add_results(run, {"detect": {f"v, seed {seed}": {"ap": 0.3, "ap50": 0.6, "seed": seed} for seed in seeds}})
    with pytest.raises(UserError, match=r"detect AP50 v is not comparable: its seeds is \[0\] in .* and \[0, 1\] in "):
        evaluate.compare(runs)
    evaluate.add_results(runs[0], {"detect": {"v, seed 1": {"ap": 0.5, "ap50": 0.6, "seed": 1}}})
    assert "detect AP v" in {row["measure"] for row in evaluate.compare(runs)}
    for run, start in zip(runs, (0.2, 0.3)):  # detectors from a random start of each run's own
        evaluate.add_results(run, {"detect": {f"w, init {init}, seed 0": {"ap": value, "ap50": value, "seed": 0} for init, value in (("run", 0.5), ("random", start))}})
    for order in runs, runs[::-1]:
        assert [row["untrained"] for row in evaluate.compare(order, only=["detect AP w, init run"])] == [pytest.approx({0: 0.25})]
    unlike = lambda results: next(iter(evaluate.measures(results).values()))["unlike"]
    assert unlike({"finetune": {f"held, seed {seed}": {"accuracy": 0.5, "untrained": 0.1, "chance": 0.1, "steps": 100 * 10**seed} for seed in (0, 1)}}) == "steps is 100 and 1000"
    older = {"accuracy": 0.5, "untrained": 0.1, "chance": 0.1}  # without the precision
    assert not unlike({"finetune": {"held, seed 0": older, "held, seed 1": older | {"precision": "float32"}}})
    assert unlike({"finetune": {"held, seed 0": older} | {f"held, seed {i}": older | {"precision": p} for i, p in ((1, "bfloat16"), (2, "float32"))}}) == "precision is bfloat16 and float32"
    evaluate.add_results(runs[1], {"finetune": {"held, 0.1 of the labels, seed 0": {"accuracy": 0.5, "untrained": 0.1, "chance": 0.1, "files_crc32": 8}}})
    with pytest.raises(UserError, match="not comparable: the test images have other file names in "):
        evaluate.compare(runs)
    for run, crc32 in zip(runs, (7, 8)):
        evaluate.add_results(run, {"transfer": {"w": {"accuracy": 0.5, "untrained": 0.1, "chance": 0.1, "files_crc32": 7, "train_crc32": [crc32, None]}}})
    with pytest.raises(UserError, match="transfer w is not comparable: the training images have other file names in "):
        evaluate.compare(runs, only=["transfer"])


def test_backbones_from_elsewhere_stand_in_rows_of_their_own(make, monkeypatch):
    runs = [make("augmented", 0, value, method=None, backbone_file=f"{value}.pt") for value in (0.3, 0.4)]
    for run in runs:
        evaluate.write_json(run / "config.json", evaluate.read_config(run) | {"pairs": None})
    rows = evaluate.compare(runs)
    assert [row["method"] for row in rows] == [run.name for run in runs] and [row["any"] for row in rows] == [{0: 0.3}, {0: 0.4}]
    for run in runs:
        evaluate.write_json(run / "config.json", evaluate.read_config(run) | {"data": None})
    monkeypatch.chdir(runs[0])
    (row,) = evaluate.compare(["."], by=["backbone"])
    assert row["method"] == runs[0].name and row["data"].startswith("backbone ")


@pytest.mark.parametrize("key", "metric k classes n n_train n_test n_fitted precision steps batch_size kind size rois roi_size".split())
def test_results_obtained_in_another_way_are_refused(make, key):
    runs = [make("augmented", 0, 0.5), make("semantic", 0, 0.6)]
    for run, value in zip(runs, (1, 2)):
        evaluate.add_results(run, {"knn": {"held": {"accuracy": 0.3, "untrained": 0.1, "chance": 0.05, key: value}}})
    with pytest.raises(UserError, match=f"knn held is not comparable: {key} is 1 in .* and 2 in "):
        evaluate.compare(runs)


def test_fine_tunings_and_detectors_trained_otherwise_are_refused(make):
    runs = [make("augmented", 0, 0.5), make("semantic", 0, 0.6)]
    for run, seeds in zip(runs, ([0], [0, 1])):
        evaluate.add_results(run, {"finetune": {f"held, seed {s}": {"accuracy": 0.3, "untrained": 0.1, "chance": 0.05, "seed": s} for s in seeds}})
    with pytest.raises(UserError, match=r"finetune held is not comparable: its seeds is \[0\] in .* and \[0, 1\] in "):
        evaluate.compare(runs)
    unlike = evaluate.measures({"detect": {f"v, init {init}, seed 0": {"ap": 0.3, "ap50": 0.6, "lr": lr} for init, lr in (("run", 0.02), ("random", 0.1))}})
    assert [number["unlike"] for number in unlike.values()] == ["lr is 0.02 and 0.1"] * 2
