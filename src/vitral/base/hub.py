"""The Hugging Face Hub: from a repository's id to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from vitral.errors import HubError

__all__ = ["fetch_repository", "looks_like_repository"]

_ID = re.compile(r"(?:hf-hub:|hf_hub:)?(?P<id>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_FILES = ["*.json", "*.safetensors"]
_PICKLES = ["pytorch_model*.bin"]


def looks_like_repository(text: str) -> bool:
    """Whether a text has the form of a repository's id, "owner/name", optionally with "@revision"."""
    return _ID.fullmatch(text) is not None


def fetch_repository(text: str) -> Path:
    """A folder with a repository's configuration and weights, from the cache or the network.

    Safetensors are preferred; pickles are fetched only where there is nothing else. `HF_HUB_OFFLINE=1` keeps to the
    cache.

    Args:
        text: "owner/name" or "owner/name@revision".

    Raises:
        HubError: no such repository, no permission, no network, or offline and not in the cache.
    """
    import huggingface_hub
    from huggingface_hub import errors

    match = _ID.fullmatch(text)
    if match is None:
        raise HubError(f"{text!r} is not a Hub id; expected owner/name.")
    name, revision = match["id"], match["revision"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*_FILES, *_PICKLES]))
    except errors.RevisionNotFoundError as error:
        raise HubError(f"The Hub's repository {name} has no revision {revision!r}.") from error
    except errors.GatedRepoError as error:
        raise HubError(f"{name} is gated: accept its terms on the Hub and log in with `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"The Hub has no repository {name}, or it is private and needs `hf auth login`.") from error
    except Exception as error:  # the client raises many kinds for one fact: the network did not deliver
        if not isinstance(error, OSError | ValueError | RuntimeError | errors.HfHubHTTPError | _http_errors()):
            raise
        raise HubError(
            f"There is no folder {name} here; as a name on the Hub, it is not in this machine's cache and the Hub cannot be "
            f"reached ({type(error).__name__}). Give the path of a folder or file, or check the network and HF_HUB_OFFLINE."
        ) from error
    return folder


def _http_errors() -> type[Exception]:
    """The root of the errors of the client's HTTP library, which depends on the client's version."""
    try:
        import httpx
    except ImportError:
        return OSError
    return httpx.HTTPError
