"""Loggers by class path: what reaches them, and one W&B run for one run folder, offline."""

import contextlib
import csv
import json
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from wandb_files import records

from upo.callbacks import logger_runs, loggers
from upo.cli.main import main
from upo.study.workers import Task, run_tasks

CONFIG = """
model:
  class_path: DPO
  init_args:
    policy:
      config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
               num_key_value_heads: 2, max_position_embeddings: 128}
      tokenizer: upo.data.sources.world.tokenizer
    reference: FrozenReference
data: {sources: [{name: world, options: {n: 64}}], validation: 16, max_length: 96, pairs_per_step: 16}
trainer: {default_root_dir: runs/logged, max_steps: 2, max_epochs: -1, accelerator: cpu, enable_progress_bar: false}
evaluation:
  prompts: 8
  max_new_tokens: 8
  judge: {class_path: Function, init_args: {path: "upo.data.sources.world:preference"}}
"""
WANDB = {
    "class_path": "lightning.pytorch.loggers.WandbLogger",
    "init_args": {"project": "test", "save_dir": ".", "log_model": True}
    | {"group": "ablation-of-beta", "tags": ["tiny-tag"]},
}


@pytest.fixture
def without_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any key, and the working directory."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "")  # set, so that what Lightning writes there is undone afterwards
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(logger: dict | list) -> str:
    raw = yaml.safe_load(CONFIG)
    raw["trainer"]["logger"] = logger
    Path("logged.yaml").write_text(yaml.safe_dump(raw))
    return "logged.yaml"


@pytest.mark.slow
def test_wandb_offline_end_to_end_and_resumed(without_account: Path) -> None:
    """Configuration, group, tags, curves, samples, checkpoint and report; then the same run after a resume."""
    config, folder = write(WANDB), Path("runs/logged")
    main(["--config", config])
    run_id = (folder / "wandb_id.txt").read_text()
    assert "WANDB_SERVICE" not in os.environ, "W&B's service has written all of it and is gone"
    (first,) = Path("wandb").glob(f"offline-run-*-{run_id}")
    written = records(next(first.glob("*.wandb")))
    for word in ("ablation-of-beta", "tiny-tag", "train/rewards/accuracies", "policy/win_rate_vs_chosen_low",
                 "train/grad_norm", f"report-{run_id}", f"model-{run_id}", "logged", "init_args"):  # fmt: skip
        assert word.encode() in written, word
    table = json.loads(next(first.glob("files/media/table/evaluation/samples*.json")).read_text())
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert table["columns"][:4] == ["prompt", "policy", "reference", "chosen"]
    assert [row[1:4] for row in table["data"]] == [[s["policy"], s["reference"], s["chosen"]] for s in samples]
    assert table["data"][0][0] == samples[0]["asked"] and "policy win_rate_vs_chosen" in table["columns"]

    (folder / "summary.json").unlink()
    main(["--config", config, "--ckpt_path", "last", "--trainer.max_steps", "3"])
    assert (folder / "wandb_id.txt").read_text() == run_id
    assert len(list(Path("wandb").glob("offline-run-*"))) == len(list(Path("wandb").glob(f"*-{run_id}"))) == 2
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "1", "2"], "the CSV is always there"
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]
    assert saved["init_args"]["group"] == "ablation-of-beta", "config.yaml is the run, its group too"


def fails() -> None:
    import wandb

    wandb.init(project="test").log({"the-last-word": 1})
    Path("pid").write_text(str(os.getpid()))
    raise SystemExit(3)


