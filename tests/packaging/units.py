"""What is wrong with a systemd unit: said without systemd, by reading it."""

import re
from collections.abc import Iterator

KEYS = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec"},
    "Service": {
        *("Type", "User", "ExecStart", "ExecReload", "TimeoutStartSec", "TimeoutStopSec", "KillMode", "Restart"),
        *("RestartSec", "WatchdogSec", "ConfigurationDirectory", "StateDirectory"),
        *("StateDirectoryMode", "EnvironmentFile", "LimitNOFILE", "LimitCORE", "UMask"),
        *("NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectHome", "ReadWritePaths", "PrivateTmp"),
        *("PrivateDevices", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs"),
        *("ProtectControlGroups", "ProtectClock", "ProtectHostname", "ProtectProc", "RestrictAddressFamilies"),
        *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute"),
        *("SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
    },
    "Install": {"WantedBy"},
}
WANTED = {
    "Type": "notify",
    "User": "edgeproxy",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "StartLimitIntervalSec": "0",  # a store may be away for longer than a few tries
    "LimitCORE": "0",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateDevices": "yes",
    "RestrictNamespaces": "yes",
    "MemoryDenyWriteExecute": "yes",
}


def settings(text: str) -> Iterator[tuple[str, str, str]]:
    section = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield section, name, value


def wrong(text: str, stop_s: float, commands: set[str]) -> Iterator[str]:
    found = list(settings(text))
    for section, name, _ in found:
        if name not in KEYS.get(section, ()):
            yield f"[{section}] {name}: not known there"
    values = {name: value for _, name, value in found}
    for name, value in WANTED.items():
        if values.get(name) != value:
            yield f"{name} has to be {value!r}"
    if int(values.get("LimitNOFILE", 0)) < 20_000:
        yield "LimitNOFILE: a stream is two open files"
    if int(values.get("TimeoutStopSec", 0)) < stop_s:
        yield f"TimeoutStopSec: an orderly stop takes up to {stop_s:.0f} s"
    program, command, *_ = [*values.get("ExecStart", "").split(), "", ""]
    if not program.startswith("/") or command not in commands:
        yield f"ExecStart: edgeproxy has no command {command!r}"
