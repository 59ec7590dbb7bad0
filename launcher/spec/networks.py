"""Interfaces of the guest and the networks they are on."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from launcher.spec.fields import link_name, single
from launcher.spec.jsonpath import quote
from launcher.spec.mac import derive_mac, parse_mac
from launcher.spec.types import (
    Binding,
    BridgeBinding,
    Interface,
    MasqueradeBinding,
    MultusNetwork,
    Network,
    PodNetwork,
    SriovBinding,
    VdpaBinding,
    VhostUserBinding,
)

if TYPE_CHECKING:
    from launcher.spec.cursor import Cursor

_BINDINGS = ("bridge", "masquerade", "sriov", "vdpa", "vhostUser")
_NETWORKS = ("pod", "multus")
_MIN_SUBNET = 4  # network, gateway, guest, broadcast
_SUBNET = re.compile(r"[^/%]+/[0-9]{1,3}")  # Python would also take a bare address, a netmask and a zone
_MAX_QUEUES = (1 << 31) - 1  # a Go int in the API, a signed 32-bit integer everywhere else


def parse_interface(cursor: Cursor, identity: str) -> Interface:
    """An interface with its one binding; ``identity`` is what a missing MAC is derived from."""
    interface = cursor.object(("name", "mac", *_BINDINGS))
    name = link_name(interface.get("name"))
    mac = interface.get("mac")
    text = mac.text()
    address = derive_mac(identity, name)
    if text:
        try:
            address = parse_mac(text)
        except ValueError as error:
            mac.problem(f"{quote(text)} is {error}")
    bindings: dict[str, Binding] = {}
    if (bridge := interface.get("bridge")).present:
        bridge.object(())
        bindings["bridge"] = BridgeBinding()
    if (masquerade := interface.get("masquerade")).present:
        bindings["masquerade"] = _masquerade(masquerade)
    if (sriov := interface.get("sriov")).present:
        sriov.object(())
        bindings["sriov"] = SriovBinding()
    if (vdpa := interface.get("vdpa")).present:
        fields = vdpa.object(("numQueues", "iommu"))
        queues = fields.get("numQueues").integer(most=_MAX_QUEUES) or 1
        bindings["vdpa"] = VdpaBinding(queues, fields.get("iommu").boolean())
    if (vhost_user := interface.get("vhostUser")).present:
        vhost_user.object(())
        bindings["vhostUser"] = VhostUserBinding()
    return Interface(name, address, single(interface, bindings, "binding method") or BridgeBinding())


def _masquerade(cursor: Cursor) -> MasqueradeBinding:
    field = cursor.object(("cidr",)).get("cidr")
    text = field.text()
    if not text:
        return MasqueradeBinding()
    try:
        subnet = ipaddress.ip_network(text, strict=False) if _SUBNET.fullmatch(text) else None
    except ValueError:
        subnet = None
    if subnet is None:
        field.problem(f"{quote(text)} is not a subnet: an address and a prefix length are, such as 10.0.2.0/30")
        return MasqueradeBinding()
    if subnet.num_addresses < _MIN_SUBNET:
        field.problem(f"{quote(text)} must contain at least {_MIN_SUBNET} IPs")
    return MasqueradeBinding(str(subnet))


def parse_network(cursor: Cursor) -> Network:
    """A network with its one source."""
    network = cursor.object(("name", *_NETWORKS))
    name = link_name(network.get("name"))
    sources: dict[str, Network] = {}
    if (pod := network.get("pod")).present:
        pod.object(())
        sources["pod"] = PodNetwork(name)
    if (multus := network.get("multus")).present:
        sources["multus"] = MultusNetwork(name, multus.object(("networkName",)).get("networkName").required_text())
    source = single(network, sources, "network source")
    if source is None:
        network.problem(f"at least 1 network source is required: {', '.join(_NETWORKS)}")
        return PodNetwork(name)  # a stand-in, valid wherever a network may be
    return source
