#!/usr/bin/env bash
# One epoch on all 60,000 images of Fashion-MNIST with every classification loss, from scratch:
#   results/fashion_mnist_one_epoch/run.sh FOLDER_OF_IDX_FILES
# (Debian's package dataset-fashion-mnist: /usr/share/datasets/fashion-mnist). Then table.py.
set -euo pipefail
data=${1:?usage: run.sh FOLDER_OF_IDX_FILES}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

train() {  # NAME LOSS and further flags
  local out=$here/runs/$1 loss=$2
  shift 2
  [ -e "$out/result.json" ] && return
  python "$here/../../recipes/image_classification.py" --loss "$loss" --output_dir "$out" \
    --dataset_name "$data" --train_val_split 0 --augmentation none --num_train_epochs 1 \
    --per_device_train_batch_size 64 --seed 42 --use_cpu \
    --logging_steps 1 --save_strategy no --disable_tqdm true "$@"
}

for loss in $(hf-losses list --task classification --format json | python -c '
import json, sys
print(*(loss["name"] for loss in json.load(sys.stdin)))'); do
  train "$loss" "$loss" --learning_rate 3e-3 --model_type resnet --config_overrides \
    'embedding_size=16,hidden_sizes=[16,32,64],depths=[1,1,1],layer_type=basic'
done
for loss in cross_entropy liberal_parabolic; do  # A second epoch, from a model that has learned.
  train "second-$loss" "$loss" --learning_rate 1e-3 --model_name_or_path "$here/runs/cross_entropy"
done
python "$here/cold_start.py" "$data"
python "$here/table.py"
