"""Licences are known by their names and texts, and travel from raw files through every artifact made of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.pipeline.artifacts.artifact import read_manifest
from puna.pipeline.artifacts.licence import LICENCES, identify, recognize

MIT_BODY = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"

pytestmark = pytest.mark.usefixtures("no_picture")


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("CC0", "cc0-1.0"),
        ("Apache-2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("Llama 3.1", "llama3.1"),
        ("Llama 3.3 Community License Agreement", "llama3.3"),
        ("proprietary", "own"),
        ("terms of Acme", "terms of Acme"),
        ("llama2", "llama2"),
    ],
)
def test_a_licence_is_known_by_the_names_that_people_give_it(name: str, id: str):
    assert identify(name) == id


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (" LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\n Llama 3.1 Version Release Date: July 23, 2024", {"llama3.1"}),
        ("**LLAMA 3.3 COMMUNITY LICENSE AGREEMENT**\n\n Llama 3.3 Version", {"llama3.3"}),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n\nMeta Llama 3 Version", {"llama3"}),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version", {"unknown"}),
        ("                 Apache License\n           Version 2.0, January 2004\n", {"apache-2.0"}),
        ("Copyright (c) 2018 Somebody\n\n" + MIT_BODY, {"mit"}),
        ("# The MIT License (MIT)\n", {"mit"}),
        ("Redistribution and use in source and binary forms ... Neither the name of", {"bsd-3-clause"}),
        ("Redistribution and use in source and binary forms, with or without", {"unknown"}),
        ("Attribution 4.0 International\n=====", {"cc-by-4.0"}),
        ("Attribution-ShareAlike 4.0 International", {"cc-by-sa-4.0"}),
        ("Attribution-NonCommercial-ShareAlike 4.0 International", {"cc-by-nc-sa-4.0"}),
        ("Creative Commons Legal Code\n\nCC0 1.0 Universal", {"cc0-1.0"}),
        ("Feather is released under the Apache License 2.0 (apache-2.0).", {"apache-2.0"}),
        ("Feather is released under the Llama 3.1 Community License.", {"unknown"}),  # which is to be there itself
        ("You may look, but not touch.", {"unknown"}),
        ("", {"unknown"}),
    ],
)
def test_a_text_is_known_by_its_title_or_its_first_words(tmp_path: Path, text: str, ids: set[str]):
    (tmp_path / "LICENSE.txt").write_text(text)
    assert recognize(tmp_path) == ids


@pytest.mark.parametrize(
    ("head", "ids"),
    [
        ("license: llama3.2", {"llama3.2"}),
        ("license: other\nlicense_name: llama3.1\nlicense_link: LICENSE", {"llama3.1"}),
        ("language:\n- en\nlicense:\n- cc-by-4.0\n- mit\ntags: []", {"cc-by-4.0", "mit"}),
        ("license: [apache-2.0, 'mit']", {"apache-2.0", "mit"}),
        ("license: other", {"unknown"}),
        ("license: mit\nlicense_name: house-rules", {"mit", "unknown"}),
        ("license: other\nlicense_name: proprietary", {"unknown"}),
        ("language: en", set()),
    ],
)
def test_a_card_tells_the_licence_in_its_front_matter(tmp_path: Path, head: str, ids: set[str]):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n\nlicense: mit\n")
    assert recognize(tmp_path) == ids


def test_a_file_has_the_licence_that_lies_beside_it_and_a_notice_tells_too(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text("{}")
    assert recognize(tmp_path / "data.jsonl") == set()
    (tmp_path / "NOTICE").write_text(LICENCES["llama3.1"].notice)
    (tmp_path / "LICENCE.md").write_text("MIT License")
    (tmp_path / "licence_plates.csv").write_text("B-AR 1")
    assert recognize(tmp_path / "data.jsonl") == recognize(tmp_path) == {"llama3.1", "mit"}


@pytest.mark.parametrize(
    ("id", "name", "is_allowed"),
    [
        ("llama3.1", "Llama-Acme-1B", True),
        ("llama3.1", "Llama3.1-Acme", True),
        ("llama3.1", "Acme-Llama-1B", False),
        ("llama3.1", "llama-acme", False),
        ("llama3.1", "Llamazing-1B", False),
        ("llama3", "Llama-3-Acme-8B", True),
        ("llama3", "Llama-Acme-8B", False),
        ("llama3", "Llama-31-Acme", False),
        ("apache-2.0", "Acme-1B", True),
    ],
)
def test_a_name_has_to_begin_as_the_licence_says(id: str, name: str, is_allowed: bool):
    assert LICENCES[id].allows_name(name) == is_allowed


def test_obligations_travel_from_base_teacher_and_data_to_all_that_is_made_of_them(
    tmp_path: Path,
    checkpoint_path: Path,
    dataset_path: Path,
    training: dict[str, Any],
    perform_stage: Callable[..., bool],
):
    base, teacher = (shutil.copytree(checkpoint_path, tmp_path / name) for name in ("base", "teacher"))
    (base / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    (teacher / "README.md").write_text("---\nlicense: llama3.3\n---\n")
    made = {name: tmp_path / "made" / name for name in ("data", "sft", "scratch", "student", "int8")}
    perform_stage("ingest", made["data"], source=str(dataset_path), format="records", licence="CC BY 4.0")
    rest = {key: value for key, value in training.items() if key not in ("size", "tokenizer")}
    settings = {**rest, "data": [str(made["data"])], "steps": 1}
    scratch = {key: training[key] for key in ("size", "tokenizer")}
    perform_stage("sft", made["sft"], **settings, start=str(base))
    perform_stage("distill", made["student"], **settings, start=str(made["sft"]), teacher=str(teacher))
    measure = {"num_tokens": 50, "tolerance_kl": 9, "min_agreement": 0}
    perform_stage("quantize", made["int8"], checkpoint=str(made["student"]), data=[str(made["data"])], **measure)
    perform_stage("sft", made["scratch"], **settings, **scratch)
    assert {name: read_manifest(path).licences for name, path in made.items()} == {
        "data": ["cc-by-4.0"],
        "sft": ["cc-by-4.0", "llama3.1"],
        "student": ["cc-by-4.0", "llama3.1", "llama3.3"],
        "int8": ["cc-by-4.0", "llama3.1", "llama3.3"],
        "scratch": ["cc-by-4.0", "unknown"],  # nobody said under which terms the raw tokenizer is
    }


def test_what_is_stated_names_raw_files_that_nobody_knows_but_does_not_overrule_a_text(
    tmp_path: Path, copy_of_dataset: Path, perform_stage: Callable[..., bool]
):
    def licences(**settings: Any) -> list[str]:
        perform_stage("ingest", tmp_path / "made", source=str(copy_of_dataset), format="records", **settings)
        return read_manifest(tmp_path / "made").licences

    assert licences() == ["unknown"]
    (copy_of_dataset / "LICENSE").write_text("Our house rules")
    assert licences() == ["unknown"]
    assert licences(licence="own") == ["own"]
    (copy_of_dataset / "LICENSE").write_text("Attribution-NonCommercial 4.0 International")
    assert licences(licence="MIT") == ["cc-by-nc-4.0", "mit"]


def test_a_records_own_licence_is_inherited(tmp_path: Path, perform_stage: Callable[..., bool]):
    rows = [{"text": "One."}, {"text": "Two.", "licence": "CC BY-SA 4.0"}]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    perform_stage("ingest", tmp_path / "data", source=str(tmp_path / "raw"), format="records", licence="own")
    assert read_manifest(tmp_path / "data").licences == ["cc-by-sa-4.0", "own"]
