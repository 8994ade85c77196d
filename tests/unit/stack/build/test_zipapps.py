"""Zipapps are reproducible, built only after a change, and start on a plain Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stack.build import protos, reproducible_zip, site_packages, zipapps
from stack.console import StackError

CODE = "def main() -> None:\n    import dependency, shop, chassis\n    print('hello from {name}', dependency.ANSWER)\n"


def checkout(root: Path) -> Path:
    """A workspace with three services of one file each, and one third-party package."""
    for name, folder in zipapps.SERVICES.items():
        write(root / folder / "__init__.py", "")
        write(root / folder / "__main__.py", CODE.format(name=name))
    for folder in ("chassis/chassis", "protos/gen/shop", "protos/src/shop_contract"):
        write(root / folder / "__init__.py", "")
    write(root / "site" / "dependency.py", "ANSWER = 42\n")
    write(root / "uv.lock", "version = 1\n")
    return root


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def use(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zipapps, "ROOT", root)
    monkeypatch.setattr(site_packages, "site", lambda _: root / "site")
    monkeypatch.setattr(protos, "generate", lambda: False)
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use(checkout(tmp_path / "here"), monkeypatch)


def touch_all(root: Path) -> None:
    """Changes everything that differs between machines: modes, times, compiled files, copies of editors."""
    for file in [path for path in root.rglob("*") if path.is_file()]:
        file.chmod(0o600)
        os.utime(file, (1_000_000_000, 1_000_000_000))
    for folder in [path.parent for path in root.rglob("__init__.py")]:
        write(folder / "__pycache__" / "__init__.cpython-311.pyc", "compiled")
        write(folder / "__init__.py~", "old")


def test_two_checkouts_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, bytes]] = []
    for name in ("here", "some where else"):
        root = use(checkout(tmp_path / name), monkeypatch)
        if built:
            touch_all(root)
            monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        built.append({found.name: found.path.read_bytes() for found in zipapps.build(root / "state").values()})
    assert built[0] == built[1]


def test_a_zipapp_starts_on_a_python_without_packages(here: Path) -> None:
    artifact = zipapps.build(here / "state")["user-service"]
    env = {"SHIV_ROOT": str(here / "unpacked"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-I", "-S", str(artifact.path)]
    for _ in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "hello from user-service 42\n"


def test_a_start_finds_an_unpacked_artifact_unpacked_and_compiled(here: Path) -> None:
    artifact = zipapps.build(here / "state")["user-service"]
    zipapps.unpack(here / "state", [artifact])
    (unpacked,) = [path for path in (here / "state" / "zipapps").iterdir() if path.is_dir()]
    site = unpacked / "site-packages"
    assert list(site.rglob("user_service/__pycache__/__main__.*.pyc"))
    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*")}
    job_file = here / "local" / "user-service.pyz"
    job_file.parent.mkdir()
    job_file.write_bytes(artifact.path.read_bytes())
    env = {"SHIV_ROOT": str(here / "state" / "zipapps"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-I", "-S", str(job_file)]
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert {path: path.stat().st_mtime_ns for path in unpacked.rglob("*")} == before
    assert [path for path in (here / "state" / "zipapps").iterdir() if path.is_dir()] == [unpacked]


def test_an_artifact_is_unpacked_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = list(zipapps.build(here / "state").values())
    zipapps.unpack(here / "state", artifacts)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("unpacked again"))
    zipapps.unpack(here / "state", artifacts)


def test_an_artifact_that_cannot_be_unpacked_stops_the_deploy(here: Path) -> None:
    artifact = zipapps.build(here / "state")["user-service"]
    (here / "state" / "zipapps").write_text("a file in the place of the folder")
    with pytest.raises(StackError, match="could not be unpacked"):
        zipapps.unpack(here / "state", [artifact])


def test_an_artifact_is_named_by_its_content(here: Path) -> None:
    artifact = zipapps.build(here / "state")["gateway"]
    assert artifact.path == here / "state" / "artifacts" / f"gateway-{artifact.sha256[:12]}.pyz"
    assert artifact.version == artifact.sha256[:12]


def test_without_a_change_nothing_is_packed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = zipapps.build(here / "state")
    monkeypatch.setattr(zipapps, "_shiv", lambda *_: pytest.fail("packed again"))
    assert zipapps.build(here / "state") == before


def test_a_change_packs_only_the_service_it_is_in(here: Path) -> None:
    before = zipapps.build(here / "state")
    write(here / zipapps.SERVICES["gateway"] / "routes.py", "x = 1\n")
    after = zipapps.build(here / "state")
    assert [name for name in before if before[name] != after[name]] == ["gateway"]


def test_a_change_of_the_chassis_packs_every_service(here: Path) -> None:
    before = zipapps.build(here / "state")
    write(here / "chassis/chassis/calls/breaker.py", "x = 1\n")
    after = zipapps.build(here / "state")
    assert all(before[name] != after[name] for name in zipapps.SERVICES)


def test_a_damaged_artifact_is_built_again(here: Path) -> None:
    artifact = zipapps.build(here / "state")["gateway"]
    artifact.path.write_bytes(b"half")
    again = zipapps.build(here / "state")["gateway"]
    assert again == artifact
    assert zipfile.is_zipfile(again.path)


def test_a_build_keeps_older_artifacts(here: Path) -> None:
    paths = []
    for number in range(4):
        write(here / zipapps.SERVICES["gateway"] / "routes.py", f"x = {number}\n")
        paths.append(zipapps.build(here / "state")["gateway"].path)
    assert all(path.exists() for path in paths)


def test_an_unneeded_artifact_is_removed_with_its_unpacked_folder(here: Path) -> None:
    paths, unpacked = [], []
    for number in range(3):
        write(here / zipapps.SERVICES["gateway"] / "routes.py", f"x = {number}\n")
        paths.append(zipapps.build(here / "state")["gateway"].path)
        unpacked.append(here / "state" / "zipapps" / f"gateway.pyz_{zipapps._build_id(paths[-1])}")
        unpacked[-1].mkdir(parents=True)
    zipapps.prune(here / "state", {paths[0].name, paths[2].name})
    assert [path.exists() for path in paths] == [True, False, True]
    assert [path.exists() for path in unpacked] == [True, False, True]


def test_order_and_modes_of_an_archive_do_not_matter(tmp_path: Path) -> None:
    for name, mode, order in (("one", 0o600, "ab"), ("two", 0o644, "ba")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in order:
                info = zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, mode % 60))
                info.external_attr = mode << 16
                archive.writestr(info, member)
        reproducible_zip.repack(tmp_path / name, tmp_path / f"{name}.pyz")
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()


def test_files_of_installers_are_not_packed(tmp_path: Path) -> None:
    dropped = ["a.dist-info/RECORD", "a.dist-info/INSTALLER", "a/x.pyi", "a/tests/test_a.py", "bin/a", ".lock"]
    kept = ["a/__init__.py", "a.dist-info/METADATA", "a.dist-info/entry_points.txt", "a/data.json"]
    for name in (*dropped, *kept):
        write(tmp_path / name, "")
    site_packages._strip(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


def test_stubs_are_generated_once_and_a_bad_contract_is_refused(tmp_path: Path) -> None:
    proto = tmp_path / "shop" / "x" / "v1" / "x.proto"
    write(proto, 'syntax = "proto3";\npackage shop.x.v1;\n// Says hello.\nmessage Hello { string name = 1; }\n')
    assert protos.generate(tmp_path)
    made = tmp_path / "gen" / "shop" / "x" / "v1" / "x_pb2.py"
    assert made.exists()
    assert (tmp_path / "gen" / "shop" / "x" / "__init__.py").exists()
    assert not protos.generate(tmp_path)
    write(proto, 'syntax = "proto3";\nmessage Hello { strin name = 1; }\n')
    with pytest.raises(StackError, match=r"x\.proto"):
        protos.generate(tmp_path)
    assert made.exists()


def test_the_record_of_an_artifact_has_its_checksum(here: Path) -> None:
    artifact = zipapps.build(here / "state")["gateway"]
    record = json.loads((artifact.path.parent / "gateway.json").read_text())
    assert (record["file"], record["sha256"]) == (artifact.path.name, artifact.sha256)
