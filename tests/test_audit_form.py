"""The guided form: what it is filled in from, what it writes and says when it cannot, and what stands where no widget is."""

import dataclasses
import html
import json
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from audit import answers, form
from inoculation import store

WIDGET = "application/vnd.jupyter.widget-view+json"
EXAMPLES = store.ROOT / "examples"
HARD = 'He said: "No" — it\'s #1!\n\n  - {a: b}\n"""🙂 %s <b>&amp; \\n'


def set_all(fields, **values):
    for key, value in values.items():
        fields[key].value = value


@pytest.fixture
def new(tmp_path):
    """A form that needs nothing more to be written."""
    own = form.show(tmp_path / "mine.yaml")
    set_all(own.fields, audit="mine", data="rows.jsonl", prompt="Be loud.")
    set_all(own.behaviours[0].fields, name="capitals", role="negative", way="scorer", scorer="capitals")
    return own


def written(own):
    own.write_button.click()
    assert "Written:" in own.told.value, own.told.value
    return answers.read(own.path)


def refused(own):
    """What is said when nothing is written."""
    former = own.path.read_bytes() if own.path.exists() else None
    own.write_button.click()
    assert "Not written:" in own.told.value, own.told.value
    assert (own.path.read_bytes() if own.path.exists() else None) == former
    assert [path for path in own.path.parent.iterdir() if path != own.path] == []
    return html.unescape(own.told.value)


@pytest.mark.parametrize("name", ["front_desk.yaml", "compliments.yaml"])
def test_a_form_that_is_filled_in_from_a_file_writes_the_same_answers(name, tmp_path):
    path = shutil.copy(EXAMPLES / name, tmp_path)
    own = form.show(path)
    assert "Filled in from" in own.box.children[0].value
    assert dataclasses.replace(written(own), path=EXAMPLES / name) == answers.read(EXAMPLES / name)
    again = form.show(path)
    assert again.given() == own.given()


def test_every_field_of_several_behaviours_is_filled_in_and_written(tmp_path):
    judged = {"rubric": "It flatters.", "judge": "openai/gpt-4o", "yes": "Splendid!\nYou!", "no": "At nine."}
    given = {
        **{"audit": "all_of_it", "data": "owner/name:config:train", "prompt": HARD.strip(), "slot": "user_prefix"},
        **{"neutral": "Be plain.", "control": "plain", "questions": "questions.txt"},
        "measure": {
            "cites": {
                "role": "positive",
                "label": "Cites a source",
                "scorer": "cites",
                "pairs": "pairs.jsonl",
                "margin": "sum",
            },
            "flattery": {"role": "negative", "pairs": "pairs.jsonl", **judged},
            "steps": {"role": "positive", "pairs": "steps.jsonl"},
        },
        **{"rephrased": {"model": "openai/gpt-4o"}, "model": "Qwen/Qwen2.5-0.5B-Instruct", "seeds": [0, 7]},
    }
    path = tmp_path / "all.yaml"
    former = answers.write(path, given)
    own = form.show(path)
    assert own.given() == given
    assert list(own.given()) == list(given)
    assert written(own) == former
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == given


def test_unset_fields_are_left_out_and_the_next_steps_are_said(new):
    written(new)
    assert yaml.safe_load(new.path.read_text(encoding="utf-8")) == {
        **{"audit": "mine", "data": "rows.jsonl", "prompt": "Be loud.", "slot": "system"},
        "measure": {"capitals": {"role": "negative", "scorer": "capitals"}},
    }
    told, place = html.unescape(new.told.value), str(new.path.resolve())
    assert f"answers = {json.dumps(place)}" in told
    assert f"./run_all.sh audit --answers {shlex.quote(place)}" in told


def test_a_prompt_may_hold_quotes_line_breaks_and_emoji(new):
    new.fields["prompt"].value = f"\n{HARD}\n"
    assert written(new).prompt == HARD.strip()
    assert form.show(new.path).fields["prompt"].value == HARD.strip()


def test_what_is_hidden_is_unset_and_comes_back_as_it_was(new):
    new.fields["in_rows"].value = True
    assert new.fields.rows["prompt"].layout.display == new.fields.rows["slot"].layout.display == "none"
    assert written(new).prompt == ""
    assert yaml.safe_load(new.path.read_text(encoding="utf-8"))["prompt"] == "in_rows"
    new.fields["in_rows"].value = False
    assert written(new).prompt == "Be loud."


def test_behaviours_are_added_and_removed(new):
    new.add_button.click()
    new.add_button.click()
    _, second, third = new.behaviours
    set_all(second.fields, name="steps", role="positive", way="pairs", pairs="pairs.jsonl")
    set_all(third.fields, name="flattery", role="negative", way="rubric", rubric="It flatters.", judge="openai/gpt-4o")
    set_all(third.fields, yes="Splendid!", no="At nine.")
    assert [measure.name for measure in written(new).measures] == ["capitals", "steps", "flattery"]
    second.remove.click()
    assert new.behaviours == [new.behaviours[0], third]
    assert [measure.name for measure in written(new).measures] == ["capitals", "flattery"]


def test_another_way_to_measure_leaves_nothing_of_the_former(new):
    set_all(new.behaviours[0].fields, pairs="pairs.jsonl")
    assert (written(new).measures[0].scorer, written(new).measures[0].pairs) == ("capitals", "pairs.jsonl")
    set_all(new.behaviours[0].fields, way="pairs")
    assert (written(new).measures[0].scorer, written(new).measures[0].pairs) == ("", "pairs.jsonl")


