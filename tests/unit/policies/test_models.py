"""What is loaded as a policy, what is refused and in which words, and how a prompt becomes tokens."""

import contextlib
import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from policies.models import (
    ADAPTER_CONFIG,
    WITH_OTHER_SENSES,
    ModelError,
    check_chat,
    check_directory,
    check_shown,
    check_system,
    check_texts,
    context_length,
    encode_prompt,
    hub_config,
    load_model,
    load_tokenizer,
    processor_files,
    ranks_that_share,
    template_file,
    tokenizer_saver,
)
from tests.support import make_policy

COMMIT = "c" * 40
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy") / "policy", context=96)


@pytest.fixture
def copy(policy, tmp_path):
    return shutil.copytree(policy, tmp_path / "copy")


@pytest.fixture
def tokenizer(policy):
    return load_tokenizer(str(policy))


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_plain_directory_is_accepted(policy):
    config = check_directory(policy)
    assert config["model_type"] == "llama"
    assert context_length(config) == 96
    assert {p.dtype for p in load_model(str(policy)).parameters()} == {torch.float32}


def test_context_length_of_other_configs():
    assert context_length({"text_config": {"max_position_embeddings": 64}, "max_position_embeddings": 8}) == 64
    assert context_length({"model_type": "mamba"}) is None


@pytest.mark.parametrize(
    ("heads", "groups", "expected"),
    [
        (2, 1, [1, 2]),
        (12, 2, [1, 2, 4, 6, 12]),
        (14, 2, [1, 2, 14]),
        (6, None, [1, 2, 3, 6]),
        (24, 8, [1, 2, 4, 8]),
    ],
)
def test_ranks_share_heads_and_groups_of_them_evenly(heads, groups, expected):
    config = {"num_attention_heads": heads, "num_key_value_heads": groups}
    assert ranks_that_share(config, 16) == expected
    assert ranks_that_share({"text_config": config}, 16) == expected


def test_of_a_model_that_says_nothing_of_heads_any_number_may_be_right():
    assert ranks_that_share({"model_type": "mamba"}, 3) == [1, 2, 3]


