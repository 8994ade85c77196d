"""Settings in Consul KV over releases: keys follow their files, and edits made by hand move to today's names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from stack.cluster.kv import seed as kv_seed
from stack.cluster.kv.seed import KvSeed
from stack.cluster.planned_changes import Change, apply_all
from stack.console import StackError

KEY = "config/order-service"
OLD = {"log_level": "INFO", "send_seconds": 10.0, "users": {"retry": {"attempts": 3}, "breaker": {"window": 1.5}}}
NEW = {"log_level": "INFO", "outbox_seconds": 10.0, "users": {"attempts": 3}, "surplus": 1}
MIGRATION = {
    KEY: {
        "moves": [
            {"from": "send_seconds", "to": "outbox_seconds", "seed": 10.0},
            {"from": "users.retry.attempts", "to": "users.attempts", "seed": 3},
        ],
        "drops": [{"path": "users.breaker.window", "seed": 1.5}],
    }
}


class Kv:
    """The part of Consul's KV that a deploy uses: values with flags, written by check and set."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None

    def get(self, key: str) -> tuple[str, dict[str, Any] | None]:
        return "1", self.found

    def put(self, key: str, text: str, cas: int = 0, flags: int = 0) -> bool:
        index = self.found["ModifyIndex"] if self.found else 0
        if cas == index:
            self.found = {"Value": text.encode(), "Flags": flags, "ModifyIndex": index + 1}
        return cas == index

    def edit(self, settings: object) -> None:
        """Writes a value as an operator does in the UI: the flags stay."""
        text = settings if isinstance(settings, str) else json.dumps(settings)
        assert self.put(KEY, text, self.index(), self.found["Flags"] if self.found else 0)

    def index(self) -> int:
        """Returns the index that a write has to name."""
        return int(self.found["ModifyIndex"]) if self.found else 0

    def settings(self) -> Any:
        assert self.found
        return json.loads(self.found["Value"])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kv_seed, "FILES", tmp_path)
    (tmp_path / "kv" / "config").mkdir(parents=True)
    (tmp_path / "kv-migrations").mkdir()
    (tmp_path / "kv-migrations" / "001-names.json").write_text(json.dumps(MIGRATION))
    return tmp_path


@pytest.fixture
def kv(files: Path) -> Kv:
    """A Consul with the seed of the old release, and today's files."""
    write(files, OLD)
    made = Kv()
    apply_all(KvSeed(made).changes())
    write(files, NEW)
    return made


def write(files: Path, settings: object) -> None:
    (files / "kv" / f"{KEY}.json").write_text(json.dumps(settings))


def deploy(kv: Kv) -> list[Change]:
    changes = list(KvSeed(kv).changes())
    apply_all(changes)
    return changes


def notes(kv: Kv) -> list[str]:
    return [note for change in deploy(kv) for note in change.notes]


def test_a_change_by_hand_that_was_copied_into_the_file_makes_the_key_follow_its_file_again(
    kv: Kv, files: Path
) -> None:
    deploy(kv)
    kv.edit(NEW | {"outbox_seconds": 12})
    assert KvSeed(kv).changed_by_hand() == [KEY]
    write(files, NEW | {"outbox_seconds": 12})
    assert notes(kv) == [f"{KEY}: the value equals its file and follows it again"]
    assert (deploy(kv), KvSeed(kv).changed_by_hand()) == ([], [])
    write(files, NEW | {"outbox_seconds": 15})
    deploy(kv)
    assert kv.settings() == NEW | {"outbox_seconds": 15}


@pytest.mark.parametrize("text", [json.dumps(OLD) + "\n", json.dumps(OLD, indent=4), json.dumps(OLD, sort_keys=True)])
def test_a_different_format_of_the_same_json_is_no_change_by_hand(kv: Kv, files: Path, text: str) -> None:
    write(files, OLD)
    kv.edit(text)
    assert KvSeed(kv).changed_by_hand() == []
    write(files, OLD | {"log_level": "DEBUG"})
    assert KvSeed(kv).changed_by_hand() == []
    deploy(kv)
    assert kv.settings() == OLD | {"log_level": "DEBUG"}


@pytest.mark.parametrize("before", ["hello", "hello\n", "hello\r\n", "two\nlines\n"])
@pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
def test_a_line_end_at_the_end_of_plain_text_is_no_change_by_hand(
    kv: Kv, files: Path, before: str, ending: str
) -> None:
    file = files / "kv" / f"{KEY}.json"
    file.write_text(before, newline="")
    deploy(kv)
    kv.edit(before.rstrip("\r\n") + ending)
    assert (deploy(kv), KvSeed(kv).changed_by_hand()) == ([], [])
    file.write_text("good morning")
    assert KvSeed(kv).changed_by_hand() == []
    deploy(kv)
    assert kv.found is not None
    assert kv.found["Value"] == b"good morning"


@pytest.mark.parametrize("text", ["hello ", " hello", "hel\nlo", "hello\nthere\n"])
def test_any_other_difference_of_plain_text_is_a_change_by_hand(kv: Kv, files: Path, text: str) -> None:
    (files / "kv" / f"{KEY}.json").write_text("hello")
    deploy(kv)
    kv.edit(text)
    assert KvSeed(kv).changed_by_hand() == [KEY]


