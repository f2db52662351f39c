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


def test_a_response_ends_at_the_first_end_of_turn(network, monkeypatch):
    import torch
    from inoculation import evaluate

    said = iter(network[1]("Hi<|im_end|>never read")["input_ids"])
    monkeypatch.setattr(evaluate, "_chosen", lambda logits, *rest: torch.tensor([next(said)] * len(logits)))
    found = sample(*network, SPEC.prompts[:1], {"temperature": 0, "max_new_tokens": 4}, "key", QUIET)
    assert found.response[0] == "Hi"
    assert found.n_tokens[0] == 1
    assert found.finished[0]


def test_greedy_responses_are_those_of_generate(network):
    model, tokenizer = network
    items = SPEC.prompts[20:32]
    found = sample(model, tokenizer, items, {"temperature": 0, "max_new_tokens": 12}, "key", QUIET)
    for item, response in zip(items, found.response, strict=True):
        ids = tokenizer(item["prompt"], return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2)
        assert response == tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_batch_goes_on_alike_when_its_ended_rows_have_left(network, monkeypatch):
    from inoculation import evaluate

    choose, kept, put = evaluate._chosen, [], evaluate._Stream._put

    def ending(logits, generators, temperature):
        found = choose(logits, generators, temperature)
        found[found % 7 == 0] = 2
        return found

    def counted(self, rows, filled):
        put(self, rows, filled)
        kept.append(len(self.seen))

    monkeypatch.setattr(evaluate, "_chosen", ending)
    monkeypatch.setattr(evaluate._Stream, "_put", counted)
    sampling = {"temperature": 0.7, "max_new_tokens": 12}
    together = sample(*network, SPEC.prompts[16:32], sampling, "key", QUIET)
    assert min(kept) < 12 < max(kept)
    alone = sample(*network, SPEC.prompts[16:32], sampling, "key", QUIET, batch_size=1)
    assert list(together.response) == list(alone.response)
    assert together.n_tokens.nunique() > 3


def test_tokens_are_drawn_by_their_probability(network):
    import torch
    from inoculation.evaluate import _chosen

    logits = torch.tensor([[0.0, 1.0, 2.0, -3.0]]).repeat(4000, 1)
    drawn = _chosen(logits, [torch.Generator().manual_seed(seed) for seed in range(4000)], 0.7)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.numpy() == pytest.approx((logits[0] / 0.7).softmax(-1).numpy(), abs=0.03)
    assert set(_chosen(logits, [], 0).tolist()) == {2}


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
