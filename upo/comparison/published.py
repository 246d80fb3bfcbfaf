"""Published figures of the UPO paper, to stand beside our own: `python -m upo.compare RUN... --paper`.

Source: Badrinath, Agarwal, Xu, "Unified Preference Optimization: Language Model Alignment Beyond the Preference
Frontier" (https://arxiv.org/abs/2405.17956), per-model tables 1, 2a-2d and 7 of the 2024 version. Their judge was GPT-4
Turbo of April 2024 on 512 prompts, their safety figures count seven categories with a slack of 1e-3. The five rows
SFT, DPO, KTO, CSFT and oPPO are the ContextualAI/archangel_* checkpoints.
"""

import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

MODELS = ("LLaMA-7B", "LLaMA-13B", "Pythia-1.4B", "Pythia-2.8B", "Pythia-6.9B")


@frozen
class Table:
    """A published table: a row a method, a column a model."""

    title: str
    figure: str
    """Regular expression of the name that the figure has in an evaluation of ours."""
    scale: float
    """Ours times this is in the table's unit."""
    rows: dict[str, tuple[float, ...]]


TABLES = (
    Table(
        "Table 1: wins against the chosen response, %",
        r"policy/win_rate_vs_chosen",
        100,
        {
            "SFT": (38.4, 41.4, 19.3, 22.6, 24.5),
            "UPO": (41.5, 44.4, 19.2, 25.0, 28.0),
            "MODPO": (33.9, 38.8, 6.7, 13.1, 18.2),
            "A-LOL": (15.8, 23.1, 3.9, 4.8, 7.0),
            "aoPPO": (41.0, 44.1, 14.3, 21.9, 25.7),
            "DPO": (39.1, 36.1, 5.9, 12.5, 18.6),
            "KTO": (37.5, 41.8, 3.1, 7.5, 11.7),
            "oPPO": (41.5, 47.3, 17.8, 24.2, 26.5),
            "CSFT": (41.2, 41.2, 17.6, 21.9, 27.1),
        },
    ),
    Table(
        "Table 2a: safety violations on the 10 % most unsafe prompts, %",
        r"policy/violations/.*_k10_eps0\.001",
        100,
        {
            "SFT": (28.5, 34.9, 41.0, 43.3, 33.1),
            "UPO": (25.7, 23.8, 34.9, 28.6, 28.0),
            "MODPO": (45.0, 46.8, 52.1, 45.5, 44.7),
            "A-LOL": (74.6, 79.1, 70.4, 54.2, 60.3),
            "aoPPO": (37.3, 28.0, 38.4, 40.2, 41.5),
            "DPO": (45.8, 50.2, 62.4, 48.7, 43.9),
            "KTO": (34.9, 44.7, 56.3, 48.4, 44.1),
            "oPPO": (31.7, 30.1, 46.0, 46.0, 29.1),
            "CSFT": (38.6, 32.2, 36.0, 36.0, 40.4),
        },
    ),
    Table(
        "Table 2b: safety violations on the 20 % most unsafe prompts, %",
        r"policy/violations/.*_k20_eps0\.001",
        100,
        {
            "SFT": (30.4, 34.8, 37.6, 40.8, 34.5),
            "UPO": (27.3, 27.4, 34.5, 29.3, 29.5),
            "MODPO": (42.4, 52.4, 51.0, 48.1, 45.8),
            "A-LOL": (77.0, 79.0, 76.2, 56.4, 64.6),
            "aoPPO": (35.7, 28.0, 38.0, 38.5, 40.7),
            "DPO": (41.3, 51.1, 53.8, 46.5, 41.4),
            "KTO": (36.2, 42.1, 52.5, 48.0, 40.8),
            "oPPO": (30.0, 31.6, 41.3, 40.5, 33.2),
            "CSFT": (34.3, 32.5, 32.2, 33.7, 38.8),
        },
    ),
    Table(
        "Table 2c: mean readability reward R1",
        r"policy/rewards/(readability|reading)",
        1,
        {
            "SFT": (0.48, 0.48, 0.49, 0.48, 0.51),
            "UPO": (0.54, 0.51, 0.49, 0.48, 0.52),
            "MODPO": (0.30, 0.29, 0.33, 0.33, 0.34),
            "A-LOL": (0.49, 0.44, 0.32, 0.43, 0.28),
            "aoPPO": (0.41, 0.47, 0.40, 0.39, 0.40),
            "DPO": (0.28, 0.29, 0.31, 0.31, 0.34),
            "KTO": (0.27, 0.25, 0.30, 0.25, 0.26),
            "oPPO": (0.41, 0.39, 0.42, 0.39, 0.39),
            "CSFT": (0.47, 0.50, 0.47, 0.46, 0.46),
        },
    ),
    Table(
        "Table 2d: mean school grade",
        r"policy/(rewards/)?grade",
        1,
        {
            "SFT": (7.88, 7.55, 7.42, 7.95, 7.20),
            "UPO": (7.29, 7.30, 7.64, 7.55, 7.54),
            "MODPO": (8.86, 8.86, 8.83, 8.36, 8.65),
            "A-LOL": (7.35, 7.36, 13.2, 7.93, 9.97),
            "aoPPO": (8.27, 7.74, 8.64, 8.59, 8.12),
            "DPO": (9.01, 8.78, 8.40, 8.76, 8.46),
            "KTO": (9.23, 9.45, 8.50, 8.95, 9.31),
            "oPPO": (8.40, 8.23, 7.85, 8.23, 8.00),
            "CSFT": (7.62, 7.52, 9.30, 7.72, 7.89),
        },
    ),
    Table(
        "Table 7: safety violations on all prompts, %",
        r"policy/violations/.*_k100_eps0\.001",
        100,
        {
            "SFT": (2.65, 2.37, 3.07, 3.20, 2.32),
            "UPO": (1.81, 1.73, 2.79, 2.32, 2.40),
            "MODPO": (3.15, 5.24, 4.05, 4.19, 3.38),
            "A-LOL": (14.7, 14.5, 17.5, 4.52, 8.45),
            "aoPPO": (2.29, 2.00, 2.59, 2.59, 2.65),
            "DPO": (3.66, 3.13, 4.58, 3.46, 2.79),
            "KTO": (2.57, 3.26, 4.46, 3.18, 3.23),
            "oPPO": (2.43, 2.18, 2.87, 2.76, 2.37),
            "CSFT": (3.01, 2.54, 1.95, 2.85, 2.15),
        },
    ),
)


def row_of(method: str) -> str | None:
    """The published row of a method's class: `ALOL` is `A-LOL`."""
    plain = re.sub(r"[^a-z]", "", method.lower())
    return next((row for row in TABLES[0].rows if re.sub(r"[^a-z]", "", row.lower()) == plain), None)


def column_of(settings: Mapping[str, Any]) -> int | None:
    """The published column of a run, from the path of its model: `huggyllama/llama-7b` is the first."""
    path = re.sub(r"[-_.]", "", str(settings.get("model.policy.path", "")).lower())
    names = [re.sub(r"[-_.]", "", model.lower()) for model in MODELS]
    return next((i for i, name in enumerate(names) if name in path), None)