def services_of(pid: str) -> list[Path]:
    """W&B's services that a process has started and that still live."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [file] if f"\0--pid\0{pid}\0".encode() in file.read_bytes() else []
    return found


@pytest.mark.slow
def test_a_forked_run_that_fails_ends_with_all_that_it_logged(
    without_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    codes = []
    run_tasks([Task("fails", fails, ())], 1, ended=lambda task, code, seconds: codes.append(code))
    assert codes == [3]
    assert not services_of(Path("pid").read_text()), "all of it is on the disk"
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    assert b"the-last-word" in records(file)


def test_tensorboard(without_account: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard (the extra `tensorboard`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(["--config", write({"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb", "name": "runs"}})])
    events = EventAccumulator("tb/runs/version_0")
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/rewards/margins", "val/loss", "policy/kl"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]
    assert events.Scalars("policy/kl")[0].step == 2, "the evaluated policy has taken two steps"
    first = json.loads(Path("runs/logged/samples.jsonl").read_text().splitlines()[0])
    text = events.Tensors("evaluation/samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert (
        text.startswith("| prompt | policy | reference | chosen | policy rewards/judge |") and first["chosen"] in text
    )
    hparams = yaml.safe_load(Path("tb/runs/version_0/hparams.yaml").read_text())
    assert hparams["model"]["init_args"]["beta"] == 0.1


def test_tensorboard_goes_on_in_the_same_version(without_account: Path) -> None:
    """What a killed run logged behind its checkpoint is hidden: each step is there once."""
    pytest.importorskip("tensorboard", reason="needs TensorBoard (the extra `tensorboard`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb", "name": "runs"}}
    main(
        [
            "--config",
            write(logger),
            "--trainer.max_steps",
            "4",
            "--checkpoint.every_n_train_steps",
            "2",
            "--checkpoint.save_top_k=-1",
        ]
    )
    Path("runs/logged/checkpoints/step=4.ckpt").unlink()
    Path("runs/logged/checkpoints/last.ckpt").unlink()
    Path("runs/logged/summary.json").unlink()
    main(["--config", "logged.yaml", "--ckpt_path", "last", "--trainer.max_steps", "5"])
    assert [path.name for path in Path("tb/runs").iterdir()] == ["version_0"]
    events = EventAccumulator("tb/runs/version_0")
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3, 4]
    assert [event.step for event in events.Scalars("policy/kl")] == [5]


def test_mlflow_goes_on_in_the_same_run(without_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default in a store that MLflow takes; named like the folder; a run that a kill left RUNNING ends FINISHED."""
    pytest.importorskip("mlflow", reason="needs MLflow (the extra `mlflow`)")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main(["--config", write({"class_path": "MLFlowLogger"}), "--trainer.max_steps", "2"])
    client = MlflowClient("sqlite:///mlflow.db")

    def runs() -> list:
        return client.search_runs([x.experiment_id for x in client.search_experiments()])

    (first,) = runs()
    assert first.info.run_name == "logged" and first.info.status == "FINISHED"
    assert first.data.params["model/init_args/beta"] == "0.1" and "policy/kl" in first.data.metrics
    client.update_run(first.info.run_id, status="RUNNING")  # as a kill leaves it
    Path("runs/logged/summary.json").unlink()
    main(["--config", "logged.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3"])
    (again,) = runs()
    assert again.info.run_id == first.info.run_id and again.info.status == "FINISHED"
    assert again.data.params["trainer/max_steps"] == "2" and again.data.tags["trainer/max_steps"] == "3"
    history = client.get_metric_history(first.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [0, 1, 2]

    client.delete_run(first.info.run_id)
    Path("runs/logged/loggers.json").write_text(json.dumps({"MLFlowLogger 0": "0" * 32}))
    main(["--config", "logged.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4"])
    assert [run.info.run_name for run in runs()] == ["logged"], "a run that is gone is begun anew"


@pytest.mark.parametrize(
    ("given", "writes", "store"),
    [
        ({}, True, "sqlite:///mlflow.db"),
        ({"save_dir": "./mlruns"}, True, "sqlite:///mlflow.db"),
        ({"save_dir": "deep/logs"}, True, "sqlite:///deep/logs/mlflow.db"),
        ({}, False, "sqlite:///:memory:"),
        ({"tracking_uri": "http://mine:5000"}, True, "http://mine:5000"),
    ],
)
def test_mlflows_store(given: dict, writes: bool, store: str, without_account: Path) -> None:
    spec = Namespace(class_path="lightning.pytorch.loggers.MLFlowLogger", init_args=Namespace(**given))
    other = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(save_dir="csv"))
    logger_runs.set_store(Namespace(logger=[spec, other], max_steps=2), writes)
    assert spec.init_args.tracking_uri == store and vars(other.init_args) == {"save_dir": "csv"}
    assert Path("deep/logs").is_dir() == ("deep" in store), "which SQLite does not make"


