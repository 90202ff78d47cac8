"""The model card of a run: what it says of the loss, the results and how to use the model.

It is made from files in the run's folder alone, so that a card that is made later, on another
machine, says the same. Its text is `card.md`; matplotlib (extra `plots`) adds the pictures.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

from hf_losses.citation import LIBRARY_CITATION, PAPER, PAPER_CITATION
from hf_losses.hub.card_names import TASKS, score_text
from hf_losses.hub.card_plots import PICTURES, draw
from hf_losses.hub.run_facts import MANY, RunFacts

TEMPLATE = Path(__file__).with_suffix(".md")


def write_card(folder: Path, *, repo_id: str | None = None) -> None:
    """Writes `README.md` and its pictures into the folder of a run, from the files in it.

    These files are `hf_losses.json`, `config.json` or `adapter_config.json`, `trainer_state.json`,
    `training_args.json`, the recipes' `result.json`, and an older `README.md` for its metadata;
    all but the first may be missing. The card holds no path of this machine.

    Args:
        folder: What `LossTrainer.save_model` wrote.
        repo_id: The repository that the code in the card loads from; by default the folder's name.

    Raises:
        OSError: If there is no `hf_losses.json`, or the card cannot be written.
    """
    run = RunFacts(folder, repo_id)
    metadata = run.metadata()
    for name in PICTURES:  # The pictures of an earlier run must not stay.
        (folder / name).unlink(missing_ok=True)
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        run=run,
        pictures=draw(run),
        example=TASKS[run.task][2] if run.task in TASKS else None,
        score=score_text,
        TASKS=TASKS,
        MANY=MANY,
        PAPER=PAPER,
        PAPER_CITATION=PAPER_CITATION,
        LIBRARY_CITATION=LIBRARY_CITATION,
    )
    text = re.sub(r" +\n", "\n", card.text)
    card.text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
    card.save(folder / "README.md")
