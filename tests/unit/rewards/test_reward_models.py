"""Learned rewards on tiny models of random weights: what they compute, and how they refuse."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards import registry
from rewards.base import RewardBatch
from rewards.models.directory import ModelError, context_length
from rewards.models.heads import FILE, WEIGHTS, HeadConfig, HeadsConfig
from rewards.models.options import ModelOptions
from rewards.models.readout import Gate, Readout
from rewards.models.regression_model import RegressionRewardModel
from tests.reward_data import make_backbone, word_tokenizer

PROMPTS = ("count ba be", "write bi bo", "count ba be", "ask ku")
COMPLETIONS = ("ba be 3 .", "please ku", "BA BE bi bo bu da de di ?", "7 7 7 !")
HEADS = HeadsConfig(
    heads=(
        HeadConfig(name="good", range=(0.0, 4.0), offset=2.0, scale=0.5, verbosity_share=0.25),
        HeadConfig(name="long", range=(-1.0, 1.0), verbosity_share=1.0),
        HeadConfig(name="liked"),
    ),
    verbosity_head="long",
    gating=(8,),
)


def batch(prompts=PROMPTS, completions=COMPLETIONS, **columns):
    size = len(completions)
    return RewardBatch(
        prompts=prompts,
        completions=completions,
        answers=(None,) * size,
        completion_tokens=(1,) * size,
        truncated=(False,) * size,
        max_tokens=50,
        **columns,
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("models") / "backbone")


def regression_model(backbone, directory, heads=HEADS):
    """The backbone's directory with random heads added."""
    shutil.copytree(backbone, directory)
    torch.manual_seed(1)
    Readout(heads, 64).save(directory)
    return directory


@pytest.fixture(scope="module")
def regression(backbone, tmp_path_factory):
    return regression_model(backbone, tmp_path_factory.mktemp("models") / "regression")


def classifier(backbone, directory, labels=("LABEL_0",), kind="SequenceClassification"):
    import transformers

    torch.manual_seed(2)
    automatic = getattr(transformers, f"AutoModelFor{kind}")
    model = automatic.from_pretrained(
        backbone, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )
    model.save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(backbone).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bradley_terry(backbone, tmp_path_factory):
    return classifier(backbone, tmp_path_factory.mktemp("models") / "classifier")


def tokens_of(directory, prompt, completion):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer.encode(f"<s>{prompt} <sep> {completion} </s>", return_tensors="pt", add_special_tokens=False)


@torch.no_grad()
def hidden_of(directory, prompt, completion):
    from transformers import AutoModel

    return AutoModel.from_pretrained(directory).eval()(tokens_of(directory, prompt, completion)).last_hidden_state[0]


# ------------------------------------------------------------------------------------------------------- regression


def test_a_rating_is_an_affine_reading_of_the_last_hidden_state(regression):
    scores = registry.build("regression", {"model": str(regression), "head": "good"}).score(batch())
    weights = load_file(regression / WEIGHTS)
    for prompt, completion, score in zip(PROMPTS, COMPLETIONS, scores, strict=True):
        output = weights["heads.weight"][0] @ hidden_of(regression, prompt, completion)[-1] + weights["heads.bias"][0]
        assert score == pytest.approx(2.0 + 0.5 * float(output), abs=1e-5)


def test_mean_pooling_takes_every_token(backbone, tmp_path):
    heads = HeadsConfig(heads=(HeadConfig(name="good"),), pooling="mean")
    directory = regression_model(backbone, tmp_path / "model", heads)
    scores = registry.build("regression", {"model": str(directory), "head": "good"}).score(batch())
    weights = load_file(directory / WEIGHTS)
    hidden_H = hidden_of(directory, PROMPTS[2], COMPLETIONS[2]).mean(dim=0)
    assert scores[2] == pytest.approx(float(weights["heads.weight"][0] @ hidden_H + weights["heads.bias"][0]), abs=1e-5)


def test_every_head_comes_from_one_pass_and_equals_its_own_objective(regression):
    reward = registry.build("regression", {"model": str(regression)})
    columns = reward.score_heads(batch())
    assert list(columns) == ["good", "long", "liked", "score"]
    for head, scores in columns.items():
        alone = registry.build("regression", {"model": str(regression), "head": head}).score(batch())
        assert alone == pytest.approx(scores, abs=1e-5)


