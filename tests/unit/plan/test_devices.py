from __future__ import annotations

from dataclasses import replace

from launcher.facts import DeviceFacts
from launcher.plan.devices import KVM, TUN, DevicesPlan, plan_devices
from tests.unit.plan.made import FACTS, SPEC


def test_devices_open_to_all_need_nothing() -> None:
    assert plan_devices(SPEC, FACTS) == DevicesPlan()


def test_a_group_of_the_nodes_own_becomes_supplementary() -> None:
    facts = replace(FACTS, kvm=DeviceFacts(0, 995, 0o660), tun=DeviceFacts(0, 44, 0o660))
    assert plan_devices(SPEC, facts) == DevicesPlan(groups=(44, 995))


def test_the_vmms_own_group_is_no_supplementary_one() -> None:
    facts = replace(FACTS, kvm=DeviceFacts(0, FACTS.vmm_gid, 0o660))
    assert plan_devices(SPEC, facts) == DevicesPlan()


def test_roots_group_is_never_joined_the_node_is_given_away_instead() -> None:
    devices = plan_devices(SPEC, replace(FACTS, kvm=DeviceFacts(0, 0, 0o660)))
    assert devices.groups == ()
    (give,) = devices.actions
    assert (give.path, give.uid, give.gid, give.write) == (KVM, 107, 107, True)


def test_a_group_that_only_reads_does_not_help() -> None:
    devices = plan_devices(SPEC, replace(FACTS, tun=DeviceFacts(0, 44, 0o640)))
    assert [give.path for give in devices.actions] == [TUN]


def test_a_node_that_is_the_vmms_already_needs_nothing() -> None:
    assert plan_devices(SPEC, replace(FACTS, kvm=DeviceFacts(107, 0, 0o600))) == DevicesPlan()


def test_root_without_capabilities_opens_no_more_than_others() -> None:
    facts = replace(FACTS, vmm_uid=0, vmm_gid=0, kvm=DeviceFacts(107, 995, 0o660), tun=DeviceFacts(107, 107, 0o600))
    devices = plan_devices(SPEC, facts)
    assert devices.groups == (995,)
    assert [(give.path, give.uid) for give in devices.actions] == [(TUN, 0)]


def test_what_is_roots_needs_nothing_for_root() -> None:
    facts = replace(FACTS, vmm_uid=0, vmm_gid=0, kvm=DeviceFacts(0, 0, 0o600), tun=DeviceFacts(0, 0, 0o600))
    assert plan_devices(SPEC, facts) == DevicesPlan()


def test_what_the_vm_does_not_use_is_left_alone() -> None:
    closed = DeviceFacts(0, 0, 0o600)
    facts = replace(FACTS, kvm=closed, tun=closed, vmm=replace(FACTS.vmm, emulated=True))
    alone = replace(SPEC, instance=replace(SPEC.instance, interfaces=()), networks=())
    assert [give.path for give in plan_devices(SPEC, facts).actions] == [TUN]
    assert plan_devices(alone, facts) == DevicesPlan()
