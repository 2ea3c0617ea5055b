import json
from pathlib import Path

import pytest

from w2sd_video.messages import ConfigError
from w2sd_video.settings.prompt_files import PromptLine, read_prompt_file


def read(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return [
        (line.prompt, line.seed, line.negative_prompt, line.name, line.inputs, line.about)
        for line in read_prompt_file(str(path))
    ]


def plain(prompt):
    return (prompt, None, None, None, {}, {})


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    text = "\ufeff# a comment\n\na red circle\n  a blue square  \n"
    assert read(tmp_path, "prompts.txt", text) == [plain("a red circle"), plain("a blue square")]


def test_json_lines_say_more_of_a_prompt(tmp_path):
    lines = [
        {"prompt": "one", "seed": 7, "negative_prompt": "blur", "name": "first", "inputs": {"image": "a.png"}},
        {"prompt": "two", "inputs.image": "b.png", "dimension": ["color"]},
        "three",
    ]
    expected = [
        ("one", 7, "blur", "first", {"image": str(tmp_path / "a.png")}, {}),
        ("two", None, None, None, {"image": str(tmp_path / "b.png")}, {"dimension": ["color"]}),
        plain("three"),
    ]
    assert read(tmp_path, "prompts.jsonl", "\n".join(json.dumps(line) for line in lines)) == expected


def test_a_table_has_a_column_for_each(tmp_path):
    text = 'prompt,seed,name,inputs.image\n"a circle, red",3,first,a.png\n"of two\nlines",,,\n'
    assert read(tmp_path, "prompts.csv", text) == [
        ("a circle, red", 3, None, "first", {"image": str(tmp_path / "a.png")}, {}),
        plain("of two\nlines"),
    ]


def test_vbenchs_list_is_read_with_what_it_says_beside(tmp_path):
    about = {"dimension": ["spatial_relationship"], "auxiliary_info": {"spatial_relationship": {"object_a": "dog"}}}
    assert read(tmp_path, "VBench_full_info.json", json.dumps([{"prompt_en": "a dog on the left"} | about])) == [
        ("a dog on the left", None, None, None, {}, about)
    ]


def test_the_number_of_a_class_is_a_prompt(tmp_path):
    assert read(tmp_path, "classes.jsonl", '{"prompt": 207}') == [plain("207")]


def test_what_a_sample_depends_on_besides_is_not_plain():
    assert PromptLine("a", name="n", about={"x": 1}).is_plain
    assert not PromptLine("a", seed=1).is_plain and not PromptLine("a", negative_prompt="b").is_plain
    assert not PromptLine("a", inputs={"image": "a.png"}).is_plain


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", "# nothing\n", "holds no prompt"),
        ("one.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2: not JSON"),
        ("one.jsonl", '{"seed": 1}', "line 1: must have one prompt"),
        ("one.jsonl", '{"prompt": "a", "prompt_en": "b"}', "must have one prompt"),
        ("one.jsonl", '{"prompt": "a", "sede": 1}', "unknown key 'sede'; did you mean 'seed'?"),
        ("one.jsonl", '{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        ("one.jsonl", '{"prompt": "a", "seed": -1}', "seed -1: must be a whole number"),
        ("one.jsonl", '{"prompt": "a", "seed": 1.5}', "seed 1.5: must be a whole number"),
        ("one.jsonl", '{"prompt": "a", "seed": true}', "seed True: must be a whole number"),
        ("one.jsonl", '{"prompt": "a", "name": 3}', "name 3: must be a text"),
        ("one.jsonl", '{"prompt": "a", "inputs": "b.png"}', "must be a mapping"),
        ("one.jsonl", "[1]", "must be a prompt or an object with one"),
        ("one.csv", "text;seed\na;1\n", "one of them must be prompt"),
        ("one.csv", "prompt,seed\na\n", "more or fewer columns"),
        ("one.csv", "prompt,seed\na,1,2\n", "more or fewer columns"),
        ("one.csv", 'prompt\n"a\n', "not CSV"),
        ("one.csv", f"prompt,seed\na,{'9' * 5000}\n", "…: must be a whole number from 0 to 2**62"),
        ("one.csv", f"prompt,seed\na,{2**63}\n", f"seed {2**63}: must be a whole number from 0 to 2**62"),
        ("one.jsonl", '{"prompt": "a", "seed": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ("one.json", '{"prompt": "a"}', "must be a list of prompts"),
    ],
)
def test_what_has_no_meaning_is_refused_with_its_place(name, text, said, tmp_path):
    with pytest.raises(ConfigError, match="^prompts .*" + name) as error:
        read(tmp_path, name, text)
    assert said in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"prompts .*none\.txt: cannot be read: No such file"):
        read_prompt_file(str(Path(tmp_path, "none.txt")))
