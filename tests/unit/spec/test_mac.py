from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.spec.mac import derive_mac, parse_mac
from tests.unit.spec.samples import PROPERTY, UID, read

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


@PROPERTY
@given(st.binary(min_size=6, max_size=6))
def test_every_form_of_go_gives_the_same_six_octets(octets: bytes) -> None:
    expected = octets.hex(":")
    dotted = octets.hex(".", 2)
    for form in (expected, expected.upper(), octets.hex("-"), dotted, dotted.upper()):
        assert parse_mac(form) == expected


@PROPERTY
@given(st.binary(max_size=24).filter(lambda octets: len(octets) != 6), st.sampled_from(":-"))
def test_other_lengths_are_refused(octets: bytes, separator: str) -> None:
    with pytest.raises(ValueError, match="not a MAC address"):
        parse_mac(octets.hex(separator))


@pytest.mark.parametrize(
    "text", ["", "52:54:00:00:00:0", "5:54:00:00:00:001", "52:54:00:00:00:01\n", "5254.00.00.0001", "٣٣:54:00:00:00:01"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a MAC address"):
        parse_mac(text)


@PROPERTY
@given(TEXT, TEXT)
def test_a_derived_mac_is_stable_locally_administered_and_unicast(identity: str, interface: str) -> None:
    mac = derive_mac(identity, interface)
    assert mac == derive_mac(identity, interface) == parse_mac(mac)
    assert mac.startswith("52:54:00:")
    assert int(mac[:2], 16) & 0b11 == 0b10


def test_a_derived_mac_never_changes_between_versions() -> None:
    assert derive_mac("shop/web", "pod") == "52:54:00:d6:08:22"


def test_a_derived_mac_follows_the_uid_else_the_name_and_the_interface() -> None:
    def mac_of(**metadata: str) -> str:
        return read({"metadata": {"name": "web", **metadata}}).instance.interfaces[0].mac

    assert mac_of(uid=UID, namespace="a") == mac_of(uid=UID, namespace="b") == derive_mac(UID, "pod")
    assert mac_of() == mac_of(namespace="default") == derive_mac("default/web", "pod")
    assert len({mac_of(uid=UID), mac_of(), mac_of(namespace="a")}) == 3
    both = read({"spec.instance.interfaces.1.mac": ""}).instance.interfaces
    assert both[0].mac != both[1].mac
