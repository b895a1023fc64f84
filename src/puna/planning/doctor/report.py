"""Findings and facts about one path -> Report; KINDS lists every code of a finding with severity and meaning.

The severity of a code in KINDS decides the exit status. command.py prints the report.
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
    """Severity and meaning of a finding code, as in the table of docs/guides/doctor.md."""

    severity: Severity
    meaning: str


KINDS: dict[str, Kind] = {
    "path-missing": Kind("broken", "the path does not exist"),
    "path-unknown": Kind("broken", "neither a checkpoint, a GGUF file, an adapter nor a Modelfile"),
    "path-pickled": Kind("warning", "Meta's own format, which only `puna import` reads"),
    "path-unsafe": Kind("broken", "a name or link outside the directory, or a special file"),
    "file-unreadable": Kind("broken", "the file cannot be read or parsed"),
    "check-failed": Kind("broken", "a bug of puna doctor: the check itself failed; please report"),
    "code-named": Kind("broken", "`auto_map` asks programs to run Python code from the directory"),
    "code-beside": Kind("warning", "Python code or a program lies beside the weights"),
    "pickle-beside": Kind("warning", "a pickled file, which can run code when it is loaded, lies beside the weights"),
    "licence-missing": Kind("warning", "a Llama without the files that the licence requires"),
    "artifact-altered": Kind("broken", "files differ from what Puna's manifest.json lists"),
    "manifest-foreign": Kind("warning", "a manifest.json of another program, which other Puna commands cannot read"),
    "receipt-not-held": Kind("warning", "a receipt of the artifact does not hold"),
    "config-missing": Kind("broken", "no config.json"),
    "config-unsupported": Kind("broken", "a wrong setting, or a setting that Llama 3.1 does not have"),
    "config-disagrees": Kind("broken", "two spellings of a setting have different values"),
    "rope-lost": Kind("broken", "Llama 3's context or vocabulary without its RoPE base or scaling"),
    "rope-odd": Kind("warning", "RoPE differs from the published model of this size"),
    "quantization-unknown": Kind("broken", "a quantization that Puna cannot read"),
    "dtype-differs": Kind("warning", "the dtype in config.json differs from the dtype of the weights"),
    "stop-missing": Kind("broken", "generation never stops at the end of a turn"),
    "stop-incomplete": Kind("warning", "a stop token other than the end of a turn is missing"),
    "stop-disagrees": Kind("warning", "config.json and generation_config.json stop at different tokens"),
    "pad-is-eos": Kind("warning", "padding with a stop token: training on it teaches the model never to stop"),
    "pad-missing": Kind("warning", "no padding token; training tools then pad with the stop token"),
    "id-out-of-range": Kind("broken", "a special token's id has no row in the embeddings"),
    "tokenizer-missing": Kind("broken", "no tokenizer"),
    "tokenizer-differs": Kind("broken", "Llama 3's vocabulary, but ordinary text becomes other ids"),
    "split-differs": Kind("broken", "the tokenizer doesn't split text as Llama 3 does"),
    "special-missing": Kind("broken", "a special token of Llama 3.1 is not in the tokenizer"),
    "special-misplaced": Kind("broken", "a special token of Llama 3.1 has another id"),
    "special-unknown": Kind("broken", "the token of a role (bos, eos, pad) is not in the tokenizer"),
    "special-as-text": Kind(
        "broken", "a control token of dialogues is marked as text, so user text can forge the token"
    ),
    "special-strips": Kind("warning", "a special token strips spaces around it; Puna's prompts keep spaces"),
    "added-disagrees": Kind("warning", "other tokenizer files and tokenizer.json differ about an added token"),
    "vocab-differs": Kind("broken", "tokenizer, config.json and embeddings have different sizes"),
    "vocab-padded": Kind("warning", "embeddings have rows without a token"),
    "bos-doubled": Kind("broken", "begin_of_text is added twice before a text"),
    "bos-missing": Kind("warning", "the tokenizer doesn't put begin_of_text before a text"),
    "template-invalid": Kind("broken", "the chat template is not text or not Jinja"),
    "template-hostile": Kind("broken", "the template exceeds time or memory limits, or accesses Python internals"),
    "template-fails": Kind("broken", "the template cannot render an ordinary dialogue"),
    "template-differs": Kind("broken", "an ordinary dialogue differs from Llama 3.1's format"),
    "template-bos-missing": Kind("broken", "the template doesn't begin with begin_of_text"),
    "template-dates": Kind("warning", "the template inserts dates, as Hugging Face's stock template does"),
    "template-tools-fail": Kind("warning", "the template cannot render a dialogue with tools"),
    "template-tools-differ": Kind("warning", "dialogues with tools differ from Puna's format"),
    "template-mask-empty": Kind("warning", "the template does not mark assistant text: masked training learns nothing"),
    "templates-disagree": Kind("warning", "two different chat templates; programs disagree on the precedence"),
    "weights-missing": Kind("broken", "no weights as safetensors"),
    "weights-unreadable": Kind("broken", "a truncated or malformed weights file"),
    "shard-missing": Kind("broken", "the index names a missing file"),
    "shard-unlisted": Kind("warning", "a weights file outside the index"),
    "index-differs": Kind("broken", "index and files disagree on the file of a tensor"),
    "index-size": Kind("warning", "total_size in the index differs from the size of the weights"),
    "tensor-missing": Kind("broken", "tensors of config.json, or of a GGUF file's keys, are missing"),
    "tensor-extra": Kind("broken", "tensors outside config.json, or outside a GGUF file's keys"),
    "tensor-shape": Kind("broken", "tensors with other shapes than in config.json, or in a GGUF file's keys"),
    "tensor-dtype": Kind("broken", "weights in a dtype without arithmetic"),
    "dtype-mixed": Kind("warning", "weights of several dtypes"),
    "head-missing": Kind("broken", "no lm_head, and config.json doesn't tie it to the embeddings"),
    "tie-broken": Kind("broken", "config.json ties lm_head to the embeddings, but the files hold another lm_head"),
    "value-nan": Kind("broken", "a tensor holds NaN"),
    "value-infinite": Kind("broken", "a tensor holds infinity"),
    "value-zero": Kind("warning", "a tensor of zeros only"),
    "norm-zero": Kind("broken", "a norm of zeros only, which erases all activations"),
    "value-constant": Kind("warning", "a matrix with a single value"),
    "value-twin": Kind("warning", "two equal matrices"),
    "adapter-unsupported": Kind("broken", "no LoRA adapter, or a LoRA adapter that cannot be merged"),
    "adapter-target": Kind("broken", "the adapter names modules or layers outside the base"),
    "adapter-rank": Kind("broken", "the adapter's matrices do not fit the rank or the base"),
    "adapter-untrained": Kind("warning", "every lora_B is zero: merging changes nothing"),
    "adapter-extra": Kind("warning", "the adapter changes more than its LoRA matrices"),
    "base-unknown": Kind("warning", "the adapter does not name a base model"),
    "gguf-unsupported": Kind("broken", "a GGUF file of another architecture, or with settings Puna doesn't compute"),
    "gguf-kind": Kind(
        "warning", "weights in storage types that Puna does not read, such as most K-quants; other programs do"
    ),
    "modelfile-from": Kind("broken", "FROM or ADAPTER is missing, or the path does not exist"),
    "modelfile-remote": Kind("warning", "FROM is a network address, which is not checked"),
    "modelfile-template": Kind("warning", "no TEMPLATE; the program then guesses a template"),
    "modelfile-context": Kind("warning", "small num_ctx: longer conversations are truncated without a warning"),
}


@dataclass
class Report:
    """Facts and findings about one path.

    Example:
        >>> report = Report(Path("model"))
        >>> report.add("config-missing", "config.json", "no config.json", "Copy config.json")
        >>> report.status
        2
    """

    path: Path
    kind: str = "unknown"
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, where: str, what: str, remedy: str) -> None:
        assert code in KINDS, code
        self.findings.append(Finding(code, what, remedy, where=where, severity=KINDS[code].severity))

    def refuse(self, code: str, where: str, error: PunaError) -> None:
        """Add an error of Puna's readers as a finding."""
        what = error.given + (f"; expected {error.expected}" if error.expected else "")
        self.add(code, where, what, error.hint or "Download the file again, or repair the named part")

    @contextmanager
    def attempt(self, code: str, where: str) -> Iterator[None]:
        """Turn exceptions of the `with` block into findings, so that later checks still run."""
        try:
            yield
        except PunaError as error:
            self.refuse(code, where, error)
        except OSError as error:
            reason = error.strerror or str(error)
            self.add("file-unreadable", where, reason, "Make the file readable, or copy it again")
        except Exception as error:  # NOTE: a bug of the check; later checks still run.
            what = f"{type(error).__name__}: {error}"
            self.add("check-failed", where, what[:300], "Please report this, with the file if it may be shown")

    @property
    def status(self) -> int:
        """Exit status: 0 without findings, 1 with warnings only, 2 with broken parts."""
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
    """Return the first `most` names and the number of further names; control characters are escaped.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    shown = ", ".join(ascii(name)[1:-1][:120] for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
