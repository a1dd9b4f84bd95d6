"""What jobs write, read: a real sample of each format, and what somebody might write by mistake or on purpose."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.follow.formats.json_lines import trainer_steps
from app.follow.reading import LINE_BYTES_MAX, Document, Lines, Reading, reading_of
from app.follow.step import Step, column_of

SAMPLES = Path(__file__).with_name("samples")
NAN = "nan"


def is_nan(value: Any) -> bool:
    """Whether it is NaN."""
    return isinstance(value, float) and math.isnan(value)


def read(reading: Reading, data: bytes, piece: int = 1 << 20) -> list[Step]:
    """Feed ``data`` in pieces."""
    steps = [step for at in range(0, len(data), piece) for step in reading.feed(data[at : at + piece])]
    return [*steps, *reading.rest()]


def shown(steps: Iterable[Step]) -> list[tuple[int, dict[str, Any]]]:
    """Steps and their columns, in which NaN is equal to NaN."""
    return [
        (step.number, {name: NAN if is_nan(value) else value for name, value in step.values.items()}) for step in steps
    ]


MEGATRON = """
training ...
 iteration       10/    1000 | consumed samples:           40 | elapsed time per iteration (ms): 19932.4 | learning rate: 0.000E+00 | global batch size:     4 | loss scale: 8388608.0 | number of skipped iterations:  10 | number of nan iterations:   0 |
time (ms)
 iteration       20/    1000 | consumed samples:           80 | elapsed time per iteration (ms): 6707.5 | learning rate: 3.750E-05 | global batch size:     4 | lm loss: 1.412743E+01 | loss scale: 32768.0 | number of skipped iterations:   8 | number of nan iterations:   0 |
 [2025-01-02 03:04:05] iteration       30/    1000 | consumed samples: 120 | elapsed time per iteration (ms): 6746.5 | learning rate: 1.500E-04 | lm loss: 7.5E+00 | loss scale: 16384.0 | grad norm: 126.963 | num zeros: 12 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration       40/    1000 | consumed samples: 160 | elapsed time per iteration (ms): 6746.5 | learning rate: 1.5E-04 | loss scale: 16384.0 | grad norm: nan | number of skipped iterations:   0 | number of nan iterations:   0 |
