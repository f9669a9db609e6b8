#!/usr/bin/env bash
# Detection on scenes: the four methods pretrained on scenes with either kind of pairs, default options, five seeds (each another
# world), then Faster R-CNN (C4) on 400 scenes of one to four objects of categories that pretraining does not show, default options;
# and on a backbone that starts at random. Two runs at a time, one thread each: about two hours. From the repository's root:
#     bash results/detection/scenes/run.sh [python]
# The runs here are of commit 136ac9a, from before --out was given: pretraining.txt names other folders.
# detections.png was drawn again by bc2ac4e, which outlines the true boxes too: that run's values were equal to the last digit.
set -e
python=${1:-.venv/bin/python}
export OMP_NUM_THREADS=1
out=results/detection/scenes runs=runs/detection-scenes  # not where results/scenes/run.sh has its own of the same names
mkdir -p $runs
for method in simclr moco byol simsiam; do
  for seed in 0 1 2 3 4; do
    for pairs in augmented semantic; do
      echo "$method.py --pairs $pairs --seed $seed --out $runs/$method-$pairs-scenes-seed$seed"
    done
  done | xargs -P 2 -L 1 "$python" >> $runs/pretraining.txt
  for seed in 0 1 2 3 4; do
    printf 'evaluate.py detect %s --data scenes\n' $runs/$method-{augmented,semantic}-scenes-seed$seed
    [ $method != simclr ] || echo "evaluate.py detect $runs/simclr-augmented-scenes-seed$seed --data scenes --init random"
  done | xargs -P 2 -L 1 "$python" >> $runs/detection.txt
done
mv $runs/{pretraining,detection}.txt $out/  # only now: changed files would mark the runs' commit as dirty
for run in $runs/{simclr,moco,byol,simsiam}-{augmented,semantic}-scenes-seed[0-4]; do
  mkdir -p $out/"$(basename "$run")"
  cp "$run"/{config.json,result.json,log.jsonl} $out/"$(basename "$run")"/
done
cp $runs/simclr-semantic-scenes-seed0/detections.png $out/
"$python" evaluate.py compare $out/{simclr,moco,byol,simsiam}-*-seed[0-4] --measure "detect AP scenes, c4, init run" "detect AP50 scenes, c4, init run" --out $out
"$python" $out/summary.py > $out/summary.txt
