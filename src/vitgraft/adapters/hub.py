"""Adapters on the Hugging Face Hub, or a server that speaks as it does: `hf://me/birds`, `hf://me/birds@v2`.

What is published is adapter.safetensors and a model card. The header's paths of this machine are left out.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from ..common.errors import RequestError, WorkError
from ..pages.page import percent
from . import file as adapter

ADDRESS = "hf://"
FILE, CARD, PICTURE = "adapter.safetensors", "README.md", "picture.jpg"
PIPELINES = {
    "classify": "image-classification", "multilabel": "image-classification", "segment": "image-segmentation",
    "panoptic": "image-segmentation", "instance": "image-segmentation", "detect": "object-detection",
}  # fmt: skip


def fetched(address: str, *, endpoint: str | None = None, token: str | None = None) -> Path:
    """The adapter file at `hf://OWNER/NAME`, or `@REVISION` of it, in the hub's cache; RequestError where there is
    none, WorkError where it cannot be had."""
    hub = _hub()
    repository, _, revision = address.removeprefix(ADDRESS).partition("@")
    try:
        path = hub.hf_hub_download(repository, FILE, revision=revision or None, endpoint=endpoint, token=token)
    except (
        hub.errors.HFValidationError,
        hub.errors.RepositoryNotFoundError,
        hub.errors.RevisionNotFoundError,
    ) as error:
        raise RequestError(f"There is no repository {address} ({_said(error)}): give hf://OWNER/NAME.") from error
    except hub.errors.LocalEntryNotFoundError as error:
        raise WorkError(f"{address} could not be fetched ({_said(error)}): try again, with a network.") from error
    except hub.errors.EntryNotFoundError as error:
        raise RequestError(f"{address} holds no {FILE}: give a repository that `push_to_hub` made.") from error
    except (OSError, hub.errors.HfHubHTTPError) as error:
        raise WorkError(f"{address} could not be fetched ({_said(error)}): try again.") from error
    return Path(path)


def push(
    run: Any,
    repository: str,
    *,
    picture: Any = None,
    private: bool = False,
    message: str = "",
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Publishes a run as OWNER/NAME, which is made if need be; gives the address of the commit.

    picture: what the card shows, with the run's answer drawn on it; none unless given.
    """
    hub = _hub()
    tensors, header = adapter.read(run.file)
    header = {**header, "backbone": _without_paths(header["backbone"])}
    drawn = b""
    said = ""
    if picture is not None:
        answer = run.predict(picture)
        content = io.BytesIO()
        answer.draw().convert("RGB").save(content, "JPEG", quality=90)
        drawn, said = content.getvalue(), answer.text
    operations = [
        hub.CommitOperationAdd(FILE, adapter.content(tensors, header)),
        hub.CommitOperationAdd(CARD, card(header, repository, said if drawn else None).encode()),
        *([hub.CommitOperationAdd(PICTURE, drawn)] if drawn else []),
    ]
    api = hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository, operations, commit_message=message or f"{header['task']} by {header['method']}"
        )
    except hub.errors.HFValidationError as error:
        raise RequestError(f"{repository} is no name of a repository ({_said(error)}): give OWNER/NAME.") from error
    except Exception as error:  # whatever its HTTP library raises: no network, no login, no room
        raise WorkError(
            f"{repository} could not be published ({_said(error)}): log in with `hf auth login`."
        ) from error
    return str(done.commit_url)


def card(header: dict[str, Any], repository: str, said: str | None = None) -> str:
    """The model card of an adapter: what it was fitted for, what it reached and how, on what, and how to use it.

    said: the answer about the picture beside it, if there is one.
    """
    backbone, metrics, protocol = header["backbone"], header.get("metrics") or {}, header.get("protocol") or {}
    front: dict[str, Any] = {
        "library_name": "vitgraft",
        "tags": ["vitgraft", header["method"], header["task"]],
        "base_model": f"timm/{backbone['name']}",
    }
    if header["task"] in PIPELINES:
        front["pipeline_tag"] = PIPELINES[header["task"]]
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {repository.rpartition('/')[2]}", ""]
    lines += [
        f"An adapter for the frozen backbone `{backbone['name']}`: {header['task']} by `{header['method']}`, "
        f"{len(header['classes'])} {'class' if len(header['classes']) == 1 else 'classes'}.",
        "",
    ]
    if said is not None:
        lines += [f"![{said}]({PICTURE})", "", said, ""]
    if metrics.get("value") is not None:
        between = ""
        if metrics.get("interval"):
            low, high = metrics["interval"]
            between = f" (95 % interval {percent(low)} to {percent(high)})"
        lines += [
            f"**{metrics['metric']} {percent(metrics['value'], 2)}**{between} on the split `{metrics.get('split')}`, "
            "at the last epoch.",
            "",
        ]
    else:
        lines += ["Not measured: there was no split for it.", ""]
    licence = backbone.get("license") or "not stated"
    lines += [
        "| | |",
        "|---|---|",
        f"| backbone | `{backbone['name']}`, fingerprint `{backbone['fingerprint'][:16]}` |",
        f"| its licence | {licence}, which binds whoever uses this adapter too |",
        f"| method | {header['method']} {_words(header['arguments'])} |",
        f"| head | {header['head']['name']} {_words(header['head']['options'])} |",
        f"| pictures | {_words(header['preprocess'])} |",
        f"| protocol | {_words({k: v for k, v in protocol.items() if k in SHOWN})} |",
        f"| classes | {', '.join(map(str, header['classes'][:50]))}{' ...' if len(header['classes']) > 50 else ''} |",
        "",
        "```python",
        "import vitgraft",
        f'run = vitgraft.Run.from_hub("{repository}")',
        'print(run.predict("new.jpg"))',
        "```",
        "",
        f"    vitgraft predict {ADDRESS}{repository} new.jpg",
        "",
    ]
    return "\n".join(lines)


SHOWN = ("epochs", "batch_size", "lr", "weight_decay", "seed", "precision", "augmentation", "train_split")


def _words(of: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())


def _without_paths(backbone: dict[str, Any]) -> dict[str, Any]:
    """A backbone by timm's name, which others can look up, and without the file that it came from here."""
    name = backbone["name"].partition("=")[0].replace("\\", "/").rpartition("/")[2]
    return {**backbone, "name": name, "source": "see the fingerprint"}


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _hub() -> Any:
    import huggingface_hub  # timm brings it

    return huggingface_hub