def test_a_number_in_place_of_a_boolean_is_a_change_by_hand(kv: Kv, files: Path) -> None:
    write(files, NEW | {"surplus": True})
    deploy(kv)
    kv.edit(NEW | {"surplus": 1})
    assert KvSeed(kv).changed_by_hand() == [KEY]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_key_with_the_checksum_of_an_earlier_release_follows_its_file(
    kv: Kv, files: Path, indent: int | None
) -> None:
    """Earlier releases stored the checksum of the text instead of that of the JSON value."""
    text = json.dumps(NEW, indent=indent)
    (files / "kv" / f"{KEY}.json").write_text(text)
    assert kv.put(KEY, text, kv.index(), zlib.crc32(text.encode()))
    assert (deploy(kv), KvSeed(kv).changed_by_hand()) == ([], [])
    write(files, NEW | {"outbox_seconds": 15})
    deploy(kv)
    assert kv.settings() == NEW | {"outbox_seconds": 15}


def test_an_unchanged_key_follows_its_file_without_a_note(kv: Kv) -> None:
    assert notes(kv) == []
    assert kv.settings() == NEW
    assert deploy(kv) == []
    assert KvSeed(kv).changed_by_hand() == []


def test_a_value_changed_by_hand_moves_to_its_new_name(kv: Kv) -> None:
    kv.edit(OLD | {"send_seconds": 12})
    (change,) = deploy(kv)
    assert kv.settings() == NEW | {"outbox_seconds": 12}
    assert change.notes[0] == f"{KEY}: send_seconds=12 was changed by hand and is now outbox_seconds"
    assert '-  "send_seconds": 12,' in change.diff()
    assert '+  "outbox_seconds": 12,' in change.diff()


def test_a_dropped_setting_is_removed_and_named_if_it_was_changed_by_hand(kv: Kv) -> None:
    kv.edit(OLD | {"log_level": "DEBUG", "users": {"retry": {"attempts": 3}, "breaker": {"window": 3}}})
    assert f"{KEY}: users.breaker.window=3 was changed by hand and is no longer a setting: dropped" in notes(kv)
    assert kv.settings() == NEW | {"log_level": "DEBUG"}


def test_settings_that_were_not_changed_by_hand_follow_the_file(kv: Kv, files: Path) -> None:
    write(files, NEW | {"outbox_seconds": 11.0})
    kv.edit(OLD | {"log_level": "DEBUG"})
    assert notes(kv) == [
        f"{KEY}: settings that were not changed by hand follow the file: 2 renamed, 1 no longer settings, 1 new"
    ]
    assert kv.settings() == NEW | {"log_level": "DEBUG", "outbox_seconds": 11.0}


def test_a_second_deploy_changes_nothing_and_the_key_still_counts_as_changed_by_hand(kv: Kv) -> None:
    kv.edit(OLD | {"send_seconds": 12})
    deploy(kv)
    assert deploy(kv) == []
    assert KvSeed(kv).changed_by_hand() == [KEY]


def test_a_key_follows_its_file_again_once_nothing_changed_by_hand_is_left(kv: Kv) -> None:
    kv.edit(OLD | {"users": {"retry": {"attempts": 3}, "breaker": {"window": 3}}})
    deploy(kv)
    assert KvSeed(kv).changed_by_hand() == []
    assert kv.settings() == NEW


def test_a_value_with_only_some_old_names_is_completed(kv: Kv) -> None:
    kv.edit({"send_seconds": 12, "users": {"attempts": 5}})
    assert notes(kv)[0] == f"{KEY}: send_seconds=12 was changed by hand and is now outbox_seconds"
    assert kv.settings() == NEW | {"outbox_seconds": 12, "users": {"attempts": 5}}


def test_a_value_under_the_new_name_wins_over_one_under_the_old_name(kv: Kv) -> None:
    kv.edit(NEW | {"outbox_seconds": 20, "send_seconds": 12})
    (note,) = notes(kv)
    assert note == f"{KEY}: send_seconds=12 was changed by hand and is now outbox_seconds, which has a value: dropped"
    assert kv.settings() == NEW | {"outbox_seconds": 20}


def test_a_setting_that_no_file_knows_is_kept_for_the_service_to_reject(kv: Kv) -> None:
    kv.edit(NEW | {"typo": 1})
    assert deploy(kv) == []
    assert kv.settings()["typo"] == 1


def test_a_key_with_names_of_today_and_changes_by_hand_is_left_alone(kv: Kv) -> None:
    kv.edit(NEW | {"outbox_seconds": 20})
    assert deploy(kv) == []


@pytest.mark.parametrize("text", ["not json", '"text"', "[]", ""])
def test_a_value_that_holds_no_settings_is_left_alone(kv: Kv, text: str) -> None:
    kv.edit(text)
    assert deploy(kv) == []
    assert KvSeed(kv).changed_by_hand() == [KEY]


def test_later_migrations_move_what_earlier_ones_have_moved(kv: Kv, files: Path) -> None:
    second = {KEY: {"moves": [{"from": "outbox_seconds", "to": "outbox.seconds", "seed": 10.0}]}}
    (files / "kv-migrations" / "002-more.json").write_text(json.dumps(second))
    write(files, {"outbox": {"seconds": 10.0}, "log_level": "INFO"})
    kv.edit({"log_level": "INFO", "send_seconds": 12})
    assert f"{KEY}: outbox_seconds=12 was changed by hand and is now outbox.seconds" in notes(kv)
    assert kv.settings() == {"outbox": {"seconds": 12}, "log_level": "INFO"}


def test_a_key_that_somebody_changes_during_the_deploy_is_not_overwritten(kv: Kv) -> None:
    kv.edit(OLD | {"send_seconds": 12})
    changes = list(KvSeed(kv).changes())
    kv.edit(OLD | {"send_seconds": 13})
    with pytest.raises(StackError, match="somebody changed it meanwhile"):
        apply_all(changes)
    assert kv.settings()["send_seconds"] == 13
