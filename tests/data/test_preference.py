"""Preference data: TRL's spelling is read, what does not fit is refused by file, row and field."""

import json
from pathlib import Path
from typing import Any

import pytest
from preference_rows import row, write

from puna.data.dataset import Dataset
from puna.data.preference import Preference
from puna.pipeline.errors import ChatError
from puna.training.reports.rows import describe_rows


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_row_comes_back_as_it_was_written():
    for n in range(8):
        preference = Preference.from_json(row(n))
        assert preference.to_json() == row(n)
        assert Preference.from_json(preference.to_json()) == preference


def test_a_prompt_that_both_answers_begin_with_is_found():
    prompt = [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Hello."), said("user", "Open?")]
    both = {"chosen": [*prompt, said("assistant", "Until six.")], "rejected": [*prompt, said("assistant", "No.")]}
    apart = {name: [answer[-1]] for name, answer in both.items()}
    assert Preference.from_json(both) == Preference.from_json({"prompt": prompt, **apart})


def test_answers_that_begin_alike_keep_what_the_assistant_said():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "find", "arguments": {"n": 1}}}]}
    begun = [said("user", "Where is it?"), call]
    both = {
        name: [*begun, said("tool", text), said("assistant", text)]
        for name, text in (("chosen", "a"), ("rejected", "b"))
    }
    preference = Preference.from_json(both)
    assert [message.role for message in preference.prompt.messages] == ["user"]
    assert [message.role for message in preference.chosen] == ["assistant", "tool", "assistant"]


def test_an_edited_answer_is_better_than_both_whatever_the_strength():
    weak = Preference.from_json(row(8))
    assert weak.strength == "slightly better" and weak.edited
    assert [(each.answer, each.num_outranked) for each in weak.ranking(["better"])] == [
        (weak.edited, 2),
        (weak.chosen, 0),
        (weak.rejected, 0),
    ]
    assert [each.num_outranked for each in weak.ranking()] == [2, 1, 0]
    assert Preference.from_json(row(2)).ranking(["better"]) == []
    unknown = Preference.from_json({name: value for name, value in row(2).items() if name != "strength"})
    assert [each.num_outranked for each in unknown.ranking(["better"])] == [1, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chosen": None}, "chosen is missing; expected a list of messages"),
        ({"rejected": "No."}, "rejected is str; expected a list of messages. `puna ingest --format preferences`"),
        ({"rejected": []}, "rejected of 0 messages; expected messages that begin and end with the assistant"),
        ({"chosen": [said("user", "Hi")]}, "chosen of 1 messages; expected messages that begin and end with"),
        ({"chosen": [{"role": "assistant", "content": 3}]}, r"chosen: messages\[0\].content is int"),
        ({"prompt": [said("assistant", "Hi")]}, "a prompt without a message to answer"),
        ({"prompt": None}, "chosen and rejected begin with different messages"),
        ({"rejected": row(0)["chosen"]}, "chosen and rejected are the same"),
        ({"edited": row(0)["chosen"]}, "edited is one of the other answers"),
        ({"strength": "much better"}, "strength 'much better'; expected one of significantly better, better, slightly"),
        ({"strength": 2}, "strength is int; expected str"),
        ({"score_chosen": 9.5}, "unknown field score_chosen; expected only prompt, chosen"),
        ({"tools": [{"type": "x"}]}, r"prompt: tools\[0\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_row(tmp_path: Path, change: dict[str, Any], message: str):
    dataset = Dataset([write(tmp_path, [row(0), {**row(0), **change}])], ["preferences"])
    assert isinstance(dataset[0], Preference)
    with pytest.raises(ChatError, match=rf"preferences.jsonl row 2: {message}"):
        dataset[1]


def test_preferences_are_no_text_unless_asked_for(tmp_path: Path, dataset_path: Path):
    write(tmp_path, [row(0)])
    (tmp_path / "conversations.jsonl").write_text((dataset_path / "conversations.jsonl").read_text())
    assert len(Dataset([tmp_path])) == 12
    assert len(Dataset([tmp_path], ["preferences"])) == 1
    assert json.loads((tmp_path / "preferences.jsonl").read_text())["strength"] == "significantly better"


def test_pairs_repeat_by_what_they_say_whatever_they_are_called(tmp_path: Path):
    rows = [row(n % 3) | {"id": f"row {n}", "metadata": {"source": f"file {n}"}} for n in range(12)]
    rows[11] |= {"strength": "better"}
    assert describe_rows(Dataset([write(tmp_path / "copies", rows)], ["preferences"]))["copies_share"] == pytest.approx(
        9 / 12
    )
    others = [row(0) | {"chosen": [{"role": "assistant", "content": f"Order {n}."}]} for n in range(6)]
    others += [row(0) | {"rejected": [{"role": "assistant", "content": f"No {n}."}]} for n in range(6)]
    assert describe_rows(Dataset([write(tmp_path / "others", others)], ["preferences"]))["copies_share"] == 0


def test_conversations_repeat_whatever_the_ids_of_their_calls_are(tmp_path: Path):
    rows = []
    for n in range(4):
        call = {"id": f"call_{n}", "type": "function", "function": {"name": "find", "arguments": {"order": "1"}}}
        messages = [said("user", "Where?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": f"call_{n}", "content": "{}"}, said("assistant", "Here.")]
        rows.append({"messages": messages, "id": f"row {n}"})
    (tmp_path / "conversations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert describe_rows(Dataset([tmp_path], ["conversations"]))["copies_share"] == pytest.approx(3 / 4)
