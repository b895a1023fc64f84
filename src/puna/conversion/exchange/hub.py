"""A model's name and revision on the Hugging Face hub -> files in the local cache of huggingface_hub."""

import re
from pathlib import Path
from typing import NamedTuple

from puna.pipeline.artifacts import licence
from puna.pipeline.errors import CheckpointError, ConfigError

TERMS = (*(f"{start}*" for start in licence.NAME_STARTS), "README.md")
# Pickles, code, weights of other programs and pictures are never downloaded.
WANTED = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "adapter_config.json", *TERMS,
)  # fmt: skip
NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


class Download(NamedTuple):
    """Path of the downloaded files and the commit on the hub."""

    path: Path
    commit: str


def download(name: str, *, revision: str = "main", file: str = "") -> Download:
    """Download weights, tokenizer and licence of a repository, or a single `file` and the licence; cached files stay.

    Shows the hub's own progress bars and resumes interrupted downloads. Raises ConfigError or CheckpointError: unknown
    name, no access, no network.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"hub = {name!a}", expected="OWNER/NAME")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ModuleNotFoundError:
        raise ConfigError("downloading needs huggingface_hub", hint="pip install 'puna[hub]'") from None
    patterns: list[str] = [file, *TERMS] if file else list(WANTED)
    is_offline = constants.HF_HUB_OFFLINE
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=is_offline,
        )
    except errors.GatedRepoError:
        hint = "Accept the licence on the model's page, then log in with `hf auth login` or set HF_TOKEN"
        raise CheckpointError(f"{name} is only for those who accepted its licence", hint=hint) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise CheckpointError(f"the hub has no {name} at {revision!a}", hint="Check spelling and access") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        hint = "Fetch it once without --offline" if is_offline else "Check the network"
        raise CheckpointError(f"{name} at {revision!a} is not on this machine", hint=hint) from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{name} cannot be fetched: {error}", hint="The same command resumes") from None
    path = Path(folder)
    if file and not (path / file).exists():
        raise CheckpointError(f"{name} has no file {file!a} at {revision!a}", expected="a file of the repository")
    return Download(path / file if file else path, path.name)
