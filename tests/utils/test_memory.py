"""The available memory is what the machine and the container have left."""

import pytest

from retinanet_jax.utils import memory

MACHINE = "MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:  3000 kB\n"
CONTAINER_2 = {
    "memory.max": "2000000\n",
    "memory.current": "1500000\n",
    "memory.stat": "anon 7\ninactive_file 400000\n",
}
CONTAINER_1 = {
    "memory/memory.limit_in_bytes": "2000000\n",
    "memory/memory.usage_in_bytes": "1500000\n",
    "memory/memory.stat": "total_inactive_file 300000\n",
}


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Return a function that writes the files of a system, of which only these exist."""

    def write(machine: str | None, container: dict[str, str]) -> None:
        if machine is not None:
            (tmp_path / "meminfo").write_text(machine)
        for name, text in container.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)

    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    return write


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({}, 3_072_000),
        (CONTAINER_2, 900_000),  # files that were read lately make room
        (CONTAINER_1, 800_000),
        ({**CONTAINER_2, "memory.max": "max\n"}, 3_072_000),  # without a limit
        ({**CONTAINER_1, "memory/memory.limit_in_bytes": "9223372036854771712"}, 3_072_000),
        ({**CONTAINER_2, "memory.current": "9000000"}, 0),
    ],
)
def test_the_smaller_of_machine_and_container_counts(system, container, expected):
    system(MACHINE, container)
    assert memory.available_memory() == expected


def test_elsewhere_the_machines_memory_counts_if_it_is_known(system, monkeypatch):
    system(None, {})
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available_memory() == 4_096_000
    monkeypatch.delattr("os.sysconf")
    assert memory.available_memory() is None
