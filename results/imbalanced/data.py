"""Writes movie reviews of which one in twenty is positive: train.csv, validation.csv, test.csv.

    python results/imbalanced/data.py FOLDER

The reviews are those of the package, split at random once: 2,000, 400 and 1,500 rows.
"""

import sys
from pathlib import Path

from datasets import concatenate_datasets

from hf_losses.data.movie_reviews import load_movie_reviews

ROWS = {"train": (1900, 100), "validation": (380, 20), "test": (1425, 75)}

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
reviews = concatenate_datasets([*load_movie_reviews("movie_reviews").values()]).shuffle(seed=0)
names = reviews.features["label"].names
classes = [reviews.filter(lambda label, n=n: label == n, input_columns="label") for n in (0, 1)]
starts = [0, 0]
for name, counts in ROWS.items():
    parts = []
    for label, count in enumerate(counts):
        parts.append(classes[label].select(range(starts[label], starts[label] + count)))
        starts[label] += count
    split = concatenate_datasets(parts).shuffle(seed=0)
    rows = {"sentence": split["sentence"], "label": [names[label] for label in split["label"]]}
    type(split).from_dict(rows).to_csv(folder / f"{name}.csv")
