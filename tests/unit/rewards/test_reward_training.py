"""Training of reward models on rows whose attributes are known: what is learned, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rewards import registry
from rewards.models.heads import HeadConfig, HeadsConfig
from rewards.models.readout import Readout
from rewards.training import TrainSettings, train
from rewards.training.batches import Order
from rewards.training.gating import GateData, train_gate
from rewards.training.losses import preference_losses, squared_errors
from rewards.training.settings import GatingSettings
from rewards.training.spec import RewardModelSpec
from tests.reward_data import make_backbone, pairs, ratings, write_rows

HEADS = ("digits", "polite")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("training") / "backbone", size={"hidden_size": 32})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return {
        "ratings": str(write_rows(folder / "ratings.jsonl", ratings(96, heads=HEADS, missing=0.3))),
        "pairs": str(write_rows(folder / "pairs.jsonl", pairs(64))),
        "held_out": str(write_rows(folder / "held_out.jsonl", ratings(32, heads=HEADS, seed=1))),
    }


def document(backbone, files, **changes):
    rows = changes.pop("rows", ("ratings",))
    common = {
        "model": str(backbone),
        "train": [files[name] for name in rows],
        "heads": [{"name": name} for name in HEADS],
        "lr": 3e-3,
        "max_length": 64,
        "batch_size": 16,
    }
    return common | changes


def run(settings, directory, stop_at=None):
    log = []
    result = train(
        TrainSettings.from_dict(settings),
        directory=directory,
        on_step=log.append,
        should_stop=lambda: "asked to" if stop_at is not None and log[-1]["step"] >= stop_at else None,
    )
    return result, log


def weights(model):
    return {f"{file.name} {k}": v for file in sorted(model.rglob("*.safetensors")) for k, v in load_file(file).items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ----------------------------------------------------------------------------------------------------------- losses


def test_missing_ratings_leave_no_trace():
    outputs = torch.tensor([[1.0, 5.0], [2.0, 3.0]], requires_grad=True)
    losses = squared_errors(outputs, torch.tensor([[0.0, torch.nan], [torch.nan, 1.0]]))
    assert losses.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    losses.sum().backward()
    assert outputs.grad.tolist() == [[2.0, 0.0], [0.0, 4.0]]


def test_losses_of_pairs_by_hand():
    chosen, rejected, margins = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
    # log(1 + e^-1), log 2; three times the first; log(1 + e^2), log(1 + e)
    assert preference_losses(chosen, rejected, margins, "plain").tolist() == pytest.approx([0.3132617, 0.6931472])
    assert preference_losses(chosen, rejected, margins, "scaled").tolist() == pytest.approx([0.9397850, 0.6931472])
    assert preference_losses(chosen, rejected, margins, "margin").tolist() == pytest.approx([2.1269280, 1.3132617])


# ------------------------------------------------------------------------------------------------------------ order


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 8), (7, 7)])
def test_an_epoch_sees_every_row_once_in_an_order_of_its_own(size, batch_size):
    order = Order(size, batch_size, seed=5)
    stream = [row for step in range(3 * size) for row in order.batch(step)]
    epochs = [stream[start : start + size] for start in range(0, 3 * size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Order(size, batch_size, seed=5).batch(2) == order.batch(2)
    assert order.steps(3) * min(size, batch_size) >= 3 * size > (order.steps(3) - 1) * min(size, batch_size)


# --------------------------------------------------------------------------------------------------------- settings


def test_settings_are_the_specs_fields_with_its_defaults():
    ours = {field.name for field in fields(TrainSettings)} - {"device"}
    assert ours == set(RewardModelSpec.model_fields)
    shortest = {"model": "m", "train": ["a.jsonl"], "objective": "bradley_terry"}
    assert TrainSettings.from_dict(shortest) == TrainSettings(
        model="m", train=(Path("a.jsonl"),), objective="bradley_terry"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": []}, "heads: regression needs at least one attribute"),
        ({"heads": [{"name": "a"}, {"name": "a"}]}, "heads: 'a' is named twice"),
        ({"heads": [{"name": "score"}]}, "heads: 'score' is a name of the model's own"),
        ({"heads": [{"name": "a", "range": [1, 1]}]}, "heads.0: range: expected the lowest rating below"),
        ({"objective": "bradley_terry"}, "heads: bradley_terry has one score"),
        ({"objective": "bradley_terry", "heads": [], "pooling": "mean"}, "pooling: bradley_terry"),
        ({"heads": [{"name": "a"}], "gating": {}}, "gating: needs at least two heads"),
        ({"verbosity_head": "length"}, "verbosity_head: expected one of the heads, digits, polite"),
        ({"lr": 0}, "lr: "),
        ({"train": []}, "train: "),
        ({"epoch": 1}, "epoch: unknown field, did you mean 'epochs'"),
    ],
)
def test_wrong_settings_name_the_field(backbone, files, change, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings.from_dict(document(backbone, files, **change))


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "settings",
    [
        {"gating": {"steps": 6, "hidden_sizes": [4]}, "verbosity_head": "polite", "rows": ("ratings", "pairs")},
        {"objective": "bradley_terry", "heads": [], "rows": ("pairs",), "microbatch_size": 5},
        {"objective": "combined", "pair_loss": "scaled", "rows": ("ratings", "pairs"), "pooling": "mean"},
    ],
    ids=["regression", "bradley_terry", "combined"],
)
def test_stopped_and_resumed_gives_the_same_numbers(backbone, files, tmp_path, settings):
    wanted = document(backbone, files, epochs=1, checkpoint_every=2, **settings)
    whole, log = run(wanted, tmp_path / "whole")
    assert [figures["step"] for figures in log] == list(range(1, whole.total_steps + 1))
    directory, parts = tmp_path / "parts", []
    for stop_at in (2, whole.total_steps - 1):
        stopped, piece = run(wanted, directory, stop_at)
        assert (stopped.stopped, stopped.model, stopped.step) == ("asked to", None, stop_at)
        parts += piece
    resumed, rest = run(wanted, directory)
    losses = {figures["step"]: figures["loss"] for figures in (*parts, *rest)}
    assert losses == {figures["step"]: figures["loss"] for figures in log}
    assert_same(weights(resumed.model), weights(whole.model))
    again, silence = run(wanted, directory)
    assert (again, silence) == (resumed, [])


def test_a_kill_loses_no_more_than_the_updates_since_the_checkpoint(backbone, files, tmp_path):
    wanted = document(backbone, files, epochs=1, checkpoint_every=2)
    whole, log = run(wanted, tmp_path / "whole")

    def dies(figures):
        if figures["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TrainSettings.from_dict(wanted), directory=tmp_path / "killed", on_step=dies, should_stop=lambda: None)
    resumed, rest = run(wanted, tmp_path / "killed")
    assert [figures["step"] for figures in rest] == [5, 6]
    assert [figures["loss"] for figures in rest] == [figures["loss"] for figures in log[4:]]
    assert_same(weights(resumed.model), weights(whole.model))


def test_microbatches_are_the_same_update(backbone, files, tmp_path):
    wanted = document(backbone, files, objective="combined", rows=("ratings", "pairs"), max_steps=1)
    _, (one,) = run(wanted, tmp_path / "whole")
    _, (other,) = run(wanted | {"microbatch_size": 5}, tmp_path / "pieces")
    for figure in ("loss", "grad_norm", "rating_loss", "pair_loss"):
        assert other[figure] == pytest.approx(one[figure], rel=1e-5)
    assert other["pair_accuracy"] == one["pair_accuracy"]


def test_a_frozen_backbone_stays_as_it_was(backbone, files, tmp_path):
    result, _ = run(document(backbone, files, freeze_backbone=True, max_steps=2), tmp_path)
    before = load_file(backbone / "model.safetensors")
    after = load_file(result.model / "model.safetensors")
    assert all(torch.equal(tensor, before[f"model.{name}"]) for name, tensor in after.items())


def test_a_checkpoint_of_other_settings_or_data_is_refused(backbone, files, tmp_path):
    wanted = document(backbone, files)
    run(wanted, tmp_path, stop_at=1)
    with pytest.raises(ValueError, match="of another model, settings or data"):
        run(wanted | {"lr": 1e-4}, tmp_path)
    with pytest.raises(ValueError, match="of another model, settings or data"):
        run(wanted | {"train": [files["held_out"]]}, tmp_path)
    (tmp_path / "checkpoint" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        run(wanted, tmp_path)


@pytest.mark.parametrize("changed", ["model.safetensors", "tokenizer.json"])
def test_what_another_backbone_of_the_same_shape_began_is_refused(backbone, files, tmp_path, changed):
    base = tmp_path / "base"
    shutil.copytree(backbone, base)
    wanted = document(base, files, max_steps=2)
    run(wanted, tmp_path / "stopped", stop_at=1)
    run(wanted, tmp_path / "finished")
    moved = base.rename(tmp_path / "moved")
    run(wanted | {"model": str(moved)}, tmp_path / "stopped", stop_at=1)  # the same one elsewhere
    other = make_backbone(tmp_path / "other", size={"hidden_size": 32}, seed=1)
    if changed == "tokenizer.json":
        (moved / changed).write_text((moved / changed).read_text() + "\n")
    else:
        shutil.copy(other / changed, moved / changed)
    for directory in ("stopped", "finished"):
        with pytest.raises(ValueError, match="of another model, settings or data"):
            run(wanted | {"model": str(moved)}, tmp_path / directory)


def test_a_checkpoint_that_says_nothing_of_its_backbone_goes_on(backbone, files, tmp_path):
    wanted = document(backbone, files, max_steps=2)
    run(wanted, tmp_path, stop_at=1)
    path = tmp_path / "checkpoint" / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | {"digest": metadata["digest"][:64]})
    _, log = run(wanted, tmp_path)
    assert [figures["step"] for figures in log] == [2]


def test_the_callers_random_state_is_left_alone(backbone, files, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    run(document(backbone, files, max_steps=1), tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_a_loss_that_is_not_finite_stops_the_training(backbone, files, tmp_path):
    huge = write_rows(tmp_path / "huge.jsonl", [row | {"margin": 1e29} for row in pairs(4)])
    wanted = document(backbone, files, objective="bradley_terry", heads=[], pair_loss="scaled")
    with pytest.raises(FloatingPointError, match="update 1: the loss or its gradient is not finite; lower lr"):
        run(wanted | {"train": [str(huge)]}, tmp_path)


def test_a_trained_bradley_terry_model_is_a_standard_classifier(backbone, files, tmp_path):
    wanted = document(backbone, files, objective="bradley_terry", heads=[], rows=("pairs",), max_steps=2)
    result, log = run(wanted, tmp_path)
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(result.model).config.num_labels == 1
    assert registry.build("bradley_terry", {"model": str(result.model)})
    assert log[0]["rating_loss"] is None
    assert log[0]["pair_loss"] == log[0]["loss"]


def test_a_trained_model_is_evaluated_on_held_out_rows(backbone, files, tmp_path):
    result, log = run(document(backbone, files, validation=[files["held_out"]], epochs=6), tmp_path)
    assert json.loads((tmp_path / "eval.json").read_text())["heads"] == result.evaluation.heads
    assert (tmp_path / "eval.html").is_file()
    assert sum(figures["loss"] for figures in log[-6:]) < 0.8 * sum(figures["loss"] for figures in log[:6])
    assert not (tmp_path / "checkpoint").exists()


def test_what_may_be_gone_on_from_is_told_before_the_evaluation(backbone, files, tmp_path):
    wanted = document(backbone, files, validation=[files["held_out"]], epochs=1, checkpoint_every=2)
    saved, log = [], []

    def on_saved():
        saved.append((log[-1]["step"], sorted(path.name for path in tmp_path.iterdir())))

    def stop():  # heard before the evaluation, or in it
        return "asked to" if (tmp_path / "model").exists() else None

    settings = TrainSettings.from_dict(wanted)
    result = train(settings, directory=tmp_path, on_step=log.append, should_stop=stop, on_saved=on_saved)
    total = result.total_steps
    assert saved == [*((step, ["checkpoint"]) for step in range(2, total, 2)), (total, ["model"])]
    assert (result.stopped, result.model, result.evaluation) == ("asked to", tmp_path / "model", None)
    asked = iter([None, "asked to"])
    assert train(settings, directory=tmp_path, on_step=log.append, should_stop=lambda: next(asked)) == result
    resumed, rest = run(wanted, tmp_path)
    assert resumed.evaluation is not None
    assert rest == []


# ----------------------------------------------------------------------------------------------------------- gating


def test_the_gate_learns_which_head_decides_for_which_prompt():
    config = HeadsConfig(heads=(HeadConfig(name="a", range=(0, 1)), HeadConfig(name="b", range=(0, 1))))
    readout = Readout(config, 4)
    generator = torch.Generator().manual_seed(0)
    prompts_NH = torch.randn(400, 4, generator=generator)
    differences_NK = torch.rand(400, 2, generator=generator) * 2 - 1
    decisive_N = (prompts_NH[:, 0] > 0).long()
    differences_NK *= torch.sign(differences_NK.gather(1, decisive_N[:, None]))
    torch.manual_seed(0)
    reason = train_gate(
        readout,
        GateData(prompts_NH=prompts_NH, differences_NK=differences_NK),
        GatingSettings(hidden_sizes=(16,), steps=200, lr=1e-2, batch_size=64),
        seed=0,
        on_update=lambda _: None,
        should_stop=lambda: None,
    )
    assert reason is None
    with torch.no_grad():
        weights_NK = readout.gate(prompts_NH)
        right = ((weights_NK * differences_NK).sum(dim=1) > 0).float().mean()
        uniform = (differences_NK.sum(dim=1) > 0).float().mean()
    assert right > 0.95 > 0.85 > uniform
    assert (weights_NK.argmax(dim=1) == decisive_N).float().mean() > 0.9
    assert torch.allclose(weights_NK.sum(dim=1), torch.ones(400))
