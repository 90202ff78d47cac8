"""How to cite the paper and this library, and links to the references of losses."""

from __future__ import annotations

import re

# What the library is, in the words of pyproject.toml and CITATION.cff.
SUMMARY = (
    "The loss as a hyperparameter for Hugging Face models that are trained on logits and labels"
)
PAPER = "arXiv:2303.09935"
PAPER_CITATION = """\
@article{noel2023alternate,
  title   = {Alternate Loss Functions for Classification and Robust Regression Can Improve the Accuracy
             of Artificial Neural Networks},
  author  = {Noel, Mathew Mithra and Banerjee, Arindam and Amali D, Geraldine Bessie and
             Muthiah-Nakarajan, Venkataraman},
  journal = {arXiv preprint arXiv:2303.09935},
  year    = {2023}
}"""  # noqa: E501
LIBRARY_CITATION = rf"""@software{{hf_losses,
  title  = {{hf\_losses: {SUMMARY[0].lower()}{SUMMARY[1:]}}},
  author = {{{{The hf\_losses authors}}}}
}}"""
LINKS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def loss_citation(name: str, reference: str) -> str:
    """The BibTeX of this library with a note on the loss, and of the paper if it is the loss's own.

    Args:
        name: Name of the loss.
        reference: The loss's reference, or its formula.
    """
    note = f"{name}: {reference}".replace("_", r"\_")  # LaTeX allows a bare _ in formulas alone.
    fields = LIBRARY_CITATION.removesuffix("\n}")
    library = f"{fields},\n  note   = {{{note}}}\n}}"
    return f"{library}\n\n{PAPER_CITATION}" if PAPER in reference else library


def linked(text: str) -> str:
    """Turns `arXiv:…` and `doi:…` into Markdown links."""
    return re.sub(r"(arXiv|doi):([\w./-]+)", lambda m: f"[{m[0]}]({LINKS[m[1]]}{m[2]})", text)
