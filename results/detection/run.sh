#!/usr/bin/env bash
# Detection on blood cells (BCCD, VOC layout): Faster R-CNN (C4) on a ResNet-18 pretrained on scenes with either kind of
# pairs, or not at all; three seeds of the detector. Two runs at a time, one thread each: 26 minutes for each
# pretraining, 6 for each detector, on two cores. From the repository's root, with the data set's folder:
#     bash results/detection/run.sh bccd-voc [python]
# The runs here are of commit 2c408b3, from before --out was given: pretraining.txt names other folders.
set -e
data=$1 python=${2:-.venv/bin/python}
export OMP_NUM_THREADS=1
printf '%s\n' augmented semantic | xargs -P 2 -I {} "$python" simclr.py --pairs {} --backbone resnet18 --image-size 72 --epochs 20 --out runs/resnet18-{} > runs-output.txt
for seed in 0 1 2; do
  echo "runs/resnet18-augmented --init run --seed $seed"
  echo "runs/resnet18-semantic --init run --seed $seed"
  echo "runs/resnet18-semantic --init random --seed $seed"
done | xargs -P 2 -L 1 "$python" evaluate.py detect --size 224 --steps 300 --batch-size 4 --rois 32 --roi-size 7 --data "$data" --device cpu > runs/detection.txt
mv runs-output.txt results/detection/pretraining.txt  # only now: a changed file would mark the commit as dirty
mv runs/detection.txt results/detection/output.txt
for pairs in augmented semantic; do
  mkdir -p results/detection/simclr-$pairs
  cp runs/resnet18-$pairs/{config.json,result.json,log.jsonl} results/detection/simclr-$pairs/
done
