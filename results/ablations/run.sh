#!/usr/bin/env bash
# Ablations on the built-in scenes, seeds 0 to 2, default options but for what is named: curation (how many pairs are
# semantic, how many are false), augmentation, architecture. Two runs at a time, one thread each: two hours, and seven for the
# jitter. The runs that they stand beside, nothing changed, are those of results/scenes. From the repository's root:
#     bash results/ablations/run.sh [python]
# MoCo's runs are of commit ae35256, torch 2.14 (output-moco.txt); the others of f5ed5ca, torch 2.15.
# Then the colour jitter of BYOL and SimSiam in SimCLR and MoCo, planned before the first run: 12 runs in float32,
# 40 minutes, of commit 9fd632a. Then, planned when these had been seen and to be kept whatever they show: the
# default jitter in float32 too, as these had been compared with runs in bf16, and seeds 3 and 4 of both; 28 runs, an hour,
# of commit 3a3efe9. Then, planned before the first of its 20 runs, a stronger one still: SimCLR's full strength of brightness,
# contrast and saturation (App. A: 0.8), and any hue: an hour and a half beside other work, of commit f67a041. Then, planned before
# the first of its 20 runs, SimCLR's jitter in BYOL and SimSiam, so that all four methods are seen under one augmentation: 70
# minutes, of commit d31f9c1. Then, planned when these had been seen and to be kept whatever they show, BYOL's default jitter in
# float32 too, 10 runs, 40 minutes, of commit e19f1e3. Last, planned when all these had been seen and to be kept too,
# SimSiam's default jitter in float32, and the stronger one in BYOL and SimSiam, 30 runs, two hours, of commit 8dec1be.
set -e
python=${1:-.venv/bin/python}
export OMP_NUM_THREADS=1
list_runs() {
  for seed in 0 1 2; do
    for control in "--semantic-share 0.1" "--semantic-share 0.25" "--semantic-share 0.5" "--false-pairs 0.1" "--false-pairs 0.2" "--false-pairs 0.4"; do
      echo "simclr.py --pairs semantic --seed $seed $control"
    done
  done
  for seed in 0 1 2; do
    for method in simclr moco byol simsiam; do
      for without in crop jitter,gray crop,flip,jitter,gray; do
        for arm in augmented semantic; do
          echo "$method.py --pairs $arm --seed $seed --without $without"
        done
      done
    done
    for backbone in shufflenet_v2_x0_5 regnet_x_400mf; do
      for arm in augmented semantic; do
        echo "simclr.py --pairs $arm --seed $seed --backbone $backbone --out runs/simclr-$arm-$backbone-scenes-seed$seed"
      done
    done
  done
}
jitter() {  # methods, a name, and the options that it is for
  for method in $1; do
    for seed in 0 1 2 3 4; do
      for arm in augmented semantic; do
        echo "$method.py --pairs $arm --seed $seed ${*:3} --precision float32 --out runs/jitter/$method-$arm$2-seed$seed"
      done
    done
  done
}
for run in runs/jitter runs/*-{share,false,without}*-scenes-seed[0-2] runs/simclr-*-{shufflenet_v2_x0_5,regnet_x_400mf}-scenes-seed[0-2]; do
  [ ! -e "$run" ] || { echo "$run is there already: move it away first, a run is never overwritten" >&2; exit 2; }
done
"$python" -c '
import json, sys, torch, evaluate
base = json.load(open("results/scenes/simclr-semantic-scenes-seed0/config.json"))["precision"]
here = evaluate.usual_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
if base != here:
    sys.exit(f"results/scenes is in {base} and this machine computes in {here}, which compare refuses: run results/scenes/run.sh first")'
mkdir -p runs
list_runs | xargs -P 2 -L 1 "$python" > runs/ablations-output.txt 2>&1
for run in runs/*-{share,false,without}*-scenes-seed[0-2] runs/simclr-*-{shufflenet_v2_x0_5,regnet_x_400mf}-scenes-seed[0-2]; do
  mkdir -p "results/ablations/$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} "results/ablations/$(basename "$run")/"
done
compare() {
  out=$1 by=$2
  shift 2
  "$python" evaluate.py compare "$@" ${by:+--by "$by"} --measure "linear scenes-held-out" --out "results/ablations/$out"
}
base=results/scenes here=results/ablations
compare curation "" $base/simclr-{augmented,semantic}-scenes-seed[0-2] $here/simclr-semantic-{share,false}*-scenes-seed[0-2]
methods=$(for method in simclr moco byol simsiam; do echo $base/$method-*-scenes-seed[0-2] $here/$method-*-without-{crop,jitter-gray,crop-flip-jitter-gray}-scenes-seed[0-2]; done)
compare augmentation without $methods
compare architecture backbone $base/simclr-{augmented,semantic}-scenes-seed[0-2] $here/simclr-*-{shufflenet_v2_x0_5,regnet_x_400mf}-scenes-seed[0-2]

{
  jitter "simclr moco" '' --jitter 0.2 0.2 0.8 0.5
  jitter "simclr moco" -weak
  jitter "byol simsiam" ''
  jitter "byol simsiam" -weak --jitter 0.2 0.2 0.2 0.05
  jitter "simclr moco byol simsiam" -stronger --jitter 0.8 0.8 0.8 0.5
} | xargs -P 2 -L 1 "$python" > runs/jitter-output.txt 2>&1
for run in runs/jitter/*; do
  "$python" evaluate.py transfer "$run" --data scenes-shifted >> runs/jitter-output.txt
  mkdir -p "$here/jitter/$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} "$here/jitter/$(basename "$run")/"
done
grep -vE '^epoch |^reading |features of|L2 strengths' runs/jitter-output.txt > $here/jitter/output.txt
"$python" evaluate.py compare $here/jitter/*-seed[0-4] --by jitter --measure "linear scenes-held-out" "knn scenes-held-out" "transfer scenes-shifted" --out $here/jitter
