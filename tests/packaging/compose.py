"""What is wrong with a compose file: said without a container engine, by reading it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Service = dict[str, Any]

OWN_IMAGE = re.compile(r"edgeproxy:[0-9.]+")
PINNED = re.compile(r"[a-z0-9./-]+:v?[0-9]+\.?[0-9]*[a-z0-9.-]*")
CONDITIONS = {"service_healthy", "service_completed_successfully"}
BOUNDS = ("mem_limit", "cpus", "pids_limit", "ulimits")
PLAIN_SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|API_KEY|PEPPER)$")


def wrong(document: dict[str, Any], folder: Path, variables: set[str], commands: set[str]) -> Iterator[str]:
    services: dict[str, Service] = document["services"]
    for name, service in services.items():
        for message in (
            *_loose(service),
            *_unbounded(service),
            *_unhealthy(service),
            *_unknown(document, service, folder),
            *_mistaken(service, variables, commands),
        ):
            yield f"{name}: {message}"
    yield from _unused(document)
    yield from _reachable(services)


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"([0-9]+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def _loose(service: Service) -> Iterator[str]:
    if not service.get("read_only"):
        yield "its root filesystem can be written to"
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        yield "it keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", ()):
        yield "it can gain privileges"
    if service.get("privileged") or any(service.get(key) == "host" for key in ("network_mode", "pid", "ipc")):
        yield "it is not contained"
    if any("docker.sock" in str(volume) for volume in service.get("volumes", ())):
        yield "it holds the machine's docker socket"
    user = str(service.get("user", ""))
    if not OWN_IMAGE.fullmatch(service.get("image", "")) and not re.fullmatch(r"[1-9][0-9]*(:[0-9]+)?", user):
        yield "it may run as root: user wants a number"


def _unbounded(service: Service) -> Iterator[str]:
    for key in BOUNDS:
        if key not in service:
            yield f"no {key}"
    if service.get("ulimits", {}).get("core") != 0:
        yield "it can leave a memory image behind"
    if service.get("logging", {}).get("driver") != "local":
        yield "its log grows without bound"


def _unhealthy(service: Service) -> Iterator[str]:
    image = service.get("image", "")
    if not PINNED.fullmatch(image):
        yield f"image {image}: pin a version"
    if "restart" not in service:
        yield "nothing starts it again"
    once = service.get("restart") == "no"
    test = service.get("healthcheck", {}).get("test", ())
    if not test and not once and service.get("command") != ["gateway"]:
        yield "no healthcheck, and the image's own is that of a gateway"
    if test and (not isinstance(test, list) or test[0] != "CMD"):
        yield "its healthcheck needs a shell"


def _unknown(document: dict[str, Any], service: Service, folder: Path) -> Iterator[str]:
    for kind in ("secrets", "networks"):
        for name in service.get(kind, ()):
            if name not in document[kind]:
                yield f"{kind}: there is no {name}"
    for volume in service.get("volumes", ()):
        source, _, mode = volume.partition(":")
        if not source.startswith("."):
            if source not in document["volumes"]:
                yield f"there is no volume {source}"
        elif not (folder / source).is_file() or not mode.endswith(":ro"):
            yield f"{source} has to be a file that is there, mounted :ro"
    for name, how in service.get("depends_on", {}).items():
        if name not in document["services"] or how["condition"] not in CONDITIONS:
            yield f"it waits for {name}, in vain or not long enough"


def _mistaken(service: Service, variables: set[str], commands: set[str]) -> Iterator[str]:
    for name, value in service.get("environment", {}).items():
        if name.startswith("EDGEPROXY_") and name not in variables:
            yield f"{name} is no setting"
        if PLAIN_SECRET.search(name) or re.search(r"://[^/@]*:[^/@]*@", str(value)):
            yield f"{name} holds a secret, which everybody sees who may look at the container"
    if OWN_IMAGE.fullmatch(service.get("image", "")) and not {*service.get("command", ())} <= commands:
        yield f"edgeproxy has no command {service.get('command')}"


def _unused(document: dict[str, Any]) -> Iterator[str]:
    used = [str(service.get(kind, "")) for service in document["services"].values() for kind in ("secrets", "volumes")]
    for kind in ("secrets", "volumes"):
        for name in document[kind]:
            if not any(name in text for text in used):
                yield f"nobody uses {name} of {kind}"


def _reachable(services: dict[str, Service]) -> Iterator[str]:
    networks = {name: set(service.get("networks", ())) for name, service in services.items()}
    if networks["gateway"] & networks["postgres"]:
        yield "a gateway can reach PostgreSQL"
    if {"control.toml", "database_password"} & {*services["gateway"]["secrets"]}:
        yield "a gateway holds the password of PostgreSQL"
    for name, service in services.items():
        for port in service.get("ports", ()):
            if name != "nginx" and not port.startswith("127.0.0.1:"):
                yield f"{name} can be reached from outside"
