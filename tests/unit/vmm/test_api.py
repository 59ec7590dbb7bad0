from __future__ import annotations

import json

import pytest

from launcher.errors import VmmFailed
from launcher.vmm import api
from launcher.vmm.http import Response


def answer(status: int, body: bytes = b"") -> Response:
    return Response(status, {}, body)


def refusal(status: int, body: bytes) -> api.VmmRefused:
    with pytest.raises(api.VmmRefused) as caught:
        api.accept(api.boot(), answer(status, body))
    return caught.value


def test_calls_are_data() -> None:
    assert api.ping() == api.Call("GET", "/api/v1/vmm.ping", None, 2)
    assert api.boot() == api.Call("PUT", "/api/v1/vm.boot", None, 90)
    assert api.boot().name == "vm.boot"
    created = api.create({"payload": {"kernel": "/k"}})
    assert created.body == b'{"payload":{"kernel":"/k"}}'
    net = api.add_net({"id": "pod"}, (7, 8))
    assert (net.path, net.body, net.fds) == ("/api/v1/vm.add-net", b'{"id":"pod"}', (7, 8))


@pytest.mark.parametrize(
    ("call", "route"),
    [
        (api.shutdown(), "vm.shutdown"),
        (api.delete(), "vm.delete"),
        (api.power_button(), "vm.power-button"),
        (api.pause(), "vm.pause"),
        (api.resume(), "vm.resume"),
        (api.reboot(), "vm.reboot"),
        (api.vmm_shutdown(), "vmm.shutdown"),
    ],
)
def test_calls_that_do_something_are_puts_without_a_body(call: api.Call, route: str) -> None:
    assert (call.method, call.name, call.body, call.fds) == ("PUT", route, None, ())
    assert call.deadline_s > 0


def test_a_list_is_read_link_by_link() -> None:
    error = refusal(500, b'["Error from API","The VM could not boot","VM is already created"]')
    assert str(error) == "the VMM refused vm.boot: The VM could not boot: VM is already created"
    assert error.chain == ("Error from API", "The VM could not boot", "VM is already created")
    assert error.exit_code == 15


def test_the_parser_error_with_its_raw_line_break_is_read() -> None:
    error = refusal(400, b'{ "error": "Invalid HTTP Method\nAll previous unanswered requests will be dropped." }')
    assert str(error) == "the VMM refused vm.boot: Invalid HTTP Method"


def test_plain_text_is_one_link() -> None:
    assert refusal(500, b"Error from API: The VM could not boot: x").chain == (
        "Error from API: The VM could not boot: x",
    )


@pytest.mark.parametrize(
    ("body", "chain"), [(b"", ()), (b"[]", ()), (b'"x"', ("x",)), (b"\xff", ("�",)), (b"[1]", ("1",))]
)
def test_odd_bodies_still_make_a_sentence(body: bytes, chain: tuple[str, ...]) -> None:
    error = refusal(400, body)
    assert error.chain == chain
    assert str(error).startswith("the VMM refused vm.boot: ")


def test_a_backtrace_is_not_part_of_the_sentence() -> None:
    assert refusal(500, json.dumps(["Error from API", "VM is not running\n\nStack backtrace:\n 0: x"]).encode()).chain[
        -1
    ] == ("VM is not running")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b'["Error from API","The VM info is not available","VM is not created"]', True),
        (404, b'["Error from API","The VM could not boot","VM config is missing"]', True),
        (500, b'["Error from API","The VM info is not available","VM is not created"]', True),
        (500, b"Error from API: The VM info is not available: VM is not created", True),
        (404, b'["Not Found"]', False),
        (500, b'["Error from API","The VM could not be created","VM is already created"]', False),
        (400, b'["VM is not created"]', False),
        (404, b"", False),
    ],
)
def test_a_missing_vm_is_told_by_the_last_link_and_the_status(status: int, body: bytes, *, expected: bool) -> None:
    assert refusal(status, body).not_created is expected


def test_replies_become_values() -> None:
    ping = answer(200, b'{"build_version":"v53.0","version":"53.0.0","pid":12,"features":["kvm"]}')
    assert api.decode_ping(api.ping(), ping) == api.PingInfo("53.0.0", "v53.0", 12)
    info = answer(200, b'{"config":{"a":1},"state":"Created","memory_actual_size":5,"device_tree":null}')
    assert api.decode_info(api.info(), info) == api.VmInfo("Created", {"a": 1}, 5, None)
    assert api.decode_device(api.add_net({}), answer(204)) is None
    assert api.decode_device(api.add_net({}), answer(200, b'{"id":"n","bdf":"0000:00:01.0"}')) == api.DeviceInfo(
        "n", "0000:00:01.0"
    )
    assert api.decode_counters(api.counters(), answer(200, b'{"d":{"read_ops":1}}')) == {"d": {"read_ops": 1}}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nope", b'{"state":5}', b'{"state":"Running"}', b'{"state":"Running","config":[]}']
)
def test_an_answer_of_another_shape_is_an_error(body: bytes) -> None:
    with pytest.raises(VmmFailed, match=r"answer to vm\.info"):
        api.decode_info(api.info(), answer(200, body))