"""  # noqa: E501


def test_megatron_tells_skips_and_hides_a_nan_loss() -> None:
    """Warm-up in which all was skipped has no loss; later a line without one is a NaN."""
    steps = read(Lines(), MEGATRON.encode())
    assert shown(steps) == [
        (10, {"lr": 0.0, "loss_scale": 8388608.0, "step_seconds": 19.9324, "skipped": True}),
        (20, {"lr": 3.75e-05, "loss": 14.12743, "loss_scale": 32768.0, "step_seconds": 6.7075, "skipped": False}),
        (30, {"lr": 1.5e-4, "loss": 7.5, "loss_scale": 16384.0, "grad_norm": 126.963, "step_seconds": 6.7465,
              "skipped": False}),
        (40, {"lr": 1.5e-4, "loss_scale": 16384.0, "grad_norm": NAN, "step_seconds": 6.7465, "skipped": False,
              "loss": NAN}),
    ]  # fmt: skip
    assert steps[1].metrics["skipped_iterations"] == 8.0
    assert steps[2].metrics["num zeros"] == 12.0


DEEPSPEED = """
[2023-04-28 06:51:30,648] [INFO] [logging.py:96:log_dist] [Rank 0] step=10, skipped=2, lr=[3e-05, 3e-05], mom=[(0.9, 0.999)]
steps: 10 loss: 8.5791 iter time (s): 1.213 samples/sec: 26.4
[2023-04-28 06:51:31,648] [INFO] [loss_scaler.py:183:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, reducing to 32768
 14%|x  | 378/2724 [13:58:09<86:18:35, 132.44s/it][2023-06-07 22:16:00,018] [INFO] [loss_scaler.py:181:update_scale] [deepspeed] OVERFLOW! Rank 0 Skipping step. Attempted loss scale: 65536, but hysteresis is 2. Reducing hysteresis to 1
[2021-01-26 22:04:09,191] [INFO] [logging.py:60:log_dist] [Rank 0] Overflow detected. Skipping step. Attempted loss scale: 8.0, reducing to 4.0
[2023-04-28 06:51:32,648] [INFO] [logging.py:96:log_dist] [Rank 0] step=400, skipped=5, lr=[3e-05], mom=[(0.9, 0.999)]
"""  # noqa: E501


def test_deepspeed_tells_overflows_with_and_without_a_step() -> None:
    """A progress bar before it has the step; else it is the one behind the last."""
    steps = read(Lines(), DEEPSPEED.encode())
    assert shown(steps) == [
        (10, {"lr": 3e-05}),
        (10, {"loss": 8.5791, "step_seconds": 1.213}),
        (11, {"skipped": True, "loss_scale": 32768.0}),
        (378, {"skipped": True, "loss_scale": 65536.0}),
        (379, {"skipped": True, "loss_scale": 4.0}),
        (400, {"lr": 3e-05}),
    ]
    assert steps[-1].metrics == {"skipped_iterations": 3.0}


TRAINER = """
{'loss': 0.1474, 'grad_norm': 1.5, 'learning_rate': 0.0001, 'epoch': 0.04}
{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 5e-05, 'epoch': 0.54}
 50%|xx | 40/80 [00:10<00:10, 4.0it/s]\r 50%|xx | 41/80 [00:10<00:10, 4.0it/s]
{'loss': '2.163', 'grad_norm': 'nan', 'learning_rate': '9.966e-05', 'entropy': '-1.177', 'epoch': '0.3556'}
{'eval_loss': 1.25, 'eval_runtime': 3.5, 'epoch': 1.0}
{'train_runtime': 12.3, 'train_loss': 2.5, 'epoch': 1.0}
{'a': __import__('os').system('true')}
"""


def test_trainer_lines_have_the_step_of_the_progress_bar_else_their_own_number() -> None:
    """Newer versions print texts; an evaluation's loss is none of the training; nothing is run."""
    steps = read(Lines(), TRAINER.encode())
    assert shown(steps) == [
        (1, {"loss": 0.1474, "grad_norm": 1.5, "lr": 0.0001}),
        (2, {"loss": 0.0, "grad_norm": NAN, "lr": 5e-05}),
        (41, {"loss": 2.163, "grad_norm": NAN, "lr": 9.966e-05}),
        (41, {}),
        (41, {}),
    ]
    assert [step.is_last for step in steps] == [False] * 4 + [True]
    assert steps[2].metrics == {"entropy": -1.177, "epoch": 0.3556}
    assert steps[3].metrics == {"eval/loss": 1.25, "eval/runtime": 3.5, "epoch": 1.0}


def test_json_lines_take_any_of_the_usual_names() -> None:
    """Strings for what JSON has no number for; another object is passed over."""
    text = b"""{"step": 1, "train/loss": "NaN", "lr": 0.1, "eval/loss": 2.0, "skipped": true, "note": "x"}
{"iteration": 2, "loss": NaN, "grad-norm": "-Infinity", "nonfinite": 3}
[1, 2]
{"loss": 1.0}
{"global_step": "3", "loss": 1e999}
{"step": 4.5, "loss": 1.0}
"""
    steps = read(Lines(), text)
    assert shown(steps)[:2] == [
        (1, {"loss": NAN, "lr": 0.1, "skipped": True}),
        (2, {"loss": NAN, "grad_norm": -math.inf, "nonfinite": 3}),
    ]
    assert [step.number for step in steps] == [1, 2, 3]
    assert steps[0].metrics == {"eval/loss": 2.0}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
def test_what_the_real_libraries_wrote_is_read_in_any_pieces(name: str, piece: int) -> None:
    """Six steps, one of them a NaN; texts and pictures are no numbers."""
    data = gzip.decompress((SAMPLES / f"{name}.gz").read_bytes())
    reading = reading_of(Path("events.out.tfevents.1" if name == "tensorboard" else "run-1.wandb"), data[:100])
    assert reading.name == name
    steps = read(reading, data, piece)
    assert reading.unreadable == 0
    losses = [NAN if step == 4 else 2.0 - 0.125 * step for step in range(6)]
    assert [(step, values["loss"]) for step, values in shown(steps)] == list(enumerate(losses))
    assert all(math.isclose(step.values["lr"], 0.001, rel_tol=1e-6) for step in steps)
    metrics = {"tensorboard": {"reward": 2.5}, "wandb": {"val/acc": 0.5}}[name]
    assert steps[-1].metrics == metrics


def test_a_trainer_state_is_read_once_it_is_whole() -> None:
    """It is written in pieces and anew each time."""
    entries = '{"step": 10, "loss": 2.0, "learning_rate": 0.1}, {"step": 10, "eval_loss": 3.0}, 5'
    text = f'{{"epoch": 1, "log_history": [{entries}]}}'
    reading = Document()
    assert list(reading.feed(text[:50].encode())) == []
    steps = list(reading.feed(text[50:].encode()))
    assert shown(steps) == [(10, {"loss": 2.0, "lr": 0.1}), (10, {})]
    assert steps[1].metrics == {"eval/loss": 3.0}
    assert list(trainer_steps("[]")) == []


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("train/loss", "loss"),
        ("lm-loss-training/lm loss", "loss"),
        ("loss", "loss"),
        ("eval/loss", None),
        ("val/loss", None),
        ("grad-norm/grad-norm", None),
        ("train/grad_norm", "grad_norm"),
        ("learning_rate", "lr"),
        ("reward", None),
    ],
)
def test_a_name_is_a_column_where_it_is_of_the_training(name: str, column: str | None) -> None:
    """What stands under another heading is a metric of its own."""
    assert column_of(name) == column


