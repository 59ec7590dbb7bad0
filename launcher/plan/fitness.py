"""Whether this version can run the VM at all, and whether this machine can."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, assert_never

from launcher.errors import HostUnfit, SpecInvalid
from launcher.spec.types import (
    BridgeBinding,
    CloudInitVolume,
    DataVolumeVolume,
    MasqueradeBinding,
    MultusNetwork,
    PodNetwork,
    PvcVolume,
    SecretRef,
    SriovBinding,
    VdpaBinding,
    VhostUserBinding,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.facts import HostFacts
    from launcher.spec.types import Binding, Network, VmSpec, Volume

# What the container needs, and which step needs it.
CAPABILITIES = {
    "chown": "disks and devices are given to the VMM's uid",
    "dac_override": "files of the VMM's uid stay readable to the launcher",
    "fowner": "modes of files of the VMM's uid are set",
    "kill": "the VMM, of another uid, is stopped",
    "net_admin": "links, addresses, routes and taps are made",
    "net_bind_service": "dnsmasq answers on the DHCP port",
    "setgid": "the VMM runs with a gid of its own",
    "setpcap": "the VMM runs with no capability in its bounding set",
    "setuid": "the VMM runs with a uid of its own",
}
SOCKET_PATH_BYTES = 107  # unix(7): sun_path without its NUL
ARCHITECTURES = ("x86_64", "aarch64")


def refuse_unsupported(spec: VmSpec, facts: HostFacts) -> None:
    """Raise SpecInvalid with one line for everything in a valid spec that this version cannot run yet."""
    unsupported = tuple(_unsupported(spec, facts))
    if unsupported:
        raise SpecInvalid("\n".join(f"not supported yet: {path} ({what})" for path, what in unsupported))


def _unsupported(spec: VmSpec, facts: HostFacts) -> Iterator[tuple[str, str]]:
    """JSON paths in document order, each with what it asks for."""
    instance = spec.instance
    for at, file_system in enumerate(instance.file_systems):
        if not isinstance(spec.volume(file_system.name), PvcVolume | DataVolumeVolume):
            yield f"$.spec.instance.fileSystems[{at}]", "a file system that is neither a claim nor a data volume"
    for at, interface in enumerate(instance.interfaces):
        if wanted := _unsupported_binding(interface.binding):
            yield f"$.spec.instance.interfaces[{at}].{wanted[0]}", wanted[1]
    for at, volume in enumerate(spec.volumes):
        for key, what in _second_secrets(volume, spec.volumes[:at], facts):
            yield f"$.spec.volumes[{at}].{key}", what
    yield from _unsupported_networks(spec.networks)
    if facts.receive_migration:
        yield "$RECEIVE_MIGRATION", "the pod is the target of a migration"


def _unsupported_binding(binding: Binding) -> tuple[str, str] | None:
    match binding:
        case BridgeBinding():
            return None
        case MasqueradeBinding():
            return "masquerade", "a guest behind address translation"
        case SriovBinding():
            return "sriov", "a PCI function for the guest"
        case VdpaBinding():
            return "vdpa", "a vDPA device for the guest"
        case VhostUserBinding():
            return "vhostUser", "a port of a userspace switch"
        case other:
            assert_never(other)


def _second_secrets(volume: Volume, before: tuple[Volume, ...], facts: HostFacts) -> Iterator[tuple[str, str]]:
    """Virtink's pod has one place for user data from a Secret and one for network data, whatever the volumes are called."""
    if not isinstance(volume, CloudInitVolume):
        return
    seeds = [seed for seed in before if isinstance(seed, CloudInitVolume)]
    if isinstance(volume.user_data, SecretRef) and any(isinstance(seed.user_data, SecretRef) for seed in seeds):
        where = facts.paths.user_data_secret.parent
        yield (
            "cloudInit.userDataSecretName",
            f"a second volume's user data from a Secret: only one is mounted at {where}",
        )
    if isinstance(volume.network_data, SecretRef) and any(isinstance(seed.network_data, SecretRef) for seed in seeds):
        where = facts.paths.network_data_secret.parent
        yield (
            "cloudInit.networkDataSecretName",
            f"a second volume's network data from a Secret: only one is mounted at {where}",
        )


def _unsupported_networks(networks: tuple[Network, ...]) -> Iterator[tuple[str, str]]:
    pods = 0
    for at, network in enumerate(networks):
        match network:
            case MultusNetwork():
                yield f"$.spec.networks[{at}].multus", "a second network of the pod"
            case PodNetwork():
                pods += 1
                if pods > 1:
                    yield f"$.spec.networks[{at}].pod", "more than one interface on the pod network"
            case other:
                assert_never(other)


def check_machine(spec: VmSpec, facts: HostFacts) -> None:
    """Raise HostUnfit, with the remedy, for what the machine or the container lacks for this VM."""
    if facts.arch not in ARCHITECTURES:
        raise HostUnfit(f"machines of type {facts.arch} are not supported", hint=f"use {' or '.join(ARCHITECTURES)}")
    sockets = (
        facts.paths.serial_socket,
        *(facts.paths.file_system_socket(fs.name) for fs in spec.instance.file_systems),
    )
    if (excess := max(len(os.fsencode(socket)) for socket in sockets) - SOCKET_PATH_BYTES) > 0:
        raise HostUnfit(
            f"the path of the run directory, {facts.paths.run_dir}, is {excess} bytes too long for the sockets in it",
            hint="name a shorter one with --run-dir",
        )
    if facts.vmm.problem:
        raise HostUnfit(facts.vmm.problem, hint=facts.vmm.hint)
    if facts.kvm.problem and not facts.vmm.emulated:
        raise HostUnfit(
            facts.kvm.problem,
            hint="request the KVM device of a device plugin on a node with KVM, "
            "or pass --emulate to run the guest slowly without it",
        )
    if facts.tun.problem and spec.instance.interfaces:
        raise HostUnfit(
            facts.tun.problem,
            hint="request the tun device of a device plugin, or have the node make one (modprobe tun)",
        )
    if facts.dnsmasq is None and spec.instance.interfaces:
        raise HostUnfit("dnsmasq is not installed", hint="install dnsmasq-base in the launcher's image")
    if missing := [name for name in CAPABILITIES if name not in facts.capabilities]:
        names = ", ".join(name.upper() for name in missing)
        raise HostUnfit(
            f"the container lacks the capability {names}: {CAPABILITIES[missing[0]]}"
            if len(missing) == 1
            else f"the container lacks the capabilities {names}",
            hint="run it as root and add them under securityContext.capabilities.add",
        )
