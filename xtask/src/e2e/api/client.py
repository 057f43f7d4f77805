"""Drives a server with the Python package `tailscale` as it is. Prints what it saw; fails where that is wrong."""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

from tailscale import (
    Tailscale,
    TailscaleError,
    TailscaleNotFoundError,
    TailscalePermissionError,
    TailscaleUnauthorizedError,
)

KEY = os.environ["API_KEY"]


async def refused(call, kind):
    """Expects an error of that kind."""
    try:
        await call
    except kind:
        return
    raise AssertionError(f"not refused with {kind.__name__}")


async def user(client, login):
    return next(user for user in await client.users() if user.login_name == login)


async def devices(client):
    found = await client.devices()
    assert len(found) == 2, found
    alpha = next(device for device in found.values() if device.hostname == "alpha")
    assert alpha.user == "ann@example.com" and alpha.connected_to_control and alpha.machine_key
    one = await client.device(alpha.node_id)
    assert one.device_id == alpha.device_id and one.client_connectivity is not None
    await client.rename_device(one.node_id, name="first")
    assert (await client.device(one.node_id)).name.startswith("first.default.")
    await client.rename_device(one.node_id, name="")
    await client.set_device_routes(one.node_id, routes=["10.99.0.0/16"])
    routes = await client.device_routes(one.node_id)
    assert routes.enabled_routes == ["10.99.0.0/16"] and routes.advertised_routes == []
    await client.set_device_key_expiry(one.node_id, key_expiry_disabled=True)
    assert (await client.device(one.device_id)).key_expiry_disabled
    await client.set_device_posture_attribute(one.node_id, "custom:tier", value="gold")
    attributes = await client.device_posture_attributes(one.node_id)
    assert attributes.attributes["custom:tier"] == "gold" and attributes.attributes["node:os"] == "linux"
    await client.delete_device_posture_attribute(one.node_id, "custom:tier")
    await client.authorize_device(one.node_id, authorized=True)
    await refused(client.device("n999"), TailscaleNotFoundError)
    print(f"        devices: {one.name}, {one.addresses[0]}, client {one.client_version}")


async def policy(client):
    before = await client.policy_file()
    assert before.etag
    text = """// by a program
{
  "tagOwners": {"tag:ci": ["autogroup:admin"]},
  "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
}
"""
    assert (await client.validate_policy_file(text)).valid
    assert not (await client.validate_policy_file("{\"nonsense\": 1}")).valid
    rules = await client.preview_policy_rules(text, preview_type="user", preview_for="ann@example.com")
    assert [rule.line_number for rule in rules.matches] == [4], rules
    after = await client.set_policy_file(text, etag=before.etag)
    assert after.policy == text and after.etag != before.etag
    await refused(client.set_policy_file(text + "\n", etag=before.etag), TailscaleError)
    tests = [{"src": "ann@example.com", "deny": ["100.64.0.99:22"]}]
    failed = await client.test_policy_file(tests)
    assert not failed.valid and failed.data[0].user == "ann@example.com", failed
    print(f"        policy: {after.etag.strip(chr(34))[:12]}…, a failing test says {failed.data[0].errors[0]!r}")


async def keys(client):
    made = await client.create_key(tags=["tag:ci"], preauthorized=True, reusable=True, description="by the client")
    assert made.key
    assert made.key_id in [key.key_id for key in await client.keys()]
    assert (await client.key(made.key_id)).capabilities.devices.create.tags == ["tag:ci"]
    once = await client.create_key(tags=["tag:ci"])
    await client.delete_key(once.key_id)
    assert (await client.key(once.key_id)).invalid
    print(f"auth key {made.key}")
    program = await client.create_key(key_type="client", scopes=["devices:core:read"], description="reader")
    async with Tailscale(oauth_client_id=program.key_id, oauth_client_secret=program.key) as reader:
        assert len(await reader.devices()) == 2
        await refused(reader.users(), TailscalePermissionError)
        await refused(reader.delete_device("n1"), TailscalePermissionError)
        await client.delete_key(program.key_id)
        await refused(reader.devices(), TailscaleUnauthorizedError)
    print("        OAuth client: a token that reads devices, and nothing else, until the client is deleted")


async def names(client):
    servers = await client.set_dns_nameservers(dns=["9.9.9.9"])
    assert servers.dns == ["9.9.9.9"] and servers.magic_dns
    assert (await client.set_dns_search_paths(search_paths=["corp.example"])).search_paths == ["corp.example"]
    assert await client.set_split_dns(split_dns={"a.example": ["10.0.0.1"]}) == {"a.example": ["10.0.0.1"]}
    assert await client.update_split_dns(split_dns={"a.example": None, "b.example": ["10.0.0.2"]}) == {"b.example": ["10.0.0.2"]}
    whole = await client.dns_configuration()
    assert whole.nameservers[0].address == "9.9.9.9" and whole.preferences.magic_dns
    assert (await client.set_dns_configuration(whole)).search_paths == ["corp.example"]
    assert (await client.dns_preferences()).magic_dns
    print("        DNS: resolvers, search paths, split DNS, the whole")


async def rest(client):
    await client.update_tailnet_settings(devices_key_duration_days=90)
    settings = await client.tailnet_settings()
    assert settings.devices_key_duration_days == 90 and settings.devices_approval_on is False
    bob = await user(client, "bob@example.com")
    await client.set_user_role(bob.user_id, role="auditor")
    assert (await client.user(bob.user_id)).role == "auditor"
    await client.approve_user(bob.user_id)
    now = datetime.now(UTC)
    hours = {"start": now - timedelta(hours=1), "end": now + timedelta(hours=1)}
    logs = await client.configuration_audit_logs(**hours)
    roles = await client.configuration_audit_logs(**hours, events=["USER.UPDATE.USER_ROLE"], actors=["~ann"])
    assert 0 < len(roles) < len(logs) and roles[-1].actor.login_name == "ann@example.com", roles
    print(f"        settings, users, {len(logs)} entries of the log")


async def main(part):
    async with Tailscale(api_key=KEY) as client:
        if part == "hello":
            print(f"{len(await client.devices())} devices")
        elif part == "everything":
            async with Tailscale(api_key=KEY[:-1] + ("1" if KEY[-1] == "0" else "0")) as stranger:
                await refused(stranger.devices(), TailscaleUnauthorizedError)
            for step in (devices, policy, keys, names, rest):
                await step(client)
        elif part == "suspend":
            await client.suspend_user((await user(client, "bob@example.com")).user_id)
            assert (await user(client, "bob@example.com")).status == "suspended"
        elif part == "restore":
            await client.restore_user((await user(client, "bob@example.com")).user_id)


asyncio.run(main(sys.argv[1]))
