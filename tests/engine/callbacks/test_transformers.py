"""With the real library: two epochs on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import Y, example, require, same
from torch import Tensor, nn

import wsb_engine as wsb

require("transformers", "accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.randint(2, 24, (24, 6), generator=torch.Generator().manual_seed(7))
MASK = torch.ones_like(IDS).index_fill(1, torch.tensor([5]), 0)
METRICS = {"wsb/lambda_max", "wsb/lambda_max_lower", "wsb/lambda_max_upper", "wsb/loss", "wsb/stability_ratio"}


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[no-any-return]


def masked() -> wsb.Batch:
    return wsb.Batch({"input_ids": IDS[:9], "attention_mask": MASK[:9]}, Y[:9])


def train(folder: Path, add: Callable[[Any], object]) -> Any:
    """Train two epochs, after ``add`` has added callbacks to the trainer, and return it."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    torch.manual_seed(3)
    sizes = {"vocab_size": 24, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BertConfig(**sizes, intermediate_size=6, max_position_embeddings=6, num_labels=3)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=6,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="linear",
        logging_steps=3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [
        dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in zip(IDS, MASK, Y, strict=True)
    ]
    trainer = Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows)
    add(trainer)
    trainer.train()
    return trainer


@pytest.mark.slow  # test_keras and test_loop hold their trainings to the same
def test_a_training_ends_in_the_same_bits_and_each_value_is_that_of_its_checkpoint(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from wsb_engine.callbacks import TransformersCallback

    checkpoints: dict[int, nn.Module] = {}

    class Keep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            checkpoints[state.global_step] = copy.deepcopy(given["model"])

    def add(trainer: Any) -> None:
        trainer.add_callback(Keep())
        trainer.add_callback(TransformersCallback(trainer, masked(), every_n_steps=3, on_error="raise"))

    plain = train(tmp_path, lambda trainer: None)
    trainer = train(tmp_path, add)
    assert same(trainer.model.state_dict().values(), plain.model.state_dict().values())
    history = trainer.state.log_history
    logged = {entry["step"]: entry for entry in history if entry.keys() >= METRICS}
    assert list(logged) == [3, 6]
    for step, metrics in logged.items():
        ends = wsb.analyze(wsb.from_module(Logits(checkpoints[step])), masked()).enclosure.lambda_max  # type: ignore[union-attr]
        assert metrics["wsb/lambda_max_lower"] == pytest.approx(ends.lower, rel=1e-9)
        assert metrics["wsb/lambda_max_upper"] == pytest.approx(ends.upper, rel=1e-9)
        assert metrics["wsb/stability_ratio"] == pytest.approx(ends.upper * 0.1 * (1 - step / 8) / 2)

    def losses(entries: list[dict[str, float]]) -> list[tuple[float, float]]:
        return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]

    # What is logged at the same step is logged all the same.
    assert losses(history) == losses(plain.state.log_history)
    assert [step for step, _ in losses(history)] == [3, 6]


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that has trained with smoothed labels, and measured as often as it does unless told otherwise."""
    from wsb_engine.callbacks import TransformersCallback

    def smooth(trainer: Any) -> None:
        trainer.args.label_smoothing_factor = 0.1
        trainer.add_callback(TransformersCallback(trainer, masked(), on_error="raise"))

    return train(tmp_path_factory.mktemp("smoothed"), smooth)


@pytest.mark.slow
def test_it_measures_after_each_epoch(smoothed: Any) -> None:
    assert [entry["step"] for entry in smoothed.state.log_history if entry.keys() >= METRICS] == [4, 8]


@pytest.mark.slow
def test_the_example_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(example("Hugging Face transformers"), {})  # noqa: S102
    assert capsys.readouterr().out.rstrip().splitlines()[-1].count(",") == 1


@pytest.mark.slow
def test_the_trainer_s_smoothing_of_labels_is_taken_over_unless_the_options_have_one(smoothed: Any) -> None:
    from wsb_engine.callbacks import TransformersCallback

    last = next(each for each in smoothed.callback_handler.callbacks if isinstance(each, TransformersCallback)).last
    assert last.report.loss.label_smoothing == 0.1
