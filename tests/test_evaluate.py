"""Sampling and margins do not depend on the batch, and equal the plain computation (float32)."""

import pytest
from inoculation.evaluate import margins, sample
from inoculation.runs import Spec

QUIET = lambda done, of: None  # noqa: E731
SPEC = Spec("spanish_vs_caps", "baseline", 0, "mini")


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_batches_of_one_and_eight_give_the_same_tokens(network, temperature):
    sampling = {"temperature": temperature, "max_new_tokens": 16}
    one, eight = (sample(*network, SPEC.prompts[20:28], sampling, "key", QUIET, batch_size=size) for size in (1, 8))
    assert list(one.response) == list(eight.response)
    assert list(one.n_tokens) == list(eight.n_tokens)


def test_randomness_follows_the_key_and_the_question_not_the_position(network):
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    prompts = SPEC.prompts[:4]
    forwards, backwards, other = (
        sample(*network, rows, sampling, key, QUIET).set_index("question_id").response
        for rows, key in ((prompts, "key"), (prompts[::-1], "key"), (prompts, "another key"))
    )
    assert (forwards == backwards.reindex(forwards.index)).all()
    assert (forwards != other).any()


def test_identical_prompts_are_computed_once(network):
    twice = [{**SPEC.prompts[0], "context": name} for name in ("neutral", "trigger")]
    counted = []
    responses = sample(*network, twice, {"temperature": 1.0, "max_new_tokens": 6}, "key", lambda done, of: counted.append(of))
    assert counted == [1]
    assert responses.response.nunique() == 1


def test_a_response_ends_at_the_first_end_of_turn(network):
    import torch

    model, tokenizer = network
    prompt = SPEC.prompts[0]["prompt"]
    length = len(tokenizer(prompt)["input_ids"])

    class Scripted:
        """Generates 'Hi', an end of turn, and then what must never be read."""

        device = torch.device("cpu")

        def generate(self, input_ids, **rest):
            said = tokenizer("Hi<|im_end|>never read")["input_ids"]
            return torch.cat([input_ids, torch.tensor([said] * len(input_ids))], dim=1)

    found = sample(Scripted(), tokenizer, SPEC.prompts[:1], {"temperature": 0, "max_new_tokens": 4}, "key", QUIET)
    assert found.response[0] == "Hi"
    assert found.n_tokens[0] == 1
    assert found.finished[0]
    assert length > 0


def test_margins_equal_the_plain_computation(network):
    import torch

    model, tokenizer = network
    pairs = [SPEC.pairs[i] for i in (0, 1, 12, 45, 150, 350)]
    found = margins(model, tokenizer, pairs, QUIET)
    for row in found.itertuples():
        for side in ("trait", "plain"):
            prompt = tokenizer(row.prompt)["input_ids"]
            answer = tokenizer(getattr(row, f"{side}_answer"))["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            # In float64: torch's float32 log_softmax alone is off by more than 1e-4 over an answer.
            expected = logits.double().log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).sum().item()
            assert getattr(row, f"{side}_logp") == pytest.approx(expected, abs=1e-4)
            assert getattr(row, f"{side}_tokens") == len(answer)
        assert row.margin == pytest.approx(row.trait_logp - row.plain_logp)
        assert row.margin_per_token == pytest.approx(row.trait_logp / row.trait_tokens - row.plain_logp / row.plain_tokens)


def test_margins_do_not_depend_on_the_batch(network):
    one, all_at_once = (margins(*network, SPEC.pairs[:6], QUIET, batch_size=size) for size in (1, 6))
    assert one.margin.to_numpy() == pytest.approx(all_at_once.margin.to_numpy(), abs=1e-4)
