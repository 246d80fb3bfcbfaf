"""What lies where in the folder of a run."""

from pathlib import Path
from typing import Literal

from attrs import field, frozen

Which = Literal["last", "best"]
"""Of a run's checkpoints: the newest, or the best by the metric that `checkpoint.monitor` names."""

MANIFEST = "manifest.json"
"""In the folder of a study, beside its run folders: which runs there are, and what became of each."""


@frozen
class RunPaths:
    """The files of one run folder, whether they are there or not; nothing is read or written here.

    Example: `RunPaths("runs/quickstart").config` is `Path("runs/quickstart/config.yaml")`.
    """

    folder: Path = field(converter=Path)

    @classmethod
    def of_checkpoint(cls, file: Path) -> "RunPaths":
        """Those of the run that wrote a checkpoint."""
        return cls(file.parent.parent)

    @property
    def finished(self) -> bool:
        """Whether training and evaluation are complete: summary.json is the last file that a run writes."""
        return self.summary.is_file()

    @property
    def exported(self) -> bool:
        """Whether it is finished and has left its model to later stages."""
        return self.finished and self.export.exists()

    # ---- when a run starts -------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        """The resolved configuration; `python -m upo.fit --config` takes it as it is."""
        return self.folder / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and the commit."""
        return self.folder / "environment.json"

    @property
    def data_report(self) -> Path:
        """What was kept, cut and dropped of the data, and why."""
        return self.folder / "data_report.json"

    @property
    def wandb_id(self) -> Path:
        """The id of the W&B run that belongs to the folder."""
        return self.folder / "wandb_id.txt"

    @property
    def loggers(self) -> Path:
        """Which runs of other loggers belong to it."""
        return self.folder / "loggers.json"

    @property
    def lock(self) -> Path:
        """Held by the command that writes into the folder; it stays there, also when everything else is deleted."""
        return self.folder / ".lock"

    # ---- while it trains ---------------------------------------------------------------------------------------

    @property
    def metrics(self) -> Path:
        """A row a step."""
        return self.folder / "metrics.csv"

    @property
    def training_samples(self) -> Path:
        """What the policy wrote at some steps, a line a prompt and step, where the run has a `SampleTable`."""
        return self.folder / "training_samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """A link to the best of them, where the run monitors a metric."""
        return self.checkpoints / "best.ckpt"

    @property
    def of_best(self) -> "RunPaths":
        """Where an evaluation of the best checkpoint goes, beside that of the last."""
        return RunPaths(self.folder / "best")

    @property
    def scores(self) -> Path:
        """Which of them the run has kept, and the metric that it monitors at each."""
        return self.checkpoints / "scores.json"

    @property
    def log(self) -> Path:
        """What the run printed, where a study has started it."""
        return self.folder / "log.txt"

    # ---- at its end --------------------------------------------------------------------------------------------

    @property
    def curves(self) -> Path:
        """The picture of metrics.csv."""
        return self.folder / "curves.png"

    @property
    def evaluation(self) -> Path:
        """All figures of the evaluation, also by prompt, and its settings."""
        return self.folder / "evaluation.json"

    @property
    def evaluation_picture(self) -> Path:
        """The evaluation as a picture."""
        return self.folder / "evaluation.png"

    @property
    def samples(self) -> Path:
        """All responses of the evaluation, a line a prompt."""
        return self.folder / "samples.jsonl"

    @property
    def alpaca_eval(self) -> Path:
        """The policy's responses in AlpacaEval's format."""
        return self.folder / "alpaca_eval.json"

    @property
    def report_markdown(self) -> Path:
        """The evaluation to read."""
        return self.folder / "report.md"

    @property
    def report_html(self) -> Path:
        """The same, in one file with its picture."""
        return self.folder / "report.html"

    @property
    def summary(self) -> Path:
        """Flat names to numbers; its presence says that the run is complete."""
        return self.folder / "summary.json"

    @property
    def export(self) -> Path:
        """The Hugging Face folder that an earlier stage leaves to a later one."""
        return self.folder / "export"
