"""The card of a dataset, whatever the job is called and however many classes it has."""

import json
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from shared.cards.dataset_card import dataset_card
from shared.text import visible
from tests.shared.samples import batch, shard
from tests.shared.shards.test_dataset_folder import SPEC


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    _, manifest = shard(tmp_path, batch(6))
    spec = SPEC.model_copy(update={"teacher": SPEC.teacher.model_copy(update={"num_classes": 1000})})
    assert "1,000 classes with 0 to 2 images each, 0 at the median" in dataset_card([manifest], spec)


def test_a_job_without_a_dataset_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset"):
        dataset_card([], SPEC.model_copy(update={"synthesis": None}))


@pytest.mark.parametrize(
    "name",
    [
        "🦊 foxes",
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)> & co",
        '"quoted" \\ back: #1 - [x](javascript:alert(1)) `code` *bold* _it_',
        "---\ninjected: yes\n---",
        "```\n<b>out of the block</b>",
        "\x1b[2J\x85\x9b1m\u202egnp",
        "| a | table |",
    ],
)
def test_the_card_shows_a_name_as_it_is_written_and_obeys_nothing(tmp_path: Path, name: str) -> None:
    manifests = [shard(tmp_path, batch(4))[1]]
    card = dataset_card(manifests, SPEC.model_copy(update={"name": name}))
    card.encode()  # no half characters
    assert visible(card) == card
    _, front, body = card.split("\n---\n", 2) if card.count("\n---\n") > 1 else ("", *card[4:].split("\n---\n", 1))
    title = visible(" ".join(name.split()))
    assert yaml.safe_load(front)["pretty_name"] == title
    assert "injected" not in yaml.safe_load(front)
    tokens = MarkdownIt("commonmark").parse(body)
    assert [token.type for token in tokens if "html" in token.type] == []
    heading = tokens[1]
    assert heading.children is not None
    assert "".join(child.content for child in heading.children) == title
    assert {child.type for child in heading.children} <= {"text", "text_special"}
    (block,) = [token.content for token in tokens if token.info == "json"]
    assert json.loads(block)["name"] == name
    assert "<" not in block