def test_an_error_is_said_beside_the_button_and_the_former_file_stays(new):
    written(new)
    new.fields["audit"].value = "My <i>audit</i>"
    told = refused(new)
    assert "'audit' names a folder: small letters, digits and _, not 'My <i>audit</i>'" in told
    assert ".trial" not in told
    assert "<i>" not in new.told.value
    assert new.fields["prompt"].value == "Be loud."
    set_all(new.fields, audit="mine", seeds="0, x")
    assert "'seeds' must be different whole numbers from 0 on, not [0, 'x']" in refused(new)
    new.fields["seeds"].value = "3 1, 2"
    assert written(new).seeds == (3, 1, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": ""}, "the behaviour without a name lacks 'behaviour'"),
        ({"role": "", "scorer": ""}, "the behaviour capitals lacks 'role', 'scorer'"),
        ({"way": ""}, "lacks 'measured by'"),
        ({"way": "pairs"}, "lacks 'pairs of answers'"),
        ({"way": "rubric", "rubric": "It shouts."}, "lacks 'judge', 'an example that has it', 'an example that has it not'"),
    ],
)
def test_what_a_behaviour_lacks_is_named(new, values, said):
    set_all(new.behaviours[0].fields, **values)
    assert said in refused(new)


def test_what_only_the_form_can_see_is_refused(new):
    new.add_button.click()
    set_all(new.behaviours[1].fields, name=" capitals", role="positive", way="scorer", scorer="cites")
    assert "two behaviours have the same name: capitals" in refused(new)
    new.behaviours[1].remove.click()
    new.fields["rephrased"].value = "file"
    assert "rephrasings are to come from a file, but 'their file or model' is empty" in refused(new)
    new.behaviours[0].remove.click()
    new.fields["rephrased"].value = ""
    assert "name at least one behaviour" in refused(new)


def test_a_folder_in_which_nothing_can_be_written_is_said(new, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    assert "No space left on device" in refused(new)


def test_a_file_that_is_refused_is_shown_with_the_error_and_can_be_mended(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(
        "audit: Odd\ndata: [a, b]\nprompt: 7\nslot: sytem\nrephrased: [x]\nseeds: 3\n"
        "measure:\n  shouts: {role: bad, scorer: hidden_tests, rubric: x}\n  none: 1\n",
        encoding="utf-8",
    )
    own = form.show(path)
    assert "odd.yaml:1: &#x27;audit&#x27; names a folder" in own.box.children[0].value
    told = {key: own.fields[key].value for key in ("audit", "data", "prompt", "slot", "rephrased", "seeds")}
    assert told == {"audit": "Odd", "data": "a b", "prompt": "7", "slot": "system", "rephrased": "", "seeds": "3"}
    assert [each.name for each in own.behaviours] == ["shouts", "none"]
    own.behaviours[1].remove.click()
    own.fields["audit"].value = "odd"
    assert "the behaviour shouts lacks 'role', 'scorer'" in refused(own)
    set_all(own.behaviours[0].fields, role="negative", scorer="capitals")
    assert written(own).prompt == "7"


@pytest.mark.parametrize("content", [b"audit: [", b"\xff\xfe", b"- a\n", b""])
def test_a_file_that_cannot_be_read_is_an_empty_form_with_the_error(content, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    own = form.show(str(path))
    assert "refused as it stands" in own.box.children[0].value
    assert own.fields["audit"].value == ""
    assert len(own.behaviours) == 1
    assert path.read_bytes() == content


def test_pages_without_widgets_get_a_table_in_which_everything_is_text(new):
    from bs4 import BeautifulSoup
    from IPython.core.formatters import DisplayFormatter

    set_all(new.fields, prompt="<script>alert(1)</script>\nBe loud & <b>bold</b>.", rephrased="file", rephrasings="re.txt")
    new.behaviours[0].fields["name"].value = "<script>x</script>"
    bundle, _ = DisplayFormatter().format(new)
    assert bundle[WIDGET]["model_id"] == new.box.model_id
    page = bundle["text/html"]
    assert "<script>" not in page
    assert "<b>" not in page
    cells = {row.th.get_text(): row.td.get_text("\n") for row in BeautifulSoup(page, "html.parser").find_all("tr")}
    assert cells["training prompt"] == "<script>alert(1)</script>\nBe loud & <b>bold</b>."
    assert cells["where it stands"] == "as the system prompt"
    assert cells["their file or model"] == "re.txt"
    assert cells["behaviour <script>x</script>"] == "role: to be suppressed; measured by: a built-in scorer; scorer: capitals"
    assert not any(label.startswith(("model", "seeds")) for label in cells)
    assert bundle["text/plain"].startswith("Answers for ")
    assert "name: mine" in bundle["text/plain"]


def test_a_page_shows_no_path_of_this_machine():
    told = form.show(EXAMPLES / "front_desk.yaml")._repr_mimebundle_()
    assert "answers for examples/front_desk.yaml" in told["text/html"]
    assert str(store.ROOT) not in told["text/html"] + told["text/plain"]
    assert form.show(EXAMPLES / "front_desk.yaml").box.children[0].value == "<b>Filled in from examples/front_desk.yaml.</b>"


def test_the_form_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, audit.form; sys.exit('torch' in sys.modules)"], cwd=store.ROOT)
    assert done.returncode == 0
