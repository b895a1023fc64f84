"""Findings and facts about one path -> Report; KINDS lists every code of a finding with severity and meaning.

Decides no exit status of its own making: a code's severity is data, in KINDS. Prints nothing (command.py does).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from puna.pipeline.errors import PunaError
from puna.pipeline.finding import Finding, Severity

EXIT_STATUS = {"warning": 1, "broken": 2}


class Kind(NamedTuple):
    """How bad every finding of a code is, and what it says, as docs/guides/doctor.md prints it."""

    severity: Severity
    meaning: str


KINDS: dict[str, Kind] = {
    "path-missing": Kind("broken", "nothing lies at this path"),
    "path-unknown": Kind("broken", "what lies here is no checkpoint, GGUF file, adapter or Modelfile"),
    "path-pickled": Kind("warning", "Meta's own format, which is looked into by `puna import` alone"),
    "path-unsafe": Kind("broken", "a name or a link leads out of the directory, or a file is no regular file"),
    "file-unreadable": Kind("broken", "the system, or the file's format, doesn't let it be read"),
    "check-failed": Kind("broken", "the check itself failed on this input; a bug of puna doctor, please report it"),
    "code-named": Kind("broken", "`auto_map` asks programs to run Python code from the directory"),
    "code-beside": Kind("warning", "Python code or a program lies beside the weights"),
    "pickle-beside": Kind("warning", "a pickled file, which can run code when it is loaded, lies beside the weights"),
    "licence-missing": Kind("warning", "a Llama without the files that its licence asks for"),
    "artifact-altered": Kind("broken", "files differ from what Puna's manifest.json lists"),
    "manifest-foreign": Kind("warning", "a manifest.json that is not Puna's; Puna's other commands stumble over it"),
    "receipt-not-held": Kind("warning", "a claim that was measured when the artifact was made did not hold"),
    "config-missing": Kind("broken", "no config.json"),
    "config-unsupported": Kind("broken", "a setting that is wrong, or that a Llama 3.1 doesn't have"),
    "config-disagrees": Kind("broken", "two spellings of one setting say different things"),
    "rope-lost": Kind("broken", "Llama 3's context or vocabulary without its RoPE base or scaling"),
    "rope-odd": Kind("warning", "RoPE differs from the published model of this size"),
    "quantization-unknown": Kind("broken", "a quantization that Puna cannot read"),
    "dtype-differs": Kind("warning", "config.json names another dtype than the weights have"),
    "stop-missing": Kind("broken", "generation never stops at the end of a turn"),
    "stop-incomplete": Kind("warning", "a stop token other than the end of a turn is missing"),
    "stop-disagrees": Kind("warning", "config.json and generation_config.json stop at different tokens"),
    "pad-is-eos": Kind("warning", "padding with a stop token: training on it teaches the model never to stop"),
    "pad-missing": Kind("warning", "no padding token, so that training tools take the stop token for it"),
    "id-out-of-range": Kind("broken", "a special token's id has no row in the embeddings"),
    "tokenizer-missing": Kind("broken", "no tokenizer"),
    "tokenizer-differs": Kind("broken", "Llama 3's vocabulary, but ordinary text becomes other ids"),
    "split-differs": Kind("broken", "the tokenizer doesn't split text as Llama 3 does"),
    "special-missing": Kind("broken", "a special token of Llama 3.1 is not in the tokenizer"),
    "special-misplaced": Kind("broken", "a special token of Llama 3.1 has another id"),
    "special-unknown": Kind("broken", "a token that is named for a role is not in the tokenizer"),
    "special-as-text": Kind(
        "broken", "a token that structures a dialogue is marked as text, so that texts can forge it"
    ),
    "special-strips": Kind("warning", "a special token takes in the space around it, which Puna's prompts keep"),
    "added-disagrees": Kind("warning", "files beside tokenizer.json say something else about an added token"),
    "vocab-differs": Kind("broken", "tokenizer, config.json and embeddings are of different sizes"),
    "vocab-padded": Kind("warning", "embeddings have rows that no token belongs to"),
    "bos-doubled": Kind("broken", "begin_of_text stands twice before a text"),
    "bos-missing": Kind("warning", "the tokenizer doesn't put begin_of_text before a text"),
    "template-invalid": Kind("broken", "the chat template is not text or not Jinja"),
    "template-hostile": Kind(
        "broken", "the template wants what a template must not have: time, memory or Python's insides"
    ),
    "template-fails": Kind("broken", "the template cannot render an ordinary dialogue"),
    "template-differs": Kind("broken", "an ordinary dialogue is rendered otherwise than in Llama 3.1's format"),
    "template-bos-missing": Kind("broken", "the template doesn't begin with begin_of_text"),
    "template-dates": Kind("warning", "the template puts in dates by itself, as Hugging Face's stock template does"),
    "template-tools-fail": Kind("warning", "the template cannot render a dialogue with tools"),
    "template-tools-differ": Kind("warning", "dialogues with tools are rendered otherwise than Puna renders them"),
    "template-mask-empty": Kind("warning", "the template doesn't mark what the assistant says: nothing to learn from"),
    "templates-disagree": Kind("warning", "two chat templates that differ; programs disagree on which one wins"),
    "weights-missing": Kind("broken", "no weights as safetensors"),
    "weights-unreadable": Kind("broken", "a weights file that is cut short or malformed"),
    "shard-missing": Kind("broken", "the index names a file that is not there"),
    "shard-unlisted": Kind("warning", "a weights file that is not part of the model lies beside it"),
    "index-differs": Kind("broken", "the index and the files disagree on which tensor is where"),
    "index-size": Kind("warning", "the index's total_size is not the size of the weights"),
    "tensor-missing": Kind("broken", "tensors that config.json, or a GGUF file's keys, describe are not there"),
    "tensor-extra": Kind("broken", "tensors that config.json, or a GGUF file's keys, don't describe"),
    "tensor-shape": Kind("broken", "tensors of another shape than config.json, or a GGUF file's keys, describe"),
    "tensor-dtype": Kind("broken", "weights in a dtype that they cannot be computed in"),
    "dtype-mixed": Kind("warning", "weights of several dtypes"),
    "head-missing": Kind("broken", "no lm_head, and config.json doesn't tie it to the embeddings"),
    "tie-broken": Kind("broken", "config.json ties lm_head to the embeddings, but the files hold another lm_head"),
    "value-nan": Kind("broken", "a tensor holds NaN"),
    "value-infinite": Kind("broken", "a tensor holds infinity"),
    "value-zero": Kind("warning", "a tensor of zeros only"),
    "norm-zero": Kind("broken", "a norm of zeros only, after which nothing is left"),
    "value-constant": Kind("warning", "a matrix that holds one value only"),
    "value-twin": Kind("warning", "two matrices that are the same"),
    "adapter-unsupported": Kind("broken", "not a LoRA adapter, or one that cannot be merged as it stands"),
    "adapter-target": Kind("broken", "the adapter names modules or layers that its base doesn't have"),
    "adapter-rank": Kind("broken", "the adapter's matrices don't fit its rank or its base"),
    "adapter-untrained": Kind("warning", "every lora_B is zero: merging changes nothing"),
    "adapter-extra": Kind("warning", "the adapter changes more than its LoRA matrices"),
    "base-unknown": Kind("warning", "the adapter doesn't say which model it belongs to"),
    "gguf-unsupported": Kind("broken", "a GGUF file of another architecture, or with settings Puna doesn't compute"),
    "gguf-kind": Kind(
        "warning", "weights in kinds whose values Puna doesn't read, as most K-quants; other programs do"
    ),
    "modelfile-from": Kind("broken", "FROM or ADAPTER is missing or leads to nothing"),
    "modelfile-remote": Kind("warning", "FROM is an address on the network, which is not checked here"),
    "modelfile-template": Kind("warning", "no TEMPLATE, so that the program guesses one"),
    "modelfile-context": Kind("warning", "num_ctx leaves little room: what doesn't fit is dropped in silence"),
}


@dataclass
class Report:
    """What was looked at, and all that is wrong with it."""

    path: Path
    kind: str = "unknown"
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, where: str, what: str, remedy: str) -> None:
        assert code in KINDS, code
        self.findings.append(Finding(code, what, remedy, where=where, severity=KINDS[code].severity))

    def refuse(self, code: str, where: str, error: PunaError) -> None:
        """Add what another part of Puna says when it refuses the file."""
        what = error.given + (f"; expected {error.expected}" if error.expected else "")
        self.add(code, where, what, error.hint or "Copy the file again from where it came, or mend what is named here")

    @contextmanager
    def attempt(self, code: str, where: str) -> Iterator[None]:
        """Turn what is raised inside into a finding, so that no check hides another (stated fault tolerance)."""
        try:
            yield
        except PunaError as error:
            self.refuse(code, where, error)
        except OSError as error:
            reason = error.strerror or str(error)
            self.add("file-unreadable", where, reason, "Make the file readable, or copy it again")
        except Exception as error:  # NOTE: a bug, but the checks after it still say what they find.
            what = f"{type(error).__name__}: {error}"
            self.add("check-failed", where, what[:300], "Please report this, with the file if it may be shown")

    @property
    def status(self) -> int:
        """0: nothing wrong, 1: warnings, 2: broken."""
        return max((EXIT_STATUS[finding.severity] for finding in self.findings), default=0)

    def to_json(self) -> dict[str, Any]:
        findings = [
            {
                "severity": each.severity,
                "code": each.code,
                "where": each.where,
                "what": each.seen,
                "remedy": each.remedy,
            }
            for each in self.findings
        ]
        return {"path": str(self.path), "kind": self.kind, "status": self.status, "facts": self.facts,
                "findings": findings}  # fmt: skip


def listed(names: list[str], most: int = 5) -> str:
    """Name up to five of many and count the rest; odd characters are escaped."""
    shown = ", ".join(ascii(name)[1:-1][:120] for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