class Signal(pl.Callback):
    """Sends a signal while the third step is made."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


class Buffered(Logger):
    """Keeps what it got, and writes it down when it is told to save."""

    name = version = "x"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.got: list[int] = []

    def log_hyperparams(self, *args, **options) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.got += [step or 0] if "train/loss" in metrics else []

    def finalize(self, status: str) -> None:
        Path("buffered.json").write_text(json.dumps([status, self.got]))


def test_the_step_at_which_a_signal_stops_reaches_all_loggers(without_account: Path) -> None:
    given = [{"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "x"}},
             {"class_path": "test_loggers.Buffered"}]  # fmt: skip
    callbacks = json.dumps([{"class_path": "test_loggers.Signal"}])
    with pytest.raises(SystemExit) as ended:
        main(["--config", write(given), "--trainer.max_steps", "5", "--trainer.callbacks", callbacks])
    assert ended.value.code == 128 + signal.SIGTERM
    ours = Path("runs/logged/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in ours] == ["step", "0", "1", "2"]
    assert json.loads(Path("buffered.json").read_text()) == ["failed", [0, 1, 2]]
    rows = csv.DictReader(Path("csv/x/version_0/metrics.csv").read_text().splitlines())
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_the_step_at_which_a_signal_stops_is_in_the_offline_run(without_account: Path) -> None:
    callbacks = json.dumps([{"class_path": "test_loggers.Signal"}])
    with pytest.raises(SystemExit):
        main(["--config", write(WANDB), "--trainer.max_steps", "5", "--trainer.callbacks", callbacks])
    assert "WANDB_SERVICE" not in os.environ, "W&B's service has written all of it and is gone"
    (file,) = Path("wandb").glob("offline-run-*/*.wandb")
    written = records(file)
    assert written.count(b"trainer/global_step") >= 3 and written.count(b"train/grad_norm") >= 3


class Failing(CSVLogger):
    """Logs two steps, then its server is gone."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step == 2:
            raise ConnectionError("the server is gone")
        super().log_metrics(metrics, step)


class Unwilling(CSVLogger):
    """Its server does not take the configuration."""

    def log_hyperparams(self, *args, **options) -> None:
        raise ValueError("too long")


