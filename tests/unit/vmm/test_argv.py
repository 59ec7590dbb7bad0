from __future__ import annotations

import pytest

from launcher.errors import HostUnfit
from launcher.vmm.argv import check_version, parse_version, vmm_argv


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cloud-hypervisor v53.0\nMigration Protocol Versions: 0\n", (53, 0, 0)),
        ("cloud-hypervisor v53.0.0", (53, 0, 0)),
        ("cloud-hypervisor v51.2\n", (51, 2, 0)),
        ("cloud-hypervisor v53.0-246-gae44c2971", (53, 0, 0)),
        ("cloud-hypervisor v53.0-246-gae44c2971-dirty\n", (53, 0, 0)),
        ("cloud-hypervisor v53.0-dirty", (53, 0, 0)),
        ("cloud-hypervisor 38.0.1", (38, 0, 1)),
        ("QEMU emulator version 7.2.0", None),
        ("cloud-hypervisor", None),
        ("cloud-hypervisor vfifty.three", None),
        ("", None),
    ],
)
def test_versions_are_read_from_the_first_line(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


def test_the_vmm_keeps_running_after_a_power_off_where_it_can() -> None:
    common = ["ch", "--api-socket", "fd=5", "--event-monitor", "fd=6"]
    assert vmm_argv("ch", api_fd=5, event_fd=6, version=(52, 0, 0)) == [*common, "--no-shutdown"]
    assert vmm_argv("ch", api_fd=5, event_fd=6, version=(51, 2, 0)) == common


def test_versions_without_disk_locks_are_refused() -> None:
    check_version("ch", (46, 0, 0))
    check_version("ch", (99, 0, 0))
    with pytest.raises(HostUnfit, match=r"v45\.0\.0, which does not lock.*v46\.0 or later"):
        check_version("/opt/ch", (45, 0, 0))
    with pytest.raises(HostUnfit, match="does not say"):
        check_version("/opt/ch", None)