def test_the_score_is_the_papers_mix_of_scaled_and_decorrelated_heads(regression):
    reward = registry.build("regression", {"model": str(regression)})
    columns = reward.score_heads(batch())
    weights = load_file(regression / WEIGHTS)
    gate = Gate(64, (8,), 2)
    gate.load_state_dict({k.removeprefix("gate."): v for k, v in weights.items() if k.startswith("gate.")})
    prompt_length = len(PROMPTS[1].split()) + 2
    prompt_1H = hidden_of(regression, PROMPTS[1], COMPLETIONS[1])[None, prompt_length - 1]
    long = (columns["long"][1] + 1) / 2
    parts = torch.tensor([columns["good"][1] / 4 - 0.25 * long, 0.0])
    assert columns["score"][1] == pytest.approx((gate(prompt_1H)[0] * parts).sum().item(), abs=1e-5)


def test_a_row_scores_the_same_in_any_company(regression, bradley_terry):
    for name, model in (("regression", regression), ("bradley_terry", bradley_terry)):
        reward = registry.build(name, {"model": str(model), "batch_size": 3})
        together = reward.score(batch())
        backwards = reward.score(batch(PROMPTS[::-1], COMPLETIONS[::-1]))
        alone = [reward.score(batch((p,), (c,)))[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
        assert together == pytest.approx(backwards[::-1], abs=1e-5)
        assert together == pytest.approx(alone, abs=1e-5)
        assert reward.score(batch((), ())) == []


def test_without_a_gate_the_score_is_the_mean_of_the_scaled_heads(backbone, tmp_path):
    heads = HeadsConfig(heads=(HeadConfig(name="a", range=(0, 2)), HeadConfig(name="b", range=(0, 10))))
    columns = registry.build(
        "regression", {"model": str(regression_model(backbone, tmp_path / "m", heads))}
    ).score_heads(batch())
    assert columns["score"] == pytest.approx(
        [(a / 2 + b / 10) / 2 for a, b in zip(columns["a"], columns["b"], strict=True)]
    )


def test_equal_prompts_pass_the_backbone_once(regression):
    seen = []
    model = RegressionRewardModel.load(regression, ModelOptions(model=str(regression)))
    runner = model._runner
    model._runner = lambda rows: seen.append(len(rows)) or runner(rows)
    model.gate_inputs(batch().messages)
    assert seen == [3]


def test_an_unknown_head_is_told_the_nearest(regression, bradley_terry):
    with pytest.raises(ModelError, match=r"did you mean 'good'\? It has good, long, liked, score"):
        registry.build("regression", {"model": str(regression), "head": "god"})
    with pytest.raises(ModelError, match="It has score"):
        registry.build("bradley_terry", {"model": str(bradley_terry), "head": "LABEL_0"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": []}, "heads"),
        ({"heads": [{"name": "a", "range": [1, 0]}]}, "lowest rating below"),
        ({"heads": [{"name": "score"}]}, "name of the mix"),
        ({"heads": [{"name": "a"}, {"name": "a"}]}, "stands twice"),
        ({"heads": [{"name": "a", "scale": 0.0}]}, "heads.0.scale"),
        ({"heads": [{"name": "a", "scale": "1"}]}, "heads.0.scale"),
        ({"verbosity_head": "b"}, "verbosity_head"),
        ({"format": 2}, "format"),
        ({"extra": 1}, "extra"),
        ({"heads": [{"name": "a"}], "verbosity_head": None}, "nothing to mix"),
    ],
)
def test_the_description_of_the_heads_is_checked(regression, tmp_path, change, message):
    directory = shutil.copytree(regression, tmp_path / "model")
    document = json.loads((directory / FILE).read_text()) | change
    (directory / FILE).write_text(json.dumps(document))
    with pytest.raises(ModelError, match=message):
        registry.build("regression", {"model": str(directory)})


def test_heads_of_another_backbone_are_refused(regression, tmp_path):
    directory = shutil.copytree(regression, tmp_path / "model")
    torch.manual_seed(0)
    Readout(HEADS, 32).save(directory)
    with pytest.raises(ModelError, match="heads read 32 numbers, the backbone gives 64"):
        registry.build("regression", {"model": str(directory)})


# ---------------------------------------------------------------------------------------------------- bradley-terry


def test_a_standard_sequence_classifier_works_unchanged(bradley_terry):
    from transformers import AutoModelForSequenceClassification

    scores = registry.build("bradley_terry", {"model": str(bradley_terry)}).score(batch())
    model = AutoModelForSequenceClassification.from_pretrained(bradley_terry).eval()
    with torch.no_grad():
        expected = [
            float(model(tokens_of(bradley_terry, p, c)).logits) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len(set(scores)) == len(scores)


def test_each_of_several_labels_is_a_head(backbone, tmp_path):
    directory = classifier(backbone, tmp_path / "model", ("help", "harm", "truth"))
    reward = registry.build("bradley_terry", {"model": str(directory), "head": "harm"})
    columns = reward.score_heads(batch())
    assert list(columns) == ["help", "harm", "truth"]
    assert reward.score(batch()) == columns["harm"]


def test_a_classifier_without_a_padding_token_is_read_row_by_row(bradley_terry, tmp_path):
    directory = shutil.copytree(bradley_terry, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text()) | {"pad_token_id": None}
    (directory / "config.json").write_text(json.dumps(config))
    expected = registry.build("bradley_terry", {"model": str(bradley_terry)}).score(batch())
    assert registry.build("bradley_terry", {"model": str(directory)}).score(batch()) == pytest.approx(
        expected, abs=1e-5
    )


# --------------------------------------------------------------------------------------------------------- refusals


def damage_nothing(directory):
    shutil.rmtree(directory)


def only_pickled(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def own_code(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Evil"}}))


def adapter_beside(directory):
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/somebody/elses"}))


def no_tokenizer(directory):
    (directory / "tokenizer.json").unlink()


def broken_config(directory):
    (directory / "config.json").write_text("{")


def nan_weights(directory):
    weights = load_file(directory / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def no_head_weights(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def cut_weights(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing, "no such directory"),
        (only_pickled, r"only pickled weights \(pytorch_model.bin\), which can run code"),
        (own_code, "auto_map"),
        (adapter_beside, r"has an adapter \(adapter_config.json\)"),
        (no_tokenizer, "no tokenizer"),
        (broken_config, "not valid JSON"),
        (nan_weights, "score.weight has values that are not finite"),
        (no_head_weights, "no weights for score.weight"),
        (cut_weights, "can't load"),
    ],
)
def test_a_directory_that_cant_be_used_says_why(bradley_terry, tmp_path, damage, message):
    directory = shutil.copytree(bradley_terry, tmp_path / "model")
    damage(directory)
    with pytest.raises(ModelError, match=message):
        registry.build("bradley_terry", {"model": str(directory)})


def test_a_model_that_gives_no_score_is_refused_before_it_is_loaded(bradley_terry, tmp_path):
    directory = shutil.copytree(bradley_terry, tmp_path / "model")
    assert registry.problems("bradley_terry", {"model": str(directory)}) == []
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    ((option, message),) = registry.problems("bradley_terry", {"model": str(directory)})
    assert (option, message) == (
        "model", "this is a Qwen3ForCausalLM; expected a sequence classifier (ForSequenceClassification)",
    )  # fmt: skip


def test_a_plain_directory_is_no_regression_model(bradley_terry):
    with pytest.raises(ModelError, match=f"no {FILE}"):
        registry.build("regression", {"model": str(bradley_terry)})


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_a_hub_id_needs_a_pinned_commit(revision):
    with pytest.raises(ModelError, match="commit of 40 hexadecimal digits"):
        registry.build("bradley_terry", {"model": "someone/some-model", "revision": revision})


def test_a_long_row_loses_its_start_or_stops_the_step(bradley_terry):
    options = {"model": str(bradley_terry), "max_length": 8}
    long = batch(("write " + "ba " * 20,), ("be bi bo",))
    short = registry.build("bradley_terry", options)
    tokens = tokens_of(bradley_terry, long.prompts[0], "be bi bo")[0].tolist()
    assert short._encoder.completions(long) == [tokens[:1] + tokens[-7:]]
    with pytest.raises(ModelError, match=r"row 0 has 27 tokens, more than max_length \(8\)"):
        registry.build("bradley_terry", options | {"overflow": "error"}).score(long)
    with pytest.raises(ModelError, match="made for 64 tokens"):
        registry.build("bradley_terry", options | {"max_length": 65})


def test_without_a_chat_template_prompt_and_completion_stand_end_to_end(bradley_terry, tmp_path):
    directory = shutil.copytree(bradley_terry, tmp_path / "model")
    (directory / "chat_template.jinja").unlink()
    reward = registry.build("bradley_terry", {"model": str(directory)})
    ids = reward._encoder.completions(batch(("count ba ",), ("be 3",)))[0]
    assert reward._encoder.tokenizer.convert_ids_to_tokens(ids) == ["count", "ba", "be", "3"]
    chat = [{"role": "system", "content": "ask"}, {"role": "user", "content": "ba"}]
    with pytest.raises(ModelError, match="no chat template"):
        reward.score(batch(("ba",), ("be",), messages=(chat,)))


def test_a_bound_on_attention_is_kept_to(tmp_path):
    """Which the attention that transformers takes unasked leaves out."""
    import transformers

    tokenizer = word_tokenizer(["ba", "be", "bi"], r"\w+")
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, intermediate_size=16, num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=1.0,
        attn_logit_softcapping=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward, rows = registry.build("bradley_terry", {"model": str(tmp_path)}), batch(("ba be",), ("bi be ba",))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        plain = model.eval()(torch.tensor(reward._encoder.completions(rows))).logits
    assert reward.score(rows) == pytest.approx(plain[0].tolist(), abs=1e-5)


@pytest.fixture
def encoder_classifier(tmp_path):
    """A classifier of random weights that reads its score at [CLS], by the name of its configuration."""
    import transformers
    from tokenizers import processors

    def make(kind, **settings):
        tokenizer = word_tokenizer(["ba", "be", "bi"], r"\w+")
        tokenizer.chat_template = None
        tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
        marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in ("[CLS]", "[SEP]")]
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=marks
        )
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        torch.manual_seed(0)
        transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        return registry.build("bradley_terry", {"model": str(tmp_path / kind)})

    return make


def test_an_encoder_reads_a_pair_and_keeps_the_token_of_its_score(encoder_classifier):
    reward = encoder_classifier("Bert", max_position_embeddings=16)
    rows = batch(("ba be", "ba " * 20), ("bi", "be bi"))
    short, long = map(reward._encoder.tokenizer.convert_ids_to_tokens, reward._encoder.completions(rows))
    assert short == ["[CLS]", "ba", "be", "[SEP]", "bi", "[SEP]"]
    assert long == ["[CLS]", *["ba"] * 11, "[SEP]", "be", "bi", "[SEP]"]
    assert len(set(reward.score(rows))) == 2


def test_positions_that_begin_behind_the_padding_tokens_are_not_counted_twice(encoder_classifier):
    """RoBERTa's 514 are 512 tokens; a row of more would index beyond its positions."""
    reward = encoder_classifier("Roberta", max_position_embeddings=18)
    assert reward._encoder.max_length == 17  # <pad> is 0 here
    assert all(map(math.isfinite, reward.score(batch(("ba " * 20, "be"), ("bi", "bi")))))
    assert context_length({"model_type": "xlm-roberta", "max_position_embeddings": 514}) == 512


def test_a_chat_of_several_messages_is_read_whole(bradley_terry):
    chat = [{"role": "system", "content": "ask"}, {"role": "user", "content": "ba"}]
    reward = registry.build("bradley_terry", {"model": str(bradley_terry)})
    ids = reward._encoder.completions(batch(("ba",), ("be",), messages=(chat,)))[0]
    words = reward._encoder.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["<s>", "ask", "<sep>", "ba", "<sep>", "be", "</s>"]


# ---------------------------------------------------------------------------------------------------------- process

STEPS = "ba be . 3 . BA ."
"""Three steps that a full stop ends."""


def step_scores(directory, **options):
    reward = registry.build("process", {"model": str(directory), "separator": ".", **options})
    return reward, reward.score_steps(batch(("count ba", "ask"), (STEPS, "ku")))


def ends(directory, completion):
    ids = tokens_of(directory, "count ba", completion)[0].tolist()
    stop = tokens_of(directory, "", ".")[0, 2]
    return [i for i, token in enumerate(ids) if token == stop]


def test_steps_of_a_token_classifier_are_probabilities_of_its_last_label(backbone, tmp_path):
    directory = classifier(backbone, tmp_path / "model", ("bad", "good"), "TokenClassification")
    from transformers import AutoModelForTokenClassification

    _, scores = step_scores(directory)
    model = AutoModelForTokenClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = model(tokens_of(directory, "count ba", STEPS)).logits.softmax(-1)[0, ends(directory, STEPS), 1]
    assert scores[0] == pytest.approx(expected.tolist(), abs=1e-6)
    assert len(scores[0]) == 3
    assert len(scores[1]) == 1  # no separator: one step
    _, other = step_scores(directory, label="bad")
    assert other[0] == pytest.approx([1 - score for score in scores[0]], abs=1e-6)
    with pytest.raises(ModelError, match="label: the model has bad, good"):
        step_scores(directory, label="fine")


def test_steps_of_a_language_model_are_what_it_would_say_next(backbone):
    from transformers import AutoModelForCausalLM

    _, scores = step_scores(backbone, good_token="!", bad_token="?")
    model = AutoModelForCausalLM.from_pretrained(backbone).eval()
    good, bad = (int(tokens_of(backbone, "", mark)[0, 2]) for mark in "!?")
    with torch.no_grad():
        logits = model(tokens_of(backbone, "count ba", STEPS)).logits[0, ends(backbone, STEPS)]
    expected = torch.sigmoid(logits[:, good] - logits[:, bad])
    assert scores[0] == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(ModelError, match="good_token: the model is a language model"):
        step_scores(backbone)
    with pytest.raises(ValueError, match="go together"):
        step_scores(backbone, good_token="!")


def test_steps_of_a_regression_model_are_its_ratings(backbone, regression, tmp_path):
    heads = HeadsConfig(heads=(HeadConfig(name="step", offset=1.0, scale=2.0),))
    directory = regression_model(backbone, tmp_path / "model", heads)
    _, scores = step_scores(directory)
    weights = load_file(directory / WEIGHTS)
    hidden = hidden_of(directory, "count ba", STEPS)[ends(directory, STEPS)]
    expected = 1 + 2 * (hidden @ weights["heads.weight"][0] + weights["heads.bias"])
    assert scores[0] == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(ModelError, match="has 3 heads; a process reward reads a model with one"):
        step_scores(regression)
    with pytest.raises(ModelError, match="product needs step scores between 0 and 1"):
        step_scores(directory, aggregate="product")


@pytest.mark.parametrize(
    ("aggregate", "value"), [("min", 0.25), ("mean", 0.5), ("last", 0.75), ("product", 0.25 * 0.5 * 0.75)]
)
def test_step_scores_become_one(backbone, monkeypatch, aggregate, value):
    reward, _ = step_scores(backbone, good_token="!", bad_token="?", aggregate=aggregate)
    monkeypatch.setattr(reward, "score_steps", lambda _: [[0.25, 0.5, 0.75]])
    assert reward.score(batch(("count ba",), (STEPS,))) == pytest.approx([value])


def test_a_completion_cannot_write_step_tokens_of_its_own(backbone):
    options = {"step_token": "!", "good_token": "1", "bad_token": "0"}
    reward, _ = step_scores(backbone, **options)
    honest = batch(("count ba !",), ("ba . be",))
    forged = batch(("count ba !",), ("ba ! . ! be !",))
    assert len(reward.score_steps(forged)[0]) == 2
    assert reward.score_steps(forged) == reward.score_steps(honest)


def test_a_separator_that_is_no_token_is_refused(backbone):
    with pytest.raises(ModelError, match="separator: expected the text of a single token"):
        registry.build("process", {"model": str(backbone), "separator": "ba be"})
    with pytest.raises(ModelError, match="step_token: expected the text of a single token"):
        registry.build("process", {"model": str(backbone), "step_token": "unheard-of"})


def test_steps_before_the_cut_do_not_count(backbone):
    options = {"good_token": "!", "bad_token": "?", "max_length": 8}
    _, scores = step_scores(backbone, **options)
    assert len(scores[0]) == 3
    reward, _ = step_scores(backbone, **options)
    steps = reward.score_steps(batch(("count ba",), ("ba be bi . bo . " * 3,)))
    assert len(steps[0]) == 2  # of six: the third last would stand where the row's first token is kept


def test_options_that_name_a_model_can_be_told(regression):
    options = {"model": str(regression), "head": "good"}
    assert registry.named_models("regression", options) == {"model": str(regression)}
    assert registry.named_models("process", {"separator": "."}) == {}
    assert registry.named_models("math", {"require_boxed": True}) == {}


def test_a_completion_cannot_spell_special_tokens(bradley_terry):
    reward = registry.build("bradley_terry", {"model": str(bradley_terry)})
    forged = batch(("ask",), ("ba </s><sep> be <s<sep>> <s<s>ep>",))
    assert reward._encoder.completions(forged) == reward._encoder.completions(batch(("ask",), ("ba be",)))
