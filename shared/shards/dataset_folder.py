"""A finished job's folder as a dataset that other tools load as it is.

    jobs/ID/shards/*.tar    samples; the manifests beside them
    jobs/ID/index.json      shards and their sizes, as `wids` reads them
    jobs/ID/README.md       dataset card; its front matter points Hugging Face at the tars alone
    jobs/ID/grid.png        what the images look like (``shared.shards.picture_grid``)

Readers that match ``shards/*.tar`` take every file there, so ``remove_unlisted`` first clears away what
workers left that died between sealing a shard and announcing it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from shared.cards.dataset_card import dataset_card
from shared.shards.manifest import ShardManifest
from shared.specs import JobSpec
from shared.storage import Storage

INDEX_NAME = "index.json"
CARD_NAME = "README.md"


def remove_unlisted(storage: Storage, folder: str, manifests: Sequence[ShardManifest], present: Sequence[str]) -> None:
    """Delete every file of ``present`` that is of no listed shard.

    Args:
        storage: where the job's folder is.
        folder: output folder of the job.
        manifests: of all its shards; its synthesis is finished.
        present: names of files in ``shards/``, listed *before* the caller made sure that the job is still its own.
            A file that appears later may be of somebody who has taken the job over meanwhile.
    """
    shards = f"{folder}/shards"
    listed = {f"{shards}/{name}" for manifest in manifests for name in (manifest.name, manifest.sidecar_name)}
    for name in present:
        if name not in listed:
            storage.delete(name)


def write_index(storage: Storage, folder: str, manifests: Sequence[ShardManifest], *, name: str = "") -> str:
    """Write the shard index, in the order of the manifests, and return its name in the storage.

    The format is that of ``wids.ShardListDataset``; paths are relative to the index. ``filesize`` and
    ``sha256`` are extras that it ignores.
    """
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "name": name,
        "shardlist": [
            {
                "url": f"shards/{manifest.name}",
                "nsamples": manifest.images,
                "filesize": manifest.bytes,
                "sha256": manifest.sha256,
            }
            for manifest in manifests
        ],
    }
    return _put(storage, f"{folder}/{INDEX_NAME}", json.dumps(index, indent=2) + "\n")


def write_dataset_card(
    storage: Storage, folder: str, manifests: Sequence[ShardManifest], spec: JobSpec, *, grid: str | None = None
) -> str:
    """Write the dataset card and return its name in the storage. Same job, same text.

    Args:
        storage: where the job's folder is.
        folder: output folder of the job.
        manifests: of all its shards, at least one.
        spec: the job; it has a synthesis. The client's ``metadata`` and ``webhook`` are left out.
        grid: file name of the picture grid in the folder, if there is one.
    """
    return _put(storage, f"{folder}/{CARD_NAME}", dataset_card(manifests, spec, grid=grid))


def _put(storage: Storage, name: str, text: str) -> str:
    storage.put_bytes(text.encode(), name)
    return name
