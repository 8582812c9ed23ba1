"""Splits by lists and coordinates, few images of a class, and balanced batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, succeeded
from image_sets import fill

from qhdm.config import DataConfig
from qhdm.data import Batches, Dataset, load
from qhdm.data.splits import apart
from qhdm.errors import DataError

COUNTS = {"Forest": 6, "River": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = [f"{name}/{name}_{i}.png" for name, count in COUNTS.items() for i in range(count)]
    return fill(tmp_path / "set", names)


def split_of(root: Path, **options: Any) -> dict[str, set[str]]:
    """The names of the training and the held-out images."""
    dataset = load(DataConfig(root=str(root), image_size=8, **options))
    names = np.array(dataset.names)
    return {"train": {*names[~dataset.is_test]}, "test": {*names[dataset.is_test]}}


#: A list of the published kind: JPEGs, classes with other names; Forest_5 and River_3 are in none.
ROWS = {
    "train": [["Forest/Forest_0.jpg", 0, "Woods"], ["Forest/Forest_1.jpg", 0, "Woods"],
              ["River/River_0.jpg", 1, "Water"], ["Lake/Lake_9.jpg", 2, "Lake"]],
    "val": [["Forest/Forest_2.jpg", 0, "Woods"], ["River/River_1.jpg", 1, "Water"]],
    "test": [["Forest/Forest_3.jpg", 0, "Woods"], ["Forest/Forest_4.jpg", 0, "Woods"],
             ["River/River_2.jpg", 1, "Water"]],
}  # fmt: skip
EXPECTED = {
    "train": {"Forest/Forest_0.png", "Forest/Forest_1.png", "River/River_0.png"},
    "test": {
        "Forest/Forest_2.png", "Forest/Forest_3.png", "Forest/Forest_4.png",
        "River/River_1.png", "River/River_2.png",
    },
}  # fmt: skip
LISTS = {
    "rows.json": json.dumps(ROWS),
    "paths.json": json.dumps({part: [row[0] for row in rows] for part, rows in ROWS.items()}),
    "list.csv": "\ufefflabel,Path,Split\r\n" + "".join(
        f"0,2750/{row[0]},{part}\r\n".replace("/", "\\")
        for part, rows in ROWS.items() for row in rows
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_decides_the_split(name: str, root: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(LISTS[name], encoding="utf-8")
    assert split_of(root, split=str(path)) == EXPECTED
    text = succeeded(call("data", "info", root, "--split", path, "--sheet", tmp_path / "sheet.png"))
    assert "left out" in text
    assert f"split by the list {path}" in text


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        '{"train": ["Forest/Forest_0.jpg"], "train2": 3}',
        '{"train": ["Forest/Forest_0.jpg"], "other": ["Forest/Forest_1.jpg"]}',
        '{"train": ["Forest/Forest_0.jpg"], "test": ["Forest/Forest_0.tif"]}',
        '{"train": ["Lake/Lake_0.jpg"]}',
        '{"train": ["Forest/Forest_0.jpg"], "test": ["River/River_0.jpg"]}',
        '{"train": [[0, "Forest/Forest_0.jpg"]]}',
        "",
    ],
)
def test_lists_that_cannot_be_used(content: str, root: Path, tmp_path: Path) -> None:
    for name in ("list.json", "list.csv"):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match=r"^data\.(split|classes): "):
            split_of(root, split=str(path))
    with pytest.raises(DataError, match=r"^data\.split: .*none\.json"):
        split_of(root, split=str(tmp_path / "none.json"))


def test_names_of_several_images_are_refused(root: Path, tmp_path: Path) -> None:
    fill(root, ["Forest/Forest_0.bmp"])
    path = tmp_path / "list.json"
    path.write_text(LISTS["rows.json"])
    with pytest.raises(DataError, match=r"^data\.split: .*several images"):
        split_of(root, split=str(path))


def test_few_images_of_a_class_are_some_of_more(root: Path) -> None:
    whole = split_of(root, test_fraction=0.25)
    before: set[str] = set()
    for number in (1, 2, 3):
        few = split_of(root, test_fraction=0.25, per_class=number)
        assert few["test"] == whole["test"]
        assert before < few["train"] <= whole["train"]
        assert {*Counter(name.split("/")[0] for name in few["train"]).values()} == {number}
        before = few["train"]
    rare = split_of(root, test_fraction=0.25, per_class={"River": 1})
    counts = Counter(name.split("/")[0] for name in rare["train"])
    assert counts == {"Forest": 4, "River": 1}
    with pytest.raises(DataError, match=r"^data\.per_class: .*Rover.*River"):
        split_of(root, per_class={"Rover": 1})


def test_blocks_keep_neighbours_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    from band_sets import band_set

    monkeypatch.setenv("QHDM_DATA", str(tmp_path / "cache"))
    root = band_set(tmp_path / "set", {"a": 40, "b": 40}, place=True)
    options: dict[str, Any] = {
        "root": str(root), "image_size": 8, "bands": ("B04",), "range": (0, 5000)
    }  # fmt: skip
    side = 3200.0  # five images
    dataset = load(DataConfig(**options, blocks=side, test_fraction=0.25))
    order = {name: i for i, name in enumerate(dataset.names)}
    # The sorted names of a class do not count upwards: east is the number in the name.
    east = [
        500_000 + 320 + 640 * (int(name.rpartition("_")[2][:-4]) + 40 * (name[0] == "b"))
        for name in order
    ]
    blocks = [int(x // side) for x in east]
    kinds = {block: {*dataset.is_test[np.equal(blocks, block)]} for block in blocks}
    assert all(len(kind) == 1 for kind in kinds.values())
    assert 15 <= dataset.is_test.sum() <= 25
    assert {*dataset.labels[dataset.is_test]} == {0, 1}
    centres = [("EPSG:32631", float(x), 5e6) for x in east]
    own = [x for x, test in zip(east, dataset.is_test, strict=True) if not test]
    expected = [
        min(abs(x - other) for other in own)
        for x, test in zip(east, dataset.is_test, strict=True)
        if test
    ]
    assert sorted(apart(centres, dataset.is_test)) == sorted(expected)
    text = succeeded(
        call("data", "info", root, "--bands", "B04", "--range", 0, 5000, "--blocks", side,
             "--sheet", tmp_path / "sheet.png")
    )  # fmt: skip
    assert "split by blocks of 3200 m" in text
    assert "to the nearest training image" in text
    plain = band_set(tmp_path / "plain", {"a": 3})
    with pytest.raises(DataError, match=r"^data\.blocks: .*a_0\.tif"):
        load(DataConfig(**{**options, "root": str(plain)}, blocks=side))


def unbalanced() -> Dataset:
    labels = np.repeat([0, 2], [7, 3])
    return Dataset(
        name="numbered",
        class_names=("a", "b", "c"),
        images=np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1),
        labels=labels,
        names=tuple(map(str, range(10))),
        is_test=np.zeros(10, dtype=bool),
        skipped=(),
    )


def test_balanced_batches_show_all_classes_equally_often() -> None:
    batches = Batches(unbalanced(), batch_size=7, seed=3, augment=False, balance=True)
    for epoch in range(3):
        shown = np.concatenate([batches.indices(2 * epoch + i) for i in range(2)])
        counts = np.bincount(shown, minlength=10)
        assert counts[:7].tolist() == [1] * 7
        assert counts[7:].sum() == 7
        assert {*counts[7:]} <= {2, 3}
    again = Batches(unbalanced(), batch_size=7, seed=3, augment=False, balance=True)
    np.testing.assert_array_equal(again.indices(5), batches.indices(5))  # of the step alone


def test_training_balances_what_the_configuration_says(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qhdm
    from qhdm.training import loop

    made = []
    monkeypatch.setattr(loop, "Batches", lambda *a, **k: made.append(Batches(*a, **k)) or made[-1])
    config = qhdm.Config(
        data=DataConfig(root=str(root), image_size=8, balance=True, test_fraction=0),
        model=qhdm.ModelConfig(kind="unet", widths=(8, 8), head_dim=8, emb_dim=8),
        train=qhdm.TrainConfig(steps=1, batch_size=12, device="cpu"),
    )
    run = qhdm.train(config, out=tmp_path / "run", callbacks=[])
    labels = made[0].batch(0)[1]
    assert np.bincount(labels).tolist() == [6, 6]
    assert qhdm.Run.open(run.path).config.data.balance
