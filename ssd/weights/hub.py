"""Downloads of weights from the Hugging Face Hub, kept in its cache folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

HUB = "hf://"  # begins the names of weights on the Hub
BEST = "best.pt", "best.safetensors"  # the files of a repository of which the first is used if none is named
SUFFIXES = (".pt", ".pth", ".tar", ".safetensors")  # of weights
NAME = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.*[^/]))?/?")


def local_file(source: str | PathLike[str]) -> str | PathLike[str]:
    """Downloads a file of the Hugging Face Hub, unless its cache folder has the newest version.

    Args:
        source: hf://owner/name for `best.pt` or `best.safetensors` of a repository, or else its only file of weights; hf://owner/name/file
            for another file; hf://owner/name@revision for a branch, a tag or a commit. Without internet, the file in
            the cache is used. Anything else is returned as it is.

    Returns:
        The path of the file on this machine.

    Raises:
        FileNotFoundError: there is no such repository, revision or file.
        ValueError: the name is wrong, or the repository has several files of weights.
        OSError: the download failed.
        ImportError: the package huggingface_hub is not installed.
    """
    if not str(source).startswith(HUB):
        return source
    if (parts := NAME.fullmatch(str(source))) is None:
        raise ValueError(f"{source}: write hf://owner/name, hf://owner/name/file or hf://owner/name@revision/file")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ImportError(f"{source}: needs huggingface_hub ({error}): pip install 'ssd-ext[hub]'") from None
    repo, revision, names = parts["repo"], parts["revision"], (parts["file"],) if parts["file"] else BEST

    def download(file: str) -> str:
        path: str = hub.hf_hub_download(repo, file, revision=revision)
        return path

    with _explained(str(source)):
        offline = None
        for name in names:
            try:
                if name.endswith(".xml"):  # of OpenVINO, whose weights are in a file beside it
                    download(name.removesuffix(".xml") + ".bin")
                return download(name)
            except hub.errors.RemoteEntryNotFoundError:
                pass
            except hub.errors.LocalEntryNotFoundError as error:  # the next one may be in the cache
                offline = error
        if offline is not None:
            raise offline
        files = sorted(hub.list_repo_files(repo, revision=revision))
    if parts["file"]:
        raise FileNotFoundError(f"{source}: no such file in the repository, which has {', '.join(files)}")
    weights = [name for name in files if name.endswith(SUFFIXES)]
    if not weights:
        raise FileNotFoundError(
            f"{source}: no weights ({', '.join(SUFFIXES)}) in the repository, which has {', '.join(files)}; "
            f"an exported file must be named: {HUB}{repo}/FILE"
        )
    if len(weights) > 1:
        raise ValueError(f"{source}: has several files of weights; name one of them: {', '.join(weights)}")
    with _explained(str(source)):
        return download(weights[0])


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Rewrites errors of huggingface_hub so that they name the source and say what to do.

    RemoteEntryNotFoundError passes unchanged.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.RemoteEntryNotFoundError:
        raise
    except errors.GatedRepoError:
        raise OSError(f"{source}: ask for access on the page of the repository, then run: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(f"{source}: no such repository; if it is private, run: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{source}: no such branch, tag or commit in the repository") from None
    except errors.HFValidationError as error:
        raise ValueError(f"{source}: {error}") from None
    except Exception as error:  # no internet, a full disk, or an error of the server
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise OSError(f"{source}: cannot be downloaded: {reason}") from error
