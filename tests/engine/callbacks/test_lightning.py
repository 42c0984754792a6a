"""With the real library: two epochs on the CPU."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import STEPS, batch, example, loader, network, require, same
from torch import Tensor, nn

import wsb_engine as wsb

require("lightning")

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(folder: Path, callbacks: list[Any], accumulate: int = 1) -> Any:
    """Train two epochs with a rate that falls each step; returns the trainer."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            sgd = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.9)
            return {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = Module()
    torch.manual_seed(11)
    trainer.fit(module, loader())
    return trainer


def rows(folder: Path) -> dict[int, dict[str, float]]:
    [path] = folder.glob("**/metrics.csv")
    with path.open() as file:
        found = {int(row.pop("step")): row for row in csv.DictReader(file) if row.get("wsb/loss")}
    return {step: {k: float(v) for k, v in row.items() if k.startswith("wsb/")} for step, row in found.items()}


@pytest.mark.slow  # test_keras and test_loop hold their trainings to the same
def test_a_training_ends_in_the_same_bits_and_each_value_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    from wsb_engine.callbacks import LightningCallback

    checkpoints: dict[int, nn.Module] = {}

    class Keep(pl.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            checkpoints[trainer.global_step] = copy.deepcopy(pl_module.net)

    plain = fit(tmp_path / "plain", [])
    callback = LightningCallback(batch(), every_n_steps=3, on_error="raise")
    trainer = fit(tmp_path / "measured", [Keep(), callback])
    assert same(trainer.model.state_dict().values(), plain.model.state_dict().values())
    logged = rows(tmp_path / "measured")
    assert list(logged) == [3, 6]
    for step, metrics in logged.items():
        ends = wsb.analyze(wsb.from_module(checkpoints[step]), batch()).enclosure.lambda_max  # type: ignore[union-attr]
        assert (metrics["wsb/lambda_max_lower"], metrics["wsb/lambda_max_upper"]) == (ends.lower, ends.upper)
        assert metrics["wsb/stability_ratio"] == pytest.approx(ends.upper * 0.2 * 0.9**step / (2 * 1.9))
    assert callback.last is not None
    assert callback.last.step == 6


@pytest.mark.slow
def test_other_callbacks_can_monitor_it_after_each_epoch(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EarlyStopping

    from wsb_engine.callbacks import LightningCallback

    callback = LightningCallback(batch(), on_error="raise")
    stopping = EarlyStopping("wsb/lambda_max", divergence_threshold=0.0, check_on_train_epoch_end=True)
    trainer = fit(tmp_path, [callback, stopping])
    assert (trainer.current_epoch, list(rows(tmp_path))) == (1, [STEPS // 2])
    assert callback.last is not None
    assert trainer.callback_metrics["wsb/lambda_max"] == pytest.approx(callback.last.metrics["wsb/lambda_max"])


@pytest.mark.slow
def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    from wsb_engine.callbacks import LightningCallback

    net = network()
    fit(tmp_path, [LightningCallback(batch(), every_n_steps=1, module=net, on_error="raise")], accumulate=2)
    # The network is not the one that is trained, so the optimizer has nothing to say about it.
    assert {step: sorted(row) for step, row in rows(tmp_path).items()} == {
        step: ["wsb/lambda_max", "wsb/lambda_max_lower", "wsb/lambda_max_upper", "wsb/loss"] for step in (1, 2, 3, 4)
    }


def test_the_example_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(example("PyTorch Lightning"), {})  # noqa: S102
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("tensor(")
    assert list(rows(tmp_path)) == [5, 10]
