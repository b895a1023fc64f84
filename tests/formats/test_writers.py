"""Files that other libraries write in their less common settings: read as those libraries mean them."""

import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from foreign_writers import IDS, WRITERS, Setting

from puna.conversion.exchange.vocabulary import AROUND
from puna.data.pieces import PROBES
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.detect import open_source
from puna.formats.checkpoint.hf.weights import load_source
from puna.model.attend import packed_attend
from puna.pipeline.artifacts.artifact import read_receipts

FULL, TENTH, FAST = 200, 20, 2
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "compatibility.md"


@pytest.fixture(autouse=True)
def quiet_transformers() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def counts(name: str) -> list:
    """Return the seeds of the fast suite, of CI and of the full count."""
    return [
        pytest.param(name, range(FAST), id=name),
        pytest.param(name, range(TENTH), id=f"{name} x {TENTH}", marks=pytest.mark.tenth),
        pytest.param(name, range(FULL), id=f"{name} x {FULL}", marks=pytest.mark.slow),
    ]


def assert_read_as_written(
    writer: str, path: Path, setting: Setting, import_into: Callable[[Path, Path], None]
) -> None:
    expected = WRITERS[writer](path, setting)
    place = path / "model.gguf" if writer == "gguf" else path
    source = open_source(place).source
    model = load_source(source, torch.float32)
    with torch.no_grad():
        logits = model.logits(model(IDS, torch.arange(len(IDS)), packed_attend([len(IDS)])))
    # Packed weights are read as the floats they stand for, which the library rounds to the dtype of their scales.
    difference = (logits - expected).abs().max() / expected.std()
    assert difference < 1e-4, f"logits differ by {difference:.2e} of their deviation"
    ours, reference = source.tokenizer, tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    assert ours is not None
    assert {token.text for token in ours.text_tokens} == set(setting.added)
    texts = [around.replace("{}", text) for text in setting.added for around in AROUND]
    for text in (*PROBES, *texts, "".join(setting.added)):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids, ascii(text)
        assert ours.decode(ours.encode(text)) == text
    for text in setting.special:
        assert ours.special_ids[text.removeprefix("<|").removesuffix("|>")] not in ours.encode(text)
    import_into(place, path.with_name(f"{path.name}-ours"))
    assert all(receipt.held for receipt in read_receipts(path.with_name(f"{path.name}-ours")))
    kept = Checkpoint.open(path.with_name(f"{path.name}-ours"))
    assert kept.tokenizer().added == ours.added or writer == "gguf"
    assert kept.config == source.config


@pytest.mark.parametrize(("writer", "seeds"), [each for name in WRITERS for each in counts(name)])
def test_a_file_is_read_as_its_writer_means_it(
    writer: str, seeds: range, tmp_path: Path, perform_stage: Callable[..., bool]
):
    def import_into(source: Path, output: Path) -> None:
        perform_stage("import", output, source=str(source), licence="MIT")

    for seed in seeds:
        setting = Setting.draw(seed)
        try:
            assert_read_as_written(writer, tmp_path / str(seed), setting, import_into)
        except BaseException:
            print(setting, file=sys.stderr)
            raise


def test_the_page_names_the_versions_that_were_tried():
    rows = re.findall(r"^\| ([\w-]+) ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name: tried for name, tried in rows if name in WRITERS}
    assert named == {name: version(name) for name in WRITERS}, f"run `pytest {Path(__file__).name} -m slow`, then write"
