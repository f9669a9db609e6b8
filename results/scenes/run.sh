#!/usr/bin/env bash
# The study on the built-in scenes: four methods and supervised contrastive learning x two kinds of pairs x five seeds, default
# options; then transfer to a shifted context, invariance, and the comparison. Two runs at a time, one thread each, which uses two
# cores best: about an hour and a quarter. From the repository's root:
#     bash results/scenes/run.sh [python]
# The runs here are of these commits: SimCLR's 0557b56 (output.txt), BYOL's 6e9ef6f, with wider heads (output-byol.txt,
# byol-recipe.txt), SimSiam's e844d5f, with another predictor and lr (output-simsiam.txt, simsiam-recipe.txt), MoCo's ae35256
# (output-moco.txt, shifted-moco.txt), with BatchNorm by parts of a batch that goes through the network whole; so are their
# evaluations. What output.txt has of BYOL, SimSiam and MoCo, and shifted.txt of MoCo, is of their former recipes and code. Supervised
# contrastive learning was added later, both arms, five seeds planned before the first was run, to be kept whatever they show
# (5eeb291, output-supcon.txt).
set -e
python=${1:-.venv/bin/python}
export OMP_NUM_THREADS=1
for run in runs/{simclr,moco,byol,simsiam,supcon}-{augmented,semantic}-scenes-seed[0-4]; do
  [ ! -e "$run" ] || { echo "$run is there already: move it away first, a run is never overwritten" >&2; exit 2; }
done
for seed in 0 1 2 3 4; do
  for method in simclr moco byol simsiam results/transfer/supcon; do
    for pairs in augmented semantic; do
      echo "$method.py --pairs $pairs --seed $seed"
    done
  done
done | xargs -P 2 -L 1 "$python" > runs-output.txt 2>&1  # nothing below results yet: a changed file there would mark the commit as dirty
printf '%s\n' runs/{simclr,moco,byol,simsiam,supcon}-{augmented,semantic}-scenes-seed[0-4] | xargs -P 2 -I {} "$python" evaluate.py transfer {} --data scenes-shifted > runs/shifted.txt
"$python" evaluate.py invariance runs/{simclr,moco,byol,simsiam}-{augmented,semantic}-scenes-seed[0-4] --picture runs/invariance.png > runs/invariance.txt
mv runs-output.txt results/scenes/output.txt
mv runs/shifted.txt runs/invariance.{txt,png} results/scenes/
for run in runs/{simclr,moco,byol,simsiam,supcon}-{augmented,semantic}-scenes-seed[0-4]; do
  mkdir -p "results/scenes/$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} "results/scenes/$(basename "$run")/"
done
cp runs/byol-semantic-scenes-seed0/pairs.png results/scenes/
"$python" evaluate.py compare results/scenes/{simclr,moco,byol,simsiam}-*-scenes-seed[0-4] --out results/scenes
"$python" evaluate.py compare results/scenes/{simclr,supcon}-*-scenes-seed[0-4] --measure linear knn transfer --out results/scenes/supcon