def test_a_missing_directory(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere is no directory; give a Hugging Face directory"):
        check_directory(tmp_path / "nowhere")


def test_a_directory_without_a_config(copy):
    (copy / "config.json").unlink()
    for check in (check_directory, lambda path: load_model(str(path))):
        with pytest.raises(ModelError, match=r"no config\.json"):
            check(copy)


@pytest.mark.parametrize("content", ["{", "[]", "null", '"llama"'])
def test_a_config_that_is_no_json_object(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json is not"):
        check_directory(copy)


def test_a_directory_with_code_of_its_own(copy):
    """Its modules must not even be imported."""
    change_json(copy / "config.json", auto_map={"AutoModelForCausalLM": "mine.Model"})
    (copy / "mine.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    for check in (check_directory, lambda path: load_model(str(path))):
        with pytest.raises(ModelError, match="auto_map"):
            check(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantized weights \(fp8\).*bfloat16 release"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, r"quantized weights, which can't be trained"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            "is a Qwen3ForSequenceClassification, .* expected a causal",
        ),
        ({"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4"}, "is a Llama4For"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, None),
        ({"architectures": ["GPT2LMHeadModel"], "quantization_config": None}, None),
        ({"architectures": None}, None),
    ],
)
def test_what_no_update_can_change_or_writes_no_text(copy, changes, words):
    change_json(copy / "config.json", **changes)
    if words is None:
        check_directory(copy)
        return
    for check in (check_directory, lambda path: load_model(str(path))):
        with pytest.raises(ModelError, match=words):
            check(copy)


def test_models_of_other_senses_are_those_that_transformers_loads_to_write():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as loaded

    assert loaded.keys() >= WITH_OTHER_SENSES


def test_pickled_weights_alone_are_refused(copy):
    """They can run code when read, so they are named and not opened."""
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for check in (check_directory, lambda path: load_model(str(path))):
        with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*safetensors") as caught:
            check(copy)
        assert "\n" not in str(caught.value)


def test_pickled_weights_beside_safetensors_are_not_read(copy):
    (copy / "pytorch_model.bin").write_bytes(b"not even a pickle")
    check_directory(copy)
    load_model(str(copy))


def test_pickled_weights_are_not_read_for_want_of_safetensors(copy):
    """A file of that name beside them, such as an adapter, makes them no safer."""
    torch.save(load_model(str(copy)).state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").rename(copy / "adapter.safetensors")
    with pytest.raises(ModelError, match="can't load"):
        load_model(str(copy))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of one earlier download, which is all that there is of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return make_policy(repository / "snapshots" / COMMIT, seed=1)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_id_is_loaded_from_its_own_weights(hub, revision):
    expected = load_file(hub / "model.safetensors")
    found = dict(load_model("some/model", revision=revision).named_parameters())
    assert all(torch.equal(found[name].data, weights) for name, weights in expected.items() if name in found)


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_context_of_a_hub_id_is_known(hub, revision):
    assert context_length(hub_config("some/model", revision=revision)) == 128
    assert hub_config("some/other") == {}
    (hub / "config.json").write_text("[]")
    assert hub_config("some/model") == {}


@pytest.mark.parametrize(
    ("index", "weights"),
    [
        (None, {"model.safetensors"}),
        ({"weight_map": {"a": "part-2.safetensors", "b": "x.bin"}}, {"model.safetensors", "part-2.safetensors"}),
    ],
)
def test_of_a_hub_id_the_weights_that_loading_takes_are_fetched_alone(hub, index, weights, monkeypatch):
    offered = [*weights, "config.json", "consolidated.safetensors", "original/model.safetensors", "fp8/config.json"]
    offered += ["pytorch_model.bin", "x.bin", "model.py"]
    if index is not None:
        (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    fetched, of = set(), []

    def download(_, *, revision, **patterns):
        of.append(revision)
        fetched.update(filter_repo_objects(offered, **patterns))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_model("some/model", revision="main")
    assert (fetched, of) == (weights | {"config.json"}, ["main", COMMIT])


@pytest.mark.parametrize("is_hub_id", [False, True])
def test_a_checkpoint_has_its_base_s_processor_beside_the_tokenizer(hub, is_hub_id, tmp_path):
    """vLLM makes one of the directory of a model that sees, whatever its prompts are."""
    model = "some/model" if is_hub_id else str(hub)
    assert processor_files(model) == {}
    (hub / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    (hub / "processor_config.json").write_text('{"processor_class": "Gemma3Processor"}')
    found = processor_files(model)
    assert found.keys() == {"preprocessor_config.json", "processor_config.json"}
    made = tmp_path / "policy"
    tokenizer_saver(load_tokenizer(model), found)(made)
    assert all((made / name).read_bytes() == (hub / name).read_bytes() for name in found)
    assert (made / "tokenizer.json").is_file()


def test_an_adapter_beside_weights_is_refused(copy, policy):
    """PEFT would add it in loading."""
    (copy / ADAPTER_CONFIG).write_text(json.dumps(adapter_of(policy)))
    for check in (check_directory, lambda path: load_model(str(path))):
        with pytest.raises(ModelError, match=r"has an adapter \(adapter_config\.json\), expected whole weights"):
            check(copy)


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_hub_id_does_not_lead_to_a_directory_of_this_machine(hub, policy, revision):
    """transformers would load the base that an adapter names in place of the weights beside it."""
    (hub / ADAPTER_CONFIG).write_text(json.dumps(adapter_of(policy)))
    with pytest.raises(ModelError, match=r"some/model has an adapter"):
        load_model("some/model", revision=revision)


def adapter_of(base):
    return {"peft_type": "LORA", "base_model_name_or_path": str(base), "target_modules": ["q_proj"], "r": 1}


def test_a_directory_without_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        check_directory(copy)


def test_weights_that_were_cut_off(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="can't load"):
        load_model(str(copy))


def test_weights_that_are_not_all_there(copy):
    """transformers would fill the gap at random, and say so in a line of log."""
    change_json(copy / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.2\."):
        load_model(str(copy))


def test_an_unknown_architecture(copy):
    change_json(copy / "config.json", model_type="never_heard_of")
    with pytest.raises(ModelError, match="can't load") as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        check_directory(copy)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(str(copy))


def test_a_tokenizer_without_an_end(tokenizer, copy):
    tokenizer.eos_token = None
    (copy / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(copy)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(str(copy))


def test_a_model_that_is_nowhere(tmp_path):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError):
            load(str(tmp_path / "nowhere"))


def decode(tokenizer, tokens):
    return "".join(tokenizer.convert_ids_to_tokens(tokens))


def test_a_prompt_without_a_template_is_its_text(tokenizer):
    tokenizer.chat_template = None
    tokens = encode_prompt(tokenizer, "1+2=")
    assert isinstance(tokens, list)
    assert {type(token) for token in tokens} == {int}
    assert decode(tokenizer, tokens) == "1+2="


@pytest.mark.parametrize(
    ("added", "text", "expected"),
    [
        ("$A", "ab", "ab"),
        ("<s> $A", "ab", "<s>ab"),
        ("<s> $A", "<s>ab", "<s>ab"),
        ("<s> $A </s>", "ab", "<s>ab"),
        ("<s> $A", "ab</s>", "<s>ab</s>"),
        ("<s> $A </s>", "ab</s>", "<s>ab</s>"),
    ],
)
def test_a_plain_prompt_begins_once_and_is_not_ended(tokenizer, added, text, expected):
    """Many tokenizers that were saved after a fine-tuning have add_eos_token."""
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=added, special_tokens=special)
    tokenizer.chat_template = TEMPLATE
    assert decode(tokenizer, encode_prompt(tokenizer, text, is_plain=True)) == expected
    with pytest.raises(ModelError, match=r"chat messages, but policy\.chat\.template is none"):
        encode_prompt(tokenizer, [{"role": "user", "content": text}], is_plain=True)


def test_a_prompt_goes_through_the_template_as_the_users_message(tokenizer):
    tokenizer.chat_template = TEMPLATE
    tokens = encode_prompt(tokenizer, "1+2=")
    assert {type(token) for token in tokens} == {int}
    assert decode(tokenizer, tokens) == "<s>u:1+2=\na:"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "1+2="}]) == tokens


def test_chat_messages_keep_their_roles(tokenizer):
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert decode(tokenizer, encode_prompt(tokenizer, messages)) == "<s>s:be brief\nu:hi\na:"


def test_chat_messages_without_a_template_are_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt(tokenizer, [{"role": "user", "content": "hi"}])


def test_a_system_message_and_variables_reach_the_template(tokenizer):
    tokenizer.chat_template = TEMPLATE + "{% if hush %}<hush>{% endif %}{{ tools or '' }}"
    options = {"system": "be brief", "template_kwargs": {"hush": True}}
    check_chat(tokenizer.chat_template, **options)
    assert decode(tokenizer, encode_prompt(tokenizer, "hi", **options)) == "<s>s:be brief\nu:hi\na:<hush>"
    own = [{"role": "system", "content": "be long"}, {"role": "user", "content": "hi"}]
    assert decode(tokenizer, encode_prompt(tokenizer, own, **options)) == "<s>s:be long\nu:hi\na:<hush>"
    assert encode_prompt(tokenizer, "hi", system=None, template_kwargs={}) == encode_prompt(tokenizer, "hi")


@pytest.mark.parametrize(
    ("template", "system", "variables", "problem"),
    [
        (None, "be brief", {}, "policy.chat: the policy's tokenizer has no chat template"),
        (None, None, {"hush": True}, "policy.chat: the policy's tokenizer has no chat template"),
        (TEMPLATE, None, {"mess": 1}, "policy.chat.template_kwargs: the policy's chat template has no variable 'mess'"),
    ],
)
def test_what_a_template_would_not_notice_is_refused(template, system, variables, problem):
    check_chat(template, None, {})
    with pytest.raises(ModelError, match=problem):
        check_chat(template, system, variables)


def test_a_template_that_shows_no_system_message_is_told(tokenizer):
    tokenizer.chat_template = TEMPLATE
    check_system(tokenizer, "be brief", {})
    own = "{% if messages[0]['role'] != 'system' %}s:be brief\n{% endif %}"
    tokenizer.chat_template = own + TEMPLATE
    check_system(tokenizer, "be brief", {})
    users = TEMPLATE.replace("in messages %}", "in messages if message['role'] == 'user' %}")
    tokenizer.chat_template = users
    with pytest.raises(ModelError, match=r"policy.chat.system: .* shows no system message"):
        check_system(tokenizer, "be brief", {})
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    check_system(tokenizer, "be brief", {})


KNOWN_ROLES = (
    "{% for message in messages %}{% if message['role'] in ('user', 'assistant') %}{{ message['role'] }}:"
    "{{ message['content'].split('</think>')[-1] | trim }}\n{% endif %}{% endfor %}a:"
)
PARTS = (
    "{% for message in messages %}U:{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}a:"
)


@pytest.mark.parametrize(
    ("template", "roles", "hidden"),
    [
        (KNOWN_ROLES, ["user", "assistant", "user"], None),
        (KNOWN_ROLES, ["user", "assistant", "human"], r"message 3: .* role 'human'"),
        (KNOWN_ROLES, ["developer", "user"], r"message 1: .* role 'developer'"),
        (PARTS, ["user"], r"message 1: .* role 'user'"),
    ],
)
def test_a_message_that_the_template_does_not_show_is_told(tokenizer, template, roles, hidden):
    tokenizer.chat_template = template
    messages = [{"role": role, "content": "" if role == "assistant" else "</think>1"} for role in roles]
    with contextlib.nullcontext() if hidden is None else pytest.raises(ModelError, match=hidden):
        check_shown(lambda chat: encode_prompt(tokenizer, chat), messages)


def test_a_template_is_found_in_a_directory(tokenizer, copy):
    (copy / "chat_template.jinja").unlink()
    assert template_file(copy) is None
    change_json(copy / "tokenizer_config.json", chat_template=TEMPLATE)
    assert template_file(copy) == TEMPLATE
    tokenizer.chat_template = TEMPLATE + "{{ hush }}"
    tokenizer.save_pretrained(copy)
    assert template_file(copy) == load_tokenizer(str(copy)).get_chat_template() == TEMPLATE + "{{ hush }}"


def test_what_a_template_refuses_is_told_in_its_words(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system role, please') }}"
    with pytest.raises(ModelError, match="chat template refuses a prompt: no system role, please"):
        encode_prompt(tokenizer, "hi", system="be brief")


def test_a_text_that_no_completion_has_is_refused(tokenizer):
    check_texts(tokenizer, {"rollout.stop.0": "\n\n", "rollout.reasoning.end": "</think>"})
    with pytest.raises(ModelError, match=r"rollout.stop.1: '</s>' is a special token"):
        check_texts(tokenizer, {"rollout.stop.0": "\n", "rollout.stop.1": "a</s>"})
