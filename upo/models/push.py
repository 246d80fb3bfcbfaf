"""Exported folders as repositories of the Hugging Face hub."""

import re
from pathlib import Path

from upo.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_push(name: str) -> None:
    """Asks the hub who is logged in: before a long export, not behind it.

    Raises:
        UserError: a name that is not OWNER/MODEL, nobody logged in, or a hub that cannot be reached.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--push {name}: name the repository as OWNER/MODEL")
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as error:  # from no network to a token that has expired: each has a class of its own
        raise UserError(
            f"--push {name}: the hub knows no user here ({_first_line(error)}); log in by `hf auth login`, "
            "or set HF_TOKEN"
        ) from error


def push(folder: Path, name: str, public: bool) -> str:
    """Uploads a folder as one commit; a repository that is not there is created. Returns its address.

    Args:
        name: OWNER/MODEL.
        public: whether a new repository can be seen by everybody; one that is there stays as it is.

    Raises:
        UserError: the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(name, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model exported by upo")
    except Exception as error:
        raise UserError(
            f"--push {name}: the hub did not take it ({_first_line(error)}); the model is in {folder}, and "
            f"`hf upload {name} {folder}` tries again"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:200]
