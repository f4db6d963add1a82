"""How many labels of a dataset are what the teacher saw: ``python examples/label_agreement.py JOB_FOLDER``."""

import json
import sys
import tarfile
from pathlib import Path


def main(folder: Path) -> None:
    """Prints the share of samples whose target is the teacher's top-1, for each tenth of the shards and in all."""
    agreements: list[list[bool]] = []
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            notes = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        agreements.append([note["target"] == note["teacher_top1"] for note in notes])
    if not agreements:
        sys.exit(f"{folder}: no shards/*.tar")
    every = max(1, len(agreements) // 10)
    for start in range(0, len(agreements), every):
        part = [agreed for shard in agreements[start : start + every] for agreed in shard]
        print(f"shards {start:3d} to {min(start + every, len(agreements)) - 1:3d}: {sum(part) / len(part):.3f}")
    everything = [agreed for shard in agreements for agreed in shard]
    print(f"all {len(everything):,} images: {sum(everything) / len(everything):.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
