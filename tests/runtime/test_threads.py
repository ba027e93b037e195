"""Cores and quotas of made-up machines, each a tree of the kernel's files."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from medvlm.runtime import threads
from medvlm.runtime.threads import count_cores, cpu_quota, usable_cores

TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/{}"
SELF = "proc/self/cgroup"


def plant(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def plant_siblings(root: Path, lists: Mapping[int, str | bytes], name: str = "thread_siblings_list") -> Path:
    return plant(root, {TOPOLOGY.format(cpu, name): text for cpu, text in lists.items()})


@pytest.mark.parametrize("name", ["thread_siblings_list", "core_cpus_list"])
@pytest.mark.parametrize(
    ("lists", "cores"),
    [
        ({0: "0\n", 1: "1\n"}, 2),
        ({0: "0-1\n", 1: "0-1\n", 2: "2-3\n", 3: "2-3\n"}, 2),
        ({0: "0,2\n", 1: "1,3\n", 2: "0,2\n", 3: "1,3\n"}, 2),
        ({0: "0-1,4-5\n", 1: "0-1,4-5\n", 4: "0-1,4-5\n", 5: "0-1,4-5\n"}, 1),
        ({0: "0-1\n", 1: "0-1\n", 2: "2\n"}, 2),
    ],
)
def test_siblings_are_one_core(tmp_path: Path, lists: dict[int, str], cores: int, name: str) -> None:
    assert count_cores(lists, plant_siblings(tmp_path, lists, name)) == cores


@pytest.mark.parametrize(
    ("cpus", "cores"), [({0, 1, 2, 3}, 2), ({0, 1}, 1), ({1, 3}, 2), ({3}, 1), ({1, 2, 3}, 2), (set(), 0)]
)
def test_only_cores_of_allowed_cpus_count(tmp_path: Path, cpus: set[int], cores: int) -> None:
    assert count_cores(cpus, plant_siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})) == cores


def test_cpu_without_topology_is_a_core(tmp_path: Path) -> None:
    assert count_cores(range(3), tmp_path) == 3
    assert count_cores(range(3), plant_siblings(tmp_path, {0: "0-1", 1: "0-1"})) == 2


@pytest.mark.parametrize("garbage", ["", "\n", "abc", "0-", "-1", "0,,1", "5-7", "1-0", b"\xff\xfe\x00", "9" * 5000])
def test_cpu_whose_siblings_are_garbage_is_a_core(tmp_path: Path, garbage: str | bytes) -> None:
    assert count_cores(range(2), plant_siblings(tmp_path, {0: garbage, 1: garbage})) == 2


def test_range_without_end_is_not_spelled_out(tmp_path: Path) -> None:
    assert count_cores(range(2), plant_siblings(tmp_path, {0: "0-99999999999999", 1: "0-99999999999999"})) == 1


def test_folder_where_a_file_should_be_is_left_out(tmp_path: Path) -> None:
    (tmp_path / TOPOLOGY.format(0, "thread_siblings_list")).mkdir(parents=True)
    (tmp_path / SELF).mkdir(parents=True)
    assert count_cores([0], tmp_path) == 1
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("100001 100000\n", 2),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1000 1000000\n", 1),
        ("75000 25000\n", 3),
        ("max 100000\n", None),
        ("max\n", None),
    ],
)
def test_quota_of_version_2_is_rounded_up(tmp_path: Path, quota: str, cpus: int | None) -> None:
    assert cpu_quota(plant(tmp_path, {SELF: "0::/a.slice\n", "sys/fs/cgroup/a.slice/cpu.max": quota})) == cpus


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("400000", "100000", 4), ("250000", "100000", 3), ("20000", "100000", 1), ("-1", "100000", None)],
)
def test_quota_of_version_1_is_rounded_up(
    tmp_path: Path, mount: str, quota: str, period: str, cpus: int | None
) -> None:
    group = f"sys/fs/cgroup/{mount}/docker/1f"
    files = {f"{group}/cpu.cfs_quota_us": f"{quota}\n", f"{group}/cpu.cfs_period_us": f"{period}\n"}
    lists = "5:memory:/other\n4:cpu,cpuacct:/docker/1f\n3:cpuset:/\n"
    assert cpu_quota(plant(tmp_path, {SELF: lists, **files})) == cpus


@pytest.mark.parametrize(("outer", "inner", "cpus"), [("2", "8", 2), ("8", "2", 2), ("max", "3", 3), ("3", "max", 3)])
def test_tightest_of_nested_cgroups_counts(tmp_path: Path, outer: str, inner: str, cpus: int) -> None:
    files = {
        SELF: "0::/a/b/c\n",
        "sys/fs/cgroup/a/cpu.max": f"{outer} 1\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 1\n",
        "sys/fs/cgroup/a/b/c/cpu.max": f"{inner} 1\n",
        "sys/fs/cgroup/a/b/c/child/cpu.max": "1 1\n",
        "sys/fs/cgroup/beside/cpu.max": "1 1\n",
    }
    assert cpu_quota(plant(tmp_path, files)) == cpus


def test_parent_of_version_1_may_be_tighter(tmp_path: Path) -> None:
    files = {SELF: "2:cpu:/a/b\n"}
    for group, quota in (("a", "200000"), ("a/b", "800000")):
        files[f"sys/fs/cgroup/cpu/{group}/cpu.cfs_quota_us"] = quota
        files[f"sys/fs/cgroup/cpu/{group}/cpu.cfs_period_us"] = "100000"
    assert cpu_quota(plant(tmp_path, files)) == 2


@pytest.mark.parametrize("path", ["/", "/docker/of-the-host", "/../../docker/of-the-host"])
def test_container_s_own_cgroup_is_the_mount_whatever_its_path_on_the_host(tmp_path: Path, path: str) -> None:
    files = {SELF: f"0::{path}\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}
    assert cpu_quota(plant(tmp_path, files)) == 3


def test_both_versions_on_one_machine_are_read(tmp_path: Path) -> None:
    files = {
        SELF: "1:cpu:/old\n0::/new\n",
        "sys/fs/cgroup/cpu/old/cpu.cfs_quota_us": "500000\n",
        "sys/fs/cgroup/cpu/old/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/unified/new/cpu.max": "400000 100000\n",
    }
    assert cpu_quota(plant(tmp_path, files)) == 4


def test_controller_s_whole_name_counts(tmp_path: Path) -> None:
    files = {
        SELF: "3:cpuset:/a\n2:cpuacct:/a\n1:name=cpu:/a\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(plant(tmp_path, files)) is None


def test_cgroup_s_name_may_be_any_bytes(tmp_path: Path) -> None:
    group = os.fsdecode(b"\xff \xc3\xa9:x")
    try:
        plant(tmp_path, {SELF: b"0::/\xff \xc3\xa9:x\n", f"sys/fs/cgroup/{group}/cpu.max": "2 1\n"})
    except OSError:
        pytest.skip("the file system takes no such name")
    assert cpu_quota(tmp_path) == 2


def test_machine_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert cpu_quota(plant(tmp_path, {SELF: "0::/a\n1:cpu:/a\n"})) is None


GARBAGE = [
    "",
    "\n",
    "max max",
    "0 100000",
    "100000 0",
    "-5 100000",
    "100000 -5",
    "1e5 100000",
    "x",
    b"\xff\x00",
    "1 2 3",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_no_quota(tmp_path: Path, garbage: str | bytes) -> None:
    files = {
        SELF: "0::/a\n1:cpu:/a\n",
        "sys/fs/cgroup/a/cpu.max": garbage,
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": garbage,
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(plant(tmp_path, files)) is None


@given(st.binary(max_size=60), st.binary(max_size=30))
@example(b"0::/\0\n1:cpu:/" + b"x" * 5000, b"")
@example(b"0\n::\n:\n0::\n0:::\n1:cpu\n1:cpu:\n", b"1")
def test_no_content_of_the_files_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, group: bytes, list_: bytes
) -> None:
    root = plant(tmp_path_factory.mktemp("root"), {SELF: group, "sys/fs/cgroup/cpu.max": list_})
    assert (cpu_quota(root) or 1) >= 1
    assert count_cores([0], plant_siblings(root, {0: list_})) == 1


def test_this_machine_has_cores() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("cores", "quota", "usable"), [(4, None, 4), (4, 2, 2), (4, 8, 4), (0, None, 1)])
def test_fewer_of_cores_and_quota_is_usable(
    monkeypatch: pytest.MonkeyPatch, cores: int, quota: int | None, usable: int
) -> None:
    monkeypatch.setattr(threads, "count_cores", lambda cpus, root: cores)
    monkeypatch.setattr(threads, "cpu_quota", lambda root: quota)
    assert usable_cores() == usable


@pytest.mark.parametrize(("count", "usable"), [(6, 6), (None, 1)])
def test_system_without_affinity_has_all_its_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int | None, usable: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr(threads, "Path", lambda _: tmp_path)
    assert usable_cores() == usable


def test_affinity_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "Path", lambda _: plant_siblings(tmp_path, {1: "0-1", 2: "2-3", 3: "2-3"}))
    assert usable_cores() == 2


def test_affinity_that_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(_: int) -> set[int]:
        raise OSError

    monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(threads, "Path", lambda _: tmp_path)
    assert usable_cores() == 5
