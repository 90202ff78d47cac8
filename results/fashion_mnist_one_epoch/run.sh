#!/usr/bin/env bash
# One epoch on all 60,000 images of Fashion-MNIST with every classification loss, from scratch:
#   results/fashion_mnist_one_epoch/run.sh FOLDER_OF_IDX_FILES
# (Debian's package dataset-fashion-mnist: /usr/share/datasets/fashion-mnist). Then table.py.
set -euo pipefail
data=${1:?usage: run.sh FOLDER_OF_IDX_FILES}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

for loss in $(hf-losses list --format json | python3 -c '
import json, sys
print(*(loss["name"] for loss in json.load(sys.stdin) if loss["task"] == "classification"))'); do
  out=$here/runs/$loss
  [ -e "$out/result.json" ] && continue
  python "$here/../../recipes/image_classification.py" --loss "$loss" --output_dir "$out" \
    --dataset_name "$data" --train_val_split 0 --augmentation none --num_train_epochs 1 \
    --model_type resnet --config_overrides \
    'embedding_size=16,hidden_sizes=[16,32,64],depths=[1,1,1],layer_type=basic' \
    --per_device_train_batch_size 64 --learning_rate 3e-3 --seed 42 --use_cpu \
    --logging_steps 1 --save_strategy no --disable_tqdm true
done
python "$here/table.py"