@settings(max_examples=150)
@given(
    st.lists(st.binary(max_size=300), max_size=8), st.sampled_from(["x.log", "a.tfevents.1", "trainer_state.json", "w"])
)
def test_nothing_that_somebody_writes_raises(pieces: list[bytes], name: str) -> None:
    """Bytes of any kind, in any format."""
    first = b":W&B" if name == "w" else b""
    reading = reading_of(Path(name), first)
    for piece in [first, *pieces]:
        list(reading.feed(piece))
    list(reading.rest())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_ends_early_and_raises_nothing(name: str, data: st.DataObject) -> None:
    """Bytes of a real file, changed at random."""
    raw = bytearray(gzip.decompress((SAMPLES / f"{name}.gz").read_bytes())[:4000])
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    reading = reading_of(
        Path("tfevents" if name == "tensorboard" else "x"), b":W&B", "auto" if name == "wandb" else name
    )
    read(reading, bytes(raw), 100)


def test_a_line_without_end_is_bounded() -> None:
    """It is counted and passed over; the one behind it is read."""
    reading = Lines()
    steps = read(reading, b"x" * (3 * LINE_BYTES_MAX) + b'\n{"step": 1, "loss": 2.0}\n', 1000)
    assert [step.number for step in steps] == [1]
    assert reading.unreadable == 1


@pytest.mark.needs_shared
def test_real_logs_of_public_runs_are_read(shared_folder: Path) -> None:
    """Megatron-LM on 64 nodes: a line every ten iterations; the first of them were all skipped."""
    folder = shared_folder / "data" / "log_lines"
    steps = read(
        Lines(), gzip.decompress((folder / "bigscience_meg_gpt2_base_n64_dp1_tp4_pp64-1809655.out.gz").read_bytes())
    )
    assert [step.number for step in steps[:4]] == [10, 20, 30, 40]
    assert steps[0].values["skipped"]
    assert steps[2].values["loss"] == pytest.approx(76.76836)
    mixed = read(Lines(), (folder / "nan_and_overflow.log").read_bytes())
    assert sum(step.values.get("skipped", False) for step in mixed) >= 8
    assert sum(is_nan(value) for step in mixed for value in step.values.values()) >= 10
