"""The files that lie in a directory -> findings about links, code, licences and Puna's manifest. Reads no model."""

import re
from pathlib import Path

from puna.formats.checkpoint.safe_files import find_file
from puna.pipeline.artifacts import artifact, licence
from puna.pipeline.errors import ArtifactError, CheckpointError
from puna.planning.doctor.report import Report, listed

PICKLES = {".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle"}
PROGRAM_STARTS = (b"\x7fELF", b"MZ", b"#!", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
LICENCE_FILES = {"LICENSE": licence.TEXT_NAME, "USE_POLICY": licence.POLICY_NAME, "NOTICE": licence.NOTICE_NAME}
LLAMA_LICENCE = re.compile(r"^license(_name)?:\s*['\"]?llama", re.MULTILINE | re.IGNORECASE)
MAX_README_BYTES = 2**20


def check_files(directory: Path, report: Report) -> None:
    """Report unsafe links, files that are none, code and pickles."""
    code: list[str] = []
    pickles: list[str] = []
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            continue
        try:
            path = find_file(directory, entry.name)
        except CheckpointError as error:
            report.refuse("path-unsafe", entry.name, error)
            continue
        if path is None:
            remedy = "Remove the link, or copy the file it should lead to"
            report.add("path-unsafe", entry.name, "a link that leads nowhere", remedy)
        elif entry.suffix in PICKLES:
            pickles.append(entry.name)
        elif entry.suffix == ".py" or _is_program(path):
            code.append(entry.name)
    if code:
        remedy = "Read or remove it; a plain Llama needs no code, and Puna never runs any"
        report.add("code-beside", code[0], f"code beside the weights: {listed(code)}", remedy)
    if pickles:
        remedy = "Remove what the model doesn't need; keep weights as safetensors, which cannot run anything"
        report.add("pickle-beside", pickles[0], f"pickled files: {listed(pickles)}", remedy)


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(PROGRAM_STARTS)


def check_licence(directory: Path, report: Report, *, is_llama: bool) -> None:
    """Report which licence files a Llama lacks; a model is one by its vocabulary or by what its README says."""
    if not (is_llama or _says_llama(directory)):
        return
    names = [path.name for path in directory.iterdir()]
    missing = [name for name, pattern in LICENCE_FILES.items() if not any(map(pattern.fullmatch, names))]
    if missing:
        report.add(
            "licence-missing",
            ".",
            f"a Llama without {', '.join(missing)}",
            "Copy LICENSE and USE_POLICY.md from the parent model; NOTICE holds its licence's attribution line",
        )


def _says_llama(directory: Path) -> bool:
    path = find_file(directory, "README.md")
    if path is None:
        return False
    with path.open("rb") as file:
        return LLAMA_LICENCE.search(file.read(MAX_README_BYTES).decode("utf-8", "replace")) is not None


def check_manifest(directory: Path, report: Report, *, quick: bool) -> None:
    """Hold an artifact of Puna against its manifest (sizes, and hashes unless `quick`) and its receipts."""
    path = find_file(directory, artifact.MANIFEST)
    if path is None:
        return
    try:
        manifest = artifact.read_manifest(directory)
    except ArtifactError as error:
        report.refuse("manifest-foreign", artifact.MANIFEST, error)
        return
    report.facts["artifact"] = f"{manifest.kind} by {manifest.stage}, Puna {manifest.version}"
    with report.attempt("artifact-altered", artifact.MANIFEST):
        if quick and not artifact.is_whole(directory, manifest):
            raise ArtifactError(
                f"{directory} has files missing or of another size", expected="all as the manifest says"
            )
        if not quick:
            artifact.verify(directory)
    with report.attempt("receipt-not-held", "receipts"):
        for receipt in artifact.read_receipts(directory):
            if receipt.held is not True:
                what = f"{receipt.claim} is {receipt.value}; expected to hold with a tolerance of {receipt.tolerance}"
                report.add("receipt-not-held", "receipts", what, "Change the stage that made it, and make it again")