@pytest.mark.turns(2)
def test_a_logger_that_fails_ends_itself_and_not_the_run(without_account: Path, capsys: pytest.CaptureFixture) -> None:
    given = [{"class_path": "test_loggers.Failing", "init_args": {"save_dir": "csv", "name": "failing"}},
             {"class_path": "test_loggers.Unwilling", "init_args": {"save_dir": "csv", "name": "unwilling"}},
             {"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "well"}}]  # fmt: skip
    with pytest.warns(UserWarning, match="failed and gets nothing more") as warned:
        main(["--config", write(given), "--trainer.max_steps", "4"])
    said = [str(w.message) for w in warned if "gets nothing more" in str(w.message)]
    assert len(said) == 2 and any("ConnectionError: the server is gone" in text for text in said)
    out = capsys.readouterr().out
    assert all(text in out for text in said), "and again beside the results"
    assert json.loads(Path("runs/logged/summary.json").read_text())["lost_loggers"] == 2
    steps = [row.split(",")[0] for row in Path("runs/logged/metrics.csv").read_text().splitlines()]
    assert steps == ["step", "0", "1", "2", "3"]
    assert list(Path("runs/logged/checkpoints").glob("step=4*.ckpt"))
    well = Path("csv/well/version_0/metrics.csv").read_text()
    assert "policy/kl" in well and len(well.splitlines()) >= 5
    main(["--config", write(given[2:]), "--trainer.default_root_dir", "runs/other"])
    assert "lost_loggers" not in json.loads(Path("runs/other/summary.json").read_text())


@pytest.mark.turns(2)
def test_any_logger_gets_configuration_metrics_and_evaluation(without_account: Path) -> None:
    main(["--config", write([{"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}])])
    (folder,) = Path("csv").glob("*/version_0")
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["model"]["class_path"].endswith("DPO")
    columns = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "policy/kl_low"} <= set(columns)
    ours = Path("runs/logged/metrics.csv").read_text().splitlines()[0]
    assert "policy/kl" not in ours, "one row a step; the evaluation has a file of its own"


def test_the_run_id(without_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One from the YAML is kept, the folder's wins, and other ranks write none; the folder lends its name."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    folder, file = Path("runs/mine"), Path("runs/mine/wandb_id.txt")
    with monkeypatch.context() as patch:
        patch.setattr(rank_zero_only, "rank", 1, raising=False)
        logger_runs.prepare([WandbLogger(project="x")], folder)
        assert not file.exists()
    logger = WandbLogger(project="x", id="given")
    logger_runs.prepare([logger], folder)
    assert file.read_text() == "given" and logger._wandb_init["name"] == "mine"
    again = WandbLogger(project="x", id="other", name="my run")
    logger_runs.prepare([again], folder)
    assert again._wandb_init["id"] == "given" and again._wandb_init["name"] == "my run"
    assert again._wandb_init["mode"] == "offline"
    logger_runs.prepare([CSVLogger("csv")], Path("runs/untouched"))
    assert not Path("runs/untouched").exists()


@pytest.mark.parametrize(
    ("variable", "netrc", "offline"),
    [
        ({}, "", True),
        ({"WANDB_API_KEY": "0" * 40}, "", False),
        ({"WANDB_MODE": "online"}, "", False),
        ({}, "machine api.wandb.ai login user password secret", False),
        ({"WANDB_BASE_URL": "https://own.server:8080"}, "machine api.wandb.ai login user password secret", True),
        ({"WANDB_BASE_URL": "https://own.server:8080"}, "machine own.server login user password secret", False),
        ({}, "no netrc at all", True),
    ],
)
def test_offline_unless_there_is_a_key(
    variable: dict[str, str], netrc: str, offline: bool, without_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logger_runs, "reachable", lambda server: True)
    (without_account / ".netrc").write_text(netrc)
    (without_account / ".netrc").chmod(0o600)
    logger = WandbLogger(project="x")
    logger_runs.prepare([logger], Path("runs/x"))
    assert (logger._wandb_init.get("mode") == "offline") is offline
    assert offline or logger._wandb_init["resume"] == "allow", "or W&B would start the run anew"


def test_offline_without_a_network_and_one_sentence_why(
    without_account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    logger = WandbLogger(project="x")
    logger_runs.prepare([logger], Path("runs/x"))
    assert logger._wandb_init["mode"] == "offline"
    said = capsys.readouterr().out
    assert said.startswith("W&B: http://127.0.0.1:9 cannot be reached, so the run is offline") and said.count("\n") == 1
    monkeypatch.delenv("WANDB_API_KEY")
    logger_runs.prepare([WandbLogger(project="x")], Path("runs/y"))
    assert capsys.readouterr().out.startswith("W&B: no key is there")
    logger_runs.prepare([WandbLogger(project="x", offline=True)], Path("runs/z"))
    assert not capsys.readouterr().out, "which was asked for"


def test_a_markdown_table_survives_bars_and_line_breaks() -> None:
    text = loggers.markdown(["prompt", "policy"], [{"prompt": "a\nb", "policy": "x|y"}])
    assert text.splitlines() == ["| prompt | policy |", "| --- | --- |", "| a<br>b | x\\|y |"]


def test_samples_are_read_up_to_a_number(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    assert loggers.read_samples(file, 3) == []
    rows = [{"prompt": f"user\x1fhi {i}\x1eassistant\x1fyes", "policy": "é"} for i in range(5)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    read = loggers.read_samples(file, 3)
    assert len(read) == 3 and read[2] == {"prompt": "user: hi 2\nassistant: yes", "policy": "é"}, "of earlier versions"
    row = {"prompt": "user\x1fhi", "asked": "hi", "model_reads": "<u>hi", "policy": "é"}
    file.write_text(json.dumps(row | {"scores": {"policy": {"rewards/mood": 0.5}}}))
    assert loggers.read_samples(file, 3) == [{"prompt": "hi", "policy": "é", "policy rewards/mood": 0.5}]
