#!/usr/bin/env python3
"""The Storage Manager API as xapi speaks it today, in the order in which xapi calls.

Usage: smapi.py SOCKET DIRECTORY IN-USE
"""

import base64
import os
import sys
import xmlrpc.client

from sm_calls import Caller, Connection, fresh, used

MIB = 1 << 20


def fault(number, call, *args, **named):
    try:
        result = call(*args, **named)
    except xmlrpc.client.Fault as caught:
        assert caught.faultCode == number, "%s, not %d" % (caught, number)
        assert " [opterr=" in caught.faultString, caught
        return caught.faultString
    raise AssertionError("%r gave %r, not %d" % (args, result, number))


def raw(path, route, body):
    """The bytes of an answer."""
    connection = Connection(path)
    connection.request("POST", route, body, {"Content-Type": "text/xml"})
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    return text


def main():
    path, directory, in_use = sys.argv[1:4]
    sm = Caller(path, "/smapi/file")
    sr, config = fresh(), {"location": os.path.join(directory, "sr"), "SRmaster": "true"}

    def call(command, *args, **named):
        return sm(command, sr, *args, config=config, **named)

    info = sm.proxy.sr_get_driver_info(
        {"host_ref": "OpaqueRef:NULL", "command": "sr_get_driver_info", "args": [],
         "device_config": {}})
    for name in ["name", "description", "vendor", "copyright", "driver_version",
                 "required_api_version"]:
        assert isinstance(info[name], str) and info[name], name
    assert {"SR_CREATE", "VDI_SNAPSHOT", "VDI_ATTACH"} <= set(info["capabilities"])
    assert not {"SR_PROBE", "VDI_INTRODUCE", "VDI_CONFIG_CBT"} & set(info["capabilities"])
    assert [each["key"] for each in info["configuration"]] == ["location", "shared"]

    fault(47, call, "sr_attach")
    fault(94, sm, "sr_create", sr, 0, config={})
    assert call("sr_create", 0) is None
    fault(42, call, "sr_create", 0)
    fault(47, call, "sr_scan")
    assert call("sr_attach") is None
    config["SRmaster"] = "false"
    assert call("sr_attach") is None
    assert call("sr_scan") is None
    assert call("sr_update") is None
    assert call("sr_content_type") == "vhd"
    fault(38, call, "sr_probe")

    rest = ["name", "description", "", "false", "19700101T00:00:00Z", "", "false"]
    made = call("vdi_create", MIB + 1, *rest, vdi_sm_config={}, vdi_type="user")
    assert set(made) == {"uuid", "location"}
    vdi = made["uuid"]
    assert os.path.exists(os.path.join(config["location"], vdi + ".vhd"))
    raw_vdi = call("vdi_create", MIB, *rest, vdi_sm_config={"type": "raw"})["uuid"]
    assert os.path.getsize(os.path.join(config["location"], raw_vdi + ".raw")) == MIB
    fault(79, call, "vdi_create", 0, *rest)
    fault(79, call, "vdi_create", "many", *rest)
    fault(43, call, "vdi_create", MIB, *rest, vdi_uuid=vdi)

    told = call("vdi_attach", "true", vdi=vdi, vdi_on_boot="persist")
    parts = told["params_nbd"].split(":")
    assert parts[:2] == ["nbd", "unix"] and parts[3] == "exportname=" + vdi and len(parts) == 4
    assert told["o_direct"] is True and told["o_direct_reason"] == ""
    data = told["xenstore_data"]
    assert data["vdi-uuid"] == vdi and data["storage-type"] == "file"
    assert base64.b64decode(data["scsi/0x12/0x80"])[4:].decode() == vdi
    assert b"XENSRC  " in base64.b64decode(data["scsi/0x12/0x83"])
    assert call("vdi_activate", "true", vdi=vdi) is None
    fault(24, call, "vdi_delete", vdi=vdi)
    fault(16, call, "sr_detach")
    assert call("vdi_epoch_begin", vdi=vdi, vdi_on_boot="persist") is None
    fault(38, call, "vdi_epoch_begin", vdi=vdi, vdi_on_boot="reset")
    assert call("vdi_epoch_end", vdi=vdi) is None
    if in_use:
        with used(in_use, vdi, None):
            fault(24, call, "vdi_detach", vdi=vdi)
    assert call("vdi_deactivate", vdi=vdi) is None
    assert call("vdi_detach", vdi=vdi) is None
    fault(46, call, "vdi_attach", "true", vdi=fresh())

    kept = call("vdi_snapshot", vdi=vdi, driver_params={"epochhint": fresh()})["uuid"]
    assert call("vdi_update", vdi=kept) is None
    fault(46, call, "vdi_attach", "true", vdi=kept)
    assert call("vdi_attach", "false", vdi=kept)["params_nbd"]
    assert call("vdi_detach", vdi=kept) is None
    child = call("vdi_clone", vdi=kept, driver_params={})["uuid"]
    assert len({vdi, kept, child}) == 3
    assert call("vdi_resize", 2 * MIB, vdi=child) == {"uuid": child, "location": child}
    fault(79, call, "vdi_resize", MIB, vdi=child)
    for verb in ["vdi_resize_online", "vdi_compose", "vdi_enable_cbt", "vdi_introduce"]:
        fault(38, call, verb, vdi=child)

    config_call = call("vdi_generate_config", vdi=child)
    assert "<methodName>vdi_attach_from_config</methodName>" in config_call
    assert call("sr_detach") is None
    (told,), _ = xmlrpc.client.loads(raw(path, "/smapi/file", config_call))
    assert told["params_nbd"].endswith(child)
    again = config_call.replace("vdi_attach_from_config", "vdi_detach_from_config")
    nil = raw(path, "/smapi/file", again)
    assert "<value><nil/></value>" in nil and nil.startswith("<?xml version='1.0'?>\n"), nil

    for verb in ["vdi_lock", "vdi_unlock", "sr_paint"]:
        fault(143, call, verb, vdi=child)
    for odd in ["", "<methodCall/>", config_call.replace("<command>", "")[:100],
                config_call.replace("<name>command</name>", "<name>order</name>")]:
        answer = raw(path, "/smapi/file", odd)
        assert "<int>143</int>" in answer, answer

    # Its callers attach an SR to delete it; one with VDIs stays, and stays attached.
    assert isinstance(call("vdi_attach", "true", vdi=vdi), dict)
    fault(16, call, "sr_delete")
    assert call("vdi_detach", vdi=vdi) is None
    fault(39, call, "sr_delete")
    assert call("sr_scan") is None
    for each in [child, vdi, kept, raw_vdi, kept]:
        assert call("vdi_delete", vdi=each) is None
    assert call("sr_delete") is None
    assert call("sr_delete") is None
    print("ok")


if __name__ == "__main__":
    main()
